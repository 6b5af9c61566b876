//! Where the blocks of a volume are: arithmetic on its segments. Made from a [`Description`]; nothing here allocates after that.

use dyad_nvme::types::{BlockCount, Lba};

use super::Generation;
use super::description::{Description, positions_of};
use crate::format::{GroupId, VolumeUuid};

/// A block of a volume, as the home of its group knows it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of [`Map::groups`].
    pub group: usize,
    /// Which extent of the volume's share of that group.
    pub position: u64,
    /// Which block of the extent.
    pub block: u64,
}

/// A piece of a command that lies in one extent.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its first block.
    pub place: Place,
    /// Where in the command it begins, in blocks.
    pub at: u64,
    /// How many blocks it has.
    pub blocks: u64,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Member {
    /// Which of the map's groups.
    group: usize,
    /// Positions that earlier segments have of the volume's share of this group.
    base: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    first: u64,
    length: u64,
    members: Vec<Member>,
}

/// The segments of one generation of a volume, ready for translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    volume: VolumeUuid,
    generation: Generation,
    extent: u64,
    extents: u64,
    groups: Vec<GroupId>,
    segments: Vec<Segment>,
}

impl Map {
    /// Of this description.
    ///
    /// # Panics
    /// Never: a description is consistent.
    #[must_use]
    pub fn new(of: &Description) -> Self {
        let groups = of.groups();
        let mut bases = vec![0; groups.len()];
        let mut segments = Vec::with_capacity(of.segments().len());
        for (segment, length) in of.lengths() {
            let count = segment.groups.len();
            let members = segment.groups.iter().enumerate().map(|(at, id)| {
                let group = groups.iter().position(|g| g == id).expect("one of the volume's groups");
                let base = bases[group];
                bases[group] += positions_of(length, count, at);
                Member { group, base }
            });
            segments.push(Segment { first: segment.first, length, members: members.collect() });
        }
        let (volume, generation) = (of.uuid(), of.generation());
        Self { volume, generation, extent: of.extent().blocks(), extents: of.extents(), groups, segments }
    }

    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeUuid {
        self.volume
    }

    /// Its generation.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Its groups.
    #[must_use]
    pub fn groups(&self) -> &[GroupId] {
        &self.groups
    }

    /// Its size.
    #[must_use]
    pub const fn blocks(&self) -> BlockCount {
        BlockCount(self.extents * self.extent)
    }

    /// Where a block is; `None` beyond the end.
    #[must_use]
    pub fn locate(&self, lba: Lba) -> Option<Place> {
        let (extent, block) = (lba.0 / self.extent, lba.0 % self.extent);
        if extent >= self.extents {
            return None;
        }
        // Few, and most volumes have one; the last ones are the longest.
        let segment = self.segments.iter().rev().find(|segment| segment.first <= extent)?;
        let (e, count) = (extent - segment.first, segment.members.len() as u64);
        let member = segment.members[usize::try_from(e % count).ok()?];
        Some(Place { group: member.group, position: member.base + e / count, block })
    }

    /// The block that is at a place: the inverse of [`Self::locate`].
    #[must_use]
    pub fn address(&self, place: Place) -> Option<Lba> {
        for segment in &self.segments {
            let count = segment.members.len();
            let Some(at) = segment.members.iter().position(|m| m.group == place.group) else { continue };
            let Some(p) = place.position.checked_sub(segment.members[at].base) else { continue };
            if p < positions_of(segment.length, count, at) && place.block < self.extent {
                let extent = segment.first + p * count as u64 + at as u64;
                return Some(Lba(extent * self.extent + place.block));
            }
        }
        None
    }

    /// The pieces of a command, in address order; `None` if it goes beyond the end.
    pub fn parts(&self, lba: Lba, blocks: BlockCount) -> Option<impl Iterator<Item = Part> + '_> {
        let end = lba.0.checked_add(blocks.0)?;
        if end > self.blocks().0 {
            return None;
        }
        let mut from = lba.0;
        Some(std::iter::from_fn(move || {
            let left = end.checked_sub(from).filter(|left| *left > 0)?;
            let place = self.locate(Lba(from))?;
            let part = Part { place, at: from - lba.0, blocks: left.min(self.extent - place.block) };
            from += part.blocks;
            Some(part)
        }))
    }
    /// The positions of the extents that lie whole in these blocks, for each group that has any; `None` beyond the end.
    pub fn whole_positions(
        &self,
        lba: Lba,
        blocks: BlockCount,
    ) -> Option<impl Iterator<Item = (usize, std::ops::Range<u64>)> + '_> {
        let end = lba.0.checked_add(blocks.0).filter(|end| *end <= self.blocks().0)?;
        let (from, to) = (lba.0.div_ceil(self.extent), end / self.extent);
        let of_group = move |group| (group, self.positions_before(group, from)..self.positions_before(group, to));
        Some((0..self.groups.len()).map(of_group).filter(|(_, positions)| !positions.is_empty()))
    }

    /// How many of the extents before this one are in the group.
    fn positions_before(&self, group: usize, extent: u64) -> u64 {
        let of_segment = |segment: &Segment| {
            let length = extent.saturating_sub(segment.first).min(segment.length);
            let at = segment.members.iter().position(|member| member.group == group);
            at.map_or(0, |at| positions_of(length, segment.members.len(), at))
        };
        self.segments.iter().map(of_segment).sum()
    }
}
