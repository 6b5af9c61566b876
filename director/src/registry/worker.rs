//! A thread that works on a store, so that the reactor never waits for a disk or a network. It does one request after the other, in their order.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use super::answer::{Promise, answer};
use super::{Cas, Key, RegistryError, Revision, VALUE_BYTES_MAX, Versioned};

/// Requests that may wait for the thread. Membership has one outstanding at a time.
const REQUESTS_MAX: usize = 16;

/// What the thread works on; its operations are those of [`Registry`](super::Registry), and may block for a bounded time.
pub(super) trait Store: Send + 'static {
    fn get(&mut self, key: &Key) -> Result<Option<Versioned>, RegistryError>;

    fn compare_and_swap(&mut self, key: &Key, expected: Option<Revision>, value: &[u8]) -> Result<Cas, RegistryError>;
}

enum Request {
    Get { key: Key, promise: Promise<Option<Versioned>> },
    CompareAndSwap { key: Key, expected: Option<Revision>, value: Vec<u8>, promise: Promise<Cas> },
}

/// Asks the thread. Clones ask the same one, which ends when the last clone is gone and all that was asked is done.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    requests: SyncSender<Request>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(store: impl Store) -> io::Result<Self> {
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        thread::Builder::new().name("registry".into()).spawn(move || serve(store, &inbox))?;
        Ok(Self { requests })
    }

    pub(super) async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        let (promise, answer) = answer();
        self.ask(Request::Get { key: key.clone(), promise })?;
        answer.await
    }

    pub(super) async fn compare_and_swap(
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

    fn ask(&self, request: Request) -> Result<(), RegistryError> {
        match self.requests.try_send(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(RegistryError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(RegistryError::Storage(io::ErrorKind::BrokenPipe)),
        }
    }
}

fn serve(mut store: impl Store, inbox: &Receiver<Request>) {
    for request in inbox {
        match request {
            Request::Get { key, promise } => promise.keep(store.get(&key)),
            Request::CompareAndSwap { key, expected, value, promise } => {
                promise.keep(store.compare_and_swap(&key, expected, &value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::super::conformance::{block_on, key};
    use super::*;

    #[test]
    fn a_full_queue_says_so() {
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        let registry = Worker { requests };
        let key = key("pair");
        let mut waiting: Vec<_> = (0..REQUESTS_MAX).map(|_| Box::pin(registry.get(&key))).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for get in &mut waiting {
            assert!(get.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(block_on(registry.get(&key)), Err(RegistryError::Busy));
        // The thread dies: nobody knows what became of what it had.
        drop(inbox);
        assert!(waiting.into_iter().all(|get| block_on(get) == Err(RegistryError::Unknown)));
        assert_eq!(block_on(registry.get(&key)), Err(RegistryError::Storage(io::ErrorKind::BrokenPipe)));
    }
}
