//! The storage engine: pages, rows and heaps on volumes, a buffer pool whose frames are the I/O buffers, a write-ahead log, and
//! recovery (DESIGN 7). It follows what SQL Server 7 does, with its words; the bytes are in `FORMAT.md`.

mod allocation;
pub mod bank;
pub mod bench;
mod boot;
mod buffer;
mod change;
mod checkpoint;
mod codec;
mod database;
mod error;
mod heap;
mod ids;
mod log;
mod page;
mod part;
mod port;
mod recovery;
mod row;
mod schema;
mod site;
mod store;
mod sync;
mod table;
mod transaction;
mod value;

pub use buffer::BUFFERS_MIN;
pub use database::{Database, Options, PoolTally, Service};
pub use error::{OpenError, StorageError};
pub use heap::scan::{RowIter, Rows, Scan, ScanPage};
pub use ids::{FileId, Lsn, ObjectId, PageId, RowId, TransactionId};
pub use log::{Durability, LOG_BLOCKS_MIN};
pub use page::{Damage, PAGE_BYTES};
pub use part::Part;
pub use port::{DataFile, LogFile, Server};
pub use recovery::Recovered;
pub use row::{Row, RowError};
pub use schema::{Column, ColumnType, Fixed, Schema, SchemaError};
pub use site::{Seats, Site};
pub use table::Table;
pub use transaction::{Savepoint, Transaction};
pub use value::Value;
