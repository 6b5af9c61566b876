//! Time for the simulator: it stands still until the next event.
//!
//! Invariants: events run in the order of their times; which of several events at the same time goes first is drawn from the
//! seed; a run depends on the seed and on what was scheduled, on nothing else.

use crate::time::ManualClock;
use crate::{Clock, Rng, SeededRng, Time};
use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// What happens at an event.
type Action = Box<dyn FnOnce()>;

/// When an event happens: its time, then chance, then (if chance drew the same number twice) the order of scheduling.
type When = (Time, u64, u64);

struct Event {
    when: When,
    action: Action,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.when == other.when
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.when.cmp(&other.when)
    }
}

struct Inner {
    clock: ManualClock,
    rng: RefCell<SeededRng>,
    scheduled: Cell<u64>,
    events: RefCell<BinaryHeap<Reverse<Event>>>,
}

/// A clock with a queue of events. Clones are the same.
#[derive(Clone)]
pub struct VirtualTime(Rc<Inner>);

impl VirtualTime {
    /// Time zero, with the chance that `seed` stands for.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Inner {
            clock: ManualClock::default(),
            rng: RefCell::new(SeededRng::new(seed)),
            scheduled: Cell::new(0),
            events: RefCell::new(BinaryHeap::new()),
        }))
    }

    /// Has `action` run at `at`; if that has passed, as soon as events run.
    pub fn schedule(&self, at: Time, action: impl FnOnce() + 'static) {
        let at = at.max(self.now());
        let sequence = self.0.scheduled.get();
        self.0.scheduled.set(sequence + 1);
        let when = (at, self.0.rng.borrow_mut().next_u64(), sequence);
        self.0.events.borrow_mut().push(Reverse(Event { when, action: Box::new(action) }));
    }

    /// Has `action` run after `delay`.
    pub fn schedule_in(&self, delay: Duration, action: impl FnOnce() + 'static) {
        self.schedule(self.now() + delay, action);
    }

    /// Drops all events, at the end of a run: an event that holds what holds this queue would keep both for ever.
    pub fn forget_events(&self) {
        let events = self.0.events.take();
        drop(events);
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        self.0.events.borrow().peek().map(|Reverse(event)| event.when.0)
    }

    /// Moves time to `to`; the events due by then are run by [`run_due`](Self::run_due).
    ///
    /// # Panics
    /// If `to` has passed.
    pub fn advance_to(&self, to: Time) {
        self.0.clock.set(to);
    }

    /// Runs every event that is due, including those that due events schedule for now; returns how many.
    pub fn run_due(&self) -> usize {
        let mut run = 0;
        while self.next_event().is_some_and(|at| at <= self.now()) {
            let Reverse(event) = self.0.events.borrow_mut().pop().expect("an event is due");
            (event.action)();
            run += 1;
        }
        run
    }

    /// Chance for one part of the simulation, drawn from the seed.
    #[must_use]
    pub fn rng(&self) -> SeededRng {
        self.0.rng.borrow_mut().fork()
    }
}

impl Clock for VirtualTime {
    fn now(&self) -> Time {
        self.0.clock.now()
    }
}

impl fmt::Debug for VirtualTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualTime")
            .field("now", &self.now())
            .field("events", &self.0.events.borrow().len())
            .finish_non_exhaustive()
    }
}

/// A part per million, the unit of drift.
const MILLION: u64 = 1_000_000;

/// The clock of one director: it runs fast or slow against virtual time, and started at another origin.
#[derive(Debug, Clone)]
pub struct DriftingClock {
    base: VirtualTime,
    drift_ppm: i32,
    origin: Duration,
}

impl DriftingClock {
    /// A clock that read `origin` at virtual time zero and gains `drift_ppm` microseconds per second (negative: loses).
    ///
    /// # Panics
    /// If the drift is not within -500 000 to 500 000 ppm.
    #[must_use]
    pub fn new(base: VirtualTime, drift_ppm: i32, origin: Duration) -> Self {
        assert!(drift_ppm.abs() <= 500_000, "{drift_ppm} ppm is no clock");
        Self { base, drift_ppm, origin }
    }

    /// What this clock reads at virtual time `at`.
    #[must_use]
    pub fn reading_at(&self, at: Time) -> Time {
        // floor(nanos * drift / million), by million's quotient and remainder: products stay far within 64 bits.
        let (whole, rest) = (at.as_nanos() / MILLION, at.as_nanos() % MILLION);
        let drift = u64::from(self.drift_ppm.unsigned_abs());
        let gain = whole * drift;
        let elapsed = if self.drift_ppm < 0 {
            at.as_nanos() - gain - (rest * drift).div_ceil(MILLION)
        } else {
            at.as_nanos().saturating_add(gain + rest * drift / MILLION)
        };
        Time::from_nanos(elapsed) + self.origin
    }

    /// The first virtual time at which this clock reads `reading` or more ([`Time::FAR_FUTURE`] if there is none).
    #[must_use]
    pub fn virtual_time_of(&self, reading: Time) -> Time {
        // elapsed(t) = floor(t * rate / million) >= wanted  <=>  t >= wanted * million / rate
        let wanted = (reading - self.origin).as_nanos();
        let rate = MILLION.saturating_add_signed(i64::from(self.drift_ppm));
        let (whole, rest) = (wanted / rate, wanted % rate);
        Time::from_nanos(whole.saturating_mul(MILLION).saturating_add((rest * MILLION).div_ceil(rate)))
    }
}

impl Clock for DriftingClock {
    fn now(&self) -> Time {
        self.reading_at(self.base.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_of(seed: u64) -> Vec<usize> {
        let time = VirtualTime::new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        for event in 0..8 {
            let order = Rc::clone(&order);
            let at = if event < 2 { 1 } else { 2 };
            time.schedule(Time::from_nanos(at), move || order.borrow_mut().push(event));
        }
        while let Some(next) = time.next_event() {
            time.advance_to(next);
            time.run_due();
        }
        assert_eq!(time.now(), Time::from_nanos(2));
        order.take()
    }

    #[test]
    fn the_seed_orders_what_happens_at_one_time_and_only_that() {
        assert_eq!(order_of(1), order_of(1));
        assert!((2..10).any(|seed| order_of(seed) != order_of(1)));
        for seed in 0..20 {
            let order = order_of(seed);
            assert!(order[..2].iter().all(|event| *event < 2), "{order:?}");
        }
    }

    #[test]
    fn events_may_schedule_events_for_now() {
        let time = VirtualTime::new(1);
        let inner = time.clone();
        time.schedule_in(Duration::ZERO, move || inner.schedule_in(Duration::ZERO, || {}));
        assert_eq!(time.run_due(), 2);
        assert_eq!(time.next_event(), None);
    }

    #[test]
    fn a_drifting_clock_knows_when_it_will_read_what() {
        let base = VirtualTime::new(1);
        for drift in [-10_000, -1, 0, 1, 10_000] {
            let clock = DriftingClock::new(base.clone(), drift, Duration::from_nanos(77));
            for reading in [0, 77, 78, 1000, 123_456_789, 1 << 50, (1 << 50) + 999_999] {
                let reading = Time::from_nanos(reading);
                let at = clock.virtual_time_of(reading);
                assert!(clock.reading_at(at) >= reading, "{drift} {reading:?} {at:?}");
                assert!(at == Time::ZERO || clock.reading_at(at - Duration::from_nanos(1)) < reading);
            }
        }
    }
}
