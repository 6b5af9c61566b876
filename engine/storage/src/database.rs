//! A database: files, a log, a catalog of tables.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use dyad_reactor::collections::fixed_map;

use crate::allocation::{Allocation, extents_of};
use crate::boot::Boot;
use crate::buffer::{BufferPool, Use};
use crate::checkpoint::Checkpoints;
use crate::error::{OpenError, StorageError};
use crate::heap::Heap;
use crate::ids::{Lsn, ObjectId, PageId};
use crate::log::{Durability, Log};
use crate::page::{Damage, PageKind, Stamp};
use crate::port::{DataFile, LogFile, Port};
use crate::recovery::{Recovered, analyse};
use crate::schema::{Column, ColumnType, Schema};
use crate::store::Store;
use crate::sync::{Event, Gate, lock};
use crate::table::Table;
use crate::transaction::Transaction;
use crate::value::Value;

/// How a database runs.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Options {
    /// When a commit is answered.
    pub durability: Durability,
    /// Pages that a scan is ahead of its reader.
    pub read_ahead: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::Media, read_ahead: 128 }
    }
}

/// A task that a database needs while it runs.
pub type Service = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open database.
pub struct Database {
    store: Arc<Store>,
    options: Options,
    catalog: Arc<Table>,
    /// One at a time makes a table.
    naming: Gate,
    tables: Mutex<Vec<Arc<Table>>>,
    recovered: Recovered,
}

/// Most bytes of a table's name.
const NAME_BYTES: u32 = 128;

fn catalog_schema() -> Schema {
    let column = |name: &str, of| Column { name: name.into(), of, nullable: false };
    let columns = vec![
        column("object", ColumnType::Int),
        column("rows", ColumnType::BigInt),
        column("long", ColumnType::BigInt),
        column("name", ColumnType::String { max: NAME_BYTES }),
        column("columns", ColumnType::Binary { max: 1 << 16 }),
    ];
    Schema::new(columns).expect("the catalog's columns are columns")
}

/// Runs `future` to its end, and `services` beside it.
async fn beside<T>(services: Vec<Service>, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut services = services;
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        for service in &mut services {
            let _ = service.as_mut().poll(context);
        }
        // A service may have made it ready to go on without a wake-up of its own.
        future.as_mut().poll(context)
    })
    .await
}

impl Store {
    fn new(files: &[DataFile], log: Arc<Log>, boot: Boot) -> Arc<Self> {
        let limits: Vec<u32> = files.iter().map(|file| extents_of(file.0.port.blocks)).collect();
        files.iter().for_each(|file| file.0.belong_to(boot.stamp));
        let files = files.iter().map(|file| Arc::clone(&file.0)).collect();
        Arc::new(Self {
            pool: BufferPool::new(files, Arc::clone(&log)),
            log,
            stamp: boot.stamp,
            allocation: Allocation::new(&limits),
            checkpoints: Checkpoints::new(boot),
            locks: Mutex::new(fixed_map(64)),
            active: Mutex::default(),
            next_transaction: AtomicU64::new(1),
            orphans: Mutex::default(),
            housekeeping: Event::default(),
        })
    }

    /// What must run for pages and log to be written.
    fn writers(self: &Arc<Self>) -> Vec<Service> {
        let mut services: Vec<Service> = vec![Box::pin(Arc::clone(&self.log).run())];
        for file in 0..self.pool.files.len() {
            let store = Arc::clone(self);
            services.push(Box::pin(async move { store.pool.lazy_writer(file).await }));
        }
        services
    }

    /// Rolls back what was given up, and makes checkpoints when the log fills; for ever.
    async fn housekeeper(self: Arc<Self>) {
        loop {
            let orphan = self
                .housekeeping
                .until(|| {
                    let orphan = lock(&self.orphans).pop();
                    (orphan.is_some() || (self.log.is_filling() && self.log.failure().is_none())).then_some(orphan)
                })
                .await;
            let done = match orphan {
                Some(mut work) => {
                    let done = self.rollback(&mut work).await;
                    if done.is_err() {
                        // It keeps its rows, and its part of the log; the next opening undoes it.
                        std::mem::forget(work);
                    }
                    done
                }
                None => self.checkpoint(true).await,
            };
            if let Err(StorageError::Down(_)) = done {
                return;
            }
            if done.is_err() || self.log.is_filling() {
                // Nothing comes of trying again before something has happened.
                let seen = self.housekeeping.turn();
                self.housekeeping.after(seen).await;
            }
        }
    }
}

impl Database {
    /// Makes a database of these files and this log; whatever was on them is gone. `stamp` is a number that no other database has.
    ///
    /// # Errors
    /// [`OpenError`]. Until this returns there is no database on the files.
    pub async fn create(
        files: Vec<DataFile>,
        log: LogFile,
        stamp: u64,
        options: Options,
    ) -> Result<Arc<Self>, OpenError> {
        let stamp = Stamp(stamp);
        let buffers = files.iter().map(|file| file.0.buffer_count()).sum();
        let first = files.first().ok_or(OpenError::NoDatabase)?;
        // A database that was there is none any more, before anything of it changes.
        Boot::erase(&first.0.port).await?;
        let count = u16::try_from(files.len()).map_err(|_| OpenError::NoDatabase)?;
        let nowhere = PageId::new(0, 0);
        let boot = Boot {
            stamp,
            files: count,
            checkpoint: Lsn(0),
            begin: Lsn(0),
            recovery: Lsn(0),
            catalog: [nowhere, nowhere],
        };
        let log = Log::create(log.0, stamp, options.durability, buffers).await?;
        let store = Store::new(&files, log, boot);
        let services = store.writers();
        beside(services, async move {
            for file in &files {
                store.create_file(file.0.file).await?;
            }
            {
                let _gate = store.allocation.gate.enter().await;
                store.grow().await?;
            }
            let rows = store.create_object(ObjectId::CATALOG).await?;
            let long = store.create_object(long_of(ObjectId::CATALOG)).await?;
            store.checkpoints.set_catalog([rows, long]);
            store.checkpoint(true).await?;
            Ok(Self::of(store, options, Recovered::default()))
        })
        .await
    }

    /// Opens a database: recovery undoes and redoes whatever it must.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(files: Vec<DataFile>, log: LogFile, options: Options) -> Result<Arc<Self>, OpenError> {
        let buffers = files.iter().map(|file| file.0.buffer_count()).sum();
        let first = files.first().ok_or(OpenError::NoDatabase)?;
        let boot = Boot::read(&first.0.port).await?.ok_or(OpenError::NoDatabase)?;
        if usize::from(boot.files) != files.len() {
            let file = crate::ids::FileId(boot.files.min(u16::try_from(files.len()).unwrap_or(u16::MAX)));
            return Err(OpenError::ForeignFile(file));
        }
        let port: Arc<Port> = log.0;
        let mut analysis = analyse(&port, &boot).await?;
        let log = Log::open(&mut analysis.scan, boot.recovery, options.durability, buffers).await?;
        let store = Store::new(&files, log, boot);
        let services = store.writers();
        beside(services, async move {
            for file in &store.pool.files {
                let name = PageId { file: file.file, number: 0 };
                match store.pool.fetch(name, Use::Point).await {
                    // A torn header is mended by redo.
                    Ok(_) | Err(StorageError::Corrupt { damage: Damage::Checksum, .. }) => {}
                    Err(StorageError::Corrupt { .. }) => return Err(OpenError::ForeignFile(file.file)),
                    Err(error) => return Err(error.into()),
                }
            }
            let recovered = store.recover(&port, &boot, analysis).await?;
            store.survey().await?;
            store.checkpoint(true).await?;
            Ok(Self::of(store, options, recovered))
        })
        .await
    }

    fn of(store: Arc<Store>, options: Options, recovered: Recovered) -> Arc<Self> {
        let [rows, long] = store.checkpoints.boot().catalog;
        let catalog =
            Table::new(Arc::clone(&store), String::new(), catalog_schema(), heaps(ObjectId::CATALOG, rows, long));
        let tables = Mutex::default();
        Arc::new(Self { store, options, catalog: Arc::new(catalog), naming: Gate::default(), tables, recovered })
    }

    /// Tasks that must run as long as the database is used, on any executor.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        let mut services = self.store.writers();
        services.push(Box::pin(Arc::clone(&self.store).housekeeper()));
        services
    }

    /// What opening it took.
    #[must_use]
    pub fn recovered(&self) -> Recovered {
        self.recovered
    }

    /// How it runs.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// A new transaction.
    #[must_use]
    pub fn begin(&self) -> Transaction {
        Transaction::begin(Arc::clone(&self.store))
    }

    /// Makes a checkpoint, so that recovery has less to do.
    ///
    /// # Errors
    /// [`StorageError::Down`].
    pub async fn checkpoint(&self) -> Result<(), StorageError> {
        self.store.checkpoint(false).await
    }

    /// Brings everything to media, so that the next opening has nothing to recover.
    ///
    /// # Errors
    /// [`StorageError::Down`].
    pub async fn close(&self) -> Result<(), StorageError> {
        self.store.checkpoint(true).await
    }

    /// Makes a table. That is a transaction of its own.
    ///
    /// # Errors
    /// [`StorageError::Name`] and others; then there is no such table.
    pub async fn create_table(&self, name: &str, schema: Schema) -> Result<Arc<Table>, StorageError> {
        let _gate = self.naming.enter().await;
        if name.is_empty() || name.len() > crate::allocation::maps::wide(NAME_BYTES) {
            return Err(StorageError::Name);
        }
        let mut object = ObjectId::FIRST;
        for row in self.catalog_rows().await? {
            if row.name == name {
                return Err(StorageError::Name);
            }
            object = object.max(ObjectId(row.object.0 + 2));
        }
        let rows = self.store.create_object(object).await?;
        let long = self.store.create_object(long_of(object)).await?;
        let mut transaction = self.begin();
        let values = [
            Value::Int(object.0.cast_signed()),
            Value::BigInt(rows.pack().cast_signed()),
            Value::BigInt(long.pack().cast_signed()),
            Value::String(name.to_owned()),
            Value::Binary(schema.encode()),
        ];
        if let Err(error) = self.catalog.insert(&mut transaction, &values).await {
            transaction.rollback().await?;
            return Err(error);
        }
        transaction.commit().await?;
        Ok(self.remember(name, schema, heaps(object, rows, long)))
    }

    /// The table of this name.
    ///
    /// # Errors
    /// [`StorageError::NoTable`] and others.
    pub async fn table(&self, name: &str) -> Result<Arc<Table>, StorageError> {
        let known = lock(&self.tables).iter().find(|table| table.name() == name).cloned();
        if let Some(table) = known {
            return Ok(table);
        }
        let _gate = self.naming.enter().await;
        let row = self.catalog_rows().await?.into_iter().find(|row| row.name == name).ok_or(StorageError::NoTable)?;
        let schema = Schema::decode(&row.columns).ok_or(StorageError::Inconsistent(row.page))?;
        Ok(self.remember(name, schema, heaps(row.object, row.rows, row.long)))
    }

    /// The names of all tables.
    ///
    /// # Errors
    /// A page of the catalog that cannot be read.
    pub async fn tables(&self) -> Result<Vec<String>, StorageError> {
        Ok(self.catalog_rows().await?.into_iter().map(|row| row.name).collect())
    }

    fn remember(&self, name: &str, schema: Schema, heaps: [Heap; 2]) -> Arc<Table> {
        let mut tables = lock(&self.tables);
        if let Some(table) = tables.iter().find(|table| table.name() == name) {
            return Arc::clone(table);
        }
        let table = Arc::new(Table::new(Arc::clone(&self.store), name.to_owned(), schema, heaps));
        tables.push(Arc::clone(&table));
        table
    }

    async fn catalog_rows(&self) -> Result<Vec<CatalogRow>, StorageError> {
        let mut found = Vec::new();
        let mut scan = self.catalog.scan(0).await?;
        while let Some(page) = scan.next().await? {
            let ids: Vec<_> = page.rows().iter().map(|row| row.id()).collect();
            for id in ids {
                let row = CatalogRow::parse(id.page, self.catalog.get(id).await?);
                found.push(row.ok_or(StorageError::Inconsistent(id.page))?);
            }
        }
        Ok(found)
    }

    /// Pages read and commands that it took, over all files: what the engine asked of its volumes.
    #[must_use]
    pub fn tally(&self) -> PoolTally {
        self.store.pool.tally()
    }
}

/// What the buffer pool did so far.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct PoolTally {
    /// Pages that were found in the pool.
    pub hits: u64,
    /// Pages that had to be read.
    pub misses: u64,
    /// Pages that left the pool.
    pub evicted: u64,
    /// Commands that read pages.
    pub reads: u64,
    /// Commands that wrote pages.
    pub writes: u64,
}

struct CatalogRow {
    page: PageId,
    object: ObjectId,
    rows: PageId,
    long: PageId,
    name: String,
    columns: Vec<u8>,
}

impl CatalogRow {
    fn parse(page: PageId, values: Vec<Value>) -> Option<Self> {
        let [Value::Int(object), Value::BigInt(rows), Value::BigInt(long), Value::String(name), Value::Binary(columns)] =
            <[Value; 5]>::try_from(values).ok()?
        else {
            return None;
        };
        let of = |packed: i64| PageId::unpack(packed.cast_unsigned());
        Some(Self { page, object: ObjectId(object.cast_unsigned()), rows: of(rows), long: of(long), name, columns })
    }
}

/// What the long values of an object's rows belong to.
fn long_of(object: ObjectId) -> ObjectId {
    ObjectId(object.0 + 1)
}

fn heaps(object: ObjectId, rows: PageId, long: PageId) -> [Heap; 2] {
    [Heap::new(object, PageKind::Heap, rows), Heap::new(long_of(object), PageKind::Lob, long)]
}
