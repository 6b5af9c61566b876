//! Log pages (Base 5.16.1).

use crate::bytes;
use crate::status::Status;
use crate::types::{CommandId, Lba, NamespaceId, QueueId};

/// Supported Log Pages.
pub const SUPPORTED: u8 = 0x00;
/// Error Information.
pub const ERROR: u8 = 0x01;
/// SMART / Health Information.
pub const SMART: u8 = 0x02;
/// Firmware Slot Information.
pub const FIRMWARE: u8 = 0x03;
/// Changed Namespace List: up to 1024 identifiers, or FFFFFFFFh for "more".
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects.
pub const EFFECTS: u8 = 0x05;
/// Asymmetric Namespace Access.
pub const ANA: u8 = 0x0c;
/// Discovery.
pub const DISCOVERY: u8 = 0x70;
/// Reservation Notification.
pub const RESERVATION_NOTIFICATION: u8 = 0x80;

/// SMART / Health Information (Base 5.16.1.3), 512 bytes.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct SmartLog {
    /// Critical warnings (0): spare (0), temperature (1), reliability (2), read only (3), volatile backup (4).
    pub critical_warning: u8,
    /// Composite temperature in kelvin (1..3).
    pub temperature_k: u16,
    /// Available spare in percent (3).
    pub spare_percent: u8,
    /// Its threshold (4).
    pub spare_threshold_percent: u8,
    /// Endurance used in percent (5).
    pub used_percent: u8,
    /// Data read, in thousands of 512-byte units (32..48).
    pub data_units_read: u128,
    /// Data written, in thousands of 512-byte units (48..64).
    pub data_units_written: u128,
    /// Read commands (64..80).
    pub host_reads: u128,
    /// Write commands (80..96).
    pub host_writes: u128,
    /// Power cycles (112..128).
    pub power_cycles: u128,
    /// Hours powered on (128..144).
    pub power_on_hours: u128,
    /// Power losses without shutdown (144..160).
    pub unsafe_shutdowns: u128,
    /// Unrecovered data integrity errors (160..176).
    pub media_errors: u128,
    /// Entries ever made in the error log (176..192).
    pub error_entries: u128,
}

/// SMART critical warning: NVM subsystem reliability is degraded.
pub const WARNING_RELIABILITY: u8 = 1 << 2;

impl SmartLog {
    /// Size on the wire.
    pub const BYTES: usize = 512;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.critical_warning;
        bytes::put(&mut bytes, 1, &self.temperature_k.to_le_bytes());
        bytes[3] = self.spare_percent;
        bytes[4] = self.spare_threshold_percent;
        bytes[5] = self.used_percent;
        for (at, value) in [
            (32, self.data_units_read),
            (48, self.data_units_written),
            (64, self.host_reads),
            (80, self.host_writes),
            (112, self.power_cycles),
            (128, self.power_on_hours),
            (144, self.unsafe_shutdowns),
            (160, self.media_errors),
            (176, self.error_entries),
        ] {
            bytes::put(&mut bytes, at, &value.to_le_bytes());
        }
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            critical_warning: bytes[0],
            temperature_k: bytes::u16_at(bytes, 1),
            spare_percent: bytes[3],
            spare_threshold_percent: bytes[4],
            used_percent: bytes[5],
            data_units_read: bytes::u128_at(bytes, 32),
            data_units_written: bytes::u128_at(bytes, 48),
            host_reads: bytes::u128_at(bytes, 64),
            host_writes: bytes::u128_at(bytes, 80),
            power_cycles: bytes::u128_at(bytes, 112),
            power_on_hours: bytes::u128_at(bytes, 128),
            unsafe_shutdowns: bytes::u128_at(bytes, 144),
            media_errors: bytes::u128_at(bytes, 160),
            error_entries: bytes::u128_at(bytes, 176),
        }
    }
}

/// One entry of the Error Information log (Base 5.16.1.2), 64 bytes. The newest comes first; an entry with count zero is empty.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Which error since the controller was made, from 1 (0..8).
    pub count: u64,
    /// Submission queue (8..10).
    pub queue: QueueId,
    /// Command (10..12).
    pub command: CommandId,
    /// Its status (12..14, bits 15:1).
    pub status: Status,
    /// First block in error (16..24).
    pub lba: Lba,
    /// Namespace (24..28).
    pub namespace: NamespaceId,
}

impl ErrorEntry {
    /// Size on the wire.
    pub const BYTES: usize = 64;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.count.to_le_bytes());
        bytes::put(&mut bytes, 8, &self.queue.0.to_le_bytes());
        bytes::put(&mut bytes, 10, &self.command.0.to_le_bytes());
        bytes::put(&mut bytes, 12, &(self.status.bits() << 1).to_le_bytes());
        bytes::put(&mut bytes, 14, &0xffff_u16.to_le_bytes()); // the error is not of one parameter
        bytes::put(&mut bytes, 16, &self.lba.0.to_le_bytes());
        bytes::put(&mut bytes, 24, &self.namespace.0.to_le_bytes());
        bytes
    }

    /// From the wire; `None` if the entry is empty.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let count = bytes::u64_at(bytes, 0);
        (count != 0).then(|| Self {
            count,
            queue: QueueId(bytes::u16_at(bytes, 8)),
            command: CommandId(bytes::u16_at(bytes, 10)),
            status: Status::from_bits(bytes::u16_at(bytes, 12) >> 1),
            lba: Lba(bytes::u64_at(bytes, 16)),
            namespace: NamespaceId(bytes::u32_at(bytes, 24)),
        })
    }
}

/// ANA states (Base 8.1.3).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum AnaState {
    /// 1h.
    Optimized,
    /// 2h.
    NonOptimized,
    /// 3h.
    Inaccessible,
    /// 4h.
    PersistentLoss,
    /// Fh.
    Change,
}

impl AnaState {
    /// The value of the four bits.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        match self {
            Self::Optimized => 1,
            Self::NonOptimized => 2,
            Self::Inaccessible => 3,
            Self::PersistentLoss => 4,
            Self::Change => 15,
        }
    }

    /// From the low four bits, if they are not reserved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits & 15 {
            1 => Self::Optimized,
            2 => Self::NonOptimized,
            3 => Self::Inaccessible,
            4 => Self::PersistentLoss,
            15 => Self::Change,
            _ => return None,
        })
    }
}

/// Head of the ANA log (Base 5.16.1.13): change count (0..8), group descriptors (8..10), zero up to 16.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct AnaHeader {
    /// Counts changes of the page.
    pub changes: u64,
    /// Group descriptors that follow.
    pub groups: u16,
}

/// Head of one ANA group descriptor: group (0..4), number of namespaces (4..8), change count (8..16), state (16), zero
/// up to 32; 4-byte namespace identifiers follow.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct AnaGroup {
    /// ANAGRPID, from 1.
    pub group: u32,
    /// Namespace identifiers that follow.
    pub namespaces: u32,
    /// Counts changes of the group.
    pub changes: u64,
    /// What its namespaces are through this controller.
    pub state: AnaState,
}

impl AnaHeader {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.changes.to_le_bytes());
        bytes::put(&mut bytes, 8, &self.groups.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self { changes: bytes::u64_at(bytes, 0), groups: bytes::u16_at(bytes, 8) }
    }
}

impl AnaGroup {
    /// Size of the head on the wire.
    pub const BYTES: usize = 32;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.group.to_le_bytes());
        bytes::put(&mut bytes, 4, &self.namespaces.to_le_bytes());
        bytes::put(&mut bytes, 8, &self.changes.to_le_bytes());
        bytes[16] = self.state.to_bits();
        bytes
    }

    /// From the wire; `None` if the state is reserved.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        Some(Self {
            group: bytes::u32_at(bytes, 0),
            namespaces: bytes::u32_at(bytes, 4),
            changes: bytes::u64_at(bytes, 8),
            state: AnaState::from_bits(bytes[16])?,
        })
    }
}

/// Firmware Slot Information (Base 5.16.1.4), 512 bytes, of a controller with one slot: active slot 1 (0), its revision (8..16).
#[must_use]
pub fn firmware_log(revision: &str) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[0] = 1;
    bytes::put(&mut bytes, 8, &bytes::ascii::<8>(revision));
    bytes
}

/// Commands Supported and Effects (Base 5.16.1.6), 4096 bytes: one dword per admin opcode (0..1024), one per I/O opcode (1024..2048).
#[must_use]
pub fn effects_log(admin: &[(u8, u32)], io: &[(u8, u32)]) -> Box<[u8; 4096]> {
    let mut bytes = Box::new([0; 4096]);
    for (at, table) in [(0, admin), (1024, io)] {
        for (opcode, effects) in table {
            bytes::put(&mut bytes[..], at + usize::from(*opcode) * 4, &effects.to_le_bytes());
        }
    }
    bytes
}

/// Effects (Base figure "Commands Supported and Effects Data Structure"): the command is supported.
pub const EFFECT_SUPPORTED: u32 = 1 << 0;
/// It may change user data.
pub const EFFECT_CONTENT: u32 = 1 << 1;
/// It may change namespace capabilities.
pub const EFFECT_NAMESPACE: u32 = 1 << 2;

/// One entry of the Reservation Notification log (Base 5.16.1.24), 64 bytes: count (0..8), type (8), pages available (9), namespace (12..16).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct ReservationNotification {
    /// Counts notifications; zero is an empty page.
    pub count: u64,
    /// 1 registration preempted, 2 reservation released, 3 reservation preempted.
    pub kind: u8,
    /// More pages are waiting.
    pub available: u8,
    /// Of which namespace.
    pub namespace: u32,
}

impl ReservationNotification {
    /// Size on the wire.
    pub const BYTES: usize = 64;
    /// The host's registration was preempted.
    pub const REGISTRATION_PREEMPTED: u8 = 1;
    /// The reservation that the host was registered under was released.
    pub const RESERVATION_RELEASED: u8 = 2;
    /// The reservation was preempted.
    pub const RESERVATION_PREEMPTED: u8 = 3;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.count.to_le_bytes());
        bytes[8] = self.kind;
        bytes[9] = self.available;
        bytes::put(&mut bytes, 12, &self.namespace.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            count: bytes::u64_at(bytes, 0),
            kind: bytes[8],
            available: bytes[9],
            namespace: bytes::u32_at(bytes, 12),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_survive_the_wire() {
        let smart = SmartLog { media_errors: 3, temperature_k: 300, data_units_read: 1 << 70, ..SmartLog::default() };
        assert_eq!(SmartLog::from_bytes(&smart.to_bytes()), smart);
        let entry = ErrorEntry {
            count: 1,
            queue: QueueId(1),
            command: CommandId(9),
            status: Status::UNRECOVERED_READ,
            lba: Lba(77),
            namespace: NamespaceId(1),
        };
        assert_eq!(ErrorEntry::from_bytes(&entry.to_bytes()), Some(entry));
        assert_eq!(ErrorEntry::from_bytes(&[0; 64]), None);
        let group = AnaGroup { group: 1, namespaces: 2, changes: 3, state: AnaState::Change };
        assert_eq!(AnaGroup::from_bytes(&group.to_bytes()), Some(group));
        let notification = ReservationNotification { count: 1, kind: 3, available: 0, namespace: 1 };
        assert_eq!(ReservationNotification::from_bytes(&notification.to_bytes()), notification);
    }
}
