//! Writes: fetched into free frames, committed the way that the regime and the volume's policy ask for, then answered.
//!
//! | policy | both directors | alone, with a vault | alone, without |
//! |---|---|---|---|
//! | `mirrored` | the partner's answer | vault | media |
//! | `unmirrored` | this memory, once the vault says that the volume is dirty | the same | the same |
//! | `through` | media, and the partner knows the outcome | media | media |
//!
//! On top of that FUA, and every write once power is about to fail, goes the way of `durable.rs`.

use dyad_matrix::Provider;
use dyad_matrix::frames::Pinned;
use dyad_reactor::Time;
use dyad_reactor::mutation::{Mutation, is_active};

use super::{Cache, CacheError, Policy, Transfer};
use crate::address::{Epoch, TRACK_BLOCKS, TrackRange, Version, VolumeId};
use crate::authority::Regime;
use crate::link::{MirrorLink, Write};
use crate::record::{CommandId, MirrorFrame};
use crate::slots::{Block, BlockState};
use crate::store::Store;
use crate::vault::{BlockEntry, Saved, Vault, VaultError};

/// A write of blocks of one track.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct WriteCommand {
    /// Where to.
    pub range: TrackRange,
    /// The command it belongs to.
    pub command: CommandId,
    /// Every command of the origin before this one has been answered.
    pub oldest: u64,
    /// Answered when the blocks survive total loss of power.
    pub fua: bool,
}

impl<S: Store, P: Provider> Cache<S, P> {
    /// Writes blocks of one track; returns when the write survives the loss of a director (PROTOCOLS 6.1), or what its volume's policy promises.
    ///
    /// # Errors
    /// [`CacheError`]; the write may have been done or not.
    pub async fn write(&self, write: WriteCommand, deadline: Time, host: &impl Transfer) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let WriteCommand { range, command, oldest, fua } = write;
        let policy = self.volume(range)?.policy;
        if is_active(Mutation::RepeatsAreAnsweredByAnybody) && inner.outcomes.contains(command) {
            return Ok(());
        }
        if inner.authority.regime() == Regime::Elsewhere {
            return Err(CacheError::NotHome);
        }
        self.slow_down(range.count(), deadline).await;
        {
            let frames = match host.received() {
                Some(frames) => frames,
                None => {
                    let frames = self.frames_for(range, deadline).await?;
                    host.fetch(&frames.segments()).await?;
                    frames
                }
            };
            let crcs: heapless::Vec<u32, TRACK_BLOCKS> =
                frames.frames().iter().map(|frame| inner.pool.crc(*frame)).collect();
            self.commit(policy, &Write { range, command, oldest, frames: &frames, crcs: &crcs }, deadline).await?;
        }
        if (fua && !is_active(Mutation::FuaIsIgnored)) || inner.on_battery.get() {
            self.make_durable(range).await
        } else {
            Ok(())
        }
    }

    async fn frames_for(&self, range: TrackRange, deadline: Time) -> Result<Pinned, CacheError> {
        match self.pin_if_present(range).filter(|_| is_active(Mutation::FetchOverAcknowledged)) {
            Some(present) => Ok(present),
            None => self.take_frames(range.count(), deadline).await,
        }
    }

    /// Back-pressure before anything is held.
    async fn slow_down(&self, blocks: usize, deadline: Time) {
        let inner = &*self.inner;
        let wait = inner.pace.wait(blocks, self.dirty_blocks());
        if !wait.is_zero() {
            self.count(|counters| counters.slowed_writes += 1);
            inner.handle.sleep_until(deadline.min(inner.handle.now() + wait)).await;
        }
    }

    async fn commit(&self, policy: Policy, write: &Write<'_>, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let _turn = self.turn(write.range.track, deadline).await?;
        loop {
            let seen = inner.authority.changes().generation();
            let applied = inner.outcomes.contains(write.command) && !is_active(Mutation::ApplyTwice);
            match (inner.authority.regime(), policy) {
                // Only a home says that a write was applied: a partner that has the commit record may still lose the epoch, and its
                // mirror with it, to a home that never had its answer.
                (Regime::Mirrored(_) | Regime::Solo(_), _) if applied => {
                    self.count(|counters| counters.repeated_writes += 1);
                    return Ok(());
                }
                (Regime::Elsewhere, _) => return Err(CacheError::NotHome),
                (Regime::Undecided, _) => {}
                (Regime::Mirrored(epoch) | Regime::Solo(epoch), Policy::Unmirrored) => {
                    self.mark_dirty(write.range.track.volume).await?;
                    if matches!(inner.authority.regime(), Regime::Mirrored(now) | Regime::Solo(now) if now == epoch) {
                        return self.write_unmirrored(epoch, write);
                    }
                    continue;
                }
                (Regime::Mirrored(epoch), Policy::Mirrored) => {
                    if let Some(link) = self.link().filter(|link| !link.is_closed()) {
                        let room = inner.handle.timeout_at(deadline, link.take_frames(write.range.count())).await;
                        // No room until the deadline: destage is too slow, and the host tries again.
                        let room = room.map_err(|_| CacheError::Undecided)?;
                        if let Ok(mirror) = room
                            && self.write_mirrored(epoch, &link, write, &mirror).await
                        {
                            return Ok(());
                        }
                    }
                    if inner.authority.regime() != Regime::Mirrored(epoch) {
                        continue;
                    }
                }
                (Regime::Mirrored(epoch), Policy::Through) => {
                    self.counted_media_write(epoch, write).await?;
                    if let Some(link) = self.link()
                        && link.applied(epoch, write.command, write.oldest).await.is_ok()
                    {
                        return self.applied(write);
                    }
                    if inner.authority.regime() != Regime::Mirrored(epoch) {
                        continue;
                    }
                }
                (Regime::Solo(epoch), Policy::Mirrored | Policy::Through) => {
                    return self.write_solo(epoch, policy, write).await;
                }
            }
            self.wait_for_change(seen, deadline).await?;
        }
    }

    async fn write_mirrored(
        &self,
        epoch: Epoch,
        link: &MirrorLink<P>,
        write: &Write<'_>,
        mirror: &[MirrorFrame],
    ) -> bool {
        let inner = &*self.inner;
        let version = self.next_version(epoch);
        if is_active(Mutation::VisibleBeforeCommit) {
            self.install_all(write, version, BlockState::Dirty(None));
        }
        let begun = inner.handle.now();
        if link.commit(write, version, mirror).await.is_err() {
            return false;
        }
        // Only an answer in a valid epoch counts (PROTOCOLS 3.2). Alone by now, we may have called ourselves settled without these blocks.
        if inner.authority.regime() != Regime::Mirrored(epoch) {
            return false;
        }
        for (at, index) in write.range.indices().enumerate() {
            let frame = write.frames.frames()[at];
            inner.pool.hold(frame);
            let block = Block { frame, crc: write.crcs[at], version, state: BlockState::Dirty(Some(mirror[at])) };
            if let Some(BlockState::Dirty(Some(old))) = self.install(write.range.track, index, block) {
                link.give_back(old);
            }
        }
        if link.is_closed() {
            inner.slots.borrow_mut().forget_mirrors();
        }
        inner.outcomes.insert(write.command, write.oldest);
        self.count(|counters| {
            counters.mirrored_writes += 1;
            counters.mirror_latency.add_time(inner.handle.now().since(begun));
        });
        self.dirtied();
        true
    }

    fn write_unmirrored(&self, epoch: Epoch, write: &Write<'_>) -> Result<(), CacheError> {
        let version = self.next_version(epoch);
        self.install_all(write, version, BlockState::Dirty(None));
        self.count(|counters| counters.unmirrored_writes += 1);
        self.dirtied();
        self.applied(write)
    }

    /// Alone: the vault if there is one with room, else media.
    async fn write_solo(&self, epoch: Epoch, policy: Policy, write: &Write<'_>) -> Result<(), CacheError> {
        if is_active(Mutation::SoloAcknowledgesFromMemory) {
            self.install_all(write, self.next_version(epoch), BlockState::Dirty(None));
            self.inner.moved.notify_all();
            return Ok(());
        }
        if policy == Policy::Mirrored
            && let Some(vault) = self.vault()
        {
            let media_writes = &self.inner.media_writes;
            media_writes.set(media_writes.get() + 1);
            let journalled = self.journal_write(&vault, self.next_version(epoch), write).await;
            media_writes.set(media_writes.get() - 1);
            self.dirtied();
            match journalled {
                Ok(()) => {
                    self.count(|counters| counters.journalled_writes += 1);
                    return self.applied(write);
                }
                Err(VaultError::Full) => {}
                Err(error) => return Err(self.vault_failed(error)),
            }
        }
        self.counted_media_write(epoch, write).await?;
        self.applied(write)
    }

    async fn journal_write(
        &self,
        vault: &Vault<S::Device>,
        version: Version,
        write: &Write<'_>,
    ) -> Result<(), VaultError> {
        // Until the slot names the new blocks nobody else may save the old ones.
        let mut batch = vault.batch(write.range.track).await;
        for ((index, frame), crc) in write.range.indices().zip(write.frames.frames()).zip(write.crcs) {
            batch.add(Saved {
                index,
                entry: BlockEntry { version, crc: *crc },
                segment: self.inner.pool.segment(*frame),
            });
        }
        vault.save(batch).await?;
        self.install_all(write, version, BlockState::Dirty(None));
        Ok(())
    }

    /// Writes to media before the host is answered, and keeps count of it: a partner joins only when none is under way.
    async fn counted_media_write(&self, epoch: Epoch, write: &Write<'_>) -> Result<(), CacheError> {
        let inner = &*self.inner;
        inner.media_writes.set(inner.media_writes.get() + 1);
        let written = self.write_to_media(epoch, write).await;
        inner.media_writes.set(inner.media_writes.get() - 1);
        inner.moved.notify_all();
        written
    }

    async fn write_to_media(&self, epoch: Epoch, write: &Write<'_>) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let version = self.next_version(epoch);
        self.begin_media_write(write.range.track).await;
        let written = self.group_write(write.range, &write.frames.segments()).await;
        inner.slots.borrow_mut().set_destaging(write.range.track, false);
        inner.moved.notify_all();
        inner.pool.freed().notify_all();
        written?;
        self.install_all(write, version, BlockState::Clean);
        self.settle(write.range.track, write.range.indices().map(|index| (index, version)));
        self.retire_stale().await?;
        self.count(|counters| counters.media_writes += 1);
        Ok(())
    }

    fn applied(&self, write: &Write<'_>) -> Result<(), CacheError> {
        if self.inner.outcomes.insert(write.command, write.oldest) { Ok(()) } else { Err(CacheError::Credits) }
    }

    /// Whoever takes over must know that an `unmirrored` volume has lost something, before it can have lost it.
    async fn mark_dirty(&self, volume: VolumeId) -> Result<(), CacheError> {
        // Without one every takeover counts as a loss: see `lose_unmirrored`.
        let Some(vault) = self.vault() else { return Ok(()) };
        loop {
            match (vault.mark_dirty(volume).await, vault.in_the_way()) {
                (Err(VaultError::Full), Some(track)) => self.clear_the_way(&vault, track).await?,
                (marked, _) => return marked.map_err(|error| self.vault_failed(error)),
            }
        }
    }
}
