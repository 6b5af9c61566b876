//! Two emulated devices in memory, turned by the thread that uses them.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use dyad_matrix::Memory;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock, Executor, SeededRng};

use super::BenchError;

/// One device and its driver.
pub(super) struct Medium {
    subsystem: Rc<RefCell<Subsystem>>,
    pub(super) driver: Driver<EmulatedFunction>,
}

impl Medium {
    pub(super) fn new(executor: &Executor, name: u8, blocks: u64) -> Result<Self, BenchError> {
        let config = SubsystemConfig { ports: 1, io_queues: 1, ..SubsystemConfig::default() };
        let mut subsystem = Subsystem::new(config, SeededRng::new(u64::from(name)));
        let count = usize::try_from(blocks).expect("it fits memory");
        let memory = Memory::anonymous(count * (4096 + 8));
        memory.fill_zero(0, memory.len()).expect("inside");
        let namespace = NamespaceConfig {
            uuid: [name; 16],
            blocks: BlockCount(blocks),
            cache_blocks: None,
            format: BlockFormat::Bare,
        };
        subsystem.add_namespace(namespace, Box::new(MemoryMedia::from(memory)));
        let subsystem = Rc::new(RefCell::new(subsystem));
        let function = EmulatedFunction::new(&subsystem, 0, Rc::new(BootClock));
        let pump = || subsystem.borrow_mut().step(BootClock.now());
        let attached = block_on(executor, pump, Driver::attach(function, &executor.handle(), [1; 16]));
        Ok(Self { driver: attached.map_err(dyad_backend::bench::BenchError::from)?, subsystem })
    }

    pub(super) fn turn(&self) -> usize {
        self.driver.poll() + self.subsystem.borrow_mut().step(BootClock.now())
    }
}
