//! Commands of hosts, parsed once: what they ask for, or the status that the specification gives them (NVM Command Set 1.0, section 3).

use dyad_backend::raid::GroupError;
use dyad_cache::CacheError;
use dyad_nvme::capsule::CommandCapsule;
use dyad_nvme::identify::cns;
use dyad_nvme::opcode::{admin, nvm};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry};

/// The longest read or write in blocks (MDTS): what a capsule's list of data blocks can name frame by frame.
pub const TRANSFER_BLOCKS_MAX: u64 = 16;

/// The namespace that hosts see: one volume.
pub const NAMESPACE: NamespaceId = NamespaceId(1);

/// A valid command.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum HostCommand {
    /// Blocks to the host.
    Read {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
    },
    /// Blocks from the host.
    Write {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: BlockCount,
        /// Answered when they are on media.
        fua: bool,
    },
    /// Everything answered so far to media.
    Flush,
    /// What the namespace is.
    IdentifyNamespace,
}

impl HostCommand {
    /// The command in a capsule, for a volume of `size`.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn parse(capsule: &CommandCapsule, size: BlockCount) -> Result<Self, Status> {
        let entry = &capsule.command;
        let data_bytes: u64 = capsule.data.iter().map(|block| u64::from(block.len)).sum();
        // Identify shares its opcode with no I/O command that is known here, so the `vi` port needs no admin queue yet.
        if entry.opcode() == admin::IDENTIFY {
            let known = entry.dword(10) & 0xff == u32::from(cns::NAMESPACE);
            return match (known, entry.namespace() == NAMESPACE, data_bytes == BLOCK_BYTES as u64) {
                (false, _, _) => Err(Status::INVALID_FIELD),
                (_, false, _) => Err(Status::INVALID_NAMESPACE),
                (_, _, false) => Err(Status::SGL_LENGTH_INVALID),
                (true, true, true) => Ok(Self::IdentifyNamespace),
            };
        }
        match entry.opcode() {
            nvm::FLUSH if entry.namespace() == NAMESPACE || entry.namespace() == NamespaceId::ALL => Ok(Self::Flush),
            nvm::READ | nvm::WRITE if entry.namespace() == NAMESPACE => {
                let (lba, blocks) = checked_range(entry, size, data_bytes)?;
                Ok(if entry.opcode() == nvm::READ {
                    Self::Read { lba, blocks }
                } else {
                    Self::Write { lba, blocks, fua: entry.fua() }
                })
            }
            nvm::FLUSH | nvm::READ | nvm::WRITE => Err(Status::INVALID_NAMESPACE),
            _ => Err(Status::INVALID_OPCODE.with_do_not_retry()),
        }
    }
}

fn checked_range(entry: &SubmissionEntry, size: BlockCount, data_bytes: u64) -> Result<(Lba, BlockCount), Status> {
    let (lba, blocks) = (entry.lba(), entry.block_count());
    if blocks.0 > TRANSFER_BLOCKS_MAX {
        return Err(Status::INVALID_FIELD);
    }
    if lba.0.checked_add(blocks.0).is_none_or(|end| end > size.0) {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    if data_bytes != blocks.bytes() {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    Ok((lba, blocks))
}

/// The status of a command that was not done; `None` if there is nobody to answer.
#[must_use]
pub fn failure_status(error: CacheError, write: bool) -> Option<Status> {
    Some(match error {
        CacheError::Host => return None,
        CacheError::NotHome => Status::ANA_INACCESSIBLE,
        CacheError::Undecided => Status::ANA_TRANSITION,
        CacheError::Group(GroupError::Media) if write => Status::WRITE_FAULT,
        CacheError::Group(GroupError::Media) => Status::UNRECOVERED_READ,
        CacheError::Group(_) | CacheError::Vault(_) => Status::INTERNAL_ERROR,
        CacheError::Credits => Status::INVALID_FIELD.with_do_not_retry(),
        CacheError::OutOfRange => Status::LBA_OUT_OF_RANGE,
        CacheError::PersistentLoss => Status::ANA_PERSISTENT_LOSS,
    })
}

#[cfg(test)]
mod tests {
    use dyad_nvme::capsule::DataBlock;

    use super::*;

    const SIZE: BlockCount = BlockCount(100);

    fn parse(command: SubmissionEntry, data: &[u32]) -> Result<HostCommand, Status> {
        let data = data.iter().map(|len| DataBlock { offset: 0, len: *len }).collect();
        HostCommand::parse(&CommandCapsule { command, sequence: 1, oldest: 1, data }, SIZE)
    }

    #[test]
    fn every_bad_field_has_its_status() {
        let read = |lba, blocks| SubmissionEntry::read(NAMESPACE, Lba(lba), BlockCount(blocks));
        assert_eq!(parse(read(99, 1), &[4096]), Ok(HostCommand::Read { lba: Lba(99), blocks: BlockCount(1) }));
        assert_eq!(parse(read(99, 2), &[8192]), Err(Status::LBA_OUT_OF_RANGE));
        assert_eq!(parse(read(u64::MAX, 1), &[4096]), Err(Status::LBA_OUT_OF_RANGE));
        assert_eq!(parse(read(0, 17), &[17 * 4096]), Err(Status::INVALID_FIELD));
        assert_eq!(parse(read(0, 2), &[4096]), Err(Status::SGL_LENGTH_INVALID));
        assert_eq!(parse(read(0, 2), &[4096, 4096]), Ok(HostCommand::Read { lba: Lba(0), blocks: BlockCount(2) }));
        assert_eq!(
            parse(SubmissionEntry::read(NamespaceId(2), Lba(0), BlockCount(1)), &[4096]),
            Err(Status::INVALID_NAMESPACE)
        );
        assert_eq!(parse(SubmissionEntry::flush(NamespaceId::ALL), &[]), Ok(HostCommand::Flush));
        assert_eq!(parse(SubmissionEntry::new(0x55, NAMESPACE), &[]), Err(Status::INVALID_OPCODE.with_do_not_retry()));
        assert_eq!(
            parse(SubmissionEntry::identify(cns::CONTROLLER, NAMESPACE, 0), &[4096]),
            Err(Status::INVALID_FIELD)
        );
    }
}
