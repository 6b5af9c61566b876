//! Fuzzy checkpoints: nobody stops for one.
//!
//! A checkpoint writes the pages that were dirty at the one before and still are, notes what is dirty and active now, makes everything
//! that was written durable, and only then moves the place where recovery begins.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use dyad_reactor::mutation::{Mutation, is_active};

use crate::boot::Boot;
use crate::error::StorageError;
use crate::ids::{Lsn, PageId, TransactionId};
use crate::log::Durability;
use crate::log::record::{Checkpoint, Content, Record};
use crate::store::Store;
use crate::sync::{Gate, lock};

/// What checkpoints remember.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    gate: Gate,
    boot: Mutex<Boot>,
    /// What was dirty at the last one.
    dirty: Mutex<Vec<(PageId, Lsn)>>,
}

impl Checkpoints {
    pub(crate) fn new(boot: Boot) -> Self {
        Self { gate: Gate::default(), boot: Mutex::new(boot), dirty: Mutex::default() }
    }

    pub(crate) fn boot(&self) -> Boot {
        *lock(&self.boot)
    }

    pub(crate) fn set_catalog(&self, catalog: [PageId; 2]) {
        lock(&self.boot).catalog = catalog;
    }
}

impl Store {
    /// Makes a checkpoint; `whole`: of everything that is dirty now, so that recovery would begin here.
    pub(crate) async fn checkpoint(&self, whole: bool) -> Result<(), StorageError> {
        let _gate = self.checkpoints.gate.enter().await;
        if whole {
            self.pool.write(self.pool.dirty(), self.log.end()).await?;
        } else {
            let before = std::mem::take(&mut *lock(&self.checkpoints.dirty));
            self.pool.write(before, self.checkpoints.boot().begin).await?;
        }
        // In this order: whatever is appended from `begin` on is read by recovery, whatever was appended before it is noted here.
        let begin = self.log.end();
        let active: Vec<(TransactionId, Lsn)> =
            lock(&self.active).iter().map(|(transaction, lsn)| (*transaction, *lsn)).collect();
        let dirty = self.pool.dirty();
        // What was written and counts as clean may be in a volatile cache.
        if !is_active(Mutation::CheckpointUnflushed) {
            for file in &self.pool.files {
                file.port.flush().await.map_err(StorageError::Down)?;
            }
        }
        let oldest = dirty.iter().map(|(_, lsn)| *lsn).chain(active.iter().map(|(_, lsn)| *lsn)).min();
        let recovery = oldest.unwrap_or(begin).min(begin);
        let next_transaction = self.next_transaction.load(Ordering::Relaxed);
        let content = Content::Checkpoint(Checkpoint { begin, next_transaction, dirty: dirty.clone(), active });
        let record = Record { transaction: TransactionId::SYSTEM, previous: Lsn(0), content };
        let checkpoint = self.log.append_kept(&record, 0)?;
        let end = self.log.end();
        self.log.durable(end, Durability::Media).await?;
        let boot = Boot { checkpoint, begin, recovery, ..self.checkpoints.boot() };
        boot.write(&self.pool.files[0].port).await.map_err(StorageError::Down)?;
        *lock(&self.checkpoints.boot) = boot;
        *lock(&self.checkpoints.dirty) = dirty;
        self.log.truncate(recovery);
        Ok(())
    }
}
