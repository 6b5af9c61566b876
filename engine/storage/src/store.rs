//! Changing pages: the one way in which bytes of the database change.
//!
//! A change of one page or several is one log record. Under the latches of all its pages the caller looks at them and decides what to do;
//! the record is appended, the pages are changed, and carry its LSN. So pages never show a part of a record, and what was decided on is
//! what is changed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dyad_reactor::collections::FixedMap;
use dyad_reactor::mutation::{Mutation, is_active};

use crate::allocation::Allocation;
use crate::buffer::{BufferPool, PageWrite, Pin};
use crate::change::Change;
use crate::checkpoint::Checkpoints;
use crate::error::{StorageError, fits};
use crate::ids::{Lsn, PageId, RowId, TransactionId};
use crate::log::record::{Content, Record};
use crate::log::{Log, framed};
use crate::page::{PAGE_BYTES, Page, Stamp};
use crate::sync::{Event, lock};
use crate::transaction::{Undo, Work};

/// The parts of an open database.
pub(crate) struct Store {
    pub(crate) pool: BufferPool,
    pub(crate) log: Arc<Log>,
    pub(crate) stamp: Stamp,
    pub(crate) allocation: Allocation,
    pub(crate) checkpoints: Checkpoints,
    /// Who changes which row.
    pub(crate) locks: Mutex<FixedMap<RowId, TransactionId>>,
    /// Transactions that have changed something, and a place in the log before their first record.
    pub(crate) active: Mutex<BTreeMap<TransactionId, Lsn>>,
    pub(crate) next_transaction: AtomicU64,
    /// Transactions that were given up without being ended.
    pub(crate) orphans: Mutex<Vec<Work>>,
    /// There is something for the housekeeper: an orphan, or the log fills.
    pub(crate) housekeeping: Event,
}

/// On whose behalf pages change.
pub(crate) enum Author<'a> {
    /// The engine's: never undone.
    Engine,
    /// A transaction's: undone with it.
    Transaction(&'a mut Work),
    /// A transaction's that is rolled back: what is to be undone next.
    Undo(&'a mut Work, Lsn),
}

/// Which of the pages is to be changed, and how.
pub(crate) type Plan = Vec<(usize, Change)>;

enum Attempt {
    Done,
    /// This page is being written to its volume.
    Busy(usize),
}

impl Store {
    /// Changes pages as `plan` says, which sees them in the order of `pins`. It may be asked again. An empty plan changes nothing.
    ///
    /// # Errors
    /// What `plan` says, [`StorageError::LogFull`], [`StorageError::Down`]: nothing was changed.
    pub(crate) async fn change(
        &self,
        mut author: Author<'_>,
        pins: &[&Pin<'_>],
        mut plan: impl FnMut(&[Page<'_>]) -> Result<Plan, StorageError>,
    ) -> Result<(), StorageError> {
        let mut tried = false;
        loop {
            self.log.room().await?;
            match self.attempt(&mut author, pins, &mut plan) {
                Ok(Attempt::Done) => break,
                Ok(Attempt::Busy(page)) => pins[page].writable().await,
                Err(StorageError::LogFull) if !tried => {
                    tried = true;
                    self.checkpoint(true).await?;
                }
                Err(error) => return Err(error),
            }
        }
        if self.log.is_filling() {
            self.housekeeping.wake_all();
        }
        Ok(())
    }

    fn attempt(
        &self,
        author: &mut Author<'_>,
        pins: &[&Pin<'_>],
        plan: &mut impl FnMut(&[Page<'_>]) -> Result<Plan, StorageError>,
    ) -> Result<Attempt, StorageError> {
        // Everybody latches in the order of names.
        let mut order: Vec<usize> = (0..pins.len()).collect();
        order.sort_unstable_by_key(|place| pins[*place].name());
        if let Some(twice) = order.windows(2).find(|two| pins[two[0]].name() == pins[two[1]].name()) {
            // Maps that contradict each other name one page for two things.
            return Err(StorageError::Inconsistent(pins[twice[0]].name()));
        }
        let mut latched: Vec<(usize, PageWrite<'_>)> = Vec::with_capacity(pins.len());
        for place in order {
            let Some(page) = pins[place].try_write() else { return Ok(Attempt::Busy(place)) };
            latched.push((place, page));
        }
        latched.sort_unstable_by_key(|(place, _)| *place);
        let pages: Vec<&PageWrite<'_>> = latched.iter().map(|(_, page)| page).collect();
        let views: Vec<Page<'_>> = pages.iter().map(|page| page.page).collect();
        let planned = plan(&views)?;
        if planned.is_empty() {
            return Ok(Attempt::Done);
        }
        let (changes, soiled) = self.with_images(&pages, &planned);
        let lsn = match self.append(author, changes) {
            Ok(lsn) => lsn,
            Err(error) => {
                soiled.into_iter().for_each(|place| pages[place].unsoil());
                return Err(error);
            }
        };
        for (place, change) in &planned {
            fits(change.apply(views[*place], pages[*place].name(), self.stamp));
            views[*place].set_lsn(lsn);
        }
        Ok(Attempt::Done)
    }

    /// The changes with an image of every page that was clean before its first one; and those pages, which count as dirty from now on:
    /// before the record is appended, so that no checkpoint overlooks them.
    fn with_images(&self, pages: &[&PageWrite<'_>], planned: &Plan) -> (Vec<(PageId, Change)>, Vec<usize>) {
        let bound = self.log.end();
        let (mut changes, mut soiled) = (Vec::with_capacity(planned.len() + pages.len()), Vec::new());
        for (place, change) in planned {
            let page = pages[*place];
            if page.soil(bound) {
                soiled.push(*place);
                if !change.is_whole() && !is_active(Mutation::ImagesOmitted) {
                    let (low, slots) = page.page.image();
                    changes.push((page.name(), Change::Image { low, slots }));
                }
            }
            changes.push((page.name(), change.clone()));
        }
        (changes, soiled)
    }

    fn append(&self, author: &mut Author<'_>, changes: Vec<(PageId, Change)>) -> Result<Lsn, StorageError> {
        match author {
            Author::Engine => {
                let content = Content::Update(changes);
                self.log.append(&Record { transaction: TransactionId::SYSTEM, previous: Lsn(0), content }, 0)
            }
            Author::Transaction(work) => {
                lock(&self.active).entry(work.id).or_insert_with(|| self.log.end());
                let kept = work.keep(&changes);
                let record = Record { transaction: work.id, previous: work.last, content: Content::Update(changes) };
                let lsn = self.log.append(&record, kept)?;
                let Content::Update(changes) = record.content else { unreachable!("it was made so") };
                work.note(lsn, changes, kept);
                Ok(lsn)
            }
            Author::Undo(work, undo_next) => {
                if is_active(Mutation::UndoUnlogged) {
                    return Ok(work.last);
                }
                let content = Content::Compensation { undo_next: *undo_next, changes };
                let record = Record { transaction: work.id, previous: work.last, content };
                let released = framed(record.encode().len()).min(work.kept);
                let lsn = self.log.append_kept(&record, released)?;
                work.kept -= released;
                work.last = lsn;
                Ok(lsn)
            }
        }
    }

    /// Takes the row for a transaction, until that ends.
    ///
    /// # Errors
    /// [`StorageError::Locked`].
    pub(crate) fn lock_row(&self, work: &mut Work, row: RowId) -> Result<(), StorageError> {
        let mut locks = lock(&self.locks);
        let owner = *locks.entry(row).or_insert(work.id);
        drop(locks);
        if owner != work.id {
            return Err(StorageError::Locked(row));
        }
        work.locks.insert(row);
        Ok(())
    }

    /// Whether a transaction that has not ended has changed the row.
    pub(crate) fn is_locked(&self, row: RowId) -> bool {
        lock(&self.locks).contains_key(&row)
    }

    /// Forgets what an ended transaction held.
    pub(crate) fn forget(&self, work: &mut Work) {
        self.log.release(std::mem::take(&mut work.kept));
        let mut locks = lock(&self.locks);
        for row in std::mem::take(&mut work.locks) {
            locks.remove(&row);
        }
        drop(locks);
        lock(&self.active).remove(&work.id);
    }

    pub(crate) fn begin(&self) -> Work {
        Work::new(TransactionId(self.next_transaction.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes the transaction happen: it is durable when this returns.
    pub(crate) async fn commit(&self, work: &mut Work) -> Result<(), StorageError> {
        if work.last > Lsn(0) {
            self.log.room().await?;
            let record = Record { transaction: work.id, previous: work.last, content: Content::Commit };
            self.log.append_kept(&record, 0)?;
            // From here on it is not for us to say whether it happens.
            work.undo.clear();
            let end = self.log.end();
            self.log.committed(end).await?;
        }
        self.forget(work);
        Ok(())
    }

    /// Undoes what the transaction did since it had done `undone_from` things.
    pub(crate) async fn undo(&self, work: &mut Work, undone_from: usize) -> Result<(), StorageError> {
        while work.undo.len() > undone_from {
            let Undo { changes, .. } = work.undo.last().expect("something to undo").clone();
            let undo_next = work.undo.iter().rev().nth(1).map_or(Lsn(0), |before| before.lsn);
            let mut pins = Vec::new();
            let mut plan = Plan::new();
            for (page, change) in changes.iter().rev() {
                let Some(inverse) = change.inverse() else { continue };
                let place = match pins.iter().position(|pin: &Pin<'_>| pin.name() == *page) {
                    Some(place) => place,
                    None => {
                        pins.push(self.pool.fetch(*page, crate::buffer::Use::Point).await?);
                        pins.len() - 1
                    }
                };
                plan.push((place, inverse));
            }
            let pins: Vec<&Pin<'_>> = pins.iter().collect();
            self.change(Author::Undo(work, undo_next), &pins, |_| Ok(plan.clone())).await?;
            work.undo.pop();
        }
        Ok(())
    }

    /// Undoes the transaction.
    pub(crate) async fn rollback(&self, work: &mut Work) -> Result<(), StorageError> {
        self.undo(work, 0).await?;
        if work.last > Lsn(0) {
            let record = Record { transaction: work.id, previous: work.last, content: Content::End };
            self.log.append_kept(&record, 0)?;
        }
        self.forget(work);
        Ok(())
    }
}

/// Bytes that must be kept in the log for undoing changes, of which `fresh` are of pages that the transaction has not changed before: these
/// may have to be written with an image.
pub(crate) fn bytes_to_undo(changes: &[(PageId, Change)], fresh: usize) -> u64 {
    let mut bytes = Vec::new();
    for inverse in changes.iter().filter_map(|(_, change)| change.inverse()) {
        inverse.encode(&mut bytes);
    }
    framed(bytes.len() + 16 * changes.len() + 64) + fresh as u64 * framed(PAGE_BYTES + 64)
}
