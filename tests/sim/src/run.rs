//! One run: an array, hosts, faults; then peace, and a last look at everything.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use dyad_director::membership::DirectorId;
use dyad_matrix::sim::{Fabric, FabricConfig};
use dyad_reactor::{Clock, Rng, Time, VirtualTime};

use crate::array::{Array, VOLUME_BLOCKS};
use crate::faults::{FaultInjector, FaultKinds};
use crate::kernel::Stuck;
use crate::workload::{HostFailure, Workload};

/// What a run is made of.
#[derive(Debug, Copy, Clone)]
pub struct SimOptions {
    /// Everything else follows from it.
    pub seed: u64,
    /// Host operations before the faults end.
    pub operations: u64,
    /// Faults that may happen.
    pub faults: FaultKinds,
    /// Collect the fabric's and the directors' story.
    pub timeline: bool,
}

/// How a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A host saw what it must not.
    Host(HostFailure),
    /// The kernel cannot go on.
    Stuck(Stuck),
    /// The faults are over, and operations still do not end.
    NoProgress,
    /// The pair does not become whole again though nothing hinders it.
    NotWhole,
    /// Nothing is being written, and the devices of the group differ.
    LegsDiffer,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(HostFailure::Violation(violation)) => write!(f, "a host read what must not be: {violation:?}"),
            Self::Host(HostFailure::Failed(error)) => {
                write!(f, "an operation failed that the array could have done: {error}")
            }
            Self::Stuck(stuck) => write!(f, "the simulation is stuck: {stuck:?}"),
            Self::NoProgress => write!(f, "operations are stuck though all faults are over"),
            Self::NotWhole => write!(f, "the pair does not become whole though all faults are over"),
            Self::LegsDiffer => write!(f, "the devices of the group differ though nothing is being written"),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// `None`: everything held.
    pub failure: Option<Failure>,
    /// Host operations.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// Virtual time that passed.
    pub elapsed: Duration,
    /// The same for the same seed.
    pub trace_hash: u64,
    /// What happened, if it was asked for.
    pub timeline: Vec<String>,
}

const WORKERS: usize = 6;
/// A run with faults has at least as many.
const FAULTS_MIN: u64 = 10;
const STEP: Duration = Duration::from_millis(20);
/// Virtual time that everything is given to become quiet.
const PEACE: Duration = Duration::from_secs(30);

/// Runs one seed.
#[must_use]
pub fn run(options: SimOptions) -> Outcome {
    let time = VirtualTime::new(options.seed);
    let mut rng = time.rng();
    let fabric = Fabric::new(&time, FabricConfig { torn_one_in: 1 + rng.below(8), ..FabricConfig::default() });
    let timeline = Rc::new(RefCell::new(Vec::new()));
    if options.timeline {
        let (lines, clock) = (Rc::clone(&timeline), time.clone());
        fabric.on_trace(move |line| lines.borrow_mut().push(format!("{:?}  {line}", clock.now())));
    }
    let mut array = Array::new(&time, fabric);
    let workload = Workload::new(&time, VOLUME_BLOCKS, WORKERS, Duration::from_millis(1 + rng.below(200)));
    let kinds = options.faults.swarm(&mut rng);
    let first = Time::from_nanos(500_000_000 + rng.below(1_000_000_000));
    let mut run = Run {
        faults: FaultInjector::new(kinds, rng.fork(), first),
        workload: workload.clone(),
        timeline: Rc::clone(&timeline),
        traced: options.timeline,
        states: Default::default(),
    };

    array.start_director(DirectorId::A);
    array.start_director(DirectorId::B);
    array.start_host(0, &workload, WORKERS / 2, array.timing().lease);
    array.start_host(1, &workload, WORKERS / 2, array.timing().lease * 6);
    let failure = run.through(&mut array, options.operations).err();
    let outcome = Outcome {
        failure,
        operations: workload.operations(),
        faults: run.faults.count(),
        elapsed: time.now().since(Time::ZERO),
        trace_hash: array.kernel.trace_hash(),
        timeline: std::mem::take(&mut timeline.borrow_mut()),
    };
    drop(array);
    outcome
}

struct Run {
    faults: FaultInjector,
    workload: Workload,
    timeline: Rc<RefCell<Vec<String>>>,
    traced: bool,
    states: [&'static str; 2],
}

impl Run {
    fn through(&mut self, array: &mut Array, operations: u64) -> Result<(), Failure> {
        // War, until the operations are done. An operation waits for minutes at most, so this ends.
        let long = array.time.now() + Duration::from_secs(3600);
        let enough = |run: &Self| {
            run.workload.operations() >= operations && (run.faults.count() >= FAULTS_MIN || !run.faults.has_any())
        };
        self.until(array, true, long, |run, _| enough(run))?;
        // Peace: repairs are made, directors come back, hosts go on for a while and then end.
        let deadline = array.time.now() + PEACE;
        let whole = self.until(array, false, deadline, |run, array| run.faults.is_repaired() && array.is_whole())?;
        if !whole {
            for me in [DirectorId::A, DirectorId::B] {
                let description = array.node(me).map_or("not running".to_owned(), dyad_director::node::Node::describe);
                self.timeline.borrow_mut().push(format!("director {me:?}: {description}"));
            }
            return Err(Failure::NotWhole);
        }
        self.workload.stop();
        let deadline = array.time.now() + PEACE * 3;
        if !self.until(array, false, deadline, |run, _| run.workload.running() == 0)? {
            return Err(Failure::NoProgress);
        }
        array.start_reader(&self.workload);
        if !self.until(array, false, deadline, |run, _| run.workload.running() == 0)? {
            return Err(Failure::NoProgress);
        }
        // Everything is destaged when nobody writes; then the legs are equal.
        let deadline = array.time.now() + PEACE;
        let clean = self.until(array, false, deadline, |_, array| {
            [DirectorId::A, DirectorId::B]
                .iter()
                .all(|me| array.node(*me).is_some_and(|node| node.cache().dirty_blocks() == 0))
        })?;
        if clean && array.legs_are_equal() { Ok(()) } else { Err(Failure::LegsDiffer) }
    }

    /// Runs until `done` or the deadline; says which.
    fn until(
        &mut self,
        array: &mut Array,
        faults: bool,
        deadline: Time,
        done: impl Fn(&Self, &Array) -> bool,
    ) -> Result<bool, Failure> {
        while array.time.now() < deadline {
            if done(self, array) {
                return Ok(true);
            }
            let now = array.time.now();
            self.faults.act(array, faults);
            let to = (now + STEP).min(self.faults.next_moment().max(now + Duration::from_nanos(1)));
            array.kernel.run_until(to).map_err(Failure::Stuck)?;
            self.note_states(array);
            if let Some(failure) = self.workload.failure() {
                return Err(Failure::Host(failure));
            }
        }
        Ok(false)
    }

    fn note_states(&mut self, array: &Array) {
        if !self.traced {
            return;
        }
        for (place, me) in [DirectorId::A, DirectorId::B].into_iter().enumerate() {
            let state = array.node(me).map_or("not running", |node| node.state_name());
            if std::mem::replace(&mut self.states[place], state) != state {
                self.timeline.borrow_mut().push(format!("{:?}  director {me:?}: {state}", array.time.now()));
            }
        }
    }
}
