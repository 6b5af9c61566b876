//! The embedded registry: a directory that all directors of one host share (module `store`), and a thread that works on it, so that the reactor
//! never waits for a disk.

mod record;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use self::store::Store;
use super::answer::{Promise, answer};
use super::{Cas, Key, Registry, RegistryError, Revision, VALUE_BYTES_MAX, Versioned};

/// Requests that may wait for the thread. Membership has one outstanding at a time.
const REQUESTS_MAX: usize = 16;

/// The registry's directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the registry in {} cannot be opened: {source}", .directory.display())]
pub struct OpenError {
    /// Which directory.
    pub directory: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

enum Request {
    Get { key: Key, promise: Promise<Option<Versioned>> },
    CompareAndSwap { key: Key, expected: Option<Revision>, value: Vec<u8>, promise: Promise<Cas> },
}

/// A client of the embedded registry. Clones are the same client. Its thread ends when the last clone is gone and all that was asked is done.
#[derive(Debug, Clone)]
pub struct FileRegistry {
    requests: SyncSender<Request>,
}

impl FileRegistry {
    /// Opens the registry in `directory`, on a local file system with hard links; makes the directory if need be.
    ///
    /// # Errors
    /// [`OpenError`]: the directory cannot be made, listed or written to, or no thread can be started.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError { directory: directory.to_owned(), source };
        let store = Store::open(directory).map_err(failed)?;
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        thread::Builder::new().name("registry".into()).spawn(move || serve(store, &inbox)).map_err(failed)?;
        Ok(Self { requests })
    }

    fn ask(&self, request: Request) -> Result<(), RegistryError> {
        match self.requests.try_send(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(RegistryError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(RegistryError::Storage(io::ErrorKind::BrokenPipe)),
        }
    }
}

fn serve(mut store: Store, inbox: &Receiver<Request>) {
    for request in inbox {
        match request {
            Request::Get { key, promise } => promise.keep(store.get(&key)),
            Request::CompareAndSwap { key, expected, value, promise } => {
                promise.keep(store.compare_and_swap(&key, expected, &value));
            }
        }
    }
}

impl Registry for FileRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        let (promise, answer) = answer();
        self.ask(Request::Get { key: key.clone(), promise })?;
        answer.await
    }

    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> Result<Cas, RegistryError> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(RegistryError::TooLarge);
        }
        let (promise, answer) = answer();
        let (key, value) = (key.clone(), value.to_vec());
        self.ask(Request::CompareAndSwap { key, expected, value, promise })?;
        answer.await
    }
}

#[cfg(test)]
mod tests;
