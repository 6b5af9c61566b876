//! The storage engine: pages, rows and heaps on volumes, a buffer pool whose frames are the I/O buffers, a write-ahead log, and
//! recovery (DESIGN 7). It follows what SQL Server 7 does, with its words; the bytes are in `FORMAT.md`.

pub mod codec;
pub mod ids;
pub mod page;
pub mod row;
pub mod schema;
pub mod value;

pub use ids::{FileId, Lsn, ObjectId, PageId, RowId, TransactionId};
pub use page::{PAGE_BYTES, Page, PageKind};
pub use row::RowError;
pub use schema::{Column, ColumnType, Schema, SchemaError};
pub use value::Value;
