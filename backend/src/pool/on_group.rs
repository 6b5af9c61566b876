//! The ground that pools stand on in production: a RAID group.

use std::rc::Rc;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

use super::ground::{Facts, Ground};
use crate::device::Device;
use crate::format::Block;
use crate::raid::geometry::CHUNK_BLOCKS;
use crate::raid::{Group, GroupError};

/// Blocks of zeros that are written at once, for what is not a whole stripe.
const ZEROS: u64 = 64;

#[derive(Debug)]
struct Inner<D: Device> {
    group: Group<D>,
    facts: Facts,
    zeros: Memory,
}

/// A group that a pool stands on. Clones are the same.
#[derive(Debug)]
pub struct OnGroup<D: Device>(Rc<Inner<D>>);

impl<D: Device> Clone for OnGroup<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: Device> OnGroup<D> {
    /// Of a group that was opened.
    ///
    /// # Errors
    /// [`GroupError`]: a device cannot reach our memory, or none is there.
    pub fn new(group: Group<D>) -> Result<Self, GroupError> {
        let zeros = Memory::anonymous(usize::try_from(ZEROS).map_err(|_| GroupError::Invalid)? * BLOCK_BYTES);
        group.map(&zeros)?;
        let (geometry, layout) = (group.geometry(), group.layout());
        let facts = Facts {
            group: group.id(),
            stripe_blocks: geometry.data() as u64 * CHUNK_BLOCKS,
            stripes: layout.chunks(),
            share_blocks: layout.shares.blocks.0,
            copies: geometry.members(),
        };
        Ok(Self(Rc::new(Inner { group, facts, zeros })))
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Group<D> {
        &self.0.group
    }

    async fn write_zeros(&self, from: u64, end: u64) -> Result<(), GroupError> {
        let mut at = from;
        while at < end {
            let blocks = (end - at).min(ZEROS);
            let len = u32::try_from(BlockCount(blocks).bytes()).map_err(|_| GroupError::Invalid)?;
            let segments = [self.0.zeros.segment(0, len).map_err(|_| GroupError::Invalid)?];
            self.0.group.write(Lba(at), &segments).await?;
            at += blocks;
        }
        Ok(())
    }
}

impl<D: Device> Ground for OnGroup<D> {
    fn facts(&self) -> Facts {
        self.0.facts
    }

    async fn read_share(&self, copy: usize, place: u64, blocks: &mut [Block]) -> Result<bool, GroupError> {
        self.0.group.read_share(copy, place, blocks).await
    }

    async fn write_share(&self, place: u64, blocks: &[Block]) -> Result<(), GroupError> {
        self.0.group.write_share(place, blocks).await
    }

    async fn zero(&self, lba: Lba, blocks: BlockCount) -> Result<(), GroupError> {
        let (from, end, stripe) = (lba.0, lba.0 + blocks.0, self.0.facts.stripe_blocks);
        let (first, last) = (from.next_multiple_of(stripe).min(end), end / stripe * stripe);
        self.write_zeros(from, first).await?;
        if first < last {
            self.0.group.zero(Lba(first), BlockCount(last - first)).await?;
        }
        self.write_zeros(last.max(first), end).await
    }

    async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.0.group.read(lba, segments).await
    }

    async fn write(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.0.group.write(lba, segments).await
    }

    async fn flush(&self) -> Result<(), GroupError> {
        self.0.group.flush().await
    }
}
