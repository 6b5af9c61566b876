//! Frames: taken from the free ones or from clean blocks, pinned for transfers, installed in slots.

use dyad_matrix::Provider;
use dyad_matrix::frames::Pinned;
use dyad_reactor::Time;

use super::{Cache, CacheError};
use crate::address::{TrackAddress, TrackRange, Version};
use crate::link::Write;
use crate::slots::{Block, BlockState};
use crate::store::Store;

impl<S: Store, P: Provider> Cache<S, P> {
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

    /// Takes free frames, if there are any now.
    #[must_use]
    pub fn try_take(&self, count: usize) -> Option<Pinned> {
        let inner = &*self.inner;
        let enough = || inner.pool.free_count() >= count;
        if !enough() && !inner.slots.borrow_mut().evict(|frame| inner.pool.let_go(frame), enough) {
            return None;
        }
        inner.pool.try_take(count)
    }

    /// The blocks, if all of them are in the cache.
    pub(super) fn pin_if_present(&self, range: TrackRange) -> Option<Pinned> {
        let mut slots = self.inner.slots.borrow_mut();
        let blocks = &slots.touch(range)?.blocks[range.indices()];
        if blocks.iter().any(Option::is_none) {
            return None;
        }
        Some(self.inner.pool.pin(blocks.iter().flatten().map(|block| block.frame)))
    }

    /// Makes the write the contents of its blocks.
    pub(super) fn install_all(&self, write: &Write<'_>, version: Version, state: BlockState) {
        for (at, index) in write.range.indices().enumerate() {
            let frame = write.frames.frames()[at];
            self.inner.pool.hold(frame);
            self.install(write.range.track, index, Block { frame, crc: write.crcs[at], version, state });
        }
    }

    /// Installs a block that holds its frame; lets go of the frame that was there and returns its state.
    pub(super) fn install(&self, track: TrackAddress, index: usize, block: Block) -> Option<BlockState> {
        let before = self.inner.slots.borrow_mut().install(track, index, block)?;
        self.inner.pool.let_go(before.frame);
        Some(before.state)
    }
}
