//! One pair: two directors over two dual-ported devices, their registry, and the hosts of their volume.
//!
//! There is no routing between pairs yet, so pairs have nothing in common but the kernel and the matrix.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::device::{DeviceId, DeviceInfo};
use dyad_backend::fake::{FakeDevice, FakeMedium};
use dyad_backend::format::Layout;
use dyad_backend::raid::geometry::{Geometry, Level};
use dyad_backend::raid::group::Background;
use dyad_cache::VolumeId;
use dyad_director::membership::{DirectorId, Incarnation, PairRecord, PairState, Timing};
use dyad_director::node::transition::{devices_of, failed_key, pair_key};
use dyad_director::node::{HOST_SERVICE, Node, NodeConfig, SERVICE_TASKS, World, whole_group};
use dyad_director::registry::{FakeClient, FakeRegistry};
use dyad_host::{Initiator, InitiatorConfig};
use dyad_matrix::provider::NetAddress;
use dyad_matrix::sim::{Fabric, LinkProfile, SimProvider};
use dyad_matrix::{Memory, Provider};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, HostId, Lba, NamespaceId};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::{DriftingClock, Rng, SeededRng, VirtualTime};

use crate::chance::one_of;
use crate::checker::Model;
use crate::kernel::{Kernel, ProcessId};
use crate::timeline::{Detail, Timeline};
use crate::trap::Trap;
use crate::workload::{Load, Workload};

/// Blocks of the volume.
pub const VOLUME_BLOCKS: u64 = 192;
/// Blocks of a device: the volume, and what a group and the vault need besides.
const DEVICE_BLOCKS: u64 = 352 + VAULT_BLOCKS;
/// The least that there is: it is full often.
const VAULT_BLOCKS: u64 = 36 * 17;
/// Hosts that work.
pub const HOSTS: usize = 2;
/// The director by the names of a pair.
pub const BOTH: [DirectorId; 2] = [DirectorId::A, DirectorId::B];

/// The host that reads everything at the end.
const READER: usize = HOSTS;
const WORKERS: usize = 3;
const ARRAY: [u8; 16] = *b"simulated array ";
const HOST_DEPTH: u16 = 8;
const LANES: u16 = 10;
const DESTAGERS: u16 = 3;
const MIRROR_FRAMES: u32 = 96;
const LOOK_FOR_WRITES: Duration = Duration::from_millis(100);

/// A director of the simulator.
pub type SimNode = Node<FakeDevice, SimProvider, FakeClient>;

/// One that runs.
pub struct Director {
    process: ProcessId,
    /// What runs.
    pub node: SimNode,
    /// Its link to the registry.
    pub registry: FakeClient,
    ports: Vec<FakeDevice>,
    provider: SimProvider,
    /// Everything it has let its partner write to; the last one is the mirror of now.
    mirrors: Rc<RefCell<Vec<Memory>>>,
}

impl Director {
    /// The memory that its partner mirrors to, if there is any.
    #[must_use]
    pub fn mirror(&self) -> Option<Memory> {
        // The first one is the cache.
        self.mirrors.borrow().get(1..)?.last().cloned()
    }

    /// Its partner, or what was stopped in the middle of a write, reaches a mirror that was given up.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        let mirrors = self.mirrors.borrow();
        let given_up = mirrors.iter().skip(1).rev().skip(1);
        given_up.into_iter().any(|memory| self.provider.is_reachable(memory))
    }
}

struct Host {
    process: ProcessId,
    paused: bool,
    initiator: Initiator<SimProvider>,
}

/// The pair and everything under and over it.
pub struct Pair {
    number: usize,
    time: VirtualTime,
    /// The matrix.
    pub fabric: Fabric,
    /// Its links, when nothing slows them down.
    pub link: LinkProfile,
    /// The registry.
    pub registry: FakeRegistry,
    /// The devices.
    pub media: [FakeMedium; 2],
    /// What its hosts do and have seen.
    pub workload: Workload,
    /// What happened.
    pub timeline: Timeline,
    directors: [Option<Director>; 2],
    paused: [bool; 2],
    hosts: [Option<Host>; HOSTS + 1],
    clocks: [DriftingClock; 2],
    patience: [Duration; HOSTS + 1],
    cache_frames: u32,
    rng: SeededRng,
    starts: u32,
    timing: Timing,
}

impl Pair {
    /// A pair of which nothing runs yet.
    #[must_use]
    pub fn new(
        number: usize,
        kernel: &Kernel,
        time: &VirtualTime,
        (fabric, link): (&Fabric, LinkProfile),
        timeline: &Timeline,
    ) -> Self {
        let mut rng = time.rng();
        let timing = Timing::default();
        let media = [0, 1].map(|place| FakeMedium::new(device_info(place), time.clone(), rng.next_u64()));
        let registry = FakeRegistry::new(time.clone(), rng.next_u64());
        let clocks = [(); 2].map(|()| {
            let drift = i32::try_from(rng.below(20_001)).expect("small") - 10_000;
            DriftingClock::new(time.clone(), drift, Duration::from_millis(rng.below(1_000_000)))
        });
        // Hosts that differ in it see both directors at once.
        let patience = [(); HOSTS + 1].map(|()| timing.lease * one_of(&mut rng, &[1, 4, 24]) / 4);
        // From little more than the reserves to more than the volume.
        let cache_frames = 272 + u32::try_from(rng.below(256)).expect("small");
        let model = Model::new(VOLUME_BLOCKS, timeline.detail() > Detail::None);
        let trap = Trap::new(time, kernel.interrupt(), link.latency);
        let load = Load::draw(&mut rng, VOLUME_BLOCKS);
        let workload = Workload::new(time, load, model, trap, VOLUME_BLOCKS, HOSTS + 1);
        Self {
            number,
            time: time.clone(),
            fabric: fabric.clone(),
            link,
            registry,
            media,
            workload,
            timeline: timeline.clone(),
            directors: [None, None],
            paused: [false; 2],
            hosts: [const { None }; HOSTS + 1],
            clocks,
            patience,
            cache_frames,
            rng,
            starts: 0,
            timing,
        }
    }

    /// The fabric's name of a director.
    #[must_use]
    pub fn name(&self, director: DirectorId) -> String {
        format!("director {}{director:?}", self.number)
    }

    /// The fabric's name of a host.
    #[must_use]
    pub fn host_name(&self, host: usize) -> String {
        format!("host {}.{host}", self.number)
    }

    /// Heartbeats and leases of its directors.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Starts a fresh incarnation of a director that does not run.
    pub fn start_director(&mut self, kernel: &mut Kernel, me: DirectorId) {
        let place = usize::from(me.index());
        assert!(self.directors[place].is_none(), "{me:?} runs");
        self.starts += 1;
        let incarnation = Incarnation(self.starts);
        let ports: Vec<_> = self.media.iter().map(|medium| medium.port(host_identifier(me))).collect();
        let registry = self.registry.client();
        let mirrors: Rc<RefCell<Vec<Memory>>> = Rc::default();
        let made = Rc::clone(&mirrors);
        let provider = self.fabric.node(&self.name(me), u64::from(self.starts));
        let world = World {
            provider: provider.clone(),
            devices: ports.clone(),
            registry: registry.clone(),
            memory: Rc::new(move |bytes| {
                let memory = Memory::anonymous(bytes);
                made.borrow_mut().push(memory.clone());
                memory
            }),
            device_memory: Rc::new(Memory::anonymous),
        };
        let config = NodeConfig {
            me,
            incarnation,
            array: ARRAY,
            timing: self.timing,
            partner_host: self.name(me.partner()),
            volume: whole_group(VolumeId { uuid: [0xda; 16], generation: 1 }, BlockCount(VOLUME_BLOCKS)),
            cache_frames: self.cache_frames,
            mirror_frames: MIRROR_FRAMES,
            hosts: u16::try_from(HOSTS + 1).expect("few hosts"),
            host_depth: HOST_DEPTH,
            lanes: LANES,
            port_lanes: 0,
            destagers: DESTAGERS,
            idle_destage: Duration::from_millis(1 + self.rng.below(200)),
            background: Background { rest_max: Duration::from_millis(500), ..Background::default() },
        };
        let limits = Limits { tasks: SERVICE_TASKS + usize::from(LANES + DESTAGERS), timers: 256 };
        let (process, node) = kernel.start(&self.clocks[place], limits, |handle| Node::new(handle, config, world));
        let node = node.expect("the simulated world has room for a node");
        self.timeline.say(|| format!("{} starts as incarnation {incarnation:?}", self.name(me)));
        self.directors[place] = Some(Director { process, node, registry, ports, provider, mirrors });
    }

    /// Ends a director at once, if it runs.
    pub fn kill_director(&mut self, kernel: &mut Kernel, me: DirectorId) {
        let place = usize::from(me.index());
        let Some(director) = self.directors[place].take() else { return };
        self.paused[place] = false;
        kernel.kill(director.process);
        self.fabric.kill(&self.name(me));
        for port in director.ports {
            port.kill();
        }
        self.timeline.say(|| format!("{} is gone", self.name(me)));
    }

    /// Does something to a director's controller of a device, if it runs.
    pub fn controller(&self, me: DirectorId, device: usize, what: impl FnOnce(&FakeDevice)) {
        if let Some(director) = self.director(me) {
            what(&director.ports[device]);
        }
    }

    /// Stops a director's tasks.
    pub fn pause_director(&mut self, kernel: &mut Kernel, me: DirectorId) {
        let place = usize::from(me.index());
        let Some(director) = &self.directors[place] else { return };
        self.paused[place] = true;
        kernel.pause(director.process);
        self.fabric.pause(&self.name(me));
        self.timeline.say(|| format!("{} pauses", self.name(me)));
    }

    /// Lets time pass until a write of a director that runs is about to land somewhere, but not for long.
    pub fn run_until_writing(&self, kernel: &mut Kernel, me: DirectorId) {
        let until = kernel.now() + LOOK_FOR_WRITES;
        while kernel.now() < until && !self.fabric.is_writing(&self.name(me)) {
            // Who is stuck now is still so later.
            if kernel.run_moment(until).is_err() {
                return;
            }
        }
    }

    /// Lets them go on.
    pub fn resume_director(&mut self, kernel: &mut Kernel, me: DirectorId) {
        let place = usize::from(me.index());
        let Some(director) = self.directors[place].as_ref().filter(|_| self.paused[place]) else { return };
        self.paused[place] = false;
        kernel.resume(director.process);
        self.fabric.resume(&self.name(me));
        self.timeline.say(|| format!("{} goes on", self.name(me)));
    }

    /// A director that runs, paused or not.
    #[must_use]
    pub fn director(&self, me: DirectorId) -> Option<&Director> {
        self.directors[usize::from(me.index())].as_ref()
    }

    /// A node that runs and is not paused.
    #[must_use]
    pub fn node(&self, me: DirectorId) -> Option<&SimNode> {
        self.director(me).filter(|_| !self.is_paused(me)).map(|director| &director.node)
    }

    /// Its tasks are stopped.
    #[must_use]
    pub fn is_paused(&self, me: DirectorId) -> bool {
        self.paused[usize::from(me.index())]
    }

    /// What a director is doing.
    #[must_use]
    pub fn state_name(&self, me: DirectorId) -> &'static str {
        self.director(me).map_or("not running", |director| director.node.state_name())
    }

    /// A director that lost its epoch and wants to begin anew, if there is one.
    #[must_use]
    pub fn ended(&self) -> Option<DirectorId> {
        BOTH.into_iter().find(|me| self.node(*me).is_some_and(SimNode::has_ended))
    }

    /// Both directors serve together: every acknowledged write is in two memories or on media.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let both = BOTH.iter().all(|me| self.node(*me).is_some_and(|node| node.state_name() == "both"));
        both && BOTH.iter().filter(|me| self.node(**me).is_some_and(SimNode::serves)).count() == 1
    }

    /// The director that serves in `both`.
    #[must_use]
    pub fn home(&self) -> Option<DirectorId> {
        BOTH.into_iter().find(|me| self.node(*me).is_some_and(SimNode::serves))
    }

    /// What the registry says of the pair.
    #[must_use]
    pub fn record(&self) -> PairState {
        let versioned = self.registry.contents(&pair_key());
        versioned
            .and_then(|versioned| PairRecord::decode(&versioned.value).ok())
            .map_or(PairState::Down, |record| record.state)
    }

    /// The record says that nothing is in one memory only.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self.record(), PairState::Solo { settled: false, .. })
    }

    /// Devices on record as failed.
    #[must_use]
    pub fn failed_devices(&self) -> Vec<DeviceId> {
        self.registry.contents(&failed_key()).map_or(Vec::new(), |versioned| devices_of(&versioned.value))
    }

    /// Starts a host with its workers, if it does not run.
    pub fn start_host(&mut self, kernel: &mut Kernel, host: usize) {
        let seeds: Vec<_> = (0..WORKERS).map(|_| self.rng.fork()).collect();
        let watcher = self.rng.fork();
        let workload = self.workload.clone();
        self.start_program(kernel, host, 1 + WORKERS, |handle, initiator| {
            workload.enlist(host);
            handle.spawn("memory", workload.clone().watch_memory(host, handle.clone(), initiator.clone(), watcher));
            for rng in seeds {
                workload.enlist(host);
                let (workload, initiator, own) = (workload.clone(), initiator.clone(), handle.clone());
                handle.spawn("worker", workload.run(host, own, initiator, Some(rng)));
            }
        });
    }

    /// Starts a host that reads everything once.
    pub fn start_reader(&mut self, kernel: &mut Kernel) {
        self.kill_host(kernel, READER);
        let workload = self.workload.clone();
        self.start_program(kernel, READER, 1, |handle, initiator| {
            workload.enlist(READER);
            handle.spawn("reader", workload.clone().run(READER, handle.clone(), initiator, None));
        });
    }

    /// Starts a host whose program has so many tasks.
    pub fn start_program(
        &mut self,
        kernel: &mut Kernel,
        host: usize,
        tasks: usize,
        spawn: impl FnOnce(&Handle, Initiator<SimProvider>),
    ) {
        self.starts += 1;
        let provider = self.fabric.node(&self.host_name(host), u64::from(self.starts));
        let config = InitiatorConfig {
            host: host_id(host),
            paths: BOTH.map(|me| NetAddress { host: self.name(me), discriminator: HOST_SERVICE }).to_vec(),
            namespace: NamespaceId(1),
            depth: HOST_DEPTH,
            first_generation: u64::from(self.starts) << 32,
            connect_timeout: self.timing.lease,
            path_timeout: self.patience[host],
            // Longer than all faults together: an operation that fails is an operation that is stuck.
            command_timeout: Duration::from_secs(60),
            retry_delay: self.timing.heartbeat / 4,
        };
        let memory = Memory::anonymous(usize::from(HOST_DEPTH) * 8 * 16 * BLOCK_BYTES);
        let clock = DriftingClock::new(self.time.clone(), 0, Duration::ZERO);
        let (process, initiator) = kernel.start(&clock, Limits { tasks: 8 + tasks, timers: 128 }, |handle| {
            let initiator = Initiator::new(handle, provider, config, memory).expect("the simulated matrix has room");
            spawn(handle, initiator.clone());
            initiator
        });
        self.hosts[host] = Some(Host { process, paused: false, initiator });
    }

    /// Ends a host at once, if it runs.
    pub fn kill_host(&mut self, kernel: &mut Kernel, host: usize) {
        let Some(dead) = self.hosts[host].take() else { return };
        kernel.kill(dead.process);
        self.fabric.kill(&self.host_name(host));
        self.workload.host_died(host);
        self.timeline.say(|| format!("{} is gone", self.host_name(host)));
    }

    /// Stops a host's tasks, if it runs and they are not.
    pub fn pause_host(&mut self, kernel: &mut Kernel, host: usize) {
        let name = self.host_name(host);
        let Some(running) = self.hosts[host].as_mut().filter(|running| !running.paused) else { return };
        running.paused = true;
        kernel.pause(running.process);
        self.fabric.pause(&name);
        self.timeline.say(|| format!("{name} pauses"));
    }

    /// Lets them go on.
    pub fn resume_host(&mut self, kernel: &mut Kernel, host: usize) {
        let name = self.host_name(host);
        let Some(running) = self.hosts[host].as_mut().filter(|running| running.paused) else { return };
        running.paused = false;
        kernel.resume(running.process);
        self.fabric.resume(&name);
        self.timeline.say(|| format!("{name} goes on"));
    }

    /// The host runs.
    #[must_use]
    pub fn has_host(&self, host: usize) -> bool {
        self.hosts[host].is_some()
    }

    /// The oldest command that the host of this name has no answer to.
    #[must_use]
    pub fn oldest_outstanding(&self, origin: [u8; 16]) -> Option<u64> {
        let host = (0..self.hosts.len()).find(|host| host_id(*host).0 == origin)?;
        self.hosts[host].as_ref()?.initiator.oldest_outstanding()
    }

    /// The hosts that run.
    pub fn initiators(&self) -> impl Iterator<Item = &Initiator<SimProvider>> {
        self.hosts.iter().flatten().map(|host| &host.initiator)
    }

    /// Where a block of the volume lies on the devices.
    #[must_use]
    pub fn on_device(lba: Lba) -> Lba {
        let geometry = Geometry::new(Level::Raid1, 2).expect("two legs");
        let layout =
            Layout::new(geometry, BlockCount(DEVICE_BLOCKS), BlockCount(VAULT_BLOCKS)).expect("room for the volume");
        assert!(layout.data.blocks.0 >= VOLUME_BLOCKS, "room for the volume");
        Lba(layout.data.start.0 + lba.0)
    }

    /// Blocks that are not the same on both devices; those that a device cannot read are not compared.
    pub fn unequal_blocks(&self) -> impl Iterator<Item = Lba> {
        let on = |leg: usize, lba: &Lba| self.media[leg].contents(Self::on_device(*lba));
        (0..VOLUME_BLOCKS).map(Lba).filter(move |lba| match [on(0, lba), on(1, lba)] {
            [Some(one), Some(other)] => one != other,
            _ => false,
        })
    }
}

/// The Host Identifier of a director's controllers.
#[must_use]
pub fn host_identifier(director: DirectorId) -> [u8; 16] {
    [director.index() + 1; 16]
}

fn host_id(host: usize) -> HostId {
    HostId([u8::try_from(host + 1).expect("few hosts"); 16])
}

/// Names the device at a place of [`Pair::media`].
#[must_use]
pub fn device_id(place: usize) -> DeviceId {
    DeviceId([u8::try_from(place + 1).expect("few devices"); 16])
}

fn device_info(place: usize) -> DeviceInfo {
    DeviceInfo {
        id: device_id(place),
        namespace: NamespaceId(1),
        blocks: BlockCount(DEVICE_BLOCKS),
        transfer_blocks_max: BlockCount(32),
        queue_depth: 64,
        volatile_cache: true,
        reservations: true,
    }
}
