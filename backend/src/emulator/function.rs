//! The emulated controller in the same process, as a [`PciFunction`].

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Poll;

use dyad_matrix::{Memory, MemoryId};
use dyad_reactor::{Clock, Time};

use super::Subsystem;
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Where bus addresses begin, and how far apart memories lie: their offsets never meet.
const FIRST_ADDRESS: u64 = 1 << 32;
const APART: u64 = 1 << 40;

/// One port of a [`Subsystem`]. Somebody steps the subsystem; this only reaches its registers, doorbells and mappings.
pub struct EmulatedFunction {
    subsystem: Rc<RefCell<Subsystem>>,
    port: usize,
    clock: Rc<dyn Clock>,
    bar: Memory,
    mapped: RefCell<Vec<MemoryId>>,
}

impl EmulatedFunction {
    /// A port of a subsystem. `clock` is the one that the subsystem is stepped with.
    #[must_use]
    pub fn new(subsystem: &Rc<RefCell<Subsystem>>, port: usize, clock: Rc<dyn Clock>) -> Self {
        let bar = subsystem.borrow().bar(port);
        Self { subsystem: Rc::clone(subsystem), port, clock, bar, mapped: RefCell::new(Vec::new()) }
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn address(index: usize) -> BusAddress {
        BusAddress(FIRST_ADDRESS + index as u64 * APART)
    }
}

impl std::fmt::Debug for EmulatedFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmulatedFunction").field("port", &self.port).finish_non_exhaustive()
    }
}

impl PciFunction for EmulatedFunction {
    fn read32(&self, offset: u32) -> Poll<u32> {
        Poll::Ready(self.subsystem.borrow().read32(self.port, offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        let now = self.now();
        self.subsystem.borrow_mut().write32(self.port, offset, value, now);
    }

    #[inline]
    fn doorbell(&self, offset: u32, value: u32) {
        // Outside the BAR is no doorbell: a bug of the driver that a device would ignore.
        let _ = self.bar.store_u32(u64::from(offset), value);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        Ok(Memory::anonymous(len))
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        let mut mapped = self.mapped.borrow_mut();
        if let Some(index) = mapped.iter().position(|id| *id == memory.id()) {
            return Ok(Self::address(index));
        }
        let address = Self::address(mapped.len());
        if !self.subsystem.borrow_mut().map_dma(self.port, address.0, memory.len(), memory, 0) {
            return Err(DmaError::Full);
        }
        mapped.push(memory.id());
        Ok(address)
    }

    fn reset(&self) {
        self.subsystem.borrow_mut().disconnect(self.port);
        self.mapped.borrow_mut().clear();
    }
}

impl Drop for EmulatedFunction {
    /// Whoever drove the port is gone; the device must not reach its memory any more.
    fn drop(&mut self) {
        self.reset();
    }
}
