//! Faults that wait for an operation: most of what can go wrong goes wrong in the few microseconds of one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dyad_reactor::{SeededRng, VirtualTime};

use crate::chance::up_to;
use crate::kernel::Interrupt;

/// What devices take for an operation, more or less, and how often it crosses the matrix.
const AT_DEVICES: Duration = Duration::from_micros(120);
const CROSSINGS: u32 = 6;

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum State {
    Unset,
    Set,
    /// An operation began; the moment comes.
    Running,
    Sprung,
}

/// A trap that the next operation of a host springs. Clones are the same trap.
#[derive(Clone)]
pub struct Trap {
    state: Rc<Cell<State>>,
    time: VirtualTime,
    interrupt: Interrupt,
    operation: Duration,
}

impl Trap {
    /// A trap that is not set; when it is sprung, the kernel stops for it. Messages take `latency`.
    #[must_use]
    pub fn new(time: &VirtualTime, interrupt: Interrupt, latency: Duration) -> Self {
        let operation = AT_DEVICES + latency * CROSSINGS;
        Self { state: Rc::new(Cell::new(State::Unset)), time: time.clone(), interrupt, operation }
    }

    /// Waits for an operation.
    pub fn set(&self) {
        self.state.set(State::Set);
    }

    /// Waits no more.
    pub fn unset(&self) {
        self.state.set(State::Unset);
    }

    /// It was sprung.
    #[must_use]
    pub fn is_sprung(&self) -> bool {
        self.state.get() == State::Sprung
    }

    /// An operation begins.
    pub fn operation_begins(&self, rng: &mut SeededRng) {
        if self.state.get() != State::Set {
            return;
        }
        self.state.set(State::Running);
        let (state, interrupt) = (Rc::clone(&self.state), self.interrupt.clone());
        // Hits are over sooner than the rest.
        let longest = up_to(rng, self.operation);
        self.time.schedule_in(up_to(rng, longest), move || {
            if state.get() == State::Running {
                state.set(State::Sprung);
                interrupt.raise();
            }
        });
    }
}
