//! Which memory the device reaches, and where.

use dyad_matrix::{Memory, MemoryId, Segment};

use super::channel::PAGE;

/// Few: a director maps its frames, its mirror area, and each host's exported memory once.
#[derive(Debug, Default)]
pub(super) struct Mappings(Vec<Mapping>);

#[derive(Debug)]
struct Mapping {
    id: MemoryId,
    len: u64,
    address: u64,
    /// The mapping holds the memory: the device may use it as long as this exists.
    _memory: Memory,
}

impl Mappings {
    pub(super) fn add(&mut self, memory: &Memory, address: u64) {
        if !self.0.iter().any(|m| m.id == memory.id()) {
            self.0.push(Mapping { id: memory.id(), len: memory.len(), address, _memory: memory.clone() });
        }
    }

    /// The bus address of a segment of whole pages.
    #[inline]
    pub(super) fn address(&self, segment: &Segment) -> Option<u64> {
        let mapping = self.0.iter().find(|m| m.id == segment.memory)?;
        let end = segment.offset.checked_add(u64::from(segment.len))?;
        let whole =
            segment.offset.is_multiple_of(PAGE) && u64::from(segment.len).is_multiple_of(PAGE) && segment.len > 0;
        (end <= mapping.len && whole).then(|| mapping.address + segment.offset)
    }
}
