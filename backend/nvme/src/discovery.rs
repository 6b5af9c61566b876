//! The discovery log page (Base 5.16.1.23; NVMe over Fabrics 1.1, 5.3): where a host finds subsystems.

use crate::bytes;
use crate::fabrics::NQN_BYTES;
use crate::types::ControllerId;

/// Head of the page: generation (0..8), records (8..16), record format (16..18, zero), zero up to 1024.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct DiscoveryHeader {
    /// GENCTR: counts changes of the page.
    pub generation: u64,
    /// NUMREC: entries that follow.
    pub records: u64,
}

/// TRTYPE.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Transport {
    /// 1.
    Rdma,
    /// 3.
    Tcp,
    /// 254: within this machine, as the `vi` transport is.
    IntraHost,
}

/// ADRFAM.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum AddressFamily {
    /// 1.
    Ipv4,
    /// 2.
    Ipv6,
    /// 254: within this machine.
    IntraHost,
}

/// SUBTYPE.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SubsystemType {
    /// 1: another discovery service.
    Referral,
    /// 2: namespaces.
    Nvm,
    /// 3: the discovery service that is asked.
    CurrentDiscovery,
}

/// TREQ: flow control of submission queues can be switched off.
pub const TREQ_NO_FLOW_CONTROL: u8 = 1 << 2;
/// EFLAGS: the discovery service can be connected for long, with Keep Alive and events.
pub const EFLAGS_PERSISTENT: u16 = 1 << 1;

/// One record: transport (0), address family (1), subsystem type (2), requirements (3), port (4..6), controller (6..8), admin
/// queue entries (8..10), flags (10..12), service (32..64), subsystem NQN (256..512), address (512..768), transport specific (768..1024).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// TRTYPE.
    pub transport: Transport,
    /// ADRFAM.
    pub family: AddressFamily,
    /// SUBTYPE.
    pub subsystem: SubsystemType,
    /// TREQ.
    pub requirements: u8,
    /// PORTID.
    pub port: u16,
    /// CNTLID.
    pub controller: ControllerId,
    /// ASQSZ.
    pub admin_queue_entries: u16,
    /// EFLAGS.
    pub flags: u16,
    /// TRSVCID: the TCP port in decimal. Longer than 32 bytes is cut.
    pub service: String,
    /// SUBNQN.
    pub nqn: String,
    /// TRADDR. Longer than 256 bytes is cut.
    pub address: String,
}

impl DiscoveryHeader {
    /// Size on the wire.
    pub const BYTES: usize = 1024;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.generation.to_le_bytes());
        bytes::put(&mut bytes, 8, &self.records.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self { generation: bytes::u64_at(bytes, 0), records: bytes::u64_at(bytes, 8) }
    }
}

impl DiscoveryEntry {
    /// Size on the wire.
    pub const BYTES: usize = 1024;

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = match self.transport {
            Transport::Rdma => 1,
            Transport::Tcp => 3,
            Transport::IntraHost => 254,
        };
        bytes[1] = match self.family {
            AddressFamily::Ipv4 => 1,
            AddressFamily::Ipv6 => 2,
            AddressFamily::IntraHost => 254,
        };
        bytes[2] = match self.subsystem {
            SubsystemType::Referral => 1,
            SubsystemType::Nvm => 2,
            SubsystemType::CurrentDiscovery => 3,
        };
        bytes[3] = self.requirements;
        bytes::put(&mut bytes, 4, &self.port.to_le_bytes());
        bytes::put(&mut bytes, 6, &self.controller.0.to_le_bytes());
        bytes::put(&mut bytes, 8, &self.admin_queue_entries.to_le_bytes());
        bytes::put(&mut bytes, 10, &self.flags.to_le_bytes());
        bytes::put(&mut bytes, 32, &bytes::ascii::<32>(&self.service));
        bytes::put(&mut bytes, 256, &bytes::c_string::<NQN_BYTES>(&self.nqn));
        bytes::put(&mut bytes, 512, &bytes::ascii::<256>(&self.address));
        bytes
    }

    /// From the wire; `None` if a type is none of those above, or a name is no text.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        Some(Self {
            transport: match bytes[0] {
                1 => Transport::Rdma,
                3 => Transport::Tcp,
                254 => Transport::IntraHost,
                _ => return None,
            },
            family: match bytes[1] {
                1 => AddressFamily::Ipv4,
                2 => AddressFamily::Ipv6,
                254 => AddressFamily::IntraHost,
                _ => return None,
            },
            subsystem: match bytes[2] {
                1 => SubsystemType::Referral,
                2 => SubsystemType::Nvm,
                3 => SubsystemType::CurrentDiscovery,
                _ => return None,
            },
            requirements: bytes[3],
            port: bytes::u16_at(bytes, 4),
            controller: ControllerId(bytes::u16_at(bytes, 6)),
            admin_queue_entries: bytes::u16_at(bytes, 8),
            flags: bytes::u16_at(bytes, 10),
            service: bytes::text(&bytes[32..64])?.to_owned(),
            nqn: bytes::text(&bytes[256..512])?.to_owned(),
            address: bytes::text(&bytes[512..768])?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_wire() {
        let entry = DiscoveryEntry {
            transport: Transport::Tcp,
            family: AddressFamily::Ipv4,
            subsystem: SubsystemType::Nvm,
            requirements: TREQ_NO_FLOW_CONTROL,
            port: 1,
            controller: ControllerId::DYNAMIC,
            admin_queue_entries: 32,
            flags: EFLAGS_PERSISTENT,
            service: "4420".into(),
            nqn: "nqn.2026-01.org.dyad:array".into(),
            address: "10.0.0.1".into(),
        };
        let bytes = entry.to_bytes();
        assert_eq!((bytes[0], bytes[6], bytes[512], bytes[527]), (3, 0xff, b'1', b' '));
        assert_eq!(DiscoveryEntry::from_bytes(&bytes), Some(entry));
        let header = DiscoveryHeader { generation: 7, records: 2 };
        assert_eq!(DiscoveryHeader::from_bytes(&header.to_bytes()), header);
    }
}
