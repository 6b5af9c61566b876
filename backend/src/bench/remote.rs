//! The shelf in another process.

use std::path::Path;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{BootClock, Clock, Executor};

use super::load::Load;
use super::{BenchError, executor};
use crate::device::{Device, Io, SubmitError};
use crate::driver::{Driver, block_on};
use crate::emulator::{BlockFormat, Latency};
use crate::shelf::{ShelfConfig, ShelfDevice, ShelfError, ShelfMedia, run_shelf, socket_path};
use crate::vfio_user::{ConnectError, VfioUserFunction};
use dyad_reactor::figures::Figures;

const DEVICE: &str = "bench";
const BYTES: u64 = 256 << 20;
/// Blocks of one write that fills the device.
const FILL_BLOCKS: u32 = 32;
/// How long the shelf may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long both sides look for work before they sleep.
const SPIN: Duration = Duration::from_micros(50);

pub(super) fn serve(directory: &Path) -> Result<(), ShelfError> {
    let device = ShelfDevice {
        name: DEVICE.to_owned(),
        uuid: [1; 16],
        blocks: BlockCount(BYTES / 4096),
        media: ShelfMedia::Memory,
        cache_blocks: None,
        format: BlockFormat::Bare,
        latency: Latency::default(),
    };
    let devices = vec![device];
    let config = ShelfConfig { directory: directory.to_owned(), devices, max_spin: SPIN, core: None, seed: 1 };
    run_shelf(&config, |_| {})
}

/// A driver of the shelf's device, with one lane and with many.
pub(super) struct Client {
    executor: Executor,
    driver: Driver<VfioUserFunction>,
    one: Load,
    many: Load,
}

impl Client {
    pub(super) fn connect(directory: &Path) -> Result<Self, BenchError> {
        let executor = executor();
        let path = socket_path(directory, DEVICE, 0);
        let deadline = BootClock.now() + PATIENCE;
        let function = loop {
            match VfioUserFunction::connect(&path) {
                Err(ConnectError::NoListener(_)) if BootClock.now() < deadline => std::thread::yield_now(),
                other => break other?,
            }
        };
        let driver = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), [1; 16]))?;
        let memory = |blocks: usize| {
            Memory::shared("dyad-bench", blocks * 4096, HugePages::No).map_err(|e| std::io::Error::other(e.to_string()))
        };
        let one = Load::new(&executor.handle(), &driver, &memory(1)?, 1)?;
        let lanes = memory(127)?;
        let many = Load::new(&executor.handle(), &driver, &lanes, 127)?;
        block_on(&executor, || driver.poll(), fill(&driver, &lanes))?;
        Ok(Self { executor, driver, one, many })
    }

    pub(super) fn measure(&mut self, figures: &mut Figures) -> Result<(), BenchError> {
        let driver = &self.driver;
        let pump = || {
            driver.poll();
        };
        let latencies = self.one.latencies(&self.executor, 50_000, pump)?;
        figures.add_micros("vfio_user.ram.read.4096.qd1.p50_us", latencies[latencies.len() / 2]);
        figures.add_micros("vfio_user.ram.read.4096.qd1.p99_us", latencies[latencies.len() * 99 / 100]);
        figures.add(
            "vfio_user.ram.read.4096.qd128.iops",
            "1/s",
            self.many.run(&self.executor, 500_000, pump)?.per_second(),
        );
        Ok(())
    }
}

/// Writes every block once: blocks that were never written all read from the same page of zeros, which stays in the fastest cache.
async fn fill(device: &impl Device, memory: &Memory) -> Result<(), BenchError> {
    let segments = [memory.segment(0, 4096 * FILL_BLOCKS).map_err(|_| SubmitError::Invalid)?];
    for lba in (0..BYTES / 4096).step_by(FILL_BLOCKS as usize).map(Lba) {
        device.submit(Io::Write { lba, segments: &segments, fua: false })?.await?;
    }
    Ok(())
}
