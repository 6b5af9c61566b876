//! Grace periods: to know that everybody who may have seen something old has left.
//!
//! Each command of the group runs in a section. A section belongs to one of two sides; [`Sections::grace`] waits until the other side is empty, changes sides,
//! and waits until the side that was left is empty too. Commands end in bounded time, so it does.

use std::cell::Cell;
use std::rc::Rc;

use dyad_reactor::sync::{Permits, Signal};

#[derive(Debug, Default)]
struct State {
    side: Cell<usize>,
    inside: [Cell<usize>; 2],
    left: Signal,
}

#[derive(Debug)]
pub(super) struct Sections {
    state: Rc<State>,
    one: Permits,
}

/// A command under way.
#[must_use = "the command is over at once"]
#[derive(Debug)]
pub(super) struct Section {
    state: Rc<State>,
    side: usize,
}

impl Sections {
    pub(super) fn new() -> Self {
        Self { state: Rc::default(), one: Permits::new(1) }
    }

    pub(super) fn enter(&self) -> Section {
        let side = self.state.side.get();
        self.state.inside[side].set(self.state.inside[side].get() + 1);
        Section { state: Rc::clone(&self.state), side }
    }

    /// Waits for everybody who is inside now.
    pub(super) async fn grace(&self) {
        let _one = self.one.acquire(1).await;
        let old = self.state.side.get();
        self.empty(1 - old).await;
        self.state.side.set(1 - old);
        self.empty(old).await;
    }

    async fn empty(&self, side: usize) {
        loop {
            let seen = self.state.left.generation();
            if self.state.inside[side].get() == 0 {
                return;
            }
            self.state.left.changed_since(seen).await;
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        let inside = self.state.inside[self.side].get() - 1;
        self.state.inside[self.side].set(inside);
        if inside == 0 {
            self.state.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn grace_waits_for_those_inside_and_for_nobody_who_comes_later() {
        let sections = Sections::new();
        let poll =
            |future: std::pin::Pin<&mut dyn Future<Output = ()>>| future.poll(&mut Context::from_waker(Waker::noop()));
        let before = sections.enter();
        let mut grace = pin!(sections.grace());
        assert_eq!(poll(grace.as_mut()), Poll::Pending);
        let later = sections.enter();
        assert_eq!(poll(grace.as_mut()), Poll::Pending);
        drop(before);
        assert_eq!(poll(grace.as_mut()), Poll::Ready(()));
        let mut again = pin!(sections.grace());
        assert_eq!(poll(again.as_mut()), Poll::Pending);
        drop(later);
        assert_eq!(poll(again.as_mut()), Poll::Ready(()));
    }
}
