//! NVMe-oF capsules of the `vi` transport (our own transport binding; NVMe over Fabrics, "Capsules").
//!
//! A command capsule names the host memory that the director reads from or writes to by RDMA: a list of keyed data
//! blocks, each an offset in the region that the host named when it connected. Little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..64 | submission queue entry; its SGL entry is a last segment descriptor for the list below |
//! | 64..72 | the host's number of the command: the same when it is sent again on another path (PROTOCOLS 9.1) |
//! | 72..80 | the lowest number that the host has not seen answered |
//! | 80.. | keyed SGL data block descriptors, 16 bytes each, at most [`DATA_BLOCKS_MAX`] |
//!
//! A response capsule is the completion queue entry.
//!
//! Connecting (private data of the connection): host identifier 16, session generation 8, region key 8, queue depth 2.
//! The answer: director 1, reserved 1, queue depth 2, incarnation of the director 4.

use crate::bytes;
use crate::command::SubmissionEntry;
use crate::sgl::{Sgl, SglDescriptor};
use crate::types::HostId;

/// Most pieces of host memory in one command.
pub const DATA_BLOCKS_MAX: usize = 16;

/// Bytes before the list of data blocks.
pub const HEADER_BYTES: usize = 80;

/// Longest command capsule.
pub const COMMAND_BYTES_MAX: usize = HEADER_BYTES + DATA_BLOCKS_MAX * SglDescriptor::BYTES;

/// A piece of the host's region.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct DataBlock {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// The pieces of a command.
pub type DataBlocks = heapless::Vec<DataBlock, DATA_BLOCKS_MAX>;

/// A command with what the `vi` transport adds.
#[derive(Debug, Clone)]
pub struct CommandCapsule {
    /// The command.
    pub command: SubmissionEntry,
    /// The host's number of it.
    pub sequence: u64,
    /// The lowest number not seen answered.
    pub oldest: u64,
    /// Where its data is.
    pub data: DataBlocks,
}

/// The bytes are no command capsule.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a malformed command capsule")]
pub struct MalformedCapsule;

impl CommandCapsule {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> heapless::Vec<u8, COMMAND_BYTES_MAX> {
        let list_bytes = u32::try_from(self.data.len() * SglDescriptor::BYTES).expect("the list is short");
        let command = self.command.with_sgl(SglDescriptor::last_segment(HEADER_BYTES as u64, list_bytes));
        let mut capsule = heapless::Vec::new();
        let mut put =
            |field: &[u8]| capsule.extend_from_slice(field).expect("COMMAND_BYTES_MAX holds the longest capsule");
        put(command.as_bytes());
        put(&self.sequence.to_le_bytes());
        put(&self.oldest.to_le_bytes());
        for block in &self.data {
            put(&SglDescriptor::keyed(block.offset, block.len, 0).to_bytes());
        }
        capsule
    }

    /// The capsule in `message`.
    ///
    /// # Errors
    /// When it is none: wrong length, another SGL form.
    pub fn decode(message: &[u8]) -> Result<Self, MalformedCapsule> {
        let (header, list) = message.split_at_checked(HEADER_BYTES).ok_or(MalformedCapsule)?;
        let command = SubmissionEntry::from_bytes(bytes::array(header, 0));
        let (descriptors, rest) = list.as_chunks::<{ SglDescriptor::BYTES }>();
        if !rest.is_empty() {
            return Err(MalformedCapsule);
        }
        let mut data = DataBlocks::new();
        for descriptor in descriptors {
            let Some(Sgl::Keyed { address, len, .. }) = SglDescriptor::from_bytes(*descriptor).parse() else {
                return Err(MalformedCapsule);
            };
            data.push(DataBlock { offset: address, len }).map_err(|_| MalformedCapsule)?;
        }
        Ok(Self { command, sequence: bytes::u64_at(header, 64), oldest: bytes::u64_at(header, 72), data })
    }
}

/// What a host says when it connects.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Who.
    pub host: HostId,
    /// Raised before anything is sent again on another path (PROTOCOLS 9.3).
    pub generation: u64,
    /// Key of the region with the host's buffers.
    pub region: u64,
    /// Commands it wants to have outstanding.
    pub depth: u16,
}

impl ConnectRequest {
    /// Length of the encoding.
    pub const BYTES: usize = 34;

    /// The private data to send.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut data = [0; Self::BYTES];
        bytes::put(&mut data, 0, &self.host.0);
        bytes::put(&mut data, 16, &self.generation.to_le_bytes());
        bytes::put(&mut data, 24, &self.region.to_le_bytes());
        bytes::put(&mut data, 32, &self.depth.to_le_bytes());
        data
    }

    /// The request in `data`, if it is one.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let data: &[u8; Self::BYTES] = data.try_into().ok()?;
        Some(Self {
            host: HostId(bytes::array(data, 0)),
            generation: bytes::u64_at(data, 16),
            region: bytes::u64_at(data, 24),
            depth: bytes::u16_at(data, 32),
        })
    }
}

/// What a director says when it accepts.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ConnectAnswer {
    /// Which director of the pair.
    pub director: u8,
    /// Commands that may be outstanding.
    pub depth: u16,
    /// Which run of it.
    pub incarnation: u32,
}

impl ConnectAnswer {
    /// Length of the encoding.
    pub const BYTES: usize = 8;

    /// The private data to send.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut data = [0; Self::BYTES];
        data[0] = self.director;
        bytes::put(&mut data, 2, &self.depth.to_le_bytes());
        bytes::put(&mut data, 4, &self.incarnation.to_le_bytes());
        data
    }

    /// The answer in `data`, if it is one.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let data: &[u8; Self::BYTES] = data.try_into().ok()?;
        Some(Self { director: data[0], depth: bytes::u16_at(data, 2), incarnation: bytes::u32_at(data, 4) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlockCount, Lba, NamespaceId};

    #[test]
    fn capsules_return_and_cut_ones_do_not() {
        let data = (0..16).map(|i| DataBlock { offset: i * 4096, len: 4096 }).collect();
        let command = SubmissionEntry::write(NamespaceId(1), Lba(5), BlockCount(16), false);
        let capsule = CommandCapsule { command, sequence: 77, oldest: 70, data };
        let bytes = capsule.encode();
        let back = CommandCapsule::decode(&bytes).unwrap();
        assert_eq!((back.sequence, back.oldest, &back.data), (77, 70, &capsule.data));
        assert_eq!((back.command.lba(), back.command.block_count()), (Lba(5), BlockCount(16)));
        for len in (0..bytes.len()).filter(|len| *len < HEADER_BYTES || !(len - HEADER_BYTES).is_multiple_of(16)) {
            assert!(CommandCapsule::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let request = ConnectRequest { host: HostId([3; 16]), generation: 4, region: 5, depth: 6 };
        assert_eq!(ConnectRequest::decode(&request.encode()), Some(request));
        assert_eq!(ConnectRequest::decode(&[0; 33]), None);
        let answer = ConnectAnswer { director: 1, depth: 32, incarnation: 9 };
        assert_eq!(ConnectAnswer::decode(&answer.encode()), Some(answer));
    }
}
