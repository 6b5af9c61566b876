//! The same transactions by `SQLite` and redb: one thread, each commit durable before the next begins, as both have one writer at a time.

use std::path::Path;

use dyad_reactor::figures::{Figures, to_f64};
use dyad_reactor::{BootClock, Clock, Rng, SeededRng};
use redb::{ReadableTable, TableDefinition};
use rusqlite::{Connection, params};

use super::BenchError;
use super::tpcb::{ACCOUNTS, BRANCHES, FILLER, TELLERS};

/// Transactions of one round: each waits for the disk alone.
const TRANSACTIONS: u64 = 1000;
const TABLES: [(&str, usize); 3] = [("accounts", ACCOUNTS), ("tellers", TELLERS), ("branches", BRANCHES)];

pub(super) fn measure(path: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    sqlite(&path.with_extension("sqlite"), figures)?;
    redb_(&path.with_extension("redb"), figures).map_err(BenchError::Redb)
}

fn pick(rng: &mut SeededRng) -> ([i64; 3], i64) {
    let keys = TABLES.map(|(_, rows)| i64::try_from(rng.below(rows as u64)).expect("few"));
    (keys, i64::try_from(rng.below(1000)).expect("small") - 500)
}

fn sqlite(path: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let mut database = Connection::open(path)?;
    database.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-65536;")?;
    let filling = database.transaction()?;
    for (table, rows) in TABLES {
        filling
            .execute(&format!("CREATE TABLE {table} (key INTEGER PRIMARY KEY, balance INTEGER, filler BLOB)"), [])?;
        let mut insert = filling.prepare(&format!("INSERT INTO {table} VALUES (?1, 0, ?2)"))?;
        for key in 0..rows {
            insert.execute(params![i64::try_from(key).expect("few"), vec![0_u8; FILLER]])?;
        }
    }
    filling.execute(
        "CREATE TABLE history (teller INTEGER, branch INTEGER, account INTEGER, amount INTEGER, filler BLOB)",
        [],
    )?;
    filling.commit()?;
    let mut rng = SeededRng::new(1);
    let before = BootClock.now();
    for _ in 0..TRANSACTIONS {
        let (keys, amount) = pick(&mut rng);
        let transaction = database.transaction()?;
        for ((table, _), key) in TABLES.into_iter().zip(keys) {
            let sql = format!("UPDATE {table} SET balance = balance + ?1 WHERE key = ?2");
            transaction.prepare_cached(&sql)?.execute(params![amount, key])?;
        }
        let mut history = transaction.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5)")?;
        history.execute(params![keys[1], keys[2], keys[0], amount, vec![0_u8; FILLER]])?;
        drop(history);
        transaction.commit()?;
    }
    let elapsed = BootClock.now().since(before).as_secs_f64();
    figures.add("sqlite.tpcb.per_core_s", "1/s", to_f64(TRANSACTIONS) / elapsed);
    Ok(())
}

fn redb_(path: &Path, figures: &mut Figures) -> Result<(), redb::Error> {
    const HISTORY: TableDefinition<'_, i64, &[u8]> = TableDefinition::new("history");
    let definition = |table: &'static str| TableDefinition::<i64, &[u8]>::new(table);
    let row = |balance: i64| [&balance.to_le_bytes()[..], &[0; FILLER]].concat();
    let database = redb::Database::create(path)?;
    let filling = database.begin_write()?;
    for (table, rows) in TABLES {
        let mut table = filling.open_table(definition(table))?;
        for key in 0..i64::try_from(rows).expect("few") {
            table.insert(key, &row(0)[..])?;
        }
    }
    filling.commit()?;
    let mut rng = SeededRng::new(1);
    let before = BootClock.now();
    for number in 0..TRANSACTIONS {
        let (keys, amount) = pick(&mut rng);
        let transaction = database.begin_write()?;
        for ((table, _), key) in TABLES.into_iter().zip(keys) {
            let mut table = transaction.open_table(definition(table))?;
            let balance = table
                .get(key)?
                .map_or(0, |row| row.value().first_chunk().map_or(0, |balance| i64::from_le_bytes(*balance)));
            table.insert(key, &row(balance + amount)[..])?;
        }
        transaction.open_table(HISTORY)?.insert(i64::try_from(number).expect("few"), &row(amount)[..])?;
        transaction.commit()?;
    }
    let elapsed = BootClock.now().since(before).as_secs_f64();
    figures.add("redb.tpcb.per_core_s", "1/s", to_f64(TRANSACTIONS) / elapsed);
    Ok(())
}
