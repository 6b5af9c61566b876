//! Status files: who is asleep, and which regions and VIs are open (PROTOCOLS 3.5). The layout is in [`super::layout`].

use std::sync::atomic::{Ordering, fence};

use super::layout::{STATUS_ASLEEP, StatusShape, open_word};
use crate::memory::{HugePages, MapError, Memory};
use crate::provider::{RegionHandle, ViId};

/// Our own status, as its only writer.
pub(super) struct OwnStatus {
    pub(super) memory: Memory,
    pub(super) shape: StatusShape,
}

impl OwnStatus {
    pub(super) fn new(shape: StatusShape) -> Result<Self, MapError> {
        let bytes = usize::try_from(shape.bytes()).expect("a status is small");
        Ok(Self { memory: Memory::shared("dyad-status", bytes, HugePages::No)?, shape })
    }

    pub(super) fn open_region(&self, region: RegionHandle) {
        self.store(self.shape.region(region), open_word(region.index));
    }

    pub(super) fn open_vi(&self, vi: ViId) {
        self.store(self.shape.vi(vi), open_word(vi.0));
    }

    /// From the return on, no RDMA of a peer to this region succeeds.
    pub(super) fn close_region(&self, region: RegionHandle) {
        self.store(self.shape.region(region), 0);
        fence(Ordering::SeqCst);
    }

    /// From the return on, no RDMA of the peer through this VI succeeds.
    pub(super) fn close_vi(&self, vi: ViId) {
        self.store(self.shape.vi(vi), 0);
        fence(Ordering::SeqCst);
    }

    pub(super) fn set_asleep(&self, asleep: bool) {
        self.memory.store_u32(STATUS_ASLEEP, u32::from(asleep)).expect("the file is that long");
        if asleep {
            // What was published before is found by the poll that follows; who publishes later sees the word.
            fence(Ordering::SeqCst);
        }
    }

    fn store(&self, at: Option<u64>, word: u64) {
        let at = at.expect("our tables are as large as the file says");
        self.memory.store_u64(at, word).expect("the file is that long");
    }
}

/// A peer's status. It may lie: then it hurts only what is its own.
#[derive(Debug)]
pub(super) struct PeerStatus {
    memory: Memory,
    shape: StatusShape,
    vi: ViId,
    /// Where the word of its VI lies.
    vi_at: u64,
}

impl PeerStatus {
    /// `None` if the VI has no place in it.
    pub(super) fn new(memory: Memory, shape: StatusShape, vi: ViId) -> Option<Self> {
        Some(Self { memory, shape, vi, vi_at: shape.vi(vi)? })
    }

    /// Whether it sleeps; to be asked after a full fence.
    pub(super) fn is_asleep(&self) -> bool {
        self.memory.load_u32(STATUS_ASLEEP).expect("the file is that long") != 0
    }

    pub(super) fn is_vi_open(&self) -> bool {
        self.memory.load_u64(self.vi_at).expect("the file is that long") == open_word(self.vi.0)
    }

    pub(super) fn is_region_open(&self, region: RegionHandle) -> bool {
        let word = self.shape.region(region).map(|at| self.memory.load_u64(at).expect("the file is that long"));
        word == Some(open_word(region.index))
    }
}
