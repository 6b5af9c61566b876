//! Floor 2. Everything behind the cache: devices, the driver and the emulated controller, RAID groups.

pub mod device;

pub use device::Device;
