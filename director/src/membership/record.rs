//! The pair's record: the one thing about a pair that the registry decides (PROTOCOLS 2.1, 4).
//!
//! Stored under the key `pair`, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | magic `DYPR` |
//! | 4..6 | format version, 1 |
//! | 6 | state: 0 down, 1 both, 2 solo settling, 3 solo settled |
//! | 7 | director that is home (both) or alone (solo); 0 in down |
//! | 8..16 | epoch |
//! | 16..20, 20..24 | incarnation of director 0, of director 1; zero: never a member |
//! | 24..32 | nonce of the change that wrote this record |
//! | 32..36 | CRC-32C of bytes 0..32 |

use dyad_cache::Epoch;

/// Length of an encoded record.
pub const RECORD_BYTES: usize = 36;

const MAGIC: [u8; 4] = *b"DYPR";
const FORMAT: u16 = 1;

/// One of the two directors of a pair.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DirectorId {
    /// The director that connects, and that is home when both start anew.
    A,
    /// The director that listens.
    B,
}

impl DirectorId {
    /// The other one.
    #[must_use]
    pub const fn partner(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub const fn index(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// The director with that index.
    #[must_use]
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::A),
            1 => Some(Self::B),
            _ => None,
        }
    }
}

/// One run of a director process. Zero is none.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct Incarnation(pub u32);

/// Who serves.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum PairState {
    /// Nobody, and nobody has anything in memory.
    Down,
    /// Both; `home` serves the group and the other mirrors.
    Both {
        /// The home of the group.
        home: DirectorId,
    },
    /// One.
    Solo {
        /// Which.
        holder: DirectorId,
        /// Everything acknowledged is on media or in the vault.
        settled: bool,
    },
}

/// The record.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PairRecord {
    /// Number of this ownership.
    pub epoch: Epoch,
    /// Who serves.
    pub state: PairState,
    /// The incarnations that this is about.
    pub members: [Incarnation; 2],
    /// Which attempt wrote it: tells a change with an unknown outcome from somebody else's.
    pub nonce: u64,
}

/// The bytes are no pair record of a version that we know.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pair's record in the registry is damaged or of another version")]
pub struct BadRecord;

impl PairRecord {
    /// The record of a pair that never ran.
    #[must_use]
    pub const fn initial() -> Self {
        Self { epoch: Epoch(0), state: PairState::Down, members: [Incarnation(0); 2], nonce: 0 }
    }

    /// The incarnation of `director` that the record is about.
    #[must_use]
    pub const fn member(&self, director: DirectorId) -> Incarnation {
        match director {
            DirectorId::A => self.members[0],
            DirectorId::B => self.members[1],
        }
    }

    /// The bytes to store.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let (state, director) = match self.state {
            PairState::Down => (0, 0),
            PairState::Both { home } => (1, home.index()),
            PairState::Solo { holder, settled: false } => (2, holder.index()),
            PairState::Solo { holder, settled: true } => (3, holder.index()),
        };
        let mut bytes = [0; RECORD_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&FORMAT.to_le_bytes());
        put(&[state, director]);
        put(&self.epoch.0.to_le_bytes());
        put(&self.members[0].0.to_le_bytes());
        put(&self.members[1].0.to_le_bytes());
        put(&self.nonce.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The record in `bytes`.
    ///
    /// # Errors
    /// When they are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().map_err(|_| BadRecord)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if bytes[..4] != MAGIC || version != FORMAT || word(32) != crc32c::crc32c(&bytes[..32]) {
            return Err(BadRecord);
        }
        let director = DirectorId::from_index(bytes[7]).ok_or(BadRecord)?;
        let state = match bytes[6] {
            0 => PairState::Down,
            1 => PairState::Both { home: director },
            2 => PairState::Solo { holder: director, settled: false },
            3 => PairState::Solo { holder: director, settled: true },
            _ => return Err(BadRecord),
        };
        let members = [Incarnation(word(16)), Incarnation(word(20))];
        Ok(Self { epoch: Epoch(long(8)), state, members, nonce: long(24) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_return_and_damage_is_seen() {
        for state in [
            PairState::Down,
            PairState::Both { home: DirectorId::B },
            PairState::Solo { holder: DirectorId::A, settled: false },
            PairState::Solo { holder: DirectorId::B, settled: true },
        ] {
            let record = PairRecord { epoch: Epoch(7), state, members: [Incarnation(8), Incarnation(9)], nonce: 10 };
            let bytes = record.encode();
            assert_eq!(PairRecord::decode(&bytes), Ok(record));
            for at in 0..RECORD_BYTES {
                let mut damaged = bytes;
                damaged[at] ^= 0x10;
                assert_eq!(PairRecord::decode(&damaged), Err(BadRecord), "byte {at}");
            }
        }
        assert_eq!(PairRecord::decode(&[0; 4]), Err(BadRecord));
    }
}
