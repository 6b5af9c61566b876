//! The production loop: one thread that polls its sources, fires its timers and runs its tasks, and sleeps when there is
//! nothing to do.
//!
//! Invariants:
//! - while there is work, a turn makes no system call;
//! - the way to sleep is everywhere the same (DESIGN 2): say `asleep`, full fence, look at everything once more, wait. Whoever
//!   brings work publishes it, makes a full fence, and raises the alarm if the reactor is asleep;
//! - an idle reactor has no tick: it sleeps until its next timer, or for ever.

mod bed;
mod counters;
mod source;
mod spin;

pub use counters::{CounterValues, Counters};
pub use source::Source;
pub use spin::MAX_SPIN;

use crate::executor::{Alarm, Executor, Fifo, Handle, Limits};
use crate::real_time::BootClock;
use crate::{Clock, Time};
use bed::Bed;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use spin::{Advice, Spin};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Tasks polled in one turn at most, so that sources wait no longer than that.
const POLLS_PER_TURN: usize = 256;

/// How a reactor runs.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Options {
    /// What its executor reserves.
    pub limits: Limits,
    /// The longest it spins before it sleeps; see [`max_spin_for`].
    pub max_spin: Duration,
    /// The core it stays on, numbered as the kernel does; `None`: any.
    pub core: Option<usize>,
}

/// The spin limit for each of `reactors` that share this machine: none if they are more than the cores this process may use.
#[must_use]
pub fn max_spin_for(reactors: usize) -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if reactors > cores { Duration::ZERO } else { MAX_SPIN }
}

/// The kernel refused something that a reactor cannot do without.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReactorError {
    /// No eventfd, timerfd or epoll instance could be made (too many open files?).
    #[error("cannot make the reactor's eventfd, timerfd and epoll instance: {0}")]
    Bed(Errno),
    /// The source's fd cannot be waited for.
    #[error("cannot wait for the source's fd: {0}")]
    SourceFd(Errno),
    /// The thread cannot be bound to its core.
    #[error("cannot stay on core {core}: {errno}")]
    Core {
        /// The core that was asked for.
        core: usize,
        /// Why not.
        errno: Errno,
    },
    /// Waiting failed.
    #[error("cannot sleep: {0}")]
    Sleep(Errno),
}

/// A poll loop with its executor. It is made and run by one thread.
pub struct Reactor {
    executor: Executor,
    clock: Rc<BootClock>,
    sources: Vec<Box<dyn Source>>,
    bed: Bed,
    spin: Spin,
    core: Option<usize>,
    counters: Arc<Counters>,
    stopper: Stopper,
}

/// Asks a reactor to stop, from any thread and at any time.
#[derive(Debug, Clone)]
pub struct Stopper {
    requested: Arc<AtomicBool>,
    alarm: Alarm,
}

impl Stopper {
    /// The reactor's [`run`](Reactor::run) returns after its current turn.
    pub fn stop(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.alarm.raise();
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

impl Reactor {
    /// A reactor without tasks and sources, on the machine's clock.
    ///
    /// # Errors
    /// [`ReactorError::Bed`].
    ///
    /// # Panics
    /// As [`Executor::new`].
    pub fn new(options: Options) -> Result<Self, ReactorError> {
        let clock = Rc::new(BootClock);
        let executor = Executor::new(options.limits, Rc::<BootClock>::clone(&clock));
        let alarm = executor.alarm().map_err(ReactorError::Bed)?;
        Ok(Self {
            bed: Bed::new(alarm.fd()).map_err(ReactorError::Bed)?,
            executor,
            clock,
            sources: Vec::new(),
            spin: Spin::new(options.max_spin),
            core: options.core,
            counters: Arc::new(Counters::default()),
            stopper: Stopper { requested: Arc::new(AtomicBool::new(false)), alarm },
        })
    }

    /// A handle for tasks.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.executor.handle()
    }

    /// The executor, to ask about its tasks.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Has `source` polled in every turn.
    ///
    /// # Errors
    /// [`ReactorError::SourceFd`].
    pub fn add_source(&mut self, source: impl Source + 'static) -> Result<(), ReactorError> {
        if let Some(fd) = source.fd() {
            self.bed.add(fd).map_err(ReactorError::SourceFd)?;
        }
        self.sources.push(Box::new(source));
        Ok(())
    }

    /// The means to stop it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// What it did so far; stays readable after it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Seals the executor and runs until a [`Stopper`] is used, or returns at once if one was used before.
    ///
    /// # Errors
    /// [`ReactorError::Core`] before the first turn; [`ReactorError::Sleep`].
    pub fn run(&mut self) -> Result<(), ReactorError> {
        if let Some(core) = self.core {
            stay_on(core).map_err(|errno| ReactorError::Core { core, errno })?;
        }
        self.executor.seal();
        let mut now = self.clock.now();
        while !self.stopper.is_requested() {
            let worked = self.turn(now);
            let before = std::mem::replace(&mut now, self.clock.now());
            let time = if worked { &self.counters.busy_ns } else { &self.counters.spinning_ns };
            time.add_time(now.since(before));
            match self.spin.turn(now, worked) {
                Advice::Turn if worked => {}
                Advice::Turn => std::hint::spin_loop(),
                Advice::Sleep => now = self.sleep(now)?,
            }
        }
        Ok(())
    }

    /// Polls everything once; did it find work?
    fn turn(&mut self, now: Time) -> bool {
        let work: usize = self.sources.iter_mut().map(|source| source.poll()).sum();
        let fired = self.executor.fire_timers_at(now);
        let polls = (0..POLLS_PER_TURN).take_while(|_| self.executor.run_one(&mut Fifo)).count();
        self.counters.turns.add(1);
        self.counters.source_work.add_count(work);
        self.counters.timers_fired.add_count(fired);
        self.counters.task_polls.add_count(polls);
        work + fired + polls > 0
    }

    /// Sleeps, unless there is work after all; the time afterwards.
    fn sleep(&mut self, now: Time) -> Result<Time, ReactorError> {
        self.sources.iter_mut().for_each(|source| source.arm());
        self.executor.fall_asleep();
        // After the fence in `fall_asleep`: what was published before is found here, what comes later raises the alarm.
        let work: usize = self.sources.iter_mut().map(|source| source.poll()).sum();
        let deadline = self.executor.next_deadline();
        let busy = work > 0
            || self.executor.has_ready()
            || self.stopper.is_requested()
            || deadline.is_some_and(|deadline| deadline <= now);
        let slept = if busy { Ok(()) } else { self.bed.sleep(deadline).map_err(ReactorError::Sleep) };
        self.executor.wake_up();
        self.sources.iter_mut().for_each(|source| source.disarm());
        slept?;
        let woken = self.clock.now();
        self.spin.woken(woken);
        self.counters.source_work.add_count(work);
        if busy {
            self.counters.busy_ns.add_time(woken.since(now));
        } else {
            self.counters.asleep_ns.add_time(woken.since(now));
            self.counters.sleeps.add(1);
        }
        Ok(woken)
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("executor", &self.executor)
            .field("sources", &self.sources.len())
            .field("counters", &self.counters.values())
            .finish_non_exhaustive()
    }
}

/// Binds the calling thread to a core.
fn stay_on(core: usize) -> Result<(), Errno> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
}

#[cfg(test)]
mod tests;
