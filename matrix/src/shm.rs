//! The provider for processes on one host: rings and regions in shared memory.
//!
//! A connection is a file with two rings ([`layout`]) that both ends map, a doorbell for when one of them sleeps, and the
//! other end's exported regions, each mapped from its own memfd: writable where its owner enabled RDMA write for region and
//! VI, read-only where only reading is enabled, not at all otherwise. Page tables know no write-only: who may write may also
//! look. The Kernel Agent ([`agent`]), a thread, makes connections and hands memory over; afterwards the two reactors talk
//! without it and without system calls, unless one of them sleeps.
//!
//! **Trust.** Nothing that a peer writes is believed: ring positions, lengths and flags are read once into our own memory
//! and checked; files must be sealed against shrinking, as long as they are said to be, and not of huge pages (which their
//! owner could take back); what leads to memory of ours is computed here. A peer that lies ends its own connection
//! (`Protocol`) and nothing else. What it can do to itself (claim that it is open, or awake, or that more regions are coming)
//! ends at a bound or costs a system call.
//!
//! **Death.** A peer can be killed at any instruction: an entry whose stamp is missing was never sent, mappings outlive their
//! maker, and sealed files do not shrink. Its socket and its pidfd tell the agent.
//!
//! **Order.** A message is published before what is posted behind it begins. So whoever sees bytes of an RDMA write finds
//! every message posted before it in the ring, even if the writer is dead; breaking and revoking drain the ring first.
//!
//! **Revocation** (PROTOCOLS 3.5). Each provider has a status file that only it can write and its peers map. The writer looks
//! that region and VI are open, copies, makes a full fence, looks again, and reports success only if both are open still.
//! The owner closes the word, makes a full fence, drains the ring, and returns. Therefore:
//! - a write that completes with success was in memory, whole, before `revoke` returned;
//! - a write that began before may still change bytes of the region *after* `revoke` returned, if its writer was stopped in
//!   the middle and goes on: the page is still mapped there. It will not succeed, it is at most the one operation that the
//!   writer was in, and every message posted before it has been delivered here by then;
//! - so the owner treats what the peer was free to write at that moment as quarantined until
//!   [`is_reachable`](crate::Provider::is_reachable) says that the peer has unmapped it or that its process is dead.
//!
//! **Completion points.** Unreliable and Reliable Delivery: the message is in the ring. Reliable Reception: the peer's reactor
//! has put it into the posted receive. RDMA, at all levels: the bytes are in the peer's memory.

mod agent;
mod attention;
mod connection;
mod control;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod layout;
#[cfg(all(test, loom))]
mod loom_model;
mod notice;
mod provider;
mod ring;
mod socket;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use dyad_reactor::Source;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::memory::MapError;
use crate::provider::{Capabilities, ViId};
use agent::AgentHandle;
use layout::{Geometry, StatusShape};
use state::State;
use status::OwnStatus;

/// What this provider can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    name: "shm",
    unreliable_delivery: true,
    reliable_delivery: true,
    reliable_reception: true,
    rdma_read: true,
    transfer_bytes_max: 16 << 20,
};

/// Capacities, fixed for the life of a provider.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ShmLimits {
    /// Regions.
    pub regions: u16,
    /// VIs.
    pub vis: u16,
    /// Completion queues.
    pub completion_queues: u16,
    /// Connections, including those whose peer has not let go of our memory yet.
    pub connections: u16,
    /// Entries of each ring of the connections that we ask for; a power of two.
    pub ring_entries: u32,
    /// Bytes for long messages in each ring of the connections that we ask for; a power of two, at least 4 KiB.
    pub ring_data_bytes: u32,
}

impl Default for ShmLimits {
    fn default() -> Self {
        Self {
            regions: 1024,
            vis: 1024,
            completion_queues: 1024,
            connections: 1024,
            ring_entries: 128,
            ring_data_bytes: 128 << 10,
        }
    }
}

/// Why a provider could not be started.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShmError {
    /// Ring sizes must be powers of two: 2 to 65536 entries, 4 KiB to 64 MiB.
    #[error("ring sizes must be powers of two: 2 to 65536 entries, 4 KiB to 64 MiB of data")]
    Geometry,
    /// Shared memory could not be made.
    #[error("no shared memory: {0}")]
    Memory(#[from] MapError),
    /// The agent could not listen at the path (`EADDRINUSE`: another process does).
    #[error("the agent cannot start: {0}")]
    Agent(#[from] Errno),
}

/// The matrix on one host. It belongs to one reactor, which polls it as a [`Source`]; clones are the same provider.
#[derive(Clone)]
pub struct ShmProvider(Rc<Inner>);

struct Inner {
    state: RefCell<State>,
    /// The doorbells and the agent's alarm.
    epoll: Epoll,
}

/// The agent's alarm in the epoll instance; doorbells are under 1 + their VI.
const AGENT: u64 = 0;

impl ShmProvider {
    /// Starts a provider whose peers reach it at the socket `path` (at most 107 bytes; the file is made, and removed at the
    /// end). `incarnation` tells this run of the process from all others.
    ///
    /// # Errors
    /// [`ShmError`].
    pub fn new(path: &Path, incarnation: u64, limits: ShmLimits) -> Result<Self, ShmError> {
        if !(Geometry { entries: limits.ring_entries, data: limits.ring_data_bytes }).is_sane() {
            return Err(ShmError::Geometry);
        }
        let shape = StatusShape { regions: limits.regions, vis: limits.vis };
        let status = OwnStatus::new(shape)?;
        let agent = AgentHandle::start(path.to_owned(), &status.memory, shape, &limits)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*agent.notice_alarm, EpollEvent::new(EpollFlags::EPOLLIN, AGENT))?;
        let state = RefCell::new(State::new(status, agent, incarnation, &limits));
        Ok(Self(Rc::new(Inner { state, epoll })))
    }

    /// Payload bytes that it copied into rings and into peers' regions. What it copied into our own memory counts there
    /// ([`Memory::copied_bytes`](crate::Memory::copied_bytes)).
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.0.state.borrow().copied_bytes()
    }
}

impl Source for ShmProvider {
    fn poll(&mut self) -> usize {
        self.0.state.borrow_mut().poll(&self.0.epoll)
    }

    fn arm(&mut self) {
        self.0.state.borrow_mut().status.set_asleep(true);
    }

    fn disarm(&mut self) {
        let state = &mut *self.0.state.borrow_mut();
        state.status.set_asleep(false);
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let ready = self.0.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            for event in &events[..ready] {
                if event.data() == AGENT {
                    let _ = state.agent.notice_alarm.read();
                } else if let Some(vi) = doorbell_of(event.data()) {
                    state.rung(vi, &self.0.epoll);
                }
            }
            if ready < events.len() {
                return;
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.epoll.0.as_fd())
    }
}

fn doorbell_of(data: u64) -> Option<ViId> {
    u32::try_from(data.checked_sub(1)?).ok().map(ViId)
}

/// How the doorbell of a VI is found again.
fn doorbell_data(vi: ViId) -> u64 {
    1 + u64::from(vi.0)
}

impl fmt::Debug for ShmProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmProvider").finish_non_exhaustive()
    }
}
