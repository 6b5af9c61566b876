//! What is in flight: packets that arrive, land and are acknowledged, and ends that break.
//!
//! Each flow has one event for its first packet and one for its first acknowledgement. An event that finds the way
//! barred (cut, stalled sender, no receive posted) does nothing; whoever lifts the bar schedules the next one.

use std::time::Duration;

use dyad_reactor::{Clock, Rng, SeededRng, Time};

use super::handshake::waits_for;
use super::state::{
    Ack, Body, CLIENT, Connection, ConnectionId, EndState, Flow, Landing, Node, Operation, Outcome, Packet, PlaceIndex,
    Side, Source, State, Transfer, other,
};
use super::{Inner, LinkProfile};
use crate::pieces::{self, Piece};
use crate::provider::{BrokenReason, DescriptorError, Event, RegionHandle, Reliability, ViId, WorkQueue};
use crate::regions::RemoteUse;
use crate::vi_state::ViEvent;

/// A write is torn, if it is, between lines of this many bytes.
const LINE: u64 = 64;

/// What became of the first packet of a flow.
enum Step {
    /// It is dealt with.
    Done,
    /// Look again later: the rest of it lands then.
    Later(Duration),
    /// Something must happen first, which schedules the flow.
    Barred,
}

impl Inner {
    fn link_profile(&self, state: &State, from: PlaceIndex, to: PlaceIndex) -> LinkProfile {
        state.links.get(&(from, to)).and_then(|link| link.profile).unwrap_or(self.config.link)
    }

    pub(super) fn sample_delay(&self, state: &mut State, from: PlaceIndex, to: PlaceIndex) -> Duration {
        let profile = self.link_profile(state, from, to);
        profile.latency + state.random(profile.jitter)
    }

    /// When `len` bytes that leave now will have arrived.
    fn sample_arrival(&self, state: &mut State, from: PlaceIndex, to: PlaceIndex, len: u64) -> Time {
        let delay = self.sample_delay(state, from, to);
        let occupied = Duration::from_nanos(len * self.link_profile(state, from, to).nanos_per_kib / 1024);
        let link = state.link(from, to);
        link.busy_until = link.busy_until.max(self.time.now()) + occupied;
        link.busy_until + delay
    }

    /// Puts a packet on its way.
    pub(super) fn enqueue(&self, state: &mut State, id: ConnectionId, side: Side, body: Body) {
        let (from, to) = state.route(&state.connections[&id], side);
        let mut packet = Packet { arrives: Time::ZERO, body };
        let arrives = self.sample_arrival(state, from, to, packet.len());
        let flow = &mut state.connections.get_mut(&id).expect("it was just there").flows[side];
        packet.arrives = arrives.max(flow.last_arrival);
        flow.last_arrival = packet.arrives;
        flow.packets.push_back(packet);
        if flow.packets.len() == 1 {
            self.schedule_packet(state, id, side, Duration::ZERO);
        }
    }

    /// Has the first packet looked at when it arrives, and not before `wait` is over.
    pub(super) fn schedule_packet(&self, state: &mut State, id: ConnectionId, side: Side, wait: Duration) {
        let Some(connection) = state.connections.get_mut(&id) else { return };
        let flow = &mut connection.flows[side];
        flow.packet_event += 1;
        let event = flow.packet_event;
        let Some(first) = flow.packets.front() else { return };
        let delay = first.arrives.since(self.time.now()).max(wait);
        self.after(delay, move |this, state| {
            let valid = |c: &Connection| c.flows[side].packet_event == event;
            if state.connections.get(&id).is_some_and(valid) {
                this.run_flow(state, id, side);
            }
        });
    }

    /// Deals with the packets that have arrived.
    fn run_flow(&self, state: &mut State, id: ConnectionId, side: Side) {
        loop {
            let Some(connection) = state.connections.get(&id) else { return };
            let (from, to) = state.route(connection, side);
            let Some(first) = connection.flows[side].packets.front() else { return };
            if first.arrives > self.time.now() {
                return self.schedule_packet(state, id, side, Duration::ZERO);
            }
            if state.is_cut(from, to) {
                if connection.reliability != Reliability::UnreliableDelivery {
                    return;
                }
                if matches!(first.body, Body::Transfer(_)) {
                    state.connections.get_mut(&id).expect("it is there").flows[side].packets.pop_front();
                    continue;
                }
                return;
            }
            let sender = &state.nodes[connection.ends[side].node];
            if sender.stalled && matches!(first.body, Body::Transfer(_)) {
                return;
            }
            // It is taken out while it is dealt with; only what it does itself may touch the connection meanwhile.
            let flow = &mut state.connections.get_mut(&id).expect("it is there").flows[side];
            let mut packet = flow.packets.pop_front().expect("it was just there");
            let step = self.arrive(state, id, side, &mut packet.body);
            let Some(connection) = state.connections.get_mut(&id) else { return };
            let receiver_open = connection.ends[other(side)].state != EndState::Closed;
            match step {
                Step::Done => {}
                _ if !receiver_open => {}
                Step::Later(wait) => {
                    connection.flows[side].packets.push_front(packet);
                    return self.schedule_packet(state, id, side, wait);
                }
                Step::Barred => {
                    connection.flows[side].packets.push_front(packet);
                    return;
                }
            }
        }
    }

    fn arrive(&self, state: &mut State, id: ConnectionId, side: Side, body: &mut Body) -> Step {
        let receiver = &state.connections[&id].ends[other(side)];
        let (state_there, node) = (receiver.state, receiver.node);
        if state_there == EndState::Closed || !state.nodes[node].alive {
            return Step::Done;
        }
        match body {
            Body::Confirm => self.confirmed(state, id),
            Body::Reset(why) => self.break_end(state, id, other(side), *why),
            Body::Transfer(transfer) => return self.arrive_transfer(state, id, side, transfer),
        }
        Step::Done
    }

    fn arrive_transfer(&self, state: &mut State, id: ConnectionId, side: Side, transfer: &mut Transfer) -> Step {
        let receiver = &state.connections[&id].ends[other(side)];
        let (node, vi) = (receiver.node, receiver.vi);
        let outcome = match transfer.operation {
            Operation::Send => self.land_send(state, node, vi, transfer),
            Operation::Write(_) => self.land_write(state, node, vi, transfer),
            Operation::Read(_) => self.serve_read(state, node, vi, transfer),
        };
        self.trace(|| {
            let (from, to) = (state.connections[&id].ends[side].node, node);
            let what = match &outcome {
                Ok(Landed::All(_)) => "landed",
                Ok(Landed::Part(_)) => "landed in part",
                Ok(Landed::Barred) => "waits",
                Err(_) => "refused",
            };
            format!(
                "{} -> {} {:?} {} bytes: {what}",
                state.name(from),
                state.name(to),
                transfer.operation,
                transfer.len
            )
        });
        match outcome {
            Ok(Landed::All(outcome)) => self.acknowledge(state, id, side, transfer.number, outcome),
            Ok(Landed::Part(wait)) if !transfer.truncated => return Step::Later(wait),
            Ok(Landed::Part(_)) => {}
            Ok(Landed::Barred) => return Step::Barred,
            Err(_) if state.connections[&id].reliability == Reliability::UnreliableDelivery => {}
            Err(error) => {
                self.acknowledge(state, id, side, transfer.number, Outcome::Failed(error));
                self.break_end_silently(state, id, other(side), BrokenReason::Protocol);
            }
        }
        Step::Done
    }

    fn land_send(
        &self,
        state: &mut State,
        node: usize,
        vi: ViId,
        transfer: &mut Transfer,
    ) -> Result<Landed, DescriptorError> {
        let there = &mut state.nodes[node];
        let receiving = there.vi_mut(vi).expect("an end that is not closed has its VI");
        let Some(receive) = receiving.receives.pop_front() else {
            let dropped = receiving.attributes.reliability == Reliability::UnreliableDelivery;
            return if dropped { Err(DescriptorError::Transport) } else { Ok(Landed::Barred) };
        };
        let length = u32::try_from(transfer.len).expect("capabilities bound transfers");
        let result = match &receive.target {
            Err(error) => Err((*error, DescriptorError::Transport)),
            Ok(target) if pieces::total(target) < transfer.len => {
                Err((DescriptorError::Length, DescriptorError::Length))
            }
            Ok(target) => {
                transfer.source.land(0, target, 0, transfer.len);
                Ok(length)
            }
        };
        let ours = result.map_err(|(ours, _)| ours);
        there.complete(vi, WorkQueue::Receive, receive.cookie, ours, transfer.immediate.filter(|_| ours.is_ok()));
        result.map(|_| Landed::All(Outcome::Done(length))).map_err(|(_, theirs)| theirs)
    }

    fn land_write(
        &self,
        state: &mut State,
        node: usize,
        vi: ViId,
        transfer: &mut Transfer,
    ) -> Result<Landed, DescriptorError> {
        let target = reach(&state.nodes[node], vi, transfer, RemoteUse::Write)?;
        let target = std::slice::from_ref(&target);
        match transfer.landing {
            Landing::NotBegun => {
                let torn = transfer.len > LINE && self.config.torn_one_in > 0;
                if transfer.truncated || (torn && state.rng.one_in(self.config.torn_one_in)) {
                    let seed = state.rng.next_u64();
                    transfer.land_lines(target, seed, true);
                    transfer.landing = Landing::Torn(seed);
                    return Ok(Landed::Part(state.random(self.config.link.latency * 4)));
                }
                transfer.source.land(0, target, 0, transfer.len);
            }
            Landing::Torn(seed) => transfer.land_lines(target, seed, false),
            Landing::Landed => {}
        }
        transfer.landing = Landing::Landed;
        if transfer.immediate.is_some() {
            let receiving = state.nodes[node].vi_mut(vi).expect("an end that is not closed has its VI");
            let Some(receive) = receiving.receives.pop_front() else {
                let dropped = receiving.attributes.reliability == Reliability::UnreliableDelivery;
                return if dropped { Err(DescriptorError::Transport) } else { Ok(Landed::Barred) };
            };
            state.nodes[node].complete(vi, WorkQueue::Receive, receive.cookie, Ok(0), transfer.immediate);
        }
        Ok(Landed::All(Outcome::Done(u32::try_from(transfer.len).expect("capabilities bound transfers"))))
    }

    fn serve_read(
        &self,
        state: &mut State,
        node: usize,
        vi: ViId,
        transfer: &Transfer,
    ) -> Result<Landed, DescriptorError> {
        if self.config.profile.read_needs_peer && state.nodes[node].paused {
            return Ok(Landed::Barred);
        }
        let source = reach(&state.nodes[node], vi, transfer, RemoteUse::Read)?;
        Ok(Landed::All(Outcome::Read(pieces::gather(&[source]))))
    }

    /// Sends an acknowledgement back to `side`, unless its descriptor completed when it left.
    fn acknowledge(&self, state: &mut State, id: ConnectionId, side: Side, number: u64, outcome: Outcome) {
        let connection = &state.connections[&id];
        if connection.reliability == Reliability::UnreliableDelivery {
            return;
        }
        let (from, to) = state.route(connection, other(side));
        let len = if let Outcome::Read(bytes) = &outcome { bytes.len() as u64 } else { 0 };
        let arrives = self.sample_arrival(state, from, to, len);
        let flow = &mut state.connections.get_mut(&id).expect("it is there").flows[side];
        let arrives = arrives.max(flow.last_ack);
        flow.last_ack = arrives;
        flow.acks.push_back(Ack { arrives, number, outcome });
        if flow.acks.len() == 1 {
            self.schedule_ack(state, id, side);
        }
    }

    pub(super) fn schedule_ack(&self, state: &mut State, id: ConnectionId, side: Side) {
        let Some(connection) = state.connections.get_mut(&id) else { return };
        let flow = &mut connection.flows[side];
        flow.ack_event += 1;
        let event = flow.ack_event;
        let Some(first) = flow.acks.front() else { return };
        self.after(first.arrives.since(self.time.now()), move |this, state| {
            let valid = |c: &Connection| c.flows[side].ack_event == event;
            if state.connections.get(&id).is_some_and(valid) {
                this.run_acks(state, id, side);
            }
        });
    }

    fn run_acks(&self, state: &mut State, id: ConnectionId, side: Side) {
        loop {
            let Some(connection) = state.connections.get(&id) else { return };
            let (from, to) = state.route(connection, other(side));
            let Some(first) = connection.flows[side].acks.front() else { return };
            if state.is_cut(from, to) {
                return;
            }
            if first.arrives > self.time.now() {
                return self.schedule_ack(state, id, side);
            }
            let connection = state.connections.get_mut(&id).expect("it is there");
            let ack = connection.flows[side].acks.pop_front().expect("it was just there");
            let end = &connection.ends[side];
            if end.state == EndState::Open && state.nodes[end.node].alive {
                let (node, vi) = (end.node, end.vi);
                self.settle(state, node, vi, ack);
            }
        }
    }

    /// An acknowledgement arrived: completes what it is of.
    fn settle(&self, state: &mut State, node: usize, vi: ViId, ack: Ack) {
        let there = &mut state.nodes[node];
        let sending = there.vi_mut(vi).expect("an end that is not closed has its VI");
        // At Reliable Delivery it completed when it left; only a failure is news.
        let waiting = sending.sends.iter_mut().find(|send| send.number == ack.number && send.result.is_none());
        let failed = match (waiting, ack.outcome) {
            (Some(send), Outcome::Done(bytes)) => {
                send.result = Some(Ok(bytes));
                false
            }
            (Some(send), Outcome::Read(bytes)) => {
                pieces::scatter(&bytes, &send.local, 0);
                send.result = Some(Ok(u32::try_from(bytes.len()).expect("capabilities bound transfers")));
                false
            }
            (Some(send), Outcome::Failed(error)) => {
                send.result = Some(Err(error));
                true
            }
            (None, Outcome::Failed(_)) => true,
            (None, _) => false,
        };
        if there.complete_sends(vi) || failed {
            self.break_vi(state, node, vi, BrokenReason::Protocol);
        }
    }

    /// A descriptor of a level that completes early leaves: its bytes are taken out, and it is done.
    pub(super) fn depart(&self, state: &mut State, id: ConnectionId, side: Side, number: u64) {
        let Some(connection) = state.connections.get_mut(&id) else { return };
        let end = &connection.ends[side];
        let (node, vi, open) = (end.node, end.vi, end.state == EndState::Open);
        if !open || !state.nodes[node].alive {
            return;
        }
        let packets = connection.flows[side].packets.iter_mut();
        let transfer = packets.filter_map(|packet| match &mut packet.body {
            Body::Transfer(transfer) if transfer.number == number => Some(transfer),
            _ => None,
        });
        for transfer in transfer {
            transfer.source.take();
        }
        let sending = state.nodes[node].vi_mut(vi).expect("an open end has its VI");
        if let Some(send) = sending.sends.iter_mut().find(|send| send.number == number) {
            let len = pieces::total(&send.local);
            send.result = Some(Ok(u32::try_from(len).expect("capabilities bound transfers")));
        }
        if state.nodes[node].complete_sends(vi) {
            self.break_vi(state, node, vi, BrokenReason::Protocol);
        }
    }

    /// Breaks the connection of `vi`, if it has one.
    pub(super) fn break_vi(&self, state: &mut State, node: usize, vi: ViId, why: BrokenReason) {
        if let Some((id, side)) = state.nodes[node].vi(vi).and_then(|vi| vi.connection) {
            self.break_end(state, id, side, why);
        }
    }

    /// Breaks one end and lets the other know.
    pub(super) fn break_end(&self, state: &mut State, id: ConnectionId, side: Side, why: BrokenReason) {
        self.end_connection(state, id, side, why, true);
    }

    /// Breaks one end; the other has been told.
    fn break_end_silently(&self, state: &mut State, id: ConnectionId, side: Side, why: BrokenReason) {
        self.end_connection(state, id, side, why, false);
    }

    fn end_connection(&self, state: &mut State, id: ConnectionId, side: Side, why: BrokenReason, tell: bool) {
        let State { connections, nodes, rng, .. } = state;
        let Some(connection) = connections.get_mut(&id) else { return };
        if connection.ends[side].state == EndState::Closed {
            return;
        }
        let gave_up = side == CLIENT && connection.ends[side].state == EndState::Waiting && {
            let client = &connection.ends[side];
            !waits_for(&nodes[client.node], client.vi, connection.attempt)
        };
        connection.ends[side].state = EndState::Closed;
        let (node, vi) = (connection.ends[side].node, connection.ends[side].vi);
        // What was posted and has not landed may land or not, in order; its memory belongs to its owner again.
        connection.flows[side].keep_some(rng);
        connection.flows[side].acks.clear();
        connection.flows[other(side)].packets.clear();
        if why == BrokenReason::Revoked {
            // No write of the peer may succeed any more, not even one whose acknowledgement is on its way.
            connection.flows[other(side)].acks.clear();
        }
        let peer_open = connection.ends[other(side)].state != EndState::Closed;
        if !gave_up {
            flush(&mut nodes[node], vi, why);
            self.trace(|| format!("{} vi {:x} broken: {why:?}", state.name(node), vi.0));
        }
        if tell && peer_open {
            let theirs = match why {
                BrokenReason::Protocol | BrokenReason::PeerGone => BrokenReason::Protocol,
                BrokenReason::Disconnected | BrokenReason::Revoked => BrokenReason::Disconnected,
            };
            self.enqueue(state, id, side, Body::Reset(theirs));
        }
        self.forget_if_over(state, id);
    }

    /// A region was taken back: writes into it that landed, but whose sender does not know yet, fail.
    pub(super) fn fail_acks_of(&self, state: &mut State, node: usize, region: RegionHandle) {
        for connection in state.connections.values_mut() {
            for side in [0, 1] {
                if connection.ends[other(side)].node != node {
                    continue;
                }
                let sender = &connection.ends[side];
                let Some(vi) = state.nodes[sender.node].vi(sender.vi) else { continue };
                for ack in &mut connection.flows[side].acks {
                    let written = vi.sends.iter().any(|send| {
                        send.number == ack.number && send.wrote.is_some_and(|address| address.region == region)
                    });
                    if written {
                        ack.outcome = Outcome::Failed(DescriptorError::RemoteProtection);
                    }
                }
            }
        }
    }
}

/// Ends a VI: everything outstanding completes, and its owner hears why.
pub(super) fn flush(node: &mut Node, vi: ViId, why: BrokenReason) {
    let Some(there) = node.vi_mut(vi) else { return };
    let Some(broken) = there.state.step(ViEvent::Broken) else { return };
    there.state = broken;
    let (sends, receives) = (std::mem::take(&mut there.sends), std::mem::take(&mut there.receives));
    for send in sends {
        node.complete(vi, WorkQueue::Send, send.cookie, send.result.unwrap_or(Err(DescriptorError::Flushed)), None);
    }
    for receive in receives {
        node.complete(vi, WorkQueue::Receive, receive.cookie, Err(DescriptorError::Flushed), None);
    }
    node.event(Event::Broken { vi, why });
}

/// How much of a transfer has landed.
enum Landed {
    All(Outcome),
    /// The rest follows after this time.
    Part(Duration),
    /// A receive, or the peer, is waited for.
    Barred,
}

/// The memory of `node` that an RDMA through its `vi` names, if it may.
pub(super) fn reach(node: &Node, vi: ViId, transfer: &Transfer, how: RemoteUse) -> Result<Piece, DescriptorError> {
    let (Operation::Write(address) | Operation::Read(address)) = transfer.operation else {
        unreachable!("a send names no address");
    };
    let attributes = &node.vi(vi).expect("an end that is not closed has its VI").attributes;
    node.regions.remote(address, transfer.len, how, attributes.tag, attributes.remote_access)
}

impl Source {
    /// Copies `len` bytes from `at` on into `target`.
    fn land(&self, at: u64, target: &[Piece], target_at: u64, len: u64) {
        match self {
            Self::Memory(source) => pieces::copy(source, at, target, target_at, len),
            Self::Taken(bytes) => {
                let range = |n: u64| usize::try_from(n).expect("a transfer fits the address space");
                pieces::scatter(&bytes[range(at)..range(at + len)], target, target_at);
            }
        }
    }

    /// Takes the bytes out of the sender's memory.
    pub(super) fn take(&mut self) {
        if let Self::Memory(source) = self {
            *self = Self::Taken(pieces::gather(source));
        }
    }
}

impl Transfer {
    /// Lands those lines that `seed` picks, or the others.
    pub(super) fn land_lines(&self, target: &[Piece], seed: u64, picked: bool) {
        let start = target[0].offset;
        let mut rng = SeededRng::new(seed);
        let mut at = 0;
        while at < self.len {
            let line_end = (start + at + 1).next_multiple_of(LINE) - start;
            let end = line_end.min(self.len);
            if rng.one_in(2) == picked {
                self.source.land(at, target, at, end - at);
            }
            at = end;
        }
    }
}

impl Flow {
    /// Keeps a random number of the packets, the first ones, and takes their bytes out of the sender's memory.
    fn keep_some(&mut self, rng: &mut SeededRng) {
        let keep = rng.below(self.packets.len() as u64 + 1);
        self.packets.truncate(usize::try_from(keep).expect("no more than there were"));
        for packet in &mut self.packets {
            if let Body::Transfer(transfer) = &mut packet.body {
                transfer.source.take();
            }
        }
    }
}
