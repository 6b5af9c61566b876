//! Floor 4, the director's side: what an NVMe-oF host may ask for, and the transports that carry it.

pub mod bench;
pub mod command;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod subsystem;
pub mod tcp;
pub mod transfer;
pub mod vi;

pub use command::HostCommand;
pub use vi::{Target, TargetConfig};
