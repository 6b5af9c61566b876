//! Reservations (Base 8.19; commands 7.2 to 7.5).

use crate::bytes;
use crate::types::HostId;

/// Reservation types (Base figure "Reservation Type Encoding").
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ReservationType {
    /// 1h: only the holder writes.
    WriteExclusive,
    /// 2h: only the holder reads and writes.
    ExclusiveAccess,
    /// 3h: only registrants write.
    WriteExclusiveRegistrantsOnly,
    /// 4h: only registrants read and write.
    ExclusiveAccessRegistrantsOnly,
    /// 5h: all registrants are holders; only they write.
    WriteExclusiveAllRegistrants,
    /// 6h: all registrants are holders; only they read and write.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// The type with this value.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::WriteExclusive,
            2 => Self::ExclusiveAccess,
            3 => Self::WriteExclusiveRegistrantsOnly,
            4 => Self::ExclusiveAccessRegistrantsOnly,
            5 => Self::WriteExclusiveAllRegistrants,
            6 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// The value of the type.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 2,
            Self::WriteExclusiveRegistrantsOnly => 3,
            Self::ExclusiveAccessRegistrantsOnly => 4,
            Self::WriteExclusiveAllRegistrants => 5,
            Self::ExclusiveAccessAllRegistrants => 6,
        }
    }

    /// Every registrant is a holder.
    #[must_use]
    pub const fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Registrants have the holder's access.
    #[must_use]
    pub const fn registrants_access(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Others may not even read.
    #[must_use]
    pub const fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrantsOnly | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// RREGA of Reservation Register.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RegisterAction {
    /// 0: register the new key.
    Register,
    /// 1: unregister.
    Unregister,
    /// 2: replace the key.
    Replace,
}

impl RegisterAction {
    /// The value in bits 2:0 of dword 10.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self as u8
    }

    /// From bits 2:0 of dword 10.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Register,
            1 => Self::Unregister,
            2 => Self::Replace,
            _ => return None,
        })
    }
}

/// RACQA of Reservation Acquire.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum AcquireAction {
    /// 0: acquire.
    Acquire,
    /// 1: preempt.
    Preempt,
    /// 2: preempt, and abort the preempted hosts' commands.
    PreemptAndAbort,
}

impl AcquireAction {
    /// The value in bits 2:0 of dword 10.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self as u8
    }

    /// From bits 2:0 of dword 10.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Acquire,
            1 => Self::Preempt,
            2 => Self::PreemptAndAbort,
            _ => return None,
        })
    }
}

/// RRELA of Reservation Release.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ReleaseAction {
    /// 0: release the reservation.
    Release,
    /// 1: remove the reservation and all registrations.
    Clear,
}

impl ReleaseAction {
    /// The value in bits 2:0 of dword 10.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self as u8
    }

    /// From bits 2:0 of dword 10.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Release,
            1 => Self::Clear,
            _ => return None,
        })
    }
}

/// Data of Reservation Register: current key (0..8), new key (8..16).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct RegisterData {
    /// CRKEY.
    pub current: u64,
    /// NRKEY.
    pub new: u64,
}

/// Data of Reservation Acquire: current key (0..8), preempted key (8..16).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct AcquireData {
    /// CRKEY.
    pub current: u64,
    /// PRKEY.
    pub preempt: u64,
}

impl RegisterData {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        two_keys(self.current, self.new)
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self { current: bytes::u64_at(bytes, 0), new: bytes::u64_at(bytes, 8) }
    }
}

impl AcquireData {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        two_keys(self.current, self.preempt)
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self { current: bytes::u64_at(bytes, 0), preempt: bytes::u64_at(bytes, 8) }
    }
}

fn two_keys(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes::put(&mut bytes, 0, &first.to_le_bytes());
    bytes::put(&mut bytes, 8, &second.to_le_bytes());
    bytes
}

/// The head of the extended Reservation Status structure (Base 7.5): generation (0..4), type (4), registrants (5..7), PTPLS (9), zero up to 64.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ReportHeader {
    /// GEN: counts registrations, preemptions and clears.
    pub generation: u32,
    /// RTYPE; zero is no reservation.
    pub rtype: u8,
    /// REGCTL: how many registrants follow.
    pub registrants: u16,
    /// PTPLS: survives power loss.
    pub persistent: bool,
}

/// One registrant of the extended structure, 64 bytes: controller (0..2), holder (bit 0 of 2), key (8..16), Host Identifier (16..32).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ReportRegistrant {
    /// CNTLID; FFFFh if it is not (any more) associated with a controller.
    pub controller: u16,
    /// RCSTS: it holds the reservation.
    pub holder: bool,
    /// RKEY.
    pub key: u64,
    /// HOSTID.
    pub host: HostId,
}

impl ReportHeader {
    /// Size on the wire, of the extended structure.
    pub const BYTES: usize = 64;
    /// Size of the head of the structure for 64-bit Host Identifiers, which begins alike.
    pub const SHORT_BYTES: usize = 24;

    /// The bytes of the wire. The first [`Self::SHORT_BYTES`] are the head of the short structure.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.generation.to_le_bytes());
        bytes[4] = self.rtype;
        bytes::put(&mut bytes, 5, &self.registrants.to_le_bytes());
        bytes[9] = u8::from(self.persistent);
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            generation: bytes::u32_at(bytes, 0),
            rtype: bytes[4],
            registrants: bytes::u16_at(bytes, 5),
            persistent: bytes[9] & 1 != 0,
        }
    }
}

impl ReportRegistrant {
    /// Size on the wire, in the extended structure.
    pub const BYTES: usize = 64;
    /// Size in the structure for 64-bit Host Identifiers.
    pub const SHORT_BYTES: usize = 24;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.controller.to_le_bytes());
        bytes[2] = u8::from(self.holder);
        bytes::put(&mut bytes, 8, &self.key.to_le_bytes());
        bytes::put(&mut bytes, 16, &self.host.0);
        bytes
    }

    /// The bytes of the short structure: the Host Identifier's first 8 bytes at 8, the key at 16.
    #[must_use]
    pub fn to_short_bytes(self) -> [u8; Self::SHORT_BYTES] {
        let mut bytes = [0; Self::SHORT_BYTES];
        bytes::put(&mut bytes, 0, &self.controller.to_le_bytes());
        bytes[2] = u8::from(self.holder);
        bytes::put(&mut bytes, 8, &self.host.0[..8]);
        bytes::put(&mut bytes, 16, &self.key.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            controller: bytes::u16_at(bytes, 0),
            holder: bytes[2] & 1 != 0,
            key: bytes::u64_at(bytes, 8),
            host: HostId(bytes::array(bytes, 16)),
        }
    }
}

/// RESCAP of Identify Namespace: which reservations a namespace supports.
pub mod capabilities {
    /// Persistence through power loss.
    pub const PERSIST: u8 = 1 << 0;
    /// Write Exclusive.
    pub const WRITE_EXCLUSIVE: u8 = 1 << 1;
    /// Write Exclusive - All Registrants.
    pub const WRITE_EXCLUSIVE_ALL_REGISTRANTS: u8 = 1 << 5;
    /// Ignore Existing Key works as NVMe 1.3 and later define it.
    pub const IEKEY_1_3: u8 = 1 << 7;
    /// All types, with persistence.
    pub const ALL: u8 = 0xff;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_wire() {
        let header = ReportHeader { generation: 9, rtype: 5, registrants: 2, persistent: true };
        assert_eq!(ReportHeader::from_bytes(&header.to_bytes()), header);
        let registrant =
            ReportRegistrant { controller: 1, holder: true, key: 0x0123_4567_89ab_cdef, host: HostId([7; 16]) };
        assert_eq!(ReportRegistrant::from_bytes(&registrant.to_bytes()), registrant);
    }

    #[test]
    fn types_and_their_access() {
        for bits in 0..=255 {
            if let Some(rtype) = ReservationType::from_bits(bits) {
                assert_eq!(rtype.to_bits(), bits);
            }
        }
        assert!(!ReservationType::WriteExclusive.registrants_access());
        assert!(ReservationType::WriteExclusiveAllRegistrants.all_registrants());
        assert!(!ReservationType::WriteExclusiveAllRegistrants.excludes_reads());
    }
}
