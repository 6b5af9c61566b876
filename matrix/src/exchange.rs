//! Requests and answers between nodes, in classes (PROTOCOLS 11): each class has a VI of its own to each peer, buffers and credits
//! of its own, and a queue of its own at the other end. [`class`](crate::class) says why it cannot deadlock.
//!
//! Each class is an [`Endpoint`]; answers to requests of all classes come over that of [`Class::Reply`].
//!
//! A message, in the endpoint's message (numbers little-endian):
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 1 | 0 a request, 1 an answer |
//! | 1 | 8 | ticket of the request; it comes back with the answer |
//! | 9 | | the body, at most [`BODY_BYTES_MAX`] |
//!
//! Every request is answered, so a credit is one request from the moment it is sent until its answer is here: what waits at a
//! node is bounded by its peers' credits. A peer that says something else, answers what was not asked, or has more outstanding
//! than its credits, is cut off.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_reactor::collections::{FixedMap, fixed_map};
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{Inbox, Permit, Replies, Ticket};

use crate::class::{Class, Credits, PerClass};
use crate::crossover::Crossover;
use crate::endpoint::{Endpoint, EndpointConfig, MESSAGE_BYTES_MAX, Message, TransferError};
use crate::memory::{Memory, Segment};
use crate::provider::{
    Discriminator, Event, NetAddress, PrivateData, ProtectionTag, Provider, RegionHandle, RemoteAccess, RemoteAddress,
    RequestId, ResourceError, Revocable, ViId,
};

const HEADER_BYTES: usize = 9;

/// Longest body of a message in bytes.
pub const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX - HEADER_BYTES;

/// What a message says.
pub type Body = heapless::Vec<u8, BODY_BYTES_MAX>;

/// Sizes of an [`Exchange`], fixed for its life, and the same at all nodes that speak with each other.
#[derive(Debug, Copy, Clone)]
pub struct ExchangeConfig {
    /// Most peers at one time.
    pub peers: u16,
    /// Requests that may be outstanding to one peer.
    pub outstanding: PerClass<u16>,
    /// The memory that peers reach.
    pub tag: ProtectionTag,
    /// What they may do to it.
    pub remote_access: RemoteAccess,
}

/// What kind of message.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Kind {
    Request,
    Answer,
}

/// Payload that goes into the peer's memory before the message is delivered ([`Endpoint::transfer`]).
#[derive(Debug, Copy, Clone)]
pub struct Payload<'a> {
    /// Its bytes; untouched until the call returns.
    pub from: &'a [Segment],
    /// Where they go.
    pub to: RemoteAddress,
}

struct PeerState {
    vis: PerClass<ViId>,
    credits: Credits,
    /// The credits of requests that were sent and not answered. A request that nobody waits for any more keeps its own.
    asked: RefCell<FixedMap<u64, Permit>>,
    /// An answer brings the credit back, so there are never more questions than places here.
    answers: Replies<Option<(Body, Permit)>>,
    /// How many of the peer's requests we have not answered.
    owed: PerClass<Cell<u16>>,
    gone: Cell<bool>,
}

struct Inner<P> {
    endpoints: PerClass<Endpoint<P>>,
    config: ExchangeConfig,
    peers: RefCell<Vec<Rc<PeerState>>>,
    incoming: PerClass<Inbox<Incoming<P>>>,
}

/// All peers of a node. Clones are the same exchange.
pub struct Exchange<P> {
    inner: Rc<Inner<P>>,
}

/// A node that we are connected to in all classes. Clones are the same peer.
pub struct Peer<P> {
    inner: Rc<Inner<P>>,
    state: Rc<PeerState>,
}

/// A request of a peer, to be [answered](Self::answer).
#[must_use = "the peer waits for an answer, and its credit with it"]
pub struct Incoming<P> {
    /// Who asks.
    pub peer: Peer<P>,
    /// What.
    pub body: Body,
    class: Class,
    ticket: u64,
}

impl<P> Clone for Exchange<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<P> Clone for Peer<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner), state: Rc::clone(&self.state) }
    }
}

impl<P: Provider> Exchange<P> {
    /// Makes the endpoints and spawns two tasks for each class.
    ///
    /// # Errors
    /// When the provider has no room.
    pub fn new(handle: &Handle, provider: &P, config: ExchangeConfig) -> Result<Self, ResourceError> {
        let credits = Credits::new(config.outstanding);
        // A peer that is being parted from holds its places a while longer.
        let vis_max = config.peers.saturating_mul(2);
        let make = |class| {
            let depth = credits.receives(class);
            let config = EndpointConfig { vis_max, depth, tag: config.tag, remote_access: config.remote_access };
            Endpoint::new(provider.clone(), config)
        };
        let incoming = |class| Inbox::new(usize::from(config.outstanding[class]) * usize::from(vis_max));
        let inner = Inner {
            endpoints: PerClass::try_new(make)?,
            config,
            peers: RefCell::new(Vec::with_capacity(usize::from(config.peers))),
            incoming: PerClass::new(incoming),
        };
        let exchange = Self { inner: Rc::new(inner) };
        for class in Class::ALL {
            handle.spawn("exchange completions", exchange.inner.endpoints[class].clone().run());
            handle.spawn("exchange receive", exchange.clone().run_receive(class));
        }
        Ok(exchange)
    }

    /// The provider below.
    #[must_use]
    pub fn provider(&self) -> &P {
        self.inner.endpoints[Class::Membership].provider()
    }

    /// Lets peers put payload of requests into `memory`, and do by RDMA what else `access` says. It is taken back with
    /// [`withdraw`](Self::withdraw), not with the provider.
    ///
    /// # Errors
    /// As [`Provider::register`].
    pub fn export(&self, memory: &Memory, access: RemoteAccess) -> Result<RegionHandle, ResourceError> {
        let region = self.provider().register(memory, self.inner.config.tag, access)?;
        if access.write {
            Class::ALL.into_iter().for_each(|class| self.inner.endpoints[class].admit(region, memory));
        }
        Ok(region)
    }

    /// Revokes a region that was exported here: see [`Provider::revoke`].
    ///
    /// # Errors
    /// When the handle names nothing.
    pub fn withdraw(&self, region: RegionHandle) -> Result<(), ResourceError> {
        Class::ALL.into_iter().for_each(|class| self.inner.endpoints[class].dismiss(region));
        self.provider().revoke(Revocable::Region(region))
    }

    /// From now on payload goes by the provider's own crossover; before, it all goes by RDMA.
    pub fn choose_by(&self, crossover: Crossover) {
        Class::ALL.into_iter().for_each(|class| self.inner.endpoints[class].choose_by(crossover));
    }

    /// Listens for `service` in all classes. Requests come as the provider's events ([`Class::at`]), to be
    /// [accepted](Self::accept).
    ///
    /// # Errors
    /// When somebody listens there already.
    pub fn listen(&self, service: Discriminator) -> Result<(), ResourceError> {
        Class::ALL.into_iter().try_for_each(|class| self.provider().listen(class.discriminator(service)))
    }

    /// Connects to the node at `host` in all classes; `events` are the provider's about VIs that are being connected. `None`:
    /// refused, or no answer in time, in one of them.
    pub async fn connect(
        &self,
        handle: &Handle,
        events: &Inbox<Event>,
        host: &str,
        service: Discriminator,
        private_data: &[u8],
        timeout: Duration,
    ) -> Option<(Peer<P>, PrivateData)> {
        let mut vis = heapless::Vec::<ViId, { Class::ALL.len() }>::new();
        let mut said = PrivateData::new();
        for class in Class::ALL {
            let to = NetAddress { host: host.to_owned(), discriminator: class.discriminator(service) };
            let connecting = self.inner.endpoints[class].connect(handle, events, &to, private_data, timeout);
            let Some((vi, answer)) = connecting.await else { break };
            assert!(vis.push(vi).is_ok(), "there is one for each class");
            said = answer;
        }
        let peer = if vis.is_full() { self.join(PerClass::of(&vis)) } else { None };
        if peer.is_none() {
            for (class, vi) in Class::ALL.into_iter().zip(&vis) {
                self.inner.endpoints[class].close(*vi).await;
            }
        }
        Some((peer?, said))
    }

    /// Takes a request for a connection in `class`.
    ///
    /// # Errors
    /// As [`Provider::accept`]; or all VIs of the class are open.
    pub async fn accept(&self, request: RequestId, class: Class, private_data: &[u8]) -> Result<ViId, ResourceError> {
        let endpoint = &self.inner.endpoints[class];
        let vi = endpoint.open()?;
        let accepted = endpoint.provider().accept(request, vi, private_data);
        if accepted.is_err() {
            endpoint.close(vi).await;
        }
        accepted.map(|()| vi)
    }

    /// The peer that is connected by these VIs; `None` if there are as many as may be. Who accepts joins as soon as it has
    /// accepted the last, because the peer may ask as soon as it hears of that.
    #[must_use]
    pub fn join(&self, vis: PerClass<ViId>) -> Option<Peer<P>> {
        let mut peers = self.inner.peers.borrow_mut();
        if peers.len() == usize::from(self.inner.config.peers) {
            return None;
        }
        let credits = Credits::new(self.inner.config.outstanding);
        let answers = Replies::new(usize::from(credits.requests()));
        let asked = RefCell::new(fixed_map(usize::from(credits.requests())));
        let state = PeerState { vis, credits, asked, answers, owed: PerClass::default(), gone: Cell::new(false) };
        let state = Rc::new(state);
        peers.push(Rc::clone(&state));
        Some(Peer { inner: Rc::clone(&self.inner), state })
    }

    /// The next request of `class`, of any peer.
    pub async fn next(&self, class: Class) -> Incoming<P> {
        self.inner.incoming[class].next().await
    }

    async fn run_receive(self, class: Class) {
        let inner = &*self.inner;
        loop {
            let (vi, message) = inner.endpoints[class].receive().await;
            // Its other VIs may not be connected yet; it says nothing before they are.
            let Some(state) = inner.peer_of(class, vi) else { continue };
            let peer = Peer { inner: Rc::clone(&self.inner), state };
            if peer.heard(class, &message).is_none() {
                peer.cut_off();
            }
        }
    }
}

impl<P> Inner<P> {
    fn peer_of(&self, class: Class, vi: ViId) -> Option<Rc<PeerState>> {
        self.peers.borrow().iter().find(|peer| peer.vis[class] == vi).cloned()
    }
}

impl<P: Provider> Peer<P> {
    /// Asks, and returns the answer. Room for it is taken before the request goes: a credit stands for both. `payload` is in
    /// the peer's memory when it hears of the request.
    ///
    /// # Errors
    /// When the connection is gone: the peer may have done what it was asked or not.
    ///
    /// # Panics
    /// If the body is longer than [`BODY_BYTES_MAX`].
    pub async fn request(
        &self,
        class: Class,
        payload: Option<Payload<'_>>,
        body: &[u8],
    ) -> Result<Body, TransferError> {
        let Self { inner, state } = self;
        let credit = state.credits.acquire(class).await;
        if state.gone.get() {
            return Err(TransferError::NotConnected);
        }
        let pending = state.answers.reserve().expect("there are as many places as credits");
        let message = encode(Kind::Request, pending.ticket().to_u64(), body);
        let (endpoint, vi) = (&inner.endpoints[class], state.vis[class]);
        let (from, to) = payload.map_or((&[][..], NOWHERE), |payload| (payload.from, payload.to));
        let posted = endpoint.transfer(vi, from, to, &message).await?;
        state.asked.borrow_mut().insert(pending.ticket().to_u64(), credit);
        let answer = pending.await;
        // The answer may come before we hear that the request has gone, and its payload with it.
        posted.await?;
        answer.map(|(body, _credit)| body).ok_or(TransferError::NotConnected)
    }

    /// Takes all VIs from the peer and frees them; whoever waits for its answers hears that it is gone.
    pub async fn part(&self) {
        self.cut_off();
        for class in Class::ALL {
            self.inner.endpoints[class].close(self.state.vis[class]).await;
        }
        self.inner.peers.borrow_mut().retain(|peer| !Rc::ptr_eq(peer, &self.state));
    }

    /// Whether it was cut off or parted from.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.state.gone.get()
    }

    /// Whether this VI is one of its.
    #[must_use]
    pub fn has(&self, vi: ViId) -> bool {
        Class::ALL.iter().any(|class| self.state.vis[*class] == vi)
    }

    /// From here on it says nothing that we hear, and nobody waits for it.
    fn cut_off(&self) {
        self.state.gone.set(true);
        for class in Class::ALL {
            // It may be gone already.
            let _ = self.inner.endpoints[class].provider().revoke(Revocable::Vi(self.state.vis[class]));
        }
        let _ = self.state.answers.fail_all(|| None);
        self.state.asked.borrow_mut().clear();
    }

    /// Deals with a message; `None` if the peer may not say that.
    fn heard(&self, class: Class, message: &Message) -> Option<()> {
        let (kind, ticket, body) = decode(message)?;
        let state = &self.state;
        match kind {
            Kind::Answer => {
                if class != Class::Reply {
                    return None;
                }
                let credit = state.asked.borrow_mut().remove(&ticket)?;
                // Whoever asked may have given up.
                let _ = state.answers.complete(Ticket::from_u64(ticket), Some((body, credit)));
                Some(())
            }
            Kind::Request => {
                let owed = &state.owed[class];
                if owed.get() == self.inner.config.outstanding[class] {
                    return None;
                }
                owed.set(owed.get() + 1);
                let incoming = Incoming { peer: self.clone(), body, class, ticket };
                self.inner.incoming[class].try_push(incoming).ok()
            }
        }
    }
}

/// Where no payload goes.
const NOWHERE: RemoteAddress = RemoteAddress { region: RegionHandle::from_key(0), offset: 0 };

impl<P: Provider> Incoming<P> {
    /// Answers. It waits for nothing that the peer must do but poll: the room for the answer was there before the request was
    /// sent.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Panics
    /// If the body is longer than [`BODY_BYTES_MAX`].
    pub async fn answer(self, body: &[u8]) -> Result<(), TransferError> {
        let message = encode(Kind::Answer, self.ticket, body);
        let Peer { inner, state } = &self.peer;
        let _arrives = inner.endpoints[Class::Reply].send(state.vis[Class::Reply], &message).await?;
        // Before we hear what it asks next.
        let owed = &state.owed[self.class];
        owed.set(owed.get() - 1);
        Ok(())
    }
}

fn encode(kind: Kind, ticket: u64, body: &[u8]) -> Message {
    assert!(body.len() <= BODY_BYTES_MAX, "a body of {} bytes", body.len());
    let kind = match kind {
        Kind::Request => 0,
        Kind::Answer => 1,
    };
    let mut message = Message::new();
    let parts = [&[kind][..], &ticket.to_le_bytes(), body];
    parts.iter().for_each(|part| message.extend_from_slice(part).expect("there was room for all of it"));
    message
}

fn decode(message: &Message) -> Option<(Kind, u64, Body)> {
    let (header, body) = message.split_at_checked(HEADER_BYTES)?;
    let kind = match header[0] {
        0 => Kind::Request,
        1 => Kind::Answer,
        _ => return None,
    };
    Some((kind, u64::from_le_bytes(header[1..].try_into().ok()?), Body::from_slice(body).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::num::u8::ANY;

    use super::*;

    proptest::proptest! {
        #[test]
        fn messages_are_what_was_said_or_refused(
            answer: bool, ticket: u64, body in vec(ANY, 0..BODY_BYTES_MAX + 1), kind: u8, cut in 0_usize..40,
        ) {
            let said = Body::from_slice(&body).unwrap();
            let meant = if answer { Kind::Answer } else { Kind::Request };
            assert_eq!(decode(&encode(meant, ticket, &body)), Some((meant, ticket, said)));
            let mut other = encode(meant, ticket, &body);
            other[0] = kind;
            other.truncate(cut);
            assert_eq!(decode(&other).is_some(), other.len() >= HEADER_BYTES && kind < 2);
        }
    }
}
