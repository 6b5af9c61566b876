//! Lists of waiting futures, first in first out, in one table of fixed capacity.
//!
//! An entry belongs to the future that has its [`WaiterKey`], until that future removes it. While it waits it stands in one list;
//! being granted takes it out of the list and wakes the future.

use crate::executor::MAX_TASKS;
use std::task::Waker;

/// End of a list.
const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Entry<D> {
    /// `None` while the entry is free.
    waiter: Option<(D, Waker)>,
    granted: bool,
    prev: u32,
    next: u32,
}

/// The table; each waiter carries a `D`.
#[derive(Debug)]
pub(super) struct Waiters<D> {
    entries: Vec<Entry<D>>,
    free: u32,
}

/// A list in a table.
#[derive(Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

/// A waiter.
#[derive(Debug)]
pub(super) struct WaiterKey(u32);

impl List {
    pub(super) const fn new() -> Self {
        Self { head: NIL, tail: NIL }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

impl<D> Waiters<D> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::with_capacity(MAX_TASKS), free: NIL }
    }

    /// Makes a waiter, the last of `list`.
    pub(super) fn push_back(&mut self, list: &mut List, data: D, waker: &Waker) -> WaiterKey {
        let entry = Entry { waiter: Some((data, waker.clone())), granted: false, prev: NIL, next: NIL };
        let index = if self.free == NIL {
            assert!(self.entries.len() < MAX_TASKS, "more than {MAX_TASKS} wait at one place");
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("fewer than the most tasks")
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.entries[index as usize], entry).next;
            index
        };
        self.link_back(list, index);
        WaiterKey(index)
    }

    /// What the first waiter of `list` carries.
    pub(super) fn front(&self, list: &List) -> Option<&D> {
        let entry = self.entries.get(list.head as usize)?;
        entry.waiter.as_ref().map(|(data, _)| data)
    }

    /// Takes the first waiter out of `list`, grants it and wakes it.
    pub(super) fn grant_front(&mut self, list: &mut List) -> bool {
        if list.is_empty() {
            return false;
        }
        let index = list.head;
        self.unlink(list, index);
        let entry = &mut self.entries[index as usize];
        entry.granted = true;
        if let Some((_, waker)) = &entry.waiter {
            waker.wake_by_ref();
        }
        true
    }

    /// Moves the first waiter of `from` to the end of `to`; gives what it carries.
    ///
    /// # Panics
    /// If `from` is empty.
    pub(super) fn move_front(&mut self, from: &mut List, to: &mut List) -> &mut D {
        let index = from.head;
        self.unlink(from, index);
        self.link_back(to, index);
        self.entries[index as usize].waiter.as_mut().map(|(data, _)| data).expect("who stands in a list waits")
    }

    pub(super) fn is_granted(&self, key: &WaiterKey) -> bool {
        self.entries[key.0 as usize].granted
    }

    /// What the waiter carries.
    pub(super) fn data(&self, key: &WaiterKey) -> &D {
        self.entries[key.0 as usize].waiter.as_ref().map(|(data, _)| data).expect("a key's waiter exists")
    }

    /// Sees to it that `waker` is the one that is woken.
    pub(super) fn set_waker(&mut self, key: &WaiterKey, waker: &Waker) {
        if let Some((_, old)) = &mut self.entries[key.0 as usize].waiter
            && !old.will_wake(waker)
        {
            old.clone_from(waker);
        }
    }

    /// Ends a waiter that waits in `list` or was granted; true if it was granted.
    #[expect(clippy::needless_pass_by_value, reason = "the key must not be used again")]
    pub(super) fn remove(&mut self, list: &mut List, key: WaiterKey) -> bool {
        let granted = self.is_granted(&key);
        if !granted {
            self.unlink(list, key.0);
        }
        let entry = &mut self.entries[key.0 as usize];
        assert!(entry.waiter.take().is_some(), "a waiter ends once");
        entry.granted = false;
        entry.next = self.free;
        self.free = key.0;
        granted
    }

    fn link_back(&mut self, list: &mut List, index: u32) {
        let before = std::mem::replace(&mut list.tail, index);
        if before == NIL {
            list.head = index;
        } else {
            self.entries[before as usize].next = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.prev = before;
        entry.next = NIL;
    }

    fn unlink(&mut self, list: &mut List, index: u32) {
        let Entry { prev, next, .. } = self.entries[index as usize];
        if prev == NIL {
            debug_assert_eq!(list.head, index, "a waiter is taken out of its own list");
            list.head = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if next == NIL {
            debug_assert_eq!(list.tail, index, "a waiter is taken out of its own list");
            list.tail = prev;
        } else {
            self.entries[next as usize].prev = prev;
        }
    }
}
