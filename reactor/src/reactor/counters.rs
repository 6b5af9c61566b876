//! What a reactor did, for metrics and tests. Written by its thread alone, readable by any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number with one writer: no locked instruction is needed to count.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, by: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    pub(super) fn add_count(&self, by: usize) {
        self.add(u64::try_from(by).unwrap_or(u64::MAX));
    }

    pub(super) fn add_time(&self, by: Duration) {
        self.add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a running reactor.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) busy_ns: Counter,
    pub(super) spinning_ns: Counter,
    pub(super) asleep_ns: Counter,
    pub(super) turns: Counter,
    pub(super) source_work: Counter,
    pub(super) task_polls: Counter,
    pub(super) timers_fired: Counter,
    pub(super) sleeps: Counter,
}

/// The counters at one moment; each grows from zero at the start of the reactor.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq)]
pub struct CounterValues {
    /// Time in turns that worked.
    pub busy: Duration,
    /// Time in turns that found nothing.
    pub spinning: Duration,
    /// Time asleep.
    pub asleep: Duration,
    /// Turns of the loop.
    pub turns: u64,
    /// Work that sources reported, in their own units.
    pub source_work: u64,
    /// Polls of tasks.
    pub task_polls: u64,
    /// Timers that became due.
    pub timers_fired: u64,
    /// Waits for the kernel; each ended with a wake-up.
    pub sleeps: u64,
}

impl Counters {
    /// The values now. Those of one turn may be torn apart.
    #[must_use]
    pub fn values(&self) -> CounterValues {
        CounterValues {
            busy: Duration::from_nanos(self.busy_ns.get()),
            spinning: Duration::from_nanos(self.spinning_ns.get()),
            asleep: Duration::from_nanos(self.asleep_ns.get()),
            turns: self.turns.get(),
            source_work: self.source_work.get(),
            task_polls: self.task_polls.get(),
            timers_fired: self.timers_fired.get(),
            sleeps: self.sleeps.get(),
        }
    }
}
