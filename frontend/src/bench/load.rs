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
use dyad_nvme::types::{HostId, Lba};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::figures::{Figures, ROUNDS, to_f64};
use dyad_reactor::reactor::{Options, ReactorError};
use dyad_reactor::sync::Signal;
use dyad_reactor::{Reactor, Rng, SeededRng};

use super::target::{HOST_NQN, NQN, VOLUME};

/// The deepest queue.
const DEPTH: u16 = 126;
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

impl Mode {
    fn name(self) -> String {
        let direction = if self.writes { "write" } else { "read" };
        format!("nvme_tcp.{direction}.{}.qd{}", self.frames * FRAME_BYTES, self.depth)
    }
}

struct Shared {
    handle: Handle,
    volume: TcpInitiator,
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

/// Measures everything over `address`, on `core` if that is given. `copied` tells how many payload bytes the target has copied.
///
/// # Errors
/// [`LoadError`].
pub(super) fn run(
    address: SocketAddr,
    max_spin: Duration,
    core: Option<usize>,
    target: &Memory,
    progress: impl FnMut(&str) + 'static,
) -> Result<Figures, LoadError> {
    let limits = Limits { tasks: usize::from(DEPTH) + 1 + TcpInitiator::tasks(1), timers: 1024 };
    let mut reactor = Reactor::new(Options { limits, max_spin, core })?;
    let handle = reactor.handle();
    let memory = Memory::shared("dyad-bench-host", usize::from(DEPTH) * FRAMES * FRAME_BYTES, HugePages::IfAvailable)?;
    let buffers = memory.clone();
    let config = TcpInitiatorConfig {
        addresses: vec![address],
        subsystem_nqn: NQN.into(),
        host_nqn: HOST_NQN.into(),
        host: HostId([1; 16]),
        namespace: VOLUME,
        depth: DEPTH,
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
    let shared = Rc::new(Shared {
        handle: handle.clone(),
        volume,
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
    let (stopper, target) = (reactor.stopper(), target.clone());
    handle.spawn("measure", {
        let (shared, figures, mut progress) = (Rc::clone(&shared), Rc::clone(&figures), progress);
        async move {
            for round in 1..=ROUNDS {
                progress(&format!("round {round} of {ROUNDS}"));
                for mode in MODES {
                    measure(&shared, mode, &target, &buffers, &figures).await;
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

async fn measure(shared: &Shared, mode: Mode, target: &Memory, host: &Memory, figures: &RefCell<Figures>) {
    shared.mode.set(mode);
    shared.active.set(mode.depth);
    shared.changed.notify_all();
    shared.handle.sleep(WARM_UP).await;
    shared.done.set(0);
    shared.latencies.borrow_mut().clear();
    let copied_before = target.copied_bytes() + host.copied_bytes();
    let start = shared.handle.now();
    shared.handle.sleep(SPAN).await;
    let seconds = shared.handle.now().since(start).as_secs_f64();
    let (done, copied) = (shared.done.get(), target.copied_bytes() + host.copied_bytes() - copied_before);
    shared.active.set(0);
    while shared.running.get() > 0 {
        let seen = shared.changed.generation();
        shared.changed.changed_since(seen).await;
    }
    let mut latencies = shared.latencies.borrow_mut();
    latencies.sort_unstable();
    let mut figures = figures.borrow_mut();
    let name = mode.name();
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
    figures.add(format!("{name}.copied"), "1", to_f64(copied) / to_f64(bytes.max(1)));
}

async fn lane_of(shared: Rc<Shared>, lane: usize) {
    let mut random = SeededRng::new(lane as u64 + 1);
    let blocks = shared.volume.blocks().0;
    loop {
        let seen = shared.changed.generation();
        if lane >= shared.active.get() || shared.failed.get().is_some() {
            shared.changed.changed_since(seen).await;
            continue;
        }
        let mode = shared.mode.get();
        let frames = shared.volume.pool().try_take(mode.frames).expect("buffers for all lanes");
        shared.running.set(shared.running.get() + 1);
        let places = blocks / mode.frames as u64;
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
