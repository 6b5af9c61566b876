//! Slices that were let go: out of use, then zeroed, then free.

use dyad_nvme::types::BlockCount;

use super::{Pool, first_block};
use crate::pool::ground::Ground;
use crate::pool::{PoolError, SliceNumber};
use crate::raid::GroupError;

/// Slices that are kept zeroed ahead of need, where any are free.
const READY: usize = 8;

impl<G: Ground> Pool<G> {
    /// Makes slices that were let go fit for use, and passes their deallocation to the devices, as long as the pool is open. A service task.
    ///
    /// # Errors
    /// Only ever returns [`PoolError::Group`], when the group is lost.
    pub async fn serve(&self) -> PoolError {
        loop {
            let seen = self.0.work.generation();
            let due = {
                let table = self.0.table.borrow();
                let freed = !(table.limbo.is_empty() && table.dirty.is_empty());
                freed || (table.ready() < READY && !table.stale.is_empty())
            };
            let outcome = match due {
                true => {
                    let _turn = self.0.recycler.acquire(1).await;
                    self.recycle().await
                }
                false => Ok(()),
            };
            match outcome {
                Err(error @ (GroupError::Fenced | GroupError::Lost)) => return error.into(),
                Ok(()) if due => {}
                // A slice that cannot be zeroed now waits until something else happens.
                Ok(()) | Err(GroupError::Media | GroupError::Unrecorded | GroupError::Invalid) => {
                    self.0.work.changed_since(seen).await;
                }
            }
        }
    }

    /// Takes one slice a step nearer to being clean. The caller has the recycler's turn.
    async fn recycle(&self) -> Result<(), GroupError> {
        let leaving = self.0.table.borrow().limbo.len();
        if leaving > 0 {
            self.0.grace.pass().await;
            let mut table = self.0.table.borrow_mut();
            let table = &mut *table;
            table.dirty.extend(table.limbo.drain(..leaving));
        }
        let Some(slice) = self.0.table.borrow().next_dirty() else { return Ok(()) };
        let first = first_block(&self.0.table.borrow(), slice);
        let zeroed = self.0.ground.zero(first, BlockCount(self.slice_blocks())).await;
        self.0.table.borrow_mut().zeroed(zeroed.is_ok());
        self.count(|c| c.zeroed += u64::from(zeroed.is_ok()));
        zeroed
    }

    /// A slice of zeros. The caller has an entry with a slice kept for it.
    pub(super) async fn clean_slice(&self) -> Result<SliceNumber, GroupError> {
        loop {
            if let Some(slice) = self.0.table.borrow_mut().take_clean() {
                return Ok(slice);
            }
            let _turn = self.0.recycler.acquire(1).await;
            if self.0.table.borrow().ready() == 0 {
                self.recycle().await?;
                assert!(self.0.table.borrow().ready() > 0, "a slice is kept for every entry that waits for one");
            }
        }
    }
}
