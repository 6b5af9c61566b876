//! End-to-end protection information with a 16-bit guard (NVM 5.2.1.1): eight bytes of metadata per block.

/// Guard (0..2), application tag (2..4), reference tag (4..8), all big-endian as T10 defined them.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Protection {
    /// CRC of the block's data.
    pub guard: u16,
    /// The host's own; FFFFh switches checks off.
    pub application_tag: u16,
    /// Type 1: the low 32 bits of the block's address.
    pub reference_tag: u32,
}

/// An application tag that switches the checks of its block off (types 1 and 2).
pub const UNCHECKED: u16 = 0xffff;

impl Protection {
    /// Size on the wire.
    pub const BYTES: usize = 8;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&self.guard.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.application_tag.to_be_bytes());
        bytes[4..].copy_from_slice(&self.reference_tag.to_be_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::BYTES]) -> Self {
        Self {
            guard: u16::from_be_bytes([b[0], b[1]]),
            application_tag: u16::from_be_bytes([b[2], b[3]]),
            reference_tag: u32::from_be_bytes([b[4], b[5], b[6], b[7]]),
        }
    }
}

const POLYNOMIAL: u16 = 0x8bb7;

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0_u16;
    while index < 256 {
        let mut crc = index << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ POLYNOMIAL } else { crc << 1 };
            bit += 1;
        }
        table[index as usize] = crc;
        index += 1;
    }
    table
};

/// The 16-bit guard of `data`: CRC-16/T10-DIF.
#[must_use]
pub fn guard(data: &[u8]) -> u16 {
    data.iter().fold(0, |crc, byte| {
        let [high, low] = crc.to_be_bytes();
        TABLE[usize::from(high ^ byte)] ^ u16::from_be_bytes([low, 0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_crc_16_t10_dif() {
        assert_eq!(guard(b"123456789"), 0xd0db, "the check value of the CRC catalogue");
        assert_eq!(guard(&[0; 4096]), 0);
    }

    #[test]
    fn tuples_survive_the_wire() {
        let tuple = Protection { guard: 0x1234, application_tag: 0x5678, reference_tag: 0x9abc_def0 };
        assert_eq!(tuple.to_bytes(), [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0]);
        assert_eq!(Protection::from_bytes(&tuple.to_bytes()), tuple);
    }
}
