//! Share tables: which slices of the group are a volume's (PROTOCOLS 8.1, 8.2), as a log of changes.
//!
//! The region is two halves of equal length (an odd last block is not used). Each half holds a **log**: blocks from the half's start on, all with the log's
//! number. Logs with even numbers are in the first half, those with odd numbers in the second. A log begins with its **snapshot**, records that make the
//! whole table from nothing; the blocks that follow were appended one after the other, each with the records of one change. The table is what the
//! greatest log with a whole snapshot says. When a half is full the next log begins in the other one.
//!
//! One block, sealed with the number of its log as sequence:
//!
//! | bytes | field |
//! |---|---|
//! | 48..52 | blocks of the log's snapshot, at least 1 |
//! | 52..54 | records, n |
//! | 54..56 | zero |
//! | 56..60 | slices from this number on were never any volume's |
//! | 60..64 | stripes of a slice |
//! | 64.. | n records of 32 bytes |
//!
//! | bytes | share | mapped | unmapped | gone |
//! |---|---|---|---|---|
//! | 0 | 1 | 2 | 3 | 4 |
//! | 1 | 1 for full allocation, else 0 | zero | zero | zero |
//! | 2..4 | extent in tracks of 16 blocks | zero | zero | zero |
//! | 4..8 | generation | first entry | first entry | zero |
//! | 8..12 | positions (8 bytes) | entries | entries | zero |
//! | 12..16 | | first slice | zero | zero |
//! | 16..32 | volume | volume | volume | volume |
//!
//! A share record makes a volume's share, or changes its generation and length: entries beyond the new length are unmapped. Mapped entries
//! get consecutive slices.

use super::seal::{self, FormatError, HEADER, Kind, Reader, Seal, Writer};
use super::{Block, GroupId, VolumeUuid};
use dyad_nvme::types::BLOCK_BYTES;

/// Records of a block.
pub const RECORDS: usize = 126;
/// Blocks of a track: the unit of extents.
pub const TRACK_BLOCKS: u32 = 16;

const FIRST: usize = HEADER + 16;
const RECORD_BYTES: usize = 32;
const _: () = assert!(FIRST + RECORDS * RECORD_BYTES == BLOCK_BYTES);

/// A slice of a group: a run of whole stripes.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SliceNumber(pub u32);

/// Raised by delete and shrink: what was said about an older generation of a volume says nothing about this one (PROTOCOLS 8.4).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

/// A change of the table.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose share.
    pub volume: VolumeUuid,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of a share.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is made, or has another generation and length.
    Share {
        /// From now on.
        generation: Generation,
        /// Length, in extents.
        positions: u64,
        /// Extents, in tracks; never zero. Never changes.
        extent_tracks: u16,
        /// Every entry has a slice, or will have. Never changes.
        full: bool,
    },
    /// Entries get slices.
    Mapped {
        /// The first entry.
        first: u32,
        /// How many; never zero.
        entries: u32,
        /// That of the first entry; the others get those that follow.
        slice: SliceNumber,
    },
    /// Entries lose their slices and read as zeros.
    Unmapped {
        /// The first entry.
        first: u32,
        /// How many; never zero.
        entries: u32,
    },
    /// The share is no more.
    Gone,
}

/// What every block says of its log and of the pool.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Header {
    /// Number of the log.
    pub log: u64,
    /// Blocks of its snapshot.
    pub snapshot: u32,
    /// Slices from here on were never any volume's: they are zeros.
    pub fresh: u32,
    /// Stripes of a slice.
    pub slice_stripes: u32,
}

/// Seals a block with at most [`RECORDS`] records.
///
/// # Panics
/// If there are more.
pub fn encode(block: &mut Block, group: GroupId, place: u64, header: &Header, records: &[Record]) {
    assert!(records.len() <= RECORDS, "a block has room for {RECORDS} records");
    block.fill(0);
    let mut to = Writer::at(block, HEADER);
    to.u32(header.snapshot);
    to.u16(u16::try_from(records.len()).expect("at most RECORDS"));
    to.u16(0);
    to.u32(header.fresh);
    to.u32(header.slice_stripes);
    for record in records {
        let (kind, full, tracks, words) = match record.change {
            Change::Share { generation, positions, extent_tracks, full } => {
                let [a, b, c, d, e, f, g, h] = positions.to_le_bytes();
                let halves = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
                (1, full, extent_tracks, [generation.0, halves.0, halves.1])
            }
            Change::Mapped { first, entries, slice } => (2, false, 0, [first, entries, slice.0]),
            Change::Unmapped { first, entries } => (3, false, 0, [first, entries, 0]),
            Change::Gone => (4, false, 0, [0; 3]),
        };
        to.u8(kind);
        to.u8(u8::from(full));
        to.u16(tracks);
        words.into_iter().for_each(|word| to.u32(word));
        to.bytes(&record.volume.0);
    }
    seal::close(block, Kind::Share, &Seal { group, sequence: header.log, place });
}

/// Reads the block at a place. Whether its records make sense together only the table can tell.
///
/// # Errors
/// [`FormatError`].
pub fn decode(block: &Block, group: GroupId, place: u64) -> Result<(Header, Vec<Record>), FormatError> {
    let log = seal::open_at(block, Kind::Share, group, place)?;
    let mut from = Reader::at(block, HEADER);
    let (snapshot, count, _, fresh, slice_stripes) = (from.u32(), from.u16(), from.u16(), from.u32(), from.u32());
    let count = usize::from(count);
    if snapshot == 0 || slice_stripes == 0 || count > RECORDS {
        return Err(FormatError::Invalid);
    }
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (kind, full, extent_tracks) = (from.u8(), from.u8(), from.u16());
        let (a, b, c) = (from.u32(), from.u32(), from.u32());
        let volume = VolumeUuid(from.bytes());
        let change = match (kind, full) {
            (1, 0 | 1) if extent_tracks > 0 => {
                let positions = u64::from(b) | u64::from(c) << 32;
                Change::Share { generation: Generation(a), positions, extent_tracks, full: full == 1 }
            }
            (2, 0) if b > 0 => Change::Mapped { first: a, entries: b, slice: SliceNumber(c) },
            (3, 0) if b > 0 => Change::Unmapped { first: a, entries: b },
            (4, 0) => Change::Gone,
            _ => return Err(FormatError::Invalid),
        };
        records.push(Record { volume, change });
    }
    Ok((Header { log, snapshot, fresh, slice_stripes }, records))
}
