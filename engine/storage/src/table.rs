//! Tables: rows of values in a heap, their long values in another.

use std::sync::Arc;

use crate::error::StorageError;
use crate::heap::scan::Scan;
use crate::heap::{Heap, long};
use crate::ids::RowId;
use crate::row::{self, Field, LongValue, RowKind};
use crate::schema::{ColumnType, Schema};
use crate::store::Store;
use crate::transaction::Transaction;
use crate::value::Value;

/// A table of a database.
pub struct Table {
    store: Arc<Store>,
    name: String,
    schema: Schema,
    rows: Heap,
    long: Heap,
}

impl Table {
    pub(crate) fn new(store: Arc<Store>, name: String, schema: Schema, [rows, long]: [Heap; 2]) -> Self {
        Self { store, name, schema, rows, long }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its columns.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The bytes of a row, after its long values were stored.
    async fn encode(&self, transaction: &mut Transaction, values: &[Value]) -> Result<Vec<u8>, StorageError> {
        row::check(&self.schema, values)?;
        let mut elsewhere = Vec::new();
        for column in row::choose_long(&self.schema, values)? {
            let bytes = match &values[column] {
                Value::String(text) => text.as_bytes(),
                Value::Binary(bytes) => bytes,
                _ => continue,
            };
            let value = long::write(&self.long, &self.store, transaction.work()?, bytes).await?;
            elsewhere.push((column, value));
        }
        Ok(row::encode(&self.schema, values, &elsewhere)?)
    }

    /// Inserts a row. If this fails, what was done of it is undone.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn insert(&self, transaction: &mut Transaction, values: &[Value]) -> Result<RowId, StorageError> {
        let before = transaction.savepoint();
        let done = async {
            let row = self.encode(transaction, values).await?;
            self.rows.insert(&self.store, transaction.work()?, &row).await
        };
        let done = done.await;
        self.settle(transaction, before, done).await
    }

    /// Takes a row for a transaction: nobody else changes it until that ends.
    ///
    /// # Errors
    /// [`StorageError::Locked`], [`StorageError::Ended`].
    pub fn take(&self, transaction: &mut Transaction, id: RowId) -> Result<(), StorageError> {
        self.store.lock_row(transaction.work()?, id)
    }

    /// Gives a row other values. If this fails, what was done of it is undone.
    ///
    /// # Errors
    /// [`StorageError::Locked`], [`StorageError::NoRow`], and others.
    pub async fn update(&self, transaction: &mut Transaction, id: RowId, values: &[Value]) -> Result<(), StorageError> {
        let before = transaction.savepoint();
        let done = async {
            self.store.lock_row(transaction.work()?, id)?;
            let old = self.long_values(id).await?;
            let row = self.encode(transaction, values).await?;
            self.rows.update(&self.store, transaction.work()?, id, &row).await?;
            self.delete_long(transaction, old).await
        };
        let done = done.await;
        self.settle(transaction, before, done).await
    }

    /// Deletes a row. If this fails, what was done of it is undone.
    ///
    /// # Errors
    /// [`StorageError::Locked`], [`StorageError::NoRow`], and others.
    pub async fn delete(&self, transaction: &mut Transaction, id: RowId) -> Result<(), StorageError> {
        let before = transaction.savepoint();
        let done = async {
            self.store.lock_row(transaction.work()?, id)?;
            let old = self.long_values(id).await?;
            self.rows.delete(&self.store, transaction.work()?, id).await?;
            self.delete_long(transaction, old).await
        };
        let done = done.await;
        self.settle(transaction, before, done).await
    }

    /// A statement that failed leaves nothing behind.
    async fn settle<T>(
        &self,
        transaction: &mut Transaction,
        before: crate::transaction::Savepoint,
        done: Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if done.is_err() {
            transaction.rollback_to(before).await?;
        }
        done
    }

    async fn delete_long(&self, transaction: &mut Transaction, values: Vec<LongValue>) -> Result<(), StorageError> {
        for value in values {
            long::delete(&self.long, &self.store, transaction.work()?, value).await?;
        }
        Ok(())
    }

    async fn fields(&self, id: RowId) -> Result<Vec<Field>, StorageError> {
        match self.rows.read(&self.store, id).await? {
            (bytes, RowKind::Data) => row::decode(&self.schema, &bytes).ok_or(StorageError::Inconsistent(id.page)),
            _ => Err(StorageError::NoRow(id)),
        }
    }

    async fn long_values(&self, id: RowId) -> Result<Vec<LongValue>, StorageError> {
        let fields = self.fields(id).await?;
        Ok(fields
            .into_iter()
            .filter_map(|field| match field {
                Field::Elsewhere(value) => Some(value),
                Field::Here(_) => None,
            })
            .collect())
    }

    /// The values of a row.
    ///
    /// # Errors
    /// [`StorageError::NoRow`], and others.
    pub async fn get(&self, id: RowId) -> Result<Vec<Value>, StorageError> {
        let mut values = Vec::new();
        for (field, column) in self.fields(id).await?.into_iter().zip(self.schema.columns()) {
            values.push(match field {
                Field::Here(value) => value,
                Field::Elsewhere(value) => {
                    let bytes = long::read(&self.long, &self.store, value).await?;
                    match column.of {
                        ColumnType::String { .. } => {
                            let text = String::from_utf8(bytes);
                            Value::String(text.map_err(|_| StorageError::Inconsistent(value.root.page))?)
                        }
                        _ => Value::Binary(bytes),
                    }
                }
            });
        }
        Ok(values)
    }

    /// Looks at all rows in the order of the disk, `read_ahead` pages ahead.
    ///
    /// # Errors
    /// A page of the maps that cannot be read.
    pub async fn scan(&self, read_ahead: usize) -> Result<Scan<'_>, StorageError> {
        Scan::start(&self.store, &self.rows, read_ahead).await
    }

    /// All rows with their values.
    ///
    /// # Errors
    /// A page that cannot be read.
    pub async fn rows(&self) -> Result<Vec<(RowId, Vec<Value>)>, StorageError> {
        let mut rows = Vec::new();
        let mut scan = self.scan(64).await?;
        while let Some(page) = scan.next().await? {
            let ids: Vec<RowId> = page.rows().iter().map(|row| row.id()).collect();
            for id in ids {
                rows.push((id, self.get(id).await?));
            }
        }
        Ok(rows)
    }
}
