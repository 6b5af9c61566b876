//! Locks by key, for a bounded number of keys at one time. First come, first served per key.
//!
//! Everyone who cannot have a key at once enters through one *gate*, first come first served: at the head of the gate, who wants
//! a key that somebody has goes on to the key's own list, and who wants another key stays until the table has room. So
//! nobody is overtaken at a key, and no busy key keeps the others out: while someone waits for room, nobody joins its list.

use super::waiters::{List, WaiterKey, Waiters};
use crate::collections::{FixedMap, fixed_map};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

#[derive(Debug, Copy, Clone)]
struct Wish<K> {
    key: K,
    at_gate: bool,
}

struct State<K> {
    capacity: usize,
    /// The keys that somebody has, and who waits for them.
    locked: FixedMap<K, List>,
    waiters: Waiters<Wish<K>>,
    gate: List,
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
        let state = State { capacity, locked: fixed_map(capacity), waiters: Waiters::new(), gate: List::new() };
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
        let free = self.gate.is_empty() && self.locked.len() < self.capacity && !self.locked.contains_key(&key);
        if free {
            self.locked.insert(key, List::new());
        }
        free
    }

    /// Passes `key` on to the next who waits for it, or its room to the gate.
    fn unlock(&mut self, key: K) {
        let list = self.locked.get_mut(&key).expect("a locked key is in the table");
        if !self.waiters.grant_front(list) {
            self.locked.remove(&key);
            self.open_gate();
        }
    }

    /// Lets through the gate whom it need not hold.
    fn open_gate(&mut self) {
        while let Some(&Wish { key, .. }) = self.waiters.front(&self.gate) {
            if let Some(list) = self.locked.get_mut(&key) {
                self.waiters.move_front(&mut self.gate, list).at_gate = false;
            } else if self.locked.len() < self.capacity {
                self.locked.insert(key, List::new());
                self.waiters.grant_front(&mut self.gate);
            } else {
                return;
            }
        }
    }

    fn wait(&mut self, key: K, cx: &Context<'_>) -> WaiterKey {
        let waiter = self.waiters.push_back(&mut self.gate, Wish { key, at_gate: true }, cx.waker());
        self.open_gate();
        waiter
    }

    /// Ends a wait; true if the key had been given.
    fn leave(&mut self, waiter: WaiterKey) -> bool {
        // If it held up others at the gate: whoever wants a key that somebody has goes on when that key is unlocked.
        let Wish { key, at_gate } = *self.waiters.data(&waiter);
        if at_gate {
            return self.waiters.remove(&mut self.gate, waiter);
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
                state.leave(waiter);
            }
            None if state.try_lock(this.key) => {}
            None => {
                this.waiter = Some(state.wait(this.key, cx));
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
            if state.leave(waiter) {
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
