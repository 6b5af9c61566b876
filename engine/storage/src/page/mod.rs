//! A page: 8 KiB as they are on the volume and in a frame of the buffer pool. `FORMAT.md`, "Page".
//!
//! A [`Page`] is a view of two 4 KiB pieces of memory, which need not be neighbours: what a volume reads comes back in whatever
//! frames it was read into. Bytes are looked at in place, as words, because devices and directors share the memory; whoever changes
//! them holds the page's latch.

mod slots;

use std::sync::atomic::{AtomicU64, Ordering};

use dyad_matrix::Memory;
use dyad_matrix::memory::RangeError;

#[cfg(test)]
use self::slots::NoRoom;
pub(crate) use self::slots::SLOT_BYTES;
use crate::ids::{Lsn, ObjectId, PageId};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 8192;
/// Bytes of half a page: a block of the volume, which is the most that is written or lost as one.
pub(crate) const HALF_BYTES: usize = 4096;
/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes that are left for what a page is for.
pub(crate) const BODY_BYTES: usize = PAGE_BYTES - HEADER_BYTES;

const HALF_WORDS: usize = HALF_BYTES / 8;
const VERSION: u16 = 1;

// Where fields of the header are.
const CHECKSUM: usize = 0;
const CHECKSUM_HIGH: usize = 4;
const LSN: usize = 8;
const NAME: usize = 16;
const KIND: usize = 24;
const FORMAT_VERSION: usize = 26;
const OWNER: usize = 28;
const SLOT_COUNT: usize = 32;
const DATA_END: usize = 34;
const FREE: usize = 36;
const STAMP: usize = 40;

/// What a page is for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u16)]
pub enum PageKind {
    /// Never formatted: all zeros.
    Unused = 0,
    /// The first page of a file.
    FileHeader = 1,
    /// Page free space.
    Pfs = 2,
    /// Global allocation map.
    Gam = 3,
    /// Shared global allocation map.
    Sgam = 4,
    /// Index allocation map.
    Iam = 5,
    /// The boot page.
    Boot = 6,
    /// Rows of a heap.
    Heap = 7,
    /// Pieces of long values.
    Lob = 8,
}

impl PageKind {
    /// The kind that `code` stands for.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        [Self::Unused, Self::FileHeader, Self::Pfs, Self::Gam, Self::Sgam, Self::Iam, Self::Boot, Self::Heap, Self::Lob]
            .into_iter()
            .find(|kind| *kind as u16 == code)
    }
}

/// Which database a page or log belongs to: a number that nobody else has.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Stamp(pub u64);

/// What is wrong with a page that was read.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes are not those that were written together.
    #[error("its checksum is wrong")]
    Checksum,
    /// It is another page.
    #[error("it calls itself page {0}")]
    Misplaced(PageId),
    /// It is of another database.
    #[error("it belongs to another database")]
    Foreign,
    /// Its header says something that this version does not know.
    #[error("its header makes no sense")]
    Header,
}

/// A view of the bytes of one page.
#[derive(Copy, Clone)]
pub struct Page<'a> {
    memory: &'a Memory,
    at: [u64; 2],
    words: [&'a [AtomicU64; HALF_WORDS]; 2],
}

impl<'a> Page<'a> {
    /// The page whose halves are at these offsets of `memory`.
    ///
    /// # Errors
    /// [`RangeError`] if they are not in the memory, or not at multiples of eight.
    #[inline]
    pub fn new(memory: &'a Memory, at: [u64; 2]) -> Result<Self, RangeError> {
        let half = |at| {
            let words = memory.atomics_u64(at, HALF_WORDS)?;
            <&[AtomicU64; HALF_WORDS]>::try_from(words).map_err(|_| RangeError::Outside)
        };
        Ok(Self { memory, at, words: [half(at[0])?, half(at[1])?] })
    }

    #[inline]
    fn word(&self, index: usize) -> &'a AtomicU64 {
        // The mask takes a word behind the page to its front: only bits that nobody asked for come from there.
        let half = self.words[index / HALF_WORDS % 2];
        &half[index % HALF_WORDS]
    }

    /// Eight bytes, wherever they begin.
    #[must_use]
    #[inline]
    pub fn u64_at(&self, at: usize) -> u64 {
        let (index, shift) = (at / 8, at % 8 * 8);
        let low = u64::from_le(self.word(index).load(Ordering::Relaxed));
        let high = u64::from_le(self.word(index + 1).load(Ordering::Relaxed));
        // Nothing of `high` is left when there is nothing to shift.
        low >> shift | high << 1 << (63 - shift)
    }

    /// Four bytes, wherever they begin.
    #[must_use]
    #[inline]
    pub fn u32_at(&self, at: usize) -> u32 {
        let [a, b, c, d, ..] = self.u64_at(at).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Hints that the header, the first row and the first slots will be looked at soon.
    #[inline]
    pub fn prefetch(&self) {
        self.memory.prefetch(self.at[0]);
        self.memory.prefetch(self.at[0] + HEADER_BYTES as u64);
        self.memory.prefetch(self.at[1] + HALF_BYTES as u64 - 64);
    }

    /// Two bytes, wherever they begin.
    #[must_use]
    #[inline]
    pub fn u16_at(&self, at: usize) -> u16 {
        let [a, b, ..] = self.u64_at(at).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// One byte.
    #[must_use]
    #[inline]
    pub fn u8_at(&self, at: usize) -> u8 {
        self.u64_at(at).to_le_bytes()[0]
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If they go beyond the page.
    pub fn read(&self, at: usize, target: &mut [u8]) {
        let (low, high) = target.split_at_mut(HALF_BYTES.saturating_sub(at).min(target.len()));
        if !low.is_empty() {
            self.memory.read(self.at[0] + at as u64, low).expect("a page lies in its memory");
        }
        if !high.is_empty() {
            let within = at + low.len() - HALF_BYTES;
            assert!(within + high.len() <= HALF_BYTES, "a read beyond the page");
            self.memory.read(self.at[1] + within as u64, high).expect("a page lies in its memory");
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If they go beyond the page.
    pub fn write(&self, at: usize, source: &[u8]) {
        let (low, high) = source.split_at(HALF_BYTES.saturating_sub(at).min(source.len()));
        if !low.is_empty() {
            self.memory.write(self.at[0] + at as u64, low).expect("a page lies in its memory");
        }
        if !high.is_empty() {
            let within = at + low.len() - HALF_BYTES;
            assert!(within + high.len() <= HALF_BYTES, "a write beyond the page");
            self.memory.write(self.at[1] + within as u64, high).expect("a page lies in its memory");
        }
    }

    /// `len` bytes.
    #[must_use]
    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes);
        bytes
    }

    /// Changes `BYTES` bytes at a multiple of `BYTES`.
    fn set<const BYTES: usize>(&self, at: usize, value: [u8; BYTES]) {
        debug_assert!(at.is_multiple_of(BYTES), "fields of a page are aligned");
        let word = self.word(at / 8);
        let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        bytes[at % 8..][..BYTES].copy_from_slice(&value);
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }

    /// Makes it an empty page.
    pub fn format(&self, name: PageId, kind: PageKind, owner: ObjectId, stamp: Stamp) {
        self.clear();
        self.set(NAME, name.pack().to_le_bytes());
        self.set(KIND, (kind as u16).to_le_bytes());
        self.set(FORMAT_VERSION, VERSION.to_le_bytes());
        self.set(OWNER, owner.0.to_le_bytes());
        self.set(STAMP, stamp.0.to_le_bytes());
        self.start_slots();
    }

    /// Makes it a page that was never formatted.
    pub fn clear(&self) {
        for at in self.at {
            self.memory.fill_zero(at, HALF_BYTES as u64).expect("a page lies in its memory");
        }
    }

    /// What it is for; `None` if this version does not know.
    #[must_use]
    pub fn kind(&self) -> Option<PageKind> {
        PageKind::from_code(self.u16_at(KIND))
    }

    /// Whom it belongs to.
    #[must_use]
    pub fn owner(&self) -> ObjectId {
        ObjectId(self.u32_at(OWNER))
    }

    /// The last record that changed it.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn(self.u64_at(LSN))
    }

    /// The database that it says it belongs to.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp(self.u64_at(STAMP))
    }

    /// Notes the record that changed it.
    pub fn set_lsn(&self, lsn: Lsn) {
        self.set(LSN, lsn.0.to_le_bytes());
    }

    fn checksums(&self) -> [u32; 2] {
        let crc = |half: usize, from: u64| {
            let bytes = HALF_BYTES as u64 - from;
            self.memory.crc32c(self.at[half] + from, bytes).expect("a page lies in its memory")
        };
        [crc(0, CHECKSUM_HIGH as u64), crc(1, 0)]
    }

    /// Makes it ready to be written: from now on it must not change until that is done.
    pub fn seal(&self) {
        // The checksum of the first half covers that of the second.
        self.set(CHECKSUM_HIGH, self.checksums()[1].to_le_bytes());
        self.set(CHECKSUM, self.checksums()[0].to_le_bytes());
    }

    /// Whether what was read is page `name` of the database `stamp`, whole, or was never written.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn verify(&self, name: PageId, stamp: Stamp) -> Result<(), Damage> {
        if self.u64_at(CHECKSUM) == 0 && self.is_zero() {
            return Ok(());
        }
        if self.checksums() != [self.u32_at(CHECKSUM), self.u32_at(CHECKSUM_HIGH)] {
            return Err(Damage::Checksum);
        }
        if self.stamp() != stamp {
            return Err(Damage::Foreign);
        }
        let named = PageId::unpack(self.u64_at(NAME));
        if named != name {
            return Err(Damage::Misplaced(named));
        }
        let known = self.u16_at(FORMAT_VERSION) == VERSION && self.kind().is_some();
        if known && self.slots_make_sense() { Ok(()) } else { Err(Damage::Header) }
    }

    fn is_zero(&self) -> bool {
        self.words.iter().all(|half| half.iter().all(|word| word.load(Ordering::Relaxed) == 0))
    }
}

#[cfg(test)]
mod tests;
