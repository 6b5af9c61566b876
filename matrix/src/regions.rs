//! The table of registered regions of one provider, and the two checks that every descriptor passes through: may this VI
//! use that local memory, and may the peer of this VI reach that region.

use std::cell::Cell;

use crate::memory::{Memory, MemoryId, Segment};
use crate::pieces::Piece;
use crate::provider::{DescriptorError, ProtectionTag, RegionHandle, RemoteAccess, RemoteAddress, ResourceError};
use crate::slots::Slots;

/// No memory has this id, and no region this name.
const NOTHING: (MemoryId, u32, u32) = (MemoryId(u32::MAX), u32::MAX, u32::MAX);

/// One registration of one memory.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) memory: Memory,
    pub(crate) tag: ProtectionTag,
    pub(crate) access: RemoteAccess,
}

/// What a descriptor does to local memory.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum LocalUse {
    /// Its bytes are sent.
    Source,
    /// Bytes arrive in it.
    Target,
}

/// What the peer's descriptor does to our region.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum RemoteUse {
    /// RDMA write.
    Write,
    /// RDMA read.
    Read,
}

impl RemoteAccess {
    /// Whether it enables anything.
    pub(crate) fn any(self) -> bool {
        self.write || self.read
    }

    /// What both enable.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { write: self.write && other.write, read: self.read && other.read }
    }

    /// Whether this enables `what`.
    pub(crate) fn allows(self, what: RemoteUse) -> bool {
        match what {
            RemoteUse::Write => self.write,
            RemoteUse::Read => self.read,
        }
    }
}

/// All regions of one provider.
#[derive(Debug)]
pub(crate) struct Regions {
    incarnation: u32,
    table: Slots<Region>,
    /// Sorted: which entry lets VIs of a tag use a memory. Several may; any one does.
    by_memory: Vec<(MemoryId, u32, u32)>,
    /// The entry of it that was last looked up: most descriptors use the memory of the one before.
    last_used: Cell<(MemoryId, u32, u32)>,
}

impl Regions {
    pub(crate) fn new(incarnation: u64, capacity: u16) -> Self {
        let low = incarnation.to_le_bytes();
        Self {
            incarnation: u32::from_le_bytes([low[0], low[1], low[2], low[3]]),
            table: Slots::new(capacity),
            by_memory: Vec::with_capacity(usize::from(capacity)),
            last_used: Cell::new(NOTHING),
        }
    }

    pub(crate) fn register(&mut self, region: Region) -> Result<RegionHandle, ResourceError> {
        if region.access.write && !region.memory.writable() {
            return Err(ResourceError::State("the memory is read-only here"));
        }
        let key = (region.memory.id(), region.tag.0);
        let index = self.table.insert(region).ok_or(ResourceError::Exhausted("region"))?;
        let place = self.by_memory.partition_point(|&entry| entry < (key.0, key.1, index));
        self.by_memory.insert(place, (key.0, key.1, index));
        Ok(RegionHandle { incarnation: self.incarnation, index })
    }

    pub(crate) fn remove(&mut self, handle: RegionHandle) -> Result<Region, ResourceError> {
        let known = handle.incarnation == self.incarnation;
        let region =
            known.then(|| self.table.remove(handle.index)).flatten().ok_or(ResourceError::Unknown("region"))?;
        let entry = (region.memory.id(), region.tag.0, handle.index);
        let place = self.by_memory.binary_search(&entry).expect("each region stands in the index");
        self.by_memory.remove(place);
        self.last_used.set(NOTHING);
        Ok(region)
    }

    pub(crate) fn get(&self, handle: RegionHandle) -> Option<&Region> {
        if handle.incarnation == self.incarnation { self.table.get(handle.index) } else { None }
    }

    /// The memory that `segment` of a descriptor on a VI of `tag` lies in, if it may be used so.
    pub(crate) fn local_memory(
        &self,
        segment: &Segment,
        tag: ProtectionTag,
        how: LocalUse,
    ) -> Result<&Memory, DescriptorError> {
        let wanted = (segment.memory, tag.0);
        let (memory, found_tag, index) = match self.last_used.get() {
            last if (last.0, last.1) == wanted => last,
            _ => {
                let place = self.by_memory.partition_point(|&entry| entry < (segment.memory, tag.0, 0));
                *self.by_memory.get(place).ok_or(DescriptorError::LocalProtection)?
            }
        };
        let memory = match self.table.get(index) {
            Some(region) if (memory, found_tag) == wanted => &region.memory,
            _ => return Err(DescriptorError::LocalProtection),
        };
        self.last_used.set((wanted.0, wanted.1, index));
        let inside = memory.segment(segment.offset, segment.len).is_ok();
        if !inside || (how == LocalUse::Target && !memory.writable()) {
            return Err(DescriptorError::LocalProtection);
        }
        Ok(memory)
    }

    /// What `segment` of a descriptor on a VI of `tag` stands for.
    pub(crate) fn local(&self, segment: &Segment, tag: ProtectionTag, how: LocalUse) -> Result<Piece, DescriptorError> {
        let memory = self.local_memory(segment, tag, how)?.clone();
        Ok(Piece { memory, offset: segment.offset, len: u64::from(segment.len) })
    }

    /// All regions of a memory.
    pub(crate) fn of_memory(&self, memory: MemoryId) -> impl Iterator<Item = &Region> {
        self.table.iter().map(|(_, region)| region).filter(move |region| region.memory.id() == memory)
    }

    /// All regions of a tag.
    pub(crate) fn of_tag(&self, tag: ProtectionTag) -> impl Iterator<Item = (RegionHandle, &Region)> {
        let named = |index| RegionHandle { incarnation: self.incarnation, index };
        self.table
            .iter()
            .filter(move |(_, region)| region.tag == tag)
            .map(move |(index, region)| (named(index), region))
    }

    /// What the peer reaches at `address` through a VI of `tag` that has `enabled` on.
    pub(crate) fn remote(
        &self,
        address: RemoteAddress,
        len: u64,
        how: RemoteUse,
        tag: ProtectionTag,
        enabled: RemoteAccess,
    ) -> Result<Piece, DescriptorError> {
        let memory = self.remote_memory(address, len, how, tag, enabled)?.clone();
        Ok(Piece { memory, offset: address.offset, len })
    }

    /// The memory that this lies in.
    pub(crate) fn remote_memory(
        &self,
        address: RemoteAddress,
        len: u64,
        how: RemoteUse,
        tag: ProtectionTag,
        enabled: RemoteAccess,
    ) -> Result<&Memory, DescriptorError> {
        let refused = DescriptorError::RemoteProtection;
        let region = self.get(address.region).ok_or(refused)?;
        let end = address.offset.checked_add(len).ok_or(refused)?;
        if region.tag != tag || !region.access.allows(how) || !enabled.allows(how) || end > region.memory.len() {
            return Err(refused);
        }
        Ok(&region.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: ProtectionTag = ProtectionTag(7);
    const ALL: RemoteAccess = RemoteAccess { write: true, read: true };

    fn region(memory: &Memory, tag: ProtectionTag, access: RemoteAccess) -> Region {
        Region { memory: memory.clone(), tag, access }
    }

    #[test]
    fn each_way_to_reach_too_far_is_refused() {
        let mut regions = Regions::new(0x1_0000_0005, 4);
        let memory = Memory::anonymous(4096);
        let handle = regions.register(region(&memory, TAG, RemoteAccess { write: true, read: false })).unwrap();
        assert_eq!(handle.incarnation, 5);
        let at = |offset| RemoteAddress { region: handle, offset };
        let reach = |address, len, how, tag, enabled| regions.remote(address, len, how, tag, enabled).is_ok();
        assert!(reach(at(96), 4000, RemoteUse::Write, TAG, ALL));
        assert!(!reach(at(97), 4000, RemoteUse::Write, TAG, ALL), "outside");
        assert!(!reach(at(u64::MAX), 2, RemoteUse::Write, TAG, ALL), "outside, wrapping");
        assert!(!reach(at(0), 1, RemoteUse::Write, ProtectionTag(8), ALL), "wrong tag");
        assert!(!reach(at(0), 1, RemoteUse::Read, TAG, ALL), "not enabled on the region");
        assert!(!reach(at(0), 1, RemoteUse::Write, TAG, RemoteAccess::default()), "not enabled on the VI");
        let older = RegionHandle { incarnation: 4, ..handle };
        assert!(!reach(RemoteAddress { region: older, offset: 0 }, 1, RemoteUse::Write, TAG, ALL), "old incarnation");
    }

    #[test]
    fn local_memory_needs_the_tag_and_the_range() {
        let mut regions = Regions::new(1, 4);
        let (a, b) = (Memory::anonymous(4096), Memory::anonymous(4096));
        let first = regions.register(region(&a, TAG, RemoteAccess::default())).unwrap();
        let second = regions.register(region(&a, TAG, ALL)).unwrap();
        regions.register(region(&b, ProtectionTag(8), ALL)).unwrap();
        let segment = a.segment(0, 4096).unwrap();
        let allowed = |regions: &Regions, segment: &Segment| regions.local(segment, TAG, LocalUse::Target).is_ok();
        assert!(allowed(&regions, &segment));
        assert!(!allowed(&regions, &Segment { len: 4097, ..segment }), "outside");
        assert!(!allowed(&regions, &Segment { offset: u64::MAX, ..segment }), "outside, wrapping");
        assert!(!allowed(&regions, &b.segment(0, 1).unwrap()), "another tag");
        regions.remove(first).unwrap();
        assert!(allowed(&regions, &segment), "the second registration still allows it");
        regions.remove(second).unwrap();
        assert!(!allowed(&regions, &segment));
        assert_eq!(regions.remove(second).unwrap_err(), ResourceError::Unknown("region"));
    }
}
