//! A volume in one piece of memory: as fast as copying.

use std::rc::Rc;

use dyad_host::{Volume, VolumeError};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_matrix::memory::copy;
use dyad_nvme::types::{BlockCount, Lba};

/// Clones are the same volume, with the same frames.
#[derive(Clone)]
pub(super) struct MemoryVolume {
    pool: FramePool,
    medium: Rc<Memory>,
}

impl MemoryVolume {
    pub(super) fn new(bytes: usize, frames: usize) -> Self {
        let pool = FramePool::new(Memory::anonymous(frames * FRAME_BYTES));
        Self { pool, medium: Rc::new(Memory::anonymous(bytes)) }
    }

    /// The same volume, with frames of its own.
    pub(super) fn again(&self, frames: usize) -> Self {
        let pool = FramePool::new(Memory::anonymous(frames * FRAME_BYTES));
        Self { pool, medium: Rc::clone(&self.medium) }
    }
}

impl Volume for MemoryVolume {
    fn blocks(&self) -> BlockCount {
        BlockCount(self.medium.len() / FRAME_BYTES as u64)
    }

    fn pool(&self) -> &FramePool {
        &self.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        for (block, frame) in (at.0..).zip(frames.frames()) {
            let len = FRAME_BYTES as u64;
            copy(&self.medium, block * len, self.pool.memory(), frame.offset(), len).expect("checked");
        }
        Ok(frames)
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        for (block, frame) in (at.0..).zip(frames.frames()) {
            let len = FRAME_BYTES as u64;
            copy(self.pool.memory(), frame.offset(), &self.medium, block * len, len).expect("checked");
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}
