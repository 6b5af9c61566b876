//! What `dyad bench engine` measures (DESIGN 8).
//!
//! - **Scans** of pages that are in the buffer pool: what a page with its first row costs, a further row, a first column, a further one.
//! - **Scans from volumes**: what a page costs more when it comes from a volume in memory; and, in virtual time, how much of a volume of a
//!   given latency and bandwidth is used, beside whoever reads the same extents without the engine.
//! - **Transactions** as TPC-B has them, on files, beside `SQLite` and redb on the same file system with the same durability (feature `peers`).

mod bed;
#[cfg(feature = "peers")]
mod peers;
mod rated;
mod scan;
mod tpcb;
mod volume;

use std::path::Path;

use dyad_reactor::figures::{Figures, ROUNDS, Row};

use crate::error::{OpenError, StorageError};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file failed.
    #[error("a file: {0}")]
    File(#[from] std::io::Error),
    /// A volume failed.
    #[error("a volume: {0}")]
    Volume(#[from] dyad_host::VolumeError),
    /// What was measured did not do what it should.
    #[error("{0}")]
    Wrong(&'static str),
    /// `SQLite` failed.
    #[cfg(feature = "peers")]
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// redb failed.
    #[cfg(feature = "peers")]
    #[error("redb: {0}")]
    Redb(#[from] redb::Error),
}

/// Takes all figures; files are made in `directory`. `progress` gets a line now and then.
///
/// # Errors
/// [`BenchError`].
pub fn run(directory: &Path, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let mut figures = Figures::default();
    progress("tables are filled");
    let mut tables = scan::Tables::fill()?;
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}"));
        tables.measure(&mut figures)?;
        scan::from_volume(&mut figures)?;
        rated::measure(&mut figures)?;
        tpcb::measure(&directory.join(format!("engine-{round}")), &mut figures)?;
        #[cfg(feature = "peers")]
        peers::measure(&directory.join(format!("peers-{round}")), &mut figures)?;
    }
    Ok(figures.rows())
}
