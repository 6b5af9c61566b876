//! NVMe as bytes: the types that driver, emulated controller, target and initiator share.
//!
//! Nothing here does I/O or keeps state. Structures that cross a wire have `to_bytes` and `from_bytes` with every
//! offset written out, little-endian whatever the machine; constants and structures name the section that defines them:
//! *Base* is the NVM Express Base Specification 2.0, *NVM* the NVM Command Set Specification 1.0, *PCIe* the NVMe over
//! PCIe Transport Specification 1.0.

pub mod bytes;
pub mod capsule;
pub mod command;
pub mod completion;
pub mod discovery;
pub mod fabrics;
pub mod feature;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod geometry;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod protection;
pub mod register;
pub mod reservation;
pub mod sgl;
pub mod status;
pub mod tcp;
pub mod types;

pub use command::SubmissionEntry;
pub use completion::CompletionEntry;
pub use sgl::SglDescriptor;
pub use status::Status;
