//! PCI functions that the kernel lends to this process: VFIO with a group and a container of its own for every function
//! (`linux/vfio.h`; Documentation/driver-api/vfio.rst).
//!
//! - **Registers**: BAR 0 is mapped; a register access is a load or a store, a doorbell is a store.
//! - **DMA**: the IOMMU lets the function reach what was mapped for it and nothing else. Addresses are ours, within what
//!   the IOMMU translates (module `iova`). Mapped memory stays where it is, which counts against the limit on locked
//!   memory, once for every function that it is mapped for (module `limits`).
//! - **Interrupt**: MSI-X vector 0 signals an eventfd. It is masked in the table's entry, whose pending bit keeps what was
//!   signalled meanwhile; the kernel lets the table be mapped (since 4.16) and rewrites that bit only when it moves the
//!   vector to another processor, which at worst unmasks it. A table outside BAR 0 is never masked: it costs time only.
//! - **Removal**: the kernel asks for the function back, when it is unplugged or bound to another driver, and waits until
//!   it is given back ([`PciFunction::is_leaving`]).
//! - **The end**: first the function may not reach memory any more (bus master off, mappings removed), which takes
//!   microseconds. Then it is reset and given back, by a thread of its own: a device that does not come back from a reset
//!   keeps whoever waits for it for up to a minute.
//!
//! **Why not the crate `vfio-ioctls` (0.10)**: its device, when it is dropped, closes the function and then reads the
//! IOMMU group from sysfs with `unwrap`; but closing is what an unplugging kernel waited for, so the files may be gone,
//! and that panics. It loses error numbers that tell one refusal from another (group, container, interrupts), writes
//! failed register accesses to a log only, does not tell which addresses the IOMMU translates nor what its ranges are,
//! and brings guest memory with it. Its structures are used (`vfio-bindings`).
//!
//! Rooms: `kernel` the system calls (the only unsafe code); `function` the [`PciFunction`]; `open` the way to one and
//! everything that may stand in it; `bind` which driver has a function; `sysfs`, `config`, `iova`, `limits`, `address`
//! what is read on the way.
//!
//! [`PciFunction`]: crate::pci::PciFunction
//! [`PciFunction::is_leaving`]: crate::pci::PciFunction::is_leaving

mod address;
mod bind;
mod config;
mod function;
mod iova;
mod kernel;
mod limits;
mod open;
mod sysfs;
#[cfg(test)]
mod tests;

pub use address::{BadAddress, PciAddress};
pub use bind::{BindError, Bound, bind, unbind};
pub use function::VfioFunction;
pub use open::OpenError;
pub use sysfs::Machine;
