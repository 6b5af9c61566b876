//! What the registry knows of a volume: plain data that can be stored, checked whole before anything believes it.
//!
//! A description changes only as a whole and by one of the methods here, each of which is one compare-and-swap in the registry:
//!
//! | state | event | next | |
//! |---|---|---|---|
//! | | [`Description::new`] | `Active` | generation 1 |
//! | `Active` | [`grown`](Description::grown), [`with_groups`](Description::with_groups) | `Active` | the same generation |
//! | `Active` | [`shrunk`](Description::shrunk) | `Shrinking` | the next generation |
//! | `Shrinking` | [`settled`](Description::settled): every home has cut its share | `Active` | |
//! | `Active`, `Shrinking` | [`deleted`](Description::deleted) | `Deleting` | the next generation |
//! | `Deleting` | every home has freed its share | not in the registry | |
//!
//! While it shrinks a volume cannot grow: a home that slept through both would keep what was cut.

use std::fmt;

use dyad_nvme::types::{BlockCount, Lba};
use serde::{Deserialize, Serialize};

use super::Generation;
use crate::format::share::TRACK_BLOCKS;
use crate::format::{GroupId, VolumeUuid};

/// How large everything may be.
pub mod limits {
    /// Bytes of a name.
    pub const NAME_BYTES: usize = 63;
    /// Tracks (64 KiB) of an extent: 256 MiB.
    pub const EXTENT_TRACKS: u16 = 4096;
    /// Blocks (4 KiB) of a volume: 16 PiB.
    pub const VOLUME_BLOCKS: u64 = 1 << 42;
    /// Segments of a volume.
    pub const SEGMENTS: usize = 64;
    /// Groups of a segment.
    pub const GROUPS: usize = 256;
}

/// Why there is no such volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// 1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or digit.
    #[error(
        "a name has 1 to {} letters, digits, '-', '_' or '.', and begins with a letter or digit",
        limits::NAME_BYTES
    )]
    Name,
    /// 1 to 4096 tracks, whole ones.
    #[error("an extent has 1 to {} times 64 KiB", limits::EXTENT_TRACKS)]
    Extent,
    /// At least one extent, at most 16 PiB.
    #[error("a volume has at least one extent and at most {} blocks", limits::VOLUME_BLOCKS)]
    Size,
    /// Segments begin at 0, do not overlap, are not empty, and are few.
    #[error("the volume's segments contradict each other or its size")]
    Segments,
    /// A segment has 1 to 256 groups, each once.
    #[error("a segment has 1 to {} different groups", limits::GROUPS)]
    Groups,
    /// Grow to more, shrink to less.
    #[error("the volume has {0} extents: that is not the way to the size asked for")]
    Direction(u64),
    /// It is shrinking or being deleted, or it is not.
    #[error("that cannot be done while the volume is {0:?}")]
    State(State),
    /// 2^32 shrinks.
    #[error("the volume has no generations left")]
    Generations,
}

/// A volume's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`DescriptionError::Name`].
    pub fn new(name: &str) -> Result<Self, DescriptionError> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let begins = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if begins && name.len() <= limits::NAME_BYTES && name.bytes().all(good) {
            Ok(Self(name.to_owned()))
        } else {
            Err(DescriptionError::Name)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = DescriptionError;

    fn try_from(name: String) -> Result<Self, DescriptionError> {
        Self::new(&name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// The striping unit of a volume: whole tracks, so that no track has two homes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Extent(u16);

impl Extent {
    /// An extent of so many tracks of 64 KiB.
    ///
    /// # Errors
    /// [`DescriptionError::Extent`].
    pub const fn of_tracks(tracks: u16) -> Result<Self, DescriptionError> {
        if tracks == 0 || tracks > limits::EXTENT_TRACKS { Err(DescriptionError::Extent) } else { Ok(Self(tracks)) }
    }

    /// An extent of so many blocks.
    ///
    /// # Errors
    /// [`DescriptionError::Extent`].
    pub fn of_blocks(blocks: BlockCount) -> Result<Self, DescriptionError> {
        let whole = blocks.0.is_multiple_of(TRACK_BLOCKS.into());
        let tracks = u16::try_from(blocks.0 / u64::from(TRACK_BLOCKS)).map_err(|_| DescriptionError::Extent)?;
        if whole { Self::of_tracks(tracks) } else { Err(DescriptionError::Extent) }
    }

    /// In tracks.
    #[must_use]
    pub const fn tracks(self) -> u16 {
        self.0
    }

    /// In blocks.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        self.0 as u64 * TRACK_BLOCKS as u64
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        BlockCount(self.blocks()).bytes()
    }
}

/// When a volume gets its slices.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// As it is written.
    Thin,
    /// When it is made.
    Full,
}

/// A part of a volume with one ordered list of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its first extent.
    pub first: u64,
    /// Extent `first + e` is in the group at `e mod groups.len()`.
    pub groups: Vec<GroupId>,
}

/// What is being done to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Active,
    /// Its homes are cutting their shares. These groups will have none.
    Shrinking {
        /// In the order in which they were the volume's.
        retiring: Vec<GroupId>,
    },
    /// Its homes are freeing their shares.
    Deleting,
}

/// A volume, as all homes must agree on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Plain", into = "Plain")]
pub struct Description {
    name: Name,
    uuid: VolumeUuid,
    generation: Generation,
    extent: Extent,
    extents: u64,
    allocation: Allocation,
    segments: Vec<Segment>,
    state: State,
}

/// What one group has of a volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ShareSpec {
    /// Which volume.
    pub volume: VolumeUuid,
    /// Its generation.
    pub generation: Generation,
    /// Its extents.
    pub extent: Extent,
    /// How many of them are in this group.
    pub positions: u64,
    /// When they get slices.
    pub allocation: Allocation,
}

impl Description {
    /// A new volume of so many extents over these groups.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn new(
        name: Name,
        uuid: VolumeUuid,
        extent: Extent,
        extents: u64,
        allocation: Allocation,
        groups: Vec<GroupId>,
    ) -> Result<Self, DescriptionError> {
        let segments = vec![Segment { first: 0, groups }];
        let generation = Generation(1);
        Self { name, uuid, generation, extent, extents, allocation, segments, state: State::Active }.checked()
    }

    fn checked(self) -> Result<Self, DescriptionError> {
        let blocks = self.extents.checked_mul(self.extent.blocks());
        if self.extents == 0 || blocks.is_none_or(|blocks| blocks > limits::VOLUME_BLOCKS) {
            return Err(DescriptionError::Size);
        }
        let firsts = || self.segments.iter().map(|segment| segment.first);
        let rising = firsts().zip(firsts().skip(1)).all(|(a, b)| a < b);
        let begins = self.segments.len() <= limits::SEGMENTS && firsts().next() == Some(0);
        if !begins || !rising || firsts().any(|first| first >= self.extents) {
            return Err(DescriptionError::Segments);
        }
        for Segment { groups, .. } in &self.segments {
            let mut sorted = groups.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if groups.is_empty() || groups.len() > limits::GROUPS || sorted.len() != groups.len() {
                return Err(DescriptionError::Groups);
            }
        }
        Ok(self)
    }

    fn active(&self) -> Result<Self, DescriptionError> {
        if self.state == State::Active { Ok(self.clone()) } else { Err(DescriptionError::State(self.state.clone())) }
    }

    fn next_generation(&self) -> Result<Generation, DescriptionError> {
        self.generation.0.checked_add(1).map(Generation).ok_or(DescriptionError::Generations)
    }

    /// Longer: its last segment goes on.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn grown(&self, extents: u64) -> Result<Self, DescriptionError> {
        if extents <= self.extents {
            return Err(DescriptionError::Direction(self.extents));
        }
        Self { extents, ..self.active()? }.checked()
    }

    /// Longer, from here on over these groups: a new segment.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn with_groups(&self, groups: Vec<GroupId>, extents: u64) -> Result<Self, DescriptionError> {
        let mut grown = self.active()?;
        if extents <= self.extents {
            return Err(DescriptionError::Direction(self.extents));
        }
        grown.segments.push(Segment { first: self.extents, groups });
        Self { extents, ..grown }.checked()
    }

    /// Shorter: what is beyond is gone, and requests of the generation before are refused.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn shrunk(&self, extents: u64) -> Result<Self, DescriptionError> {
        let mut shrunk = self.active()?;
        if extents >= self.extents {
            return Err(DescriptionError::Direction(self.extents));
        }
        let before = self.groups();
        shrunk.segments.retain(|segment| segment.first < extents);
        let shrunk = Self { extents, generation: self.next_generation()?, ..shrunk }.checked()?;
        let kept = shrunk.groups();
        let gone = |group: &GroupId| !kept.contains(group) || shrunk.positions(*group) == 0;
        let retiring = before.into_iter().filter(gone).collect();
        Ok(Self { state: State::Shrinking { retiring }, ..shrunk })
    }

    /// Every home has cut its share.
    ///
    /// # Errors
    /// [`DescriptionError::State`].
    pub fn settled(&self) -> Result<Self, DescriptionError> {
        match &self.state {
            State::Shrinking { .. } => Ok(Self { state: State::Active, ..self.clone() }),
            state @ (State::Active | State::Deleting) => Err(DescriptionError::State(state.clone())),
        }
    }

    /// It is to be no more.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn deleted(&self) -> Result<Self, DescriptionError> {
        match self.state {
            State::Deleting => Err(DescriptionError::State(State::Deleting)),
            State::Active | State::Shrinking { .. } => {
                Ok(Self { generation: self.next_generation()?, state: State::Deleting, ..self.clone() })
            }
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// Which volume it is, for ever.
    #[must_use]
    pub const fn uuid(&self) -> VolumeUuid {
        self.uuid
    }

    /// Its generation.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Its striping unit, for life.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Its length in extents.
    #[must_use]
    pub const fn extents(&self) -> u64 {
        self.extents
    }

    /// Its length in blocks.
    #[must_use]
    pub const fn blocks(&self) -> BlockCount {
        BlockCount(self.extents * self.extent.blocks())
    }

    /// When it gets slices.
    #[must_use]
    pub const fn allocation(&self) -> Allocation {
        self.allocation
    }

    /// Where its extents are.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What is being done to it.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The groups that have, or may still have, a share of it: each once.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        let retiring: &[GroupId] = match &self.state {
            State::Shrinking { retiring } => retiring,
            State::Active | State::Deleting => &[],
        };
        let mut groups = Vec::new();
        for group in self.segments.iter().flat_map(|segment| &segment.groups).chain(retiring) {
            if !groups.contains(group) {
                groups.push(*group);
            }
        }
        groups
    }

    /// What this group has of it: nothing if it is being deleted, or has no extent there.
    #[must_use]
    pub fn share(&self, group: GroupId) -> Option<ShareSpec> {
        let positions = if self.state == State::Deleting { 0 } else { self.positions(group) };
        let (volume, generation) = (self.uuid, self.generation);
        let (extent, allocation) = (self.extent, self.allocation);
        (positions > 0).then_some(ShareSpec { volume, generation, extent, positions, allocation })
    }

    /// Segment by segment: how many extents it has.
    pub(super) fn lengths(&self) -> impl Iterator<Item = (&Segment, u64)> {
        let ends = self.segments.iter().skip(1).map(|segment| segment.first).chain([self.extents]);
        self.segments.iter().zip(ends).map(|(segment, end)| (segment, end - segment.first))
    }

    fn positions(&self, group: GroupId) -> u64 {
        let of_segment = |(segment, length): (&Segment, u64)| {
            let at = segment.groups.iter().position(|g| *g == group);
            at.map_or(0, |at| positions_of(length, segment.groups.len(), at))
        };
        self.lengths().map(of_segment).sum()
    }
}

/// How many of a segment's extents are in the group at a place of its list.
pub(super) const fn positions_of(length: u64, groups: usize, at: usize) -> u64 {
    let (groups, at) = (groups as u64, at as u64);
    length / groups + if at < length % groups { 1 } else { 0 }
}

impl Description {
    /// The first block of an extent.
    #[must_use]
    pub const fn first_block(&self, extent: u64) -> Lba {
        Lba(extent * self.extent.blocks())
    }
}

/// How a description is stored: the fields, and identities in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    name: Name,
    uuid: Hex,
    generation: Generation,
    extent_tracks: u16,
    extents: u64,
    allocation: Allocation,
    segments: Vec<PlainSegment>,
    state: PlainState,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainSegment {
    first: u64,
    groups: Vec<Hex>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PlainState {
    Active,
    Shrinking { retiring: Vec<Hex> },
    Deleting,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex([u8; 16]);

impl From<Hex> for String {
    fn from(hex: Hex) -> Self {
        hex.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let digits = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| digits);
        number.map(|number| Self(number.to_be_bytes())).ok_or("an identity has 32 hexadecimal digits")
    }
}

fn plain_groups(groups: Vec<GroupId>) -> Vec<Hex> {
    groups.into_iter().map(|group| Hex(group.0)).collect()
}

fn group_ids(groups: Vec<Hex>) -> Vec<GroupId> {
    groups.into_iter().map(|hex| GroupId(hex.0)).collect()
}

impl From<Description> for Plain {
    fn from(d: Description) -> Self {
        let segment = |s: Segment| PlainSegment { first: s.first, groups: plain_groups(s.groups) };
        Self {
            name: d.name,
            uuid: Hex(d.uuid.0),
            generation: d.generation,
            extent_tracks: d.extent.0,
            extents: d.extents,
            allocation: d.allocation,
            segments: d.segments.into_iter().map(segment).collect(),
            state: match d.state {
                State::Active => PlainState::Active,
                State::Shrinking { retiring } => PlainState::Shrinking { retiring: plain_groups(retiring) },
                State::Deleting => PlainState::Deleting,
            },
        }
    }
}

impl TryFrom<Plain> for Description {
    type Error = DescriptionError;

    fn try_from(plain: Plain) -> Result<Self, DescriptionError> {
        let segment = |s: PlainSegment| Segment { first: s.first, groups: group_ids(s.groups) };
        Self {
            name: plain.name,
            uuid: VolumeUuid(plain.uuid.0),
            generation: plain.generation,
            extent: Extent::of_tracks(plain.extent_tracks)?,
            extents: plain.extents,
            allocation: plain.allocation,
            segments: plain.segments.into_iter().map(segment).collect(),
            state: match plain.state {
                PlainState::Active => State::Active,
                PlainState::Shrinking { retiring } => State::Shrinking { retiring: group_ids(retiring) },
                PlainState::Deleting => State::Deleting,
            },
        }
        .checked()
    }
}
