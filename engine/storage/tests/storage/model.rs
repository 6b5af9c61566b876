//! What a database must hold: clients that each own some rows, and remember what was committed and what was about to be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use dyad_reactor::{Rng, SeededRng};
use dyad_storage::{Database, RowId, StorageError, Table, Transaction, Value};

/// Rows of one client.
pub(crate) type Rows = BTreeMap<RowId, Vec<Value>>;

/// What one client knows.
#[derive(Debug, Default, Clone)]
pub(crate) struct Known {
    /// Acknowledged.
    pub(crate) committed: Rows,
    /// A commit is under way that would lead to this.
    pub(crate) in_doubt: Option<Rows>,
    pub(crate) commits: u64,
    pub(crate) rollbacks: u64,
    pub(crate) full: u64,
}

pub(crate) type Shared = Rc<RefCell<Vec<Known>>>;

/// How a client behaves.
#[derive(Debug, Copy, Clone)]
pub(crate) struct Habits {
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
    pub(crate) note_bytes: u64,
    /// One note in so many is ten times as long, and more.
    pub(crate) long_one_in: u64,
    /// A checkpoint after one in so many transactions.
    pub(crate) checkpoint_one_in: u64,
}

fn values(rng: &mut SeededRng, client: usize, habits: &Habits) -> Vec<Value> {
    let longest = if rng.one_in(habits.long_one_in) { habits.note_bytes * 30 } else { habits.note_bytes };
    let len = usize::try_from(rng.below(longest + 1)).expect("small");
    let byte = u8::try_from(rng.below(256)).expect("a byte");
    let balance = if rng.one_in(5) { Value::Null } else { Value::BigInt(rng.next_u64().cast_signed()) };
    vec![Value::Int(i32::try_from(client).expect("few")), balance, Value::Binary(vec![byte; len])]
}

async fn change(
    table: &Table,
    transaction: &mut Transaction,
    rng: &mut SeededRng,
    rows: &mut Rows,
    client: usize,
    habits: &Habits,
) -> Result<(), StorageError> {
    let some = usize::try_from(rng.below(rows.len().max(1) as u64)).expect("few");
    let row = rows.keys().nth(some).copied();
    match (rng.below(4), row) {
        (0 | 1, Some(row)) => {
            let values = values(rng, client, habits);
            table.update(transaction, row, &values).await?;
            rows.insert(row, values);
        }
        (2, Some(row)) => {
            table.delete(transaction, row).await?;
            rows.remove(&row);
        }
        _ => {
            let values = values(rng, client, habits);
            let row = table.insert(transaction, &values).await?;
            assert!(rows.insert(row, values).is_none(), "{row} is somebody's");
        }
    }
    Ok(())
}

/// One client: transactions, some rolled back, some in part.
pub(crate) async fn client(
    database: Arc<Database>,
    table: Arc<Table>,
    shared: Shared,
    client: usize,
    mut rng: SeededRng,
    habits: Habits,
) {
    for _ in 0..habits.transactions {
        let mut rows = shared.borrow()[client].committed.clone();
        let mut transaction = database.begin();
        let mut saved = None;
        for _ in 0..=rng.below(habits.changes) {
            match change(&table, &mut transaction, &mut rng, &mut rows, client, &habits).await {
                Ok(()) => {}
                // A statement that failed has changed nothing.
                Err(StorageError::Full | StorageError::LogFull) => shared.borrow_mut()[client].full += 1,
                // A transaction that was dropped is not rolled back yet.
                Err(StorageError::Locked(_)) => {}
                Err(error) => panic!("client {client}: {error}"),
            }
            if rng.one_in(4 * habits.checkpoint_one_in) {
                database.checkpoint().await.expect("a checkpoint in the middle of a transaction");
            }
            match rng.below(8) {
                0 => saved = Some((transaction.savepoint(), rows.clone())),
                1 => {
                    if let Some((savepoint, then)) = saved.take() {
                        transaction.rollback_to(savepoint).await.expect("undone in part");
                        rows = then;
                    }
                }
                _ => {}
            }
        }
        match rng.below(6) {
            0 => {
                transaction.rollback().await.expect("undone");
                shared.borrow_mut()[client].rollbacks += 1;
            }
            // The housekeeper does it.
            1 if client > 0 => drop(transaction),
            _ => {
                shared.borrow_mut()[client].in_doubt = Some(rows.clone());
                transaction.commit().await.expect("committed");
                let known = &mut shared.borrow_mut()[client];
                known.in_doubt = None;
                known.committed = rows;
                known.commits += 1;
            }
        }
        if rng.one_in(habits.checkpoint_one_in) {
            database.checkpoint().await.expect("a checkpoint");
        }
    }
}

/// What is there, per client.
pub(crate) async fn found(table: &Table, clients: usize) -> Result<Vec<Rows>, StorageError> {
    let mut all = vec![Rows::new(); clients];
    for (id, values) in table.rows().await? {
        let Value::Int(client) = values[0] else { panic!("a row without a client: {values:?}") };
        let rows = &mut all[usize::try_from(client).expect("a client")];
        assert!(rows.insert(id, values).is_none(), "{id} is there twice");
    }
    Ok(all)
}

/// Whether what was found is what each client may find; what was in doubt is known now.
pub(crate) fn settle(shared: &Shared, found: Vec<Rows>) -> Result<(), String> {
    for (client, (known, found)) in shared.borrow_mut().iter_mut().zip(found).enumerate() {
        let in_doubt = known.in_doubt.take();
        if in_doubt.as_ref() == Some(&found) || known.committed == found {
            known.committed = found;
            continue;
        }
        let lost = known.committed.keys().filter(|row| !found.contains_key(row)).count();
        let more = found.keys().filter(|row| !known.committed.contains_key(row)).count();
        return Err(format!(
            "client {client}: of {} rows {lost} are lost, {more} should not be there",
            known.committed.len()
        ));
    }
    Ok(())
}
