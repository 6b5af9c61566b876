//! One run: pairs with their hosts, faults; then peace, and a last look at everything.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use dyad_matrix::sim::{Fabric, FabricConfig, LinkProfile};
use dyad_reactor::{Clock, Rng, SeededRng, Time, VirtualTime};

use crate::chance::one_of;
use crate::faults::FaultKinds;
use crate::injector::Injector;
use crate::invariants::{Broken, Watch};
use crate::kernel::{Kernel, Stuck};
use crate::pair::{BOTH, HOSTS, Pair};
use crate::timeline::{Detail, Timeline};
use crate::workload::HostFailure;

/// What a run is made of.
#[derive(Debug, Copy, Clone)]
pub struct SimOptions {
    /// Everything else follows from it.
    pub seed: u64,
    /// Pairs of directors, each with a volume and hosts.
    pub pairs: usize,
    /// Host operations before the faults end, for each pair.
    pub operations: u64,
    /// Faults that may happen.
    pub faults: FaultKinds,
    /// How much of the story is collected.
    pub detail: Detail,
}

/// How a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A host saw what it must not.
    Host(HostFailure),
    /// Something was not as it must be.
    Broken(Broken),
    /// The kernel cannot go on.
    Stuck,
    /// An assertion of the code under test, or of the simulator, says this.
    Panic(String),
    /// The faults are over, and operations still do not end.
    NoProgress,
    /// The pair does not become whole again though nothing hinders it.
    NotWhole,
    /// Nobody writes, and still not everything is on media.
    NotClean,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(HostFailure::Violation(violation)) => write!(f, "a host saw what must not be: {violation:?}"),
            Self::Host(HostFailure::Failed(error)) => {
                write!(f, "an operation failed that the array could have done: {error}")
            }
            Self::Broken(broken) => write!(f, "{broken}"),
            Self::Stuck => write!(f, "tasks wake each other for ever"),
            Self::Panic(message) => write!(f, "panic: {message}"),
            Self::NoProgress => write!(f, "operations are stuck though all faults are over"),
            Self::NotWhole => write!(f, "the pair does not become whole though all faults are over"),
            Self::NotClean => write!(f, "not everything gets to media though nobody writes"),
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
    /// Tasks polled.
    pub polls: u64,
    /// The same for the same seed.
    pub trace_hash: u64,
    /// What happened, if it was asked for.
    pub timeline: Vec<String>,
}

/// A run with faults has at least as many for each pair, if its kinds happen at all.
const FAULTS_MIN: u64 = 12;
/// And lasts no longer than this because of that.
const WAR: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(5);
/// Virtual time that everything is given to become quiet.
const PEACE: Duration = Duration::from_secs(60);

/// Runs one seed.
#[must_use]
pub fn run(options: SimOptions) -> Outcome {
    let time = VirtualTime::new(options.seed);
    let mut rng = time.rng();
    let timeline = Timeline::new(&time, options.detail);
    let matrix = draw_matrix(&mut rng);
    let fabric = Fabric::new(&time, matrix);
    if options.detail == Detail::Everything {
        let timeline = timeline.clone();
        fabric.on_trace(move |line| timeline.say(|| line.to_owned()));
    }
    let mut kernel = Kernel::new(&time);
    let stations = (0..options.pairs).map(|number| {
        let mut pair = Pair::new(number, &kernel, &time, (&fabric, matrix.link), &timeline);
        for director in BOTH {
            pair.start_director(&mut kernel, director);
        }
        for host in 0..HOSTS {
            pair.start_host(&mut kernel, host);
        }
        let kinds = options.faults.swarm(&mut rng);
        timeline.say(|| format!("pair {number}, faults: {kinds}"));
        let injector = Injector::new(kinds, rng.fork());
        Station { pair, injector, watch: Watch::default(), states: Default::default() }
    });
    let stations = stations.collect();
    let mut run = Run { kernel, stations, timeline: timeline.clone() };
    let through = catch_unwind(AssertUnwindSafe(|| run.through(options.operations)));
    let failure = through.unwrap_or_else(|panic| Err(Failure::Panic(message_of(&*panic)))).err();
    if let Some(failure) = &failure {
        run.tell_failure(failure);
    }
    time.forget_events();
    Outcome {
        failure,
        operations: run.stations.iter().map(|station| station.pair.workload.operations()).sum(),
        faults: run.stations.iter().map(|station| station.injector.count()).sum(),
        elapsed: time.now().since(Time::ZERO),
        polls: run.kernel.polls(),
        trace_hash: run.kernel.trace_hash(),
        timeline: timeline.take(),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// A matrix as fast as a machine's memory, or as slow as a long cable.
fn draw_matrix(rng: &mut SeededRng) -> FabricConfig {
    let FabricConfig { link, .. } = FabricConfig::default();
    let link = LinkProfile { latency: link.latency * one_of(rng, &[1, 10, 50]), ..link };
    FabricConfig { link, torn_one_in: 1 + rng.below(8), late_writes: !rng.one_in(4), ..FabricConfig::default() }
}

/// A pair, who does things to it, and who watches it.
struct Station {
    pair: Pair,
    injector: Injector,
    watch: Watch,
    states: [&'static str; 2],
}

struct Run {
    kernel: Kernel,
    stations: Vec<Station>,
    timeline: Timeline,
}

impl Run {
    fn through(&mut self, operations: u64) -> Result<(), Failure> {
        let start = self.kernel.now();
        let enough = |station: &Station, now: Time| {
            let faults = station.injector.count() >= FAULTS_MIN || !station.injector.has_any();
            station.pair.workload.operations() >= operations && (faults || now.since(start) > WAR)
        };
        // So many faults that hosts get nothing done are no failure: peace will show whether something is stuck.
        self.until(true, WAR * 2, enough)?;
        // Peace: repairs are made, directors come back, hosts go on for a while and then end.
        if !self.until(false, PEACE, |station, _| station.injector.is_repaired() && station.pair.is_whole())? {
            return Err(Failure::NotWhole);
        }
        self.stations.iter().for_each(|station| station.pair.workload.stop());
        self.idle_until(|station| station.pair.workload.running() == 0, Failure::NoProgress)?;
        self.idle_until(|station| station.pair.is_whole(), Failure::NotWhole)?;
        self.check(|station| station.watch.idle(&station.pair))?;
        let clean = |station: &Station| {
            BOTH.iter().all(|me| station.pair.node(*me).is_some_and(|node| node.cache().is_clean()))
        };
        self.idle_until(clean, Failure::NotClean)?;
        self.check(|station| station.watch.quiet(&station.pair))?;
        self.read_all()?;
        // Nothing is in memory alone now: with other directors it is all still there.
        for station in &mut self.stations {
            for director in BOTH {
                station.pair.kill_director(&mut self.kernel, director);
                station.pair.start_director(&mut self.kernel, director);
            }
        }
        self.idle_until(|station| station.pair.is_whole(), Failure::NotWhole)?;
        self.read_all()
    }

    fn read_all(&mut self) -> Result<(), Failure> {
        for station in &mut self.stations {
            station.pair.start_reader(&mut self.kernel);
        }
        self.idle_until(|station| station.pair.workload.running() == 0, Failure::NoProgress)
    }

    fn idle_until(&mut self, done: impl Fn(&Station) -> bool, or: Failure) -> Result<(), Failure> {
        if self.until(false, PEACE, |station, _| done(station))? { Ok(()) } else { Err(or) }
    }

    fn check(&self, check: impl Fn(&Station) -> Result<(), Broken>) -> Result<(), Failure> {
        self.stations.iter().try_for_each(check).map_err(Failure::Broken)
    }

    /// Runs until all pairs are `done`, for `at_most` that long; says whether they are.
    fn until(
        &mut self,
        faults: bool,
        at_most: Duration,
        done: impl Fn(&Station, Time) -> bool,
    ) -> Result<bool, Failure> {
        let deadline = self.kernel.now() + at_most;
        loop {
            let now = self.kernel.now();
            if self.stations.iter().all(|station| done(station, now)) {
                return Ok(true);
            }
            if now >= deadline {
                return Ok(false);
            }
            let mut to = now + STEP;
            for Station { pair, injector, .. } in &mut self.stations {
                injector.act(&mut self.kernel, pair, faults);
                to = to.min(injector.next_moment().max(now + Duration::from_nanos(1)));
            }
            self.kernel.run_until(to).map_err(|Stuck| Failure::Stuck)?;
            for station in &mut self.stations {
                station.note_states();
                if let Some(failure) = station.pair.workload.failure() {
                    return Err(Failure::Host(failure));
                }
                station.watch.always(&station.pair).map_err(Failure::Broken)?;
            }
        }
    }

    fn tell_failure(&self, failure: &Failure) {
        for station in &self.stations {
            for me in BOTH {
                if let Some(director) = station.pair.director(me) {
                    self.timeline.say(|| format!("{}: {}", station.pair.name(me), director.node.describe()));
                }
            }
            if let Failure::Host(HostFailure::Violation(violation)) = failure
                && let Some(block) = violation.block().filter(|_| station.pair.workload.failure().is_some())
            {
                self.timeline.say(|| format!("the life of block {block} was:"));
                for line in station.pair.workload.model().story(block) {
                    self.timeline.say(|| format!("    {line}"));
                }
            }
        }
        self.timeline.say(|| format!("FAILED: {failure}"));
    }
}

impl Station {
    fn note_states(&mut self) {
        for (place, me) in BOTH.into_iter().enumerate() {
            let state = self.pair.state_name(me);
            let before = std::mem::replace(&mut self.states[place], state);
            if before != state {
                self.pair.timeline.say(|| format!("{}: {state}", self.pair.name(me)));
            }
            // Whoever takes over from a director that was alone does not know what that one applied: PROTOCOLS 9.1 is about the loss of one.
            let claims = |state| state == "claiming" || (state == "taking over" && self.pair.is_settled());
            if claims(state) || (claims(before) && state == "solo, settled") {
                self.pair.workload.model().outcomes_lost();
            }
        }
    }
}
