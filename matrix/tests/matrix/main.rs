//! The conformance suite over every provider, what becomes of two processes when one of them dies, and what a busy connection
//! costs.
#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

#[path = "../../../reactor/tests/allocations/mod.rs"]
mod allocations;
mod asleep;
mod cost;
mod crossover;
mod processes;

use std::path::PathBuf;
use std::time::Duration;

use dyad_matrix::conformance::{Bed, Case, cases};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_matrix::sim::{CLAN, Fabric, FabricConfig, Profile, SERVERNET2, SimProvider};
use dyad_reactor::{BootClock, Clock, Source, Time, VirtualTime};

/// The simulator, with one seed.
struct SimBed {
    time: VirtualTime,
    fabric: Fabric,
}

impl SimBed {
    fn new(seed: u64, profile: Profile) -> Self {
        let time = VirtualTime::new(seed);
        let fabric = Fabric::new(&time, FabricConfig { profile, ..FabricConfig::default() });
        Self { time, fabric }
    }
}

impl Bed for SimBed {
    type Provider = SimProvider;

    fn node(&mut self, name: &str) -> SimProvider {
        self.fabric.node(name, 1)
    }

    fn host(&self, name: &str) -> String {
        name.to_owned()
    }

    fn step(&mut self) -> bool {
        let Some(next) = self.time.next_event() else { return false };
        self.time.advance_to(next);
        self.time.run_due();
        true
    }
}

/// Several providers in this process and thread; their agents are threads of their own.
struct ShmBed {
    directory: tempfile::TempDir,
    nodes: Vec<ShmProvider>,
    /// When something last happened.
    last_work: Time,
}

impl ShmBed {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, nodes: Vec::new(), last_work: BootClock.now() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Bed for ShmBed {
    type Provider = ShmProvider;

    fn node(&mut self, name: &str) -> ShmProvider {
        let node = ShmProvider::new(&self.path(name), 1, ShmLimits::default()).expect("a provider");
        self.nodes.push(node.clone());
        node
    }

    fn host(&self, name: &str) -> String {
        self.path(name).to_str().expect("a readable path").to_owned()
    }

    fn step(&mut self) -> bool {
        let work: usize = self.nodes.iter_mut().map(Source::poll).sum();
        let now = BootClock.now();
        if work > 0 {
            self.last_work = now;
        } else {
            // The agents need the processor.
            std::thread::yield_now();
        }
        now.since(self.last_work) < Duration::from_secs(20)
    }
}

fn run<B: Bed>(new: impl Fn() -> B) {
    let all: Vec<Case<B>> = cases();
    for (name, case) in all {
        println!("{name}");
        case(&mut new());
    }
}

#[test]
fn sim_conforms() {
    for seed in 0..20 {
        let profile = if seed % 2 == 0 { SERVERNET2 } else { CLAN };
        println!("seed {seed}, {}", profile.capabilities.name);
        run(|| SimBed::new(seed, profile));
    }
}

#[test]
fn shm_conforms() {
    run(ShmBed::new);
}
