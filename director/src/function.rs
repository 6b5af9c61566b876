//! The PCI function that a configuration names, whichever way it is reached: through VFIO, or as a port of a shelf.
//!
//! One type, so that a director and its driver are compiled once; each call is one predictable branch.

use std::os::fd::BorrowedFd;
use std::task::Poll;

use dyad_backend::pci::{BusAddress, DmaError, PciFunction};
use dyad_backend::vfio::{self, VfioFunction};
use dyad_backend::vfio_user::{ConnectError, VfioUserFunction};
use dyad_matrix::Memory;

use crate::config::DeviceAddress;

/// Either.
pub enum Function {
    /// A port of a shelf.
    Socket(VfioUserFunction),
    /// A controller that the kernel lends.
    Pci(VfioFunction),
}

/// It cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// The shelf.
    #[error(transparent)]
    Socket(#[from] ConnectError),
    /// The kernel.
    #[error(transparent)]
    Pci(#[from] vfio::OpenError),
}

impl Function {
    /// Reaches it.
    ///
    /// # Errors
    /// [`FunctionError`].
    pub fn open(address: &DeviceAddress) -> Result<Self, FunctionError> {
        Ok(match address {
            DeviceAddress::Socket(path) => Self::Socket(VfioUserFunction::connect(path)?),
            DeviceAddress::Pci(pci) => Self::Pci(VfioFunction::open(*pci)?),
        })
    }
}

macro_rules! either {
    ($function:expr, $way:ident => $call:expr) => {
        match $function {
            Function::Socket($way) => $call,
            Function::Pci($way) => $call,
        }
    };
}

impl PciFunction for Function {
    fn read32(&self, offset: u32) -> Poll<u32> {
        either!(self, way => way.read32(offset))
    }

    fn read64(&self, offset: u32) -> Poll<u64> {
        either!(self, way => way.read64(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        either!(self, way => way.write32(offset, value));
    }

    fn write64(&self, offset: u32, value: u64) {
        either!(self, way => way.write64(offset, value));
    }

    fn doorbell(&self, offset: u32, value: u32) {
        either!(self, way => way.doorbell(offset, value));
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        either!(self, way => way.allocate(len))
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        either!(self, way => way.map_dma(memory))
    }

    fn settled(&self) -> Poll<Result<(), DmaError>> {
        either!(self, way => way.settled())
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        either!(self, way => way.interrupt())
    }

    fn mask_interrupt(&self, masked: bool) {
        either!(self, way => way.mask_interrupt(masked));
    }

    fn is_leaving(&self) -> bool {
        either!(self, way => way.is_leaving())
    }

    fn reset(&self) {
        either!(self, way => way.reset());
    }
}
