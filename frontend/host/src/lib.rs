//! Floor 4, the host's side: volumes as a program sees them, and the initiators that reach them over a matrix VI
//! or NVMe/TCP.
//!
//! Over VIs hosts export their buffers and nothing else; directors move all data (PROTOCOLS 10.1).

pub mod blocking;
pub mod fake;
pub mod file;
pub mod initiator;
pub mod tcp;
pub mod volume;

pub use blocking::VolumeThread;
pub use fake::FakeVolume;
pub use file::FileVolume;
pub use initiator::{Initiator, InitiatorConfig};
pub use tcp::{TcpInitiator, TcpInitiatorConfig};
pub use volume::{Volume, VolumeError};
