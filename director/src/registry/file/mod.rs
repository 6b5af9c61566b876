//! The embedded registry: a directory that all directors of one host share (module `store`).

mod record;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use self::store::Store;
use super::worker::Worker;
use super::{Cas, Key, Registry, RegistryError, Revision, Versioned};

/// The registry's directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the registry in {} cannot be opened: {source}", .directory.display())]
pub struct OpenError {
    /// Which directory.
    pub directory: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

/// A client of the embedded registry. Clones are the same client.
#[derive(Debug, Clone)]
pub struct FileRegistry(Worker);

impl FileRegistry {
    /// Opens the registry in `directory`, on a local file system with hard links; makes the directory if need be.
    ///
    /// # Errors
    /// [`OpenError`]: the directory cannot be made, listed or written to, or no thread can be started.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let opened = Store::open(directory).and_then(Worker::start);
        opened.map(Self).map_err(|source| OpenError { directory: directory.to_owned(), source })
    }
}

impl Registry for FileRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        self.0.get(key).await
    }

    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> Result<Cas, RegistryError> {
        self.0.compare_and_swap(key, expected, value).await
    }
}

#[cfg(test)]
mod tests;
