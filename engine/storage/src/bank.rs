//! A bank: transfers between accounts, of which every one must happen as a whole or not at all; so the total is always the same. What the demo
//! and the simulator do to a database while directors are lost.

use std::sync::Arc;

use dyad_reactor::Rng;

use crate::database::Database;
use crate::error::StorageError;
use crate::ids::RowId;
use crate::schema::{Column, ColumnType, Schema};
use crate::table::Table;
use crate::value::Value;

const TABLE: &str = "accounts";

/// A bank in a database.
pub struct Bank {
    database: Arc<Database>,
    table: Arc<Table>,
    accounts: Vec<RowId>,
}

fn schema() -> Result<Schema, StorageError> {
    let column = |name: &str, of| Column { name: name.into(), of, nullable: false };
    let columns = vec![column("number", ColumnType::Int), column("balance", ColumnType::BigInt)];
    Ok(Schema::new(columns)?)
}

impl Bank {
    /// Opens so many accounts, each with `balance`, in a database without a bank; all of them or none.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn found(database: Arc<Database>, accounts: i32, balance: i64) -> Result<Self, StorageError> {
        let table = database.create_table(TABLE, schema()?).await?;
        let mut transaction = database.begin();
        let mut rows = Vec::new();
        for number in 0..accounts {
            let values = [Value::Int(number), Value::BigInt(balance)];
            rows.push(table.insert(&mut transaction, &values).await?);
        }
        transaction.commit().await?;
        Ok(Self { database, table, accounts: rows })
    }

    /// The bank that is in the database.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn visit(database: Arc<Database>) -> Result<Self, StorageError> {
        let table = database.table(TABLE).await?;
        let accounts = table.rows().await?.into_iter().map(|(account, _)| account).collect();
        Ok(Self { database, table, accounts })
    }

    async fn add(&self, transaction: &mut crate::Transaction, account: RowId, amount: i64) -> Result<(), StorageError> {
        // The row belongs to the transaction before its balance is looked at.
        self.table.take(transaction, account)?;
        let mut values = self.table.get(account).await?;
        if let Some(Value::BigInt(balance)) = values.get_mut(1) {
            *balance += amount;
        }
        self.table.update(transaction, account, &values).await
    }

    /// Moves some money between two accounts; false if another transfer has one of them just now.
    ///
    /// # Errors
    /// [`StorageError`]: whether it has happened is not known.
    pub async fn transfer(&self, rng: &mut impl Rng) -> Result<bool, StorageError> {
        let mut pick = || usize::try_from(rng.below(self.accounts.len() as u64)).expect("few accounts");
        let (from, to) = (self.accounts[pick()], self.accounts[pick()]);
        let amount = i64::try_from(rng.below(100)).expect("small");
        let mut transaction = self.database.begin();
        for (account, amount) in [(from, -amount), (to, amount)] {
            match self.add(&mut transaction, account, amount).await {
                Ok(()) => {}
                Err(StorageError::Locked(_)) => {
                    transaction.rollback().await?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// What all accounts have together. Right when no transfer is under way.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn total(&self) -> Result<i64, StorageError> {
        let rows = self.table.rows().await?;
        let balance = |values: &Vec<Value>| if let Some(Value::BigInt(balance)) = values.get(1) { *balance } else { 0 };
        Ok(rows.iter().map(|(_, values)| balance(values)).sum())
    }

    /// The accounts.
    #[must_use]
    pub fn accounts(&self) -> usize {
        self.accounts.len()
    }
}
