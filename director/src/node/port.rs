//! The NVMe/TCP port of a director: tells the subsystem core what the array is as seen from here, and the other directors where
//! hosts find it.
//!
//! - A pair's volumes are one ANA group. Its state follows membership: the home is Optimized; a director that may become the home
//!   and does not know yet is in Change, for ANATT at most; everybody else is Inaccessible, for commands are not forwarded yet
//!   (PROTOCOLS 12.3).
//! - Where a director's port is stands in the registry, so that every discovery log names the ports of all directors, also of those
//!   that do not run now. A director says where its port is before it joins.
//!
//! The record of a director's ports is text: one line `ADDRESS:PORT` for each.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::raid::geometry::{CHUNK_BLOCKS, Geometry, Level};
use dyad_cache::{Epoch, Regime, VolumeId, VolumePlace};
use dyad_frontend::subsystem::array::{AccessRow, PortView, Volumes};
use dyad_frontend::subsystem::cached::CacheBacking;
use dyad_frontend::subsystem::{
    AccessTable, AnaGroupId, AnaGroupView, Array, DirectorIndex, NamespaceView, PortId, Subsystem, SubsystemConfig,
};
use dyad_frontend::tcp::{TcpConfig, TcpPort};
use dyad_matrix::Provider;
use dyad_nvme::discovery::{AddressFamily, Transport};
use dyad_nvme::geometry as wire;
use dyad_nvme::log::AnaState;
use dyad_nvme::types::{BlockCount, NamespaceId};
use dyad_reactor::Reactor;
use dyad_reactor::reactor::ReactorError;
use nix::errno::Errno;

use super::home_group::{HomeGroup, level_of};
use super::{Node, NodeConfig};
use crate::control::PortNumbers;
use crate::membership::DirectorId;
use crate::registry::{Cas, Key, Registry, RegistryError};

/// Commands of standard hosts that are served at once.
pub const LANES: u16 = 64;
/// Tasks that a port spawns: its lanes, its watch, and the one that follows membership.
pub const TASKS: usize = LANES as usize + 2;

/// Connections at once.
const CONNECTIONS: u16 = 256;
/// Commands that a host may have outstanding per queue.
const CREDITS: u16 = 128;
/// The pair's volumes.
const GROUP: AnaGroupId = AnaGroupId(1);
/// Commands outstanding that keep a device busy.
const DEPTH_PER_DEVICE: u16 = 16;
/// How often the registry is asked where the partner's port is, until it is known.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Attempts to say where the port is.
const ATTEMPTS: usize = 8;

/// Where a port is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where hosts find it, if not there: behind address translation, or when it listens on all addresses.
    pub advertise: Option<SocketAddr>,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The kernel refused the socket.
    #[error("cannot listen on {address} for NVMe/TCP: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// It listens everywhere, and hosts cannot be told "everywhere".
    #[error("hosts cannot be sent to {0}: say which address they are to use")]
    Unspecified(SocketAddr),
    /// So many devices make no group.
    #[error("{0} devices make no group")]
    Devices(usize),
    /// The kernel refused something else.
    #[error("cannot serve NVMe/TCP: {0}")]
    Os(#[from] Errno),
    /// The registry could not be told where it is.
    #[error("cannot put on record where the NVMe/TCP port is: {0}")]
    Registry(#[from] RegistryError),
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

/// A port that listens and serves nobody yet.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    /// Listens.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn new(config: PortConfig) -> Result<Self, PortError> {
        let failed = |source| PortError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        let address = config.advertise.map_or_else(|| listener.local_addr(), Ok).map_err(failed)?;
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(PortError::Unspecified(address));
        }
        Ok(Self { listener, address })
    }

    /// Where hosts find it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the volumes of `node`; what is returned says what the port has done.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn serve<D: Device, P: Provider, R: Registry>(
        self,
        node: &Node<D, P, R>,
        reactor: &mut Reactor,
    ) -> Result<Rc<dyn Fn() -> PortNumbers>, PortError> {
        let (handle, inner) = (reactor.handle(), &*node.inner);
        let mut ports = Ports::default();
        ports.0[usize::from(inner.config.me.index())] = vec![self.address];
        let count = inner.world.devices.len();
        let raid = Geometry::new(level_of(count), count).map_err(|_| PortError::Devices(count))?;
        let ground = Ground { volumes: vec![inner.config.volume], group: inner.config.array, raid };
        let seen = Seen { me: inner.config.me, epoch: node.epoch(), regime: node.regime(), ports };
        let subsystem = Subsystem::new(subsystem_config(&inner.config), seen.array(&ground, 0), access());
        let subsystem = Rc::new(RefCell::new(subsystem));
        let backing =
            CacheBacking::new(&handle, node.cache().clone(), &names(&ground.volumes), origin(&inner.config), window());
        let port = TcpPort::new(&handle, tcp_config(&inner.config), Rc::clone(&subsystem), backing, self.listener)?;
        reactor.add_source(port.source())?;
        let (shown, address) = (port.clone(), self.address.to_string());
        handle.spawn("port", Follower { node: node.clone(), port, subsystem, ground, seen, changes: 0 }.run());
        Ok(Rc::new(move || {
            let counters = shown.counters();
            PortNumbers {
                kind: "nvme-tcp",
                address: address.clone(),
                connections: shown.open_connections(),
                commands: counters.commands,
                ended: counters.turned_away + counters.malformed + counters.impatient,
            }
        }))
    }
}

/// Puts on record where a director's port is, or that it has none. It is to be told before the director joins.
///
/// # Errors
/// The registry's.
pub async fn put_on_record<R: Registry>(
    registry: &R,
    me: DirectorId,
    address: Option<SocketAddr>,
) -> Result<(), RegistryError> {
    let value = address.map_or(String::new(), |address| format!("{address}\n"));
    let mut failed = RegistryError::Unknown;
    for _ in 0..ATTEMPTS {
        let known = match registry.get(&key(me)).await {
            Ok(known) => known,
            Err(error) => {
                failed = error;
                continue;
            }
        };
        if known.as_ref().map_or(&b""[..], |known| &known.value) == value.as_bytes() {
            return Ok(());
        }
        match registry.compare_and_swap(&key(me), known.map(|known| known.revision), value.as_bytes()).await {
            Ok(Cas::Won(_)) => return Ok(()),
            Ok(Cas::Lost(_)) => {}
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Key of the record of a director's ports.
fn key(director: DirectorId) -> Key {
    Key::new(if director == DirectorId::A { "ports.a" } else { "ports.b" }).expect("a valid key")
}

/// What stands in a record; lines that are no addresses are somebody else's.
fn addresses(value: &[u8]) -> Vec<SocketAddr> {
    String::from_utf8_lossy(value).lines().filter_map(|line| line.parse().ok()).collect()
}

/// The ports of both directors, by their index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ports([Vec<SocketAddr>; 2]);

/// What the core is told about, as last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    me: DirectorId,
    /// Zero when this director is no member of any.
    epoch: Epoch,
    regime: Regime,
    ports: Ports,
}

/// What the volumes are on.
#[derive(Debug, Clone)]
struct Ground {
    volumes: Vec<VolumePlace>,
    /// The pair's group.
    group: [u8; 16],
    raid: Geometry,
}

impl Seen {
    /// Who serves the group, if that is known here.
    fn home(&self) -> Option<DirectorId> {
        match self.regime {
            Regime::Mirrored(_) | Regime::Solo(_) => Some(self.me),
            Regime::Elsewhere if self.epoch > Epoch(0) => Some(self.me.partner()),
            Regime::Elsewhere | Regime::Undecided => None,
        }
    }

    /// What lies behind a volume: one group, all of it.
    fn geometry(&self, namespace: &NamespaceView, ground: &Ground, generation: u64) -> wire::Geometry {
        let Ground { group, raid, .. } = *ground;
        let (members, data) = (raid.members(), raid.data());
        let devices = |count: usize| u16::try_from(count).expect("groups are small");
        let stripe = u32::try_from(data as u64 * CHUNK_BLOCKS).expect("groups are small");
        let group = wire::GroupGeometry {
            id: group,
            ana_group: GROUP.0,
            home: self.home().map(DirectorId::index),
            level: match raid.level() {
                Level::Raid0 => 0,
                Level::Raid1 => 1,
                Level::Raid10 => 10,
                Level::Raid5 => 5,
                Level::Raid6 => 6,
            },
            devices: devices(members),
            data_devices: devices(data),
        };
        wire::Geometry {
            namespace: namespace.id,
            generation,
            blocks: namespace.blocks,
            extent_blocks: stripe,
            chunk_blocks: u32::try_from(CHUNK_BLOCKS).expect("16"),
            optimal_depth: devices(members) * DEPTH_PER_DEVICE,
            optimal_blocks: stripe,
            media: wire::Media::SolidState,
            segments: vec![wire::SegmentGeometry { first_extent: 0, groups: vec![group] }],
        }
    }

    fn array(&self, ground: &Ground, generation: u64) -> Array {
        let volumes = &ground.volumes;
        let namespaces = names(volumes).into_iter().zip(volumes).map(|((id, _), volume)| NamespaceView {
            id,
            uuid: volume.id.uuid,
            blocks: BlockCount(volume.blocks),
            group: GROUP,
            // FLUSH and FUA are asked for (PROTOCOLS 6.1).
            volatile_cache: true,
            deallocated_zeros: false,
            optimal_write: BlockCount(ground.raid.data() as u64 * CHUNK_BLOCKS),
        });
        let groups = vec![AnaGroupView { id: GROUP, state: ana_state(self.regime) }];
        let ports = (1..).zip(&self.ports.0).flat_map(|(director, addresses)| {
            addresses.iter().map(move |address| PortView {
                id: PortId(director),
                transport: Transport::Tcp,
                family: if address.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 },
                address: address.ip().to_string(),
                service: address.port().to_string(),
            })
        });
        let array = Array::new(namespaces.collect(), groups, ports.collect());
        let array = array.expect("volumes of one group, counted from one");
        let geometries = array.namespaces().iter().map(|namespace| self.geometry(namespace, ground, generation));
        let geometries = geometries.collect();
        array.with_geometries(geometries)
    }
}

/// How hosts reach the pair's volumes through a director that serves like this.
const fn ana_state(regime: Regime) -> AnaState {
    match regime {
        Regime::Mirrored(_) | Regime::Solo(_) => AnaState::Optimized,
        Regime::Undecided => AnaState::Change,
        Regime::Elsewhere => AnaState::Inaccessible,
    }
}

/// Namespace identifiers: the same at both directors.
fn names(volumes: &[VolumePlace]) -> Vec<(NamespaceId, VolumeId)> {
    (1..).map(NamespaceId).zip(volumes.iter().map(|volume| volume.id)).collect()
}

/// Until the control plane says otherwise, every host may use every volume.
fn access() -> AccessTable {
    AccessTable::new(vec![AccessRow { port: None, host: None, volumes: Volumes::All, credits: CREDITS }])
}

/// Keeps the core informed.
struct Follower<D: Device, P: Provider, R> {
    node: Node<D, P, R>,
    port: TcpPort<CacheBacking<HomeGroup<D>, P>>,
    subsystem: Rc<RefCell<Subsystem>>,
    ground: Ground,
    seen: Seen,
    /// Changes of what was seen in this epoch.
    changes: u64,
}

impl<D: Device, P: Provider, R: Registry> Follower<D, P, R> {
    async fn run(mut self) {
        let inner = &*self.node.inner;
        let mut asked_in = None;
        let mut ask_at = inner.handle.now();
        loop {
            let generation = inner.changed.generation();
            let mut now = Seen { epoch: self.node.epoch(), regime: self.node.regime(), ..self.seen.clone() };
            let partner = inner.config.me.partner();
            let place = usize::from(partner.index());
            // A partner that comes back may be somewhere else.
            let epoch = now.epoch;
            let unknown = now.ports.0[place].is_empty() && inner.handle.now() >= ask_at;
            if asked_in != Some(epoch) || unknown {
                ask_at = inner.handle.now() + ASK_AGAIN;
                if let Ok(record) = inner.world.registry.get(&key(partner)).await {
                    asked_in = Some(epoch);
                    now.ports.0[place] = record.map_or(Vec::new(), |record| addresses(&record.value));
                }
                (now.epoch, now.regime) = (self.node.epoch(), self.node.regime());
            }
            if now != self.seen {
                self.changes = if now.epoch == self.seen.epoch { self.changes + 1 } else { 0 };
                let generation = now.epoch.0 << 16 | self.changes.min(0xffff);
                self.subsystem.borrow_mut().set_array(now.array(&self.ground, generation));
                self.port.perform_actions();
                self.seen = now;
            }
            let _ = inner
                .handle
                .timeout_at(ask_at.max(inner.handle.now() + ASK_AGAIN), inner.changed.changed_since(generation))
                .await;
        }
    }
}

/// The longest that it is not known who serves: as long as commands wait for it (PROTOCOLS 12.3).
fn undecided_max(config: &NodeConfig) -> Duration {
    // Silence, every lease that was granted, fencing, replay and adoption, many times over.
    let seconds = (config.timing.lease * 16).as_secs().clamp(10, 60);
    Duration::from_secs(seconds)
}

fn subsystem_config(config: &NodeConfig) -> SubsystemConfig {
    SubsystemConfig {
        nqn: array_nqn(config.array),
        serial: array_serial(config.array),
        director: DirectorIndex(config.me.index()),
        controllers: 128,
        io_queues: 16,
        queue_entries: CREDITS,
        transfer_log2: 6,
        in_capsule_bytes: 8192,
        ana_transition: undecided_max(config),
        quiesce: undecided_max(config),
    }
}

fn tcp_config(config: &NodeConfig) -> TcpConfig {
    TcpConfig {
        port: PortId(u16::from(config.me.index()) + 1),
        connections: CONNECTIONS,
        lanes: LANES,
        alignment: 0,
        data_max: 256 << 10,
        setup_timeout: Duration::from_secs(30),
        patience: Duration::from_secs(60),
        command_deadline: undecided_max(config),
    }
}

/// What the cache remembers of the port's writes: as much as it has lanes.
fn window() -> usize {
    usize::from(LANES) * 2
}

/// The port's own origin of commands, of this run: no other run ever used it (PROTOCOLS 9.1).
fn origin(config: &NodeConfig) -> [u8; 16] {
    let mut origin = *b"dyad port\0\0\0\0\0\0\0";
    origin[9] = config.me.index();
    origin[12..].copy_from_slice(&config.incarnation.0.to_le_bytes());
    origin
}

/// The array's name, by its UUID (Base 4.5.1).
#[must_use]
pub fn array_nqn(array: [u8; 16]) -> String {
    let hex: String = array.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", parts.join("-"))
}

fn array_serial(array: [u8; 16]) -> String {
    let hex: String = array[..8].iter().map(|byte| format!("{byte:02X}")).collect();
    format!("DYAD{hex}")
}

#[cfg(test)]
mod tests {
    use dyad_cache::Policy;
    use dyad_nvme::types::Lba;

    use super::*;

    fn seen(regime: Regime, a: &str, b: &str) -> Seen {
        let ports = Ports([addresses(a.as_bytes()), addresses(b.as_bytes())]);
        Seen { me: DirectorId::B, epoch: Epoch(3), regime, ports }
    }

    fn ground(volumes: Vec<VolumePlace>) -> Ground {
        Ground { volumes, group: [6; 16], raid: Geometry::new(Level::Raid5, 5).unwrap() }
    }

    #[test]
    fn the_state_of_the_group_follows_who_serves() {
        let state = |regime| seen(regime, "", "").array(&ground(Vec::new()), 1).state(GROUP);
        assert_eq!(state(Regime::Mirrored(Epoch(3))), Some(AnaState::Optimized));
        assert_eq!(state(Regime::Solo(Epoch(4))), Some(AnaState::Optimized));
        assert_eq!(state(Regime::Undecided), Some(AnaState::Change));
        assert_eq!(state(Regime::Elsewhere), Some(AnaState::Inaccessible));
    }

    #[test]
    fn both_directors_show_the_same_ports_and_volumes() {
        let volume = |number: u8| VolumePlace {
            id: VolumeId { uuid: [number; 16], generation: 1 },
            base: Lba(0),
            blocks: 64,
            policy: Policy::Mirrored,
        };
        let array = seen(Regime::Elsewhere, "10.0.0.1:4420\n", "[fd00::2]:4421\nnot an address\n")
            .array(&ground(vec![volume(7), volume(9)]), 1);
        let ports: Vec<_> =
            array.ports().iter().map(|port| (port.id.0, port.family, &*port.address, &*port.service)).collect();
        assert_eq!(ports, [(1, AddressFamily::Ipv4, "10.0.0.1", "4420"), (2, AddressFamily::Ipv6, "fd00::2", "4421")]);
        let namespaces: Vec<_> = array.namespaces().iter().map(|space| (space.id.0, space.uuid[0])).collect();
        assert_eq!(namespaces, [(1, 7), (2, 9)]);
    }

    #[test]
    fn hosts_learn_what_is_behind_a_volume_and_who_is_its_home() {
        let volume = VolumePlace {
            id: VolumeId { uuid: [1; 16], generation: 1 },
            base: Lba(0),
            blocks: 6400,
            policy: Policy::Mirrored,
        };
        let geometry = |regime| seen(regime, "", "").array(&ground(vec![volume]), 9).geometries()[0].clone();
        let found = geometry(Regime::Mirrored(Epoch(3)));
        assert_eq!(
            (found.generation, found.blocks, found.extent_blocks, found.chunk_blocks),
            (9, BlockCount(6400), 64, 16)
        );
        let group = found.group_of(Lba(6399)).unwrap();
        assert_eq!((group.level, group.devices, group.data_devices, group.home), (5, 5, 4, Some(1)));
        let home = |regime| geometry(regime).group_of(Lba(0)).unwrap().home;
        assert_eq!(home(Regime::Elsewhere), Some(0), "the partner, in an epoch that this director is a member of");
        assert_eq!(home(Regime::Undecided), None);
    }

    #[test]
    fn names_are_those_of_the_specification() {
        let nqn = array_nqn([0xda; 16]);
        assert_eq!(nqn, "nqn.2014-08.org.nvmexpress:uuid:dadadada-dada-dada-dada-dadadadadada");
        assert_eq!(array_serial([0xda; 16]).len(), 20, "the length of the field");
    }

    #[test]
    fn hosts_are_not_sent_everywhere() {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let config = PortConfig { listen: everywhere, advertise: None };
        assert!(matches!(Listening::new(config), Err(PortError::Unspecified(_))));
        let known = SocketAddr::from(([192, 0, 2, 1], 4420));
        let listening = Listening::new(PortConfig { advertise: Some(known), ..config }).unwrap();
        assert_eq!(listening.address(), known);
    }
}
