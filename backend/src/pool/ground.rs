//! What the pool stands on: a group's data, and the share region of its system area.

use std::future::Future;

use dyad_matrix::Segment;
use dyad_nvme::types::{BlockCount, Lba};

use crate::format::{Block, GroupId};
use crate::raid::GroupError;

/// Most blocks of the share region that are read or written at once.
pub const SHARE_BLOCKS_MAX: usize = 16;

/// What never changes about a group.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Which group.
    pub group: GroupId,
    /// Blocks of a stripe's data.
    pub stripe_blocks: u64,
    /// Stripes.
    pub stripes: u64,
    /// Blocks of the share region.
    pub share_blocks: u64,
    /// Copies of the share region, numbered from zero.
    pub copies: usize,
}

/// A group, as its pool uses it. Handles are cheap; clones are the same group.
///
/// Implementations promise of the share region:
/// - what was written is durable when that is said, in so many copies that one is left after as many failures as the group tolerates;
/// - a write that failed, or was cut short, may be there in some copies and not in others, block by block, and be torn;
/// - nobody else writes there.
///
/// And of the data what groups promise (`crate::raid`).
pub trait Ground: Clone + 'static {
    /// What never changes.
    fn facts(&self) -> Facts;

    /// Reads blocks of one copy of the share region, at most [`SHARE_BLOCKS_MAX`]. False if they cannot all be read from there.
    ///
    /// # Errors
    /// [`GroupError`]: the group can do nothing any more.
    fn read_share(
        &self,
        copy: usize,
        place: u64,
        blocks: &mut [Block],
    ) -> impl Future<Output = Result<bool, GroupError>>;

    /// Writes blocks of the share region in all copies, at most [`SHARE_BLOCKS_MAX`].
    ///
    /// # Errors
    /// [`GroupError`].
    fn write_share(&self, place: u64, blocks: &[Block]) -> impl Future<Output = Result<(), GroupError>>;

    /// Makes data blocks zeros, durably, and gives the room of whole stripes back to the devices where that reads as zeros. Nobody else uses the blocks
    /// meanwhile.
    ///
    /// # Errors
    /// [`GroupError`]. They may be anything then.
    fn zero(&self, lba: Lba, blocks: BlockCount) -> impl Future<Output = Result<(), GroupError>>;

    /// Reads data blocks.
    ///
    /// # Errors
    /// [`GroupError`].
    fn read(&self, lba: Lba, segments: &[Segment]) -> impl Future<Output = Result<(), GroupError>>;

    /// Writes data blocks, through to media.
    ///
    /// # Errors
    /// [`GroupError`].
    fn write(&self, lba: Lba, segments: &[Segment]) -> impl Future<Output = Result<(), GroupError>>;

    /// Data that was written before is durable.
    ///
    /// # Errors
    /// [`GroupError`].
    fn flush(&self) -> impl Future<Output = Result<(), GroupError>>;
}
