//! The driver against the emulated controller, in one thread.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_matrix::Memory;
use dyad_matrix::memory::copy;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock, Executor, Rng, SeededRng, Time};

use super::load::{Load, Outcome};
use super::{BenchError, executor};
use crate::driver::{Driver, block_on};
use crate::emulator::{
    BlockFormat, EmulatedFunction, Media, MemoryMedia, NamespaceConfig, NullMedia, Subsystem, SubsystemConfig,
};
use dyad_reactor::figures::Figures;

/// Commands of one slice. Slices of what is compared take turns, so that whatever else the machine does meets them alike.
const SLICE: u64 = 50_000;

/// Slices of one sample.
const SLICES: usize = 20;

/// Commands outstanding.
const DEPTH: u32 = 128;

/// Bytes of the device in memory: more than any cache holds.
pub(super) const RAM_BYTES: usize = 1 << 30;

/// One sample of everything in this room. The path with data is to take no longer than the bare copy and the path without data, and a little (DESIGN 8).
pub(super) fn measure(null: &mut Emulated, ram: &mut Emulated, figures: &mut Figures) -> Result<(), BenchError> {
    let mut sums = [Outcome::default(); 3];
    for _ in 0..SLICES {
        let slice = [null.run(SLICE)?, ram.bare_copies(SLICE), ram.run(SLICE)?];
        sums.iter_mut().zip(slice).for_each(|(sum, outcome)| *sum += outcome);
    }
    let [without, copies, with] = sums;
    figures.add("emulator.null.read.4096.qd128.iops", "1/s", without.per_second());
    figures.add("emulator.bare_copy.4096.per_s", "1/s", copies.per_second());
    figures.add("emulator.ram.read.4096.qd128.iops", "1/s", with.per_second());
    let parts = without.took + copies.took;
    figures.add("emulator.ram.over_bare_copy_plus_null", "x", with.took.as_secs_f64() / parts.as_secs_f64());
    Ok(())
}

/// A driver, its device, and lanes that keep it busy.
#[derive(Debug)]
pub struct Emulated {
    executor: Executor,
    subsystem: Rc<RefCell<Subsystem>>,
    driver: Driver<EmulatedFunction>,
    load: Load,
    host: Memory,
    /// What the device's blocks would be to a bare loop.
    media: Option<Memory>,
}

impl Emulated {
    /// A device without data.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn null() -> Result<Self, BenchError> {
        Self::new(RAM_BYTES, Box::new(NullMedia), None)
    }

    /// A device of so many bytes in memory, all of them touched.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn memory(bytes: usize) -> Result<Self, BenchError> {
        let media = Memory::anonymous(bytes / 4096 * (4096 + 8));
        media.fill_zero(0, bytes as u64).expect("inside");
        Self::new(bytes, Box::new(MemoryMedia::from(media.clone())), Some(media))
    }

    fn new(bytes: usize, media: Box<dyn Media>, memory: Option<Memory>) -> Result<Self, BenchError> {
        let executor = executor();
        let config = SubsystemConfig { ports: 1, io_queues: 1, ..SubsystemConfig::default() };
        let mut subsystem = Subsystem::new(config, SeededRng::new(1));
        let blocks = BlockCount(bytes as u64 / 4096);
        let namespace = NamespaceConfig { uuid: [1; 16], blocks, cache_blocks: None, format: BlockFormat::Bare };
        subsystem.add_namespace(namespace, media);
        let subsystem = Rc::new(RefCell::new(subsystem));
        let function = EmulatedFunction::new(&subsystem, 0, Rc::new(BootClock));
        let pump = || subsystem.borrow_mut().step(BootClock.now());
        let driver = block_on(&executor, pump, Driver::attach(function, &executor.handle(), [1; 16]))?;
        let host = Memory::anonymous(DEPTH as usize * 4096);
        host.fill_zero(0, host.len()).expect("inside");
        let load = Load::new(&executor.handle(), &driver, &host, DEPTH)?;
        Ok(Self { executor, subsystem, driver, load, host, media: memory })
    }

    /// Reads random blocks, 128 commands at a time.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn run(&mut self, commands: u64) -> Result<Outcome, BenchError> {
        let (driver, subsystem) = (&self.driver, &self.subsystem);
        self.load.run(&self.executor, commands, || {
            driver.poll();
            // Without latency nothing depends on the time.
            subsystem.borrow_mut().step(Time::ZERO);
        })
    }

    /// Copies as many random blocks to the same memory, with nothing around it. Zero without data.
    pub fn bare_copies(&mut self, copies: u64) -> Outcome {
        let start = BootClock.now();
        if let Some(media) = &self.media {
            let mut rng = SeededRng::new(2);
            let blocks = media.len() / (4096 + 8);
            for index in 0..copies {
                let to = index % u64::from(DEPTH) * 4096;
                copy(media, rng.below(blocks) * 4096, &self.host, to, 4096).expect("inside");
            }
        }
        Outcome { commands: copies, took: BootClock.now().since(start) }
    }
}
