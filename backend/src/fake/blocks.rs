//! What is on the fake medium: durable blocks, the volatile cache in front of them, and the blocks that are bad.

use std::collections::BTreeMap;

use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::Rng;

use super::BadBlock;

/// The bytes of one logical block.
pub(super) type Block = [u8; BLOCK_BYTES];

/// The block can not be read, or not be written.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct MediaError;

/// Only blocks that are not all zeros take memory. Ordered maps: what is drawn at random must not depend on the process.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    media: BTreeMap<Lba, Box<Block>>,
    /// Newer than `media` and lost with power. `None` is a block of zeros.
    cache: BTreeMap<Lba, Option<Box<Block>>>,
    bad: BTreeMap<Lba, BadBlock>,
}

impl Blocks {
    pub(super) fn read(&self, lba: Lba) -> Result<&Block, MediaError> {
        match self.bad.get(&lba) {
            Some(BadBlock::Misdirected { from }) => Ok(self.held(*from)),
            Some(BadBlock::UntilWritten | BadBlock::Forever) => Err(MediaError),
            None => Ok(self.held(lba)),
        }
    }

    /// What is there, if the block is not bad.
    pub(super) fn contents(&self, lba: Lba) -> Option<&Block> {
        (!self.bad.contains_key(&lba)).then(|| self.held(lba))
    }

    fn held(&self, lba: Lba) -> &Block {
        const ZEROS: &Block = &[0; BLOCK_BYTES];
        match self.cache.get(&lba) {
            Some(cached) => cached.as_deref().unwrap_or(ZEROS),
            None => self.media.get(&lba).map_or(ZEROS, |block| block),
        }
    }

    /// `through` the cache onto media, or into the cache. `None` is a block of zeros.
    pub(super) fn write(
        &mut self,
        lba: Lba,
        block: Option<&Block>,
        through: bool,
        rng: &mut impl Rng,
    ) -> Result<(), MediaError> {
        match self.bad.get(&lba) {
            Some(BadBlock::Forever) => return Err(MediaError),
            Some(BadBlock::UntilWritten | BadBlock::Misdirected { .. }) => drop(self.bad.remove(&lba)),
            None => {}
        }
        let block = block.filter(|bytes| bytes.iter().any(|b| *b != 0)).map(|bytes| Box::new(*bytes));
        if through {
            self.cache.remove(&lba);
            self.settle(lba, block);
        } else if let Some(older) = self.cache.insert(lba, block) {
            // The device may have written the older version back at any time before: then a loss of power uncovers it.
            if rng.one_in(2) {
                self.settle(lba, older);
            }
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        while let Some((lba, block)) = self.cache.pop_first() {
            self.settle(lba, block);
        }
    }

    /// Each cached block was written back just in time, or was not.
    pub(super) fn power_loss(&mut self, rng: &mut impl Rng) {
        while let Some((lba, block)) = self.cache.pop_first() {
            if rng.one_in(2) {
                self.settle(lba, block);
            }
        }
    }

    pub(super) fn spoil(&mut self, lba: Lba, how: BadBlock) {
        self.bad.insert(lba, how);
    }

    fn settle(&mut self, lba: Lba, block: Option<Box<Block>>) {
        match block {
            Some(block) => drop(self.media.insert(lba, block)),
            None => drop(self.media.remove(&lba)),
        }
    }
}
