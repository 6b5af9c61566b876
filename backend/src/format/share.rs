//! Share tables: which slices of the group are a volume's (PROTOCOLS 8.1, 8.2).
//!
//! One sealed block has a page of one volume's table. It may lie anywhere in the region: its place says where it was meant for. Of two pages of the
//! same volume, generation and first entry, the one with the greater sequence is the page; the other one's block is free.
//!
//! | bytes | field |
//! |---|---|
//! | 48..64 | volume |
//! | 64..72 | generation |
//! | 72..80 | first: the number of the first entry in the volume's share |
//! | 80..96 | zero |
//! | 96..4096 | 1000 entries of 4 bytes: zero for no slice, else the slice's number plus one |

use dyad_nvme::types::BLOCK_BYTES;

use super::seal::{self, FormatError, HEADER, Kind, Reader, Seal, Writer};
use super::{Block, GroupId, VolumeUuid};

/// Entries of a page.
pub const ENTRIES: usize = 1000;

const FIRST: usize = HEADER + 48;
const _: () = assert!(FIRST + 4 * ENTRIES == BLOCK_BYTES);

/// A slice of a group: a run of whole stripes.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SliceNumber(pub u32);

/// A page of a share table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Whose.
    pub volume: VolumeUuid,
    /// Of which generation of the volume.
    pub generation: u64,
    /// The first entry's number, a multiple of [`ENTRIES`].
    pub first: u64,
    /// The slices; `None` reads as zeros.
    pub slices: Box<[Option<SliceNumber>; ENTRIES]>,
}

/// Seals a page.
///
/// # Panics
/// If a slice has the one number that cannot be written.
pub fn encode(block: &mut Block, seal: &Seal, page: &Page) {
    let mut to = Writer::at(block, HEADER);
    to.bytes(&page.volume.0);
    to.u64(page.generation);
    to.u64(page.first);
    to.bytes(&[0; 16]);
    for slice in page.slices.iter() {
        to.u32(slice.map_or(0, |slice| slice.0.checked_add(1).expect("slices are numbered below 2^32 - 1")));
    }
    seal::close(block, Kind::Share, seal);
}

/// Reads the page at a place, of a group with so many slices, and its sequence.
///
/// # Errors
/// [`FormatError`].
pub fn decode(block: &Block, group: GroupId, place: u64, slices: u32) -> Result<(u64, Page), FormatError> {
    let sequence = seal::open_at(block, Kind::Share, group, place)?;
    let mut from = Reader::at(block, HEADER);
    let (volume, generation, first) = (VolumeUuid(from.bytes()), from.u64(), from.u64());
    if !first.is_multiple_of(ENTRIES as u64) {
        return Err(FormatError::Invalid);
    }
    let mut from = Reader::at(block, FIRST);
    let mut entries = Box::new([None; ENTRIES]);
    for entry in entries.iter_mut() {
        *entry = from.u32().checked_sub(1).map(SliceNumber);
        if entry.is_some_and(|slice| slice.0 >= slices) {
            return Err(FormatError::Invalid);
        }
    }
    Ok((sequence, Page { volume, generation, first, slices: entries }))
}
