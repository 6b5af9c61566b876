//! The single-threaded executor: lanes made at the start, timers in a wheel, wakers that are plain words.
//!
//! Invariants:
//! - tasks are made only before [`Executor::seal`]; from then on the executor allocates nothing;
//! - a task is polled only by [`Executor::run_one`]; which ready task goes first is decided by an [`Order`] alone, so the
//!   same order and the same inputs give the same run;
//! - only wakers leave the thread, and they may outlive the executor.
//!
//! An executor that is never polled again is a crashed director: its tasks stay as they are until it is dropped.

mod order;
mod sleep;
mod slot;
mod table;
mod waker;

/// The atomics under [`slot`]; the loom model has others.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    /// Between publishing and looking at `asleep`. Nothing: both accesses are sequentially consistent, which orders them
    /// against the sleeper's store and fence without the cost of a fence of their own at every wake-up.
    pub(crate) fn order_before_looking() {}
}

pub use order::{Fifo, Order, Shuffled};
pub use sleep::{Elapsed, Sleep, Timeout};
pub(crate) use table::Alarm;
pub use table::{MAX_EXECUTORS, MAX_TASKS};

use crate::wheel::Wheel;
use crate::{Clock, Time};
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;
use table::Seat;

/// What is reserved when an executor is made.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most tasks, 1 to [`MAX_TASKS`].
    pub tasks: usize,
    /// Most timers that wait at one time.
    pub timers: usize,
}

struct Task {
    name: &'static str,
    size: usize,
    /// `None` while it is polled, and once it has ended.
    run: Option<Run>,
    /// It stands in the run queue.
    queued: bool,
}

/// What a poll takes.
struct Run {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

struct Core {
    seat: Seat,
    limits: Limits,
    clock: Rc<dyn Clock>,
    tasks: RefCell<Vec<Task>>,
    /// Tasks found ready and not polled yet.
    run_queue: RefCell<VecDeque<usize>>,
    wheel: RefCell<Wheel<Waker>>,
    sealed: Cell<bool>,
}

/// Runs tasks. Dropping it drops them.
pub struct Executor {
    core: Rc<Core>,
}

/// What tasks see of their executor: making tasks at the start, and time.
#[derive(Clone)]
pub struct Handle {
    core: Rc<Core>,
}

impl Executor {
    /// An executor without tasks, on `clock`.
    ///
    /// # Panics
    /// If `limits.tasks` is not within 1 to [`MAX_TASKS`], or if [`MAX_EXECUTORS`] exist already.
    #[must_use]
    pub fn new(limits: Limits, clock: Rc<dyn Clock>) -> Self {
        assert!((1..=MAX_TASKS).contains(&limits.tasks), "{} tasks; an executor has 1 to {MAX_TASKS}", limits.tasks);
        let wheel = RefCell::new(Wheel::new(clock.now(), limits.timers));
        let core = Core {
            seat: Seat::take(),
            limits,
            clock,
            tasks: RefCell::new(Vec::with_capacity(limits.tasks)),
            run_queue: RefCell::new(VecDeque::with_capacity(limits.tasks)),
            wheel,
            sealed: Cell::new(false),
        };
        Self { core: Rc::new(core) }
    }

    /// A handle for tasks.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { core: Rc::clone(&self.core) }
    }

    /// Ends the making of tasks: every later [`Handle::spawn`] panics.
    pub fn seal(&self) {
        self.core.sealed.set(true);
    }

    /// True if [`run_one`](Self::run_one) would poll a task.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.core.run_queue.borrow().is_empty() || self.core.seat.any_ready(self.core.tasks.borrow().len())
    }

    /// Polls the ready task that `order` picks; false if none is ready.
    pub fn run_one(&self, order: &mut dyn Order) -> bool {
        self.core.queue_ready();
        let index = {
            let mut queue = self.core.run_queue.borrow_mut();
            if queue.is_empty() {
                return false;
            }
            let picked = order.pick(queue.len());
            queue.remove(picked).expect("an order picks below the number of ready tasks")
        };
        self.core.poll(index);
        true
    }

    /// Polls tasks until none is ready; returns the number of polls.
    ///
    /// Does not return while tasks keep waking each other or themselves.
    pub fn run_until_idle(&self, order: &mut dyn Order) -> usize {
        let mut polls = 0;
        while self.run_one(order) {
            polls += 1;
        }
        polls
    }

    /// When the next timer is due, exactly; `None` if no timer waits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.core.wheel.borrow_mut().next_deadline()
    }

    /// Wakes the tasks whose timers are due by the executor's clock; returns how many timers were.
    pub fn fire_timers(&self) -> usize {
        self.fire_timers_at(self.core.clock.now())
    }

    /// [`fire_timers`](Self::fire_timers) for one who has just read the clock.
    pub(crate) fn fire_timers_at(&self, now: Time) -> usize {
        let mut fired = 0;
        self.core.wheel.borrow_mut().expire(now, |waker| {
            waker.wake();
            fired += 1;
        });
        fired
    }

    /// What ends the sleep of this executor's thread.
    pub(crate) fn alarm(&self) -> Result<Alarm, Errno> {
        self.core.seat.alarm()
    }

    /// The thread is about to sleep; it must look for ready tasks once more after this.
    pub(crate) fn fall_asleep(&self) {
        self.core.seat.fall_asleep();
    }

    /// The thread is awake.
    pub(crate) fn wake_up(&self) {
        self.core.seat.wake_up();
    }

    /// The name and the size in bytes of each task's future, in the order in which they were made.
    #[must_use]
    pub fn task_sizes(&self) -> Vec<(&'static str, usize)> {
        self.core.tasks.borrow().iter().map(|task| (task.name, task.size)).collect()
    }
}

impl Core {
    /// Moves tasks that were woken into the run queue.
    fn queue_ready(&self) {
        let mut tasks = self.tasks.borrow_mut();
        let mut queue = self.run_queue.borrow_mut();
        let count = tasks.len();
        self.seat.take_ready(count, |index| {
            // A bit beyond the tasks is a stale waker's of the slot's last owner.
            if let Some(task) = tasks.get_mut(index).filter(|task| !task.queued) {
                task.queued = true;
                queue.push_back(index);
            }
        });
    }

    fn poll(&self, index: usize) {
        let run = {
            let task = &mut self.tasks.borrow_mut()[index];
            task.queued = false;
            task.run.take()
        };
        // A task that has ended may still be woken.
        let Some(mut run) = run else { return };
        if run.future.as_mut().poll(&mut Context::from_waker(&run.waker)).is_pending() {
            self.tasks.borrow_mut()[index].run = Some(run);
        }
    }
}

impl Drop for Executor {
    /// Drops the tasks in the order in which they were made. They hold handles to the core, so this also breaks the cycle.
    fn drop(&mut self) {
        self.core.sealed.set(true);
        let count = self.core.tasks.borrow().len();
        for index in 0..count {
            let run = self.core.tasks.borrow_mut()[index].run.take();
            drop(run);
        }
        // Not with the core: somebody may keep a handle for ever, and slots are few.
        self.core.seat.release();
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("limits", &self.core.limits).field("tasks", &self.task_sizes()).finish()
    }
}

impl Handle {
    /// Makes a task, boxed once, ready to be polled. `name` is for reports ([`Executor::task_sizes`]).
    ///
    /// # Panics
    /// After [`Executor::seal`], and beyond [`Limits::tasks`].
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        assert!(!self.core.sealed.get(), "task {name}: tasks are made before the executor is sealed");
        let mut tasks = self.core.tasks.borrow_mut();
        let index = tasks.len();
        assert!(index < self.core.limits.tasks, "task {name}: this executor has its {index} tasks already");
        let size = size_of_val(&future);
        let waker = waker::waker(self.core.seat.task(index));
        waker.wake_by_ref();
        tasks.push(Task { name, size, run: Some(Run { future: Box::pin(future), waker }), queued: false });
    }

    /// The time now, read from the clock.
    #[must_use]
    pub fn now(&self) -> Time {
        self.core.clock.now()
    }

    /// Waits until `deadline`; at once if timers have been fired for it already.
    pub fn sleep_until(&self, deadline: Time) -> Sleep {
        Sleep::new(self.clone(), deadline)
    }

    /// Waits for `duration` from now.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Waits for `future` until `deadline`; the future is dropped with the [`Timeout`].
    pub fn timeout_at<F: Future>(&self, deadline: Time, future: F) -> Timeout<F> {
        Timeout::new(future, self.sleep_until(deadline))
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
