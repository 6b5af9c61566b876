//! The guard table: a CRC-32C for every block of every member, parity too, kept on other members (PROTOCOLS 7.1).
//!
//! One sealed block has the guards of 63 chunks of one member. The guards of member m are on members m+1, m+2, ... (mod n), as many as members
//! may fail; those of RAID 0 on m itself. On its holder, copy c (from 0) of table block b is block `c * blocks-per-copy + b` of the guard region;
//! that number is its place. Sequence: grows with every write of the block.
//!
//! | bytes | field |
//! |---|---|
//! | 48..49 | the member whose blocks these are |
//! | 49..64 | zero |
//! | 64..4096 | 63 * 16 guards, each XORed with the CRC-32C of a block of zeros |
//!
//! So a table block of zeros, one that was never written, says what it should: all blocks are zeros.

use dyad_nvme::types::{BLOCK_BYTES, Lba};

use super::layout::{Layout, guard_copies};
use super::seal::{self, FormatError, HEADER, Kind, Reader, Seal, Writer};
use super::{Block, GroupId};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry};

/// Chunks that one table block guards.
pub const GUARDED_CHUNKS: u64 = 63;

/// Guards of one table block.
pub const GUARDS: usize = 1008;

const FIRST: usize = HEADER + 16;
const _: () = assert!(FIRST + 4 * GUARDS == BLOCK_BYTES && GUARDS as u64 == GUARDED_CHUNKS * CHUNK_BLOCKS);

/// The guard of a block.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Guard(pub u32);

impl Guard {
    /// Of a block of zeros.
    pub const OF_ZEROS: Self = Self(0x98f9_4189);

    /// Of these bytes.
    #[must_use]
    pub fn of(block: &Block) -> Self {
        Self(crc32c::crc32c(block))
    }
}

/// Where a copy of a table block is kept.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct TablePlace {
    /// On which member.
    pub member: usize,
    /// In its guard region.
    pub place: u64,
    /// On the device.
    pub lba: Lba,
}

/// The table block that guards a chunk of a member, and the chunk's first guard in it.
#[must_use]
pub fn index(chunk: u64) -> (u64, usize) {
    let first = chunk % GUARDED_CHUNKS * CHUNK_BLOCKS;
    (chunk / GUARDED_CHUNKS, usize::try_from(first).expect("below 1008"))
}

/// Where the copies of table block `table` of `member` are.
pub fn copies(geometry: Geometry, layout: Layout, member: usize, table: u64) -> impl Iterator<Item = TablePlace> {
    let copies = guard_copies(geometry);
    let per_copy = layout.guards.blocks.0 / copies;
    (0..copies).map(move |copy| {
        let step = if geometry.tolerated() == 0 { 0 } else { usize::try_from(copy + 1).expect("at most 3") };
        let place = copy * per_copy + table;
        let lba = Lba(layout.guards.start.0 + place);
        TablePlace { member: (member + step) % geometry.members(), place, lba }
    })
}

/// Seals the guards of a member.
///
/// # Panics
/// If `member` is beyond the members of any group.
pub fn encode(block: &mut Block, seal: &Seal, member: usize, guards: &[Guard; GUARDS]) {
    let mut to = Writer::at(block, HEADER);
    to.u8(u8::try_from(member).expect("at most 18 members"));
    to.bytes(&[0; 15]);
    for guard in guards {
        to.u32(guard.0 ^ Guard::OF_ZEROS.0);
    }
    seal::close(block, Kind::Guards, seal);
}

/// Reads the guards of `member` for `place` into `guards`; returns the block's sequence, zero if it was never written.
///
/// # Errors
/// [`FormatError`], but not `Blank`; `guards` are as they were.
pub fn decode(
    block: &Block,
    group: GroupId,
    place: u64,
    member: usize,
    guards: &mut [Guard; GUARDS],
) -> Result<u64, FormatError> {
    let sequence = match seal::open_at(block, Kind::Guards, group, place) {
        Ok(sequence) => sequence,
        Err(FormatError::Blank) => {
            guards.fill(Guard::OF_ZEROS);
            return Ok(0);
        }
        Err(error) => return Err(error),
    };
    if usize::from(Reader::at(block, HEADER).u8()) != member {
        return Err(FormatError::Invalid);
    }
    let mut from = Reader::at(block, FIRST);
    guards.fill_with(|| Guard(from.u32() ^ Guard::OF_ZEROS.0));
    Ok(sequence)
}
