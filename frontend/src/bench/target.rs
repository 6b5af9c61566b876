//! A subsystem of one volume in memory on a reactor of its own, as a thread: for benches, and for hosts that judge us.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_matrix::memory::{HugePages, MapError};
use dyad_nvme::discovery::{AddressFamily, Transport};
use dyad_nvme::log::AnaState;
use dyad_nvme::types::{BlockCount, NamespaceId};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::reactor::{Options, ReactorError};
use dyad_reactor::{Reactor, Stopper};
use nix::errno::Errno;

use crate::subsystem::array::{AccessRow, PortView, Volumes};
use crate::subsystem::memory::MemoryBacking;
use crate::subsystem::{
    AccessTable, AnaGroupId, AnaGroupView, Array, DirectorIndex, NamespaceView, PortId, Subsystem, SubsystemConfig,
};
use crate::tcp::{TcpConfig, TcpPort};

/// The target's name.
pub const NQN: &str = "nqn.2026-01.org.dyad:memory";
/// The only host that it knows.
pub const HOST_NQN: &str = "nqn.2026-01.org.dyad:guest";
/// Its only volume.
pub const VOLUME: NamespaceId = NamespaceId(1);

/// Frames for what is under way, beside those of the volume.
const SPARE_FRAMES: u64 = 4096;

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The kernel refused the socket.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// The kernel refused something else.
    #[error("cannot serve: {0}")]
    Os(#[from] Errno),
    /// No memory for the volume.
    #[error("no memory for the volume: {0}")]
    Memory(#[from] MapError),
    /// No reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// Its thread ended before it began.
    #[error("the target's thread ended")]
    Ended,
}

/// A running target; it ends when this is dropped.
#[derive(Debug)]
pub struct MemoryTarget {
    address: SocketAddr,
    memory: Memory,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl MemoryTarget {
    /// A target of so many blocks that listens on `address` (port 0: any), spinning for `max_spin` before it sleeps, on `core` if that
    /// is given.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn start(
        address: SocketAddr,
        blocks: BlockCount,
        max_spin: Duration,
        core: Option<usize>,
    ) -> Result<Self, TargetError> {
        let memory = volume_memory(blocks)?;
        let frames = memory.clone();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let reactor = make(address, blocks, frames, max_spin, core);
            let mut reactor = match reactor {
                Ok((reactor, address)) => {
                    // Whoever asked waits for it.
                    let _ = tell.send(Ok((address, reactor.stopper())));
                    reactor
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            if let Err(error) = reactor.run() {
                eprintln!("target: {error}");
            }
        });
        let (address, stopper) = told.recv().map_err(|_| TargetError::Ended)??;
        Ok(Self { address, memory, stopper, thread: Some(thread) })
    }

    /// What holds the blocks: tells how many bytes were copied there.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MemoryTarget {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

const CONFIG: TcpConfig = TcpConfig {
    port: PortId(1),
    connections: 32,
    lanes: 256,
    alignment: 0,
    data_max: 256 << 10,
    setup_timeout: Duration::from_secs(30),
    patience: Duration::from_secs(60),
    command_deadline: Duration::from_secs(30),
};

/// What an executor needs for a port.
pub(super) fn limits() -> Limits {
    Limits { tasks: TcpPort::<MemoryBacking>::tasks(&CONFIG), timers: 1024 }
}

/// The port of a subsystem with one volume in memory.
pub(super) fn open(
    handle: &Handle,
    address: SocketAddr,
    blocks: BlockCount,
    memory: Memory,
) -> Result<TcpPort<MemoryBacking>, TargetError> {
    let backing = MemoryBacking::new(handle, memory, &[(VOLUME, blocks)]);
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let subsystem = Rc::new(RefCell::new(subsystem(address, blocks)));
    Ok(TcpPort::new(handle, CONFIG, subsystem, backing, listener)?)
}

/// Memory for a volume of so many blocks.
pub(super) fn volume_memory(blocks: BlockCount) -> Result<Memory, TargetError> {
    let bytes = BlockCount(blocks.0 + SPARE_FRAMES).bytes();
    let bytes = usize::try_from(bytes).map_err(|_| MapError::Os(Errno::ENOMEM))?;
    Ok(Memory::shared("dyad-volume", bytes, HugePages::IfAvailable)?)
}

fn make(
    address: SocketAddr,
    blocks: BlockCount,
    memory: Memory,
    max_spin: Duration,
    core: Option<usize>,
) -> Result<(Reactor, SocketAddr), TargetError> {
    let mut reactor = Reactor::new(Options { limits: limits(), max_spin, core })?;
    let port = open(&reactor.handle(), address, blocks, memory)?;
    reactor.add_source(port.source())?;
    Ok((reactor, port.address()?))
}

fn subsystem(address: SocketAddr, blocks: BlockCount) -> Subsystem {
    let namespace = NamespaceView {
        id: VOLUME,
        uuid: *b"dyad memory vol.",
        blocks,
        group: AnaGroupId(1),
        volatile_cache: false,
        deallocated_zeros: true,
        optimal_write: BlockCount(16),
    };
    let group = AnaGroupView { id: AnaGroupId(1), state: AnaState::Optimized };
    let port = PortView {
        id: PortId(1),
        transport: Transport::Tcp,
        family: if address.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 },
        address: address.ip().to_string(),
        service: address.port().to_string(),
    };
    let array = Array::new(vec![namespace], vec![group], vec![port]).expect("one volume in one group");
    let row = AccessRow { port: None, host: Some(HOST_NQN.into()), volumes: Volumes::All, credits: 256 };
    let config = SubsystemConfig {
        nqn: NQN.into(),
        serial: "DYADMEMORY".into(),
        director: DirectorIndex(0),
        controllers: 16,
        io_queues: 8,
        queue_entries: 256,
        transfer_log2: 6,
        in_capsule_bytes: 8192,
        ana_transition: Duration::from_secs(10),
        quiesce: Duration::from_secs(1),
    };
    Subsystem::new(config, array, AccessTable::new(vec![row]))
}
