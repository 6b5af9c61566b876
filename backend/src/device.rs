//! What a device is to everything above it: blocks at addresses, and reservations that fence (PROTOCOLS 5).

use std::future::Future;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BlockCount, Lba, NamespaceId};

/// Identifies the medium, through whichever controller it is reached: the namespace's UUID (Identify, CNS 03h).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub [u8; 16]);

/// What a device is, read once when it was attached.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The medium.
    pub id: DeviceId,
    /// The namespace at its controller.
    pub namespace: NamespaceId,
    /// Size in blocks of 4 KiB.
    pub blocks: BlockCount,
    /// Most blocks that one read or write may name.
    pub transfer_blocks_max: BlockCount,
    /// Commands that may be outstanding.
    pub queue_depth: u16,
    /// A write may be lost with power until a flush, or FUA.
    pub volatile_cache: bool,
    /// It can be fenced: reservations with persistence.
    pub reservations: bool,
}

/// One command. Segments are page-aligned pieces of memory that was mapped with [`Device::map`], together exactly as long as the blocks.
#[derive(Debug, Copy, Clone)]
pub enum Io<'a> {
    /// Blocks into memory.
    Read {
        /// First block.
        lba: Lba,
        /// Where to.
        segments: &'a [Segment],
    },
    /// Memory onto blocks.
    Write {
        /// First block.
        lba: Lba,
        /// Where from.
        segments: &'a [Segment],
        /// Complete only when the blocks are on non-volatile media.
        fua: bool,
    },
    /// Everything completed before is on non-volatile media when this completes.
    Flush,
    /// Blocks that read as zeros from now on.
    WriteZeroes {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
    },
}

/// Why a command was not taken. Nothing was done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// All queue entries are in use: wait for a completion.
    #[error("the device's queue is full")]
    Full,
    /// The command names blocks or memory that are not there, or is longer than the device takes.
    #[error("the command does not fit the device")]
    Invalid,
    /// The device has failed or was removed.
    #[error("the device is gone")]
    Gone,
}

/// How a command failed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// These blocks cannot be read or written; others may.
    #[error("media error")]
    Media,
    /// A reservation of somebody else stands against it: we are fenced (PROTOCOLS 5.3).
    #[error("reservation conflict: this director is fenced")]
    ReservationConflict,
    /// It was aborted, by a preempting director or by the driver's time-out ladder; it may have been done or not.
    #[error("aborted")]
    Aborted,
    /// The device refused the command as malformed: a fault of ours.
    #[error("the device refused the command")]
    Rejected,
    /// The device has failed or was removed.
    #[error("the device is gone")]
    Gone,
}

/// A registrant's key. Zero is no key.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationKey(pub u64);

/// The reservation types that directors use (NVM Command Set, "Reservation Acquire", RTYPE).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ReservationType {
    /// Only the holder writes (1h).
    WriteExclusive,
    /// Every registrant is a holder and writes (5h).
    WriteExclusiveAllRegistrants,
}

/// A change to the reservation of a namespace.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ReservationOp {
    /// Registers this host's key, replacing whatever key it had (IEKEY), with persistence through power loss.
    Register {
        /// The new key.
        key: ReservationKey,
    },
    /// Acquires the reservation; fails with a conflict if others hold it.
    Acquire {
        /// The registered key.
        key: ReservationKey,
        /// The type to hold.
        rtype: ReservationType,
    },
    /// Removes the registrants that have `victim` (all others, if the reservation is All Registrants and `victim` is zero), takes the reservation,
    /// and aborts their commands: completes when none of them can still reach the media.
    PreemptAndAbort {
        /// The registered key.
        key: ReservationKey,
        /// Whose registrations end.
        victim: ReservationKey,
        /// The type to hold.
        rtype: ReservationType,
    },
    /// The holder gives the reservation up; its registration stays.
    Release {
        /// The registered key.
        key: ReservationKey,
        /// The type held.
        rtype: ReservationType,
    },
    /// Ends this host's registration.
    Unregister {
        /// The registered key.
        key: ReservationKey,
    },
}

/// One registrant of a Reservation Report.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// Its Host Identifier.
    pub host: [u8; 16],
    /// Its key.
    pub key: ReservationKey,
    /// It holds the reservation.
    pub holder: bool,
}

/// A Reservation Report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationReport {
    /// Raw reservation type, if there is a reservation: other hosts may use types that we do not.
    pub rtype: Option<u8>,
    /// Survives power loss (PTPLS).
    pub persistent: bool,
    /// All registrants.
    pub registrants: Vec<Registrant>,
}

/// A block device that a director drives. Handles are cheap; clones are the same device.
///
/// Implementations promise:
/// - a command that was taken completes exactly once, in bounded time, with or without success; there is no order between commands outstanding together;
/// - 4 KiB aligned writes are atomic; nothing else is;
/// - memory named by a command is touched only until that command completes, whether or not anybody still awaits it:
///   **the operation table owns memory in flight**;
/// - after a reservation conflict nothing of the command was done;
/// - `submit` allocates nothing and blocks never.
pub trait Device: Clone + 'static {
    /// Resolves when the command is done. Dropping it abandons the result, not the command. It may be moved between polls.
    type Completion: Future<Output = Result<(), DeviceError>> + Unpin;

    /// What it is.
    fn info(&self) -> DeviceInfo;

    /// Lets commands name `memory`. Done at start, not per command.
    ///
    /// # Errors
    /// [`SubmitError::Gone`], or [`SubmitError::Invalid`] when the device cannot reach the memory.
    fn map(&self, memory: &Memory) -> Result<(), SubmitError>;

    /// Starts a command.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was started.
    fn submit(&self, io: Io<'_>) -> Result<Self::Completion, SubmitError>;

    /// Changes the reservation. A slow path: it may allocate.
    fn reserve(&self, op: ReservationOp) -> impl Future<Output = Result<(), DeviceError>>;

    /// Reads the reservation. A slow path: it may allocate.
    fn reservation_report(&self) -> impl Future<Output = Result<ReservationReport, DeviceError>>;
}
