//! The conformance suite over every provider, what becomes of two processes when one of them dies, and what a busy connection
//! costs.
#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

#[path = "../../../reactor/tests/allocations/mod.rs"]
mod allocations;
mod asleep;
mod cost;
mod crossover;
mod kind;
mod processes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use dyad_matrix::conformance::streams::story;
use dyad_matrix::conformance::{Bed, Case, cases};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_matrix::sim::{CLAN, Fabric, FabricConfig, Profile, SERVERNET2, SimProvider};
use dyad_matrix::tcp::{Key, Security, TcpLimits, TcpProvider};
use dyad_reactor::{BootClock, Clock, Source, Time, VirtualTime};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};

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

/// Several providers in this process and thread, on ports of their own.
struct TcpBed {
    nodes: Vec<TcpProvider>,
    /// A name's address is its own from the first time that somebody asks for it: until its node starts, a socket that
    /// nobody listens on has the port.
    security: Security,
    addresses: RefCell<BTreeMap<String, (SocketAddr, Option<OwnedFd>)>>,
    last_work: Time,
}

impl TcpBed {
    fn new(security: Security) -> Self {
        Self { nodes: Vec::new(), security, addresses: RefCell::default(), last_work: BootClock.now() }
    }
}

impl Bed for TcpBed {
    type Provider = TcpProvider;

    fn node(&mut self, name: &str) -> TcpProvider {
        let address = self.host(name).parse().expect("it is one");
        self.addresses.borrow_mut().entry(name.to_owned()).and_modify(|(_, reserved)| *reserved = None);
        let node = TcpProvider::new(address, 1, &self.security, TcpLimits::default()).expect("a provider");
        self.nodes.push(node.clone());
        node
    }

    fn host(&self, name: &str) -> String {
        let mut addresses = self.addresses.borrow_mut();
        let (address, _) = addresses.entry(name.to_owned()).or_insert_with(|| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
            let bound: SockaddrIn = getsockname(socket.as_raw_fd()).expect("it is bound");
            (SocketAddr::from((bound.ip(), bound.port())), Some(socket))
        });
        address.to_string()
    }

    fn step(&mut self) -> bool {
        let work: usize = self.nodes.iter_mut().map(Source::poll).sum();
        let now = BootClock.now();
        if work > 0 {
            self.last_work = now;
        } else {
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

#[test]
fn tcp_conforms() {
    run(|| TcpBed::new(Security::Loopback));
}

#[test]
fn tcp_with_a_key_conforms() {
    let key = Key::from_secret(b"thirty-two bytes that are secret").expect("it is long enough");
    run(|| TcpBed::new(Security::Key(key.clone())));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..proptest::test_runner::Config::default() })]

    #[test]
    fn streams_are_queues_of_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), seed in 0_u64..1000) {
        story(&mut SimBed::new(seed, SERVERNET2), &bytes);
        story(&mut ShmBed::new(), &bytes);
        story(&mut TcpBed::new(Security::Loopback), &bytes);
    }
}
