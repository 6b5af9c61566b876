//! One of the machine's NVMe controllers.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Poll;

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::register::{self, Configuration};

use super::QtestError;
use super::machine::{Machine, Place};
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Offset of the command register; memory space and bus mastering are bits 1 and 2 (PCI 3.0, 6.2.2).
const COMMAND: u32 = 0x04;
const MEMORY_AND_MASTER: u32 = 6;

/// What the configuration space of a place without a device reads as.
const NOBODY: u32 = u32::MAX;

/// A controller of a [`Machine`].
#[derive(Debug)]
pub struct QtestFunction {
    machine: Rc<Machine>,
    place: Place,
    bar: u32,
    gone: Cell<bool>,
}

impl QtestFunction {
    pub(super) fn new(machine: Rc<Machine>, place: Place, bar: u32) -> Result<Self, QtestError> {
        let Place { bus, slot } = place;
        if machine.config_read(place, 0)? == NOBODY {
            return Err(QtestError::NoDevice { bus, slot });
        }
        machine.config_write(place, 0x10, bar)?;
        machine.config_write(place, 0x14, 0)?;
        machine.config_write(place, COMMAND, MEMORY_AND_MASTER)?;
        Ok(Self { machine, place, bar, gone: Cell::new(false) })
    }

    /// What a register reads as. Memory of a device that is not there reads as zeros here, so zero is looked at twice.
    fn read(&self, value: Result<u64, QtestError>) -> Poll<u64> {
        let absent = || self.machine.config_read(self.place, 0).is_ok_and(|id| id == NOBODY);
        match value {
            Ok(0) if absent() => self.gone.set(true),
            Ok(value) if !self.gone.get() => return Poll::Ready(value),
            _ => self.gone.set(true),
        }
        Poll::Ready(u64::MAX)
    }

    fn write(&self, offset: u32, value: u32) {
        if !self.gone.get() && self.machine.write32(self.bar + offset, value).is_err() {
            self.gone.set(true);
        }
    }
}

impl PciFunction for QtestFunction {
    fn read32(&self, offset: u32) -> Poll<u32> {
        let value = self.machine.read32(self.bar + offset).map(u64::from);
        self.read(value).map(|value| u32::try_from(value & u64::from(u32::MAX)).expect("half of it"))
    }

    fn read64(&self, offset: u32) -> Poll<u64> {
        self.read(self.machine.read64(self.bar + offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, value);
    }

    fn doorbell(&self, offset: u32, value: u32) {
        self.write(offset, value);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        Memory::shared("dyad-nvme-queues", len, HugePages::No).map_err(|_| DmaError::NoMemory)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        if self.gone.get() { Err(DmaError::Gone) } else { self.machine.map(memory) }
    }

    /// Disables the controller, which QEMU does at once, and takes it off the bus.
    fn reset(&self) {
        self.write(register::CC, Configuration::DISABLED.0);
        // A machine that is gone has no device to stop.
        let _ = self.machine.config_write(self.place, COMMAND, 0);
        self.gone.set(true);
    }
}

impl Drop for QtestFunction {
    fn drop(&mut self) {
        if !self.gone.get() {
            self.reset();
        }
    }
}
