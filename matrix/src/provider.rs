//! The trait of every transport, and the nouns of the VI Architecture that appear in it.
//!
//! Section numbers refer to the VI Architecture Specification 1.0. Where it leaves a choice, the choice is what
//! ibverbs can do as well (`VERBS.md`), so that no provider is shaped by shared memory.

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::memory::{Memory, Segment};

/// The most data segments one descriptor may name.
pub const SEGMENTS_MAX: usize = 64;

/// The most private data bytes a connection request, accept or reject carries (RDMA CM: 56 for a request).
pub const PRIVATE_DATA_MAX: usize = 56;

/// A registered region, as its owner and its owner's peers name it. Unique per owner: a handle of an earlier
/// incarnation, or of a region that was deregistered, names nothing any more.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionHandle {
    /// Which run of the owning process registered it (low 32 bits).
    pub incarnation: u32,
    /// Place in the owner's table (low 16 bits) and how often that place was used before (high 16 bits).
    pub index: u32,
}

impl RegionHandle {
    /// The handle as the 64-bit key that goes over a wire.
    #[must_use]
    pub const fn to_key(self) -> u64 {
        (self.incarnation as u64) << 32 | self.index as u64
    }

    /// The handle that `key` stands for; whether it names anything is decided where it is used.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // splitting a u64 into its halves
    pub const fn from_key(key: u64) -> Self {
        Self { incarnation: (key >> 32) as u32, index: key as u32 }
    }
}

/// A place in a region of the peer.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct RemoteAddress {
    /// The peer's region.
    pub region: RegionHandle,
    /// Bytes from the start of the region.
    pub offset: u64,
}

/// Ties memory to VIs (3.2.4 "memory protection"): a VI reaches only regions of its own tag.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct ProtectionTag(pub u32);

/// What the peer of a VI with the region's tag may do to it. Local access needs no bit.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct RemoteAccess {
    /// The peer may RDMA-write into the region.
    pub write: bool,
    /// The peer may RDMA-read the region.
    pub read: bool,
}

/// A virtual interface of this process.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViId(pub u32);

/// A completion queue of this process.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CqId(pub u32);

/// When a send completes and what a loss does (2.5 "reliability levels").
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Reliability {
    /// Completes when the transfer starts; may be lost, never corrupted or duplicated.
    UnreliableDelivery,
    /// Completes when the data has left; delivered once, in order, or the connection breaks.
    ReliableDelivery,
    /// Completes when the data is in the peer's memory; in order, or the connection breaks.
    ReliableReception,
}

/// What a VI is made with.
#[derive(Debug, Copy, Clone)]
pub struct ViAttributes {
    /// The level, the same at both ends.
    pub reliability: Reliability,
    /// The memory it reaches.
    pub tag: ProtectionTag,
    /// What the peer may do through this VI; a region's own bits are needed too.
    pub remote_access: RemoteAccess,
    /// Most sends (and RDMAs) outstanding.
    pub send_depth: u16,
    /// Most receives posted.
    pub receive_depth: u16,
    /// Where completed sends and RDMAs are reported.
    pub send_cq: CqId,
    /// Where completed receives are reported; may be the same queue.
    pub receive_cq: CqId,
}

/// What a descriptor of the send queue does.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SendOperation {
    /// Fills the peer's next posted receive.
    Send,
    /// Writes the segments, in order, to the peer's memory.
    RdmaWrite(RemoteAddress),
    /// Fills the segments, in order, from the peer's memory. Needs `Capabilities::rdma_read`.
    RdmaRead(RemoteAddress),
}

/// A descriptor of the send queue (Appendix A "descriptor format"). The memory it names must stay untouched until it completes.
#[derive(Debug, Copy, Clone)]
pub struct Descriptor<'a> {
    /// What to do.
    pub operation: SendOperation,
    /// Local data, at most [`SEGMENTS_MAX`] pieces, all registered with the VI's tag.
    pub segments: &'a [Segment],
    /// Handed to the peer's receive completion; an RDMA write with immediate data consumes a posted receive.
    pub immediate: Option<u32>,
    /// Comes back in the completion.
    pub cookie: u64,
}

/// Which queue of a VI a completion is of.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum WorkQueue {
    /// Sends and RDMAs.
    Send,
    /// Receives.
    Receive,
}

/// A finished descriptor.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Whose.
    pub vi: ViId,
    /// Of which queue.
    pub queue: WorkQueue,
    /// The descriptor's cookie.
    pub cookie: u64,
    /// Bytes moved, or why none count.
    pub result: Result<u32, DescriptorError>,
    /// Immediate data of the peer (receives only).
    pub immediate: Option<u32>,
}

/// Why a posted descriptor failed. Everything but `Flushed` breaks a reliable connection.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// A local segment lies outside its region, or its region has another tag or is gone.
    #[error("a local segment is not memory of this VI")]
    LocalProtection,
    /// The remote address lies outside its region, has another tag, lacks the enable bit, or is of an old incarnation.
    #[error("the peer's memory may not be reached there")]
    RemoteProtection,
    /// The message is longer than the receive that it met.
    #[error("the message is longer than the posted receive")]
    Length,
    /// The connection ended before the descriptor was done; a write may or may not have landed.
    #[error("the connection ended before the transfer did")]
    Flushed,
    /// A reliable transfer could not be made.
    #[error("the transport failed")]
    Transport,
}

/// Why a descriptor was not taken. Nothing was moved and nothing will complete.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// All descriptors of the queue, or the peer's credits, are in use: wait for a completion.
    #[error("the work queue is full")]
    Full,
    /// The VI is not connected (receives may be posted before).
    #[error("the VI is not connected")]
    NotConnected,
    /// More than [`SEGMENTS_MAX`] segments.
    #[error("more segments than a descriptor holds")]
    TooManySegments,
    /// An RDMA of no bytes.
    #[error("an RDMA of no bytes")]
    Empty,
    /// The provider does not do this operation.
    #[error("the provider does not have this operation")]
    Unsupported,
    /// No such VI.
    #[error("no such VI")]
    NoSuchVi,
}

/// Why a region, VI or completion queue could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// A table of fixed size is full.
    #[error("no room for another {0}")]
    Exhausted(&'static str),
    /// The object is gone or was never there.
    #[error("no such {0}")]
    Unknown(&'static str),
    /// The range does not lie in the memory.
    #[error("the range lies outside the memory")]
    OutOfRange,
    /// The object cannot do this in its state.
    #[error("not in this state: {0}")]
    State(&'static str),
}

/// Where a service listens: the host part is the provider's to read (a socket path, an address, a node of the simulator).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetAddress {
    /// The endpoint, in the provider's own form.
    pub host: String,
    /// Which service there (3.4 "discriminator").
    pub discriminator: Discriminator,
}

/// Tells the services of one endpoint apart.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Discriminator(pub u32);

/// A connection request that waits for `accept` or `reject`.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(pub u32);

/// Up to [`PRIVATE_DATA_MAX`] bytes that ride on a connection message.
pub type PrivateData = heapless::Vec<u8, PRIVATE_DATA_MAX>;

/// What happened to connections. Every `connect` ends in exactly one `Established`, `Refused` or `Broken`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks to connect to a discriminator that we listen on.
    Requested {
        /// To be accepted or rejected, once.
        request: RequestId,
        /// The service asked for.
        discriminator: Discriminator,
        /// What the client said.
        private_data: PrivateData,
    },
    /// A VI is connected; descriptors may be posted.
    Established {
        /// Ours.
        vi: ViId,
        /// What the server said when it accepted (empty at the server's own end).
        private_data: PrivateData,
    },
    /// The server rejected, nobody listens there, or the time is over.
    Refused {
        /// Ours; it can be connected again.
        vi: ViId,
        /// Which of them.
        why: RefusedReason,
        /// What the server said.
        private_data: PrivateData,
    },
    /// A connection ended. All its descriptors complete with `Flushed`.
    Broken {
        /// Ours; to be destroyed.
        vi: ViId,
        /// How.
        why: BrokenReason,
    },
}

/// Why a connection was not made.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RefusedReason {
    /// The server said no.
    Rejected,
    /// Nobody listens at the address.
    NoListener,
    /// No answer in time.
    TimedOut,
    /// The two ends do not fit: version, reliability level.
    Mismatch,
}

/// Why a connection ended.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BrokenReason {
    /// The peer disconnected.
    Disconnected,
    /// The peer's process is gone.
    PeerGone,
    /// The peer, or the way to it, did something that the level does not allow (a lost message, garbage, a protection error).
    Protocol,
    /// We revoked it.
    Revoked,
}

/// What a provider can do: data, not types, so that profiles (`clan`, `servernet2`) are values.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The name for humans and logs.
    pub name: &'static str,
    /// The levels offered.
    pub unreliable_delivery: bool,
    /// See [`Reliability::ReliableDelivery`].
    pub reliable_delivery: bool,
    /// See [`Reliability::ReliableReception`].
    pub reliable_reception: bool,
    /// RDMA read is there (natively, or made from the peer's RDMA write).
    pub rdma_read: bool,
    /// Largest message or RDMA in bytes.
    pub transfer_bytes_max: u32,
}

/// What [`Provider::revoke`] takes away from the peer.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Revocable {
    /// Everything that the peer reaches through this VI.
    Vi(ViId),
    /// This region, through whatever VI.
    Region(RegionHandle),
}

/// A transport: the User Agent's fast path (`post_*`, `poll_*`) and the Kernel Agent's slow path (the rest).
///
/// A provider is a cheap handle; clones are the same provider. It belongs to one reactor.
///
/// Implementations promise:
/// - **Order**: what is posted to one VI takes effect at the peer in order. A `Send` posted after an `RdmaWrite` is received only when the written
///   bytes are in the peer's memory.
/// - **Completion points** as [`Reliability`] says; each accepted descriptor completes exactly once, `Flushed` if the connection ends first.
/// - **Protection**: a descriptor that names memory outside its region or tag completes in error and moves no byte, at either end.
/// - **Bounds**: queues have the depths they were made with; what is full says [`PostError::Full`]. A `Send` without a posted receive waits for one
///   (credits); it is never dropped at a reliable level.
/// - **Revocation**: after [`Provider::revoke`] returns, no write of the peer into that memory completes with success at
///   the peer (PROTOCOLS 3.5): one that did was in memory, whole, before. A provider that cannot take pages away from a
///   stopped peer may let bytes of a write that had begun land late, without success, until [`Provider::is_reachable`] says no.
/// - **Crash**: a peer that dies or stops at any instruction leads to `Broken`, never to a fault, a hang or a wrong byte here.
pub trait Provider: Clone + 'static {
    /// What this provider can do.
    fn capabilities(&self) -> Capabilities;

    /// Lets VIs of `tag` use `memory` (all of it), and their peers as `access` says. The handle is what peers name it by.
    ///
    /// # Errors
    /// When the table of regions is full, or the memory cannot be shared in the way `access` asks for.
    fn register(
        &self,
        memory: &Memory,
        tag: ProtectionTag,
        access: RemoteAccess,
    ) -> Result<RegionHandle, ResourceError>;

    /// Takes a region back. Peers' descriptors that name it fail from now on.
    ///
    /// # Errors
    /// When the handle names nothing.
    fn deregister(&self, region: RegionHandle) -> Result<(), ResourceError>;

    /// Makes a completion queue with room for `depth` completions. The VIs bound to it must not have more descriptors outstanding than that together.
    ///
    /// # Errors
    /// When the table is full.
    fn create_cq(&self, depth: u32) -> Result<CqId, ResourceError>;

    /// Makes an idle VI. Receives may be posted at once.
    ///
    /// # Errors
    /// When the table is full, a completion queue is unknown, or the level is not offered.
    fn create_vi(&self, attributes: &ViAttributes) -> Result<ViId, ResourceError>;

    /// Disconnects if need be and frees the VI. Its descriptors that were not done are forgotten.
    ///
    /// # Errors
    /// When there is no such VI.
    fn destroy_vi(&self, vi: ViId) -> Result<(), ResourceError>;

    /// From now on requests for `discriminator` arrive as [`Event::Requested`].
    ///
    /// # Errors
    /// When somebody listens on it already.
    fn listen(&self, discriminator: Discriminator) -> Result<(), ResourceError>;

    /// Asks the service at `to` for a connection; the answer is an [`Event`] within `timeout`.
    ///
    /// # Errors
    /// When the VI is not idle.
    fn connect(&self, vi: ViId, to: &NetAddress, private_data: &[u8], timeout: Duration) -> Result<(), ResourceError>;

    /// Takes a request; `vi` must be idle. The server's own `Established` follows.
    ///
    /// # Errors
    /// When the request is gone (the client gave up) or the VI is not idle.
    fn accept(&self, request: RequestId, vi: ViId, private_data: &[u8]) -> Result<(), ResourceError>;

    /// Refuses a request.
    ///
    /// # Errors
    /// When the request is gone.
    fn reject(&self, request: RequestId, private_data: &[u8]) -> Result<(), ResourceError>;

    /// Ends a connection. The peer sees [`BrokenReason::Disconnected`].
    ///
    /// # Errors
    /// When there is no such VI.
    fn disconnect(&self, vi: ViId) -> Result<(), ResourceError>;

    /// Posts to the send queue.
    ///
    /// # Errors
    /// [`PostError`]: nothing was taken.
    fn post_send(&self, vi: ViId, descriptor: &Descriptor<'_>) -> Result<(), PostError>;

    /// Posts a buffer for one message of the peer.
    ///
    /// # Errors
    /// [`PostError`]: nothing was taken.
    fn post_receive(&self, vi: ViId, segments: &[Segment], cookie: u64) -> Result<(), PostError>;

    /// Takes the next completion of `cq`, or remembers the (one) waiter.
    fn poll_completion(&self, cq: CqId, cx: &mut Context<'_>) -> Poll<Completion>;

    /// Takes the next connection event, or remembers the (one) waiter.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event>;

    /// Takes memory or a VI away from the peer, at once. A revoked VI reports [`Event::Broken`]; a revoked region is deregistered.
    ///
    /// # Errors
    /// When it names nothing.
    fn revoke(&self, what: Revocable) -> Result<(), ResourceError>;

    /// Whether a peer could still change `memory`: through a connection that is there, or because it was stopped in the
    /// middle of a write that was revoked and its process is not known dead (PROTOCOLS 3.5, 10.2). Memory that was revoked is
    /// to be left alone until this is false.
    fn is_reachable(&self, memory: &Memory) -> bool;
}

impl fmt::Display for NetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.host, self.discriminator.0)
    }
}
