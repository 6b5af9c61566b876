//! The kernel: processes whose tasks run in an order that the seed chooses, and time that moves only when nobody can run.

use std::rc::Rc;

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
}

/// Runs processes in virtual time.
pub struct Kernel {
    time: VirtualTime,
    order: Shuffled<SeededRng>,
    rng: SeededRng,
    processes: Vec<Process>,
    trace_hash: u64,
    polls: u64,
}

/// The run does not go on.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Stuck {
    /// Tasks wake each other for ever, and time stands still.
    Spinning,
    /// Nothing is runnable and nothing is scheduled.
    Deadlock,
}

impl Kernel {
    /// A kernel without processes.
    #[must_use]
    pub fn new(time: &VirtualTime) -> Self {
        Self { time: time.clone(), order: Shuffled(time.rng()), rng: time.rng(), processes: Vec::new(), trace_hash: 0xcbf2_9ce4_8422_2325, polls: 0 }
    }

    /// Starts a process on `clock`; `make` spawns its tasks.
    pub fn start<T>(&mut self, clock: &DriftingClock, limits: Limits, make: impl FnOnce(&Handle) -> T) -> (ProcessId, T) {
        let executor = Executor::new(limits, Rc::new(clock.clone()));
        let made = make(&executor.handle());
        executor.seal();
        self.processes.push(Process { executor, clock: clock.clone(), state: ProcessState::Running });
        (ProcessId(self.processes.len() - 1), made)
    }

    /// The process is no more: its tasks are forgotten.
    pub fn kill(&mut self, process: ProcessId) {
        self.processes[process.0].state = ProcessState::Dead;
    }

    /// Its tasks stop where they are.
    pub fn pause(&mut self, process: ProcessId) {
        assert_eq!(self.processes[process.0].state, ProcessState::Running, "only what runs can pause");
        self.processes[process.0].state = ProcessState::Paused;
    }

    /// They go on, if the process lives.
    pub fn resume(&mut self, process: ProcessId) {
        let state = &mut self.processes[process.0].state;
        if *state == ProcessState::Paused {
            *state = ProcessState::Running;
        }
    }

    /// Runs until virtual time reaches `until`.
    ///
    /// # Errors
    /// [`Stuck`].
    pub fn run_until(&mut self, until: Time) -> Result<(), Stuck> {
        let mut polls_now = 0;
        loop {
            self.time.run_due();
            for process in self.processes.iter().filter(|process| process.state == ProcessState::Running) {
                process.executor.fire_timers();
            }
            if self.run_one() {
                polls_now += 1;
                if polls_now > POLLS_WITHOUT_PROGRESS_MAX {
                    return Err(Stuck::Spinning);
                }
                continue;
            }
            let next = self.next_moment().ok_or(Stuck::Deadlock)?.max(self.time.now());
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

    /// Polls one task of one process, both chosen by the seed.
    fn run_one(&mut self) -> bool {
        let ready = |process: &Process| process.state == ProcessState::Running && process.executor.has_ready();
        let count = self.processes.iter().filter(|process| ready(process)).count();
        if count == 0 {
            return false;
        }
        let pick = usize::try_from(self.rng.below(count as u64)).expect("a count of processes");
        let (place, process) = self.processes.iter().enumerate().filter(|(_, process)| ready(process)).nth(pick).expect("the pick is below the count");
        let polled = process.executor.run_one(&mut self.order);
        assert!(polled, "a process with a ready task polls one");
        self.polls += 1;
        self.note(place as u64);
        true
    }

    fn next_moment(&self) -> Option<Time> {
        let running = self.processes.iter().filter(|process| process.state == ProcessState::Running);
        let timers = running.filter_map(|process| Some(process.clock.virtual_time_of(process.executor.next_deadline()?)));
        timers.chain(self.time.next_event()).min()
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

    /// Polls so far.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.polls
    }
}
