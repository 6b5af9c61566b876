//! What `dyad bench frontend` measures: NVMe/TCP over loopback, our target with one volume in memory on one core, our initiator
//! on the other; beside it, in the same run, a bare socket that carries as many bytes there and back (DESIGN 8).

mod load;
mod single;
mod socket;
mod target;

use std::net::SocketAddr;
use std::time::Duration;

use dyad_nvme::types::BlockCount;
use dyad_reactor::figures::{Figures, ROUNDS, Row, to_f64};
use dyad_reactor::reactor::max_spin_for;
use nix::time::{ClockId, clock_gettime};

pub use load::{LoadError, Subject, run as run_load};
pub use single::{Exchange, SingleThread};
pub use target::{HOST_NQN, MemoryTarget, NQN, TargetError, VOLUME};

/// 256 MiB: beyond what the processor keeps close.
const BLOCKS: BlockCount = BlockCount(65536);

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A socket without a reactor.
    #[error("a bare socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The clock of processor time.
    #[error("no processor time: {0}")]
    Clock(#[from] nix::errno::Errno),
}

/// Takes all figures; `progress` gets a line now and then.
///
/// # Errors
/// [`BenchError`].
pub fn run(progress: impl FnMut(&str) + 'static) -> Result<Vec<Row>, BenchError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (target_core, host_core) = if cores > 1 { (Some(0), Some(1)) } else { (None, None) };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let target = MemoryTarget::start(any, BLOCKS, max_spin_for(2), target_core)?;
    let subject = Subject {
        prefix: "",
        addresses: vec![target.address()],
        subsystem_nqn: NQN.into(),
        namespace: VOLUME,
        blocks: None,
        depth_max: 128,
    };
    let mut figures = run_load(subject, max_spin_for(2), host_core, Some(target.memory()), progress)?;
    drop(target);
    for _ in 0..ROUNDS {
        socket::round_trips(Duration::from_millis(400), &mut figures)?;
    }
    for depth in [1, 32, 127] {
        processor_time(depth, &mut figures)?;
    }
    Ok(figures.rows())
}

/// Commands of one figure of processor time.
const COMMANDS: u64 = 100_000;

/// Adds the processor time that one command costs with so many outstanding: the target's, the kernel's for both sides, and that of a host
/// that does no more than send and receive, all in one thread. Whoever else works on this machine does not count.
fn processor_time(depth: u16, figures: &mut Figures) -> Result<(), BenchError> {
    let mut single = SingleThread::new(depth)?;
    let times = COMMANDS / u64::from(depth);
    let own_time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    for (name, exchange) in [("read", Exchange::Read), ("write", Exchange::Write)] {
        single.run(exchange, times / 10)?;
        for _ in 0..ROUNDS {
            let before = own_time()?;
            single.run(exchange, times)?;
            let spent = own_time()?.saturating_sub(before).as_secs_f64() * 1e6;
            let name = format!("nvme_tcp.one_thread.{name}.4096.qd{depth}.cpu_us");
            figures.add(name, "us", spent / to_f64(times * u64::from(depth)));
        }
    }
    Ok(())
}
