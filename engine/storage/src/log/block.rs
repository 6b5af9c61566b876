//! Blocks of the log and its header. `FORMAT.md`, "Log".

use crate::codec::Fields;
use crate::page::Stamp;
use crate::port::BLOCK_BYTES;

/// Bytes in front of a block's content.
pub(crate) const BLOCK_HEADER: usize = 24;
const MAGIC: &[u8; 8] = b"DYADLOG1";

/// What the header of a log says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stamp: Stamp,
    /// How often the log was opened for writing.
    pub(crate) generation: u32,
    /// Blocks that the log goes round in.
    pub(crate) capacity: u64,
}

/// The checksum of a block of the log of the database `stamp`.
fn checksum(stamp: Stamp, block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&stamp.0.to_le_bytes()), &block[4..])
}

impl Header {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        block[8..16].copy_from_slice(MAGIC);
        block[16..24].copy_from_slice(&self.stamp.0.to_le_bytes());
        block[24..32].copy_from_slice(&self.capacity.to_le_bytes());
        block[32..36].copy_from_slice(&self.generation.to_le_bytes());
        let crc = checksum(self.stamp, &block);
        block[..4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        let mut fields = Fields(block);
        let crc = fields.u32()?;
        let (_, magic, stamp) = (fields.u32()?, fields.bytes(8)?, Stamp(fields.u64()?));
        let (capacity, generation) = (fields.u64()?, fields.u32()?);
        let good = magic == MAGIC && block.len() == BLOCK_BYTES && crc == checksum(stamp, block) && capacity > 0;
        good.then_some(Self { stamp, generation, capacity })
    }
}

/// What the header of a block says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct BlockHead {
    pub(crate) generation: u32,
    /// Blocks since the log began; it goes round, this does not.
    pub(crate) number: u64,
    /// Bytes of the block that are in use, the header's included.
    pub(crate) used: usize,
}

impl BlockHead {
    /// Writes the header of a block whose content is there.
    pub(crate) fn seal(self, stamp: Stamp, block: &mut [u8]) {
        block[4..8].copy_from_slice(&self.generation.to_le_bytes());
        block[8..16].copy_from_slice(&self.number.to_le_bytes());
        let used = u16::try_from(self.used).expect("at most a block");
        block[16..18].copy_from_slice(&used.to_le_bytes());
        let crc = checksum(stamp, block);
        block[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header of a block of the log of the database `stamp`; `None` if it is none.
    pub(crate) fn open(stamp: Stamp, block: &[u8]) -> Option<Self> {
        let mut fields = Fields(block);
        let crc = fields.u32()?;
        let head = Self { generation: fields.u32()?, number: fields.u64()?, used: usize::from(fields.u16()?) };
        let good = crc == checksum(stamp, block) && (BLOCK_HEADER..=BLOCK_BYTES).contains(&head.used);
        good.then_some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_headers_refuse_every_damaged_byte_and_other_databases() {
        let (stamp, other) = (Stamp(5), Stamp(6));
        let header = Header { stamp, generation: 3, capacity: 100 };
        let mut block = vec![7; BLOCK_BYTES];
        block[..BLOCK_HEADER].fill(0);
        let head = BlockHead { generation: 3, number: 99, used: 1000 };
        head.seal(stamp, &mut block);
        assert_eq!(block[4..18], [3, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3]);
        assert_eq!((BlockHead::open(stamp, &block), BlockHead::open(other, &block)), (Some(head), None));
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        assert_eq!(bytes[8..36], *b"DYADLOG1\x05\0\0\0\0\0\0\0\x64\0\0\0\0\0\0\0\x03\0\0\0");
        for at in (0..BLOCK_BYTES).filter(|at| *at < 64 || at % 97 == 0) {
            block[at] ^= 4;
            bytes[at] ^= 4;
            assert_eq!((BlockHead::open(stamp, &block), Header::decode(&bytes)), (None, None), "byte {at}");
            block[at] ^= 4;
            bytes[at] ^= 4;
        }
    }
}
