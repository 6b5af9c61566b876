//! A file through io_uring, in the directory of the benchmark.

use std::path::Path;

use super::device::{Names, samples};
use super::figures::Figures;
use super::{BenchError, executor};
use crate::block::BlockDevice;

/// Bytes of the file.
const BYTES: usize = 256 << 20;

const FILE: Names = ["file.read.4096.qd1.p50_us", "file.read.4096.qd1.p99_us", "file.read.4096.qd32.iops"];

pub(super) fn measure(directory: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let path = directory.join("bench.blocks");
    // Written, or reading it would only read holes.
    std::fs::write(&path, vec![0x5a; BYTES])?;
    let device = BlockDevice::open(&path)?;
    let executor = executor();
    let result = samples(
        &executor,
        &device,
        || {
            device.poll();
        },
        FILE,
        figures,
        &mut |_| {},
    );
    std::fs::remove_file(&path)?;
    result
}
