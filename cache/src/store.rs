//! What lies under the cache: the blocks of a RAID group, whatever its level and however it is reached.

use dyad_backend::Device;
use dyad_backend::raid::{Group, GroupError, Raid1};
use dyad_matrix::Segment;
use dyad_nvme::types::Lba;

/// Blocks on media. Clones are the same store.
///
/// A command is done when nothing of it is outstanding at any device: its memory is the caller's again. A write that failed may be there in part, block
/// by block; the cache writes it again. Memory that is named must have been mapped at the store's devices.
pub trait Store: Clone + 'static {
    /// What it lies on.
    type Device: Device;

    /// Blocks into memory.
    fn read(&self, lba: Lba, segments: &[Segment]) -> impl Future<Output = Result<(), GroupError>>;

    /// Memory onto blocks; with `fua`, which the cache always asks for, they survive total loss of power when this is done.
    fn write(&self, lba: Lba, segments: &[Segment], fua: bool) -> impl Future<Output = Result<(), GroupError>>;
}

impl<D: Device> Store for Raid1<D> {
    type Device = D;

    async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        Self::read(self, lba, segments).await
    }

    async fn write(&self, lba: Lba, segments: &[Segment], fua: bool) -> Result<(), GroupError> {
        Self::write(self, lba, segments, fua).await
    }
}

impl<D: Device> Store for Group<D> {
    type Device = D;

    async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        Self::read(self, lba, segments).await
    }

    /// It always goes through to media.
    async fn write(&self, lba: Lba, segments: &[Segment], _fua: bool) -> Result<(), GroupError> {
        Self::write(self, lba, segments).await
    }
}
