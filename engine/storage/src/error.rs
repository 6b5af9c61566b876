//! How operations of the engine fail. None of these ends the engine but [`StorageError::Down`].

use dyad_host::VolumeError;

use crate::change::Mismatch;
use crate::ids::{FileId, PageId, RowId};
use crate::page::Damage;
use crate::row::RowError;
use crate::schema::SchemaError;

/// Why an operation failed. Whatever it had changed is still part of its transaction, which can go on or be rolled back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// A page cannot be used. Others can.
    #[error("page {page}: {damage}")]
    Corrupt {
        /// Which.
        page: PageId,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A page contradicts itself or other pages.
    #[error("page {0} is not what other pages say about it")]
    Inconsistent(PageId),
    /// A page could not be read.
    #[error("page {page} could not be read: {error}")]
    Unreadable {
        /// Which.
        page: PageId,
        /// Why.
        error: VolumeError,
    },
    /// There is no such file.
    #[error("there is no file {}", .0.0)]
    NoFile(FileId),
    /// No file has room, and none can grow.
    #[error("all files are full")]
    Full,
    /// The log has no room: an old transaction keeps it, or it is too small.
    #[error("the log is full")]
    LogFull,
    /// All buffers are in use at this moment.
    #[error("too little memory: every buffer of the pool is in use")]
    NoBuffers,
    /// The values make no row of the table.
    #[error(transparent)]
    Row(#[from] RowError),
    /// There is no such table.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// No row has this name, or no more.
    #[error("there is no row {0}")]
    NoRow(RowId),
    /// Another transaction has changed the row and has not ended.
    #[error("row {0} is being changed by another transaction")]
    Locked(RowId),
    /// A table of this name exists, or the name is no name.
    #[error("a table of this name exists, or the name is empty or too long")]
    Name,
    /// No table has this name.
    #[error("there is no such table")]
    NoTable,
    /// The transaction has ended.
    #[error("the transaction has ended")]
    Ended,
    /// The engine has stopped: the log, or a page that must be written, is not to be had. What was committed is on the volumes.
    #[error("the database is down: {0}")]
    Down(VolumeError),
}

/// Why there is no database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Fewer buffers, or frames for them, than the engine needs.
    #[error("too little memory: {have} buffers; {least} are needed for each file")]
    TooLittleMemory {
        /// Buffers of the smallest file.
        have: usize,
        /// At least so many.
        least: usize,
    },
    /// A volume is smaller than what must be on it.
    #[error("a volume of {blocks} blocks is too small; {least} are needed")]
    TooSmall {
        /// Its blocks.
        blocks: u64,
        /// At least so many.
        least: u64,
    },
    /// The first file holds no database.
    #[error("the first volume holds no database")]
    NoDatabase,
    /// The log is of another database, or there is none.
    #[error("the log volume holds no log of this database")]
    ForeignLog,
    /// A file is of another database, or in the wrong place.
    #[error("volume {} is not that file of this database", .0.0)]
    ForeignFile(FileId),
    /// The log ends before the place where recovery must begin.
    #[error("the log is damaged where recovery begins")]
    LogDamaged,
    /// The log speaks of other pages than there are.
    #[error("page {0} does not fit the log")]
    Mismatch(PageId),
    /// The volumes failed.
    #[error("the volumes failed: {0}")]
    Volume(#[from] VolumeError),
    /// An operation of recovery failed.
    #[error("recovery failed: {0}")]
    Recovery(#[from] StorageError),
}

/// A change that does not fit a page that was looked at under the same latch is a mistake of this engine's.
pub(crate) fn fits(applied: Result<(), Mismatch>) {
    assert!(applied.is_ok(), "a change was planned on the page that it is applied to");
}
