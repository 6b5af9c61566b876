//! `dyad device bench`: what one device gives. It only reads.

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_reactor::Executor;

use super::figures::{Figures, ROUNDS, Row};
use super::load::Load;
use super::{BenchError, executor};
use crate::device::Device;
use crate::probe::{Address, Attached};

/// Commands of one sample: one at a time, and many.
const ONE: u64 = 2_000;
const MANY: u64 = 50_000;

/// Measures the device at `address`: latency with one command outstanding, rate with 32.
///
/// # Errors
/// [`BenchError`].
pub fn device(address: &Address, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let executor = executor();
    let mut figures = Figures::default();
    match address.attach(&executor)? {
        Attached::VfioUser(driver) => {
            let pump = || {
                driver.poll();
            };
            samples(&executor, &driver, pump, DEVICE, &mut figures, &mut progress)?;
        }
        Attached::Block(device) => {
            let pump = || {
                device.poll();
            };
            samples(&executor, &device, pump, DEVICE, &mut figures, &mut progress)?;
        }
    }
    Ok(figures.rows())
}

/// Names of figures: median and 99th percentile with one command outstanding, rate with 32.
pub(super) type Names = [&'static str; 3];

const DEVICE: Names = ["device.read.4096.qd1.p50_us", "device.read.4096.qd1.p99_us", "device.read.4096.qd32.iops"];

pub(super) fn samples(
    executor: &Executor,
    device: &impl Device,
    mut pump: impl FnMut(),
    names: Names,
    figures: &mut Figures,
    progress: &mut impl FnMut(&str),
) -> Result<(), BenchError> {
    let memory = |blocks: usize| {
        Memory::shared("dyad-bench", blocks * 4096, HugePages::No).map_err(|e| std::io::Error::other(e.to_string()))
    };
    let one = Load::new(&executor.handle(), device, &memory(1)?, 1)?;
    let many = Load::new(&executor.handle(), device, &memory(32)?, 32)?;
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}"));
        let latencies = one.latencies(executor, ONE, &mut pump)?;
        figures.add_micros(names[0], latencies[latencies.len() / 2]);
        figures.add_micros(names[1], latencies[latencies.len() * 99 / 100]);
        figures.add_rate(names[2], many.run(executor, MANY, &mut pump)?);
    }
    Ok(())
}
