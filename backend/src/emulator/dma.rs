//! What a controller sees of its host's memory: mappings of bus addresses, PRP lists (Base 4.1.1) and SGLs (Base 4.1.2).
//!
//! Hosts may be hostile. Every address is looked up, every list is bounded, and what does not fit is a status, not a panic.

use dyad_matrix::Memory;
use dyad_nvme::command::DataPointer;
use dyad_nvme::sgl::{Sgl, SglDescriptor};
use dyad_nvme::{Status, SubmissionEntry};

/// Bytes of a memory page (CC.MPS = 0).
pub(super) const PAGE: u64 = 4096;

/// Mappings that one controller holds.
const MAPPINGS_MAX: usize = 4096;

/// SGL segments that one command may chain; also bounds a chain that goes in a circle.
const SGL_SEGMENTS_MAX: usize = 32;

/// A place in host memory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) memory: Memory,
    pub(super) offset: u64,
}

#[derive(Debug, Clone)]
struct Mapping {
    start: u64,
    len: u64,
    place: Place,
}

/// The mappings of one controller.
#[derive(Debug, Default)]
pub(super) struct DmaMap {
    /// Sorted by start, without overlap.
    mappings: Vec<Mapping>,
}

impl Place {
    /// The word `at` bytes further on.
    #[inline]
    pub(super) fn load_u32(&self, at: u64) -> u32 {
        self.memory.load_u32(self.offset + at).unwrap_or(0)
    }

    /// Stores a word `at` bytes further on.
    #[inline]
    pub(super) fn store_u32(&self, at: u64, value: u32) {
        // Memory that the host mapped read-only: its own loss.
        let _ = self.memory.store_u32(self.offset + at, value);
    }
}

impl DmaMap {
    /// Adds a mapping of `len` bytes at `offset` of `memory`; false if it overlaps another, is empty, wraps, or is one too many.
    pub(super) fn map(&mut self, start: u64, len: u64, memory: Memory, offset: u64) -> bool {
        let inside = offset.checked_add(len).is_some_and(|end| end <= memory.len());
        let at = self.mappings.partition_point(|m| m.start < start);
        let after_previous = at == 0 || self.mappings[at - 1].start + self.mappings[at - 1].len <= start;
        let Some(end) = start.checked_add(len) else { return false };
        let before_next = self.mappings.get(at).is_none_or(|next| end <= next.start);
        let fits = inside && len > 0 && after_previous && before_next && self.mappings.len() < MAPPINGS_MAX;
        if fits {
            self.mappings.insert(at, Mapping { start, len, place: Place { memory, offset } });
        }
        fits
    }

    /// Removes the mappings that lie in the range; false if there was none.
    pub(super) fn unmap(&mut self, start: u64, len: u64) -> bool {
        let before = self.mappings.len();
        self.mappings.retain(|m| m.start < start || m.start + m.len > start.saturating_add(len));
        self.mappings.len() != before
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        self.mappings.clear();
    }

    /// Where `len` contiguous bytes at a bus address are.
    #[inline]
    pub(super) fn resolve(&self, address: u64, len: u64) -> Option<(&Memory, u64)> {
        let at = self.mappings.partition_point(|m| m.start <= address);
        let mapping = self.mappings.get(at.checked_sub(1)?)?;
        let inside = address - mapping.start;
        (inside.checked_add(len)? <= mapping.len).then(|| (&mapping.place.memory, mapping.place.offset + inside))
    }

    /// The same, to keep.
    pub(super) fn place(&self, address: u64, len: u64) -> Option<Place> {
        self.resolve(address, len).map(|(memory, offset)| Place { memory: memory.clone(), offset })
    }

    /// True if all of this piece of memory can be reached.
    pub(super) fn holds(&self, memory: &Memory, offset: u64, len: u64) -> bool {
        self.mappings.iter().any(|m| {
            let place = &m.place;
            place.memory.id() == memory.id() && place.offset <= offset && offset + len <= place.offset + m.len
        })
    }

    /// Calls `visit` with each contiguous piece of the command's `len` bytes of data, in order.
    #[inline]
    pub(super) fn walk(
        &self,
        entry: &SubmissionEntry,
        len: u64,
        visit: &mut impl FnMut(&Memory, u64, u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        match entry.data_pointer() {
            Some(DataPointer::Prp) => self.walk_prp(entry.prp1(), entry.prp2(), len, visit),
            Some(DataPointer::Sgl | DataPointer::SglMetadata) => self.walk_sgl(entry.sgl(), len, visit),
            None => Err(Status::INVALID_FIELD),
        }
    }

    /// Reads the command's data, all of it at once. For small structures.
    pub(super) fn read(&self, entry: &SubmissionEntry, data: &mut [u8]) -> Result<(), Status> {
        let mut at = 0;
        self.walk(entry, data.len() as u64, &mut |memory, offset, len| {
            let len = usize::try_from(len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            memory.read(offset, &mut data[at..at + len]).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            at += len;
            Ok(())
        })
    }

    /// Writes the command's data, all of it at once. For small structures.
    pub(super) fn write(&self, entry: &SubmissionEntry, data: &[u8]) -> Result<(), Status> {
        let mut at = 0;
        self.walk(entry, data.len() as u64, &mut |memory, offset, len| {
            let len = usize::try_from(len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            memory.write(offset, &data[at..at + len]).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            at += len;
            Ok(())
        })
    }

    fn piece(
        &self,
        address: u64,
        len: u64,
        visit: &mut impl FnMut(&Memory, u64, u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let (memory, offset) = self.resolve(address, len).ok_or(Status::DATA_TRANSFER_ERROR)?;
        visit(memory, offset, len)
    }

    #[inline]
    fn walk_prp(
        &self,
        prp1: u64,
        prp2: u64,
        len: u64,
        visit: &mut impl FnMut(&Memory, u64, u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        if len == 0 {
            return Ok(());
        }
        if !prp1.is_multiple_of(4) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let first = len.min(PAGE - prp1 % PAGE);
        self.piece(prp1, first, visit)?;
        let mut left = len - first;
        if left == 0 {
            return Ok(());
        }
        if left <= PAGE {
            return if prp2.is_multiple_of(PAGE) {
                self.piece(prp2, left, visit)
            } else {
                Err(Status::PRP_OFFSET_INVALID)
            };
        }
        if !prp2.is_multiple_of(8) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut list = prp2;
        while left > 0 {
            let mut next = self.list_entry(list)?;
            // The last entry of a page of the list points to the next page, unless it is the last entry of all.
            if (list + 8).is_multiple_of(PAGE) && left > PAGE {
                if !next.is_multiple_of(PAGE) {
                    return Err(Status::PRP_OFFSET_INVALID);
                }
                list = next;
                next = self.list_entry(list)?;
            }
            if !next.is_multiple_of(PAGE) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            let len = left.min(PAGE);
            self.piece(next, len, visit)?;
            left -= len;
            list += 8;
        }
        Ok(())
    }

    fn list_entry(&self, address: u64) -> Result<u64, Status> {
        let (memory, offset) = self.resolve(address, 8).ok_or(Status::DATA_TRANSFER_ERROR)?;
        memory.load_u64(offset).map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    fn walk_sgl(
        &self,
        first: SglDescriptor,
        len: u64,
        visit: &mut impl FnMut(&Memory, u64, u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut left = len;
        let mut segment = match first.parse().ok_or(Status::SGL_TYPE_INVALID)? {
            Sgl::DataBlock { address, len } => {
                return if u64::from(len) < left {
                    Err(Status::SGL_LENGTH_INVALID)
                } else {
                    self.piece(address, left, visit)
                };
            }
            Sgl::Segment { address, len } => (address, len, false),
            Sgl::LastSegment { address, len } => (address, len, true),
            _ => return Err(Status::SGL_TYPE_INVALID),
        };
        for _ in 0..SGL_SEGMENTS_MAX {
            let (address, bytes, last) = segment;
            if bytes == 0 || bytes % 16 != 0 || bytes > 64 << 10 {
                return Err(Status::SGL_SEGMENT_INVALID);
            }
            let mut next = None;
            for index in 0..bytes / 16 {
                let is_final = index + 1 == bytes / 16;
                match self.sgl_descriptor(address + u64::from(index) * 16)?.parse().ok_or(Status::SGL_TYPE_INVALID)? {
                    Sgl::DataBlock { address, len } => {
                        let len = u64::from(len).min(left);
                        if len > 0 {
                            self.piece(address, len, visit)?;
                        }
                        left -= len;
                    }
                    Sgl::Segment { address, len } if is_final && !last => next = Some((address, len, false)),
                    Sgl::LastSegment { address, len } if is_final && !last => next = Some((address, len, true)),
                    Sgl::Segment { .. } | Sgl::LastSegment { .. } => return Err(Status::SGL_SEGMENT_INVALID),
                    _ => return Err(Status::SGL_TYPE_INVALID),
                }
            }
            match next {
                Some(next) => segment = next,
                None if left == 0 => return Ok(()),
                None => return Err(Status::SGL_LENGTH_INVALID),
            }
        }
        Err(Status::SGL_COUNT_INVALID)
    }

    fn sgl_descriptor(&self, address: u64) -> Result<SglDescriptor, Status> {
        let (memory, offset) = self.resolve(address, 16).ok_or(Status::DATA_TRANSFER_ERROR)?;
        let mut bytes = [0; 16];
        memory.read(offset, &mut bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        Ok(SglDescriptor::from_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_nvme::types::{BlockCount, Lba, NamespaceId};

    const BASE: u64 = 0x10_0000;

    fn map() -> (DmaMap, Memory) {
        let memory = Memory::anonymous(64 * 4096);
        let mut map = DmaMap::default();
        assert!(map.map(BASE, 64 * 4096, memory.clone(), 0));
        (map, memory)
    }

    fn pieces(map: &DmaMap, entry: &SubmissionEntry, len: u64) -> Result<Vec<(u64, u64)>, Status> {
        let mut pieces = Vec::new();
        map.walk(entry, len, &mut |_, offset, len| {
            pieces.push((offset, len));
            Ok(())
        })?;
        Ok(pieces)
    }

    fn entry() -> SubmissionEntry {
        SubmissionEntry::read(NamespaceId(1), Lba(0), BlockCount(1))
    }

    #[test]
    fn mappings_do_not_overlap() {
        let (mut map, memory) = map();
        assert!(!map.map(BASE + 4096, 4096, memory.clone(), 0));
        assert!(!map.map(BASE - 4096, 8192, memory.clone(), 0));
        assert!(!map.map(u64::MAX - 100, 4096, memory.clone(), 0));
        assert!(!map.map(0, 4096, memory.clone(), memory.len()));
        assert!(map.map(BASE - 4096, 4096, memory, 4096));
        assert!(map.resolve(BASE - 1, 2).is_none(), "neighbours are not one piece");
        assert!(map.unmap(BASE - 4096, 4096) && !map.unmap(BASE - 4096, 4096));
    }

    #[test]
    fn prp_entries_and_lists() {
        let (map, memory) = map();
        let one = entry().with_prp(BASE + 512, 0);
        assert_eq!(pieces(&map, &one, 1024), Ok(vec![(512, 1024)]));
        let two = entry().with_prp(BASE + 512, BASE + 4096);
        assert_eq!(pieces(&map, &two, 4096), Ok(vec![(512, 3584), (4096, 512)]));
        // A list that begins two entries before the end of its page and goes on in another.
        let list = 8 * 4096 + 4096 - 16;
        memory.store_u64(list, BASE + 3 * 4096).unwrap();
        memory.store_u64(list + 8, BASE + 9 * 4096).unwrap();
        memory.store_u64(9 * 4096, BASE + 5 * 4096).unwrap();
        memory.store_u64(9 * 4096 + 8, BASE + 4 * 4096).unwrap();
        let many = entry().with_prp(BASE, BASE + list);
        let page = |n: u64| (n * 4096, 4096);
        assert_eq!(pieces(&map, &many, 4 * 4096), Ok(vec![page(0), page(3), page(5), page(4)]));
        assert_eq!(pieces(&map, &entry().with_prp(BASE + 2, 0), 8), Err(Status::PRP_OFFSET_INVALID));
        assert_eq!(pieces(&map, &entry().with_prp(BASE, BASE + 8), 8192), Err(Status::PRP_OFFSET_INVALID));
        assert_eq!(pieces(&map, &entry().with_prp(0, 0), 8), Err(Status::DATA_TRANSFER_ERROR));
    }

    #[test]
    fn sgl_segments_and_what_is_refused() {
        let (map, memory) = map();
        let block = entry().with_sgl(SglDescriptor::data_block(BASE + 100, 50_000));
        assert_eq!(pieces(&map, &block, 50_000), Ok(vec![(100, 50_000)]));
        assert_eq!(pieces(&map, &block, 50_001), Err(Status::SGL_LENGTH_INVALID));
        let put = |at: u64, d: SglDescriptor| memory.write(at, &d.to_bytes()).unwrap();
        put(4096, SglDescriptor::data_block(BASE + 8192, 512));
        put(4096 + 16, SglDescriptor::segment(BASE + 4096 + 64, 32));
        put(4096 + 64, SglDescriptor::data_block(BASE + 12288, 512));
        put(4096 + 80, SglDescriptor::last_segment(BASE + 4096 + 128, 16));
        put(4096 + 128, SglDescriptor::data_block(BASE, 3072));
        let chain = entry().with_sgl(SglDescriptor::segment(BASE + 4096, 32));
        assert_eq!(pieces(&map, &chain, 4096), Ok(vec![(8192, 512), (12288, 512), (0, 3072)]));
        assert_eq!(pieces(&map, &chain, 8192), Err(Status::SGL_LENGTH_INVALID));
        put(4096 + 80, SglDescriptor::segment(BASE + 4096, 32));
        assert_eq!(pieces(&map, &chain, 1 << 20), Err(Status::SGL_COUNT_INVALID), "a circle ends");
        let keyed = entry().with_sgl(SglDescriptor::keyed(BASE, 4096, 1));
        assert_eq!(pieces(&map, &keyed, 4096), Err(Status::SGL_TYPE_INVALID));
    }
}
