//! The home's cache: reads, writes, destage.
//!
//! A write: bytes land in free frames; CRC; commit at the partner (or on media, when solo); only then the slot names the
//! new frames and the host is answered (PROTOCOLS 3). Writes and misses of one track take turns; hits wait for nobody.
//!
//! There is no intent log yet: while the pair is whole, a dirty slot in two memories is the intent. A group's legs can
//! differ only where a slot is dirty, and whoever takes over destages that slot again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_backend::Device;
use dyad_backend::raid::{GroupError, Raid1};
use dyad_matrix::frames::{FRAME_BYTES, FrameIndex, FramePool, Pinned, joined};
use dyad_matrix::{Memory, Provider, Segment};
use dyad_nvme::types::Lba;
use dyad_reactor::Time;
use dyad_reactor::collections::FixedMap;
use dyad_reactor::executor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{KeyGuard, KeyedLocks, Signal};

use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, TrackRange, Version, VolumeId};
use crate::authority::{Authority, Regime};
use crate::link::{MirrorLink, Write};
use crate::mirror::{Adoptable, MirrorArea};
use crate::outcomes::OutcomeTable;
use crate::record::{CommandId, MirrorFrame, OUTCOMES_PER_MESSAGE, Outcomes, ReleasedBlock};
use crate::slots::{Block, BlockState, DirtyBlock, SlotTable};

/// Sizes of a [`Cache`], fixed for its life.
#[derive(Debug, Copy, Clone)]
pub struct CacheConfig {
    /// Most dirty frames of the partner that this director may have to adopt (PROTOCOLS 3.6). A director is a home or a mirror, not both
    /// yet: until it takes over it has no dirty frames of its own, and clean ones are given up.
    pub takeover_frames: usize,
    /// Dirty blocks above which destage does not wait for idleness.
    pub destage_above: usize,
    /// Commands in progress at once.
    pub commands: usize,
    /// Hosts, and outstanding command parts of each, whose outcomes are remembered.
    pub hosts: usize,
    /// See `hosts`.
    pub outcomes_per_host: usize,
}

/// Tracks that one destager takes at once.
const DESTAGE_BATCH: usize = 8;

/// Why a read or write was not done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// This director is not the home (any more): ask the other one. A write may have been done or not.
    #[error("this director is not the home")]
    NotHome,
    /// It was not decided in time who is the home. A write may have been done or not.
    #[error("no decision in time")]
    Undecided,
    /// The data could not be moved from or to the host.
    #[error("the host is gone")]
    Host,
    /// The group could not read or write the blocks.
    #[error("the group failed: {0}")]
    Group(GroupError),
    /// The host has more commands outstanding than its credits.
    #[error("the host exceeds its credits")]
    Credits,
    /// The volume is unknown, deleted, or does not reach that far.
    #[error("the volume has no such blocks")]
    OutOfRange,
}

/// Where a volume lies in the group.
#[derive(Debug, Copy, Clone)]
pub struct VolumePlace {
    /// The volume.
    pub id: VolumeId,
    /// Its first block in the group: a multiple of a track.
    pub base: Lba,
    /// Its size in blocks: a multiple of a track.
    pub blocks: u64,
}

/// Moves the bytes of a command between frames and host.
pub trait Transfer {
    /// Fills `segments` with the host's bytes (a write).
    fn fetch(&self, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;
    /// Gives `segments` to the host (a read).
    fn deliver(&self, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;
}

/// What the cache has done since it was made.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Track pieces read without a device.
    pub read_hits: u64,
    /// Track pieces read with one.
    pub read_misses: u64,
    /// Track pieces acknowledged by the partner.
    pub mirrored_writes: u64,
    /// Track pieces acknowledged from media.
    pub solo_writes: u64,
    /// Track pieces that were sent again and not applied again.
    pub repeated_writes: u64,
    /// Blocks written to the group by destage.
    pub destaged_blocks: u64,
    /// Blocks adopted from a lost partner.
    pub adopted_blocks: u64,
    /// Blocks of a lost partner whose bytes had changed in memory: what media has of them is older.
    pub damaged_blocks: u64,
}

struct Inner<D: Device, P> {
    handle: Handle,
    config: CacheConfig,
    authority: Authority,
    pool: FramePool,
    slots: RefCell<SlotTable>,
    locks: KeyedLocks<TrackAddress>,
    group: Raid1<D>,
    volumes: FixedMap<VolumeId, VolumePlace>,
    link: RefCell<Option<MirrorLink<P>>>,
    outcomes: OutcomeTable,
    sequence: Cell<u64>,
    /// Solo writes on their way to media.
    media_writes: Cell<usize>,
    /// Where the next batch of destage begins.
    destage_from: Cell<Option<TrackAddress>>,
    /// Fires when something became dirty, clean, or stopped destaging.
    moved: Signal,
    counters: Cell<CacheCounters>,
}

/// The cache of a director. Clones are the same cache.
pub struct Cache<D: Device, P> {
    inner: Rc<Inner<D, P>>,
}

impl<D: Device, P> Clone for Cache<D, P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Device, P: Provider> Cache<D, P> {
    /// A cache in `memory` over `group`, which holds `volumes`.
    pub fn new(
        handle: Handle,
        config: CacheConfig,
        authority: Authority,
        memory: Memory,
        group: Raid1<D>,
        volumes: &[VolumePlace],
    ) -> Self {
        let pool = FramePool::new(memory);
        let frames = pool.free_count();
        assert!(
            frames > config.takeover_frames + TRACK_BLOCKS * config.commands,
            "{frames} frames leave no room for commands"
        );
        let volumes = volumes.iter().map(|place| (place.id, *place)).collect();
        Self {
            inner: Rc::new(Inner {
                handle,
                authority,
                pool,
                slots: RefCell::new(SlotTable::new(frames)),
                locks: KeyedLocks::new(config.commands),
                group,
                volumes,
                link: RefCell::new(None),
                outcomes: OutcomeTable::new(config.hosts, config.outcomes_per_host),
                sequence: Cell::new(0),
                media_writes: Cell::new(0),
                destage_from: Cell::new(None),
                moved: Signal::new(),
                counters: Cell::default(),
                config,
            }),
        }
    }

    /// The frames.
    #[must_use]
    pub fn pool(&self) -> &FramePool {
        &self.inner.pool
    }

    /// What was applied.
    #[must_use]
    pub fn outcomes(&self) -> &OutcomeTable {
        &self.inner.outcomes
    }

    /// What was done.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        self.inner.counters.get()
    }

    /// Blocks that media does not have yet.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.inner.slots.borrow().dirty_blocks()
    }

    /// The blocks that media does not have yet, in address order.
    #[must_use]
    pub fn dirty(&self) -> Vec<DirtyBlock> {
        self.inner.slots.borrow().dirty()
    }

    /// A write of this track to media is under way.
    #[must_use]
    pub fn is_destaging(&self, track: TrackAddress) -> bool {
        self.inner.slots.borrow().get(track).is_some_and(|slot| slot.destaging)
    }

    /// Blocks that are in the cache.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.inner.slots.borrow().cached_blocks()
    }

    /// Fires when blocks became dirty or clean.
    #[must_use]
    pub fn moved(&self) -> &Signal {
        &self.inner.moved
    }

    /// From now on writes are mirrored over `link`, whose mirror is empty.
    ///
    /// # Panics
    /// If there are dirty blocks: they would be in one memory only.
    pub fn set_link(&self, link: MirrorLink<P>) {
        assert_eq!(self.dirty_blocks(), 0, "a partner joins when everything is on media");
        *self.inner.link.borrow_mut() = Some(link);
    }

    /// The link, if there is a partner.
    #[must_use]
    pub fn link(&self) -> Option<MirrorLink<P>> {
        self.inner.link.borrow().clone()
    }

    /// Waits until no write is on its way to media. The regime must keep new ones from starting.
    pub async fn quiesce(&self) {
        loop {
            let seen = self.inner.moved.generation();
            if self.inner.media_writes.get() == 0 {
                return;
            }
            self.inner.moved.changed_since(seen).await;
        }
    }

    /// Makes the legs of the group equal, where a director that was alone may have died in the middle of a write.
    ///
    /// # Errors
    /// [`CacheError::Group`]: some blocks cannot be read or written.
    pub async fn equalise(&self) -> Result<(), CacheError> {
        let inner = &*self.inner;
        for place in inner.volumes.values() {
            for track in 0..place.blocks / TRACK_BLOCKS as u64 {
                let range = TrackRange::whole(TrackAddress { volume: place.id, track });
                let frames = self.take_frames(TRACK_BLOCKS, Time::FAR_FUTURE).await?;
                let lba = self.group_lba(range)?;
                match self.equalise_blocks(lba, &frames.segments()).await {
                    // Block by block then: one that no leg can read stays an error for whoever reads it.
                    Err(CacheError::Group(GroupError::Media)) => {
                        for (lba, frame) in (lba.0..).map(Lba).zip(frames.frames()) {
                            match self.equalise_blocks(lba, &[inner.pool.segment(*frame)]).await {
                                Ok(()) | Err(CacheError::Group(GroupError::Media)) => {}
                                Err(error) => return Err(error),
                            }
                        }
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    async fn equalise_blocks(&self, lba: Lba, segments: &[Segment]) -> Result<(), CacheError> {
        let group = &self.inner.group;
        group.read(lba, segments).await.map_err(|error| self.group_failed(error))?;
        group.write(lba, segments, true).await.map_err(|error| self.group_failed(error))
    }

    /// There is no partner any more. Commands that wait for it will see the regime change.
    pub fn drop_link(&self) {
        if let Some(link) = self.inner.link.borrow_mut().take() {
            link.close();
        }
        self.inner.slots.borrow_mut().forget_mirrors();
    }

    /// Tells a partner that is about to join what was applied (PROTOCOLS 9.3). No write may be under way.
    ///
    /// # Errors
    /// [`CacheError::NotHome`]: the link ended.
    pub async fn teach_outcomes(&self, link: &MirrorLink<P>, epoch: Epoch) -> Result<(), CacheError> {
        for applied in self.inner.outcomes.all().chunks(OUTCOMES_PER_MESSAGE) {
            let outcomes = Outcomes { epoch, applied: applied.iter().copied().collect() };
            link.teach(outcomes).await.map_err(|_| CacheError::NotHome)?;
        }
        Ok(())
    }

    /// Reads blocks of one track.
    ///
    /// # Errors
    /// [`CacheError`]; nothing was promised to the host.
    pub async fn read(&self, range: TrackRange, deadline: Time, host: &impl Transfer) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.check_range(range)?;
        self.wait_until_readable(deadline).await?;
        if let Some(pinned) = self.pin_if_present(range) {
            self.count(|counters| counters.read_hits += 1);
            return host.deliver(&pinned.segments()).await;
        }
        self.count(|counters| counters.read_misses += 1);
        let pinned = {
            let _turn = self.turn(range.track, deadline).await?;
            loop {
                self.wait_until_readable(deadline).await?;
                self.fill_from_group(range, deadline).await?;
                // Blocks that were here before may have been given up while others were read.
                if let Some(pinned) = self.pin_if_present(range) {
                    break pinned;
                }
                if inner.handle.now() >= deadline {
                    return Err(CacheError::Undecided);
                }
            }
        };
        host.deliver(&pinned.segments()).await
    }

    /// Writes blocks of one track; returns when the write survives the loss of a director (PROTOCOLS 6.1).
    ///
    /// # Errors
    /// [`CacheError`]; the write may have been done or not.
    pub async fn write(
        &self,
        range: TrackRange,
        command: CommandId,
        oldest: u64,
        deadline: Time,
        host: &impl Transfer,
    ) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.check_range(range)?;
        if is_active(Mutation::RepeatsAreAnsweredByAnybody) && inner.outcomes.contains(command) {
            return Ok(());
        }
        if inner.authority.regime() == Regime::Elsewhere {
            return Err(CacheError::NotHome);
        }
        let pinned = match self.pin_if_present(range).filter(|_| is_active(Mutation::FetchOverAcknowledged)) {
            Some(present) => present,
            None => self.take_frames(range.count(), deadline).await?,
        };
        host.fetch(&pinned.segments()).await?;
        let crcs: heapless::Vec<u32, TRACK_BLOCKS> =
            pinned.frames().iter().map(|frame| inner.pool.crc(*frame)).collect();
        let write = Write { range, command, oldest, frames: &pinned, crcs: &crcs };

        let _turn = self.turn(range.track, deadline).await?;
        loop {
            let seen = inner.authority.changes().generation();
            let applied = inner.outcomes.contains(command) && !is_active(Mutation::ApplyTwice);
            match inner.authority.regime() {
                // Only a home says that a write was applied: a partner that has the commit record may still lose the epoch, and its
                // mirror with it, to a home that never had its answer.
                Regime::Mirrored(_) | Regime::Solo(_) if applied => {
                    self.count(|counters| counters.repeated_writes += 1);
                    return Ok(());
                }
                Regime::Elsewhere => return Err(CacheError::NotHome),
                Regime::Mirrored(epoch) => {
                    if let Some(link) = self.link().filter(|link| !link.is_closed()) {
                        let room = inner.handle.timeout_at(deadline, link.take_frames(range.count())).await;
                        // No room until the deadline: destage is too slow, and the host tries again.
                        let room = room.map_err(|_| CacheError::Undecided)?;
                        if let Ok(mirror) = room
                            && self.write_mirrored(epoch, &link, &write, &mirror).await
                        {
                            return Ok(());
                        }
                    }
                    if inner.authority.regime() != Regime::Mirrored(epoch) {
                        continue;
                    }
                }
                Regime::Solo(epoch) => {
                    inner.media_writes.set(inner.media_writes.get() + 1);
                    let written = self.write_solo(epoch, &write).await;
                    inner.media_writes.set(inner.media_writes.get() - 1);
                    inner.moved.notify_all();
                    return written;
                }
                Regime::Undecided => {}
            }
            self.wait_for_change(seen, deadline).await?;
        }
    }

    /// Makes durable everything of `volume` that was acknowledged when the flush arrived (PROTOCOLS 6.2).
    ///
    /// # Errors
    /// [`CacheError`]; nothing was promised.
    pub async fn flush(&self, volume: VolumeId, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.wait_until_readable(deadline).await?;
        let mut from = None;
        while let Some(track) = self.next_dirty(volume, from).filter(|_| !is_active(Mutation::FlushBeforeDestage)) {
            self.destage(track).await?;
            from = Some(TrackAddress { volume, track: track.track + 1 });
        }
        inner.group.flush().await.map_err(|error| self.group_failed(error))?;
        // Only the home of the epoch may say that everything is durable.
        if inner.authority.may_read(inner.handle.now()) { Ok(()) } else { Err(CacheError::Undecided) }
    }

    /// Service task: writes dirty tracks to the group in address order. Several may run.
    pub async fn run_destage(self, idle_delay: std::time::Duration) {
        let inner = &*self.inner;
        let mut batch: Vec<TrackAddress> = Vec::with_capacity(DESTAGE_BATCH);
        loop {
            let seen = inner.moved.generation();
            inner.slots.borrow().dirty_tracks(inner.destage_from.get(), &mut batch);
            let serving = matches!(inner.authority.regime(), Regime::Mirrored(_) | Regime::Solo(_));
            if batch.is_empty() || !serving {
                if serving {
                    inner.moved.changed_since(seen).await;
                } else {
                    let seen = inner.authority.changes().generation();
                    inner.authority.changes().changed_since(seen).await;
                }
                continue;
            }
            if self.dirty_blocks() <= inner.config.destage_above
                && matches!(inner.authority.regime(), Regime::Mirrored(_))
            {
                inner.handle.sleep(idle_delay).await;
            }
            let next = batch.last().map(|last| TrackAddress { volume: last.volume, track: last.track + 1 });
            inner.destage_from.set(next);
            for track in &batch {
                if self.destage(*track).await.is_err() {
                    inner.handle.sleep(idle_delay).await;
                    break;
                }
            }
        }
    }

    /// Takes over what a lost home had committed. Its memory must have been revoked; fencing must be done (PROTOCOLS 4.3). A block
    /// whose bytes no longer have their CRC is counted and left out: memory failed.
    pub async fn adopt(&self, area: &MirrorArea) {
        let inner = &*self.inner;
        for block in area.adoptable() {
            let frame = loop {
                let seen = inner.pool.freed().generation();
                if let Some(taken) = self.try_take(1) {
                    break taken;
                }
                inner.pool.freed().changed_since(seen).await;
            };
            self.adopt_block(area.memory(), block, frame.frames()[0]);
        }
        inner.moved.notify_all();
    }

    fn adopt_block(&self, memory: &Memory, block: Adoptable, frame: FrameIndex) {
        let inner = &*self.inner;
        let to = frame.offset();
        dyad_matrix::memory::copy(memory, block.offset, inner.pool.memory(), to, FRAME_BYTES as u64)
            .expect("frames lie in their memories");
        if inner.pool.crc(frame) != block.crc && !is_active(Mutation::AdoptWithoutChecking) {
            return self.count(|counters| counters.damaged_blocks += 1);
        }
        inner.pool.hold(frame);
        let adopted = Block { frame, crc: block.crc, version: block.version, state: BlockState::Dirty(None) };
        self.install(block.track, block.index, adopted);
        self.count(|counters| counters.adopted_blocks += 1);
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
        if link.commit(write, version, mirror).await.is_err() {
            return false;
        }
        // The partner has it: it is committed, whatever happened to us meanwhile. If we are not the home any more, nobody reads our slots.
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
        self.count(|counters| counters.mirrored_writes += 1);
        inner.moved.notify_all();
        true
    }

    async fn write_solo(&self, epoch: Epoch, write: &Write<'_>) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let version = self.next_version(epoch);
        if is_active(Mutation::SoloAcknowledgesFromMemory) {
            self.install_all(write, version, BlockState::Dirty(None));
            inner.moved.notify_all();
            return Ok(());
        }
        self.begin_media_write(write.range.track).await;
        let written = self.group_write(write.range, &write.frames.segments()).await;
        inner.slots.borrow_mut().set_destaging(write.range.track, false);
        inner.moved.notify_all();
        inner.pool.freed().notify_all();
        written?;
        self.install_all(write, version, BlockState::Clean);
        if !inner.outcomes.insert(write.command, write.oldest) {
            return Err(CacheError::Credits);
        }
        self.count(|counters| counters.solo_writes += 1);
        Ok(())
    }

    /// Writes the dirty blocks of a track to the group, then tells the partner to forget them.
    async fn destage(&self, track: TrackAddress) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.begin_media_write(track).await;
        let result = self.destage_exclusively(track).await;
        inner.slots.borrow_mut().set_destaging(track, false);
        inner.moved.notify_all();
        // What is clean now can be given up to whoever waits for frames.
        inner.pool.freed().notify_all();
        result
    }

    async fn destage_exclusively(&self, track: TrackAddress) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let dirty = match inner.slots.borrow().get(track) {
            Some(slot) if slot.is_dirty() => {
                slot.blocks.map(|block| block.filter(|block| block.state != BlockState::Clean))
            }
            Some(_) | None => return Ok(()),
        };
        // Held from the snapshot to the end: newer writes may replace these blocks meanwhile, and let go of their frames.
        let _pinned = inner.pool.pin(dirty.iter().flatten().map(|block| block.frame));
        let mut first = 0;
        for run in dirty.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let start = first;
            first += run.len();
            if run[0].is_none() {
                continue;
            }
            let range = TrackRange::new(track, start, run.len()).expect("a run lies in its track");
            let segments = joined(run.iter().flatten().map(|block| inner.pool.segment(block.frame)));
            if !is_active(Mutation::CleanBeforeDurable) {
                self.group_write(range, &segments).await?;
            }
        }
        let durable = dirty.iter().enumerate().filter_map(|(index, block)| block.map(|block| (index, block.version)));
        let link = self.link();
        if let (Some(link), Regime::Mirrored(epoch)) = (&link, inner.authority.regime()) {
            let blocks = durable
                .clone()
                .map(|(index, version)| ReleasedBlock { index: u8::try_from(index).expect("16 blocks"), version });
            // If the link ends here the blocks stay dirty, and are written once more.
            link.release(epoch, track, blocks.collect()).await.map_err(|_| CacheError::Undecided)?;
        }
        for (index, version) in durable {
            let freed = inner.slots.borrow_mut().mark_clean(track, index, version);
            if let (Some(frame), Some(link)) = (freed, &link) {
                link.give_back(frame);
            }
            self.count(|counters| counters.destaged_blocks += 1);
        }
        Ok(())
    }

    async fn begin_media_write(&self, track: TrackAddress) {
        let inner = &*self.inner;
        loop {
            let seen = inner.moved.generation();
            let busy = inner.slots.borrow().get(track).is_some_and(|slot| slot.destaging);
            if !busy {
                inner.slots.borrow_mut().set_destaging(track, true);
                return;
            }
            inner.moved.changed_since(seen).await;
        }
    }

    async fn group_write(&self, range: TrackRange, segments: &[Segment]) -> Result<(), CacheError> {
        let lba = self.group_lba(range)?;
        let fua = !is_active(Mutation::CleanInDeviceCache);
        self.inner.group.write(lba, segments, fua).await.map_err(|error| self.group_failed(error))
    }

    async fn fill_from_group(&self, range: TrackRange, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let present = match inner.slots.borrow().get(range.track) {
            Some(slot) => slot.blocks.map(|block| block.is_some()),
            None => [false; TRACK_BLOCKS],
        };
        let mut first = range.first();
        for run in present[range.indices()].chunk_by(|a, b| a == b) {
            let start = first;
            first += run.len();
            if run[0] {
                continue;
            }
            let missing = TrackRange::new(range.track, start, run.len()).expect("a run lies in its track");
            let pinned = self.take_frames(run.len(), deadline).await?;
            let lba = self.group_lba(missing)?;
            inner.group.read(lba, &pinned.segments()).await.map_err(|error| self.group_failed(error))?;
            for (frame, index) in pinned.frames().iter().zip(missing.indices()) {
                inner.pool.hold(*frame);
                let version = Version { epoch: Epoch(0), sequence: 0 };
                self.install(
                    range.track,
                    index,
                    Block { frame: *frame, crc: inner.pool.crc(*frame), version, state: BlockState::Clean },
                );
            }
        }
        Ok(())
    }

    /// The caller's turn at the track.
    async fn turn(&self, track: TrackAddress, deadline: Time) -> Result<KeyGuard<TrackAddress>, CacheError> {
        self.inner.handle.timeout_at(deadline, self.inner.locks.lock(track)).await.map_err(|_| CacheError::Undecided)
    }

    fn pin_if_present(&self, range: TrackRange) -> Option<Pinned> {
        let mut slots = self.inner.slots.borrow_mut();
        let blocks = &slots.touch(range.track)?.blocks[range.indices()];
        if blocks.iter().any(Option::is_none) {
            return None;
        }
        Some(self.inner.pool.pin(blocks.iter().flatten().map(|block| block.frame)))
    }

    /// Makes the write the contents of its blocks.
    fn install_all(&self, write: &Write<'_>, version: Version, state: BlockState) {
        for (at, index) in write.range.indices().enumerate() {
            let frame = write.frames.frames()[at];
            self.inner.pool.hold(frame);
            self.install(write.range.track, index, Block { frame, crc: write.crcs[at], version, state });
        }
    }

    /// Installs a block that holds its frame; lets go of the frame that was there and returns its state.
    fn install(&self, track: TrackAddress, index: usize, block: Block) -> Option<BlockState> {
        let before = self.inner.slots.borrow_mut().install(track, index, block)?;
        self.inner.pool.let_go(before.frame);
        Some(before.state)
    }

    /// Takes free frames; waits for destage if there are none.
    ///
    /// # Errors
    /// [`CacheError::Undecided`]: there were none in time.
    pub async fn take_frames(&self, count: usize, deadline: Time) -> Result<Pinned, CacheError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.pool.freed().generation();
            if let Some(frames) = self.try_take(count) {
                return Ok(frames);
            }
            // Full of dirty or busy frames: the host waits for destage (back-pressure), up to its deadline.
            let freed = inner.pool.freed().changed_since(seen);
            inner.handle.timeout_at(deadline, freed).await.map_err(|_| CacheError::Undecided)?;
        }
    }

    fn try_take(&self, count: usize) -> Option<Pinned> {
        let inner = &*self.inner;
        let enough = || inner.pool.free_count() >= count;
        if !enough() && !inner.slots.borrow_mut().evict(|frame| inner.pool.let_go(frame), enough) {
            return None;
        }
        inner.pool.try_take(count)
    }

    async fn wait_until_readable(&self, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.authority.changes().generation();
            if inner.authority.may_read(inner.handle.now()) {
                return Ok(());
            }
            if inner.authority.regime() == Regime::Elsewhere {
                return Err(CacheError::NotHome);
            }
            self.wait_for_change(seen, deadline).await?;
        }
    }

    async fn wait_for_change(&self, seen: u64, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        inner
            .handle
            .timeout_at(deadline, inner.authority.changes().changed_since(seen))
            .await
            .map_err(|_| CacheError::Undecided)?;
        Ok(())
    }

    fn next_dirty(&self, volume: VolumeId, from: Option<TrackAddress>) -> Option<TrackAddress> {
        self.inner.slots.borrow().next_dirty(volume, from.map_or(0, |from| from.track))
    }

    fn check_range(&self, range: TrackRange) -> Result<(), CacheError> {
        self.group_lba(range).map(|_| ())
    }

    fn group_lba(&self, range: TrackRange) -> Result<Lba, CacheError> {
        let place = self.inner.volumes.get(&range.track.volume).ok_or(CacheError::OutOfRange)?;
        let end = range.lba().0 + range.count() as u64;
        if end > place.blocks {
            return Err(CacheError::OutOfRange);
        }
        Ok(Lba(place.base.0 + range.lba().0))
    }

    fn group_failed(&self, error: GroupError) -> CacheError {
        if error == GroupError::Fenced {
            self.inner.authority.report_fenced();
            return CacheError::NotHome;
        }
        CacheError::Group(error)
    }

    fn next_version(&self, epoch: Epoch) -> Version {
        let sequence = self.inner.sequence.get() + 1;
        self.inner.sequence.set(sequence);
        Version { epoch, sequence }
    }

    fn count(&self, change: impl FnOnce(&mut CacheCounters)) {
        let mut counters = self.inner.counters.get();
        change(&mut counters);
        self.inner.counters.set(counters);
    }
}
