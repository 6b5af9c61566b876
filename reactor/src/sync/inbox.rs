//! A bounded queue at whose end many lanes wait for work.
//!
//! Items stay in the queue until their receiver polls; a receiver that was woken has one item *promised* to it, and a
//! pusher that was woken one free place. Everybody else sees the queue without the promised items and places. So while
//! anyone waits for an item, none is unpromised, and nobody overtakes.

use super::waiters::{List, WaiterKey, Waiters};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The queue had no room; gives the item back.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Full<T>(pub T);

struct State<T> {
    queue: VecDeque<T>,
    capacity: usize,
    waiters: Waiters<()>,
    receivers: List,
    promised_items: usize,
    pushers: List,
    promised_places: usize,
}

/// The queue. Clones are the same queue.
pub struct Inbox<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> Inbox<T> {
    /// An empty queue of at most `capacity` items.
    ///
    /// # Panics
    /// If `capacity` is zero.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a queue without room");
        let state = State {
            queue: VecDeque::with_capacity(capacity),
            capacity,
            waiters: Waiters::new(),
            receivers: List::new(),
            promised_items: 0,
            pushers: List::new(),
            promised_places: 0,
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Appends an item if there is room that nobody waits for.
    ///
    /// # Errors
    /// [`Full`] with the item.
    pub fn try_push(&self, item: T) -> Result<(), Full<T>> {
        self.state.borrow_mut().try_push(item)
    }

    /// Appends an item as soon as there is room.
    pub fn push(&self, item: T) -> Push<'_, T> {
        Push { inbox: self, item: Some(item), waiter: None }
    }

    /// Takes the first item, waiting for one if need be.
    pub fn next(&self) -> Next<'_, T> {
        Next { inbox: self, waiter: None }
    }

    /// Takes the first item that nobody waits for.
    #[must_use]
    pub fn try_next(&self) -> Option<T> {
        self.state.borrow_mut().try_next()
    }

    /// Items in the queue, those included whose receivers were woken and have not run yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.borrow().queue.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> State<T> {
    fn try_push(&mut self, item: T) -> Result<(), Full<T>> {
        if self.queue.len() + self.promised_places >= self.capacity {
            return Err(Full(item));
        }
        self.queue.push_back(item);
        self.promise();
        Ok(())
    }

    fn try_next(&mut self) -> Option<T> {
        if self.queue.len() <= self.promised_items {
            return None;
        }
        let item = self.queue.pop_front();
        self.promise();
        item
    }

    /// Promises what is free to those who wait.
    fn promise(&mut self) {
        while self.queue.len() > self.promised_items && self.waiters.grant_front(&mut self.receivers) {
            self.promised_items += 1;
        }
        while self.queue.len() + self.promised_places < self.capacity && self.waiters.grant_front(&mut self.pushers) {
            self.promised_places += 1;
        }
        debug_assert!(self.promised_items <= self.queue.len());
        debug_assert!(self.queue.len() + self.promised_places <= self.capacity);
    }

    /// Ends a receiver's wait; what was promised to it is free again.
    fn leave_receivers(&mut self, waiter: WaiterKey) {
        if self.waiters.remove(&mut self.receivers, waiter) {
            self.promised_items -= 1;
        }
    }

    /// Ends a pusher's wait; what was promised to it is free again.
    fn leave_pushers(&mut self, waiter: WaiterKey) {
        if self.waiters.remove(&mut self.pushers, waiter) {
            self.promised_places -= 1;
        }
    }
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self { state: Rc::clone(&self.state) }
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Completes with the next item of an [`Inbox`].
#[must_use = "futures do nothing unless awaited"]
pub struct Next<'a, T> {
    inbox: &'a Inbox<T>,
    waiter: Option<WaiterKey>,
}

impl<T> Future for Next<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        let mut state = this.inbox.state.borrow_mut();
        let state = &mut *state;
        match this.waiter.take() {
            Some(waiter) if !state.waiters.is_granted(&waiter) => {
                state.waiters.set_waker(&waiter, cx.waker());
                this.waiter = Some(waiter);
                return Poll::Pending;
            }
            Some(waiter) => state.leave_receivers(waiter),
            None => {}
        }
        if let Some(item) = state.try_next() {
            return Poll::Ready(item);
        }
        this.waiter = Some(state.waiters.push_back(&mut state.receivers, (), cx.waker()));
        Poll::Pending
    }
}

impl<T> Drop for Next<'_, T> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.inbox.state.borrow_mut();
            state.leave_receivers(waiter);
            state.promise();
        }
    }
}

/// Completes when its item is in the [`Inbox`].
#[must_use = "futures do nothing unless awaited"]
pub struct Push<'a, T> {
    inbox: &'a Inbox<T>,
    item: Option<T>,
    waiter: Option<WaiterKey>,
}

/// The item is never pinned; it only passes through.
impl<T> Unpin for Push<'_, T> {}

impl<T> Future for Push<'_, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut state = this.inbox.state.borrow_mut();
        let state = &mut *state;
        match this.waiter.take() {
            Some(waiter) if !state.waiters.is_granted(&waiter) => {
                state.waiters.set_waker(&waiter, cx.waker());
                this.waiter = Some(waiter);
                return Poll::Pending;
            }
            Some(waiter) => state.leave_pushers(waiter),
            None => {}
        }
        let item = this.item.take().expect("polled after it completed");
        let Err(Full(item)) = state.try_push(item) else { return Poll::Ready(()) };
        this.item = Some(item);
        this.waiter = Some(state.waiters.push_back(&mut state.pushers, (), cx.waker()));
        Poll::Pending
    }
}

impl<T> Drop for Push<'_, T> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.inbox.state.borrow_mut();
            state.leave_pushers(waiter);
            state.promise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::poll;
    use super::*;
    use std::pin::pin;

    #[test]
    fn items_come_in_order_and_the_bound_holds() {
        let inbox = Inbox::new(2);
        assert_eq!(inbox.try_push(1), Ok(()));
        assert_eq!(inbox.try_push(2), Ok(()));
        assert_eq!(inbox.try_push(3), Err(Full(3)));
        let mut push = pin!(inbox.push(3));
        assert!(poll(push.as_mut()).is_pending());
        assert_eq!(inbox.try_next(), Some(1));
        assert_eq!(inbox.try_push(4), Err(Full(4)), "the place is promised to the one who waited");
        assert!(poll(push.as_mut()).is_ready());
        assert_eq!((inbox.try_next(), inbox.try_next(), inbox.try_next()), (Some(2), Some(3), None));
    }

    #[test]
    fn receivers_are_served_in_the_order_in_which_they_came() {
        let inbox = Inbox::new(4);
        let (mut first, mut second) = (pin!(inbox.next()), pin!(inbox.next()));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        inbox.try_push('a').expect("room");
        assert!(poll(second.as_mut()).is_pending());
        assert_eq!(inbox.try_next(), None, "the item is promised");
        inbox.try_push('b').expect("room");
        assert_eq!(poll(first.as_mut()), Poll::Ready('a'));
        assert_eq!(poll(second.as_mut()), Poll::Ready('b'));
    }

    #[test]
    fn what_a_dropped_waiter_was_promised_goes_to_the_next() {
        let inbox = Inbox::new(1);
        let mut second = pin!(inbox.next());
        {
            let mut first = pin!(inbox.next());
            assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
            inbox.try_push(1).expect("room");
        }
        assert_eq!(poll(second.as_mut()), Poll::Ready(1));
        inbox.try_push(2).expect("room");
        let mut late = pin!(inbox.push(4));
        {
            let mut early = pin!(inbox.push(3));
            assert!(poll(early.as_mut()).is_pending() && poll(late.as_mut()).is_pending());
            assert_eq!(inbox.try_next(), Some(2));
        }
        assert!(poll(late.as_mut()).is_ready());
        assert_eq!(inbox.try_next(), Some(4));
    }
}
