//! Memory that devices and peers reach: the only place where bytes are touched that somebody else may be writing.
//!
//! A [`Memory`] is a mapping of fixed length. No reference to its bytes is ever handed out; they are moved by [`copy`],
//! [`Memory::read`] and [`Memory::write`], which also count them (DESIGN 8, Counting), or looked at as atomic words.
//!
//! Invariants:
//! - Every access is checked against the mapping, and every access is atomic to the language, in units that are not
//!   specified: other threads, processes and devices may change the bytes at any time, and the worst that follows is
//!   a mixture of old and new bytes, never undefined behaviour.
//! - A mapped file cannot shrink (`F_SEAL_SHRINK`, memfd_create(2), fcntl(2)), whoever made it: so no access faults. Whoever
//!   may write a file can also punch holes into it (fallocate(2)): ordinary pages come back as zeros, huge pages only if there
//!   is one left. So memory of huge pages is not for peers.
//! - A file belongs to its owner's user alone; whom else it is handed to has the access that the descriptor has.
//! - The mapping lives as long as any clone of the [`Memory`].
//!
//! **Counting.** Each memory counts the payload bytes that this process copied into it ([`Memory::write`], and [`copy`]
//! at its target) or out of it ([`Memory::read`]). The count is per memory and not per process, so that tests that run
//! side by side each see their own, and reactors that share no memory share no counter. It is a plain load and store,
//! because a locked addition would wait until the copied bytes have left the processor (that cost a fifth of a round
//! trip); so when two threads copy into one memory at the same moment, one of the two may go uncounted.

#![allow(unsafe_code)] // the room that owns mappings: raw pointers into them are made and used here only

mod bytes;
mod mapping;
mod numa;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::fcntl::SealFlag;

pub(crate) use bytes::copy as copy_bytes;
pub use mapping::{HugePages, MapError};
use mapping::{Mapping, Placement};

/// Bytes per step of [`Memory::crc32c`]: small enough to stay in the first-level cache, large enough to forget the calls.
const SCRATCH: usize = 4096;

/// Names one [`Memory`] for as long as the process runs; never used again. Later memories have greater ids; the values
/// depend on what else the process made, so they belong in no trace that is compared.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryId(pub u32);

/// A piece of one memory, as descriptors and device commands name it. Who may use it for what was settled when the
/// memory was registered with a provider or mapped for a device.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which memory.
    pub memory: MemoryId,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// Why an access was refused. No byte was moved.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The range does not lie in the memory.
    #[error("the range lies outside the memory")]
    Outside,
    /// The memory is mapped for reading only.
    #[error("the memory is read-only here")]
    ReadOnly,
    /// An atomic word must lie at a multiple of its size.
    #[error("the word is not aligned")]
    Misaligned,
}

/// A mapping of fixed length that others may reach: a cheap handle, clones are the same memory.
#[derive(Clone)]
pub struct Memory(Arc<Mapping>);

impl Memory {
    /// Zeroed memory of this process alone: no file, filled by the kernel page by page at first touch. For the
    /// simulator, tests and buffers that no peer reaches.
    ///
    /// # Panics
    /// If `len` is zero or the address space is used up, as the collections of the standard library do.
    #[must_use]
    pub fn anonymous(len: usize) -> Self {
        let len = len as u64;
        Mapping::private(len).map(Self::new).unwrap_or_else(|error| panic!("no memory of {len} bytes: {error}"))
    }

    /// Zeroed memory that can be handed to other processes: a memfd, populated, locked where the limit allows
    /// ([`Self::locked`]), sealed against any change of its length. Its pages come from the NUMA node that the calling
    /// thread runs on. `name` shows in `/proc`.
    ///
    /// # Errors
    /// [`MapError::Empty`], [`MapError::Os`].
    pub fn shared(name: &str, len: usize, huge_pages: HugePages) -> Result<Self, MapError> {
        Mapping::memfd(name, len as u64, huge_pages, Placement::Local).map(Self::new)
    }

    /// As [`Self::shared`] of ordinary pages, but only this mapping can ever write it: others may read, whatever they do with
    /// the file.
    ///
    /// # Errors
    /// As [`Self::shared`].
    pub fn published(name: &str, len: usize) -> Result<Self, MapError> {
        Mapping::memfd_of(name, len as u64, false, Placement::Local, SealFlag::F_SEAL_FUTURE_WRITE).map(Self::new)
    }

    /// As [`Self::shared`], with pages from all NUMA nodes in turn: for memory that reactors on several nodes use alike.
    ///
    /// # Errors
    /// As [`Self::shared`].
    pub fn interleaved(name: &str, len: usize, huge_pages: HugePages) -> Result<Self, MapError> {
        Mapping::memfd(name, len as u64, huge_pages, Placement::Interleave).map(Self::new)
    }

    /// Maps the first `len` bytes of a file that another process sent. Nothing is believed about it: a file that could
    /// shrink, or that is too short, is refused, because touching what is not there kills the toucher. Whoever distrusts the
    /// other process refuses [huge pages](Self::huge_pages), too.
    ///
    /// # Errors
    /// [`MapError::NotSealed`], [`MapError::TooSmall`], [`MapError::Empty`], [`MapError::Os`].
    pub fn from_fd(fd: OwnedFd, len: u64, writable: bool) -> Result<Self, MapError> {
        Mapping::of_file(fd, len, writable).map(Self::new)
    }

    fn new(mapping: Mapping) -> Self {
        Self(Arc::new(mapping))
    }

    /// Its name in [`Segment`]s.
    #[must_use]
    #[inline]
    pub fn id(&self) -> MemoryId {
        self.0.id
    }

    /// Bytes. Never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // it never is
    #[inline]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// The file behind it, if it has one.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether this process may write it.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.0.writable
    }

    /// Whether it is made of huge pages.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.0.huge_pages
    }

    /// Whether it is locked in memory.
    #[must_use]
    pub fn locked(&self) -> bool {
        self.0.locked
    }

    /// Where it is mapped, for programming a device's address translation. To look at the bytes through it is not sound
    /// in general: somebody else may be writing them.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.0.start
    }

    /// Payload bytes that this process copied into it, or out of it with [`Self::read`].
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.0.copied.load(Ordering::Relaxed)
    }

    /// The piece of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    #[inline]
    pub fn segment(&self, offset: u64, len: u32) -> Result<Segment, RangeError> {
        self.check(offset, u64::from(len))?;
        Ok(Segment { memory: self.id(), offset, len })
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), RangeError> {
        self.look(offset, target)?;
        self.count(target.len() as u64);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`RangeError::Outside`], [`RangeError::ReadOnly`].
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<(), RangeError> {
        let to = self.check_write(offset, source.len() as u64)?;
        // SAFETY: both ranges are mapped for their use; `source` is a shared borrow, so nobody writes it.
        unsafe { bytes::copy(source.as_ptr(), to.as_ptr(), source.len()) };
        self.count(source.len() as u64);
        Ok(())
    }

    /// CRC-32C (Castagnoli) of `len` bytes at `offset`. If they change meanwhile it is the CRC of some mixture.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn crc32c(&self, offset: u64, len: u64) -> Result<u32, RangeError> {
        self.crc32c_append(0, offset, len)
    }

    /// The CRC-32C of what `crc` is of, with `len` bytes at `offset` behind it.
    pub(crate) fn crc32c_append(&self, mut crc: u32, offset: u64, len: u64) -> Result<u32, RangeError> {
        self.check(offset, len)?;
        let mut scratch = [0; SCRATCH];
        let mut at = offset;
        while at < offset + len {
            let step = usize::try_from(offset + len - at).map_or(SCRATCH, |left| left.min(SCRATCH));
            self.look(at, &mut scratch[..step])?;
            crc = crc32c::crc32c_append(crc, &scratch[..step]);
            at += step as u64;
        }
        Ok(crc)
    }

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// [`RangeError::Outside`], [`RangeError::ReadOnly`].
    pub fn fill_zero(&self, offset: u64, len: u64) -> Result<(), RangeError> {
        let to = self.check_write(offset, len)?;
        let len = usize::try_from(len).map_err(|_| RangeError::Outside)?;
        // SAFETY: the range is mapped and writable.
        unsafe { bytes::zero(to.as_ptr(), len) };
        Ok(())
    }

    /// The word at `offset` as an atomic: for rings, doorbells and flags that are shared with peers and devices.
    ///
    /// # Errors
    /// [`RangeError`]: outside, misaligned, or read-only memory (an atomic can be written; see [`Self::load_u32`]).
    #[inline]
    pub fn atomic_u32(&self, offset: u64) -> Result<&AtomicU32, RangeError> {
        let word = self.check_write(offset, 4)?.cast::<AtomicU32>();
        if !word.is_aligned() {
            return Err(RangeError::Misaligned);
        }
        // SAFETY: mapped, writable and aligned; all other access is atomic too; the mapping outlives `self`'s borrow.
        Ok(unsafe { word.as_ref() })
    }

    /// The double word at `offset` as an atomic; see [`Self::atomic_u32`].
    ///
    /// # Errors
    /// As [`Self::atomic_u32`].
    #[inline]
    pub fn atomic_u64(&self, offset: u64) -> Result<&AtomicU64, RangeError> {
        let word = self.check_write(offset, 8)?.cast::<AtomicU64>();
        if !word.is_aligned() {
            return Err(RangeError::Misaligned);
        }
        // SAFETY: as in `atomic_u32`.
        Ok(unsafe { word.as_ref() })
    }

    /// The `count` double words at `offset` as atomics, for entries of rings; see [`Self::atomic_u32`].
    ///
    /// # Errors
    /// As [`Self::atomic_u32`].
    #[inline]
    pub fn atomics_u64(&self, offset: u64, count: usize) -> Result<&[AtomicU64], RangeError> {
        let bytes = count.checked_mul(8).ok_or(RangeError::Outside)?;
        let words = self.check_write(offset, bytes as u64)?.cast::<AtomicU64>();
        if !words.is_aligned() {
            return Err(RangeError::Misaligned);
        }
        // SAFETY: as in `atomic_u32`, for all of them.
        Ok(unsafe { std::slice::from_raw_parts(words.as_ptr(), count) })
    }

    /// Reads the word at `offset` with acquire ordering.
    ///
    /// # Errors
    /// [`RangeError::Outside`], [`RangeError::Misaligned`].
    #[inline]
    pub fn load_u32(&self, offset: u64) -> Result<u32, RangeError> {
        let word = self.check(offset, 4)?.cast::<AtomicU32>();
        if !word.is_aligned() {
            return Err(RangeError::Misaligned);
        }
        // SAFETY: mapped and aligned, all access is atomic; a load does not need the memory to be writable.
        Ok(unsafe { word.as_ref() }.load(Ordering::Acquire))
    }

    /// Reads the double word at `offset` with acquire ordering.
    ///
    /// # Errors
    /// As [`Self::load_u32`].
    #[inline]
    pub fn load_u64(&self, offset: u64) -> Result<u64, RangeError> {
        let word = self.check(offset, 8)?.cast::<AtomicU64>();
        if !word.is_aligned() {
            return Err(RangeError::Misaligned);
        }
        // SAFETY: as in `load_u32`.
        Ok(unsafe { word.as_ref() }.load(Ordering::Acquire))
    }

    /// Writes the word at `offset` with release ordering.
    ///
    /// # Errors
    /// [`RangeError`].
    #[inline]
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), RangeError> {
        self.atomic_u32(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Writes the double word at `offset` with release ordering.
    ///
    /// # Errors
    /// [`RangeError`].
    #[inline]
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), RangeError> {
        self.atomic_u64(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Hints that the bytes from `offset` on will be read soon; a hint outside the memory is ignored.
    #[inline]
    pub fn prefetch(&self, offset: u64) {
        if let Ok(from) = self.check(offset, 1) {
            // SAFETY: the byte is mapped.
            unsafe { bytes::prefetch(from.as_ptr()) };
        }
    }

    /// Hints that the line at `offset` will be written soon; a hint outside the memory is ignored.
    pub(crate) fn prefetch_write(&self, offset: u64) {
        if let Ok(to) = self.check_write(offset, 1) {
            // SAFETY: the byte is mapped.
            unsafe { bytes::prefetch_write(to.as_ptr()) };
        }
    }

    /// [`Self::read`] without counting: for bytes that are looked at, not moved on.
    pub(crate) fn look(&self, offset: u64, target: &mut [u8]) -> Result<(), RangeError> {
        let from = self.check(offset, target.len() as u64)?;
        // SAFETY: both ranges are mapped for their use, and `target` is borrowed exclusively.
        unsafe { bytes::copy(from.as_ptr(), target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    #[inline]
    fn check(&self, offset: u64, len: u64) -> Result<NonNull<u8>, RangeError> {
        let end = offset.checked_add(len).ok_or(RangeError::Outside)?;
        if end > self.0.len {
            return Err(RangeError::Outside);
        }
        let offset = usize::try_from(offset).map_err(|_| RangeError::Outside)?;
        // SAFETY: `offset` is at most `len`, which lies in the mapping.
        Ok(unsafe { self.0.start.add(offset) })
    }

    #[inline]
    fn check_write(&self, offset: u64, len: u64) -> Result<NonNull<u8>, RangeError> {
        let start = self.check(offset, len)?;
        if self.0.writable { Ok(start) } else { Err(RangeError::ReadOnly) }
    }

    fn count(&self, bytes: u64) {
        let copied = self.0.copied.load(Ordering::Relaxed);
        self.0.copied.store(copied.wrapping_add(bytes), Ordering::Relaxed);
    }
}

/// Copies `len` bytes from one memory to another and counts them at `to`. If the ranges overlap, which bytes end up in
/// the overlap is not specified.
///
/// # Errors
/// [`RangeError::Outside`] for either side, [`RangeError::ReadOnly`] for `to`. No byte was moved.
#[inline]
pub fn copy(from: &Memory, from_offset: u64, to: &Memory, to_offset: u64, len: u64) -> Result<(), RangeError> {
    let source = from.check(from_offset, len)?;
    let target = to.check_write(to_offset, len)?;
    let bytes = usize::try_from(len).map_err(|_| RangeError::Outside)?;
    // SAFETY: both ranges are mapped for their use.
    unsafe { bytes::copy(source.as_ptr(), target.as_ptr(), bytes) };
    to.count(len);
    Ok(())
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("id", &self.0.id.0)
            .field("len", &self.0.len)
            .field("fd", &self.0.fd.as_ref().map(AsRawFd::as_raw_fd))
            .field("writable", &self.0.writable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
