//! Addresses, counts and identifiers.

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

/// Command identifier: unique among the commands outstanding on one submission queue (Base 3.3.3.1).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u16);

/// Queue identifier. Zero is the admin queue pair (Base 3.3.1).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u16);

/// Controller identifier, unique within the subsystem (Base 3.1.1).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerId(pub u16);

/// An extended (128-bit) Host Identifier (Base 5.27.1.25). Zero is none.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub [u8; 16]);

impl BlockCount {
    /// The same in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

impl NamespaceId {
    /// No namespace.
    pub const NONE: Self = Self(0);
    /// All namespaces.
    pub const ALL: Self = Self(0xffff_ffff);
}

impl QueueId {
    /// The admin queue pair.
    pub const ADMIN: Self = Self(0);
}

impl ControllerId {
    /// Asks for any controller (dynamic model, Base 6.3).
    pub const DYNAMIC: Self = Self(0xffff);
}

impl HostId {
    /// No host has identified itself.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
