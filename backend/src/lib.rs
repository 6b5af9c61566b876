//! Floor 2. Everything behind the cache: devices, the driver and the emulated controller, RAID groups.

pub mod bench;
pub mod block;
pub mod device;
pub mod driver;
pub mod emulator;
pub mod fake;
pub mod fence;
pub mod format;
pub mod parity;
pub mod pci;
pub mod pool;
pub mod qtest;
pub mod raid;
#[cfg(test)]
mod testing;

pub mod shelf;
pub mod vfio;
pub mod vfio_user;

pub use device::Device;
