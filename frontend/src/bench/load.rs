//! Load on a volume over NVMe/TCP, and what came of it: lanes as many as the deepest queue, of which as many run as the
//! measurement wants.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dyad_host::tcp::AttachError;
use dyad_host::{TcpInitiator, TcpInitiatorConfig, Volume};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool};
use dyad_matrix::memory::{HugePages, MapError};
use dyad_nvme::types::{HostId, Lba, NamespaceId};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::figures::{Figures, ROUNDS, to_f64};
use dyad_reactor::reactor::{Options, ReactorError};
use dyad_reactor::sync::Signal;
use dyad_reactor::{Reactor, Rng, SeededRng};

use super::target::HOST_NQN;

/// The deepest queue.
const DEPTH: u16 = 128;
/// Longest operation, in frames.
const FRAMES: usize = 16;
/// What is not counted, at the beginning of each measurement.
const WARM_UP: Duration = Duration::from_millis(50);
/// What is.
const SPAN: Duration = Duration::from_millis(400);

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The target does not take us.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No memory for the buffers.
    #[error("no memory for the buffers: {0}")]
    Memory(#[from] MapError),
    /// No reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// An operation failed.
    #[error("an operation failed: {0}")]
    Operation(dyad_host::VolumeError),
}

/// One measurement.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Mode {
    writes: bool,
    frames: usize,
    depth: usize,
    sequential: bool,
}

const fn mode(writes: bool, frames: usize, depth: usize, sequential: bool) -> Mode {
    Mode { writes, frames, depth, sequential }
}

/// All measurements of a round, in turn.
const MODES: [Mode; 8] = [
    mode(false, 1, 1, false),
    mode(true, 1, 1, false),
    mode(false, 1, 32, false),
    mode(true, 1, 32, false),
    mode(false, 1, DEPTH as usize, false),
    mode(true, 1, DEPTH as usize, false),
    mode(false, FRAMES, 16, true),
    mode(true, FRAMES, 16, true),
];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What its figures are called, behind `nvme_tcp.`: nothing, or `name.`.
    pub prefix: &'static str,
    /// The controllers.
    pub addresses: Vec<SocketAddr>,
    /// The subsystem.
    pub subsystem_nqn: String,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Blocks of it that are used; `None`: all.
    pub blocks: Option<u64>,
    /// The deepest queue that is measured.
    pub depth_max: u16,
}

impl Mode {
    fn name(self, prefix: &str) -> String {
        let direction = if self.writes { "write" } else { "read" };
        format!("nvme_tcp.{prefix}{direction}.{}.qd{}", self.frames * FRAME_BYTES, self.depth)
    }
}

struct Shared {
    handle: Handle,
    volume: TcpInitiator,
    prefix: &'static str,
    blocks: u64,
    mode: Cell<Mode>,
    /// Lanes that are to run.
    active: Cell<usize>,
    running: Cell<usize>,
    changed: Signal,
    done: Cell<u64>,
    next: Cell<u64>,
    latencies: RefCell<Vec<u32>>,
    failed: Cell<Option<dyad_host::VolumeError>>,
}

/// Measures everything on a subject, spinning for `max_spin` before it sleeps, on `core` if that is given. `target` tells how many payload
/// bytes the target has copied, if it is in this process.
///
/// # Errors
/// [`LoadError`].
pub fn run(
    subject: Subject,
    max_spin: Duration,
    core: Option<usize>,
    target: Option<&Memory>,
    progress: impl FnMut(&str) + 'static,
) -> Result<Figures, LoadError> {
    let limits = Limits { tasks: usize::from(DEPTH) + 1 + TcpInitiator::tasks(subject.addresses.len()), timers: 1024 };
    let mut reactor = Reactor::new(Options { limits, max_spin, core })?;
    let handle = reactor.handle();
    let memory = Memory::shared("dyad-bench-host", usize::from(DEPTH) * FRAMES * FRAME_BYTES, HugePages::IfAvailable)?;
    let buffers = memory.clone();
    let config = TcpInitiatorConfig {
        addresses: subject.addresses,
        subsystem_nqn: subject.subsystem_nqn,
        host_nqn: HOST_NQN.into(),
        host: HostId([1; 16]),
        namespace: subject.namespace,
        depth: subject.depth_max,
        header_digest: false,
        data_digest: false,
        keep_alive: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        path_timeout: Duration::from_secs(30),
        command_timeout: Duration::from_secs(30),
        retry_delay: Duration::from_millis(100),
    };
    let volume = TcpInitiator::attach(&handle, config, FramePool::new(memory))?;
    reactor.add_source(volume.source())?;
    let blocks = subject.blocks.unwrap_or(u64::MAX).min(volume.blocks().0);
    let shared = Rc::new(Shared {
        handle: handle.clone(),
        volume,
        prefix: subject.prefix,
        blocks,
        mode: Cell::new(MODES[0]),
        active: Cell::new(0),
        running: Cell::new(0),
        changed: Signal::new(),
        done: Cell::new(0),
        next: Cell::new(0),
        latencies: RefCell::new(Vec::with_capacity(1 << 20)),
        failed: Cell::new(None),
    });
    for lane in 0..usize::from(DEPTH) {
        handle.spawn("load", lane_of(Rc::clone(&shared), lane));
    }
    let figures = Rc::new(RefCell::new(Figures::default()));
    let (stopper, target, depth_max) = (reactor.stopper(), target.cloned(), usize::from(subject.depth_max));
    handle.spawn("measure", {
        let (shared, figures, mut progress) = (Rc::clone(&shared), Rc::clone(&figures), progress);
        async move {
            fill(&shared).await;
            for round in 1..=ROUNDS {
                progress(&format!("round {round} of {ROUNDS}"));
                for mode in MODES.into_iter().filter(|mode| mode.depth <= depth_max) {
                    measure(&shared, mode, target.as_ref(), &buffers, &figures).await;
                }
            }
            stopper.stop();
        }
    });
    reactor.run()?;
    match shared.failed.get() {
        Some(error) => Err(LoadError::Operation(error)),
        None => Ok(figures.take()),
    }
}

/// Writes all blocks: what was never written may be read without being looked for.
async fn fill(shared: &Shared) {
    for at in (0..shared.blocks).step_by(FRAMES) {
        let count = FRAMES.min(usize::try_from(shared.blocks - at).unwrap_or(FRAMES));
        let frames = shared.volume.pool().try_take(count).expect("nobody else has buffers now");
        if let Err(error) = shared.volume.write_gather(Lba(at), &frames).await {
            shared.failed.set(Some(error));
        }
    }
}

async fn measure(shared: &Shared, mode: Mode, target: Option<&Memory>, host: &Memory, figures: &RefCell<Figures>) {
    let copied = || target.map_or(0, Memory::copied_bytes) + host.copied_bytes();
    shared.mode.set(mode);
    shared.active.set(mode.depth);
    shared.changed.notify_all();
    shared.handle.sleep(WARM_UP).await;
    shared.done.set(0);
    shared.latencies.borrow_mut().clear();
    let copied_before = copied();
    let start = shared.handle.now();
    shared.handle.sleep(SPAN).await;
    let seconds = shared.handle.now().since(start).as_secs_f64();
    let (done, copied) = (shared.done.get(), copied() - copied_before);
    shared.active.set(0);
    while shared.running.get() > 0 {
        let seen = shared.changed.generation();
        shared.changed.changed_since(seen).await;
    }
    let mut latencies = shared.latencies.borrow_mut();
    latencies.sort_unstable();
    let mut figures = figures.borrow_mut();
    let name = mode.name(shared.prefix);
    let bytes = done * (mode.frames * FRAME_BYTES) as u64;
    if mode.sequential {
        figures.add(format!("{name}.mb_s"), "MB/s", to_f64(bytes) / 1e6 / seconds);
    } else {
        figures.add(format!("{name}.iops"), "1/s", to_f64(done) / seconds);
        for (label, hundredths) in [("p50_us", 50), ("p99_us", 99)] {
            if let Some(nanos) = latencies.get(latencies.len() * hundredths / 100) {
                figures.add_micros(format!("{name}.{label}"), u64::from(*nanos));
            }
        }
    }
    // Beside the kernel's: what a read of headers caught.
    if target.is_some() {
        figures.add(format!("{name}.copied"), "1", to_f64(copied) / to_f64(bytes.max(1)));
    }
}

async fn lane_of(shared: Rc<Shared>, lane: usize) {
    let mut random = SeededRng::new(lane as u64 + 1);
    loop {
        let seen = shared.changed.generation();
        if lane >= shared.active.get() || shared.failed.get().is_some() {
            shared.changed.changed_since(seen).await;
            continue;
        }
        let mode = shared.mode.get();
        let frames = shared.volume.pool().try_take(mode.frames).expect("buffers for all lanes");
        shared.running.set(shared.running.get() + 1);
        let places = shared.blocks / mode.frames as u64;
        let place = if mode.sequential { shared.next.replace(shared.next.get() + 1) } else { random.next_u64() };
        let at = Lba(place % places * mode.frames as u64);
        let start = shared.handle.now();
        let done = if mode.writes {
            shared.volume.write_gather(at, &frames).await
        } else {
            shared.volume.read_scatter(at, frames).await.map(drop)
        };
        let nanos = shared.handle.now().since(start).as_nanos();
        shared.running.set(shared.running.get() - 1);
        if let Err(error) = done {
            shared.failed.set(Some(error));
        }
        shared.done.set(shared.done.get() + 1);
        let mut latencies = shared.latencies.borrow_mut();
        if latencies.len() < latencies.capacity() {
            latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
        drop(latencies);
        if shared.active.get() == 0 {
            shared.changed.notify_all();
        }
    }
}
