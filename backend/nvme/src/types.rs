//! Addresses and counts.

use std::fmt;

/// Bytes of a logical block, everywhere in Dyad.
pub const BLOCK_BYTES: usize = 4096;

/// A logical block address of a namespace: of a device or of a volume, as the context says.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lba(pub u64);

/// A number of logical blocks.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockCount(pub u64);

/// Namespace identifier (Base 2.0, 3.2.1). Zero is none, FFFFFFFFh is all.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId(pub u32);

impl BlockCount {
    /// The same in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
