//! What partners say to each other on the membership VI. Little-endian:
//!
//! | bytes | heartbeat (kind 1) | grant (kind 2) |
//! |---|---|---|
//! | 0 | kind | kind |
//! | 1..4 | 0 | 0 |
//! | 4..8 | sender's incarnation | sender's incarnation |
//! | 8..16 | sender's epoch | sender's epoch |
//! | 16..24 | stamp: the sender's clock, ns | the stamp that this answers |

use dyad_cache::Epoch;
use dyad_reactor::Time;

use super::record::Incarnation;

/// A message of the membership VI.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum PeerMessage {
    /// I am alive, in this epoch; grant me a lease.
    Heartbeat {
        /// Who says so.
        from: Incarnation,
        /// Its epoch; zero when it is no member.
        epoch: Epoch,
        /// When it said so, by its clock.
        stamp: Time,
    },
    /// The lease asked for with `stamp` is granted: it runs from then (PROTOCOLS 4.1).
    Grant {
        /// Who says so.
        from: Incarnation,
        /// In which epoch.
        epoch: Epoch,
        /// The stamp of the heartbeat.
        stamp: Time,
    },
}

/// Length of every message.
pub const MESSAGE_BYTES: usize = 24;

impl PeerMessage {
    /// The bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, from, epoch, stamp) = match self {
            Self::Heartbeat { from, epoch, stamp } => (1, from, epoch, stamp),
            Self::Grant { from, epoch, stamp } => (2, from, epoch, stamp),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&from.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&epoch.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&stamp.as_nanos().to_le_bytes());
        bytes
    }

    /// The message in `bytes`, if it is one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
        let from = Incarnation(u32::from_le_bytes(bytes[4..8].try_into().ok()?));
        let epoch = Epoch(u64::from_le_bytes(bytes[8..16].try_into().ok()?));
        let stamp = Time::from_nanos(u64::from_le_bytes(bytes[16..24].try_into().ok()?));
        match bytes[..4] {
            [1, 0, 0, 0] => Some(Self::Heartbeat { from, epoch, stamp }),
            [2, 0, 0, 0] => Some(Self::Grant { from, epoch, stamp }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_return_and_garbage_does_not() {
        let (from, epoch, stamp) = (Incarnation(3), Epoch(4), Time::from_nanos(5));
        for message in [PeerMessage::Heartbeat { from, epoch, stamp }, PeerMessage::Grant { from, epoch, stamp }] {
            assert_eq!(PeerMessage::decode(&message.encode()), Some(message));
        }
        assert_eq!(PeerMessage::decode(&[9; MESSAGE_BYTES]), None);
        assert_eq!(PeerMessage::decode(&[1; 5]), None);
    }
}
