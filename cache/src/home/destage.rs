//! Destage: dirty blocks to media, in address order, whole stripes first; then the partner forgets them and the vault may retire them.
//!
//! A stripe that is dirty as a whole needs no reads below (parity is computed from what is written), so those within reach of the cursor go first;
//! now and then the cursor itself takes what is next in order, whole or not, so that nothing waits for ever. While little is dirty, dirty blocks rest
//! a while: more of the stripe may come.

use std::time::Duration;

use dyad_matrix::frames::Pinned;
use dyad_matrix::{Provider, Segment};
use dyad_nvme::types::Lba;
use dyad_reactor::mutation::{Mutation, is_active};

use super::{Cache, CacheError, Policy};
use crate::address::{TRACK_BLOCKS, TrackAddress, TrackRange};
use crate::authority::Regime;
use crate::record::{Release, ReleasedBlock};
use crate::slots::{Block, BlockState, Slot, SlotTable};
use crate::store::Store;

/// Most tracks of a stripe: 1 MiB of data.
pub(super) const STRIPE_TRACKS_MAX: u64 = 16;

/// Dirty tracks that are looked at for a whole stripe.
const LOOK_AHEAD: usize = 64;

/// Whole stripes that go before what is next in order.
const WHOLE_IN_A_ROW_MAX: usize = 8;

type DirtyBlocks = [Option<Block>; TRACK_BLOCKS];

/// Room for one track, made once: lanes are small.
pub(super) struct Page {
    dirty: DirtyBlocks,
    segments: Vec<Segment>,
}

impl Default for Page {
    fn default() -> Self {
        Self { dirty: [None; TRACK_BLOCKS], segments: Vec::with_capacity(TRACK_BLOCKS) }
    }
}

/// What one destager works on: room for a stripe, made once.
struct Batch {
    tracks: Vec<TrackAddress>,
    dirty: Vec<DirtyBlocks>,
    pinned: Vec<Pinned>,
    segments: Vec<Segment>,
    whole_in_a_row: usize,
}

impl Batch {
    fn new(stripe_tracks: u64) -> Self {
        let tracks = usize::try_from(stripe_tracks).expect("few tracks");
        Self {
            tracks: Vec::with_capacity(tracks),
            dirty: Vec::with_capacity(tracks),
            pinned: Vec::with_capacity(tracks),
            segments: Vec::with_capacity(tracks * TRACK_BLOCKS),
            whole_in_a_row: 0,
        }
    }

    /// Chooses the tracks to write next; returns where to go on.
    fn pick(&mut self, slots: &SlotTable, from: Option<TrackAddress>, stripe_tracks: u64) -> Option<TrackAddress> {
        self.tracks.clear();
        let first = next_idle(slots, from).or_else(|| next_idle(slots, None))?;
        let mut stripe = first.track / stripe_tracks;
        let mut at = TrackAddress { track: stripe * stripe_tracks, ..first };
        let mut looks = if self.whole_in_a_row < WHOLE_IN_A_ROW_MAX { LOOK_AHEAD } else { 0 };
        let whole = loop {
            if is_whole(slots, at, stripe_tracks) {
                break true;
            }
            let after = TrackAddress { track: at.track + stripe_tracks, ..at };
            let Some(next) = next_idle(slots, Some(after)).filter(|_| looks > 0) else { break false };
            looks -= 1;
            at = TrackAddress { track: next.track - next.track % stripe_tracks, ..next };
        };
        if whole {
            self.whole_in_a_row += 1;
        } else {
            self.whole_in_a_row = 0;
            at = TrackAddress { track: stripe * stripe_tracks, ..first };
        }
        stripe = at.track / stripe_tracks;
        let tracks = (at.track..(stripe + 1) * stripe_tracks).map(|track| TrackAddress { track, ..at });
        self.tracks
            .extend(tracks.filter(|track| slots.get(*track).is_some_and(|slot| slot.is_dirty() && !slot.destaging)));
        // What was passed over for a whole stripe is still next in order.
        Some(if whole { first } else { TrackAddress { track: (stripe + 1) * stripe_tracks, ..at } })
    }
}

fn next_idle(slots: &SlotTable, from: Option<TrackAddress>) -> Option<TrackAddress> {
    let mut slot = slots.next_dirty(from)?;
    while slot.destaging {
        slot = slots.next_dirty(Some(slot.track.next()))?;
    }
    Some(slot.track)
}

fn is_whole(slots: &SlotTable, first: TrackAddress, stripe_tracks: u64) -> bool {
    let mut tracks = (first.track..first.track + stripe_tracks).map(|track| TrackAddress { track, ..first });
    tracks.all(|track| slots.get(track).is_some_and(|slot| slot.is_wholly_dirty() && !slot.destaging))
}

impl<S: Store, P: Provider> Cache<S, P> {
    /// Service task: writes dirty tracks to the group. Several may run.
    pub async fn run_destage(self, idle_delay: Duration) {
        let inner = &*self.inner;
        let mut batch = Batch::new(inner.config.stripe_tracks);
        loop {
            let (moved, changed) = (inner.moved.generation(), inner.authority.changes().generation());
            let regime = inner.authority.regime();
            if !matches!(regime, Regime::Mirrored(_) | Regime::Solo(_)) {
                inner.authority.changes().changed_since(changed).await;
                continue;
            }
            if self.dirty_blocks() == 0 || inner.journalling.get() {
                // What cannot be done now is done another time: nobody's data depends on it.
                let _ = self.tidy_vault().await;
                inner.moved.changed_since(moved).await;
                continue;
            }
            // Unless this memory is all there is.
            let may_rest = matches!(regime, Regime::Mirrored(_)) || self.is_settled();
            if self.dirty_blocks() <= inner.config.destage_above && may_rest {
                self.rest(idle_delay).await;
            }
            let next = batch.pick(&inner.slots.borrow(), inner.destage_from.get(), inner.config.stripe_tracks);
            inner.destage_from.set(next);
            if batch.tracks.is_empty() {
                // Others are at it.
                inner.moved.changed_since(moved).await;
            } else if self.destage_batch(&mut batch).await.is_err() {
                inner.handle.sleep(idle_delay).await;
            }
        }
    }

    /// Until it is time to destage what is there, or too much is.
    async fn rest(&self, delay: Duration) {
        let inner = &*self.inner;
        let seen = inner.pressure.generation();
        if self.dirty_blocks() <= inner.config.destage_above {
            // Time is up: so it is time.
            let _ = inner.handle.timeout_at(inner.handle.now() + delay, inner.pressure.changed_since(seen)).await;
        }
    }

    /// Something became dirty.
    pub(super) fn dirtied(&self) {
        let inner = &*self.inner;
        inner.moved.notify_all();
        if self.dirty_blocks() > inner.config.destage_above {
            inner.pressure.notify_all();
        }
    }

    /// When everything is on media the vault has nothing that is older, and volumes that have nothing in one memory only have no mark.
    async fn tidy_vault(&self) -> Result<(), CacheError> {
        if self.dirty_blocks() == 0 {
            self.retire_stale().await?;
        }
        for place in self.inner.volumes.values().filter(|place| place.policy == Policy::Unmirrored) {
            if self.is_marked(place.id) {
                self.clear_mark(place.id).await?;
            }
        }
        Ok(())
    }

    /// Writes the dirty blocks of a track to the group, then tells the partner to forget them.
    pub(super) async fn destage(&self, track: TrackAddress) -> Result<(), CacheError> {
        self.begin_media_write(track).await;
        let result = self.destage_exclusively(track).await;
        self.end_media_write(track);
        result
    }

    async fn destage_exclusively(&self, track: TrackAddress) -> Result<(), CacheError> {
        let mut page = self.inner.pages.borrow_mut().pop().unwrap_or_default();
        let pinned = self.pin_dirty(track, &mut page.dirty);
        let Page { dirty, segments } = &mut *page;
        let mut result = self.write_runs(track, dirty, segments).await;
        if result.is_ok() {
            result = self.finish(track, dirty).await;
        }
        drop(pinned);
        self.inner.pages.borrow_mut().push(page);
        result
    }

    /// Writes the tracks of a stripe, with one command if all of it is dirty.
    async fn destage_batch(&self, batch: &mut Batch) -> Result<(), CacheError> {
        // In address order, like everybody who takes more than one.
        for track in &batch.tracks {
            self.begin_media_write(*track).await;
        }
        let result = self.destage_batch_exclusively(batch).await;
        batch.pinned.clear();
        for track in &batch.tracks {
            self.end_media_write(*track);
        }
        result
    }

    async fn destage_batch_exclusively(&self, batch: &mut Batch) -> Result<(), CacheError> {
        batch.dirty.clear();
        batch.segments.clear();
        for track in &batch.tracks {
            let mut dirty = [None; TRACK_BLOCKS];
            batch.pinned.push(self.pin_dirty(*track, &mut dirty));
            self.add_segments(&dirty, &mut batch.segments);
            batch.dirty.push(dirty);
        }
        let all = batch.tracks.len() as u64 == self.inner.config.stripe_tracks;
        if all && batch.dirty.iter().flatten().all(Option::is_some) {
            if !is_active(Mutation::CleanBeforeDurable) {
                self.store_write(self.group_lba(TrackRange::whole(batch.tracks[0]))?, &batch.segments).await?;
            }
            self.count(|counters| counters.destaged_stripes += 1);
        } else {
            for (track, dirty) in batch.tracks.iter().zip(&batch.dirty) {
                self.write_runs(*track, dirty, &mut batch.segments).await?;
            }
        }
        for (track, dirty) in batch.tracks.iter().zip(&batch.dirty) {
            self.finish(*track, dirty).await?;
        }
        Ok(())
    }

    /// The dirty blocks as they are now. Held to the end: newer writes may replace them meanwhile, and let go of their frames.
    fn pin_dirty(&self, track: TrackAddress, dirty: &mut DirtyBlocks) -> Pinned {
        *dirty = self.inner.slots.borrow().get(track).map_or([None; TRACK_BLOCKS], Slot::dirty_blocks);
        self.inner.pool.pin(dirty.iter().flatten().map(|block| block.frame))
    }

    async fn write_runs(
        &self,
        track: TrackAddress,
        dirty: &DirtyBlocks,
        segments: &mut Vec<Segment>,
    ) -> Result<(), CacheError> {
        let mut first = 0;
        for run in dirty.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let start = first;
            first += run.len();
            if run[0].is_none() || is_active(Mutation::CleanBeforeDurable) {
                continue;
            }
            let range = TrackRange::new(track, start, run.len()).expect("a run lies in its track");
            segments.clear();
            self.add_segments(run, segments);
            self.group_write(range, segments).await?;
        }
        Ok(())
    }

    /// Adds the blocks' frames, adjacent ones joined.
    fn add_segments(&self, blocks: &[Option<Block>], segments: &mut Vec<Segment>) {
        for segment in blocks.iter().flatten().map(|block| self.inner.pool.segment(block.frame)) {
            match segments.last_mut() {
                Some(last) if last.memory == segment.memory && last.offset + u64::from(last.len) == segment.offset => {
                    last.len += segment.len;
                }
                _ => segments.push(segment),
            }
        }
    }

    /// These blocks are on media: the partner forgets them, then they are clean.
    async fn finish(&self, track: TrackAddress, dirty: &DirtyBlocks) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let durable = dirty.iter().enumerate().filter_map(|(index, block)| block.map(|block| (index, block)));
        self.settle(track, durable.clone().map(|(index, block)| (index, block.version)));
        let mirrored = durable.clone().filter(|(_, block)| matches!(block.state, BlockState::Dirty(Some(_))));
        let link = self.link();
        if let (Some(link), Regime::Mirrored(epoch)) = (&link, inner.authority.regime())
            && mirrored.clone().next().is_some()
        {
            let blocks = mirrored.map(|(index, block)| ReleasedBlock {
                index: u8::try_from(index).expect("16 blocks"),
                version: block.version,
            });
            // If the link ends here the blocks stay dirty, and are written once more.
            let release = Release { epoch, track, blocks: blocks.collect() };
            link.release(&release).await.map_err(|_| CacheError::Undecided)?;
        }
        let mut count = 0;
        for (index, block) in durable {
            let freed = inner.slots.borrow_mut().mark_clean(track, index, block.version);
            if let (Some(frame), Some(link)) = (freed, &link) {
                link.give_back(frame);
            }
            count += 1;
        }
        if count > 0 {
            inner.pace.destaged(count, inner.handle.now());
            self.count(|counters| {
                counters.destaged_blocks += count as u64;
                counters.destage_blocks.add(count as u64);
            });
        }
        Ok(())
    }

    /// Waits until nobody writes the track to media, and keeps others from it.
    pub(super) async fn begin_media_write(&self, track: TrackAddress) {
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

    pub(super) fn end_media_write(&self, track: TrackAddress) {
        let inner = &*self.inner;
        inner.slots.borrow_mut().set_destaging(track, false);
        inner.moved.notify_all();
        // What is clean now can be given up to whoever waits for frames.
        inner.pool.freed().notify_all();
    }

    pub(super) async fn group_write(&self, range: TrackRange, segments: &[Segment]) -> Result<(), CacheError> {
        self.store_write(self.group_lba(range)?, segments).await
    }

    async fn store_write(&self, lba: Lba, segments: &[Segment]) -> Result<(), CacheError> {
        let fua = !is_active(Mutation::CleanInDeviceCache);
        self.inner.store.write(lba, segments, fua).await.map_err(|error| self.group_failed(error))
    }
}
