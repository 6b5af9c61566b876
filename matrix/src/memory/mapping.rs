//! Where mappings come from: memory of this process, memfds, and files that other processes sent.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use super::{MemoryId, bytes, numa};

/// The size of a huge page (x86-64 and the 4 KiB granule of arm64).
pub(super) const HUGE_PAGE: u64 = 2 << 20;

/// Why memory could not be made or mapped.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No bytes were asked for.
    #[error("memory of no bytes")]
    Empty,
    /// The file of another process lacks `F_SEAL_SHRINK`: its owner could make every access fault.
    #[error("the file is not sealed against shrinking")]
    NotSealed,
    /// The file of another process is shorter than the memory it is said to hold.
    #[error("the file holds {held} bytes, fewer than the {needed} that were named")]
    TooSmall {
        /// What it holds.
        held: u64,
        /// What was asked for.
        needed: u64,
    },
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(Errno),
}

/// What to do about huge pages.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum HugePages {
    /// Use the ordinary page size.
    No,
    /// Use 2 MiB pages if enough are reserved (`vm.nr_hugepages`), else ordinary ones.
    IfAvailable,
}

/// A mapping, and what it is of.
pub(super) struct Mapping {
    pub(super) id: MemoryId,
    pub(super) start: NonNull<u8>,
    /// Bytes that may be reached.
    pub(super) len: u64,
    /// Bytes that are mapped: `len`, or the huge pages that hold it.
    mapped: NonZeroUsize,
    pub(super) fd: Option<OwnedFd>,
    pub(super) writable: bool,
    pub(super) huge_pages: bool,
    pub(super) locked: bool,
    pub(super) copied: AtomicU64,
}

// SAFETY: the mapping belongs to no thread, and all access to it goes through atomic operations (module documentation).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `mapped` are what mmap returned, and nobody can reach the bytes without a `Memory`.
        // munmap fails only for arguments that were never mapped; then there is nothing to undo.
        let _ = unsafe { munmap(self.start.cast(), self.mapped.get()) };
    }
}

impl Mapping {
    /// Memory of this process alone.
    pub(super) fn private(len: u64) -> Result<Self, MapError> {
        let mapped = mapped_len(len)?;
        // SAFETY: a fresh mapping, at a place that the kernel chooses, aliases nothing.
        let start = unsafe {
            mmap_anonymous(None, mapped, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }
        .map_err(MapError::Os)?;
        let attributes = Attributes { fd: None, writable: true, huge_pages: false, locked: false };
        Ok(Self::new(start.cast(), len, mapped, attributes))
    }

    /// A memfd, of huge pages if wanted and to be had.
    pub(super) fn memfd(name: &str, len: u64, huge_pages: HugePages, placement: Placement) -> Result<Self, MapError> {
        if huge_pages == HugePages::IfAvailable
            && let Ok(memory) = Self::memfd_of(name, len, true, placement, SealFlag::empty())
        {
            return Ok(memory);
        }
        Self::memfd_of(name, len, false, placement, SealFlag::empty())
    }

    /// A memfd of one kind of pages.
    pub(super) fn memfd_of(
        name: &str,
        len: u64,
        huge_pages: bool,
        placement: Placement,
        further_seals: SealFlag,
    ) -> Result<Self, MapError> {
        mapped_len(len)?;
        let file_len = if huge_pages { len.next_multiple_of(HUGE_PAGE) } else { len };
        let mapped = mapped_len(file_len)?;
        let page_size = if huge_pages { MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB } else { MFdFlags::empty() };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | page_size;
        let fd = memfd_create(name, flags).map_err(MapError::Os)?;
        ftruncate(&fd, i64::try_from(file_len).map_err(|_| MapError::Os(Errno::EFBIG))?).map_err(MapError::Os)?;
        // Or whoever was given it for reading could open it again for writing (/proc/self/fd).
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(MapError::Os)?;
        let start = map_file(&fd, mapped, true)?;
        // SEAL as well, or whoever gets the file could forbid further writable mappings. After our own mapping, which the
        // further seals may forbid.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL | further_seals;
        let sealed = fcntl(&fd, FcntlArg::F_ADD_SEALS(seals));
        let attributes = Attributes { fd: Some(fd), writable: true, huge_pages, locked: false };
        let mut mapping = Self::new(start, len, mapped, attributes);
        sealed.map_err(MapError::Os)?;
        if placement == Placement::Interleave {
            // SAFETY: the range was just mapped.
            unsafe { numa::interleave(start, mapped.get()) }.map_err(MapError::Os)?;
        }
        // SAFETY: the range was just mapped, for writing. Populating may fail (no memory, too few huge pages) where
        // touching would kill.
        match unsafe { madvise(start.cast(), mapped.get(), MmapAdvise::MADV_POPULATE_WRITE) } {
            // Linux before 5.14.
            // SAFETY: as above.
            Err(Errno::EINVAL) => unsafe { bytes::zero(start.as_ptr(), mapped.get()) },
            populated => populated.map_err(MapError::Os)?,
        }
        // SAFETY: as above. A refusal (RLIMIT_MEMLOCK) is reported, not an error.
        mapping.locked = unsafe { mlock(start.cast(), mapped.get()) }.is_ok();
        Ok(mapping)
    }

    /// The first bytes of a file of another process, if no access to them can fault.
    pub(super) fn of_file(fd: OwnedFd, len: u64, writable: bool) -> Result<Self, MapError> {
        mapped_len(len)?;
        // EINVAL: a kind of file that has no seals. They must be looked at before the length, or it could still change.
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS)
            .map_err(|e| if e == Errno::EINVAL { MapError::NotSealed } else { MapError::Os(e) })?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(MapError::NotSealed);
        }
        let held = u64::try_from(fstat(&fd).map_err(MapError::Os)?.st_size).unwrap_or(0);
        if held < len {
            return Err(MapError::TooSmall { held, needed: len });
        }
        let huge_pages = fstatfs(&fd).map_err(MapError::Os)?.filesystem_type() == HUGETLBFS_MAGIC;
        // Huge pages are mapped, and unmapped, as wholes.
        let mapped = mapped_len(if huge_pages { len.next_multiple_of(HUGE_PAGE) } else { len })?;
        let start = map_file(&fd, mapped, writable)?;
        Ok(Self::new(start, len, mapped, Attributes { fd: Some(fd), writable, huge_pages, locked: false }))
    }

    fn new(start: NonNull<u8>, len: u64, mapped: NonZeroUsize, attributes: Attributes) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        assert!(id != u32::MAX, "four thousand million memories in one process");
        let Attributes { fd, writable, huge_pages, locked } = attributes;
        let copied = AtomicU64::new(0);
        Self { id: MemoryId(id), start, len, mapped, fd, writable, huge_pages, locked, copied }
    }
}

/// Where pages come from.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Placement {
    Local,
    Interleave,
}

/// How a memory came about.
struct Attributes {
    fd: Option<OwnedFd>,
    writable: bool,
    huge_pages: bool,
    locked: bool,
}

/// `len` as mmap wants it: at least one byte, and few enough that pointer arithmetic cannot overflow.
fn mapped_len(len: u64) -> Result<NonZeroUsize, MapError> {
    if len > i64::MAX.unsigned_abs() {
        return Err(MapError::Os(Errno::ENOMEM));
    }
    usize::try_from(len).ok().and_then(NonZeroUsize::new).ok_or(MapError::Empty)
}

fn map_file(fd: &OwnedFd, len: NonZeroUsize, writable: bool) -> Result<NonNull<u8>, MapError> {
    let access = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
    // SAFETY: a fresh mapping at a place that the kernel chooses; the file cannot shrink below `len` (checked by the callers).
    unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, fd, 0) }.map(NonNull::cast).map_err(MapError::Os)
}
