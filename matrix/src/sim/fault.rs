//! What the simulator does to nodes and links.

use std::time::Duration;

use dyad_reactor::Rng;

use super::state::{
    Body, Connection, ConnectionId, EndState, NodeIndex, Operation, PlaceIndex, Side, State, Transfer, other,
};
use super::{Fabric, Inner};
use crate::provider::{BrokenReason, Reliability};

impl Fabric {
    /// Ends the process `name` at once. Its tasks must be forgotten, not dropped, and run no more.
    ///
    /// # Panics
    /// If no node of that name runs.
    pub fn kill(&self, name: &str) {
        let state = &mut *self.0.state.borrow_mut();
        let node = running(state, name);
        self.0.trace(|| format!("{name} is killed"));
        self.0.kill(state, node);
    }

    /// Stops the process `name`: the simulator stops its tasks, the network goes on.
    ///
    /// # Panics
    /// If no node of that name runs.
    pub fn pause(&self, name: &str) {
        let state = &mut *self.0.state.borrow_mut();
        let node = running(state, name);
        let stalled = state.rng.one_in(2);
        state.nodes[node].paused = true;
        state.nodes[node].stalled = stalled;
        if stalled {
            self.0.stop_in_the_middle(state, node);
        }
        self.0.trace(|| format!("{name} pauses{}", if stalled { " and its transfers with it" } else { "" }));
    }

    /// An RDMA write of the process `name` is the next thing to land somewhere.
    ///
    /// # Panics
    /// If no node of that name runs.
    #[must_use]
    pub fn is_writing(&self, name: &str) -> bool {
        let state = &mut *self.0.state.borrow_mut();
        let node = running(state, name);
        let lands = |connection: &Connection, side: Side| {
            let first = connection.flows[side].packets.front().map(|packet| &packet.body);
            let open = connection.ends[other(side)].state != EndState::Closed;
            let writes = |transfer: &Transfer| matches!(transfer.operation, Operation::Write(_));
            connection.ends[side].node == node && open && matches!(first, Some(Body::Transfer(first)) if writes(first))
        };
        state.connections.values().any(|connection| [0, 1].into_iter().any(|side| lands(connection, side)))
    }

    /// Lets `name` go on after [`Self::pause`]; nothing to a node that was not paused or has died.
    pub fn resume(&self, name: &str) {
        let state = &mut *self.0.state.borrow_mut();
        let place = state.place(name);
        let Some(node) = state.places[place].node else { return };
        state.nodes[node].paused = false;
        state.nodes[node].stalled = false;
        self.0.trace(|| format!("{name} resumes"));
        self.0.land_late_writes(state, node);
        for (id, side) in state.ends_where(|end| end == node) {
            let wait = state.random(self.0.config.link.latency);
            self.0.schedule_packet(state, id, side, wait);
            self.0.schedule_packet(state, id, other(side), Duration::ZERO);
        }
    }

    /// Cuts the direction `from` -> `to`: what it carries is held until [`Self::heal`], or lost where the level allows it.
    pub fn cut(&self, from: &str, to: &str) {
        let state = &mut *self.0.state.borrow_mut();
        self.0.trace(|| format!("the link {from} -> {to} is cut"));
        let (from, to) = (state.place(from), state.place(to));
        let link = state.link(from, to);
        if link.cut.is_some() {
            return;
        }
        link.cuts += 1;
        link.cut = Some(link.cuts);
        let this_cut = link.cut;
        let across = state.across(from, to);
        for (id, side) in across {
            if state.connections[&id].reliability == Reliability::UnreliableDelivery {
                continue;
            }
            for end in [side, other(side)] {
                let bound = self.0.config.cut_bound + state.random(self.0.config.cut_bound);
                self.0.after(bound, move |this, state| {
                    if state.link(from, to).cut == this_cut {
                        this.break_end(state, id, end, BrokenReason::Protocol);
                    }
                });
            }
        }
    }

    /// Mends the direction `from` -> `to`.
    pub fn heal(&self, from: &str, to: &str) {
        let state = &mut *self.0.state.borrow_mut();
        self.0.trace(|| format!("the link {from} -> {to} is mended"));
        let (from, to) = (state.place(from), state.place(to));
        if state.link(from, to).cut.take().is_none() {
            return;
        }
        for (id, side) in state.across(from, to) {
            let delay = self.0.sample_delay(state, from, to);
            self.0.schedule_packet(state, id, side, delay);
            self.0.schedule_ack(state, id, other(side));
        }
        let held = std::mem::take(&mut state.held);
        for (held_from, held_to, message) in held {
            if (held_from, held_to) == (from, to) {
                self.0.send_message(state, from, to, message);
            } else {
                state.held.push((held_from, held_to, message));
            }
        }
    }
}

impl Inner {
    fn kill(&self, state: &mut State, node: NodeIndex) {
        let dead = &mut state.nodes[node];
        dead.alive = false;
        dead.stalled = false;
        dead.event_waiter = None;
        let cqs: Vec<u32> = dead.cqs.iter().map(|(name, _)| name).collect();
        for cq in cqs {
            dead.cqs.get_mut(cq).expect("it was just listed").forget_waiter();
        }
        state.forget_late_writes(node);
        for (id, side) in state.ends_where(|end| end == node) {
            let State { connections, rng, .. } = &mut *state;
            let connection = connections.get_mut(&id).expect("it was just listed");
            connection.ends[side].state = EndState::Closed;
            connection.flows[other(side)].packets.clear();
            let outgoing = &mut connection.flows[side];
            outgoing.acks.clear();
            let keep = rng.below(outgoing.packets.len() as u64 + 1);
            outgoing.packets.truncate(usize::try_from(keep).expect("no more than there were"));
            if let Some(Body::Transfer(last)) = outgoing.packets.back_mut().map(|packet| &mut packet.body)
                && matches!(last.operation, Operation::Write(_))
            {
                last.truncated = rng.one_in(2);
            }
            self.detect_death(state, id, other(side));
            self.forget_if_over(state, id);
        }
    }

    /// Lets `side` notice that its peer died, when the way to it is open.
    fn detect_death(&self, state: &mut State, id: ConnectionId, side: Side) {
        let wait = state.random(self.config.detection_max) + self.config.link.latency;
        self.after(wait, move |this, state| {
            let Some(connection) = state.connections.get(&id) else { return };
            let (from, to) = state.route(connection, other(side));
            if state.is_cut(from, to) {
                // The cut's own bound breaks the connection first if it lasts.
                this.detect_death(state, id, side);
            } else {
                this.break_end(state, id, side, BrokenReason::PeerGone);
            }
        });
    }
}

impl State {
    /// The ends, not closed, whose node `pick` picks, with their side.
    fn ends_where(&self, pick: impl Fn(NodeIndex) -> bool) -> Vec<(ConnectionId, Side)> {
        let ends = self.connections.iter().flat_map(|(&id, connection)| {
            [0, 1].map(|side| (id, side, connection.ends[side].node, connection.ends[side].state))
        });
        ends.filter(|&(.., node, state)| pick(node) && state != EndState::Closed)
            .map(|(id, side, ..)| (id, side))
            .collect()
    }

    /// The connections that cross the link, with the side that sends over it.
    fn across(&self, from: PlaceIndex, to: PlaceIndex) -> Vec<(ConnectionId, Side)> {
        let both = self.connections.iter().flat_map(|(&id, connection)| [(id, 0, connection), (id, 1, connection)]);
        both.filter(|(_, side, connection)| self.route(connection, *side) == (from, to))
            .map(|(id, side, _)| (id, side))
            .collect()
    }
}

fn running(state: &mut State, name: &str) -> NodeIndex {
    let place = state.place(name);
    let node = state.places[place].node.filter(|&node| state.nodes[node].alive);
    node.unwrap_or_else(|| panic!("no node {name} runs"))
}
