//! A load: lanes that each keep one command outstanding, and the loop that turns them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::Lba;
use dyad_reactor::{BootClock, Clock, Executor, Fifo, Handle, Rng, SeededRng};

use super::BenchError;
use crate::device::{Device, DeviceError, Io, SubmitError};
use dyad_reactor::figures::to_f64;

/// What was done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Commands.
    pub commands: u64,
    /// In this time.
    pub took: Duration,
}

impl Outcome {
    /// Commands per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        to_f64(self.commands) / self.took.as_secs_f64()
    }
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, more: Self) {
        self.commands += more.commands;
        self.took += more.took;
    }
}

struct State {
    /// Commands that are still to be submitted.
    left: Cell<u64>,
    /// Commands outstanding.
    running: Cell<u64>,
    /// How long each command took in nanoseconds, while they are asked for.
    latencies: RefCell<Option<Vec<u64>>>,
    failure: Cell<Option<Failure>>,
    /// Something is left again.
    more: dyad_reactor::sync::Signal,
}

#[derive(Debug, Copy, Clone)]
enum Failure {
    Submit(SubmitError),
    Device(DeviceError),
}

/// Lanes that read random blocks of 4 KiB into memory of their own, whenever there is something left to do.
pub struct Load {
    state: Rc<State>,
}

impl Load {
    /// Makes `lanes` lanes. The executor must have room for them, and must not be sealed.
    ///
    /// # Errors
    /// [`BenchError::Submit`] if the device does not reach `memory`, which has a block for each lane.
    pub fn new<D: Device>(handle: &Handle, device: &D, memory: &Memory, lanes: u32) -> Result<Self, BenchError> {
        device.map(memory)?;
        let state = Rc::new(State {
            left: Cell::new(0),
            running: Cell::new(0),
            latencies: RefCell::new(None),
            failure: Cell::new(None),
            more: dyad_reactor::sync::Signal::new(),
        });
        let mut rng = SeededRng::new(1);
        for lane in 0..lanes {
            let segment = memory.segment(u64::from(lane) * 4096, 4096).map_err(|_| SubmitError::Invalid)?;
            handle.spawn("load lane", run_lane(Rc::clone(&state), device.clone(), segment, rng.fork()));
        }
        Ok(Self { state })
    }

    /// Reads `commands` blocks. `pump` polls whatever has to be polled besides the lanes.
    ///
    /// # Errors
    /// What a command failed with.
    pub fn run(&self, executor: &Executor, commands: u64, pump: impl FnMut()) -> Result<Outcome, BenchError> {
        let start = BootClock.now();
        self.start(commands);
        drive(executor, pump, || self.done());
        self.outcome(commands, BootClock.now().since(start))
    }

    /// As [`Self::run`], and how long each command took, in nanoseconds and sorted. The clock is read for each.
    ///
    /// # Errors
    /// What a command failed with.
    pub fn latencies(&self, executor: &Executor, commands: u64, pump: impl FnMut()) -> Result<Vec<u64>, BenchError> {
        let room = usize::try_from(commands).expect("few");
        self.state.latencies.replace(Some(Vec::with_capacity(room)));
        let outcome = self.run(executor, commands, pump);
        let mut latencies = self.state.latencies.take().expect("put there above");
        outcome?;
        latencies.sort_unstable();
        Ok(latencies)
    }

    fn start(&self, commands: u64) {
        self.state.left.set(commands);
        self.state.more.notify_all();
    }

    fn done(&self) -> bool {
        self.state.left.get() == 0 && self.state.running.get() == 0
    }

    fn outcome(&self, commands: u64, took: Duration) -> Result<Outcome, BenchError> {
        match self.state.failure.take() {
            None => Ok(Outcome { commands, took }),
            Some(Failure::Submit(error)) => Err(error.into()),
            Some(Failure::Device(error)) => Err(error.into()),
        }
    }
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Load").field("left", &self.state.left.get()).finish_non_exhaustive()
    }
}

async fn run_lane<D: Device>(state: Rc<State>, device: D, segment: Segment, mut rng: SeededRng) {
    let blocks = device.info().blocks.0;
    let segments = [segment];
    loop {
        let left = state.left.get();
        if left == 0 {
            let seen = state.more.generation();
            state.more.changed_since(seen).await;
            continue;
        }
        state.left.set(left - 1);
        state.running.set(state.running.get() + 1);
        let started = state.latencies.borrow().is_some().then(|| BootClock.now());
        let failure = match device.submit(Io::Read { lba: Lba(rng.below(blocks)), segments: &segments }) {
            Ok(completion) => completion.await.err().map(Failure::Device),
            Err(error) => Some(Failure::Submit(error)),
        };
        if let (Some(started), Some(latencies)) = (started, &mut *state.latencies.borrow_mut()) {
            let nanos = BootClock.now().since(started).as_nanos();
            latencies.push(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
        if failure.is_some() {
            state.failure.set(failure);
            state.left.set(0);
        }
        state.running.set(state.running.get() - 1);
    }
}

/// Turns until `done`.
pub fn drive(executor: &Executor, mut pump: impl FnMut(), done: impl Fn() -> bool) {
    let mut turns = 0_u32;
    while !done() {
        pump();
        executor.run_until_idle(&mut Fifo);
        turns = turns.wrapping_add(1);
        // Timers only watch over hung commands here.
        if turns.is_multiple_of(1024) {
            executor.fire_timers();
        }
    }
}
