//! A volume in a plain file or on a block device, through the kernel.
//!
//! Operations are done when they are called, on the calling thread: for tools and tests that have no array.

use std::fs::File;
use std::os::unix::fs::FileExt;

use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};

use crate::volume::{Volume, VolumeError};

/// The file and its size when it was opened.
pub struct FileVolume {
    pool: FramePool,
    blocks: BlockCount,
    file: File,
}

impl FileVolume {
    /// The volume that `file`, opened for reading and writing, holds; a last incomplete block is not part of it.
    ///
    /// # Errors
    /// When the file's size cannot be read.
    pub fn new(pool: FramePool, file: File) -> Result<Self, VolumeError> {
        let bytes = file.metadata().map_err(|error| VolumeError::File(error.kind()))?.len();
        Ok(Self { pool, blocks: BlockCount(bytes / FRAME_BYTES as u64), file })
    }
}

impl Volume for FileVolume {
    fn blocks(&self) -> BlockCount {
        self.blocks
    }

    fn pool(&self) -> &FramePool {
        &self.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        let mut bytes = [0; FRAME_BYTES];
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            self.file
                .read_exact_at(&mut bytes, block * FRAME_BYTES as u64)
                .map_err(|error| VolumeError::File(error.kind()))?;
            frames.write(index, &bytes);
        }
        Ok(frames)
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        let mut bytes = [0; FRAME_BYTES];
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            frames.read(index, &mut bytes);
            self.file
                .write_all_at(&bytes, block * FRAME_BYTES as u64)
                .map_err(|error| VolumeError::File(error.kind()))?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        self.file.sync_data().map_err(|error| VolumeError::File(error.kind()))
    }
}
