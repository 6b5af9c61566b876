//! The provider for processes on any hosts: each VI is a TCP connection of its own.
//!
//! The wire is written down in [`frame`]: packets of 128 bytes until both ends have agreed, then frames. A provider listens on
//! one TCP port for all its services ([`NetAddress::host`](crate::provider::NetAddress::host) is an IP address with a port,
//! names are not looked up). There is no agent and no thread: everything is driven by the reactor's turns and by its epoll
//! instance, and nothing ever waits.
//!
//! **RDMA** is emulated. A write travels as frames that say where they go; the receiving reactor checks region, tag and bits for
//! each frame and has the kernel copy the bytes from the socket straight to their place. A read is a request that the other
//! reactor answers with frames. What is buffered is bounded: the frames of one call towards the kernel, a window of 8 KiB for
//! heads and short messages, and, once a peer has read from us, one answer of 64 KiB: an answer is copied before it is
//! summed and sent, because the owner of the memory may be changing it.
//!
//! **Credits.** A message is sent only when the other end has a receive posted for it, so whatever arrives can be taken at once:
//! nobody stops reading, and no acknowledgement is ever stuck behind a message.
//!
//! **Order.** Whatever is posted behind an RDMA read is sent when the read's answer is here, except further reads: the peer may
//! reuse what was read as soon as it hears of a later message.
//!
//! **Completion points.** Only Reliable Reception is offered: a send or write completes when the peer's reactor has said that it is
//! in its memory and its CRC is right; a read when its bytes are here.
//!
//! **Revocation** (PROTOCOLS 3.5). Only this process writes into its memory. [`revoke`](crate::Provider::revoke) takes the region
//! out of the table, or closes the connection, and each landing asks the table: when it returns, not one byte more lands, and
//! [`is_reachable`](crate::Provider::is_reachable) says so. An acknowledgement is only sent for what has landed whole.
//!
//! **Trust.** Whatever a peer sends is checked before it means anything; a peer that sends what it may not ends its own connection
//! and nothing else, and is counted ([`TcpCounters`]). Beyond this host peers show that they have the array's [`Key`], and all
//! bytes are encrypted; a provider without a key speaks to this host only, unless its operator says that the
//! [network is trusted](Security::TrustedNetwork).
//!
//! **Silence.** A machine that is gone, or a cut link, breaks a connection after [`TcpLimits::silence`] at the latest; so does a
//! process that takes nothing for so long while something is on its way to it. An end that closes without a word breaks it
//! at once. Whether the other process is dead cannot be known from here: the reason is
//! [`Protocol`](crate::provider::BrokenReason::Protocol), never `PeerGone`. Nothing reconnects by itself: who needs a connection
//! makes a new one.
//!
//! **Cost.** A turn makes one `epoll_wait`; a connection on which something happens, one `sendmsg` for all frames of a turn, and a
//! `readv` or two. After warm-up nothing is allocated. With a key every byte is copied once more at each end, and TLS allocates.

mod connection;
mod flow;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod incoming;
mod key;
mod provider;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::cell::RefCell;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use dyad_reactor::Source;
use nix::errno::Errno;

use crate::provider::Capabilities;
pub use key::{Key, KeyError, SECRET_BYTES_MIN};
use state::State;

/// What this provider can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    name: "tcp",
    unreliable_delivery: false,
    reliable_delivery: false,
    reliable_reception: true,
    rdma_read: true,
    transfer_bytes_max: 16 << 20,
};

/// Capacities, fixed for the life of a provider.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct TcpLimits {
    /// Regions.
    pub regions: u16,
    /// VIs.
    pub vis: u16,
    /// Completion queues.
    pub completion_queues: u16,
    /// Connections, including those that are being made and those that are being ended.
    pub connections: u16,
    /// How long the other end may be silent while something is expected of it: 2 s to 1 h.
    pub silence: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self { regions: 1024, vis: 1024, completion_queues: 1024, connections: 1024, silence: Duration::from_secs(5) }
    }
}

/// With whom a provider speaks.
#[derive(Debug, Clone)]
pub enum Security {
    /// With processes of this host, over its loopback interface; nothing is encrypted there.
    Loopback,
    /// With whoever has the key; all is encrypted (TLS 1.3).
    Key(Key),
    /// With anybody, and nothing is encrypted: the operator says that nobody else reaches this network.
    TrustedNetwork,
}

/// What happened that should not have, and what was asked of the kernel, since the provider was made.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct TcpCounters {
    /// Connections whose other end speaks another version.
    pub other_versions: u64,
    /// Connections that began with something else than a request, or whose request was answered with nonsense.
    pub strangers: u64,
    /// Connections whose other end does not have our key, does not speak TLS, or has it and found that we do not.
    pub wrong_keys: u64,
    /// Established connections that ended because the peer sent what it may not, or bytes with a wrong CRC.
    pub garbage: u64,
    /// Calls of `epoll_wait`.
    pub waits: u64,
    /// Calls of `sendmsg`.
    pub sends: u64,
    /// Calls of `readv`.
    pub receives: u64,
    /// Payload bytes that were copied where the kernel could not place them: short messages, and answers to reads.
    pub copied_bytes: u64,
}

/// Why a provider could not be started.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TcpError {
    /// Beyond this host connections need a key.
    #[error(
        "{0} is not a loopback address, and without a key anybody there could connect: give a key, or say that the network is trusted"
    )]
    NeedsKey(SocketAddr),
    /// The bound for silence must be 2 s to 1 h.
    #[error("a silent peer can be trusted for 2 s to 1 h")]
    Silence,
    /// The kernel refused: the address is in use, or not of this host.
    #[error("cannot listen at {0}: {1}")]
    Listen(SocketAddr, Errno),
    /// The kernel refused an epoll instance or a timer.
    #[error("cannot make an epoll instance and a timer: {0}")]
    Epoll(Errno),
}

/// The matrix over TCP. It belongs to one reactor, which polls it as a [`Source`]; clones are the same provider.
#[derive(Clone)]
pub struct TcpProvider(Rc<Inner>);

struct Inner {
    state: RefCell<State>,
    /// A second handle to the epoll instance of `state`, so that its fd can be lent.
    bed: Rc<state::Bed>,
    local: SocketAddr,
}

impl TcpProvider {
    /// Starts a provider whose peers reach it at `listen`; with port 0 the kernel chooses one. `incarnation` tells this run of
    /// the process from all others.
    ///
    /// # Errors
    /// [`TcpError`].
    pub fn new(listen: SocketAddr, incarnation: u64, security: &Security, limits: TcpLimits) -> Result<Self, TcpError> {
        if matches!(security, Security::Loopback) && !listen.ip().is_loopback() {
            return Err(TcpError::NeedsKey(listen));
        }
        if !(Duration::from_secs(2)..=Duration::from_secs(3600)).contains(&limits.silence) {
            return Err(TcpError::Silence);
        }
        let refused = |error: std::io::Error| TcpError::Listen(listen, errno(&error));
        let listener = TcpListener::bind(listen).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let local = listener.local_addr().map_err(refused)?;
        let bed = Rc::new(state::Bed::new(listener).map_err(TcpError::Epoll)?);
        let state = RefCell::new(State::new(Rc::clone(&bed), incarnation, security.clone(), &limits));
        Ok(Self(Rc::new(Inner { state, bed, local })))
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.0.local
    }

    /// What it counted.
    #[must_use]
    pub fn counters(&self) -> TcpCounters {
        self.0.state.borrow().counters
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

impl Source for TcpProvider {
    fn poll(&mut self) -> usize {
        self.0.state.borrow_mut().poll()
    }

    fn arm(&mut self) {
        self.0.state.borrow_mut().arm();
    }

    fn disarm(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.bed.epoll.0.as_fd())
    }
}

impl fmt::Debug for TcpProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpProvider").field("local", &self.0.local).finish_non_exhaustive()
    }
}
