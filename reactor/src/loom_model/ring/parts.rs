//! What rtrb and atomic-waker promise, on loom's atomics: a queue whose items are published with release and acquire and nothing
//! more, and a waker cell.

pub(super) use loom::sync::atomic::{AtomicBool, Ordering};

use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Mutex};
use rtrb::{PopError, PushError};
use std::task::Waker;

struct Queue<T> {
    /// Each place is touched by one end at a time, so its lock is never waited for.
    places: Vec<std::sync::Mutex<Option<T>>>,
    pushed: AtomicUsize,
    popped: AtomicUsize,
}

pub(super) struct Producer<T>(Arc<Queue<T>>);
pub(super) struct Consumer<T>(Arc<Queue<T>>);

pub(super) fn queue<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let places = (0..capacity).map(|_| std::sync::Mutex::new(None)).collect();
    let queue = Arc::new(Queue { places, pushed: AtomicUsize::new(0), popped: AtomicUsize::new(0) });
    (Producer(Arc::clone(&queue)), Consumer(queue))
}

impl<T> Producer<T> {
    pub(super) fn push(&mut self, item: T) -> Result<(), PushError<T>> {
        let queue = &self.0;
        let pushed = queue.pushed.load(Ordering::Relaxed);
        if pushed - queue.popped.load(Ordering::Acquire) == queue.places.len() {
            return Err(PushError::Full(item));
        }
        let before = queue.places[pushed % queue.places.len()].try_lock().unwrap().replace(item);
        assert!(before.is_none());
        queue.pushed.store(pushed + 1, Ordering::Release);
        Ok(())
    }
}

impl<T> Consumer<T> {
    pub(super) fn pop(&mut self) -> Result<T, PopError> {
        let queue = &self.0;
        let popped = queue.popped.load(Ordering::Relaxed);
        if queue.pushed.load(Ordering::Acquire) == popped {
            return Err(PopError::Empty);
        }
        let item = queue.places[popped % queue.places.len()].try_lock().unwrap().take().unwrap();
        queue.popped.store(popped + 1, Ordering::Release);
        Ok(item)
    }
}

#[derive(Debug)]
pub(super) struct AtomicWaker(Mutex<Option<Waker>>);

impl AtomicWaker {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn register(&self, waker: &Waker) {
        *self.0.lock().unwrap() = Some(waker.clone());
    }

    pub(super) fn wake(&self) {
        let waker = self.0.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
