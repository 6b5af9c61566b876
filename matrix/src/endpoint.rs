//! Messages and RDMA over many VIs, as `async` code wants them: posting waits for room, completions wake the poster,
//! received messages come from one queue and their buffers are posted again at once.
//!
//! Invariants:
//! - every VI has as many receives posted as its depth; who sends more than that waits (credits are the provider's);
//! - who waits for room on one VI holds nothing that another VI needs;
//! - a descriptor in flight is held in `in_flight` until it completes, whether or not anybody awaits it;
//! - nothing is allocated after [`Endpoint::new`].

mod payload;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{Inbox, Pending, Replies, Signal, Ticket};

use crate::crossover::Crossover;
use crate::memory::{Memory, Segment};
use crate::provider::{
    Completion, CqId, Descriptor, DescriptorError, Event, NetAddress, PostError, PrivateData, ProtectionTag, Provider,
    RegionHandle, Reliability, RemoteAccess, RemoteAddress, ResourceError, Revocable, SEGMENTS_MAX, SendOperation,
    ViAttributes, ViId,
};

/// Longest message in bytes.
pub const MESSAGE_BYTES_MAX: usize = 512;

/// One received message, copied out of the buffer that the peer's bytes landed in.
pub type Message = heapless::Vec<u8, MESSAGE_BYTES_MAX>;

/// Sizes of an [`Endpoint`], fixed for its life.
#[derive(Debug, Copy, Clone)]
pub struct EndpointConfig {
    /// Most VIs open at once.
    pub vis_max: u16,
    /// Sends and RDMAs outstanding per VI, and receives posted per VI.
    pub depth: u16,
    /// The memory its VIs reach.
    pub tag: ProtectionTag,
    /// What peers may do through its VIs.
    pub remote_access: RemoteAccess,
}

/// Why a message or RDMA was not done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The connection is not there (any more).
    #[error("the connection is gone")]
    NotConnected,
    /// It was posted and failed.
    #[error(transparent)]
    Failed(#[from] DescriptorError),
    /// The descriptor was malformed: a fault of ours.
    #[error("the descriptor was refused: {0}")]
    Refused(PostError),
}

impl From<PostError> for TransferError {
    fn from(error: PostError) -> Self {
        match error {
            PostError::NotConnected | PostError::NoSuchVi => Self::NotConnected,
            other => Self::Refused(other),
        }
    }
}

struct InFlight {
    vi: ViId,
    send_buffer: Option<u32>,
    ticket: Ticket,
}

struct Inner<P> {
    provider: P,
    config: EndpointConfig,
    send_cq: CqId,
    receive_cq: CqId,
    /// Send buffers, then receive buffers, `MESSAGE_BYTES_MAX` each.
    messages: Memory,
    send_free: RefCell<Vec<u32>>,
    receive_free: RefCell<Vec<u32>>,
    /// Which VI each receive buffer is posted at.
    receive_owner: RefCell<Vec<Option<ViId>>>,
    in_flight: RefCell<Vec<Option<InFlight>>>,
    in_flight_free: RefCell<Vec<u32>>,
    replies: Replies<Result<u32, DescriptorError>>,
    room: Signal,
    open: Cell<u16>,
    /// What peers' payloads may be put into.
    exports: RefCell<Vec<(RegionHandle, Memory)>>,
    crossover: Cell<Crossover>,
}

/// A set of VIs with common queues. Clones are the same endpoint.
pub struct Endpoint<P> {
    inner: Rc<Inner<P>>,
}

impl<P> Clone for Endpoint<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

/// A posted descriptor: resolves when it completes. Until it is awaited or dropped it has a place among as many as all VIs of
/// the endpoint may have in flight: who posts many awaits them soon.
#[must_use = "the memory stays in use until this resolves"]
pub struct Posted {
    pending: Pending<Result<u32, DescriptorError>>,
    room: Signal,
}

impl Drop for Posted {
    fn drop(&mut self) {
        // Its place among the answers is free now or in a moment.
        self.room.notify_all();
    }
}

impl Future for Posted {
    type Output = Result<u32, TransferError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.pending).poll(cx).map_err(TransferError::Failed)
    }
}

impl<P: Provider> Endpoint<P> {
    /// Makes the queues and message buffers. [`Self::run`] must be spawned as a service task.
    ///
    /// # Errors
    /// When the provider has no room.
    pub fn new(provider: P, config: EndpointConfig) -> Result<Self, ResourceError> {
        let buffers = u32::from(config.vis_max) * u32::from(config.depth);
        let count = usize::try_from(buffers).map_err(|_| ResourceError::Exhausted("message buffer"))?;
        let messages = Memory::anonymous(2 * count * MESSAGE_BYTES_MAX);
        provider.register(&messages, config.tag, RemoteAccess::default())?;
        let inner = Inner {
            send_cq: provider.create_cq(buffers)?,
            receive_cq: provider.create_cq(buffers)?,
            provider,
            config,
            messages,
            send_free: RefCell::new((0..buffers).rev().collect()),
            receive_free: RefCell::new((buffers..2 * buffers).rev().collect()),
            receive_owner: RefCell::new(vec![None; 2 * count]),
            in_flight: RefCell::new((0..buffers).map(|_| None).collect()),
            in_flight_free: RefCell::new((0..buffers).rev().collect()),
            replies: Replies::new(count),
            room: Signal::new(),
            open: Cell::new(0),
            exports: RefCell::default(),
            crossover: Cell::new(Crossover::at(0)),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// The provider below.
    pub fn provider(&self) -> &P {
        &self.inner.provider
    }

    /// Makes a VI with its receives posted, to be connected or accepted with.
    ///
    /// # Errors
    /// When all VIs of the endpoint are open.
    pub fn open(&self) -> Result<ViId, ResourceError> {
        let inner = &*self.inner;
        if inner.open.get() == inner.config.vis_max {
            return Err(ResourceError::Exhausted("VI of the endpoint"));
        }
        let vi = inner.provider.create_vi(&ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: inner.config.tag,
            remote_access: inner.config.remote_access,
            send_depth: inner.config.depth,
            receive_depth: inner.config.depth,
            send_cq: inner.send_cq,
            receive_cq: inner.receive_cq,
        })?;
        inner.open.set(inner.open.get() + 1);
        for _ in 0..inner.config.depth {
            inner.post_receive(vi);
        }
        Ok(vi)
    }

    /// Connects a new VI; `events` are the provider's events about VIs that are being connected. `None`: refused, or no answer in time.
    pub async fn connect(
        &self,
        handle: &Handle,
        events: &Inbox<Event>,
        to: &NetAddress,
        private_data: &[u8],
        timeout: Duration,
    ) -> Option<(ViId, PrivateData)> {
        let vi = self.open().ok()?;
        let asked = self.inner.provider.connect(vi, to, private_data, timeout);
        // The provider answers within the time-out; twice that is a provider that does not.
        let deadline = handle.now() + timeout * 2;
        while asked.is_ok() {
            match handle.timeout_at(deadline, events.next()).await {
                Ok(Event::Established { vi: connected, private_data }) if connected == vi => {
                    return Some((vi, private_data));
                }
                Ok(Event::Refused { vi: refused, .. } | Event::Broken { vi: refused, .. }) if refused == vi => break,
                // Of an attempt that was given up.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.close(vi).await;
        None
    }

    /// Takes the VI from the peer, waits until none of its descriptors is in flight, and frees it.
    pub async fn close(&self, vi: ViId) {
        let inner = &*self.inner;
        if inner.provider.revoke(Revocable::Vi(vi)).is_err() {
            return;
        }
        loop {
            let seen = inner.room.generation();
            if !inner.in_flight.borrow().iter().flatten().any(|in_flight| in_flight.vi == vi) {
                break;
            }
            inner.room.changed_since(seen).await;
        }
        if inner.provider.destroy_vi(vi).is_ok() {
            inner.open.set(inner.open.get() - 1);
            inner.take_back_all(vi);
        }
    }

    /// Sends `message`; resolves when it is posted, and what it resolves to when it has arrived.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Panics
    /// If the message is longer than [`MESSAGE_BYTES_MAX`].
    pub async fn send(&self, vi: ViId, message: &[u8]) -> Result<Posted, TransferError> {
        self.when_there_is_room(|| self.post_message(vi, &[], message, None)).await
    }

    /// Sends `message` if there is room now; nobody learns when it arrives.
    ///
    /// # Errors
    /// When there is no room, or the connection is gone: it was not sent.
    ///
    /// # Panics
    /// If the message is longer than [`MESSAGE_BYTES_MAX`].
    pub fn try_send(&self, vi: ViId, message: &[u8]) -> Result<(), TransferError> {
        Ok(self.post_message(vi, &[], message, None).map(drop)?)
    }

    /// Writes `segments` to the peer's memory.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn rdma_write(&self, vi: ViId, segments: &[Segment], to: RemoteAddress) -> Result<Posted, TransferError> {
        self.when_there_is_room(|| self.inner.try_post(vi, SendOperation::RdmaWrite(to), segments)).await
    }

    /// Fills `segments` from the peer's memory.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn rdma_read(
        &self,
        vi: ViId,
        segments: &[Segment],
        from: RemoteAddress,
    ) -> Result<Posted, TransferError> {
        self.when_there_is_room(|| self.inner.try_post(vi, SendOperation::RdmaRead(from), segments)).await
    }

    /// Posts as soon as it can be done. Nothing is held meanwhile, so whoever waits for one VI keeps nobody from another.
    async fn when_there_is_room(&self, post: impl Fn() -> Result<Posted, PostError>) -> Result<Posted, TransferError> {
        loop {
            let seen = self.inner.room.generation();
            match post() {
                Err(PostError::Full) => self.inner.room.changed_since(seen).await,
                posted => return Ok(posted?),
            };
        }
    }

    /// Posts a message: `pieces` of other memory, then `message`.
    fn post_message(
        &self,
        vi: ViId,
        pieces: &[Segment],
        message: &[u8],
        immediate: Option<u32>,
    ) -> Result<Posted, PostError> {
        assert!(message.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", message.len());
        let inner = &*self.inner;
        let Some(buffer) = inner.send_free.borrow_mut().pop() else { return Err(PostError::Full) };
        let own = inner.buffer(buffer, message.len());
        inner.messages.write(own.offset, message).expect("a send buffer lies in its memory");
        let mut segments = heapless::Vec::<Segment, SEGMENTS_MAX>::new();
        let fits = segments.extend_from_slice(pieces).is_ok() && segments.push(own).is_ok();
        let posted = if fits {
            let operation = SendOperation::Send;
            inner.post(vi, &Descriptor { operation, segments: &segments, immediate, cookie: 0 }, Some(buffer))
        } else {
            Err(PostError::TooManySegments)
        };
        if posted.is_err() {
            inner.send_free.borrow_mut().push(buffer);
        }
        posted
    }

    /// The next message of any VI. One task may wait.
    pub async fn receive(&self) -> (ViId, Message) {
        let inner = &*self.inner;
        loop {
            let completion: Completion = poll_fn(|cx| inner.provider.poll_completion(inner.receive_cq, cx)).await;
            let buffer = u32::try_from(completion.cookie).expect("cookies of receives are buffer numbers");
            if !inner.take_back(buffer, completion.vi) {
                continue;
            }
            let Ok(len) = completion.result else { continue };
            let message = self.unpack(buffer, len, completion.immediate);
            inner.post_receive(completion.vi);
            match message {
                Some(message) => return (completion.vi, message),
                // It would have put bytes where it may not: as with an RDMA, that ends the connection.
                None => drop(inner.provider.revoke(Revocable::Vi(completion.vi))),
            }
        }
    }

    /// Service task: hands completions to those who wait for them.
    pub async fn run(self) {
        let inner = &*self.inner;
        loop {
            let completion = poll_fn(|cx| inner.provider.poll_completion(inner.send_cq, cx)).await;
            let place = usize::try_from(completion.cookie).expect("cookies of sends are places in the table");
            let done = inner.in_flight.borrow_mut()[place].take().expect("a descriptor completes once");
            assert_eq!(done.vi, completion.vi, "a completion belongs to the VI that posted it");
            inner.in_flight_free.borrow_mut().push(u32::try_from(place).expect("the table has 32-bit places"));
            if let Some(buffer) = done.send_buffer {
                inner.send_free.borrow_mut().push(buffer);
            }
            // Nobody waits for most sends.
            let _ = inner.replies.complete(done.ticket, completion.result);
            inner.room.notify_all();
        }
    }
}

impl<P: Provider> Inner<P> {
    fn buffer(&self, buffer: u32, len: usize) -> Segment {
        self.messages
            .segment(u64::from(buffer) * MESSAGE_BYTES_MAX as u64, u32::try_from(len).expect("messages are short"))
            .expect("buffers lie in their memory")
    }

    fn post_receive(&self, vi: ViId) {
        let buffer = self.receive_free.borrow_mut().pop().expect("each open VI has its share of receive buffers");
        if self.provider.post_receive(vi, &[self.buffer(buffer, MESSAGE_BYTES_MAX)], u64::from(buffer)).is_ok() {
            self.receive_owner.borrow_mut()[index(buffer)] = Some(vi);
        } else {
            self.receive_free.borrow_mut().push(buffer);
        }
    }

    /// A receive of `vi` completed: its buffer is free again, unless it was taken back when the VI was destroyed.
    fn take_back(&self, buffer: u32, vi: ViId) -> bool {
        let owner = &mut self.receive_owner.borrow_mut()[index(buffer)];
        let owned = *owner == Some(vi);
        if owned {
            *owner = None;
            self.receive_free.borrow_mut().push(buffer);
        }
        owned
    }

    fn take_back_all(&self, vi: ViId) {
        for (buffer, owner) in (0..).zip(self.receive_owner.borrow_mut().iter_mut()) {
            if *owner == Some(vi) {
                *owner = None;
                self.receive_free.borrow_mut().push(buffer);
            }
        }
    }

    fn try_post(&self, vi: ViId, operation: SendOperation, segments: &[Segment]) -> Result<Posted, PostError> {
        self.post(vi, &Descriptor { operation, segments, immediate: None, cookie: 0 }, None)
    }

    /// Posts, and remembers what is in flight under the cookie.
    fn post(&self, vi: ViId, what: &Descriptor<'_>, send_buffer: Option<u32>) -> Result<Posted, PostError> {
        let Some(place) = self.in_flight_free.borrow().last().copied() else { return Err(PostError::Full) };
        let Some(pending) = self.replies.reserve() else { return Err(PostError::Full) };
        self.provider.post_send(vi, &Descriptor { cookie: u64::from(place), ..*what })?;
        self.in_flight_free.borrow_mut().pop();
        self.in_flight.borrow_mut()[index(place)] = Some(InFlight { vi, send_buffer, ticket: pending.ticket() });
        Ok(Posted { pending, room: self.room.clone() })
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).expect("tables have at most 2^32 places")
}
