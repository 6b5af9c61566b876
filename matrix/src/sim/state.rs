//! What the fabric knows: nodes with their tables, links, and connections with what is in flight on them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;
use std::time::Duration;

use dyad_reactor::{Rng, SeededRng, Time};

use super::LinkProfile;
use super::handshake::Message;
use super::late::LateWrite;
use crate::completion::CompletionQueue;
use crate::pieces::Piece;
use crate::provider::{
    BrokenReason, Completion, DescriptorError, Discriminator, Event, Reliability, RemoteAddress, ViAttributes, ViId,
    WorkQueue,
};
use crate::regions::Regions;
use crate::slots::Slots;
use crate::vi_state::ViState;

/// Capacities of every node's tables.
const REGIONS: u16 = 1024;
const VIS: u16 = 1024;
const CQS: u16 = 1024;
const REQUESTS: u16 = 256;

/// Index of a node (a run of a process) in [`State::nodes`]; never used again.
pub(super) type NodeIndex = usize;
/// Index of a place (where runs of one process happen) in [`State::places`].
pub(super) type PlaceIndex = usize;
/// Names a connection for ever.
pub(super) type ConnectionId = u64;
/// Which end of a connection: 0 is the client, 1 the server.
pub(super) type Side = usize;

pub(super) const CLIENT: Side = 0;
pub(super) const SERVER: Side = 1;

pub(super) fn other(side: Side) -> Side {
    1 - side
}

pub(super) struct State {
    pub(super) rng: SeededRng,
    pub(super) places: Vec<Place>,
    pub(super) nodes: Vec<Node>,
    pub(super) links: BTreeMap<(PlaceIndex, PlaceIndex), Link>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) next_connection: ConnectionId,
    /// Connection messages that a cut link holds.
    pub(super) held: Vec<(PlaceIndex, PlaceIndex, Message)>,
    /// Writes that were revoked while their writers were stopped in the middle.
    pub(super) late_writes: Vec<LateWrite>,
}

pub(super) struct Place {
    pub(super) name: String,
    /// The run that is, or was last, there.
    pub(super) node: Option<NodeIndex>,
}

/// One direction.
#[derive(Default)]
pub(super) struct Link {
    pub(super) profile: Option<LinkProfile>,
    /// How often it was cut, if it is cut.
    pub(super) cut: Option<u64>,
    pub(super) cuts: u64,
    pub(super) busy_until: Time,
}

pub(super) struct Node {
    pub(super) place: PlaceIndex,
    pub(super) alive: bool,
    pub(super) paused: bool,
    /// Paused, and its own transfers stand still with it.
    pub(super) stalled: bool,
    pub(super) regions: Regions,
    pub(super) cqs: Slots<CompletionQueue>,
    pub(super) vis: Slots<Vi>,
    pub(super) listeners: BTreeSet<Discriminator>,
    pub(super) requests: Slots<Request>,
    pub(super) events: VecDeque<Event>,
    pub(super) event_waiter: Option<Waker>,
    /// Connection attempts so far; tells a late answer from the one that is waited for.
    pub(super) attempts: u64,
}

pub(super) struct Vi {
    pub(super) attributes: ViAttributes,
    pub(super) state: ViState,
    /// Which attempt it waits for while connecting as a client.
    pub(super) attempt: u64,
    pub(super) connection: Option<(ConnectionId, Side)>,
    /// Descriptors whose completion was not polled yet.
    pub(super) sends_used: u16,
    pub(super) receives_used: u16,
    pub(super) sends: VecDeque<Outstanding>,
    pub(super) receives: VecDeque<Receive>,
    pub(super) next_number: u64,
    /// A descriptor failed before it left; what was posted behind it will be flushed.
    pub(super) poisoned: bool,
}

/// A descriptor of the send queue that did not complete yet.
pub(super) struct Outstanding {
    pub(super) number: u64,
    pub(super) cookie: u64,
    /// The local memory that it reads or fills.
    pub(super) local: Vec<Piece>,
    /// Where an RDMA write goes.
    pub(super) wrote: Option<RemoteAddress>,
    /// How it ended, if it waits only for those before it.
    pub(super) result: Option<Result<u32, DescriptorError>>,
}

pub(super) struct Receive {
    pub(super) cookie: u64,
    pub(super) target: Result<Vec<Piece>, DescriptorError>,
}

/// A connection request that waits at the server.
pub(super) struct Request {
    pub(super) client: NodeIndex,
    pub(super) client_vi: ViId,
    pub(super) attempt: u64,
    pub(super) reliability: Reliability,
    pub(super) timeout: Duration,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum EndState {
    /// Not established yet.
    Waiting,
    Open,
    Closed,
}

pub(super) struct End {
    pub(super) node: NodeIndex,
    pub(super) vi: ViId,
    pub(super) state: EndState,
}

pub(super) struct Connection {
    pub(super) reliability: Reliability,
    /// The client's attempt that it answers.
    pub(super) attempt: u64,
    pub(super) ends: [End; 2],
    /// `flows[side]` carries what `ends[side]` sends.
    pub(super) flows: [Flow; 2],
}

/// One direction of a connection: packets go, acknowledgements come back, each in order.
#[derive(Default)]
pub(super) struct Flow {
    pub(super) packets: VecDeque<Packet>,
    pub(super) acks: VecDeque<Ack>,
    /// Only the event that was scheduled last, and carries this number, moves the head.
    pub(super) packet_event: u64,
    pub(super) ack_event: u64,
    pub(super) last_arrival: Time,
    pub(super) last_ack: Time,
}

pub(super) struct Packet {
    pub(super) arrives: Time,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// The client heard that it was accepted.
    Confirm,
    /// The other end is closed.
    Reset(BrokenReason),
    /// A descriptor.
    Transfer(Transfer),
}

pub(super) struct Transfer {
    pub(super) number: u64,
    pub(super) operation: Operation,
    pub(super) len: u64,
    pub(super) immediate: Option<u32>,
    pub(super) source: Source,
    pub(super) landing: Landing,
    /// Its sender died while it was landing: only the first step happens, and nothing behind it.
    pub(super) truncated: bool,
}

#[derive(Debug, Copy, Clone)]
pub(super) enum Operation {
    Send,
    Write(RemoteAddress),
    Read(RemoteAddress),
}

/// Where the bytes are.
pub(super) enum Source {
    /// Still in the sender's memory.
    Memory(Vec<Piece>),
    /// On the way.
    Taken(Box<[u8]>),
}

/// How far an RDMA write has landed.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Landing {
    NotBegun,
    /// The lines that this seed picks have landed.
    Torn(u64),
    Landed,
}

pub(super) struct Ack {
    pub(super) arrives: Time,
    pub(super) number: u64,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Done(u32),
    Failed(DescriptorError),
    /// What an RDMA read found.
    Read(Box<[u8]>),
}

impl State {
    pub(super) fn new(rng: SeededRng) -> Self {
        Self {
            rng,
            places: Vec::new(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            held: Vec::new(),
            late_writes: Vec::new(),
        }
    }

    /// The place called `name`.
    pub(super) fn place(&mut self, name: &str) -> PlaceIndex {
        self.places.iter().position(|place| place.name == name).unwrap_or_else(|| {
            self.places.push(Place { name: name.to_owned(), node: None });
            self.places.len() - 1
        })
    }

    pub(super) fn link(&mut self, from: PlaceIndex, to: PlaceIndex) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    pub(super) fn is_cut(&self, from: PlaceIndex, to: PlaceIndex) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.cut.is_some())
    }

    /// A random part of `most`.
    pub(super) fn random(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.rng.below(nanos.saturating_add(1)))
    }

    pub(super) fn name(&self, node: NodeIndex) -> &str {
        &self.places[self.nodes[node].place].name
    }

    /// `from` and `to` of what `side` of the connection sends.
    pub(super) fn route(&self, connection: &Connection, side: Side) -> (PlaceIndex, PlaceIndex) {
        (self.nodes[connection.ends[side].node].place, self.nodes[connection.ends[other(side)].node].place)
    }
}

impl Node {
    pub(super) fn new(place: PlaceIndex, incarnation: u64) -> Self {
        Self {
            place,
            alive: true,
            paused: false,
            stalled: false,
            regions: Regions::new(incarnation, REGIONS),
            cqs: Slots::new(CQS),
            vis: Slots::new(VIS),
            listeners: BTreeSet::new(),
            requests: Slots::new(REQUESTS),
            events: VecDeque::new(),
            event_waiter: None,
            attempts: 0,
        }
    }

    pub(super) fn vi(&self, vi: ViId) -> Option<&Vi> {
        self.vis.get(vi.0)
    }

    pub(super) fn vi_mut(&mut self, vi: ViId) -> Option<&mut Vi> {
        self.vis.get_mut(vi.0)
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back(event);
        if let Some(waiter) = self.event_waiter.take() {
            waiter.wake();
        }
    }

    pub(super) fn complete(
        &mut self,
        vi: ViId,
        queue: WorkQueue,
        cookie: u64,
        result: Result<u32, DescriptorError>,
        immediate: Option<u32>,
    ) {
        let attributes = &self.vi(vi).expect("only VIs that are there complete").attributes;
        let cq = match queue {
            WorkQueue::Send => attributes.send_cq,
            WorkQueue::Receive => attributes.receive_cq,
        };
        let queue_there = self.cqs.get_mut(cq.0).expect("a VI's completion queues outlive it");
        queue_there.push(Completion { vi, queue, cookie, result, immediate });
    }

    /// Completes the sends that are done, up to the first that is not. Returns whether one of them failed in a way that
    /// ends the connection.
    pub(super) fn complete_sends(&mut self, vi: ViId) -> bool {
        loop {
            let Some(sending) = self.vi_mut(vi) else { return false };
            let reliable = sending.attributes.reliability != Reliability::UnreliableDelivery;
            let Some((result, cookie)) = sending.sends.front().and_then(|send| Some((send.result?, send.cookie)))
            else {
                return false;
            };
            sending.sends.pop_front();
            self.complete(vi, WorkQueue::Send, cookie, result, None);
            if result.is_err() && reliable {
                return true;
            }
        }
    }
}

impl Packet {
    /// Bytes that it occupies a link with, beside its header.
    pub(super) fn len(&self) -> u64 {
        match &self.body {
            Body::Transfer(Transfer { operation: Operation::Send | Operation::Write(_), len, .. }) => *len,
            _ => 0,
        }
    }
}
