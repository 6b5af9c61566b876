//! Waiting, for any executor: whatever polls these futures with whatever waker. Nothing here is held across an await.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

/// Takes a lock that nobody holds while it may panic; if somebody did after all, what it guards is as good as it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A place to wait until something that others change is so.
#[derive(Debug, Default)]
pub(crate) struct Event {
    waiting: Mutex<VecDeque<Waker>>,
    /// How often everybody was woken.
    turns: AtomicU64,
}

impl Event {
    /// Waits until `check` has an answer. Whoever changes what it looks at wakes afterwards.
    pub(crate) async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(answer) = check() {
                return Poll::Ready(answer);
            }
            let mut waiting = lock(&self.waiting);
            waiting.retain(|waker| !waker.will_wake(context.waker()));
            // Who changes it now finds this waker, or has changed it already.
            waiting.push_back(context.waker().clone());
            drop(waiting);
            match check() {
                Some(answer) => {
                    lock(&self.waiting).retain(|waker| !waker.will_wake(context.waker()));
                    Poll::Ready(answer)
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    /// A number that changes with every [`Self::wake_all`].
    pub(crate) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    /// Waits until everybody was woken since the number was `seen`.
    pub(crate) async fn after(&self, seen: u64) {
        self.until(|| (self.turn() != seen).then_some(())).await;
    }

    /// Everybody looks again.
    pub(crate) fn wake_all(&self) {
        self.turns.fetch_add(1, Ordering::AcqRel);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whoever has waited longest looks again.
    pub(crate) fn wake_one(&self) {
        let first = lock(&self.waiting).pop_front();
        if let Some(waker) = first {
            waker.wake();
        }
    }
}

/// One answer to one question.
#[derive(Debug)]
pub(crate) struct Reply<T>(Arc<(Mutex<Option<T>>, Event)>);

impl<T> Clone for Reply<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Reply<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Mutex::new(None), Event::default())))
    }

    /// Answers.
    pub(crate) fn put(&self, answer: T) {
        *lock(&self.0.0) = Some(answer);
        self.0.1.wake_all();
    }

    /// Waits for the answer.
    pub(crate) async fn take(self) -> T {
        self.0.1.until(|| lock(&self.0.0).take()).await
    }
}

/// Lets one at a time through, across awaits.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    taken: AtomicBool,
    free: Event,
}

/// Whoever has this is through.
pub(crate) struct Passage<'a>(&'a Gate);

impl Gate {
    pub(crate) async fn enter(&self) -> Passage<'_> {
        self.free.until(|| (!self.taken.swap(true, Ordering::Acquire)).then_some(())).await;
        Passage(self)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
        self.0.free.wake_all();
    }
}
