//! The header of every block that is not data, and the cursor that fields are read and written with.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | kind: eight letters |
//! | 8..12 | version |
//! | 12..16 | CRC-32C of the block, with these four bytes zero |
//! | 16..32 | group |
//! | 32..40 | sequence: what it counts depends on the kind |
//! | 40..48 | place: the number of this block in its region |
//! | 48.. | the kind's own |

use dyad_nvme::types::BLOCK_BYTES;

use super::{Block, GroupId, VERSION};

/// Bytes of the header.
pub const HEADER: usize = 48;

/// What a sealed block is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Kind {
    /// [`super::superblock`].
    Superblock,
    /// [`super::intent`].
    Intent,
    /// [`super::guard`].
    Guards,
    /// [`super::share`].
    Share,
    /// The head of a record in the vault, whose format is the cache's.
    Vault,
}

impl Kind {
    const fn letters(self) -> [u8; 8] {
        *match self {
            Self::Superblock => b"DYADGRP1",
            Self::Intent => b"DYADINT1",
            Self::Guards => b"DYADGRD1",
            Self::Share => b"DYADSHR1",
            Self::Vault => b"DYADVLT1",
        }
    }
}

/// Why a block is not what it was read as.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Zeros: nothing was ever written here.
    #[error("the block is blank")]
    Blank,
    /// Something else is here.
    #[error("the block is of another kind, or not ours")]
    Kind,
    /// Torn or corrupt.
    #[error("the block does not have its checksum")]
    Checksum,
    /// Of a format that we do not know.
    #[error("the block has format version {0}, not {VERSION}")]
    Version(u32),
    /// It belongs to another group.
    #[error("the block is of another group")]
    Foreign,
    /// It was meant for another place: a misdirected write.
    #[error("the block was written for place {0}")]
    Misplaced(u64),
    /// Its checksum is right and its fields make no sense: written by a fault of ours, or not by us.
    #[error("the block's fields contradict each other")]
    Invalid,
}

/// What a sealed block says of itself.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The group.
    pub group: GroupId,
    /// The kind's sequence.
    pub sequence: u64,
    /// The block's number in its region.
    pub place: u64,
}

/// Fills the header in, checksum last.
pub fn close(block: &mut Block, kind: Kind, seal: &Seal) {
    let mut to = Writer::at(block, 0);
    to.bytes(&kind.letters());
    to.u32(VERSION);
    to.u32(0);
    to.bytes(&seal.group.0);
    to.u64(seal.sequence);
    to.u64(seal.place);
    let crc = crc32c::crc32c(block);
    Writer::at(block, 12).u32(crc);
}

/// Checks a block, its header first.
///
/// # Errors
/// [`FormatError`], but not `Foreign`, `Misplaced` and `Invalid`: the caller knows what it expects.
pub fn open(block: &Block, kind: Kind) -> Result<Seal, FormatError> {
    if block.iter().all(|b| *b == 0) {
        return Err(FormatError::Blank);
    }
    let mut from = Reader::at(block, 0);
    if from.bytes::<8>() != kind.letters() {
        return Err(FormatError::Kind);
    }
    let (version, crc) = (from.u32(), from.u32());
    let without = crc32c::crc32c(&block[..12]);
    let without = crc32c::crc32c_append(crc32c::crc32c_append(without, &[0; 4]), &block[16..]);
    if crc != without {
        return Err(FormatError::Checksum);
    }
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    Ok(Seal { group: GroupId(from.bytes()), sequence: from.u64(), place: from.u64() })
}

/// [`open`], of this group and for this place.
///
/// # Errors
/// [`FormatError`], but not `Invalid`.
pub fn open_at(block: &Block, kind: Kind, group: GroupId, place: u64) -> Result<u64, FormatError> {
    let seal = open(block, kind)?;
    if seal.group != group {
        return Err(FormatError::Foreign);
    }
    if seal.place != place {
        return Err(FormatError::Misplaced(seal.place));
    }
    Ok(seal.sequence)
}

/// Reads little-endian fields one after the other. The end of a block is the caller's to see to.
pub(super) struct Reader<'a> {
    block: &'a Block,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn at(block: &'a Block, at: usize) -> Self {
        Self { block, at }
    }

    pub(super) fn left(&self) -> usize {
        BLOCK_BYTES - self.at
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let field = self.block[self.at..self.at + N].try_into().expect("N bytes");
        self.at += N;
        field
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

/// Writes little-endian fields one after the other.
pub(super) struct Writer<'a> {
    block: &'a mut Block,
    at: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn at(block: &'a mut Block, at: usize) -> Self {
        Self { block, at }
    }

    pub(super) fn bytes(&mut self, field: &[u8]) {
        self.block[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }

    pub(super) fn u8(&mut self, field: u8) {
        self.bytes(&[field]);
    }

    pub(super) fn u16(&mut self, field: u16) {
        self.bytes(&field.to_le_bytes());
    }

    pub(super) fn u32(&mut self, field: u32) {
        self.bytes(&field.to_le_bytes());
    }

    pub(super) fn u64(&mut self, field: u64) {
        self.bytes(&field.to_le_bytes());
    }
}
