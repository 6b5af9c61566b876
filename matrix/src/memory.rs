//! Memory that devices and peers reach: the only place where bytes are touched that somebody else may be writing.
//!
//! No reference to the bytes is ever handed out for such memory; they are moved by [`copy`], [`Memory::read`] and
//! [`Memory::write`], which also count them (DESIGN 8, Counting).

/// Names one [`Memory`] for as long as the process runs; never used again.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryId(pub u32);

/// A piece of one memory, as descriptors and device commands name it. Who may use it for what was settled when the
/// memory was registered with a provider or mapped for a device.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which memory.
    pub memory: MemoryId,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}
