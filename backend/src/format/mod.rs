//! The format of a RAID group on its devices, version 1: `backend/FORMAT.md` has it byte by byte.
//!
//! Everything that is not data is in **sealed blocks** of 4 KiB ([`seal`]): kind, version, group, place and a checksum over all of it, so that torn,
//! misdirected and foreign blocks are told from good ones before a byte of them is believed. What is decoded here has been checked whole; what
//! has been encoded here decodes to the same. No I/O: whoever reads and writes the blocks is above.

pub mod assembly;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod guard;
pub mod intent;
mod layout;
pub mod seal;
pub mod share;
pub mod superblock;
#[cfg(test)]
mod tests;

pub use assembly::{Assembly, AssemblyError, Candidate, Excluded, Expected, assemble};
pub use layout::{Layout, LayoutError, Region};
pub use seal::FormatError;
pub use superblock::{MemberRecord, MemberState, Superblock};

use dyad_nvme::types::BLOCK_BYTES;

/// The bytes of one block.
pub type Block = [u8; BLOCK_BYTES];

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Names a group for ever.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub [u8; 16]);

/// Names a volume for ever.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeUuid(pub [u8; 16]);
