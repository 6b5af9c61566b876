//! What only the simulator can do: faults, tearing, determinism. The rest is the conformance suite's.

use std::cell::RefCell;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::memory::Memory;
use crate::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PostError,
    ProtectionTag, Provider, RegionHandle, Reliability, RemoteAccess, RemoteAddress, Revocable, SendOperation,
    ViAttributes, ViId,
};

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const LEN: usize = 64 << 10;
const LEN_U32: u32 = 64 << 10;

struct End {
    provider: SimProvider,
    cq: CqId,
    vi: ViId,
    memory: Memory,
    region: RegionHandle,
}

impl End {
    fn new(fabric: &Fabric, name: &str, reliability: Reliability) -> Self {
        let provider = fabric.node(name, 1);
        let memory = Memory::anonymous(LEN);
        let region = provider.register(&memory, TAG, BOTH).unwrap();
        let cq = provider.create_cq(64).unwrap();
        let vi = provider.create_vi(&attributes(cq, reliability)).unwrap();
        Self { provider, cq, vi, memory, region }
    }

    fn completions(&self) -> Vec<Completion> {
        let mut cx = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match self.provider.poll_completion(self.cq, &mut cx) {
            Poll::Ready(completion) => Some(completion),
            Poll::Pending => None,
        })
        .collect()
    }

    fn results(&self) -> Vec<(u64, Result<u32, DescriptorError>)> {
        self.completions().into_iter().map(|done| (done.cookie, done.result)).collect()
    }

    fn events(&self) -> Vec<Event> {
        let mut cx = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match self.provider.poll_event(&mut cx) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        })
        .collect()
    }

    fn write(&self, peer: &Self, cookie: u64) -> Result<(), PostError> {
        let operation = SendOperation::RdmaWrite(RemoteAddress { region: peer.region, offset: 0 });
        let segments = [self.memory.segment(0, LEN_U32).unwrap()];
        self.provider.post_send(self.vi, &Descriptor { operation, segments: &segments, immediate: None, cookie })
    }

    fn send(&self, cookie: u64) -> Result<(), PostError> {
        let segments = [self.memory.segment(0, 64).unwrap()];
        let operation = SendOperation::Send;
        self.provider.post_send(self.vi, &Descriptor { operation, segments: &segments, immediate: None, cookie })
    }

    fn receive(&self, cookie: u64) {
        let segment = self.memory.segment(LEN as u64 - 64, 64).unwrap();
        self.provider.post_receive(self.vi, &[segment], cookie).unwrap();
    }

    fn fill(&self, byte: u8) {
        self.memory.write(0, &[byte; LEN]).unwrap();
    }

    /// The bytes at the start of each line.
    fn lines(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        self.memory.look(0, &mut bytes).unwrap();
        bytes.into_iter().step_by(64).collect()
    }
}

fn attributes(cq: CqId, reliability: Reliability) -> ViAttributes {
    ViAttributes {
        reliability,
        tag: TAG,
        remote_access: BOTH,
        send_depth: 16,
        receive_depth: 16,
        send_cq: cq,
        receive_cq: cq,
    }
}

struct World {
    time: VirtualTime,
    fabric: Fabric,
    a: End,
    b: End,
}

impl World {
    fn new(seed: u64, config: FabricConfig) -> Self {
        Self::with(seed, config, Reliability::ReliableReception)
    }

    fn with(seed: u64, config: FabricConfig, reliability: Reliability) -> Self {
        let time = VirtualTime::new(seed);
        let fabric = Fabric::new(&time, config);
        let (a, b) = (End::new(&fabric, "a", reliability), End::new(&fabric, "b", reliability));
        let world = Self { time, fabric, a, b };
        world.b.provider.listen(Discriminator(3)).unwrap();
        let to = NetAddress { host: "b".into(), discriminator: Discriminator(3) };
        world.a.provider.connect(world.a.vi, &to, b"hello", Duration::from_secs(1)).unwrap();
        world.run_for(Duration::from_millis(1));
        let [Event::Requested { request, private_data, .. }] = &world.b.events()[..] else { panic!("one request") };
        assert_eq!(private_data, b"hello");
        world.b.provider.accept(*request, world.b.vi, b"welcome").unwrap();
        world.run_for(Duration::from_millis(1));
        assert!(
            matches!(&world.a.events()[..], [Event::Established { private_data, .. }] if private_data == b"welcome")
        );
        assert!(matches!(&world.b.events()[..], [Event::Established { private_data, .. }] if private_data.is_empty()));
        world
    }

    /// Runs until `done` or nothing happens any more.
    fn run_until(&self, done: impl Fn() -> bool) {
        while !done() {
            let Some(next) = self.time.next_event() else { return };
            self.time.advance_to(next);
            self.time.run_due();
        }
    }

    fn run_for(&self, time: Duration) {
        let end = self.time.now() + time;
        self.run_until(|| self.time.next_event().is_none_or(|next| next > end));
        self.time.advance_to(end);
    }

    fn run(&self) {
        self.run_until(|| false);
    }
}

const RELIABLE: [Reliability; 2] = [Reliability::ReliableDelivery, Reliability::ReliableReception];

#[test]
fn one_seed_gives_one_story() {
    let story = |seed| {
        let world = World::new(seed, FabricConfig::default());
        let lines = Rc::new(RefCell::new(Vec::new()));
        let out = Rc::clone(&lines);
        world.fabric.on_trace(move |line| out.borrow_mut().push(line.to_owned()));
        world.b.receive(1);
        world.a.write(&world.b, 1).unwrap();
        world.a.send(2).unwrap();
        world.fabric.pause("a");
        world.run_for(Duration::from_millis(1));
        world.fabric.resume("a");
        world.run_for(Duration::from_millis(1));
        world.fabric.kill("b");
        world.run();
        lines.take()
    };
    assert_eq!(story(7), story(7));
    assert!(story(7).len() > 4);
    assert!((0..5).any(|seed| story(seed) != story(7)));
}

#[test]
fn a_write_is_sometimes_seen_torn_and_never_by_who_got_the_message_behind_it() {
    let mut torn = 0;
    for seed in 0..40 {
        for reliability in RELIABLE {
            let world = World::with(seed, FabricConfig::default(), reliability);
            world.a.fill(7);
            world.b.receive(9);
            world.a.write(&world.b, 1).unwrap();
            world.a.send(2).unwrap();
            let seen = |byte| world.b.lines()[..1000].iter().filter(|&&line| line == byte).count();
            world.run_until(|| (1..1000).contains(&seen(7)));
            torn += usize::from(seen(7) < 1000);
            let received = RefCell::new(Vec::new());
            world.run_until(|| {
                received.borrow_mut().extend(world.b.results());
                !received.borrow().is_empty()
            });
            assert_eq!(received.take(), [(9, Ok(64))]);
            assert_eq!(seen(7), 1000, "seed {seed}: the message overtook the write");
            world.run();
            assert_eq!(world.a.results(), [(1, Ok(LEN_U32)), (2, Ok(64))]);
        }
    }
    assert!((5..60).contains(&torn), "{torn} of 80 torn");
}

#[test]
fn each_byte_is_copied_once() {
    for reliability in RELIABLE {
        let world = World::with(3, FabricConfig::default(), reliability);
        let before = (world.a.memory.copied_bytes(), world.b.memory.copied_bytes());
        world.b.receive(9);
        world.a.write(&world.b, 1).unwrap();
        world.a.send(2).unwrap();
        world.run();
        let after = (world.a.memory.copied_bytes(), world.b.memory.copied_bytes());
        assert_eq!((after.0 - before.0, after.1 - before.1), (0, LEN as u64 + 64));
    }
}

#[test]
fn after_revoke_no_byte_lands_and_no_write_succeeds() {
    let mut succeeded = 0;
    for seed in 0..200 {
        let world = World::new(seed, FabricConfig::default());
        world.a.fill(7);
        world.a.write(&world.b, 1).unwrap();
        if seed % 3 == 0 {
            world.fabric.pause("a");
        }
        world.run_for(Duration::from_micros(seed / 2));
        let before = world.a.results();
        let whole_vi = seed % 2 == 0;
        let what = if whole_vi { Revocable::Vi(world.b.vi) } else { Revocable::Region(world.b.region) };
        world.b.provider.revoke(what).unwrap();
        let landed = world.b.lines();
        world.run_for(Duration::from_millis(1));
        world.fabric.resume("a");
        world.run();
        assert_eq!(world.b.lines(), landed, "seed {seed}: bytes landed after revoke");
        match before[..] {
            [] => {
                let result = world.a.results()[0].1;
                let fitting = if whole_vi { DescriptorError::Flushed } else { DescriptorError::RemoteProtection };
                assert_eq!(result, Err(fitting), "seed {seed}");
                let why = if whole_vi { BrokenReason::Revoked } else { BrokenReason::Protocol };
                assert_eq!(world.b.events(), [Event::Broken { vi: world.b.vi, why }], "seed {seed}");
                assert_eq!(world.a.events().len(), 1, "seed {seed}");
            }
            [(1, Ok(_))] => {
                succeeded += 1;
                assert!(landed.iter().all(|&line| line == 7), "seed {seed}: success before all had landed");
            }
            ref other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!((20..180).contains(&succeeded), "revoked at all stages: {succeeded}");
}

#[test]
fn with_late_writes_a_stopped_writer_is_felt_after_revoke_until_it_is_over() {
    let config = FabricConfig { late_writes: true, ..FabricConfig::default() };
    let (mut felt, mut killed) = (0, 0);
    for seed in 0..100 {
        let world = World::new(seed, config);
        world.a.fill(7);
        world.a.write(&world.b, 1).unwrap();
        world.fabric.pause("a");
        world.run_for(Duration::from_millis(1));
        let whole_vi = seed % 2 == 0;
        let what = if whole_vi { Revocable::Vi(world.b.vi) } else { Revocable::Region(world.b.region) };
        world.b.provider.revoke(what).unwrap();
        let landed = world.b.lines();
        world.run_for(Duration::from_millis(1));
        assert_eq!(world.b.lines(), landed, "a stopped writer writes nothing");
        let reachable = world.b.provider.is_reachable(&world.b.memory);
        if seed % 5 == 0 {
            world.fabric.kill("a");
            killed += usize::from(reachable);
        } else {
            world.fabric.resume("a");
        }
        world.run();
        assert!(!world.b.provider.is_reachable(&world.b.memory));
        let changed = world.b.lines() != landed;
        assert_eq!(changed, reachable && seed % 5 != 0, "seed {seed}");
        assert!(!changed || world.a.results()[0].1.is_err(), "seed {seed}: it succeeded");
        felt += usize::from(changed);
    }
    assert!(felt > 5 && killed > 1, "{felt} {killed}");
}

#[test]
fn of_a_killed_node_a_prefix_lands_maybe_torn_and_the_peer_hears_of_it() {
    let (mut none, mut all, mut part) = (0, 0, 0);
    for seed in 0..300 {
        let world = World::new(seed, FabricConfig::default());
        world.a.fill(7);
        world.b.receive(9);
        world.a.write(&world.b, 1).unwrap();
        world.a.send(2).unwrap();
        world.run_for(Duration::from_micros(seed % 12));
        world.fabric.kill("a");
        let limit = FabricConfig::default().detection_max + Duration::from_millis(1);
        world.run_for(limit);
        assert_eq!(world.b.events(), [Event::Broken { vi: world.b.vi, why: BrokenReason::PeerGone }]);
        let seen = world.b.lines()[..1000].iter().filter(|&&line| line == 7).count();
        match seen {
            0 => none += 1,
            1000 => all += 1,
            _ => part += 1,
        }
        match world.b.results()[..] {
            [(9, Ok(64))] => assert_eq!(seen, 1000, "seed {seed}: the message overtook the write"),
            [(9, Err(DescriptorError::Flushed))] => {}
            ref other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(none > 20 && all > 20 && part > 20, "{none} {all} {part}");
}

#[test]
fn a_short_cut_delays_and_a_long_one_breaks_both_ends_at_their_own_times() {
    for reliability in RELIABLE {
        for seed in 0..20 {
            let world = World::with(seed, FabricConfig::default(), reliability);
            world.b.receive(9);
            world.fabric.cut("a", "b");
            world.a.send(1).unwrap();
            world.run_for(Duration::from_millis(49));
            assert!(world.b.completions().is_empty() && world.b.events().is_empty());
            world.fabric.heal("a", "b");
            world.run();
            assert_eq!(world.b.results(), [(9, Ok(64))]);
            assert_eq!(world.a.results(), [(1, Ok(64))]);

            world.fabric.cut("b", "a");
            let heard = |end: &End| end.events() == [Event::Broken { vi: end.vi, why: BrokenReason::Protocol }];
            let start = world.time.now();
            let (first, second) = (std::cell::Cell::new(None), std::cell::Cell::new(None));
            world.run_until(|| {
                for (end, when) in [(&world.a, &first), (&world.b, &second)] {
                    if when.get().is_none() && heard(end) {
                        when.set(Some(world.time.now().since(start)));
                    }
                }
                first.get().is_some() && second.get().is_some()
            });
            let bound = FabricConfig::default().cut_bound;
            let times = [first, second].map(|when| when.get().expect("both ends break"));
            assert!(times.iter().all(|&when| when >= bound && when <= 2 * bound), "{times:?}");
        }
    }
}

#[test]
fn an_unreliable_message_is_lost_in_a_cut_and_the_connection_stays() {
    let world = World::with(1, FabricConfig::default(), Reliability::UnreliableDelivery);
    world.b.receive(9);
    world.fabric.cut("a", "b");
    world.a.send(1).unwrap();
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.a.results(), [(1, Ok(64))]);
    world.fabric.heal("a", "b");
    world.a.send(2).unwrap();
    world.run();
    assert_eq!((world.a.results(), world.b.results()), (vec![(2, Ok(64))], vec![(9, Ok(64))]));
}

#[test]
fn a_paused_node_is_written_to_and_a_clan_read_of_it_waits() {
    for seed in 0..20 {
        for (profile, waits) in [(SERVERNET2, false), (CLAN, true)] {
            let world = World::new(seed, FabricConfig { profile, ..FabricConfig::default() });
            world.a.fill(7);
            world.fabric.pause("b");
            world.a.write(&world.b, 1).unwrap();
            world.run();
            assert!(world.b.lines().iter().all(|&line| line == 7));
            let operation = SendOperation::RdmaRead(RemoteAddress { region: world.b.region, offset: 0 });
            let segments = [world.a.memory.segment(0, 100).unwrap()];
            let read = Descriptor { operation, segments: &segments, immediate: None, cookie: 2 };
            world.a.provider.post_send(world.a.vi, &read).unwrap();
            world.run();
            let written = (1, Ok(LEN_U32));
            assert_eq!(world.a.results(), if waits { vec![written] } else { vec![written, (2, Ok(100))] });
            world.fabric.resume("b");
            world.run();
            assert_eq!(world.a.results(), if waits { vec![(2, Ok(100))] } else { vec![] });
        }
    }
}

#[test]
fn bandwidth_takes_its_time() {
    let time = |nanos_per_kib| {
        let link = LinkProfile { latency: Duration::from_micros(1), jitter: Duration::ZERO, nanos_per_kib };
        let world = World::new(1, FabricConfig { link, torn_one_in: 0, ..FabricConfig::default() });
        let start = world.time.now();
        for cookie in 0..10 {
            world.a.write(&world.b, cookie).unwrap();
        }
        world.run_until(|| world.a.completions().last().is_some_and(|done| done.cookie == 9));
        world.time.now().since(start)
    };
    assert_eq!(time(0), Duration::from_micros(2));
    assert_eq!(time(100), Duration::from_nanos(2_000 + 10 * 64 * 100));
}

#[test]
fn a_fabric_that_is_given_up_is_freed() {
    let world = World::new(1, FabricConfig::default());
    world.a.write(&world.b, 1).unwrap();
    let (weak, time) = (Rc::downgrade(&world.fabric.0), world.time.clone());
    drop(world);
    assert!(weak.upgrade().is_none() && time.next_event().is_some());
}
