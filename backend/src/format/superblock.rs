//! The superblock: what a group is, who its members are, and what became of them. On every member twice, at its first and at its last block.
//!
//! Sequence: grows with every change of the members or their states. Place: 0 for the first copy, 1 for the last.
//!
//! | bytes | field |
//! |---|---|
//! | 48..64 | the device that this superblock was written for |
//! | 64..72 | epoch of the home that wrote it |
//! | 72..73 | level: 0, 1, 5, 6, 10 |
//! | 73..74 | number of members, n |
//! | 74..75 | which member this is |
//! | 75..76 | zero |
//! | 76..80 | blocks of a chunk: 16 |
//! | 80..176 | intent, guards, shares, vault, data: first block and number of blocks, 8 bytes each; then the last block of the group and 8 zero bytes |
//! | 176..192 | zero |
//! | 192..768 | 18 members, 32 bytes each; those from n on zero |
//! | 768..4096 | zero |
//!
//! A member: 16 bytes device; 1 byte state (1 in sync, 2 out, 3 being rebuilt); 7 bytes zero; 8 bytes: chunks rebuilt so far, zero in other states.

use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

use super::layout::{Layout, Region};
use super::seal::{self, FormatError, HEADER, Kind, Reader, Seal, Writer};
use super::{Block, GroupId};
use crate::device::DeviceId;
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry, Level, MEMBERS_MAX};

const MEMBERS: usize = 192;
const MEMBERS_END: usize = 768;
const _: () = assert!(MEMBERS + 32 * MEMBERS_MAX == MEMBERS_END && MEMBERS_END < BLOCK_BYTES);
const _: () = assert!(HEADER == 48);

/// What became of a member.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MemberState {
    /// It has everything.
    InSync,
    /// It failed, or was taken out: what it holds is not to be believed.
    Out,
    /// It has everything in its first chunks, and takes all writes.
    Rebuilding {
        /// So many chunks.
        done: u64,
    },
}

/// One member.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its device.
    pub device: DeviceId,
    /// What became of it.
    pub state: MemberState,
}

/// A superblock, but for which of the members it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The group.
    pub group: GroupId,
    /// Greater than that of all older superblocks of the group.
    pub sequence: u64,
    /// Of the home that wrote it.
    pub epoch: u64,
    /// Level and number of members.
    pub geometry: Geometry,
    /// Where everything is.
    pub layout: Layout,
    /// The members, as many as the geometry says.
    pub members: heapless::Vec<MemberRecord, MEMBERS_MAX>,
}

const fn number_of(level: Level) -> u8 {
    match level {
        Level::Raid0 => 0,
        Level::Raid1 => 1,
        Level::Raid5 => 5,
        Level::Raid6 => 6,
        Level::Raid10 => 10,
    }
}

const fn level_of(number: u8) -> Option<Level> {
    match number {
        0 => Some(Level::Raid0),
        1 => Some(Level::Raid1),
        5 => Some(Level::Raid5),
        6 => Some(Level::Raid6),
        10 => Some(Level::Raid10),
        _ => None,
    }
}

/// A superblock as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub superblock: Superblock,
    /// Which member it was written for.
    pub member: usize,
}

impl Superblock {
    /// Where copy 0 and copy 1 are.
    #[must_use]
    pub const fn places(&self) -> [Lba; 2] {
        [Lba(0), self.layout.last]
    }

    /// Seals copy `copy` for a member.
    ///
    /// # Panics
    /// If there is no such member.
    #[must_use]
    pub fn encode(&self, member: usize, copy: u64) -> Block {
        assert_eq!(self.members.len(), self.geometry.members(), "a record for every member");
        let mut block = [0; BLOCK_BYTES];
        let mut to = Writer::at(&mut block, HEADER);
        to.bytes(&self.members[member].device.0);
        to.u64(self.epoch);
        to.u8(number_of(self.geometry.level()));
        for small in [self.geometry.members(), member, 0] {
            to.u8(u8::try_from(small).expect("at most 18 members"));
        }
        to.u32(u32::try_from(CHUNK_BLOCKS).expect("16"));
        let Layout { intent, guards, shares, vault, data, last } = self.layout;
        for region in [intent, guards, shares, vault, data] {
            to.u64(region.start.0);
            to.u64(region.blocks.0);
        }
        to.u64(last.0);
        let mut to = Writer::at(&mut block, MEMBERS);
        for record in &self.members {
            let (state, done) = match record.state {
                MemberState::InSync => (1, 0),
                MemberState::Out => (2, 0),
                MemberState::Rebuilding { done } => (3, done),
            };
            to.bytes(&record.device.0);
            to.u64(state);
            to.u64(done);
        }
        seal::close(&mut block, Kind::Superblock, &Seal { group: self.group, sequence: self.sequence, place: copy });
        block
    }

    /// Reads copy `copy`.
    ///
    /// # Errors
    /// [`FormatError`], but not `Foreign`.
    pub fn decode(block: &Block, copy: u64) -> Result<Found, FormatError> {
        let Seal { group, sequence, place } = seal::open(block, Kind::Superblock)?;
        if place != copy {
            return Err(FormatError::Misplaced(place));
        }
        let mut from = Reader::at(block, HEADER);
        let (device, epoch) = (DeviceId(from.bytes()), from.u64());
        let (level, count, member) = (level_of(from.u8()), usize::from(from.u8()), usize::from(from.u8()));
        let (_, chunk) = (from.u8(), from.u32());
        let geometry = level.and_then(|level| Geometry::new(level, count).ok()).ok_or(FormatError::Invalid)?;
        let [intent, guards, shares, vault, data] =
            [(); 5].map(|()| Region { start: Lba(from.u64()), blocks: BlockCount(from.u64()) });
        let layout = Layout { intent, guards, shares, vault, data, last: Lba(from.u64()) };
        layout.check(geometry).map_err(|_| FormatError::Invalid)?;
        let mut from = Reader::at(block, MEMBERS);
        let mut members = heapless::Vec::new();
        for _ in 0..count {
            let device = DeviceId(from.bytes());
            let state = match (from.u64(), from.u64()) {
                (1, 0) => MemberState::InSync,
                (2, 0) => MemberState::Out,
                (3, done) if done <= layout.chunks() => MemberState::Rebuilding { done },
                _ => return Err(FormatError::Invalid),
            };
            if members.iter().any(|record: &MemberRecord| record.device == device) {
                return Err(FormatError::Invalid);
            }
            members.push(MemberRecord { device, state }).map_err(|_| FormatError::Invalid)?;
        }
        if u64::from(chunk) != CHUNK_BLOCKS || members.get(member).is_none_or(|record| record.device != device) {
            return Err(FormatError::Invalid);
        }
        Ok(Found { superblock: Self { group, sequence, epoch, geometry, layout, members }, member })
    }
}
