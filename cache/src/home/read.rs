//! Reads: hits from frames, misses from the group, one miss of a track at a time; what a sequential stream will ask for next is read before.
//!
//! A large read of a stream that finds nothing goes past the slots: its frames are given back as soon as the host has the bytes. What was read ahead
//! is given up as soon as a stream has read it. So a scan takes hardly more frames than it has under way.

use dyad_matrix::Provider;
use dyad_matrix::frames::{Pinned, joined};
use dyad_reactor::Time;

use super::{Cache, CacheError, Transfer};
use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, TrackRange, Version};
use crate::slots::{Block, BlockState};
use crate::store::Store;

/// What media has, in slots.
const FROM_MEDIA: Version = Version { epoch: Epoch(0), sequence: 0 };

impl<S: Store, P: Provider> Cache<S, P> {
    /// Reads blocks of one track.
    ///
    /// # Errors
    /// [`CacheError`]; nothing was promised to the host.
    pub async fn read(&self, range: TrackRange, deadline: Time, host: &impl Transfer) -> Result<(), CacheError> {
        let sequential = self.read_on(range)?;
        self.wait_until_readable(deadline).await?;
        if let Some(pinned) = self.pin_if_present(range) {
            self.count(|counters| counters.read_hits += 1);
            let delivered = host.deliver(&pinned.segments()).await;
            if sequential {
                self.give_up_read_ahead(range);
            }
            return delivered;
        }
        self.count(|counters| counters.read_misses += 1);
        if sequential && range.count() == TRACK_BLOCKS {
            self.read_past(range, deadline, host).await
        } else {
            let pinned = self.read_miss(range, deadline).await?;
            host.deliver(&pinned.segments()).await
        }
    }

    /// Notes the read, and has read ahead what it promises. Whether it is part of a stream.
    fn read_on(&self, range: TrackRange) -> Result<bool, CacheError> {
        let inner = &*self.inner;
        let tracks = self.volume(range)?.blocks / TRACK_BLOCKS as u64;
        let advice = inner.streams.borrow_mut().read(range, tracks, inner.config.stripe_tracks);
        for track in advice.ahead {
            // If there is no room, media is busy enough.
            let _ = inner.read_ahead.try_push(TrackAddress { track, ..range.track });
        }
        Ok(advice.sequential)
    }

    /// Whoever misses the same blocks meanwhile waits for this turn and finds them.
    async fn read_miss(&self, range: TrackRange, deadline: Time) -> Result<Pinned, CacheError> {
        let _turn = self.turn(range.track, deadline).await?;
        loop {
            self.wait_until_readable(deadline).await?;
            self.fill_from_group(range, deadline).await?;
            // Blocks that were here before may have been given up while others were read.
            if let Some(pinned) = self.pin_if_present(range) {
                return Ok(pinned);
            }
            if self.inner.handle.now() >= deadline {
                return Err(CacheError::Undecided);
            }
        }
    }

    /// Reads a track without a place in the slots; blocks that have one are newer than media.
    async fn read_past(&self, range: TrackRange, deadline: Time, host: &impl Transfer) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let _turn = self.turn(range.track, deadline).await?;
        self.wait_until_readable(deadline).await?;
        let read = self.take_frames(range.count(), deadline).await?;
        let lba = self.group_lba(range)?;
        // Before media is read: what is clean now may be given up, and then overwritten there, but not while this turn lasts.
        let present = inner.slots.borrow().get(range.track).map_or([None; TRACK_BLOCKS], |slot| slot.blocks);
        let present = present.map(|block| block.map(|block| block.frame));
        let _present = inner.pool.pin(present.iter().flatten().copied());
        inner.store.read(lba, &read.segments()).await.map_err(|error| self.group_failed(error))?;
        self.count(|counters| {
            counters.bypassed_reads += 1;
            counters.read_blocks += range.count() as u64;
        });
        let frames = range.indices().zip(read.frames()).map(|(index, read)| present[index].unwrap_or(*read));
        host.deliver(&joined(frames.map(|frame| inner.pool.segment(frame)))).await
    }

    fn give_up_read_ahead(&self, range: TrackRange) {
        let inner = &*self.inner;
        if range.indices().end == TRACK_BLOCKS {
            inner.slots.borrow_mut().give_up_ahead(range.track, |frame| inner.pool.let_go(frame));
        }
    }

    /// Service task: reads what streams will ask for. Several may run.
    pub async fn run_read_ahead(self) {
        let inner = &*self.inner;
        loop {
            let track = inner.read_ahead.next().await;
            // Whoever has the turn reads or writes it: then it is not worth waiting.
            let Some(_turn) = inner.locks.try_lock(track) else { continue };
            let untouched = inner.slots.borrow().get(track).is_none();
            if !untouched || !inner.authority.may_read(inner.handle.now()) {
                continue;
            }
            let Some(frames) = self.try_take(TRACK_BLOCKS) else { continue };
            let range = TrackRange::whole(track);
            let Ok(lba) = self.group_lba(range) else { continue };
            if inner.store.read(lba, &frames.segments()).await.is_err() {
                // Whoever asks for it will see the error.
                continue;
            }
            for (index, frame) in range.indices().zip(frames.frames()) {
                inner.pool.hold(*frame);
                let crc = inner.pool.crc(*frame);
                self.install(track, index, Block { frame: *frame, crc, version: FROM_MEDIA, state: BlockState::Clean });
            }
            inner.slots.borrow_mut().set_ahead(track);
            self.count(|counters| counters.read_ahead_blocks += TRACK_BLOCKS as u64);
        }
    }

    pub(super) async fn fill_from_group(&self, range: TrackRange, deadline: Time) -> Result<(), CacheError> {
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
            inner.store.read(lba, &pinned.segments()).await.map_err(|error| self.group_failed(error))?;
            self.count(|counters| counters.read_blocks += run.len() as u64);
            for (frame, index) in pinned.frames().iter().zip(missing.indices()) {
                inner.pool.hold(*frame);
                let crc = inner.pool.crc(*frame);
                let block = Block { frame: *frame, crc, version: FROM_MEDIA, state: BlockState::Clean };
                self.install(range.track, index, block);
            }
        }
        Ok(())
    }
}
