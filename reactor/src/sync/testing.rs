//! Polling by hand, for the tests of the waiting places.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls once, with a waker that does nothing.
pub(super) fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A future under test, with a waker that remembers.
pub(super) struct Waiting<F> {
    /// Which one, in the order of arrival.
    pub(super) number: usize,
    future: Pin<Box<F>>,
    flag: Arc<Flag>,
}

impl<F: Future> Waiting<F> {
    pub(super) fn new(number: usize, future: F) -> Self {
        Self { number, future: Box::pin(future), flag: Arc::default() }
    }

    /// Polls, each time with another waker; only the last one counts.
    pub(super) fn poll(&mut self) -> Poll<F::Output> {
        self.flag = Arc::default();
        let waker = Waker::from(Arc::clone(&self.flag));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// True if it was woken since it was polled last.
    pub(super) fn is_woken(&self) -> bool {
        self.flag.0.load(Ordering::Relaxed)
    }
}
