//! The kernel: processes whose tasks run in an order that the seed chooses, and time that moves only when nobody can run.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dyad_reactor::executor::{Executor, Handle, Limits};
use dyad_reactor::{Clock, DriftingClock, Rng, SeededRng, Shuffled, Time, VirtualTime};

/// Polls at one moment after which a run is stuck: something wakes itself for ever.
const POLLS_WITHOUT_PROGRESS_MAX: u64 = 1_000_000;

/// A process, by its place in the kernel's list. Places are never used again.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ProcessId(usize);

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum ProcessState {
    Running,
    Paused,
    /// Its tasks are kept, so that nothing is dropped, and never run again.
    Dead,
}

struct Process {
    executor: Executor,
    clock: DriftingClock,
    state: ProcessState,
    /// When its next timer is due, in virtual time; `None` if a task has run since that was looked up.
    due: Option<Time>,
}

impl Process {
    /// When its next timer is due.
    fn due(&mut self) -> Time {
        let Self { executor, clock, due, .. } = self;
        *due.get_or_insert_with(|| {
            executor.next_deadline().map_or(Time::FAR_FUTURE, |reading| clock.virtual_time_of(reading))
        })
    }
}

/// Stops the kernel before its time. Clones stop the same one.
#[derive(Clone, Default)]
pub struct Interrupt(Rc<Cell<bool>>);

impl Interrupt {
    /// What runs until a moment comes back now.
    pub fn raise(&self) {
        self.0.set(true);
    }
}

/// Runs processes in virtual time.
pub struct Kernel {
    interrupt: Interrupt,
    time: VirtualTime,
    order: Shuffled<SeededRng>,
    rng: SeededRng,
    processes: Vec<Process>,
    /// Processes that run, by place.
    running: Vec<usize>,
    /// Scratch: those of them that have a ready task.
    ready: Vec<usize>,
    trace_hash: u64,
    polls: u64,
}

/// Tasks wake each other for ever, and time stands still.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Stuck;

impl Kernel {
    /// A kernel without processes.
    #[must_use]
    pub fn new(time: &VirtualTime) -> Self {
        Self {
            interrupt: Interrupt::default(),
            time: time.clone(),
            order: Shuffled(time.rng()),
            rng: time.rng(),
            processes: Vec::new(),
            running: Vec::new(),
            ready: Vec::new(),
            trace_hash: 0xcbf2_9ce4_8422_2325,
            polls: 0,
        }
    }

    /// Starts a process on `clock`; `make` spawns its tasks.
    pub fn start<T>(
        &mut self,
        clock: &DriftingClock,
        limits: Limits,
        make: impl FnOnce(&Handle) -> T,
    ) -> (ProcessId, T) {
        let executor = Executor::new(limits, Rc::new(clock.clone()));
        let made = make(&executor.handle());
        executor.seal();
        self.processes.push(Process { executor, clock: clock.clone(), state: ProcessState::Running, due: None });
        self.list_running();
        (ProcessId(self.processes.len() - 1), made)
    }

    /// The process is no more: its tasks are forgotten.
    pub fn kill(&mut self, process: ProcessId) {
        self.processes[process.0].state = ProcessState::Dead;
        self.list_running();
    }

    /// Its tasks stop where they are.
    pub fn pause(&mut self, process: ProcessId) {
        assert_eq!(self.processes[process.0].state, ProcessState::Running, "only what runs can pause");
        self.processes[process.0].state = ProcessState::Paused;
        self.list_running();
    }

    /// They go on, if the process lives.
    pub fn resume(&mut self, process: ProcessId) {
        let state = &mut self.processes[process.0].state;
        if *state == ProcessState::Paused {
            *state = ProcessState::Running;
        }
        self.list_running();
    }

    fn list_running(&mut self) {
        let running = self.processes.iter().enumerate().filter(|(_, process)| process.state == ProcessState::Running);
        self.running.clear();
        self.running.extend(running.map(|(place, _)| place));
    }

    /// What stops this kernel.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Runs until virtual time reaches `until`, or it is interrupted.
    ///
    /// # Errors
    /// [`Stuck`].
    pub fn run_until(&mut self, until: Time) -> Result<(), Stuck> {
        let mut polls_now = 0;
        loop {
            self.time.run_due();
            if self.interrupt.0.take() {
                return Ok(());
            }
            self.fire_timers();
            if self.run_one() {
                polls_now += 1;
                if polls_now > POLLS_WITHOUT_PROGRESS_MAX {
                    return Err(Stuck);
                }
                continue;
            }
            let next = self.next_moment().max(self.time.now());
            if next >= until {
                self.time.advance_to(until.max(self.time.now()));
                return Ok(());
            }
            if next > self.time.now() {
                polls_now = 0;
            }
            self.time.advance_to(next);
        }
    }

    /// Runs what happens at the next moment at which something does, if that is before `until`.
    ///
    /// # Errors
    /// [`Stuck`].
    pub fn run_moment(&mut self, until: Time) -> Result<(), Stuck> {
        let next = self.next_moment().max(self.time.now());
        self.run_until(until.min(next + Duration::from_nanos(1)))
    }

    fn fire_timers(&mut self) {
        let now = self.time.now();
        for place in &self.running {
            let process = &mut self.processes[*place];
            if process.due() <= now {
                process.executor.fire_timers();
                process.due = None;
            }
        }
    }

    /// Polls one task of one process, both chosen by the seed.
    fn run_one(&mut self) -> bool {
        self.ready.clear();
        self.ready.extend(self.running.iter().filter(|place| self.processes[**place].executor.has_ready()));
        if self.ready.is_empty() {
            return false;
        }
        let pick = usize::try_from(self.rng.below(self.ready.len() as u64)).expect("a count of processes");
        let place = self.ready[pick];
        let process = &mut self.processes[place];
        let polled = process.executor.run_one(&mut self.order);
        assert!(polled, "a process with a ready task polls one");
        process.due = None;
        self.polls += 1;
        self.note(place as u64);
        true
    }

    fn next_moment(&mut self) -> Time {
        let Self { running, processes, .. } = self;
        let timers = running.iter().map(|place| processes[*place].due());
        timers.chain(self.time.next_event()).min().unwrap_or(Time::FAR_FUTURE)
    }

    /// Makes `word`, and the moment, part of the run's hash.
    pub fn note(&mut self, word: u64) {
        for word in [word, self.time.now().as_nanos()] {
            self.trace_hash = (self.trace_hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    /// A number that two runs have in common only if they did the same.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.trace_hash
    }

    /// The moment.
    #[must_use]
    pub fn now(&self) -> Time {
        self.time.now()
    }

    /// Polls so far.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.polls
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    fn start(kernel: &mut Kernel, time: &VirtualTime, task: impl AsyncFnOnce(&Handle) + 'static) -> ProcessId {
        let clock = DriftingClock::new(time.clone(), 0, Duration::ZERO);
        let limits = Limits { tasks: 1, timers: 4 };
        let spawn = |handle: &Handle| {
            let own = handle.clone();
            handle.spawn("task", async move { task(&own).await });
        };
        kernel.start(&clock, limits, spawn).0
    }

    #[test]
    fn who_wakes_itself_for_ever_is_stuck_and_who_waits_is_not() {
        let time = VirtualTime::new(1);
        let mut kernel = Kernel::new(&time);
        start(&mut kernel, &time, async |_| std::future::pending().await);
        assert_eq!(kernel.run_until(Time::from_nanos(100)), Ok(()));
        let restless = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        start(&mut kernel, &time, async |_| restless.await);
        assert_eq!(kernel.run_until(Time::from_nanos(200)), Err(Stuck));
    }

    #[test]
    fn who_is_paused_goes_on_later_and_who_is_killed_never() {
        let time = VirtualTime::new(1);
        let mut kernel = Kernel::new(&time);
        let ticks = [(); 2].map(|()| Rc::new(Cell::new(0)));
        let [paused, killed] = [0, 1].map(|place| {
            let ticks = Rc::clone(&ticks[place]);
            start(&mut kernel, &time, async move |handle| {
                loop {
                    handle.sleep(Duration::from_nanos(1_000_000)).await;
                    ticks.set(ticks.get() + 1);
                }
            })
        });
        let run_on = |kernel: &mut Kernel| {
            kernel.run_until(kernel.now() + Duration::from_millis(10)).expect("they sleep");
            ticks.each_ref().map(|ticks| ticks.get())
        };
        let first = run_on(&mut kernel);
        assert!(first.iter().all(|ticks| *ticks > 0));
        kernel.pause(paused);
        kernel.kill(killed);
        assert_eq!(run_on(&mut kernel), first);
        kernel.resume(paused);
        kernel.resume(killed);
        let last = run_on(&mut kernel);
        assert!(last[0] > first[0]);
        assert_eq!(last[1], first[1]);
    }
}
