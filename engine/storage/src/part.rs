//! A part of a volume, as a volume: so that one namespace can hold the files and the log of a small database.

use dyad_host::{Volume, VolumeError};
use dyad_matrix::frames::{FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};

/// Blocks `first` to `first + blocks` of a volume. Clones of the volume are the same volume, so several parts can be of one.
#[derive(Clone)]
pub struct Part<V> {
    volume: V,
    first: u64,
    blocks: BlockCount,
}

impl<V: Volume> Part<V> {
    /// The part; it ends where the volume ends, if it would go beyond.
    #[must_use]
    pub fn new(volume: V, first: u64, blocks: u64) -> Self {
        let blocks = BlockCount(blocks.min(volume.blocks().0.saturating_sub(first)));
        Self { volume, first, blocks }
    }

    fn place(&self, at: Lba, frames: usize) -> Result<Lba, VolumeError> {
        self.check(at, frames)?;
        Ok(Lba(self.first + at.0))
    }
}

impl<V: Volume> Volume for Part<V> {
    fn blocks(&self) -> BlockCount {
        self.blocks
    }

    fn pool(&self) -> &FramePool {
        self.volume.pool()
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.volume.read_scatter(self.place(at, frames.len())?, frames).await
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.volume.write_gather(self.place(at, frames.len())?, frames).await
    }

    async fn write_durable(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.volume.write_durable(self.place(at, frames.len())?, frames).await
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        self.volume.flush().await
    }
}
