//! A way to a volume all of whose groups have their home here: commands are split by extents and by slices, without allocation.

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

use super::description::Description;
use super::ground::Ground;
use super::home::{Pool, ShareId};
use super::map::{Map, Part};
use super::{Generation, PoolError, VolumeUuid};

/// Most segments of a command: one for each frame of a track.
pub const SEGMENTS_MAX: usize = 16;
/// Most blocks of a command: 1 MiB.
pub const TRANSFER_BLOCKS_MAX: u64 = 256;
/// Most extents that a command touches: the shortest have a track, and the first and the last may be touched in part.
const PARTS_MAX: usize = 17;
const _: () = assert!(PARTS_MAX as u64 == TRANSFER_BLOCKS_MAX / 16 + 1);

/// Why a command of a volume failed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// It goes beyond the end of the volume.
    #[error("beyond the end of the volume")]
    OutOfRange,
    /// No blocks, too many, too many segments, or segments that are not whole blocks of mapped memory.
    #[error("the command does not fit the volume")]
    Invalid,
    /// The pool of a group refuses or failed it.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

type Segments = heapless::Vec<Segment, SEGMENTS_MAX>;

/// A volume in one generation. When that is over every command says so: then make another one of the new description.
#[derive(Debug)]
pub struct Volume<G> {
    map: Map,
    /// As the map numbers the groups.
    shares: Vec<(Pool<G>, ShareId)>,
    memories: Vec<Memory>,
}

impl<G: Ground> Volume<G> {
    /// The volume of this description. `pools` has those of all its groups, and they have its shares.
    ///
    /// # Errors
    /// [`PoolError::UnknownVolume`] if a pool or a share is missing; [`PoolError::OldGeneration`], [`PoolError::UnknownGeneration`].
    pub fn new(description: &Description, pools: &[Pool<G>]) -> Result<Self, PoolError> {
        let map = Map::new(description);
        let mut shares = Vec::with_capacity(map.groups().len());
        for group in map.groups() {
            let pool = pools.iter().find(|pool| pool.facts().group == *group).ok_or(PoolError::UnknownVolume)?;
            // A group whose turn never came has no share, and nothing is ever asked of it.
            let wanted = description.share(*group).is_some();
            match pool.share(map.volume(), map.generation()) {
                Ok(id) => shares.push((pool.clone(), id)),
                Err(PoolError::UnknownVolume) if !wanted => shares.push((pool.clone(), ShareId::NONE)),
                Err(error) => return Err(error),
            }
        }
        Ok(Self { map, shares, memories: Vec::new() })
    }

    /// Lets commands name memory that the groups have mapped.
    pub fn map(&mut self, memory: &Memory) {
        self.memories.push(memory.clone());
    }

    /// Which volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeUuid {
        self.map.volume()
    }

    /// Its size.
    #[must_use]
    pub const fn blocks(&self) -> BlockCount {
        self.map.blocks()
    }

    /// Its generation.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.map.generation()
    }

    /// Reads blocks. Those that were never written, or that were deallocated, are zeros.
    ///
    /// # Errors
    /// [`VolumeError`]. The memory may have been written to.
    pub async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), VolumeError> {
        let blocks = self.check(segments)?;
        for part in self.map.parts(lba, blocks).ok_or(VolumeError::OutOfRange)? {
            let (pool, id) = &self.shares[part.place.group];
            let of_part = piece(segments, &part);
            let _pin = pool.pin();
            match pool.locate(*id, part.place.position, part.place.block)? {
                Some(at) => pool.ground().read(at, &of_part).await.map_err(PoolError::from)?,
                None => self.zeros(&of_part)?,
            }
        }
        Ok(())
    }

    /// Writes blocks, through to media. What it needs of slices is kept for all of it before any of it is written.
    ///
    /// # Errors
    /// [`VolumeError`]. [`PoolError::Full`]: nothing was written. Else each block is as it was or as it should be.
    pub async fn write(&self, lba: Lba, segments: &[Segment]) -> Result<(), VolumeError> {
        let blocks = self.check(segments)?;
        self.admit(lba, blocks)?;
        for part in self.parts(lba, blocks)? {
            let (pool, id) = &self.shares[part.place.group];
            pool.settle(*id, part.place.position..part.place.position + 1).await?;
            let of_part = piece(segments, &part);
            let _pin = pool.pin();
            // Nothing but somebody who deallocates what is being written takes it away again.
            let at = pool.locate(*id, part.place.position, part.place.block)?.ok_or(PoolError::NotAdmitted)?;
            pool.ground().write(at, &of_part).await.map_err(PoolError::from)?;
        }
        Ok(())
    }

    /// Keeps slices for a write, all that it needs or none.
    ///
    /// # Errors
    /// [`VolumeError`]: [`PoolError::Full`] above all.
    pub fn admit(&self, lba: Lba, blocks: BlockCount) -> Result<(), VolumeError> {
        let mut kept = heapless::Vec::<Part, PARTS_MAX>::new();
        for part in self.parts(lba, blocks)? {
            let (pool, id) = &self.shares[part.place.group];
            match pool.admit(*id, part.place.position) {
                Ok(false) => {}
                Ok(true) => kept.push(part).map_err(|_| VolumeError::Invalid)?,
                Err(error) => {
                    for part in kept {
                        let (pool, id) = &self.shares[part.place.group];
                        pool.retract(*id, part.place.position);
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// What was written before is durable.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn flush(&self) -> Result<(), VolumeError> {
        for (pool, _) in &self.shares {
            pool.ground().flush().await.map_err(PoolError::from)?;
        }
        Ok(())
    }

    /// Gives the slices back that lie whole in these blocks; they are zeros then. The rest stays as it is. Says how many slices that were.
    ///
    /// # Errors
    /// [`VolumeError`]: some may have been given back.
    pub async fn deallocate(&self, lba: Lba, blocks: BlockCount) -> Result<u64, VolumeError> {
        let mut freed = 0;
        for (group, positions) in self.map.whole_positions(lba, blocks).ok_or(VolumeError::OutOfRange)? {
            let (pool, id) = &self.shares[group];
            freed += pool.trim(*id, positions).await?;
        }
        Ok(freed)
    }

    fn parts(&self, lba: Lba, blocks: BlockCount) -> Result<impl Iterator<Item = Part> + '_, VolumeError> {
        self.map.parts(lba, blocks).ok_or(VolumeError::OutOfRange)
    }

    fn check(&self, segments: &[Segment]) -> Result<BlockCount, VolumeError> {
        let whole = |s: &Segment| {
            let (block, len) = (BLOCK_BYTES as u64, u64::from(s.len));
            s.offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0
        };
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let blocks = bytes / BLOCK_BYTES as u64;
        let fits = (1..=TRANSFER_BLOCKS_MAX).contains(&blocks) && segments.len() <= SEGMENTS_MAX;
        if fits && segments.iter().all(whole) { Ok(BlockCount(blocks)) } else { Err(VolumeError::Invalid) }
    }

    fn zeros(&self, segments: &[Segment]) -> Result<(), VolumeError> {
        for segment in segments {
            let memory = self.memories.iter().find(|memory| memory.id() == segment.memory);
            let memory = memory.ok_or(VolumeError::Invalid)?;
            memory.fill_zero(segment.offset, segment.len.into()).map_err(|_| VolumeError::Invalid)?;
        }
        Ok(())
    }
}

/// The part's piece of a command's segments.
fn piece(segments: &[Segment], part: &Part) -> Segments {
    let (mut skip, mut left) = (BlockCount(part.at).bytes(), BlockCount(part.blocks).bytes());
    let mut of_part = Segments::new();
    for segment in segments {
        let len = u64::from(segment.len);
        let from = skip.min(len);
        let take = (len - from).min(left);
        (skip, left) = (skip - from, left - take);
        if take > 0 {
            let len = u32::try_from(take).expect("no longer than the segment");
            let piece = Segment { offset: segment.offset + from, len, ..*segment };
            assert!(of_part.push(piece).is_ok(), "no more than the command has");
        }
    }
    of_part
}
