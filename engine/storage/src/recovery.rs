//! Recovery, as ARIES does it (Mohan et al. 1992): analysis finds what may be missing on media and who had not ended, redo repeats history,
//! undo takes the losers back with compensation records, so that a recovery that is cut short is gone on with by the next.
//!
//! Torn pages: the first record that changes a page after it was written has the page's image; so a page that was being written when the
//! power went is mended by redo, whatever is on media. A page that is damaged otherwise is left as it is: whoever uses it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::boot::Boot;
use crate::buffer::Use;
use crate::change::Change;
use crate::error::{OpenError, StorageError};
use crate::ids::{Lsn, PageId, TransactionId};
use crate::log::record::{Content, Record};
use crate::log::{Log, Scan, ScanError};
use crate::port::Port;
use crate::store::Store;
use crate::sync::lock;
use crate::transaction::Work;

/// What a recovery did.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Log records read.
    pub records: u64,
    /// Changes of pages that were made again.
    pub redone: u64,
    /// Transactions that had not ended, and were undone.
    pub losers: u64,
    /// Pages that could not be read, and were left alone.
    pub damaged: u64,
}

/// What analysis finds.
pub(crate) struct Analysis {
    /// Behind the last record of the log.
    pub(crate) scan: Scan,
    /// Pages that media may lack something of, and the first record of it.
    dirty: BTreeMap<PageId, Lsn>,
    losers: BTreeMap<TransactionId, Work>,
    next_transaction: u64,
    records: u64,
}

impl From<ScanError> for OpenError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Foreign => Self::ForeignLog,
            ScanError::Damaged => Self::LogDamaged,
            ScanError::Volume(error) => Self::Volume(error),
        }
    }
}

/// Reads the log from the minimum recovery LSN to its end.
pub(crate) async fn analyse(port: &Arc<Port>, boot: &Boot) -> Result<Analysis, OpenError> {
    let scan = Log::scan(port, boot.stamp, boot.recovery).await?;
    let (dirty, losers) = (BTreeMap::new(), BTreeMap::new());
    let mut analysis = Analysis { scan, dirty, losers, next_transaction: 1, records: 0 };
    let mut checkpoint_seen = false;
    while let Some((lsn, record)) = analysis.scan.next().await? {
        analysis.records += 1;
        checkpoint_seen |= lsn == boot.checkpoint;
        analysis.note(boot, lsn, record);
    }
    // The boot page is written after the checkpoint's record is durable.
    if checkpoint_seen { Ok(analysis) } else { Err(OpenError::LogDamaged) }
}

impl Analysis {
    fn note(&mut self, boot: &Boot, lsn: Lsn, record: Record) {
        let Record { transaction, content, .. } = record;
        self.next_transaction = self.next_transaction.max(transaction.0 + 1);
        if let Content::Update(changes) | Content::Compensation { changes, .. } = &content
            && lsn >= boot.begin
        {
            for (page, _) in changes {
                self.dirty.entry(*page).or_insert(lsn);
            }
        }
        match content {
            Content::Update(changes) if transaction != TransactionId::SYSTEM => {
                self.losers.entry(transaction).or_insert_with(|| Work::new(transaction)).note(lsn, changes, 0);
            }
            Content::Compensation { undo_next, .. } => {
                if let Some(work) = self.losers.get_mut(&transaction) {
                    work.undo.retain(|undo| undo.lsn <= undo_next);
                    work.last = lsn;
                }
            }
            Content::Commit | Content::End => drop(self.losers.remove(&transaction)),
            Content::Checkpoint(checkpoint) => {
                self.next_transaction = self.next_transaction.max(checkpoint.next_transaction);
                if lsn == boot.checkpoint {
                    for (page, lsn) in checkpoint.dirty {
                        let first = self.dirty.entry(page).or_insert(lsn);
                        *first = lsn.min(*first);
                    }
                }
            }
            Content::Update(_) => {}
        }
    }
}

impl Store {
    /// Redo and undo.
    pub(crate) async fn recover(
        &self,
        port: &Arc<Port>,
        boot: &Boot,
        analysis: Analysis,
    ) -> Result<Recovered, OpenError> {
        let Analysis { dirty, losers, next_transaction, records, .. } = analysis;
        self.next_transaction.store(next_transaction, Ordering::Relaxed);
        let losers_count = losers.len() as u64;
        lock(&self.active).extend(losers.keys().map(|transaction| (*transaction, boot.recovery)));
        let mut done = Recovered { records, losers: losers_count, ..Recovered::default() };
        let mut scan = Log::scan(port, boot.stamp, boot.recovery).await?;
        while let Some((lsn, record)) = scan.next().await? {
            if let Content::Update(changes) | Content::Compensation { changes, .. } = &record.content {
                self.redo(lsn, changes, &dirty, &mut done).await?;
            }
        }
        for (_, mut work) in losers {
            self.rollback(&mut work).await?;
        }
        Ok(done)
    }

    /// Makes the changes of one record again, on those pages that lack them.
    async fn redo(
        &self,
        lsn: Lsn,
        changes: &[(PageId, Change)],
        dirty: &BTreeMap<PageId, Lsn>,
        done: &mut Recovered,
    ) -> Result<(), OpenError> {
        let mut names: Vec<PageId> = changes.iter().map(|(page, _)| *page).collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().filter(|name| dirty.get(name).is_some_and(|first| lsn >= *first)) {
            let mut own = changes.iter().filter(|(page, _)| *page == name).map(|(_, change)| change).peekable();
            let whole = own.peek().is_some_and(|change| change.is_whole());
            let fetched = if whole { self.pool.fetch_new(name).await } else { self.pool.fetch(name, Use::Point).await };
            let pin = match fetched {
                Ok(pin) => pin,
                Err(StorageError::Corrupt { .. }) => {
                    done.damaged += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            loop {
                if let Some(latched) = pin.try_write() {
                    // What is whole needs nothing of what is there, and everything behind it is in the log.
                    if !whole && latched.page.lsn() >= lsn {
                        break;
                    }
                    latched.soil(lsn);
                    for change in own {
                        change.apply(latched.page, name, self.stamp).map_err(|_| OpenError::Mismatch(name))?;
                        done.redone += 1;
                    }
                    latched.page.set_lsn(lsn);
                    break;
                }
                pin.writable().await;
            }
        }
        Ok(())
    }
}
