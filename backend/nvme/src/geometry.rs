//! The vendor log page C0h: what lies behind a namespace, so that a host can arrange its I/O by it, and send it straight to the
//! director that is the home of a block (DESIGN 6; PROTOCOLS 8.1).
//!
//! A header of 64 bytes, then the segments in order, each a record of 16 bytes with its groups behind it, 32 bytes each; all
//! little-endian, unnamed bytes zero. Get Log Page names the namespace.
//!
//! | bytes of the header | |
//! |---|---|
//! | 0..4 | `GEO1` |
//! | 4..8 | namespace |
//! | 8..16 | generation: greater whenever anything here is different |
//! | 16..24 | size in blocks |
//! | 24..28 | blocks of an extent |
//! | 28..32 | blocks of a chunk: what lies on one device |
//! | 32..34 | segments |
//! | 34..36 | optimal commands outstanding |
//! | 36..40 | optimal blocks of a command |
//! | 40 | media: 0 not known, 1 solid state, 2 rotating |
//!
//! | bytes of a segment | | bytes of a group | |
//! |---|---|---|---|
//! | 0..8 | first extent | 0..16 | the group's UUID |
//! | 8..10 | groups | 16..20 | ANA group |
//! | | | 20 | home: the director's index, FFh if nobody is |
//! | | | 21 | RAID level: 0, 1, 5, 6 or 10 |
//! | | | 22..24 | devices |
//! | | | 24..26 | devices that hold data in one stripe, at least 1 |
//!
//! Extent `e` of a segment, counted from its first, lies in group `e mod G` of its G groups.

use crate::bytes;
use crate::types::{BlockCount, Lba, NamespaceId};

/// The log page.
pub const GEOMETRY: u8 = 0xc0;

const MAGIC: [u8; 4] = *b"GEO1";
const HEADER: usize = 64;
const SEGMENT: usize = 16;
const GROUP: usize = 32;
const NOBODY: u8 = 0xff;

/// What devices are made of.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Media {
    /// Not known.
    Unknown,
    /// No moving parts.
    SolidState,
    /// Disks that turn.
    Rotating,
}

/// A group of devices.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct GroupGeometry {
    /// Its UUID.
    pub id: [u8; 16],
    /// Its ANA group.
    pub ana_group: u32,
    /// The director that serves it, if anybody is known to; below 255.
    pub home: Option<u8>,
    /// RAID level: 0, 1, 5, 6 or 10.
    pub level: u8,
    /// Devices.
    pub devices: u16,
    /// Devices that hold data in one stripe, at least 1.
    pub data_devices: u16,
}

/// A part of a volume with one list of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentGeometry {
    /// Its first extent.
    pub first_extent: u64,
    /// Its groups, in order; at least one.
    pub groups: Vec<GroupGeometry>,
}

/// What lies behind a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Which.
    pub namespace: NamespaceId,
    /// Greater whenever anything here is different.
    pub generation: u64,
    /// Size.
    pub blocks: BlockCount,
    /// Blocks of an extent, at least 1.
    pub extent_blocks: u32,
    /// Blocks of a chunk, at least 1.
    pub chunk_blocks: u32,
    /// Commands outstanding that keep all devices busy.
    pub optimal_depth: u16,
    /// Blocks of a command that is not split.
    pub optimal_blocks: u32,
    /// What the devices are made of.
    pub media: Media,
    /// The segments; the first one begins at extent 0.
    pub segments: Vec<SegmentGeometry>,
}

impl Geometry {
    /// As the page.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut page = vec![0; HEADER];
        page[..4].copy_from_slice(&MAGIC);
        bytes::put(&mut page, 4, &self.namespace.0.to_le_bytes());
        bytes::put(&mut page, 8, &self.generation.to_le_bytes());
        bytes::put(&mut page, 16, &self.blocks.0.to_le_bytes());
        bytes::put(&mut page, 24, &self.extent_blocks.to_le_bytes());
        bytes::put(&mut page, 28, &self.chunk_blocks.to_le_bytes());
        bytes::put(&mut page, 32, &u16::try_from(self.segments.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes::put(&mut page, 34, &self.optimal_depth.to_le_bytes());
        bytes::put(&mut page, 36, &self.optimal_blocks.to_le_bytes());
        page[40] = match self.media {
            Media::Unknown => 0,
            Media::SolidState => 1,
            Media::Rotating => 2,
        };
        for segment in self.segments.iter().take(usize::from(u16::MAX)) {
            let at = page.len();
            page.resize(at + SEGMENT, 0);
            bytes::put(&mut page, at, &segment.first_extent.to_le_bytes());
            bytes::put(&mut page, at + 8, &u16::try_from(segment.groups.len()).unwrap_or(u16::MAX).to_le_bytes());
            for group in segment.groups.iter().take(usize::from(u16::MAX)) {
                let at = page.len();
                page.resize(at + GROUP, 0);
                bytes::put(&mut page, at, &group.id);
                bytes::put(&mut page, at + 16, &group.ana_group.to_le_bytes());
                (page[at + 20], page[at + 21]) = (group.home.unwrap_or(NOBODY), group.level);
                bytes::put(&mut page, at + 22, &group.devices.to_le_bytes());
                bytes::put(&mut page, at + 24, &group.data_devices.to_le_bytes());
            }
        }
        page
    }

    /// From the page, which may be followed by anything; `None` if it is none, or not all of it is here.
    #[must_use]
    pub fn from_bytes(page: &[u8]) -> Option<Self> {
        let header = page.get(..HEADER).filter(|header| header[..4] == MAGIC)?;
        let at_least_one = |at| Some(bytes::u32_at(header, at)).filter(|number| *number > 0);
        let (extent_blocks, chunk_blocks) = (at_least_one(24)?, at_least_one(28)?);
        let media = match header[40] {
            0 => Media::Unknown,
            1 => Media::SolidState,
            2 => Media::Rotating,
            _ => return None,
        };
        let mut rest = &page[HEADER..];
        let mut segments: Vec<SegmentGeometry> = Vec::new();
        for _ in 0..bytes::u16_at(header, 32) {
            let (record, behind) = rest.split_at_checked(SEGMENT)?;
            let count = usize::from(bytes::u16_at(record, 8));
            let (groups, behind) = behind.split_at_checked(count * GROUP)?;
            rest = behind;
            let first_extent = bytes::u64_at(record, 0);
            let in_order = segments.last().map_or(first_extent == 0, |last| last.first_extent < first_extent);
            if count == 0 || !in_order {
                return None;
            }
            let group = |record: &[u8; GROUP]| GroupGeometry {
                id: bytes::array(record, 0),
                ana_group: bytes::u32_at(record, 16),
                home: Some(record[20]).filter(|home| *home != NOBODY),
                level: record[21],
                devices: bytes::u16_at(record, 22),
                data_devices: bytes::u16_at(record, 24),
            };
            segments.push(SegmentGeometry { first_extent, groups: groups.as_chunks().0.iter().map(group).collect() });
        }
        Some(Self {
            namespace: NamespaceId(bytes::u32_at(header, 4)),
            generation: bytes::u64_at(header, 8),
            blocks: BlockCount(bytes::u64_at(header, 16)),
            extent_blocks,
            chunk_blocks,
            optimal_depth: bytes::u16_at(header, 34),
            optimal_blocks: bytes::u32_at(header, 36),
            media,
            segments,
        })
    }

    /// The group that a block lies in; `None` if the block is beyond the end.
    #[must_use]
    pub fn group_of(&self, lba: Lba) -> Option<&GroupGeometry> {
        if lba.0 >= self.blocks.0 {
            return None;
        }
        let extent = lba.0 / u64::from(self.extent_blocks);
        let segment = self.segments.iter().rev().find(|segment| segment.first_extent <= extent)?;
        let index = (extent - segment.first_extent) % segment.groups.len() as u64;
        segment.groups.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(number: u8, home: Option<u8>) -> GroupGeometry {
        GroupGeometry { id: [number; 16], ana_group: 1, home, level: 5, devices: 5, data_devices: 4 }
    }

    fn geometry() -> Geometry {
        Geometry {
            namespace: NamespaceId(3),
            generation: 7,
            blocks: BlockCount(1000),
            extent_blocks: 64,
            chunk_blocks: 16,
            optimal_depth: 40,
            optimal_blocks: 64,
            media: Media::SolidState,
            segments: vec![
                SegmentGeometry { first_extent: 0, groups: vec![group(1, Some(0)), group(2, None)] },
                SegmentGeometry { first_extent: 5, groups: vec![group(3, Some(1))] },
            ],
        }
    }

    #[test]
    fn a_page_returns_and_pages_that_are_cut_or_wrong_do_not() {
        let page = geometry().to_bytes();
        assert_eq!(page.len(), 64 + 2 * 16 + 3 * 32);
        assert_eq!((&page[..4], &page[4..8], page[40]), (&b"GEO1"[..], &[3, 0, 0, 0][..], 1));
        assert_eq!((page[64 + 16 + 20], page[64 + 16 + 32 + 20]), (0, 0xff), "homes");
        let mut longer = page.clone();
        longer.resize(4096, 0xee);
        assert_eq!(Geometry::from_bytes(&longer), Some(geometry()));
        assert!((0..page.len()).all(|len| Geometry::from_bytes(&page[..len]).is_none()));
        for (at, wrong) in [(0, 0), (24, 0), (28, 0), (40, 3), (64, 1), (72, 0)] {
            let mut page = page.clone();
            page[at] = wrong;
            assert_eq!(Geometry::from_bytes(&page), None, "byte {at}");
        }
    }

    #[test]
    fn blocks_lie_in_the_groups_of_their_segment_by_turns() {
        let geometry = geometry();
        let group = |lba| geometry.group_of(Lba(lba)).map(|group| group.id[0]);
        assert_eq!([0, 63, 64, 128, 4 * 64].map(group), [Some(1), Some(1), Some(2), Some(1), Some(1)]);
        assert_eq!([5 * 64, 6 * 64, 999, 1000].map(group), [Some(3), Some(3), Some(3), None]);
    }
}
