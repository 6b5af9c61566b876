//! How connections are made: request, then accept or reject, then confirm. The connection exists from the accept on; the
//! confirm is its first packet, so that no descriptor of the client overtakes it.

use std::time::Duration;

use super::Inner;
use super::state::{
    Body, CLIENT, Connection, End, EndState, Flow, Node, NodeIndex, PlaceIndex, Request, SERVER, State,
};
use crate::provider::{
    BrokenReason, Discriminator, Event, NetAddress, PrivateData, RefusedReason, RequestId, ResourceError, ViId,
};
use crate::vi_state::{ViEvent, ViState};

/// A message that belongs to no connection yet.
pub(super) enum Message {
    Request { to: PlaceIndex, discriminator: Discriminator, private_data: PrivateData, request: Request },
    Refuse { client: NodeIndex, vi: ViId, attempt: u64, why: RefusedReason, private_data: PrivateData },
    Accept { client: NodeIndex, vi: ViId, attempt: u64, connection: u64, private_data: PrivateData },
}

impl Inner {
    /// Sends `message`. A cut link holds it or loses it, at random.
    pub(super) fn send_message(&self, state: &mut State, from: PlaceIndex, to: PlaceIndex, message: Message) {
        let delay = self.sample_delay(state, from, to);
        self.after(delay, move |this, state| {
            if !state.is_cut(from, to) {
                this.receive_message(state, message);
            } else if dyad_reactor::Rng::one_in(&mut state.rng, 2) {
                state.held.push((from, to, message));
            }
        });
    }

    pub(super) fn receive_message(&self, state: &mut State, message: Message) {
        match message {
            Message::Request { to, discriminator, private_data, request } => {
                self.receive_request(state, to, discriminator, private_data, request);
            }
            Message::Refuse { client, vi, attempt, why, private_data } => {
                self.refuse(state, client, vi, attempt, why, private_data);
            }
            Message::Accept { client, vi, attempt, connection, private_data } => {
                if !state.nodes[client].alive {
                    return;
                }
                let waiting = waits_for(&state.nodes[client], vi, attempt);
                let Some(there) = state.connections.get_mut(&connection) else { return };
                if !waiting || there.ends[CLIENT].state != EndState::Waiting {
                    // It gave up; the server's end must not wait for a confirm.
                    there.ends[CLIENT].state = EndState::Closed;
                    self.enqueue(state, connection, CLIENT, Body::Reset(BrokenReason::Disconnected));
                    return;
                }
                there.ends[CLIENT].state = EndState::Open;
                self.establish(state, client, vi, private_data);
                self.enqueue(state, connection, CLIENT, Body::Confirm);
                state.nodes[client].vi_mut(vi).expect("it waits").connection = Some((connection, CLIENT));
            }
        }
    }

    fn receive_request(
        &self,
        state: &mut State,
        to: PlaceIndex,
        discriminator: Discriminator,
        private_data: PrivateData,
        request: Request,
    ) {
        let (client, vi, attempt) = (request.client, request.client_vi, request.attempt);
        let timeout = request.timeout;
        let listening = state.places[to]
            .node
            .filter(|&node| state.nodes[node].alive && state.nodes[node].listeners.contains(&discriminator));
        let taken = listening.and_then(|node| Some((node, RequestId(state.nodes[node].requests.insert(request)?))));
        let Some((node, request)) = taken else {
            let (why, private_data) = (RefusedReason::NoListener, PrivateData::new());
            let back = state.nodes[client].place;
            self.send_message(state, to, back, Message::Refuse { client, vi, attempt, why, private_data });
            return;
        };
        state.nodes[node].event(Event::Requested { request, discriminator, private_data });
        // The client gave up by then.
        self.after(timeout, move |_, state| {
            state.nodes[node].requests.remove(request.0);
        });
    }

    pub(super) fn connect(
        &self,
        state: &mut State,
        node: NodeIndex,
        vi: ViId,
        address: &NetAddress,
        private_data: PrivateData,
        timeout: Duration,
    ) -> Result<(), ResourceError> {
        let (to, discriminator) = (state.place(&address.host), address.discriminator);
        let client = &mut state.nodes[node];
        client.attempts += 1;
        let attempt = client.attempts;
        let asking = client.vi_mut(vi).ok_or(ResourceError::Unknown("VI"))?;
        asking.state = asking.state.step(ViEvent::Connect).ok_or(ResourceError::State("the VI is not idle"))?;
        asking.attempt = attempt;
        let reliability = asking.attributes.reliability;
        let from = client.place;
        let request = Request { client: node, client_vi: vi, attempt, reliability, timeout };
        self.send_message(state, from, to, Message::Request { to, discriminator, private_data, request });
        self.after(timeout, move |this, state| {
            this.refuse(state, node, vi, attempt, RefusedReason::TimedOut, PrivateData::new());
        });
        Ok(())
    }

    pub(super) fn accept(
        &self,
        state: &mut State,
        node: NodeIndex,
        request: RequestId,
        vi: ViId,
        private_data: PrivateData,
    ) -> Result<(), ResourceError> {
        let server = &mut state.nodes[node];
        let from = server.place;
        let asked = server.requests.get(request.0).ok_or(ResourceError::Unknown("request"))?;
        let (client, client_vi, attempt, timeout) = (asked.client, asked.client_vi, asked.attempt, asked.timeout);
        let wanted = asked.reliability;
        let taking = server.vi_mut(vi).ok_or(ResourceError::Unknown("VI"))?;
        let next = taking.state.step(ViEvent::Connect).ok_or(ResourceError::State("the VI is not idle"))?;
        let reliability = taking.attributes.reliability;
        let fits = reliability == wanted;
        if fits {
            taking.state = next;
            taking.connection = Some((state.next_connection, SERVER));
        }
        server.requests.remove(request.0);
        let to = state.nodes[client].place;
        if !fits {
            let why = RefusedReason::Mismatch;
            let refusal = Message::Refuse { client, vi: client_vi, attempt, why, private_data };
            self.send_message(state, from, to, refusal);
            return Err(ResourceError::State("the request asks for another reliability level"));
        }
        let connection = state.next_connection;
        state.next_connection += 1;
        let ends = [(client, client_vi), (node, vi)].map(|(node, vi)| End { node, vi, state: EndState::Waiting });
        state
            .connections
            .insert(connection, Connection { reliability, attempt, ends, flows: [Flow::default(), Flow::default()] });
        let message = Message::Accept { client, vi: client_vi, attempt, connection, private_data };
        self.send_message(state, from, to, message);
        self.after(timeout, move |this, state| {
            let waits = state.connections.get(&connection).is_some_and(|c| c.ends[SERVER].state == EndState::Waiting);
            if waits {
                this.break_end(state, connection, SERVER, BrokenReason::Protocol);
            }
        });
        Ok(())
    }

    pub(super) fn reject(
        &self,
        state: &mut State,
        node: NodeIndex,
        request: RequestId,
        private_data: PrivateData,
    ) -> Result<(), ResourceError> {
        let asked = state.nodes[node].requests.remove(request.0).ok_or(ResourceError::Unknown("request"))?;
        let (client, vi, attempt, why) = (asked.client, asked.client_vi, asked.attempt, RefusedReason::Rejected);
        let (from, to) = (state.nodes[node].place, state.nodes[client].place);
        self.send_message(state, from, to, Message::Refuse { client, vi, attempt, why, private_data });
        Ok(())
    }

    fn refuse(
        &self,
        state: &mut State,
        client: NodeIndex,
        vi: ViId,
        attempt: u64,
        why: RefusedReason,
        private_data: PrivateData,
    ) {
        if waits_for(&state.nodes[client], vi, attempt) {
            let asking = state.nodes[client].vi_mut(vi).expect("it waits");
            asking.state = asking.state.step(ViEvent::Refused).expect("a connecting VI can be refused");
            state.nodes[client].event(Event::Refused { vi, why, private_data });
            self.trace(|| format!("{} vi {:x} refused: {why:?}", state.name(client), vi.0));
        }
    }

    /// The confirm arrived at the server.
    pub(super) fn confirmed(&self, state: &mut State, connection: u64) {
        let end = &mut state.connections.get_mut(&connection).expect("its packet arrived").ends[SERVER];
        if end.state == EndState::Waiting {
            end.state = EndState::Open;
            let (node, vi) = (end.node, end.vi);
            self.establish(state, node, vi, PrivateData::new());
        }
    }

    fn establish(&self, state: &mut State, node: NodeIndex, vi: ViId, private_data: PrivateData) {
        let there = state.nodes[node].vi_mut(vi).expect("it waits");
        there.state = there.state.step(ViEvent::Established).expect("only a connecting VI is established");
        state.nodes[node].event(Event::Established { vi, private_data });
        self.trace(|| format!("{} vi {:x} connected", state.name(node), vi.0));
    }

    /// Drops a connection that is closed at both ends.
    pub(super) fn forget_if_over(&self, state: &mut State, connection: u64) {
        let over = |c: &Connection| c.ends.iter().all(|end| end.state == EndState::Closed);
        if state.connections.get(&connection).is_some_and(over) {
            state.connections.remove(&connection);
        }
    }
}

/// Whether the client still waits for the answer to that attempt.
pub(super) fn waits_for(node: &Node, vi: ViId, attempt: u64) -> bool {
    node.alive && node.vi(vi).is_some_and(|vi| vi.state == ViState::Connecting && vi.attempt == attempt)
}
