//! Transactions as TPC-B has them: an account, a teller and a branch change by the same amount, and history has a row more. Rows are found by
//! their names, since there are no indexes yet.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use dyad_host::FileVolume;
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool};
use dyad_reactor::figures::{Figures, to_f64};
use dyad_reactor::{Rng, SeededRng};

use super::BenchError;
use super::bed::Bed;
use crate::database::{Database, Options};
use crate::error::StorageError;
use crate::ids::RowId;
use crate::schema::{Column, ColumnType, Schema};
use crate::table::Table;
use crate::value::Value;

/// How large everything is.
pub(super) const BRANCHES: usize = 32;
pub(super) const TELLERS: usize = 320;
pub(super) const ACCOUNTS: usize = 32_000;
/// Transactions of one round, over all clients.
pub(super) const TRANSACTIONS: u64 = 4000;
/// Clients at once.
const CLIENTS: u64 = 24;
const BUFFERS: usize = 2048;

/// Bytes of filler in each row.
pub(super) const FILLER: usize = 80;

fn volume(path: &Path, bytes: u64, frames: usize) -> Result<FileVolume, BenchError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    // Not a hole: allocation of blocks is not what is measured.
    let mut left = bytes;
    let zeros = vec![0; 1 << 20];
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        std::io::Write::write_all(&mut &file, &zeros[..step])?;
        left -= step as u64;
    }
    file.sync_all()?;
    Ok(FileVolume::new(FramePool::new(Memory::anonymous(frames * FRAME_BYTES)), file)?)
}

struct Bank {
    database: Arc<Database>,
    tables: [Arc<Table>; 4],
    branches: Vec<RowId>,
    tellers: Vec<RowId>,
    accounts: Vec<RowId>,
    left: Cell<u64>,
}

fn schema() -> Schema {
    let column = |name: &str, of| Column { name: name.into(), of, nullable: false };
    Schema::new(vec![
        column("key", ColumnType::Int),
        column("balance", ColumnType::BigInt),
        column("filler", ColumnType::Binary { max: 100 }),
    ])
    .expect("columns")
}

fn row(key: usize, balance: i64) -> [Value; 3] {
    [Value::Int(i32::try_from(key).expect("few")), Value::BigInt(balance), Value::Binary(vec![0; FILLER])]
}

async fn fill(database: &Database, name: &str, count: usize) -> Result<(Arc<Table>, Vec<RowId>), BenchError> {
    let table = database.create_table(name, schema()).await?;
    let mut rows = Vec::new();
    for first in (0..count).step_by(500) {
        let mut transaction = database.begin();
        for key in first..count.min(first + 500) {
            rows.push(table.insert(&mut transaction, &row(key, 0)).await?);
        }
        transaction.commit().await?;
    }
    Ok((table, rows))
}

impl Bank {
    async fn add(
        &self,
        transaction: &mut crate::Transaction,
        table: usize,
        row: RowId,
        amount: i64,
    ) -> Result<(), StorageError> {
        self.tables[table].take(transaction, row)?;
        let mut values = self.tables[table].get(row).await?;
        if let Value::BigInt(balance) = &mut values[1] {
            *balance += amount;
        }
        self.tables[table].update(transaction, row, &values).await
    }

    async fn transfer(&self, rng: &mut SeededRng) -> Result<(), StorageError> {
        let mut pick = |rows: &Vec<RowId>| rows[usize::try_from(rng.below(rows.len() as u64)).expect("few")];
        let picked = [pick(&self.accounts), pick(&self.tellers), pick(&self.branches)];
        let amount = i64::try_from(rng.below(1000)).expect("small") - 500;
        let mut transaction = self.database.begin();
        for (table, row) in picked.into_iter().enumerate() {
            if let Err(error) = self.add(&mut transaction, table, row, amount).await {
                transaction.rollback().await?;
                return Err(error);
            }
        }
        self.tables[3].insert(&mut transaction, &row(0, amount)).await?;
        transaction.commit().await
    }

    async fn client(self: Rc<Self>, mut rng: SeededRng) {
        while self.left.get() > 0 {
            match self.transfer(&mut rng).await {
                Ok(()) => self.left.set(self.left.get().saturating_sub(1)),
                // Another client has one of the rows just now.
                Err(StorageError::Locked(_)) => {}
                Err(_) => return,
            }
        }
    }

    /// The sum of a table's balances.
    async fn total(&self, table: usize) -> Result<i64, StorageError> {
        let rows = self.tables[table].rows().await?;
        Ok(rows.iter().map(|(_, values)| if let Value::BigInt(balance) = values[1] { balance } else { 0 }).sum())
    }
}

/// One round on files at `path`.
pub(super) fn measure(path: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let data = volume(&path.with_extension("data"), 64 << 20, 2 * (BUFFERS + 64))?;
    let log = volume(&path.with_extension("log"), 64 << 20, 512)?;
    let bed = Bed::new();
    let start = bed.start((data, log), BUFFERS, true, Options::default())?;
    let bank = bed.run(async move {
        let database = start.await?;
        let before = bed_now();
        let (branch, branches) = fill(&database, "branches", BRANCHES).await?;
        let (teller, tellers) = fill(&database, "tellers", TELLERS).await?;
        let (account, accounts) = fill(&database, "accounts", ACCOUNTS).await?;
        let spent = bed_now().since(before);
        let history = database.create_table("history", schema()).await?;
        let tables = [account, teller, branch, history];
        let left = Cell::new(TRANSACTIONS);
        Ok((Rc::new(Bank { database, tables, branches, tellers, accounts, left }), spent))
    })?;
    let (bank, filling) = bank;
    let rows = to_f64((BRANCHES + TELLERS + ACCOUNTS) as u64);
    figures.add("insert.per_core_s", "1/s", rows / filling.as_secs_f64());
    let before = bed.now();
    for client in 0..CLIENTS {
        bed.handle.spawn("client", Rc::clone(&bank).client(SeededRng::new(client)));
    }
    let waiting = Rc::clone(&bank);
    bed.run(async move { if waiting.left.get() > 0 { Ok(()) } else { Err(BenchError::Wrong("nothing to do")) } })?;
    let elapsed = bed.now().since(before);
    if bank.left.get() > 0 {
        return Err(BenchError::Wrong("transactions did not end"));
    }
    figures.add("tpcb.per_core_s", "1/s", to_f64(TRANSACTIONS) / elapsed.as_secs_f64());
    let totals = bed.run(async move {
        let mut totals = Vec::new();
        for table in 0..4 {
            totals.push(bank.total(table).await?);
        }
        Ok(totals)
    })?;
    if totals.iter().any(|total| *total != totals[0]) {
        return Err(BenchError::Wrong("the balances do not agree"));
    }
    Ok(())
}

fn bed_now() -> dyad_reactor::Time {
    dyad_reactor::Clock::now(&dyad_reactor::BootClock)
}
