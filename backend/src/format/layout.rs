//! Where the regions of a member lie. All members of a group have the same layout; what a larger device has beyond it is not used.

use dyad_nvme::types::{BlockCount, Lba};

use super::guard::GUARDED_CHUNKS;
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry};

/// A run of blocks of a device.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its first block.
    pub start: Lba,
    /// How many.
    pub blocks: BlockCount,
}

impl Region {
    /// The block after its last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.0 + self.blocks.0
    }
}

/// The regions, in their order on the device: superblock copy 0 at block 0, these, superblock copy 1 at the last block.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The intent log: a ring of records.
    pub intent: Region,
    /// The guard table's part on this member.
    pub guards: Region,
    /// The share tables.
    pub shares: Region,
    /// The vault. Its contents are the cache's.
    pub vault: Region,
    /// Whole chunks, at a multiple of [`CHUNK_BLOCKS`].
    pub data: Region,
    /// The last block that the group uses: superblock copy 1.
    pub last: Lba,
}

/// Why a group cannot be laid out, or a layout not be believed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The smallest member has no room for a chunk beside its system area.
    #[error("a member of {0:?} blocks is too small")]
    TooSmall(BlockCount),
    /// Regions overlap, leave the device, or are too short.
    #[error("the regions contradict each other")]
    Invalid,
}

/// Blocks of the intent log: one for so many blocks of the device, within limits. The least holds three of the longest records.
const INTENT_SHARE: u64 = 1 << 10;
const INTENT_LIMITS: (u64, u64) = (128, 1 << 16);
/// Blocks of share tables likewise.
const SHARES_SHARE: u64 = 1 << 12;
const SHARES_LIMITS: (u64, u64) = (8, 1 << 14);

impl Layout {
    /// Lays a group out on members of which the smallest has `device` blocks, with a vault of `vault` blocks on each.
    ///
    /// # Errors
    /// [`LayoutError::TooSmall`].
    pub fn new(geometry: Geometry, device: BlockCount, vault: BlockCount) -> Result<Self, LayoutError> {
        let too_small = LayoutError::TooSmall(device);
        let sized = |share: u64, (least, most): (u64, u64)| (device.0 / share).clamp(least, most);
        let (intent, shares) = (sized(INTENT_SHARE, INTENT_LIMITS), sized(SHARES_SHARE, SHARES_LIMITS));
        let fixed = [1, intent, shares, 1].into_iter().try_fold(vault.0, u64::checked_add).ok_or(too_small)?;
        let room = device.0.checked_sub(fixed).ok_or(too_small)?;
        // With as many chunks as fit without guards begin, and give chunks up until the guards fit too.
        let mut chunks = room / CHUNK_BLOCKS;
        while chunks > 0 {
            let guards = guard_blocks(geometry, chunks);
            let start = (fixed - 1 + guards).next_multiple_of(CHUNK_BLOCKS);
            let over = (start + chunks * CHUNK_BLOCKS + 1).saturating_sub(device.0);
            if over == 0 {
                let mut at = 1;
                let mut next = |blocks| {
                    let region = Region { start: Lba(at), blocks: BlockCount(blocks) };
                    at += blocks;
                    region
                };
                let (intent, guards, shares, vault) = (next(intent), next(guards), next(shares), next(vault.0));
                let data = Region { start: Lba(start), blocks: BlockCount(chunks * CHUNK_BLOCKS) };
                return Ok(Self { intent, guards, shares, vault, data, last: Lba(data.end()) });
            }
            chunks -= over.div_ceil(CHUNK_BLOCKS).min(chunks);
        }
        Err(too_small)
    }

    /// Chunks of each member.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.data.blocks.0 / CHUNK_BLOCKS
    }

    /// Checks regions that were read from a device.
    pub(super) fn check(&self, geometry: Geometry) -> Result<(), LayoutError> {
        let regions = [self.intent, self.guards, self.shares, self.vault, self.data];
        let mut at = 1;
        for region in regions {
            let end = region.start.0.checked_add(region.blocks.0).ok_or(LayoutError::Invalid)?;
            if region.start.0 < at || end > self.last.0 {
                return Err(LayoutError::Invalid);
            }
            at = end;
        }
        let chunked = self.data.start.0.is_multiple_of(CHUNK_BLOCKS) && self.data.blocks.0.is_multiple_of(CHUNK_BLOCKS);
        let enough = self.chunks() > 0
            && self.intent.blocks.0 > 0
            && self.guards.blocks.0 == guard_blocks(geometry, self.chunks());
        if chunked && enough { Ok(()) } else { Err(LayoutError::Invalid) }
    }
}

/// Copies of the guard table: as many as members may fail; for RAID 0 one, beside the data.
pub(super) const fn guard_copies(geometry: Geometry) -> u64 {
    let tolerated = geometry.tolerated();
    if tolerated == 0 { 1 } else { tolerated as u64 }
}

fn guard_blocks(geometry: Geometry, chunks: u64) -> u64 {
    guard_copies(geometry) * chunks.div_ceil(GUARDED_CHUNKS)
}
