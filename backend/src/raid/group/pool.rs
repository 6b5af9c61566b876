//! Small lists that commands need for a while: kept here, so that a command's future has a pointer to them and not all of them inside.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// More than are ever in use at one time, so that giving back allocates nothing.
const ROOM: usize = 1024;

/// Lists of one kind. Clones are the same pool. As many are made as are in use at one time, and then no more.
#[derive(Debug)]
pub(super) struct Pool<T, const N: usize>(Rc<RefCell<Vec<Box<heapless::Vec<T, N>>>>>);

/// A list from a pool; it goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Pooled<T, const N: usize> {
    pool: Pool<T, N>,
    /// Until this is dropped.
    list: Option<Box<heapless::Vec<T, N>>>,
}

impl<T, const N: usize> Clone for Pool<T, N> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T, const N: usize> Pool<T, N> {
    pub(super) fn new() -> Self {
        Self(Rc::new(RefCell::new(Vec::with_capacity(ROOM))))
    }

    /// An empty list.
    pub(super) fn take(&self) -> Pooled<T, N> {
        let list = self.0.borrow_mut().pop().unwrap_or_default();
        Pooled { pool: self.clone(), list: Some(list) }
    }
}

impl<T, const N: usize> Deref for Pooled<T, N> {
    type Target = heapless::Vec<T, N>;

    fn deref(&self) -> &Self::Target {
        self.list.as_deref().expect("it has its list until it is dropped")
    }
}

impl<T, const N: usize> DerefMut for Pooled<T, N> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.list.as_deref_mut().expect("it has its list until it is dropped")
    }
}

impl<T, const N: usize> Drop for Pooled<T, N> {
    fn drop(&mut self) {
        if let Some(mut list) = self.list.take() {
            list.clear();
            self.pool.0.borrow_mut().push(list);
        }
    }
}
