//! Fabrics: Connect data and property access (Base 6).

use crate::bytes;
use crate::types::{ControllerId, HostId};

/// Longest NVMe Qualified Name, with its terminating zero (Base 4.5).
pub const NQN_BYTES: usize = 256;
/// The well-known name of every discovery subsystem (Base 4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Data of the Connect command: Host Identifier (0..16), controller (16..18), subsystem NQN (256..512), host NQN (512..768).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectData {
    /// HOSTID.
    pub host: HostId,
    /// CNTLID: [`ControllerId::DYNAMIC`], or the controller that the admin queue's Connect was given.
    pub controller: ControllerId,
    /// SUBNQN, zero-terminated.
    pub subsystem_nqn: [u8; NQN_BYTES],
    /// HOSTNQN, zero-terminated.
    pub host_nqn: [u8; NQN_BYTES],
}

impl ConnectData {
    /// Size on the wire.
    pub const BYTES: usize = 1024;
    /// Offset of HOSTID, as a Connect that failed for an invalid parameter reports it.
    pub const HOST_AT: u16 = 0;
    /// Offset of CNTLID.
    pub const CONTROLLER_AT: u16 = 16;
    /// Offset of SUBNQN.
    pub const SUBSYSTEM_NQN_AT: u16 = 256;
    /// Offset of HOSTNQN.
    pub const HOST_NQN_AT: u16 = 512;

    /// From names; longer ones are cut.
    #[must_use]
    pub fn new(host: HostId, controller: ControllerId, subsystem_nqn: &str, host_nqn: &str) -> Self {
        Self { host, controller, subsystem_nqn: bytes::c_string(subsystem_nqn), host_nqn: bytes::c_string(host_nqn) }
    }

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes::put(&mut bytes, 0, &self.host.0);
        bytes::put(&mut bytes, 16, &self.controller.0.to_le_bytes());
        bytes::put(&mut bytes, 256, &self.subsystem_nqn);
        bytes::put(&mut bytes, 512, &self.host_nqn);
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            host: HostId(bytes::array(bytes, 0)),
            controller: ControllerId(bytes::u16_at(bytes, 16)),
            subsystem_nqn: bytes::array(bytes, 256),
            host_nqn: bytes::array(bytes, 512),
        }
    }
}

/// How many bytes a property has: ATTRIB bits 2:0.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum PropertySize {
    /// 000b.
    Four,
    /// 001b.
    Eight,
}

impl PropertySize {
    /// The value of the three bits.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self as u32
    }

    /// From dword 10, if the value is not reserved.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Four),
            1 => Some(Self::Eight),
            _ => None,
        }
    }
}

/// Result of a Connect that failed for an invalid parameter (Base 6.3): where it is (15:0), and whether in the data (16) or in the command.
#[must_use]
pub const fn invalid_parameter(offset: u16, in_data: bool) -> u64 {
    offset as u64 | (in_data as u64) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_data_survives_the_wire() {
        let data = ConnectData::new(
            HostId([3; 16]),
            ControllerId::DYNAMIC,
            "nqn.2026-01.org.dyad:array",
            "nqn.2026-01.org.dyad:host",
        );
        let bytes = data.to_bytes();
        assert_eq!(bytes[16..18], [0xff, 0xff]);
        assert_eq!(ConnectData::from_bytes(&bytes), data);
        assert_eq!(bytes::text(&data.subsystem_nqn), Some("nqn.2026-01.org.dyad:array"));
    }
}
