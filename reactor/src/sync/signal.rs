//! A broadcast: "something changed, look again". A change is a number that grows, so none can be missed.

use super::waiters::{List, WaiterKey, Waiters};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

struct State {
    generation: u64,
    waiters: Waiters<()>,
    queue: List,
}

/// The signal. Clones are the same.
#[derive(Clone)]
pub struct Signal {
    state: Rc<RefCell<State>>,
}

impl Signal {
    /// A signal at generation zero.
    #[must_use]
    pub fn new() -> Self {
        let state = State { generation: 0, waiters: Waiters::new(), queue: List::new() };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Starts the next generation and wakes everyone who waits.
    pub fn notify_all(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.generation += 1;
        while state.waiters.grant_front(&mut state.queue) {}
    }

    /// How often this was notified. Read it *before* looking at what it guards.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state.borrow().generation
    }

    /// Waits until the generation is not `seen` any more; completes with the new one.
    pub fn changed_since(&self, seen: u64) -> Changed<'_> {
        Changed { signal: self, seen, waiter: None }
    }
}

impl Default for Signal {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// Completes with the generation, once it has changed.
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct Changed<'a> {
    signal: &'a Signal,
    seen: u64,
    waiter: Option<WaiterKey>,
}

impl Future for Changed<'_> {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        let this = self.get_mut();
        let mut state = this.signal.state.borrow_mut();
        let state = &mut *state;
        if state.generation != this.seen {
            if let Some(waiter) = this.waiter.take() {
                state.waiters.remove(&mut state.queue, waiter);
            }
            return Poll::Ready(state.generation);
        }
        match &this.waiter {
            Some(waiter) => state.waiters.set_waker(waiter, cx.waker()),
            None => this.waiter = Some(state.waiters.push_back(&mut state.queue, (), cx.waker())),
        }
        Poll::Pending
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.signal.state.borrow_mut();
            let state = &mut *state;
            state.waiters.remove(&mut state.queue, waiter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::poll;
    use super::*;
    use std::pin::pin;

    #[test]
    fn a_change_before_the_wait_is_not_missed() {
        let signal = Signal::new();
        let seen = signal.generation();
        signal.notify_all();
        assert_eq!(poll(pin!(signal.changed_since(seen))), Poll::Ready(1));
    }

    #[test]
    fn everyone_who_waits_hears_it_once() {
        let signal = Signal::new();
        let (mut first, mut second) = (pin!(signal.changed_since(0)), pin!(signal.changed_since(0)));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        drop(signal.changed_since(0));
        signal.notify_all();
        assert_eq!((poll(first.as_mut()), poll(second.as_mut())), (Poll::Ready(1), Poll::Ready(1)));
        assert!(poll(pin!(signal.changed_since(1))).is_pending());
    }
}
