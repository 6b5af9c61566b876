//! What two directors tell each other when they connect: the private data of both VIs, in both directions. Little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | version of everything that partners say to each other, 3 |
//! | 2 | director |
//! | 3 | 0 |
//! | 4..8 | incarnation |
//! | 8..24 | the array's UUID |
//! | 24..32 | key of the mirror region that the receiver may write to |
//! | 32..36 | frames in it |

use dyad_matrix::provider::RegionHandle;

use crate::membership::{DirectorId, Incarnation};

const VERSION: u16 = 3;

/// Length of the encoding.
pub(super) const HELLO_BYTES: usize = 36;

/// One director, as it presents itself to its partner.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Which of the pair.
    pub(super) director: DirectorId,
    /// Which run of it.
    pub(super) incarnation: Incarnation,
    /// Of which array.
    pub(super) array: [u8; 16],
    /// Where the partner may mirror to.
    pub(super) region: RegionHandle,
    /// How many frames.
    pub(super) frames: u32,
}

impl Hello {
    /// The private data.
    #[must_use]
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
        bytes[2] = self.director.index();
        bytes[4..8].copy_from_slice(&self.incarnation.0.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.array);
        bytes[24..32].copy_from_slice(&self.region.to_key().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.frames.to_le_bytes());
        bytes
    }

    /// The hello in `bytes`, if it is one of this version.
    #[must_use]
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HELLO_BYTES] = bytes.try_into().ok()?;
        if u16::from_le_bytes([bytes[0], bytes[1]]) != VERSION {
            return None;
        }
        Some(Self {
            director: DirectorId::from_index(bytes[2])?,
            incarnation: Incarnation(u32::from_le_bytes(bytes[4..8].try_into().ok()?)),
            array: bytes[8..24].try_into().ok()?,
            region: RegionHandle::from_key(u64::from_le_bytes(bytes[24..32].try_into().ok()?)),
            frames: u32::from_le_bytes(bytes[32..36].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_return_and_others_do_not() {
        let region = RegionHandle { incarnation: 5, index: 6 };
        let hello = Hello { director: DirectorId::B, incarnation: Incarnation(5), array: [7; 16], region, frames: 8 };
        let mut bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Some(hello));
        assert_eq!(Hello::decode(&bytes[1..]), None);
        bytes[0] = 1;
        assert_eq!(Hello::decode(&bytes), None, "another version");
    }
}
