//! What a director reserves when it starts.

use std::rc::Rc;
use std::time::Duration;

use dyad_backend::device::{DeviceId, DeviceInfo};
use dyad_backend::fake::FakeMedium;
use dyad_backend::raid::group::Background;
use dyad_cache::VolumeId;
use dyad_director::membership::{DirectorId, Incarnation, Timing};
use dyad_director::node::port::{self, Listening, PortConfig};
use dyad_director::node::{Node, NodeConfig, SERVICE_TASKS, World, whole_group};
use dyad_director::registry::FakeRegistry;
use dyad_matrix::Memory;
use dyad_matrix::sim::{Fabric, FabricConfig};
use dyad_nvme::types::{BlockCount, NamespaceId};
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::Options;
use dyad_reactor::{Reactor, VirtualTime};

/// DESIGN 2: lanes, not spawns.
const LANE_BYTES_MAX: usize = 4096;

#[test]
fn every_lane_is_made_at_start_and_is_small() {
    let time = VirtualTime::new(1);
    let info = |id| DeviceInfo {
        id: DeviceId([id; 16]),
        namespace: NamespaceId(1),
        blocks: BlockCount(1024),
        transfer_blocks_max: BlockCount(32),
        queue_depth: 64,
        volatile_cache: true,
        reservations: true,
    };
    let devices = [1, 2].map(|id| FakeMedium::new(info(id), time.clone(), 1).port([1; 16])).to_vec();
    let fabric = Fabric::new(&time, FabricConfig::default());
    let world = World {
        provider: fabric.node("a", 1),
        devices,
        registry: FakeRegistry::new(time.clone(), 1).client(),
        memory: Rc::new(Memory::anonymous),
        device_memory: Rc::new(Memory::anonymous),
    };
    let (lanes, destagers) = (16, 2);
    let config = NodeConfig {
        me: DirectorId::A,
        incarnation: Incarnation(1),
        array: [1; 16],
        timing: Timing::default(),
        partner_host: "b".into(),
        volume: whole_group(VolumeId { uuid: [1; 16], generation: 1 }, BlockCount(1024)),
        cache_frames: 2048,
        mirror_frames: 128,
        hosts: 2,
        host_depth: 16,
        lanes,
        port_lanes: port::LANES,
        destagers,
        idle_destage: Duration::from_millis(20),
        background: Background::default(),
    };
    let limits = Limits { tasks: SERVICE_TASKS + usize::from(lanes + destagers) + port::TASKS, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let node = Node::new(&reactor.handle(), config, world).unwrap();
    let anywhere = PortConfig { listen: ([127, 0, 0, 1], 0).into(), advertise: None };
    Listening::new(anywhere).unwrap().serve(&node, &mut reactor).unwrap();
    reactor.executor().seal();

    let sizes = reactor.executor().task_sizes();
    for (name, bytes) in &sizes {
        println!("{name}: {bytes} bytes");
    }
    for (kind, count) in [("lane", lanes), ("tcp lane", port::LANES)] {
        let of_kind = || sizes.iter().filter(|(name, _)| *name == kind);
        assert_eq!(of_kind().count(), usize::from(count));
        let largest = of_kind().map(|(_, bytes)| *bytes).max().unwrap();
        assert!(largest <= LANE_BYTES_MAX, "the future of a {kind} has {largest} bytes");
    }
}
