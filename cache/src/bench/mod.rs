//! What `dyad bench cache` measures: the caches of two directors, each on a core of its own, over `shm`: a home with lanes, and a partner that only mirrors.
//!
//! The caller runs [`run`] and brings a way to start the second process, which runs [`serve`]. Hosts are a buffer beside the frames: their transfer
//! costs the one copy that an RDMA of theirs would. Media are emulated devices in memory, turned by the home's thread. [`Home`] and [`Mirror`] are
//! loops that are turned by hand, so that a test can run both in one thread and count.

mod home;
mod media;
mod mirror;

use std::path::Path;
use std::process::{Child, Command};

use dyad_backend::bench::BenchError as MediaError;
use dyad_matrix::memory::MapError;
use dyad_matrix::provider::ResourceError;
use dyad_matrix::shm::ShmError;
use dyad_nvme::types::BLOCK_BYTES;
use dyad_reactor::figures::{Figures, ROUNDS, Row, to_f64};

pub use self::home::{Home, Work};
pub use self::mirror::Mirror;

/// Operations of one sample.
const OPERATIONS: u64 = 100_000;
/// Whole tracks of one sample of destage: four times what may be dirty.
const STREAM: u64 = 2048;
/// Before the samples of a round.
const WARM_UP: u64 = 20_000;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A provider could not be started.
    #[error(transparent)]
    Provider(#[from] ShmError),
    /// The provider had no room.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The emulated devices could not be brought up.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The other process could not be started.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The other process does not answer or said something unexpected.
    #[error("the other process {0}")]
    Peer(&'static str),
}

/// Kills the other process when the figures are taken, or were not to be had.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes all figures. `partner` is a command that will run [`serve`] with `directory`; `progress` gets a line now and then.
///
/// # Errors
/// [`BenchError`].
pub fn run(partner: &mut Command, directory: &Path, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let _other = Other(partner.spawn()?);
    let mut home = Home::connect(directory)?;
    let mut figures = Figures::default();
    let works = [
        ("read_hit", Work::ReadHit),
        ("mirrored_write", Work::MirroredWrite),
        ("unmirrored_write", Work::UnmirroredWrite),
    ];
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}"));
        for (_, work) in works {
            home.perform(work, 32, WARM_UP, || 0);
        }
        for (name, work) in works {
            let copied = home.copied_bytes();
            let mut one = home.perform(work, 1, OPERATIONS, || 0);
            // Whole blocks: what else is copied are messages, of less than a block.
            let blocks = (home.copied_bytes() - copied) / (BLOCK_BYTES as u64 * OPERATIONS);
            figures.add(format!("{name}.copies"), "x", to_f64(blocks));
            one.nanos.sort_unstable();
            figures.add_micros(format!("{name}.qd1.p50_us"), one.nanos[one.nanos.len() / 2]);
            figures.add_micros(format!("{name}.qd1.p99_us"), one.nanos[one.nanos.len() * 99 / 100]);
            let many = home.perform(work, 32, OPERATIONS, || 0);
            figures.add(format!("{name}.qd32.iops"), "1/s", to_f64(OPERATIONS) / many.took.as_secs_f64());
        }
        // Twice: the first time fills the cache.
        home.perform(Work::Stream, 32, STREAM, || 0);
        let before = home.cache().counters().destaged_blocks;
        let stream = home.perform(Work::Stream, 32, STREAM, || 0);
        let bytes = (home.cache().counters().destaged_blocks - before) * BLOCK_BYTES as u64;
        figures.add("destage.bytes_per_s", "B/s", to_f64(bytes) / stream.took.as_secs_f64());
    }
    Ok(figures.rows())
}

/// The other process: mirrors until it is killed.
///
/// # Errors
/// [`BenchError`].
pub fn serve(directory: &Path) -> Result<(), BenchError> {
    let mut mirror = Mirror::listen(directory)?;
    loop {
        if mirror.turn() == 0 {
            std::hint::spin_loop();
        }
    }
}
