//! How changes are made: durable in the log first, and then true in the table.

use std::cell::Cell;

use super::Pool;
use crate::format::VolumeUuid;
use crate::format::share::{Change, RECORDS, Record};
use crate::pool::entries::Entry;
use crate::pool::ground::Ground;
use crate::pool::log::Totals;
use crate::pool::{PoolError, SliceNumber};
use crate::raid::GroupError;

impl<G: Ground> Pool<G> {
    /// Gives slices to entries that somebody waits for. The caller has the turn.
    pub(super) async fn map_wanted(&self) -> Result<(), PoolError> {
        self.alive()?;
        let unfinished = Unfinished(&self.0.failed);
        let mut records = Vec::<Record>::with_capacity(RECORDS);
        let mut failed = None;
        while records.len() < RECORDS {
            let Some((at, entry)) = self.0.wanted.borrow_mut().pop_front() else { break };
            let Some(volume) = self.waiting(at, entry, &records) else { continue };
            match self.clean_slice().await {
                Ok(slice) => add_mapped(&mut records, volume, entry, slice),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if !records.is_empty() {
            self.commit(&records).await?;
            self.0.work.notify_all();
        }
        std::mem::forget(unfinished);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whose entry that is, if it has a slice kept for it and gets none from `records`.
    fn waiting(&self, at: usize, entry: u32, records: &[Record]) -> Option<VolumeUuid> {
        let table = self.0.table.borrow();
        let share = table.share(at)?;
        let volume = share.spec().volume;
        let covers = |record: &Record| match record.change {
            Change::Mapped { first, entries, .. } => {
                record.volume == volume && entry.checked_sub(first).is_some_and(|i| i < entries)
            }
            Change::Share { .. } | Change::Unmapped { .. } | Change::Gone => false,
        };
        let waits = share.entry(usize::try_from(entry).ok()?) == Entry::Reserved && !records.iter().any(covers);
        waits.then_some(volume)
    }

    /// Makes changes durable, then true. The caller has the turn.
    pub(super) async fn commit(&self, records: &[Record]) -> Result<(), PoolError> {
        self.alive()?;
        let unfinished = Unfinished(&self.0.failed);
        let (slice_stripes, log) = (self.0.slice_stripes, &self.0.log);
        let totals = || Totals { slice_stripes, fresh: self.0.table.borrow().fresh() };
        let written = async {
            if log.is_full() {
                let snapshot = self.0.table.borrow().snapshot();
                log.begin(totals(), &snapshot).await?;
                self.count(|c| c.logs += 1);
            }
            log.append(totals(), records).await
        };
        let written = written.await;
        std::mem::forget(unfinished);
        if let Err(error) = written {
            self.0.failed.set(Some(error));
            return Err(error.into());
        }
        self.count(|c| c.appends += 1);
        let mut table = self.0.table.borrow_mut();
        for record in records {
            table.apply(record).expect("a change that was checked");
        }
        if !table.limbo.is_empty() {
            self.0.work.notify_all();
        }
        Ok(())
    }
}

/// Closes the pool if it is dropped.
struct Unfinished<'a>(&'a Cell<Option<GroupError>>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.0.get().is_none() {
            self.0.set(Some(GroupError::Invalid));
        }
    }
}

/// Adds an entry to the changes, to the last one if it goes on there.
fn add_mapped(records: &mut Vec<Record>, volume: VolumeUuid, entry: u32, slice: SliceNumber) {
    if let Some(Record { volume: of, change: Change::Mapped { first, entries, slice: from } }) = records.last_mut()
        && (*of, *first + *entries, from.0 + *entries) == (volume, entry, slice.0)
    {
        *entries += 1;
    } else {
        records.push(Record { volume, change: Change::Mapped { first: entry, entries: 1, slice } });
    }
}
