//! Locks by key, for a bounded number of keys at one time. First come, first served per key.
//!
//! Who wants a key that somebody has waits in the key's list. Who wants another key while the table is full waits for
//! room, first come first served; when room is found for a key, everyone else who waited for room for the same key moves to
//! the key's list, so nobody who comes later overtakes them.

use super::waiters::{List, WaiterKey, Waiters};
use crate::collections::{FixedMap, fixed_map};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

#[derive(Debug)]
struct Wish<K> {
    key: K,
    /// It waits for room, not for the key.
    for_room: bool,
}

struct State<K> {
    capacity: usize,
    /// The keys that somebody has, and who waits for them.
    locked: FixedMap<K, List>,
    waiters: Waiters<Wish<K>>,
    for_room: List,
}

/// The locks. Clones are the same.
pub struct KeyedLocks<K> {
    state: Rc<RefCell<State<K>>>,
}

impl<K: Copy + Eq + Hash> KeyedLocks<K> {
    /// Locks for at most `capacity` keys at one time.
    ///
    /// # Panics
    /// If `capacity` is zero.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "no key could ever be locked");
        let state = State { capacity, locked: fixed_map(capacity), waiters: Waiters::new(), for_room: List::new() };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Waits until nobody has `key`.
    pub fn lock(&self, key: K) -> Lock<'_, K> {
        Lock { locks: self, key, waiter: None }
    }

    /// `key` at once, if nobody has it or waits for it and there is room.
    #[must_use]
    pub fn try_lock(&self, key: K) -> Option<KeyGuard<K>> {
        self.state.borrow_mut().try_lock(key).then(|| self.guard(key))
    }

    /// Keys that somebody has.
    #[must_use]
    pub fn locked(&self) -> usize {
        self.state.borrow().locked.len()
    }

    fn guard(&self, key: K) -> KeyGuard<K> {
        KeyGuard { locks: self.clone(), key }
    }
}

impl<K: Copy + Eq + Hash> State<K> {
    fn try_lock(&mut self, key: K) -> bool {
        // Whoever waits for room goes first, even if the key is free.
        let free = self.locked.len() < self.capacity && self.for_room.is_empty() && !self.locked.contains_key(&key);
        if free {
            self.locked.insert(key, List::new());
        }
        free
    }

    /// Passes `key` on to the next who waits for it, or gives its room to the next who waits for room.
    fn unlock(&mut self, key: K) {
        let list = self.locked.get_mut(&key).expect("a locked key is in the table");
        if self.waiters.grant_front(list) {
            return;
        }
        self.locked.remove(&key);
        if let Some(&Wish { key, .. }) = self.waiters.front(&self.for_room) {
            self.waiters.grant_front(&mut self.for_room);
            let mut list = List::new();
            self.waiters.move_matching(&mut self.for_room, &mut list, |wish| {
                let same = wish.key == key;
                wish.for_room = !same;
                same
            });
            let before = self.locked.insert(key, list);
            assert!(before.is_none(), "who waits for room wants a key that nobody has");
        }
    }

    fn push_back(&mut self, key: K, cx: &Context<'_>) -> WaiterKey {
        match self.locked.get_mut(&key) {
            Some(list) => self.waiters.push_back(list, Wish { key, for_room: false }, cx.waker()),
            None => self.waiters.push_back(&mut self.for_room, Wish { key, for_room: true }, cx.waker()),
        }
    }

    /// Ends a wait; true if the key had been given.
    fn remove(&mut self, waiter: WaiterKey) -> bool {
        let Wish { key, for_room } = *self.waiters.data(&waiter);
        if for_room {
            return self.waiters.remove(&mut self.for_room, waiter);
        }
        let list = self.locked.get_mut(&key).expect("a key that is waited for is locked");
        self.waiters.remove(list, waiter)
    }
}

impl<K> Clone for KeyedLocks<K> {
    fn clone(&self) -> Self {
        Self { state: Rc::clone(&self.state) }
    }
}

impl<K> fmt::Debug for KeyedLocks<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLocks").field("locked", &self.state.borrow().locked.len()).finish_non_exhaustive()
    }
}

/// A locked key; unlocked when this is dropped.
#[must_use = "the key is unlocked at once"]
pub struct KeyGuard<K: Copy + Eq + Hash> {
    locks: KeyedLocks<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> KeyGuard<K> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> K {
        self.key
    }
}

impl<K: Copy + Eq + Hash> Drop for KeyGuard<K> {
    fn drop(&mut self) {
        self.locks.state.borrow_mut().unlock(self.key);
    }
}

impl<K: Copy + Eq + Hash + fmt::Debug> fmt::Debug for KeyGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyGuard").field(&self.key).finish()
    }
}

/// Completes with the locked key.
#[must_use = "futures do nothing unless awaited"]
pub struct Lock<'a, K: Copy + Eq + Hash> {
    locks: &'a KeyedLocks<K>,
    key: K,
    waiter: Option<WaiterKey>,
}

/// The key is never pinned; it is only copied.
impl<K: Copy + Eq + Hash> Unpin for Lock<'_, K> {}

impl<K: Copy + Eq + Hash> Future for Lock<'_, K> {
    type Output = KeyGuard<K>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<KeyGuard<K>> {
        let this = self.get_mut();
        let mut state = this.locks.state.borrow_mut();
        match this.waiter.take() {
            Some(waiter) if !state.waiters.is_granted(&waiter) => {
                state.waiters.set_waker(&waiter, cx.waker());
                this.waiter = Some(waiter);
                return Poll::Pending;
            }
            Some(waiter) => {
                state.remove(waiter);
            }
            None if state.try_lock(this.key) => {}
            None => {
                this.waiter = Some(state.push_back(this.key, cx));
                return Poll::Pending;
            }
        }
        Poll::Ready(this.locks.guard(this.key))
    }
}

impl<K: Copy + Eq + Hash> Drop for Lock<'_, K> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.locks.state.borrow_mut();
            if state.remove(waiter) {
                state.unlock(self.key);
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
    fn one_key_at_a_time_and_others_beside_it() {
        let locks = KeyedLocks::new(2);
        let one = locks.try_lock(1).expect("free");
        assert!(locks.try_lock(1).is_none());
        let two = locks.try_lock(2).expect("another key");
        let mut again = pin!(locks.lock(1));
        assert!(poll(again.as_mut()).is_pending());
        drop(one);
        assert!(locks.try_lock(1).is_none(), "it is promised to the one who waits");
        let Poll::Ready(guard) = poll(again.as_mut()) else { panic!("unlocked") };
        assert_eq!((guard.key(), two.key(), locks.locked()), (1, 2, 2));
    }

    #[test]
    fn who_waited_for_room_is_not_overtaken_at_the_key() {
        let locks = KeyedLocks::new(1);
        let one = locks.try_lock(1).expect("free");
        let (mut first, mut second, mut third) = (pin!(locks.lock(2)), pin!(locks.lock(2)), pin!(locks.lock(2)));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        drop(one);
        assert!(poll(third.as_mut()).is_pending());
        let Poll::Ready(guard) = poll(first.as_mut()) else { panic!("there is room") };
        drop(guard);
        assert!(poll(third.as_mut()).is_pending(), "the second waits since before the key had room");
        assert!(poll(second.as_mut()).is_ready());
    }

    #[test]
    fn dropped_waiters_pass_on_what_they_were_given() {
        let locks = KeyedLocks::new(1);
        let one = locks.try_lock(1).expect("free");
        let mut other = pin!(locks.lock(2));
        {
            let mut granted = pin!(locks.lock(1));
            assert!(poll(granted.as_mut()).is_pending() && poll(other.as_mut()).is_pending());
            drop(one);
        }
        assert!(poll(other.as_mut()).is_ready());
        assert_eq!(locks.locked(), 0);
    }
}
