//! A file through io_uring, in the directory of the benchmark.

use std::path::Path;

use dyad_matrix::Memory;

use super::load::Load;
use super::{BenchError, executor};
use crate::block::BlockDevice;
use dyad_reactor::figures::{Figures, ROUNDS};

/// Bytes of the file.
const BYTES: usize = 256 << 20;

/// Reads of one sample: one at a time, and many.
const ONE: u64 = 2_000;
const MANY: u64 = 50_000;

pub(super) fn measure(directory: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let path = directory.join("bench.blocks");
    // Written, or reading it would only read holes.
    std::fs::write(&path, vec![0x5a; BYTES])?;
    let result = reads(&BlockDevice::open(&path)?, figures);
    std::fs::remove_file(&path)?;
    result
}

fn reads(device: &BlockDevice, figures: &mut Figures) -> Result<(), BenchError> {
    let executor = executor();
    let pump = || {
        device.poll();
    };
    let one = Load::new(&executor.handle(), device, &Memory::anonymous(4096), 1)?;
    let many = Load::new(&executor.handle(), device, &Memory::anonymous(32 * 4096), 32)?;
    for _ in 0..ROUNDS {
        let latencies = one.latencies(&executor, ONE, pump)?;
        figures.add_micros("file.read.4096.qd1.p50_us", latencies[latencies.len() / 2]);
        figures.add("file.read.4096.qd32.iops", "1/s", many.run(&executor, MANY, pump)?.per_second());
    }
    Ok(())
}
