//! What a change of the pair does to the cache: a partner joins or is lost, what a lost home had is taken over, the vault is opened and replayed.

use std::collections::BTreeMap;

use dyad_matrix::frames::{FRAME_BYTES, FrameIndex};
use dyad_matrix::{Memory, Provider};
use dyad_reactor::Time;
use dyad_reactor::mutation::{Mutation, is_active};

use super::{Cache, CacheError, Policy};
use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, TrackRange, VolumeId};
use crate::link::MirrorLink;
use crate::mirror::{Adoptable, MirrorArea};
use crate::record::{OUTCOMES_PER_MESSAGE, Outcomes};
use crate::slots::{Block, BlockState};
use crate::store::Store;
use crate::vault::{BlockEntry, Found, MarkState, Vault, VaultError};

/// What of the vault is newer than what a director that becomes home knows already.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Replay {
    /// All of it: the last home was alone, or power was lost.
    All,
    /// Only `unmirrored` volumes: of the others the mirror that was adopted has everything that media has not.
    Unmirrored,
}

impl<S: Store, P: Provider> Cache<S, P> {
    /// From now on writes are mirrored over `link`, whose mirror is empty.
    ///
    /// # Panics
    /// If there are dirty blocks of volumes that are mirrored: they would be in one memory only.
    pub fn set_link(&self, link: MirrorLink<P>) {
        assert!(self.next_to_mirror().is_none(), "a partner joins when everything is on media");
        *self.inner.link.borrow_mut() = Some(link);
    }

    /// The link, if there is a partner.
    #[must_use]
    pub fn link(&self) -> Option<MirrorLink<P>> {
        self.inner.link.borrow().clone()
    }

    /// Waits until no write is on its way to media or vault, and writes to media what a partner would have to have. The regime must keep new writes
    /// from starting.
    ///
    /// # Errors
    /// [`CacheError`]: something is dirty that the partner does not have.
    pub async fn quiesce(&self) -> Result<(), CacheError> {
        loop {
            let seen = self.inner.moved.generation();
            if self.inner.media_writes.get() == 0 {
                break;
            }
            self.inner.moved.changed_since(seen).await;
        }
        while let Some(track) = self.next_to_mirror() {
            self.destage(track).await?;
        }
        Ok(())
    }

    /// A track with something dirty that a partner would have to have.
    fn next_to_mirror(&self) -> Option<TrackAddress> {
        let mut volumes = self.inner.volumes.values().filter(|place| place.policy != Policy::Unmirrored);
        volumes.find_map(|place| self.next_dirty(place.id, 0))
    }

    /// There is no partner any more. Commands that wait for it will see the regime change. Whoever goes on alone calls [`Self::journal`] next.
    pub fn drop_link(&self) {
        if let Some(link) = self.inner.link.borrow_mut().take() {
            link.close();
        }
        self.inner.slots.borrow_mut().forget_mirrors();
        self.needs_journal();
    }

    /// Something acknowledged may be in this memory only: it goes to the vault before anything else does, if there is one.
    fn needs_journal(&self) {
        self.inner.journalling.set(self.vault().is_some());
    }

    /// [`Self::journal`] has to be called, and nothing is destaged before that.
    #[must_use]
    pub fn awaits_journal(&self) -> bool {
        self.inner.journalling.get()
    }

    /// Tells a partner that is about to join what was applied (PROTOCOLS 9.3). No write may be under way.
    ///
    /// # Errors
    /// [`CacheError::NotHome`]: the link ended.
    pub async fn teach_outcomes(&self, link: &MirrorLink<P>, epoch: Epoch) -> Result<(), CacheError> {
        for applied in self.inner.outcomes.all().chunks(OUTCOMES_PER_MESSAGE) {
            let outcomes = Outcomes { epoch, applied: applied.iter().copied().collect() };
            link.teach(&outcomes).await.map_err(|_| CacheError::NotHome)?;
        }
        Ok(())
    }

    /// The vault of the pair, open and, if it must be, replayed: from now on it is used. What it says about `unmirrored` volumes was said by a home that is
    /// lost: those that were dirty have lost something (PROTOCOLS 12.1).
    ///
    /// # Errors
    /// [`CacheError::Vault`]: that could not be noted.
    pub async fn attach_vault(&self, vault: Vault<S::Device>) -> Result<(), CacheError> {
        let marked = |volume: &VolumeId| vault.mark(*volume).is_some();
        let lost: Vec<VolumeId> = self.inner.volumes.keys().copied().filter(marked).collect();
        let mut noted = Ok(());
        for volume in &lost {
            if !vault.set_mark(*volume, MarkState::Lost) {
                noted = Err(CacheError::Vault(VaultError::Marks));
            }
            self.lose(*volume);
        }
        if !lost.is_empty() && noted.is_ok() {
            noted = vault.note().await.map_err(|error| self.vault_failed(error));
        }
        *self.inner.vault.borrow_mut() = Some(vault);
        noted
    }

    /// Everything acknowledged is on media, and the vault has nothing older.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty_blocks() == 0 && self.vault().is_none_or(|vault| !vault.is_stale())
    }

    /// The vault is not ours any more.
    pub fn detach_vault(&self) {
        *self.inner.vault.borrow_mut() = None;
    }

    /// A home was lost and there is no vault to say what it had: any `unmirrored` volume may have lost something.
    pub fn lose_unmirrored(&self) {
        for place in self.inner.volumes.values().filter(|place| place.policy == Policy::Unmirrored) {
            self.lose(place.id);
        }
    }

    /// Nothing of an `unmirrored` volume is good until somebody says so: [`Self::reset_volume`].
    fn lose(&self, volume: VolumeId) {
        let mut lost = self.inner.lost.borrow_mut();
        if !lost.contains(&volume) && !is_active(Mutation::LossIsForgotten) {
            lost.push(volume);
        }
    }

    /// The volume answers with [`CacheError::PersistentLoss`].
    #[must_use]
    pub fn is_lost(&self, volume: VolumeId) -> bool {
        self.inner.lost.borrow().contains(&volume)
    }

    /// An operator takes a volume that has lost something as it is.
    ///
    /// # Errors
    /// [`CacheError::Vault`]: it is as before.
    pub async fn reset_volume(&self, volume: VolumeId) -> Result<(), CacheError> {
        if let Some(vault) = self.vault() {
            vault.clear_mark(volume);
            vault.note().await.map_err(|error| self.vault_failed(error))?;
        }
        self.inner.lost.borrow_mut().retain(|lost| *lost != volume);
        Ok(())
    }

    pub(super) fn is_marked(&self, volume: VolumeId) -> bool {
        self.vault().is_some_and(|vault| vault.mark(volume).is_some())
    }

    /// Writes to media what the vault has, block by block in its greatest version, and then retires it (PROTOCOLS 6.4). To be done again if it fails
    /// or is cut short: until everything is on media the vault stays as it is.
    ///
    /// # Errors
    /// [`CacheError`]; [`VaultError::Damaged`] before anything was written.
    pub async fn replay(&self, vault: &Vault<S::Device>, found: &mut Found, what: Replay) -> Result<(), CacheError> {
        vault.check_contents(found).await.map_err(|error| self.vault_failed(error))?;
        if is_active(Mutation::RetireBeforeMedia) {
            vault.retire_former().await.map_err(|error| self.vault_failed(error))?;
        }
        for (track, newest) in newest(found) {
            let lives = self.inner.volumes.get(&track.volume).filter(|place| match what {
                Replay::All => true,
                Replay::Unmirrored => place.policy == Policy::Unmirrored && vault.mark(place.id).is_none(),
            });
            // Another generation, or beyond the end of this one.
            if lives.is_none_or(|place| TrackRange::whole(track).lba().0 + TRACK_BLOCKS as u64 > place.blocks) {
                continue;
            }
            for (index, from) in newest.iter().enumerate() {
                if let Some((record, nth)) = *from {
                    self.replay_block(vault, found, (record, nth), track, index).await?;
                }
            }
        }
        if what == Replay::All || is_active(Mutation::RetireBeforeJournal) {
            vault.retire_former().await.map_err(|error| self.vault_failed(error))?;
        }
        Ok(())
    }

    async fn replay_block(
        &self,
        vault: &Vault<S::Device>,
        found: &Found,
        (record, nth): (usize, usize),
        track: TrackAddress,
        index: usize,
    ) -> Result<(), CacheError> {
        let frame = self.take_frames(1, Time::FAR_FUTURE).await?;
        let fetched = vault.fetch(&found.records[record], nth, &self.inner.pool, frame.frames()[0]).await;
        fetched.map_err(|error| self.vault_failed(error))?;
        let range = TrackRange::new(track, index, 1).expect("a block of the track");
        self.group_write(range, &frame.segments()).await?;
        self.count(|counters| counters.replayed_blocks += 1);
        Ok(())
    }

    /// Takes over what a lost home had committed. Its memory must have been revoked; fencing must be done (PROTOCOLS 4.3). A block
    /// whose bytes no longer have their CRC is counted: memory failed. What the vault was `found` to have of it is all that was promised to survive more.
    pub async fn adopt(&self, area: &MirrorArea, found: &Found) {
        let inner = &*self.inner;
        for block in area.adoptable() {
            let frame = loop {
                let seen = inner.pool.freed().generation();
                if let Some(taken) = self.try_take(1) {
                    break taken;
                }
                inner.pool.freed().changed_since(seen).await;
            };
            if !self.adopt_block(area.memory(), block, frame.frames()[0]) {
                self.count(|counters| counters.damaged_blocks += 1);
                self.adopt_from_vault(found, block, frame.frames()[0]).await;
            }
        }
        self.count(|counters| counters.quarantined_frames += area.unnamed_frames());
        self.needs_journal();
        inner.moved.notify_all();
    }

    fn adopt_block(&self, memory: &Memory, block: Adoptable, frame: FrameIndex) -> bool {
        let inner = &*self.inner;
        let to = frame.offset();
        dyad_matrix::memory::copy(memory, block.offset, inner.pool.memory(), to, FRAME_BYTES as u64)
            .expect("frames lie in their memories");
        if inner.pool.crc(frame) != block.crc && !is_active(Mutation::AdoptWithoutChecking) {
            return false;
        }
        self.install_adopted(block.track, block.index, frame, BlockEntry { version: block.version, crc: block.crc });
        true
    }

    async fn adopt_from_vault(&self, found: &Found, block: Adoptable, frame: FrameIndex) {
        let newest = newest(found).get(&block.track).and_then(|newest| newest[block.index]);
        let (Some(vault), Some((record, nth))) = (self.vault(), newest) else { return };
        let head = &found.records[record];
        if vault.fetch(head, nth, &self.inner.pool, frame).await.is_ok() {
            self.install_adopted(block.track, block.index, frame, head.blocks[block.index].expect("it has this block"));
        }
    }

    fn install_adopted(&self, track: TrackAddress, index: usize, frame: FrameIndex, entry: BlockEntry) {
        self.inner.pool.hold(frame);
        let BlockEntry { version, crc } = entry;
        self.install(track, index, Block { frame, crc, version, state: BlockState::Dirty(None) });
        self.count(|counters| counters.adopted_blocks += 1);
    }
}

/// For each track, where the newest version of each block is: in which record, and which of its contents.
fn newest(found: &Found) -> BTreeMap<TrackAddress, [Option<(usize, usize)>; TRACK_BLOCKS]> {
    let mut tracks: BTreeMap<TrackAddress, [Option<(usize, usize)>; TRACK_BLOCKS]> = BTreeMap::new();
    for (record, head) in found.records.iter().enumerate() {
        let places = tracks.entry(head.track).or_default();
        let blocks = head.blocks.iter().enumerate().filter_map(|(index, block)| Some((index, block.as_ref()?)));
        for (nth, (index, block)) in blocks.enumerate() {
            let known = places[index].and_then(|(record, _)| found.records[record].blocks[index]);
            if known.is_none_or(|known| known.version <= block.version) {
                places[index] = Some((record, nth));
            }
        }
    }
    tracks
}
