//! The messages of the slow path: what Kernel Agents say to each other over a connection's socket.
//!
//! Each is one packet of 128 bytes, little-endian; what a kind does not use is zero and not looked at. File descriptors
//! ride along (SCM_RIGHTS); a packet with another number of them than its kind has is garbage.
//!
//! | offset | size | what | of |
//! |---|---|---|---|
//! | 0 | 4 | magic `DYVI` | all |
//! | 4 | 2 | version, 1 | all |
//! | 6 | 2 | kind | all |
//! | 8 | 4 | discriminator | request |
//! | 12 | 4 | time-out in ms | request |
//! | 16 | 4 | the sender's VI | request, accept |
//! | 20 | 4 | its place count: regions (low half), VIs (high half) | request, accept |
//! | 24 | 4, 4 | geometry: entries, data | request |
//! | 32 | 8 | region | export, unexport, released |
//! | 40 | 8 | length of the region | export |
//! | 48 | 1 | what the receiver may do to it: 1 write, 2 read | export |
//! | 49 | 1 | level (request), why (refuse, bye) | request, refuse, bye |
//! | 50 | 1 | length of private data, at most 56 | request, accept, refuse |
//! | 56 | 56 | private data | request, accept, refuse |
//!
//! | kind | message | fds |
//! |---|---|---|
//! | 1 | request | channel, client's status, server's end of the doorbell |
//! | 2 | accept | server's status |
//! | 3 | refuse | |
//! | 4 | confirm | |
//! | 5 | export | the region's memory |
//! | 6 | unexport: give it back | |
//! | 7 | released: it is given back | |
//! | 8 | bye: the VI has ended, and all of yours is given back | |

use super::layout::{Geometry, StatusShape};
use crate::provider::{
    BrokenReason, Discriminator, PrivateData, RefusedReason, RegionHandle, Reliability, RemoteAccess, ViId,
};

pub(super) const PACKET_BYTES: usize = 128;
/// The most file descriptors with one packet.
pub(super) const FDS_MAX: usize = 3;

const MAGIC: [u8; 4] = *b"DYVI";
const VERSION: u16 = 1;

pub(super) type Packet = [u8; PACKET_BYTES];

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    Request(Request),
    Accept { vi: ViId, shape: StatusShape, private_data: PrivateData },
    Refuse { why: RefusedReason, private_data: PrivateData },
    Confirm,
    Export { region: RegionHandle, len: u64, access: RemoteAccess },
    Unexport { region: RegionHandle },
    Released { region: RegionHandle },
    Bye { why: BrokenReason },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) discriminator: Discriminator,
    pub(super) timeout_ms: u32,
    pub(super) vi: ViId,
    pub(super) shape: StatusShape,
    pub(super) geometry: Geometry,
    pub(super) reliability: Reliability,
    pub(super) private_data: PrivateData,
}

/// A packet that no agent of this version sends.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Malformed;

impl Control {
    /// How many file descriptors ride along.
    pub(super) fn fds(&self) -> usize {
        match self {
            Self::Request(_) => 3,
            Self::Accept { .. } | Self::Export { .. } => 1,
            _ => 0,
        }
    }

    pub(super) fn encode(&self) -> Packet {
        let mut packet = [0; PACKET_BYTES];
        // copy: fields of a control message
        let mut put = |at: usize, bytes: &[u8]| packet[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &VERSION.to_le_bytes());
        let kind: u16 = match self {
            Self::Request(request) => {
                put(8, &request.discriminator.0.to_le_bytes());
                put(12, &request.timeout_ms.to_le_bytes());
                put(24, &request.geometry.entries.to_le_bytes());
                put(28, &request.geometry.data.to_le_bytes());
                put(49, &[level(request.reliability)]);
                1
            }
            Self::Accept { .. } => 2,
            Self::Refuse { why, .. } => {
                put(49, &[refusal(*why)]);
                3
            }
            Self::Confirm => 4,
            Self::Export { len, access, .. } => {
                put(40, &len.to_le_bytes());
                put(48, &[u8::from(access.write) | u8::from(access.read) << 1]);
                5
            }
            Self::Unexport { .. } => 6,
            Self::Released { .. } => 7,
            Self::Bye { why } => {
                put(49, &[u8::from(*why != BrokenReason::Disconnected)]);
                8
            }
        };
        put(6, &kind.to_le_bytes());
        if let Self::Request(Request { vi, shape, .. }) | Self::Accept { vi, shape, .. } = self {
            put(16, &vi.0.to_le_bytes());
            put(20, &shape.regions.to_le_bytes());
            put(22, &shape.vis.to_le_bytes());
        }
        if let Self::Request(Request { private_data, .. })
        | Self::Accept { private_data, .. }
        | Self::Refuse { private_data, .. } = self
        {
            put(50, &[u8::try_from(private_data.len()).expect("at most 56")]);
            put(56, private_data);
        }
        if let Self::Export { region, .. } | Self::Unexport { region } | Self::Released { region } = self {
            put(32, &region.to_key().to_le_bytes());
        }
        packet
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let packet: &Packet = bytes.try_into().map_err(|_| Malformed)?;
        let u16_at = |at: usize| u16::from_le_bytes([packet[at], packet[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if packet[..4] != MAGIC || u16_at(4) != VERSION {
            return Err(Malformed);
        }
        let (vi, shape) = (ViId(u32_at(16)), StatusShape { regions: u16_at(20), vis: u16_at(22) });
        let region = RegionHandle::from_key(u64_at(32));
        let why = packet[49];
        let private = || {
            let said = packet.get(56..56 + usize::from(packet[50])).ok_or(Malformed)?;
            PrivateData::from_slice(said).map_err(|_| Malformed)
        };
        match u16_at(6) {
            1 => Ok(Self::Request(Request {
                discriminator: Discriminator(u32_at(8)),
                timeout_ms: u32_at(12),
                vi,
                shape,
                geometry: Some(Geometry { entries: u32_at(24), data: u32_at(28) })
                    .filter(|geometry| geometry.is_sane())
                    .ok_or(Malformed)?,
                reliability: level_of(packet[49])?,
                private_data: private()?,
            })),
            2 => Ok(Self::Accept { vi, shape, private_data: private()? }),
            3 => Ok(Self::Refuse { why: refusal_of(why)?, private_data: private()? }),
            4 => Ok(Self::Confirm),
            5 if packet[48] < 4 => {
                let access = RemoteAccess { write: packet[48] & 1 != 0, read: packet[48] & 2 != 0 };
                Ok(Self::Export { region, len: u64_at(40), access })
            }
            6 => Ok(Self::Unexport { region }),
            7 => Ok(Self::Released { region }),
            8 if why < 2 => {
                Ok(Self::Bye { why: if why == 0 { BrokenReason::Disconnected } else { BrokenReason::Protocol } })
            }
            _ => Err(Malformed),
        }
    }
}

fn level(reliability: Reliability) -> u8 {
    match reliability {
        Reliability::UnreliableDelivery => 0,
        Reliability::ReliableDelivery => 1,
        Reliability::ReliableReception => 2,
    }
}

fn level_of(byte: u8) -> Result<Reliability, Malformed> {
    match byte {
        0 => Ok(Reliability::UnreliableDelivery),
        1 => Ok(Reliability::ReliableDelivery),
        2 => Ok(Reliability::ReliableReception),
        _ => Err(Malformed),
    }
}

fn refusal(why: RefusedReason) -> u8 {
    match why {
        RefusedReason::Rejected => 0,
        RefusedReason::NoListener => 1,
        RefusedReason::TimedOut => 2,
        RefusedReason::Mismatch => 3,
    }
}

fn refusal_of(byte: u8) -> Result<RefusedReason, Malformed> {
    match byte {
        0 => Ok(RefusedReason::Rejected),
        1 => Ok(RefusedReason::NoListener),
        2 => Ok(RefusedReason::TimedOut),
        3 => Ok(RefusedReason::Mismatch),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Control> {
        let private_data = PrivateData::from_slice(&[9; 56]).unwrap();
        let shape = StatusShape { regions: 3, vis: 65535 };
        let region = RegionHandle { incarnation: 0x0102_0304, index: 0x0506_0708 };
        vec![
            Control::Request(Request {
                discriminator: Discriminator(7),
                timeout_ms: 5000,
                vi: ViId(0x1_0002),
                shape,
                geometry: Geometry { entries: 128, data: 65536 },
                reliability: Reliability::ReliableReception,
                private_data: private_data.clone(),
            }),
            Control::Accept { vi: ViId(4), shape, private_data: PrivateData::new() },
            Control::Refuse { why: RefusedReason::Mismatch, private_data },
            Control::Confirm,
            Control::Export { region, len: 1 << 40, access: RemoteAccess { write: false, read: true } },
            Control::Unexport { region },
            Control::Released { region },
            Control::Bye { why: BrokenReason::Protocol },
        ]
    }

    #[test]
    fn what_is_said_is_understood() {
        for control in examples() {
            assert_eq!(Control::parse(&control.encode()), Ok(control));
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_refused_or_means_something_sound(
            example in 0_usize..8, at in 0_usize..128, byte: u8, len in 0_usize..130,
        ) {
            let mut packet = examples()[example].encode().to_vec();
            packet[at] = byte;
            packet.resize(len, byte);
            if let Ok(control) = Control::parse(&packet) {
                assert_eq!(Control::parse(&control.encode()), Ok(control));
            }
        }
    }
}
