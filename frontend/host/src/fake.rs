//! A volume in memory, for tests of whatever stands on volumes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};

use crate::volume::{Volume, VolumeError};

/// Remembers what was written. Clones are the same volume.
#[derive(Clone)]
pub struct FakeVolume {
    pool: FramePool,
    blocks: BlockCount,
    written: Rc<RefCell<BTreeMap<u64, Box<[u8; FRAME_BYTES]>>>>,
}

impl FakeVolume {
    /// A volume of zeros.
    #[must_use]
    pub fn new(pool: FramePool, blocks: BlockCount) -> Self {
        Self { pool, blocks, written: Rc::default() }
    }
}

impl Volume for FakeVolume {
    fn blocks(&self) -> BlockCount {
        self.blocks
    }

    fn pool(&self) -> &FramePool {
        &self.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        let written = self.written.borrow();
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            frames.write(index, written.get(&block).map_or(&[0; FRAME_BYTES], |bytes| &**bytes));
        }
        Ok(frames)
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            let mut bytes = Box::new([0; FRAME_BYTES]);
            frames.read(index, &mut *bytes);
            self.written.borrow_mut().insert(block, bytes);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}
