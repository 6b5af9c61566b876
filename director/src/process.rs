//! A director as a process: one reactor with the shared-memory matrix, NVMe devices over vfio-user and the embedded registry.
//!
//! It says on standard output what it becomes, one [`StatusLine`] per change, and ends with [`Ended::Fresh`] when it has
//! lost its epoch: whoever started it starts it again, as a fresh incarnation (PROTOCOLS 2.1).

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::driver::{AttachError, Driver, block_on};
use dyad_backend::fence;
use dyad_backend::raid::group::Background;
use dyad_backend::vfio_user::{ConnectError, VfioUserFunction};
use dyad_cache::VolumeId;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_matrix::shm::{ShmError, ShmLimits, ShmProvider};
use dyad_nvme::types::BlockCount;
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::{Options, ReactorError, max_spin_for};
use dyad_reactor::{Reactor, Source, Stopper};

use crate::layout::{ArrayDir, DEVICES};
use crate::membership::{DirectorId, Incarnation, PairRecord, Timing};
use crate::node::home_group::group_blocks;
use crate::node::port::{self, Listening, PortConfig, PortError};
use crate::node::transition::{failed_devices, pair_key};
use crate::node::{NewNodeError, Node, NodeConfig, SERVICE_TASKS, World, whole_group};
use crate::registry::{FileRegistry, OpenError, Registry, RegistryError};

/// The volume of the array.
pub const VOLUME: VolumeId = VolumeId { uuid: *b"dyad volume one!", generation: 1 };

/// Most commands that a host may have outstanding.
pub const HOST_DEPTH: u16 = 64;

const HOSTS: u16 = 4;
const LANES: u16 = 64;
const DESTAGERS: u16 = 4;
/// 16 MiB of cache, 4 MiB of it for the partner's dirty data.
const CACHE_FRAMES: u32 = 4096;
const MIRROR_FRAMES: u32 = 1024;

/// What a director process is told.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The array.
    pub array: ArrayDir,
    /// Which director.
    pub me: DirectorId,
    /// Heartbeats and leases.
    pub timing: Timing,
    /// Reactors on this machine, this one included: decides how long it may spin.
    pub reactors: usize,
    /// Where it listens for NVMe/TCP, if it does.
    pub nvme_tcp: Option<PortConfig>,
}

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
    /// The matrix.
    #[error("the matrix at {path}: {source}")]
    Matrix {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: ShmError,
    },
    /// A device's port.
    #[error("the device at {path}: {source}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: ConnectError,
    },
    /// A device's controller.
    #[error("the device at {path}: {source}")]
    Attach {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: AttachError,
    },
    /// The registry's directory.
    #[error(transparent)]
    OpenRegistry(#[from] OpenError),
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

/// Runs a director until it ends.
///
/// # Errors
/// [`ProcessError`].
pub fn run_director(config: &ProcessConfig) -> Result<Ended, ProcessError> {
    run_director_on(config, |name, reactor| attach(config, name, reactor))
}

/// The same on devices that are reached some other way: `attach` is asked for each by its name.
///
/// # Errors
/// [`ProcessError`].
pub fn run_director_on<D: Device + Source>(
    config: &ProcessConfig,
    attach: impl Fn(&str, &Reactor) -> Result<D, ProcessError>,
) -> Result<Ended, ProcessError> {
    let incarnation = random_incarnation().map_err(ProcessError::Random)?;
    let devices_max = DEVICES.len();
    let tasks = SERVICE_TASKS + usize::from(LANES + DESTAGERS) + devices_max + port::TASKS + 1;
    let limits = Limits { tasks, timers: 1024 };
    let mut reactor = Reactor::new(Options { limits, max_spin: max_spin_for(config.reactors), core: None })?;
    let handle = reactor.handle();

    let registry = FileRegistry::open(&config.array.registry())?;
    let failed = block_on(reactor.executor(), || 0, failed_devices(&registry))?;
    let mut devices = Vec::new();
    for name in DEVICES {
        match attach(name, &reactor) {
            Ok(device) => devices.push(device),
            // As many as are on record as failed may be missing.
            Err(error) if devices.len() + failed.len() >= DEVICES.len() => eprintln!("warning: {error}"),
            Err(error) => return Err(error),
        }
    }
    let pump = || devices.iter().map(|device: &D| device.clone().poll()).sum();
    block_on(reactor.executor(), pump, check_registry(&registry, &devices))?;
    let listening = config.nvme_tcp.map(Listening::new).transpose()?;
    let address = listening.as_ref().map(Listening::address);
    block_on(reactor.executor(), || 0, port::put_on_record(&registry, config.me, address)).map_err(PortError::from)?;

    let path = config.array.director(config.me);
    let provider = ShmProvider::new(&path, u64::from(incarnation.0), ShmLimits::default())
        .map_err(|source| ProcessError::Matrix { path, source })?;
    for device in &devices {
        reactor.add_source(device.clone())?;
    }
    reactor.add_source(provider.clone())?;

    let blocks = devices.iter().map(|device| device.info().blocks).min().unwrap_or(BlockCount(0));
    let node_config = NodeConfig {
        me: config.me,
        incarnation,
        array: [0xda; 16],
        timing: config.timing,
        partner_host: config.array.director(config.me.partner()).to_string_lossy().into_owned(),
        volume: whole_group(VOLUME, group_blocks(DEVICES.len(), blocks)),
        cache_frames: CACHE_FRAMES,
        mirror_frames: MIRROR_FRAMES,
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
    let world = World { provider, devices, registry, memory, device_memory: private };
    let node = Node::new(&handle, node_config, world)?;
    if let Some(listening) = listening {
        listening.serve(&node, &mut reactor)?;
    }
    handle.spawn("status", report(node.clone(), reactor.stopper()));
    reactor.run()?;
    Ok(if node.has_ended() { Ended::Fresh } else { Ended::Stopped })
}

fn attach(config: &ProcessConfig, name: &str, reactor: &Reactor) -> Result<Driver<VfioUserFunction>, ProcessError> {
    let path = config.array.port(name, config.me);
    let function =
        VfioUserFunction::connect(&path).map_err(|source| ProcessError::Connect { path: path.clone(), source })?;
    let host_identifier = [config.me.index() + 1; 16];
    let handle = reactor.handle();
    let attached = block_on(reactor.executor(), || 0, Driver::attach(function, &handle, host_identifier));
    attached.map_err(|source| ProcessError::Attach { path, source })
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
