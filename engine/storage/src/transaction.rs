//! Transactions.
//!
//! What there is of isolation: a row that a transaction has changed belongs to it until it ends, and others who want to change it are
//! refused at once ([`StorageError::Locked`]); nobody waits. Readers see what is there, committed or not.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::change::Change;
use crate::error::StorageError;
use crate::ids::{Lsn, PageId, RowId, TransactionId};
use crate::store::{Store, bytes_to_undo};
use crate::sync::lock;

/// One record of a transaction, to be undone.
#[derive(Debug, Clone)]
pub(crate) struct Undo {
    pub(crate) lsn: Lsn,
    pub(crate) changes: Vec<(PageId, Change)>,
}

/// What a transaction has done so far.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: TransactionId,
    /// Its last record; zero if it has none.
    pub(crate) last: Lsn,
    /// Its records that are not undone, in order.
    pub(crate) undo: Vec<Undo>,
    pub(crate) locks: BTreeSet<RowId>,
    /// Pages that it has changed.
    pages: BTreeSet<PageId>,
    /// Bytes of the log that are kept for undoing it.
    pub(crate) kept: u64,
}

impl Work {
    pub(crate) fn new(id: TransactionId) -> Self {
        Self { id, last: Lsn(0), undo: Vec::new(), locks: BTreeSet::new(), pages: BTreeSet::new(), kept: 0 }
    }

    /// Bytes that must be kept to undo these changes, too.
    pub(crate) fn keep(&self, changes: &[(PageId, Change)]) -> u64 {
        let fresh: BTreeSet<_> =
            changes.iter().map(|(page, _)| page).filter(|page| !self.pages.contains(page)).collect();
        bytes_to_undo(changes, fresh.len())
    }

    pub(crate) fn note(&mut self, lsn: Lsn, mut changes: Vec<(PageId, Change)>, kept: u64) {
        self.pages.extend(changes.iter().map(|(page, _)| *page));
        changes.retain(|(_, change)| change.inverse().is_some());
        self.undo.push(Undo { lsn, changes });
        self.last = lsn;
        self.kept += kept;
    }
}

/// A transaction. One that is dropped without being ended is rolled back by the housekeeper.
pub struct Transaction {
    store: Arc<Store>,
    work: Option<Work>,
}

/// A place in a transaction to go back to.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Savepoint(usize);

impl Transaction {
    pub(crate) fn begin(store: Arc<Store>) -> Self {
        let work = Some(store.begin());
        Self { store, work }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.work.as_ref().map_or(TransactionId::SYSTEM, |work| work.id)
    }

    pub(crate) fn work(&mut self) -> Result<&mut Work, StorageError> {
        self.work.as_mut().ok_or(StorageError::Ended)
    }

    /// Makes it happen. When this returns it is as durable as the database promises.
    ///
    /// # Errors
    /// [`StorageError::Down`]: whether it has happened shows when the database is opened again. [`StorageError::LogFull`]: it was rolled back.
    pub async fn commit(mut self) -> Result<(), StorageError> {
        let Some(mut work) = self.work.take() else { return Err(StorageError::Ended) };
        let store = Arc::clone(&self.store);
        // If the caller gives up in the middle, what was not yet decided is rolled back.
        let mut guard = Guard { store: &store, work: Some(&mut work) };
        let done = store.commit(guard.work.as_mut().expect("just put there")).await;
        guard.work = None;
        drop(guard);
        if done == Err(StorageError::LogFull) {
            store.rollback(&mut work).await?;
        }
        done
    }

    /// Undoes it.
    ///
    /// # Errors
    /// A page that cannot be read, or [`StorageError::Down`]: the housekeeper tries again, at last the next opening.
    pub async fn rollback(mut self) -> Result<(), StorageError> {
        let store = Arc::clone(&self.store);
        let Some(work) = self.work.as_mut() else { return Err(StorageError::Ended) };
        store.rollback(work).await?;
        self.work = None;
        Ok(())
    }

    /// Where it is now.
    #[must_use]
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.work.as_ref().map_or(0, |work| work.undo.len()))
    }

    /// Undoes what came after the savepoint. Rows that were changed since still belong to the transaction.
    ///
    /// # Errors
    /// As [`Self::rollback`]; part of it may be undone.
    pub async fn rollback_to(&mut self, savepoint: Savepoint) -> Result<(), StorageError> {
        let store = Arc::clone(&self.store);
        store.undo(self.work()?, savepoint.0).await
    }
}

/// Puts a transaction that was being committed where the housekeeper finds it.
struct Guard<'a> {
    store: &'a Store,
    work: Option<&'a mut Work>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let id = work.id;
            abandon(self.store, std::mem::replace(work, Work::new(id)));
        }
    }
}

fn abandon(store: &Store, mut work: Work) {
    if work.undo.is_empty() {
        // Nothing was done, or its commit is on its way: whatever comes of that, nothing here depends on it.
        store.forget(&mut work);
    } else {
        lock(&store.orphans).push(work);
        store.housekeeping.wake_all();
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            abandon(&self.store, work);
        }
    }
}
