//! When nobody can be using a slice any more that a table has let go: everybody who translates an address holds a [`Pin`] until the command on the devices
//! is over, and whoever wants to use the slice again waits until all pins that were held at that moment are gone.
//!
//! Two counters, used in turn: new pins go to one while the other drains. So neither taking a pin nor waiting searches or allocates anything.

use std::cell::Cell;
use std::rc::Rc;

use dyad_reactor::sync::{Permits, Signal};

#[derive(Debug)]
struct Inner {
    held: [Cell<u64>; 2],
    turn: Cell<usize>,
    released: Signal,
    waiting: Permits,
}

/// Hands out pins and waits for them.
#[derive(Debug, Clone)]
pub(super) struct Grace(Rc<Inner>);

/// Keeps slices from being used for something else. Hold it from before an address is translated until the command that uses it has ended at the devices,
/// and wait for nothing else meanwhile.
#[must_use = "a slice may be used for something else at once"]
#[derive(Debug)]
pub struct Pin {
    of: Grace,
    turn: usize,
}

impl Grace {
    pub(super) fn new() -> Self {
        let held = [Cell::new(0), Cell::new(0)];
        Self(Rc::new(Inner { held, turn: Cell::new(0), released: Signal::new(), waiting: Permits::new(1) }))
    }

    pub(super) fn pin(&self) -> Pin {
        let turn = self.0.turn.get();
        let held = &self.0.held[turn];
        held.set(held.get() + 1);
        Pin { of: self.clone(), turn }
    }

    /// Until every pin is gone that is held now.
    pub(super) async fn pass(&self) {
        let _turn = self.0.waiting.acquire(1).await;
        let (now, next) = (self.0.turn.get(), 1 - self.0.turn.get());
        // Usually nobody: only those that somebody waited for who gave up.
        self.none_held(next).await;
        self.0.turn.set(next);
        self.none_held(now).await;
    }

    async fn none_held(&self, turn: usize) {
        loop {
            let seen = self.0.released.generation();
            if self.0.held[turn].get() == 0 {
                return;
            }
            self.0.released.changed_since(seen).await;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let held = &self.of.0.held[self.turn];
        held.set(held.get() - 1);
        if held.get() == 0 {
            self.of.0.released.notify_all();
        }
    }
}
