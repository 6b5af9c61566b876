//! A counting semaphore. First come, first served: a large request at the head is not starved by small ones behind it.

use super::waiters::{List, WaiterKey, Waiters};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

struct State {
    available: usize,
    /// Each carries how many permits it wants.
    waiters: Waiters<usize>,
    queue: List,
}

/// The permits. Clones are the same.
#[derive(Clone)]
pub struct Permits {
    state: Rc<RefCell<State>>,
}

impl Permits {
    /// `count` permits, all available.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let state = State { available: count, waiters: Waiters::new(), queue: List::new() };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Waits for `count` permits. Waits for ever if there will never be as many, and everyone behind it too.
    pub fn acquire(&self, count: usize) -> Acquire<'_> {
        Acquire { permits: self, count, waiter: None }
    }

    /// `count` permits if they are available and nobody waits.
    #[must_use]
    pub fn try_acquire(&self, count: usize) -> Option<Permit> {
        self.state.borrow_mut().try_take(count).then(|| self.permit(count))
    }

    /// Permits that nobody has.
    #[must_use]
    pub fn available(&self) -> usize {
        self.state.borrow().available
    }

    /// Makes `count` more permits.
    pub fn add(&self, count: usize) {
        self.state.borrow_mut().put(count);
    }

    fn permit(&self, count: usize) -> Permit {
        Permit { permits: self.clone(), count }
    }
}

impl State {
    fn try_take(&mut self, count: usize) -> bool {
        let free = self.queue.is_empty() && count <= self.available;
        if free {
            self.available -= count;
        }
        free
    }

    fn put(&mut self, count: usize) {
        self.available += count;
        self.grant();
    }

    /// Serves the queue as far as the permits reach.
    fn grant(&mut self) {
        while let Some(&count) = self.waiters.front(&self.queue)
            && count <= self.available
        {
            self.available -= count;
            self.waiters.grant_front(&mut self.queue);
        }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").field("available", &self.available()).finish_non_exhaustive()
    }
}

/// Permits taken; they return when this is dropped.
#[must_use = "the permits return at once"]
#[derive(Debug)]
pub struct Permit {
    permits: Permits,
    count: usize,
}

impl Permit {
    /// How many permits these are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Uses the permits up: they never return.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.count > 0 {
            self.permits.add(self.count);
        }
    }
}

/// Completes with the permits.
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct Acquire<'a> {
    permits: &'a Permits,
    count: usize,
    waiter: Option<WaiterKey>,
}

impl Future for Acquire<'_> {
    type Output = Permit;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let this = self.get_mut();
        let mut state = this.permits.state.borrow_mut();
        let state = &mut *state;
        match this.waiter.take() {
            Some(waiter) if !state.waiters.is_granted(&waiter) => {
                state.waiters.set_waker(&waiter, cx.waker());
                this.waiter = Some(waiter);
                return Poll::Pending;
            }
            Some(waiter) => {
                state.waiters.remove(&mut state.queue, waiter);
            }
            None if state.try_take(this.count) => {}
            None => {
                this.waiter = Some(state.waiters.push_back(&mut state.queue, this.count, cx.waker()));
                return Poll::Pending;
            }
        }
        Poll::Ready(this.permits.permit(this.count))
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.permits.state.borrow_mut();
            let state = &mut *state;
            if state.waiters.remove(&mut state.queue, waiter) {
                state.put(self.count);
            } else {
                // It may have been the large one that held up the others.
                state.grant();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::poll;
    use super::*;
    use std::pin::pin;

    #[test]
    fn permits_return_when_dropped() {
        let permits = Permits::new(3);
        let two = permits.try_acquire(2).expect("three are there");
        assert!(permits.try_acquire(2).is_none());
        drop(two);
        assert_eq!(permits.available(), 3);
        permits.try_acquire(1).expect("three are there").forget();
        assert_eq!(permits.available(), 2);
    }

    #[test]
    fn a_large_request_is_not_overtaken() {
        let permits = Permits::new(2);
        let one = permits.try_acquire(1).expect("two are there");
        let (mut large, mut small) = (pin!(permits.acquire(2)), pin!(permits.acquire(1)));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending());
        assert!(permits.try_acquire(1).is_none());
        drop(one);
        let Poll::Ready(two) = poll(large.as_mut()) else { panic!("both permits are free") };
        assert!(poll(small.as_mut()).is_pending());
        drop(two);
        assert!(poll(small.as_mut()).is_ready());
    }

    #[test]
    fn dropped_requests_hold_up_nobody_and_keep_nothing() {
        let permits = Permits::new(1);
        let mut small = pin!(permits.acquire(1));
        {
            let mut large = pin!(permits.acquire(5));
            assert!(poll(large.as_mut()).is_pending() && poll(small.as_mut()).is_pending());
        }
        let Poll::Ready(one) = poll(small.as_mut()) else { panic!("the large request is gone") };
        {
            let mut granted = pin!(permits.acquire(1));
            assert!(poll(granted.as_mut()).is_pending());
            drop(one);
            assert_eq!(permits.available(), 0);
        }
        assert_eq!(permits.available(), 1);
    }
}
