//! Floor 4, the host's side: volumes as a program sees them, and the initiator that reaches them over a matrix VI.
//!
//! Hosts export their buffers and nothing else; directors move all data (PROTOCOLS 10.1).

pub mod fake;
pub mod file;
pub mod initiator;
pub mod volume;

pub use fake::FakeVolume;
pub use file::FileVolume;
pub use initiator::{Initiator, InitiatorConfig};
pub use volume::{Volume, VolumeError};
