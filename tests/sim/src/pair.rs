//! One array: two directors over two dual-ported devices, a registry, and hosts, all processes of one kernel.

use std::rc::Rc;
use std::time::Duration;

use dyad_backend::device::{DeviceId, DeviceInfo};
use dyad_backend::fake::{FakeDevice, FakeMedium};
use dyad_cache::{Regime, VolumeId};
use dyad_director::membership::{DirectorId, Incarnation, Timing};
use dyad_director::node::{HOST_SERVICE, Node, NodeConfig, SERVICE_TASKS, World, whole_group};
use dyad_director::registry::{FakeClient, FakeRegistry};
use dyad_host::{Initiator, InitiatorConfig};
use dyad_matrix::Memory;
use dyad_matrix::provider::NetAddress;
use dyad_matrix::sim::{Fabric, SimProvider};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, HostId, NamespaceId};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::{DriftingClock, Rng, SeededRng, VirtualTime};

use crate::kernel::{Kernel, ProcessId};
use crate::workload::Workload;

/// Blocks of the volume.
pub const VOLUME_BLOCKS: u64 = 192;

const ARRAY: [u8; 16] = *b"simulated array ";
const HOST_DEPTH: u16 = 8;
const LANES: u16 = 10;
const DESTAGERS: u16 = 3;

/// A director of the simulator.
pub type SimNode = Node<FakeDevice, SimProvider, FakeClient>;

struct Director {
    process: ProcessId,
    node: SimNode,
    ports: Vec<FakeDevice>,
}

/// The array and everything under it.
pub struct Array {
    /// Runs it.
    pub kernel: Kernel,
    /// What it runs in.
    pub time: VirtualTime,
    /// The matrix.
    pub fabric: Fabric,
    /// The registry.
    pub registry: FakeRegistry,
    media: Vec<FakeMedium>,
    directors: [Option<Director>; 2],
    clocks: [DriftingClock; 2],
    rng: SeededRng,
    starts: u32,
    timing: Timing,
}

impl Array {
    /// An array of which nothing runs yet.
    #[must_use]
    pub fn new(time: &VirtualTime, fabric: Fabric) -> Self {
        let mut rng = time.rng();
        let media = (1..=2u8).map(|id| FakeMedium::new(device_info(id), time.clone(), rng.next_u64())).collect();
        let registry = FakeRegistry::new(time.clone(), rng.next_u64());
        let clocks = [(); 2].map(|()| {
            let drift = i32::try_from(rng.below(20_001)).expect("small") - 10_000;
            DriftingClock::new(time.clone(), drift, Duration::from_millis(rng.below(1_000_000)))
        });
        Self {
            kernel: Kernel::new(time),
            time: time.clone(),
            fabric,
            registry,
            media,
            directors: [None, None],
            clocks,
            rng,
            starts: 0,
            timing: Timing::default(),
        }
    }

    /// Heartbeats and leases of its directors.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Starts a fresh incarnation of a director that does not run.
    pub fn start_director(&mut self, me: DirectorId) {
        let place = usize::from(me.index());
        assert!(self.directors[place].is_none(), "{me:?} runs");
        self.starts += 1;
        let incarnation = Incarnation(self.starts);
        let provider = self.fabric.node(name(me), u64::from(self.starts));
        let ports: Vec<_> = self.media.iter().map(|medium| medium.port([me.index() + 1; 16])).collect();
        let world = World {
            provider,
            devices: ports.clone(),
            failed: Vec::new(),
            registry: self.registry.client(),
            memory: Rc::new(Memory::anonymous),
        };
        let config = NodeConfig {
            me,
            incarnation,
            array: ARRAY,
            timing: self.timing,
            partner_host: name(me.partner()).to_owned(),
            volume: whole_group(VolumeId { uuid: [0xda; 16], generation: 1 }, BlockCount(VOLUME_BLOCKS)),
            cache_frames: 576,
            mirror_frames: 96,
            hosts: 3,
            host_depth: HOST_DEPTH,
            lanes: LANES,
            destagers: DESTAGERS,
            idle_destage: Duration::from_millis(1 + self.rng.below(60)),
        };
        let limits = Limits { tasks: SERVICE_TASKS + usize::from(LANES + DESTAGERS), timers: 256 };
        let (process, node) = self.kernel.start(&self.clocks[place], limits, |handle| Node::new(handle, config, world));
        let node = node.expect("the simulated world has room for a node");
        self.directors[place] = Some(Director { process, node, ports });
    }

    /// Ends a director at once.
    pub fn kill_director(&mut self, me: DirectorId) {
        let Some(director) = self.directors[usize::from(me.index())].take() else { return };
        self.kernel.kill(director.process);
        self.fabric.kill(name(me));
        for port in director.ports {
            port.kill();
        }
    }

    /// Stops a director's tasks.
    pub fn pause_director(&mut self, me: DirectorId) {
        let Some(director) = &self.directors[usize::from(me.index())] else { return };
        self.kernel.pause(director.process);
        self.fabric.pause(name(me));
    }

    /// Lets them go on.
    pub fn resume_director(&mut self, me: DirectorId) {
        let Some(director) = &self.directors[usize::from(me.index())] else { return };
        self.kernel.resume(director.process);
        self.fabric.resume(name(me));
    }

    /// The node, if it runs.
    #[must_use]
    pub fn node(&self, me: DirectorId) -> Option<&SimNode> {
        self.directors[usize::from(me.index())].as_ref().map(|director| &director.node)
    }

    /// A director that lost its epoch and wants to begin anew, if there is one.
    #[must_use]
    pub fn ended(&self) -> Option<DirectorId> {
        [DirectorId::A, DirectorId::B].into_iter().find(|me| self.node(*me).is_some_and(SimNode::has_ended))
    }

    /// Both directors serve together: every acknowledged write is in two memories or on media.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let regimes =
            [DirectorId::A, DirectorId::B].map(|me| self.node(me).map(|node| (node.regime(), node.state_name())));
        let homes = regimes.iter().flatten().filter(|(regime, _)| matches!(regime, Regime::Mirrored(_))).count();
        homes == 1 && regimes.iter().all(|regime| regime.is_some_and(|(_, state)| state == "both"))
    }

    /// Starts a host with `workers` workers, which leaves a silent path after `patience`: hosts that differ in it see both directors at once.
    pub fn start_host(&mut self, number: u8, workload: &Workload, workers: usize, patience: Duration) {
        let seeds: Vec<_> = (0..workers).map(|_| self.rng.fork()).collect();
        self.start_initiator(number, HOST_DEPTH, workers, patience, |handle, initiator| {
            for rng in seeds {
                workload.enlist();
                let (workload, initiator, own) = (workload.clone(), initiator.clone(), handle.clone());
                handle.spawn("worker", async move {
                    if initiator.attach().await.is_ok() {
                        workload.work(own, initiator, rng).await;
                    }
                });
            }
        });
    }

    /// Starts a host that reads everything once.
    pub fn start_reader(&mut self, workload: &Workload) {
        let patience = self.timing.lease * 4;
        self.start_initiator(99, 2, 1, patience, |handle, initiator| {
            workload.enlist();
            let workload = workload.clone();
            handle.spawn("reader", async move {
                if initiator.attach().await.is_ok() {
                    workload.read_all(initiator).await;
                }
            });
        });
    }

    fn start_initiator(
        &mut self,
        number: u8,
        depth: u16,
        workers: usize,
        patience: Duration,
        spawn: impl FnOnce(&Handle, Initiator<SimProvider>),
    ) {
        let provider = self.fabric.node(&format!("host{number}"), u64::from(number));
        let config = InitiatorConfig {
            host: HostId([number + 1; 16]),
            paths: [DirectorId::A, DirectorId::B]
                .map(|me| NetAddress { host: name(me).to_owned(), discriminator: HOST_SERVICE })
                .to_vec(),
            namespace: NamespaceId(1),
            depth,
            first_generation: 1,
            connect_timeout: self.timing.lease,
            path_timeout: patience,
            // Longer than all faults together: an operation that fails is an operation that is stuck.
            command_timeout: Duration::from_secs(60),
            retry_delay: self.timing.heartbeat / 4,
        };
        let memory = Memory::anonymous(usize::from(depth) * 8 * 16 * BLOCK_BYTES);
        let clock = DriftingClock::new(self.time.clone(), 0, Duration::ZERO);
        let (_, ()) = self.kernel.start(&clock, Limits { tasks: 8 + workers, timers: 128 }, |handle| {
            let initiator = Initiator::new(handle, provider, config, memory).expect("the simulated matrix has room");
            spawn(handle, initiator);
        });
    }

    /// Whether every block is the same on both devices.
    #[must_use]
    pub fn legs_are_equal(&self) -> bool {
        (0..VOLUME_BLOCKS)
            .map(dyad_nvme::types::Lba)
            .all(|lba| self.media[0].contents(lba) == self.media[1].contents(lba))
    }
}

/// The fabric's name of a director.
#[must_use]
pub const fn name(director: DirectorId) -> &'static str {
    match director {
        DirectorId::A => "director A",
        DirectorId::B => "director B",
    }
}

fn device_info(id: u8) -> DeviceInfo {
    DeviceInfo {
        id: DeviceId([id; 16]),
        namespace: NamespaceId(1),
        blocks: BlockCount(VOLUME_BLOCKS),
        transfer_blocks_max: BlockCount(32),
        queue_depth: 64,
        volatile_cache: true,
        reservations: true,
    }
}
