//! A file, or a Linux block device, as a [`Device`]: for directors without a partner and machines without VFIO.
//!
//! Blocks move by `O_DIRECT` through io_uring (io_uring(7)) between the file and the memory that commands name; memory
//! is registered with the ring where the kernel lets it. Flush is `fdatasync`, FUA is `RWF_DSYNC`, Write Zeroes punches
//! holes or discards. What it cannot do: reservations (so it is never in a pair), and promise that 4 KiB are atomic
//! through a power failure; that is as good as what lies under the file.
//!
//! Rooms: `ring` is the io_uring instance with the table of commands in flight, and the only unsafe code.

mod ring;

use std::cell::RefCell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dyad_matrix::Memory;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, NamespaceId};
use dyad_reactor::Source;
use dyad_reactor::sync::Pending;

use crate::device::{Device, DeviceError, DeviceId, DeviceInfo, Io, ReservationOp, ReservationReport, SubmitError};

use self::ring::Ring;

/// Commands outstanding.
const QUEUE_DEPTH: u16 = 128;

/// Blocks, and segments, of one command at most.
const BLOCKS_MAX: usize = 256;

/// Why a file cannot be a device.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened.
    #[error("cannot open {path} for reading and writing: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Somebody else has it.
    #[error("{0} is in use by another process; stop it first, or unmount the file system on it")]
    InUse(PathBuf),
    /// It holds no block.
    #[error("{path} has {bytes} bytes; a device needs at least 4096: make it larger with `truncate -s`")]
    TooSmall {
        /// Which.
        path: PathBuf,
        /// What it holds.
        bytes: u64,
    },
    /// It is neither a file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    NotBlocks(PathBuf),
    /// The kernel gives no ring.
    #[error("io_uring is not available ({0}): the kernel is older than 5.19, or kernel.io_uring_disabled forbids it")]
    NoRing(std::io::Error),
}

/// A file or a block device. Clones are the same.
#[derive(Clone)]
pub struct BlockDevice {
    ring: Rc<RefCell<Ring>>,
    info: DeviceInfo,
}

impl BlockDevice {
    /// Opens the file at `path`, for this process alone.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (mut file, punches) = open(path)?;
        let failed = |source| OpenError::Open { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let blocks = BlockCount(bytes / BLOCK_BYTES as u64);
        if blocks.0 == 0 {
            return Err(OpenError::TooSmall { path: path.to_owned(), bytes });
        }
        let mut id = [0; 16];
        let (device, inode) = if punches { (metadata.dev(), metadata.ino()) } else { (metadata.rdev(), 0) };
        dyad_nvme::bytes::put(&mut id, 0, &device.to_be_bytes());
        dyad_nvme::bytes::put(&mut id, 8, &inode.to_be_bytes());
        let info = DeviceInfo {
            id: DeviceId(id),
            namespace: NamespaceId(1),
            blocks,
            transfer_blocks_max: BlockCount(BLOCKS_MAX as u64),
            queue_depth: QUEUE_DEPTH,
            volatile_cache: true,
            reservations: false,
        };
        let ring = Ring::new(file, punches, QUEUE_DEPTH, BLOCKS_MAX).map_err(OpenError::NoRing)?;
        Ok(Self { ring: Rc::new(RefCell::new(ring)), info })
    }

    /// Hands what was submitted to the kernel and takes completions; returns how many. Part of every turn of the reactor.
    pub fn poll(&self) -> usize {
        self.ring.borrow_mut().poll()
    }
}

/// Opens a file (true: a file, which can have holes) or a block device (false).
fn open(path: &Path) -> Result<(File, bool), OpenError> {
    let failed = |source| OpenError::Open { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_block_device() {
        // On a block device O_EXCL means that nobody else has it, not even a file system.
        let flags = libc::O_DIRECT | libc::O_EXCL;
        return match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(file) => Ok((file, false)),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(OpenError::InUse(path.to_owned())),
            Err(e) => Err(failed(e)),
        };
    }
    if !kind.is_file() {
        return Err(OpenError::NotBlocks(path.to_owned()));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        // A file system without direct I/O: slower, and the same otherwise.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        other => other,
    };
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok((file, true)),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

impl fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Device for BlockDevice {
    type Completion = Pending<Result<(), DeviceError>>;

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn map(&self, memory: &Memory) -> Result<(), SubmitError> {
        self.ring.borrow_mut().map(memory);
        Ok(())
    }

    fn submit(&self, io: Io<'_>) -> Result<Self::Completion, SubmitError> {
        let range = match io {
            Io::Read { lba, segments } | Io::Write { lba, segments, .. } => {
                let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
                Some((lba, BlockCount(bytes / BLOCK_BYTES as u64), self.info.transfer_blocks_max))
            }
            Io::WriteZeroes { lba, blocks } => Some((lba, blocks, self.info.blocks)),
            Io::Flush => None,
        };
        if let Some((lba, blocks, most)) = range {
            let end = lba.0.checked_add(blocks.0).ok_or(SubmitError::Invalid)?;
            if blocks.0 == 0 || blocks > most || end > self.info.blocks.0 {
                return Err(SubmitError::Invalid);
            }
        }
        self.ring.borrow_mut().submit(io)
    }

    /// A file has no reservations.
    async fn reserve(&self, _: ReservationOp) -> Result<(), DeviceError> {
        Err(DeviceError::Rejected)
    }

    /// A file has no reservations.
    async fn reservation_report(&self) -> Result<ReservationReport, DeviceError> {
        Err(DeviceError::Rejected)
    }
}

/// The ring, to wait for.
pub struct BlockSource {
    device: BlockDevice,
    fd: std::os::fd::OwnedFd,
}

impl BlockDevice {
    /// This device as a source of a reactor.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn source(&self) -> std::io::Result<BlockSource> {
        Ok(BlockSource { device: self.clone(), fd: self.ring.borrow().descriptor()? })
    }
}

impl fmt::Debug for BlockSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockSource").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Source for BlockSource {
    fn poll(&mut self) -> usize {
        self.device.poll()
    }

    /// A ring is readable while it has completions.
    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        Some(self.fd.as_fd())
    }
}
