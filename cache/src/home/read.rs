//! Reads: hits from frames, misses from the group, one miss of a track at a time.

use dyad_matrix::Provider;
use dyad_reactor::Time;

use super::{Cache, CacheError, Transfer};
use crate::address::{Epoch, TRACK_BLOCKS, TrackRange, Version};
use crate::slots::{Block, BlockState};
use crate::store::Store;

impl<S: Store, P: Provider> Cache<S, P> {
    /// Reads blocks of one track.
    ///
    /// # Errors
    /// [`CacheError`]; nothing was promised to the host.
    pub async fn read(&self, range: TrackRange, deadline: Time, host: &impl Transfer) -> Result<(), CacheError> {
        let inner = &*self.inner;
        self.volume(range)?;
        self.wait_until_readable(deadline).await?;
        if let Some(pinned) = self.pin_if_present(range) {
            self.count(|counters| counters.read_hits += 1);
            return host.deliver(&pinned.segments()).await;
        }
        self.count(|counters| counters.read_misses += 1);
        // Whoever misses the same blocks meanwhile waits for this turn and finds them.
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
}
