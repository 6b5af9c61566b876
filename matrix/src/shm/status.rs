//! Status files: who is asleep, and which regions and VIs are open (PROTOCOLS 3.5). The layout is in [`super::layout`]. The
//! kernel lets nobody but the owner write one ([`Memory::published`]): what it says to one peer no other can change.
//!
//! Each protocol here is two threads that store one word, make a full fence, and load the other's: at least one of them
//! sees what the other stored. loom runs these lines (`loom_model`).

use super::layout::{STATUS_ASLEEP, StatusShape, open_word};
use super::ring::Shared;
use crate::memory::{MapError, Memory};
use crate::provider::{DescriptorError, RegionHandle, ViId};

/// Our own status, as its only writer.
pub(super) struct OwnStatus<M = Memory> {
    pub(super) memory: M,
    pub(super) shape: StatusShape,
    /// What the word says.
    pub(super) asleep: bool,
}

impl OwnStatus {
    pub(super) fn new(shape: StatusShape) -> Result<Self, MapError> {
        let bytes = usize::try_from(shape.bytes()).expect("a status is small");
        Ok(Self { memory: Memory::published("dyad-status", bytes)?, shape, asleep: false })
    }
}

impl<M: Shared> OwnStatus<M> {
    pub(super) fn open_region(&self, region: RegionHandle) {
        self.store(self.shape.region(region), open_word(region.index));
    }

    pub(super) fn open_vi(&self, vi: ViId) {
        self.store(self.shape.vi(vi), open_word(vi.0));
    }

    /// From the return on, no RDMA of a peer to this region succeeds.
    pub(super) fn close_region(&self, region: RegionHandle) {
        self.store(self.shape.region(region), 0);
        self.memory.full_fence();
    }

    /// From the return on, no RDMA of the peer through this VI succeeds.
    pub(super) fn close_vi(&self, vi: ViId) {
        self.store(self.shape.vi(vi), 0);
        self.memory.full_fence();
    }

    pub(super) fn set_asleep(&mut self, asleep: bool) {
        self.asleep = asleep;
        self.memory.put_u32(STATUS_ASLEEP, u32::from(asleep));
        if asleep {
            // What was published before is found by the poll that follows; who publishes later sees the word.
            self.memory.full_fence();
        }
    }

    fn store(&self, at: Option<u64>, word: u64) {
        let at = at.expect("our tables are as large as the file says");
        self.memory.put_u64(at, word);
    }
}

/// Says in a channel whether this end wants to be rung. After `true` it looks once more, as before a sleep.
pub(super) fn say_quiet<M: Shared>(channel: &M, at: u64, quiet: bool) {
    channel.put_u32(at, u32::from(quiet));
    if quiet {
        channel.full_fence();
    }
}

/// A peer's status. It may lie: then it hurts only what is its own.
#[derive(Debug)]
pub(super) struct PeerStatus<M = Memory> {
    memory: M,
    shape: StatusShape,
    vi: ViId,
    /// Where the word of its VI lies.
    vi_at: u64,
}

impl<M: Shared> PeerStatus<M> {
    /// `None` if the VI has no place in it.
    pub(super) fn new(memory: M, shape: StatusShape, vi: ViId) -> Option<Self> {
        Some(Self { memory, shape, vi, vi_at: shape.vi(vi)? })
    }

    /// Whether it is to be woken for what was published before.
    pub(super) fn is_asleep(&self) -> bool {
        self.memory.full_fence();
        self.memory.get_u32(STATUS_ASLEEP) != 0
    }

    pub(super) fn is_vi_open(&self) -> bool {
        self.memory.get_u64(self.vi_at) == open_word(self.vi.0)
    }

    /// Whether a transfer with the region may begin. Whatever was published and fenced before is drained by an owner who
    /// closes it afterwards.
    pub(super) fn may_begin(&self, region: RegionHandle) -> Result<(), DescriptorError> {
        if !self.is_vi_open() {
            return Err(DescriptorError::Flushed);
        }
        let word = self.shape.region(region).map(|at| self.memory.get_u64(at));
        if word != Some(open_word(region.index)) {
            return Err(DescriptorError::RemoteProtection);
        }
        Ok(())
    }

    /// Whether a transfer that is done may be called a success: its bytes were there before the owner closed anything.
    pub(super) fn may_succeed(&self, region: RegionHandle) -> Result<(), DescriptorError> {
        self.memory.full_fence();
        self.may_begin(region)
    }

    /// A full fence, for what was published.
    pub(super) fn fence(&self) {
        self.memory.full_fence();
    }
}
