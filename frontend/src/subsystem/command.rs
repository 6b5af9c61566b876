//! I/O commands, parsed once: what they ask for, or the status that the specification names (NVM Command Set 1.0, 3.2;
//! Flush: Base 7.1). After this nobody looks at the entry again.

use dyad_nvme::command::{DataPointer, Fuse, rw};
use dyad_nvme::log::AnaState;
use dyad_nvme::opcode::nvm;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, CommandId, Lba, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry, bytes};

use super::array::{Access, Array, NamespaceView};

/// Ranges of one Dataset Management command.
pub const RANGES_MAX: usize = 256;
/// Bytes of one range.
pub const RANGE_BYTES: usize = 16;

/// A valid I/O command.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct IoCommand {
    /// The host's name of it.
    pub id: CommandId,
    /// Of which namespace; [`NamespaceId::ALL`] only for Flush.
    pub namespace: NamespaceId,
    /// What is to be done.
    pub operation: Operation,
}

/// What an I/O command asks for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Blocks to the host (3.2.4). Every read is of current data, so FUA changes nothing.
    Read(Run),
    /// Blocks from the host (3.2.6); answered when they are on media if `fua`.
    Write {
        /// Which.
        run: Run,
        /// Force unit access.
        fua: bool,
    },
    /// Whether blocks are what the host sends (3.2.1).
    Compare(Run),
    /// Whether blocks can be read (3.2.7).
    Verify(Run),
    /// Zeros (3.2.8).
    WriteZeroes {
        /// Which.
        run: Run,
        /// Blocks that read as zeros when deallocated may be deallocated.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Hints about ranges (3.2.3).
    DatasetManagement {
        /// How many, 1 to [`RANGES_MAX`]; they are the data.
        ranges: u16,
        /// The host does not need their contents any more.
        deallocate: bool,
    },
    /// Everything answered so far to media.
    Flush,
}

/// Consecutive blocks of one namespace, all of which it has.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Run {
    /// First.
    pub lba: Lba,
    /// How many, at least 1.
    pub blocks: BlockCount,
}

/// Which way a command's data goes, and how much it is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Direction {
    /// There is none.
    None,
    /// Bytes from the host.
    FromHost(u32),
    /// Bytes to the host.
    ToHost(u32),
}

impl Direction {
    /// Bytes, whichever way.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::FromHost(bytes) | Self::ToHost(bytes) => bytes,
        }
    }
}

/// Bytes of so many ranges.
pub(super) fn range_list_bytes(ranges: u16) -> u32 {
    u32::from(ranges) * 16
}

/// Bytes of as many ranges as one command can have.
const RANGE_LIST_BYTES_MAX: u32 = 256 * 16;

impl Operation {
    /// The longest data that may go with it, which is longer than [`Self::direction`] says only for Dataset Management: Linux sends room
    /// for 256 ranges, however many there are (drivers/nvme/host/core.c, `nvme_setup_discard`).
    #[must_use]
    pub fn data_bytes_max(&self) -> u32 {
        match self {
            Self::DatasetManagement { .. } => RANGE_LIST_BYTES_MAX,
            _ => self.direction().bytes(),
        }
    }

    /// The data that goes with it.
    #[must_use]
    pub fn direction(&self) -> Direction {
        let of = |run: &Run| u32::try_from(run.blocks.bytes()).expect("65536 blocks at most");
        match self {
            Self::Read(run) => Direction::ToHost(of(run)),
            Self::Write { run, .. } | Self::Compare(run) => Direction::FromHost(of(run)),
            Self::DatasetManagement { ranges, .. } => Direction::FromHost(range_list_bytes(*ranges)),
            Self::Verify(_) | Self::WriteZeroes { .. } | Self::Flush => Direction::None,
        }
    }

    /// It may change what reads return.
    #[must_use]
    pub const fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. } | Self::DatasetManagement { .. })
    }

    /// The blocks that it names in the command itself.
    #[must_use]
    pub const fn run(&self) -> Option<Run> {
        match self {
            Self::Read(run)
            | Self::Write { run, .. }
            | Self::Compare(run)
            | Self::Verify(run)
            | Self::WriteZeroes { run, .. } => Some(*run),
            Self::DatasetManagement { .. } | Self::Flush => None,
        }
    }
}

/// What the commands of one controller are held against.
#[derive(Debug, Copy, Clone)]
pub(super) struct Limits<'a> {
    pub(super) array: &'a Array,
    pub(super) access: &'a Access,
    /// MDTS in blocks.
    pub(super) transfer_max: BlockCount,
}

/// The command in an entry of an I/O queue.
///
/// # Errors
/// The status to answer with.
pub(super) fn parse(entry: &SubmissionEntry, limits: Limits<'_>) -> Result<IoCommand, Status> {
    const INVALID_FIELD: Status = Status::INVALID_FIELD.with_do_not_retry();
    // Fused operations are not offered (FUSES = 0), and on fabrics data is named by SGLs only (NVMe over Fabrics 1.1, 2.3.1).
    if entry.fuse() != Some(Fuse::Normal) || !matches!(entry.data_pointer(), Some(DataPointer::Sgl)) {
        return Err(INVALID_FIELD);
    }
    let id = entry.command();
    if entry.opcode() == nvm::FLUSH && entry.namespace() == NamespaceId::ALL {
        return Ok(IoCommand { id, namespace: NamespaceId::ALL, operation: Operation::Flush });
    }
    let known = matches!(
        entry.opcode(),
        nvm::FLUSH | nvm::READ | nvm::WRITE | nvm::COMPARE | nvm::WRITE_ZEROES | nvm::VERIFY | nvm::DATASET_MANAGEMENT
    );
    if !known {
        return Err(Status::INVALID_OPCODE.with_do_not_retry());
    }
    let namespace = visible(entry.namespace(), limits.array, limits.access)?;
    // Path errors are to be retried on another path at once: no DNR.
    match limits.array.state(namespace.group) {
        // While it is decided who serves, commands wait, for ANATT at most (PROTOCOLS 12.3).
        Some(AnaState::Optimized | AnaState::NonOptimized | AnaState::Change) => {}
        Some(AnaState::Inaccessible) | None => return Err(Status::ANA_INACCESSIBLE),
        Some(AnaState::PersistentLoss) => return Err(Status::ANA_PERSISTENT_LOSS),
    }
    let run = |limit: BlockCount| checked_run(entry, namespace, limit);
    let unlimited = BlockCount(rw::BLOCKS_MAX);
    let operation = match entry.opcode() {
        nvm::READ => Operation::Read(run(limits.transfer_max)?),
        nvm::WRITE => {
            // Directives are not offered (Base 8.7): their type must be zero.
            if entry.dword(12) & 0xf << 20 != 0 {
                return Err(INVALID_FIELD);
            }
            Operation::Write { run: run(limits.transfer_max)?, fua: entry.fua() }
        }
        nvm::COMPARE => Operation::Compare(run(limits.transfer_max)?),
        nvm::VERIFY => Operation::Verify(run(unlimited)?),
        nvm::WRITE_ZEROES => Operation::WriteZeroes {
            run: run(unlimited)?,
            deallocate: entry.dword(12) & rw::DEALLOCATE != 0,
            fua: entry.fua(),
        },
        nvm::DATASET_MANAGEMENT => Operation::DatasetManagement {
            ranges: u16::from(entry.dword(10).to_le_bytes()[0]) + 1,
            deallocate: entry.dword(11) & 1 << 2 != 0,
        },
        _ => Operation::Flush,
    };
    Ok(IoCommand { id, namespace: namespace.id, operation })
}

/// The namespace that a host names, if it may see it.
pub(super) fn visible<'a>(id: NamespaceId, array: &'a Array, access: &Access) -> Result<&'a NamespaceView, Status> {
    let found = array.namespace(id).filter(|namespace| access.allows(namespace.id));
    found.ok_or(Status::INVALID_NAMESPACE.with_do_not_retry())
}

fn checked_run(entry: &SubmissionEntry, namespace: &NamespaceView, limit: BlockCount) -> Result<Run, Status> {
    let (lba, blocks) = (entry.lba(), entry.block_count());
    if blocks > limit {
        return Err(Status::INVALID_FIELD.with_do_not_retry());
    }
    if lba.0.checked_add(blocks.0).is_none_or(|end| end > namespace.blocks.0) {
        return Err(Status::LBA_OUT_OF_RANGE.with_do_not_retry());
    }
    Ok(Run { lba, blocks })
}

/// A range of a Dataset Management command: context attributes (0..4), blocks (4..8), first block (8..16). `None` if it names no block.
///
/// # Errors
/// It reaches beyond `size` blocks.
pub(super) fn parse_range(range: &[u8; RANGE_BYTES], size: BlockCount) -> Result<Option<Run>, Status> {
    let (blocks, lba) = (bytes::u32_at(range, 4), Lba(bytes::u64_at(range, 8)));
    let blocks = BlockCount(u64::from(blocks));
    if lba.0.checked_add(blocks.0).is_none_or(|end| end > size.0) {
        return Err(Status::LBA_OUT_OF_RANGE.with_do_not_retry());
    }
    Ok((blocks.0 > 0).then_some(Run { lba, blocks }))
}

const _: () = assert!(RANGES_MAX * RANGE_BYTES == BLOCK_BYTES, "all ranges fill one frame");
