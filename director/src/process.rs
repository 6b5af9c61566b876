//! A director as a process: one reactor with its end of the matrix and its NVMe devices, and one control thread, never mixed.
//!
//! It checks everything before it serves. It says on standard output where its control plane is and what it becomes, one [`StatusLine`] per change, and
//! ends with [`Ended::Fresh`] when it has lost its epoch: whoever started it starts it again, as a fresh incarnation (PROTOCOLS 2.1).

use std::fmt;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::driver::{AttachError, Driver, block_on};
use dyad_backend::fence;
use dyad_backend::raid::group::Background;
use dyad_cache::VolumeId;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::BlockCount;
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::{Options, ReactorError, max_spin_for};
use dyad_reactor::{Reactor, Source, Stopper};

use crate::config::{Config, DeviceAddress, DirectorNumber, MatrixAddress, MatrixSecurity, PairRegistry};
use crate::control::{self, ControlError, PortNumbers};
use crate::doctor::{self, Finding, Verdict};
use crate::fabric::{Fabric, FabricError};
use crate::function::{Function, FunctionError};
use crate::membership::{DirectorId, Incarnation, PairRecord, Timing};
use crate::node::home_group::group_blocks;
use crate::node::port::{self, Listening, PortConfig, PortError};
use crate::node::transition::{failed_devices, pair_key};
use crate::node::{NewNodeError, Node, NodeConfig, SERVICE_TASKS, World, whole_group};
use crate::registry::{ConfiguredError, ConfiguredRegistry, Registry, RegistryError};

/// The volume of the array.
pub const VOLUME: VolumeId = VolumeId { uuid: *b"dyad volume one!", generation: 1 };

/// Most commands that a host may have outstanding.
pub const HOST_DEPTH: u16 = 64;

const HOSTS: u16 = 4;
const LANES: u16 = 64;
const DESTAGERS: u16 = 4;

/// What a director process is told.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// What its part of the array is known by.
    pub array: [u8; 16],
    /// Which of the pair.
    pub me: DirectorId,
    /// Where the pair's records are.
    pub registry: PairRegistry,
    /// Its end of the matrix.
    pub matrix: MatrixAddress,
    /// Its partner's.
    pub partner: MatrixAddress,
    /// With whom the matrix speaks.
    pub security: MatrixSecurity,
    /// Its ways to the devices.
    pub devices: Vec<DeviceAddress>,
    /// Frames of the cache.
    pub cache_frames: u32,
    /// Frames that the partner may have dirty here, and this director there.
    pub mirror_frames: u32,
    /// Heartbeats and leases.
    pub timing: Timing,
    /// Reactors on this machine, this one included: decides how long it may spin.
    pub reactors: usize,
    /// Where it listens for NVMe/TCP, if it does.
    pub nvme_tcp: Option<PortConfig>,
    /// The core that its reactor stays on.
    pub core: Option<usize>,
}

impl ProcessConfig {
    /// As configured.
    ///
    /// # Errors
    /// [`ProcessError::NoSuchDirector`].
    pub fn new(config: &Config, id: DirectorNumber) -> Result<Self, ProcessError> {
        let director = config.director(id).ok_or_else(|| {
            let ids: Vec<_> = config.directors.iter().map(|director| director.id.0.to_string()).collect();
            ProcessError::NoSuchDirector { id: id.0, known: ids.join(", ") }
        })?;
        let pair = config.pair(director);
        let frames = |blocks: BlockCount| u32::try_from(blocks.0).expect("checked: frames have 32-bit numbers");
        Ok(Self {
            array: config.uuid_of(pair.id),
            me: director.role,
            registry: config.registry_of(pair.id),
            matrix: director.matrix.clone(),
            partner: config.partner(director).matrix.clone(),
            security: config.security.clone(),
            devices: director.devices.clone(),
            cache_frames: frames(pair.cache.blocks()),
            mirror_frames: frames(pair.mirror.blocks()),
            timing: pair.timing(),
            reactors: doctor::reactors(config),
            nvme_tcp: director.nvme_tcp.map(|listen| PortConfig { listen, advertise: director.advertise }),
            core: director.core,
        })
    }
}

/// The control plane that a director is to have.
struct Controlled<'a> {
    listening: control::Listening,
    config: &'a Config,
    id: DirectorNumber,
}

/// Exit status of a director that wants to be started again.
pub const EXIT_FRESH: u8 = 75;

/// How a director ended without an error.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It lost its epoch and is to be started again.
    Fresh,
    /// It was told to stop.
    Stopped,
}

/// Why a director does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The configuration has no such director.
    #[error("there is no director {id} in the configuration: it has {known}")]
    NoSuchDirector {
        /// Which.
        id: u8,
        /// Those that it has.
        known: String,
    },
    /// The machine is not fit for it.
    #[error("this machine is not ready for it (`dyad doctor --config` shows everything):{}", list(.0))]
    Unfit(Vec<Finding>),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It has no reservations with persistence.
    #[error(
        "the device at {0} cannot be fenced (it has no reservations with persistence), so it cannot be in a pair: replace it"
    )]
    NoReservations(DeviceAddress),
    /// The matrix.
    #[error("the matrix at {address}: {source}")]
    Matrix {
        /// Where.
        address: MatrixAddress,
        /// Why not.
        source: FabricError,
    },
    /// The way to a device.
    #[error("the device at {address}: {source}")]
    Reach {
        /// Where.
        address: DeviceAddress,
        /// Why not.
        source: FunctionError,
    },
    /// A device's controller.
    #[error("the device at {address}: {source}")]
    Attach {
        /// Where.
        address: DeviceAddress,
        /// Why not.
        source: AttachError,
    },
    /// The registry's client.
    #[error(transparent)]
    OpenRegistry(#[from] ConfiguredError),
    /// The registry does not answer.
    #[error("the registry: {0}")]
    Registry(#[from] RegistryError),
    /// The registry is older than the devices (PROTOCOLS 2.3).
    #[error(
        "the registry is at epoch {registry} but a device has seen epoch {device}: the registry was restored or belongs to \
         another array; nothing was changed. Bring back the registry that belongs to these devices"
    )]
    RegistryBehind {
        /// The registry's epoch.
        registry: u64,
        /// The device's.
        device: u64,
    },
    /// Its parts do not fit.
    #[error(transparent)]
    Node(#[from] NewNodeError),
    /// The NVMe/TCP port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// No randomness for the incarnation.
    #[error("cannot read /dev/urandom: {0}")]
    Random(std::io::Error),
}

/// Each on a line of its own.
fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n{finding}")).collect()
}

/// One line of a director's standard output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusLine {
    /// The membership's state.
    pub state: String,
    /// It serves hosts.
    pub serves: bool,
    /// Its epoch.
    pub epoch: u64,
    /// Blocks that it has adopted from a lost partner.
    pub adopted: u64,
    /// Commands that hosts sent again and that were not applied again.
    pub repeated: u64,
}

impl fmt::Display for StatusLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, serves, epoch, adopted, repeated } = self;
        write!(f, "status|{state}|{serves}|{epoch}|{adopted}|{repeated}")
    }
}

impl StatusLine {
    /// The line in `text`, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.trim_end().split('|');
        if fields.next()? != "status" {
            return None;
        }
        Some(Self {
            state: fields.next()?.to_owned(),
            serves: fields.next()?.parse().ok()?,
            epoch: fields.next()?.parse().ok()?,
            adopted: fields.next()?.parse().ok()?,
            repeated: fields.next()?.parse().ok()?,
        })
    }
}

/// Runs a director of an array until it ends.
///
/// # Errors
/// [`ProcessError`].
pub fn run_director(config: &Config, id: DirectorNumber) -> Result<Ended, ProcessError> {
    let process = ProcessConfig::new(config, id)?;
    let director = config.director(id).expect("there is one");
    let bad: Vec<_> =
        doctor::before_start(config, director).into_iter().filter(|finding| finding.verdict == Verdict::Bad).collect();
    if !bad.is_empty() {
        return Err(ProcessError::Unfit(bad));
    }
    let listening = control::Listening::new(director.control)?;
    println!("{CONTROL}{}", listening.address());
    let controlled = Some(Controlled { listening, config, id });
    run(&process, controlled, |_, address, reactor| attach(&process, address, reactor))
}

/// What stands before the control plane's address on standard output.
pub const CONTROL: &str = "control|";

/// A director on devices that are reached some other way, without a control plane: `attach` is asked for each by its place and address.
///
/// # Errors
/// [`ProcessError`].
pub fn run_director_on<D: Device + Source>(
    config: &ProcessConfig,
    attach: impl Fn(usize, &DeviceAddress, &Reactor) -> Result<D, ProcessError>,
) -> Result<Ended, ProcessError> {
    run(config, None, attach)
}

fn run<D: Device + Source>(
    config: &ProcessConfig,
    controlled: Option<Controlled<'_>>,
    attach: impl Fn(usize, &DeviceAddress, &Reactor) -> Result<D, ProcessError>,
) -> Result<Ended, ProcessError> {
    let incarnation = random_incarnation().map_err(ProcessError::Random)?;
    let devices_max = config.devices.len();
    let tasks = SERVICE_TASKS + usize::from(LANES + DESTAGERS) + devices_max + port::TASKS + control::TASKS + 1;
    let limits = Limits { tasks, timers: 1024 };
    let mut reactor = Reactor::new(Options { limits, max_spin: max_spin_for(config.reactors), core: config.core })?;
    let handle = reactor.handle();

    let registry = ConfiguredRegistry::open(&config.registry)?;
    let failed = block_on(reactor.executor(), || 0, failed_devices(&registry))?;
    let mut devices = Vec::new();
    for (place, address) in config.devices.iter().enumerate() {
        match attach(place, address, &reactor) {
            Ok(device) if !device.info().reservations => return Err(ProcessError::NoReservations(address.clone())),
            Ok(device) => devices.push(device),
            // As many as are on record as failed may be missing.
            Err(error) if devices.len() + failed.len() >= devices_max => eprintln!("warning: {error}"),
            Err(error) => return Err(error),
        }
    }
    let pump = || devices.iter().map(|device: &D| device.clone().poll()).sum();
    block_on(reactor.executor(), pump, check_registry(&registry, &devices))?;
    let listening = config.nvme_tcp.map(Listening::new).transpose()?;
    let address = listening.as_ref().map(Listening::address);
    block_on(reactor.executor(), || 0, port::put_on_record(&registry, config.me, address)).map_err(PortError::from)?;

    let provider = Fabric::new(&config.matrix, &config.security, u64::from(incarnation.0))
        .map_err(|source| ProcessError::Matrix { address: config.matrix.clone(), source })?;
    for device in &devices {
        reactor.add_source(device.clone())?;
    }
    reactor.add_source(provider.clone())?;

    let blocks = devices.iter().map(|device| device.info().blocks).min().unwrap_or(BlockCount(0));
    let node_config = NodeConfig {
        me: config.me,
        incarnation,
        array: config.array,
        timing: config.timing,
        partner_host: config.partner.to_string(),
        volume: whole_group(VOLUME, group_blocks(devices_max, blocks)),
        cache_frames: config.cache_frames,
        mirror_frames: config.mirror_frames,
        hosts: HOSTS,
        host_depth: HOST_DEPTH,
        lanes: LANES,
        // The same at both: each takes the commits of the other.
        port_lanes: port::LANES,
        destagers: DESTAGERS,
        idle_destage: Duration::from_millis(20),
        background: Background::default(),
    };
    // The partner maps the mirror; it could take huge pages back.
    let memory = Rc::new(|bytes| Memory::shared("dyad", bytes, HugePages::No).expect("memory for the cache"));
    let private = Rc::new(|bytes| Memory::shared("dyad group", bytes, HugePages::No).expect("memory for the group"));
    let shown = devices.clone();
    let world = World { provider, devices, registry, memory, device_memory: private };
    let node = Node::new(&handle, node_config, world)?;
    let port = listening.map(|listening| listening.serve(&node, &mut reactor)).transpose()?;
    if let Some(Controlled { listening, config: array, id }) = controlled {
        let (target, address) = (node.target().clone(), config.matrix.to_string());
        let ports = move || {
            let (address, connections, commands) = (address.clone(), target.open_sessions(), target.served());
            let vi = PortNumbers { kind: "vi", address, connections, commands, ended: 0 };
            [vi].into_iter().chain(port.iter().map(|port| port())).collect()
        };
        let reporter = listening.serve(array, id, reactor.counters())?;
        reporter.spawn(&handle, &node, shown, Rc::new(ports));
    }
    handle.spawn("status", report(node.clone(), reactor.stopper()));
    reactor.run()?;
    Ok(if node.has_ended() { Ended::Fresh } else { Ended::Stopped })
}

fn attach(
    config: &ProcessConfig,
    address: &DeviceAddress,
    reactor: &Reactor,
) -> Result<Driver<Function>, ProcessError> {
    let function =
        Function::open(address).map_err(|source| ProcessError::Reach { address: address.clone(), source })?;
    let host_identifier = [config.me.index() + 1; 16];
    let handle = reactor.handle();
    let attached = block_on(reactor.executor(), || 0, Driver::attach(function, &handle, host_identifier));
    attached.map_err(|source| ProcessError::Attach { address: address.clone(), source })
}

/// Refuses a registry that the devices have outrun. The devices are asked first: the partner may be going on meanwhile.
async fn check_registry<D: Device, R: Registry>(registry: &R, devices: &[D]) -> Result<(), ProcessError> {
    let mut seen = 0;
    for device in devices {
        if let Ok(report) = device.reservation_report().await {
            seen = seen.max(fence::highest_epoch(&report).map_or(0, fence::Epoch::number));
        }
    }
    let record = registry.get(&pair_key()).await?.and_then(|versioned| PairRecord::decode(&versioned.value).ok());
    let known = record.unwrap_or(PairRecord::initial()).epoch.0;
    if seen > known { Err(ProcessError::RegistryBehind { registry: known, device: seen }) } else { Ok(()) }
}

/// Says what changed; ends the reactor when the node has ended. The words are said by a thread of their own: whoever should read
/// them may not.
async fn report<D: Device, P: dyad_matrix::Provider, R: Registry>(node: Node<D, P, R>, stopper: Stopper) {
    let (words, inbox) = std::sync::mpsc::channel::<StatusLine>();
    std::thread::spawn(move || {
        for status in inbox {
            // Nobody may be listening any more.
            let _ = writeln!(std::io::stdout(), "{status}").and_then(|()| std::io::stdout().flush());
        }
    });
    let mut said = None;
    loop {
        let seen = node.changed().generation();
        let counters = node.cache().counters();
        let (adopted, repeated) = (counters.adopted_blocks, counters.repeated_writes);
        let now = (node.state_name(), node.serves(), node.epoch().0, adopted);
        if said.replace(now) != Some(now) {
            let (state, serves, epoch, adopted) = now;
            let _ = words.send(StatusLine { state: state.to_owned(), serves, epoch, adopted, repeated });
        }
        if node.has_ended() {
            stopper.stop();
        }
        node.changed().changed_since(seen).await;
    }
}

fn random_incarnation() -> std::io::Result<Incarnation> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Incarnation(u32::from_le_bytes(bytes).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_return_and_other_lines_do_not() {
        let status = StatusLine { state: "solo, settled".into(), serves: true, epoch: 4, adopted: 5, repeated: 6 };
        assert_eq!(StatusLine::parse(&format!("{status}\n")), Some(status));
        assert_eq!(StatusLine::parse("status|both"), None);
        assert_eq!(StatusLine::parse("warning: something"), None);
    }
}
