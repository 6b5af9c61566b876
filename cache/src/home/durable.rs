//! What must survive total loss of power: FLUSH, FUA, power warning, clean shutdown, adopted slots (PROTOCOLS 6).
//!
//! All of them save dirty blocks to the vault: one append each, however scattered the blocks are on media. What finds the vault full, or has none, is
//! destaged instead. Before any of them is answered, nothing in the vault may be older than media
//! ([`Vault::is_stale`](crate::vault::Vault::is_stale)).

use dyad_matrix::Provider;
use dyad_matrix::frames::Pinned;
use dyad_reactor::Time;
use dyad_reactor::mutation::{Mutation, is_active};

use super::{Cache, CacheError, Policy};
use crate::address::{TRACK_BLOCKS, TrackAddress, TrackRange, Version, VolumeId};
use crate::slots::{Block, BlockState, Slot};
use crate::store::Store;
use crate::vault::{Batch, BlockEntry, Saved, Vault, VaultError};

impl<S: Store, P: Provider> Cache<S, P> {
    /// Makes durable everything of `volume` that was acknowledged when the flush arrived (PROTOCOLS 6.2).
    ///
    /// # Errors
    /// [`CacheError`]; nothing was promised.
    pub async fn flush(&self, volume: VolumeId, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.wait_until_readable(deadline).await?;
        if self.is_lost(volume) {
            return Err(CacheError::PersistentLoss);
        }
        if !inner.config.nvcache || inner.on_battery.get() {
            self.save_volume(volume).await?;
            self.clear_mark(volume).await?;
        }
        // Only the home of the epoch may say that everything is durable.
        if inner.authority.may_read(inner.handle.now()) { Ok(()) } else { Err(CacheError::Undecided) }
    }

    /// Power will fail soon: saves everything, and from now on acknowledges nothing that is not durable.
    ///
    /// # Errors
    /// [`CacheError`]: something is in memory only.
    pub async fn power_warning(&self) -> Result<(), CacheError> {
        self.inner.on_battery.set(true);
        self.save_all().await
    }

    /// Power will not fail after all.
    pub fn power_restored(&self) {
        self.inner.on_battery.set(false);
    }

    /// Saves everything that is dirty. After the last write, this is a clean shutdown: whoever opens the vault has it all.
    ///
    /// # Errors
    /// [`CacheError`]: something is in memory only.
    pub async fn save_all(&self) -> Result<(), CacheError> {
        // The volumes are few, and none is added: their order does not matter.
        for volume in self.inner.volumes.keys() {
            self.save_volume(*volume).await?;
            self.clear_mark(*volume).await?;
        }
        Ok(())
    }

    /// Journals what was adopted from a lost partner, then retires what the vault had before: the mirror and media have newer versions of all of it.
    /// After this everything that was acknowledged survives this director (`settled`).
    ///
    /// # Errors
    /// [`CacheError`]: it is not settled.
    pub async fn journal(&self) -> Result<(), CacheError> {
        let Some(vault) = self.vault() else { return Ok(()) };
        for place in self.inner.volumes.values().filter(|place| place.policy != Policy::Unmirrored) {
            self.save_volume(place.id).await?;
        }
        vault.retire_former().await.map_err(|error| self.vault_failed(error))?;
        self.inner.journalling.set(false);
        self.inner.moved.notify_all();
        Ok(())
    }

    /// Everything acknowledged is on media or in the vault.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self.vault() {
            Some(_) => !self.inner.journalling.get(),
            None => self.dirty_blocks() == 0,
        }
    }

    /// Makes the blocks durable as they are now, or newer.
    pub(super) async fn make_durable(&self, range: TrackRange) -> Result<(), CacheError> {
        if self.inner.config.nvcache && !self.inner.on_battery.get() {
            return Ok(());
        }
        self.save_range(range).await?;
        self.retire_stale().await
    }

    async fn save_volume(&self, volume: VolumeId) -> Result<(), CacheError> {
        let mut from = 0;
        while let Some(track) = self.next_dirty(volume, from).filter(|_| !is_active(Mutation::FlushBeforeDestage)) {
            self.save_range(TrackRange::whole(track)).await?;
            from = track.track + 1;
        }
        self.retire_stale().await
    }

    async fn save_range(&self, range: TrackRange) -> Result<(), CacheError> {
        if let Some(vault) = self.vault() {
            let mut batch = vault.batch(range.track).await;
            let _pinned = self.add_unsaved(&vault, range, &mut batch);
            let blocks = batch.len() as u64;
            if blocks == 0 {
                vault.give_up(batch);
                return Ok(());
            }
            match vault.save(batch).await {
                Ok(()) => {
                    self.count(|counters| counters.vaulted_blocks += blocks);
                    return Ok(());
                }
                Err(VaultError::Full) => {}
                Err(error) => return Err(self.vault_failed(error)),
            }
        }
        self.destage(range.track).await
    }

    /// The dirty blocks of the range that the vault does not have in this version.
    fn unsaved(&self, vault: &Vault<S::Device>, range: TrackRange) -> [Option<Block>; TRACK_BLOCKS] {
        let mut blocks = self.inner.slots.borrow().get(range.track).map_or([None; TRACK_BLOCKS], Slot::dirty_blocks);
        for (index, block) in blocks.iter_mut().enumerate() {
            block.take_if(|block| !range.indices().contains(&index) || vault.covers(range.track, index, block.version));
        }
        blocks
    }

    fn add_unsaved(&self, vault: &Vault<S::Device>, range: TrackRange, batch: &mut Batch) -> Pinned {
        let (blocks, pool) = (self.unsaved(vault, range), &self.inner.pool);
        for (index, block) in blocks.iter().enumerate().filter_map(|(index, block)| Some((index, block.as_ref()?))) {
            let entry = BlockEntry { version: block.version, crc: block.crc };
            batch.add(Saved { index, entry, segment: pool.segment(block.frame) });
        }
        pool.pin(blocks.iter().flatten().map(|block| block.frame))
    }

    /// Media has these versions, durably.
    pub(super) fn settle(&self, track: TrackAddress, blocks: impl Iterator<Item = (usize, Version)>) {
        if let Some(vault) = self.vault() {
            blocks.for_each(|(index, version)| vault.settle(track, index, version));
        }
    }

    /// Nothing that a replay brings back is older than media when this returns.
    pub(super) async fn retire_stale(&self) -> Result<(), CacheError> {
        let Some(vault) = self.vault().filter(|vault| vault.is_stale() && !is_active(Mutation::StaleRecordsStay))
        else {
            return Ok(());
        };
        while let Some(track) = vault.retire_stale().await.map_err(|error| self.vault_failed(error))? {
            self.clear_the_way(&vault, track).await?;
        }
        Ok(())
    }

    /// Destages what keeps the vault's oldest record from being retired.
    pub(super) async fn clear_the_way(&self, vault: &Vault<S::Device>, track: TrackAddress) -> Result<(), CacheError> {
        self.destage(track).await?;
        let slots = self.inner.slots.borrow();
        let is_dirty = |index: usize| {
            let block = slots.get(track).and_then(|slot| slot.blocks[index]);
            block.is_some_and(|block| block.state != BlockState::Clean)
        };
        vault.settle_others(track, is_dirty);
        Ok(())
    }

    /// Says durably that an `unmirrored` volume has nothing in one memory only, if that is so.
    pub(super) async fn clear_mark(&self, volume: VolumeId) -> Result<(), CacheError> {
        let Some(vault) = self.vault() else { return Ok(()) };
        if self.policy(volume) != Some(Policy::Unmirrored) || vault.mark(volume).is_none() || self.is_lost(volume) {
            return Ok(());
        }
        let mut from = 0;
        while let Some(track) = self.next_dirty(volume, from) {
            if self.unsaved(&vault, TrackRange::whole(track)).iter().any(Option::is_some) {
                return Ok(());
            }
            from = track.track + 1;
        }
        if vault.is_stale() {
            return Ok(());
        }
        vault.clear_mark(volume);
        vault.note().await.map_err(|error| self.vault_failed(error))
    }

    pub(super) fn next_dirty(&self, volume: VolumeId, from: u64) -> Option<TrackAddress> {
        self.inner.slots.borrow().next_dirty_of(volume, from)
    }

    pub(super) fn vault_failed(&self, error: VaultError) -> CacheError {
        if error == VaultError::Fenced {
            self.inner.authority.report_fenced();
            return CacheError::NotHome;
        }
        CacheError::Vault(error)
    }
}
