//! The trait of everything that a database can keep its files on.

use std::future::Future;

use dyad_matrix::frames::{FramePool, Pinned};
use dyad_nvme::Status;
use dyad_nvme::types::{BlockCount, Lba};

/// How an operation on a volume failed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The blocks do not all lie in the volume; nothing was done.
    #[error("beyond the end of the volume")]
    EndOfVolume,
    /// No path answered in time. A write may have been done or not.
    #[error("no path to the volume answered in time")]
    TimedOut,
    /// The volume answered with this status. A write may have been done or not.
    #[error("the volume answered: {0}")]
    Status(Status),
    /// The file or device below failed. A write may have been done or not.
    #[error("the file failed: {0}")]
    File(std::io::ErrorKind),
}

/// A run of 4 KiB blocks that is read and written in frames, scattered in memory as the caller likes (the contract of ReadFileScatter
/// and WriteFileGather: page-sized, page-aligned pieces in any order, one command).
///
/// Implementations promise:
/// - a completed write is seen by every read that starts later, and survives what the volume's policy says; after a completed
///   [`Volume::flush`] everything written before survives loss of power;
/// - an operation beyond the end does nothing and says [`VolumeError::EndOfVolume`]; one of no frames does nothing and succeeds;
/// - blocks are atomic, runs of blocks are not;
/// - a write whose future is dropped may be done later, even after writes that began later: wait for it before writing there again;
/// - **memory**: frames of an operation are held until nobody can touch them any more, even if the operation is dropped or given up. So a
///   read returns the frames that its data is in, which may be others than it was given.
pub trait Volume {
    /// Size.
    fn blocks(&self) -> BlockCount;

    /// Where frames come from.
    fn pool(&self) -> &FramePool;

    /// Fills `frames` from consecutive blocks.
    fn read_scatter(&self, at: Lba, frames: Pinned) -> impl Future<Output = Result<Pinned, VolumeError>>;

    /// Writes `frames` to consecutive blocks.
    fn write_gather(&self, at: Lba, frames: &Pinned) -> impl Future<Output = Result<(), VolumeError>>;

    /// As [`Self::write_gather`]; when it completes, these blocks survive loss of power, whatever becomes of others.
    fn write_durable(&self, at: Lba, frames: &Pinned) -> impl Future<Output = Result<(), VolumeError>> {
        async move {
            self.write_gather(at, frames).await?;
            self.flush().await
        }
    }

    /// Makes completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), VolumeError>>;

    /// Whether `frames` blocks from `at` lie in the volume.
    ///
    /// # Errors
    /// [`VolumeError::EndOfVolume`].
    fn check(&self, at: Lba, frames: usize) -> Result<(), VolumeError> {
        let end = at.0.checked_add(frames as u64).ok_or(VolumeError::EndOfVolume)?;
        if end <= self.blocks().0 { Ok(()) } else { Err(VolumeError::EndOfVolume) }
    }
}
