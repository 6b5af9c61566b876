//! The wire, byte by byte. All numbers are little-endian; what is not named is zero and is checked to be zero.
//!
//! A connection begins with packets of 128 bytes. The client sends a request; the server answers with accept or refuse; the client
//! confirms an accept. Magic, version and CRC stand where they stand in every version.
//!
//! | offset | size | packet |
//! |---|---|---|
//! | 0 | 4 | magic, `DyVI` |
//! | 4 | 2 | version: 1 |
//! | 6 | 1 | 1 request, 2 accept, 3 refuse, 4 confirm |
//! | 7 | 1 | request: reliability level (2, Reliable Reception); refuse: 0 rejected, 1 nobody listens, 2 too late, 3 the ends do not fit |
//! | 8 | 4 | request: discriminator |
//! | 12 | 4 | request: milliseconds that the client will wait |
//! | 16 | 1 | length of the private data, at most 56 |
//! | 20 | 56 | private data of request, accept and refuse |
//! | 124 | 4 | CRC-32C of bytes 0 to 124 |
//!
//! After the confirm both ends send frames: a head of 48 bytes, and payload behind it.
//!
//! | offset | size | head |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | flags: 1 the operation goes on in a later frame, 2 there is immediate data |
//! | 2 | 1 | end: why |
//! | 4 | 4 | bytes of payload, at most 65536; of a read, bytes that are wanted |
//! | 8 | 8 | write and read: key of the region ([`RegionHandle`]) |
//! | 16 | 8 | write and read: offset in the region |
//! | 24 | 4 | write: bytes of the operation from this frame on |
//! | 28 | 4 | immediate data |
//! | 32 | 4 | sends and writes of the peer that have landed so far, modulo 2^32 |
//! | 36 | 4 | receives posted for the peer so far, modulo 2^32 |
//! | 40 | 4 | CRC-32C of the payload |
//! | 44 | 4 | CRC-32C of bytes 0 to 44 |
//!
//! | kind | frame | |
//! |---|---|---|
//! | 1 | message | part of a send; a first part needs a receive |
//! | 2 | write | part of an RDMA write; with immediate data it needs a receive |
//! | 3 | read | an RDMA read is asked for: at most 16 at a time |
//! | 4 | answer | part of the answer to the oldest read |
//! | 5 | tell | only how far its sender is |
//! | 6 | end | the last frame. Why: 0 disconnected, 1 garbage or a fault of its sender, 2 and 3 the peer's oldest operation that is not done failed |
//!
//! An operation fails because it may not reach the memory (2), or the message is longer than its receive (3).
//!
//! Frames of different kinds may stand between the parts of a message or answer; parts of one kind come in order.

use crate::provider::{
    Discriminator, PRIVATE_DATA_MAX, PrivateData, RefusedReason, RegionHandle, Reliability, RemoteAddress,
};

/// Bytes of a packet.
pub(super) const PACKET_BYTES: usize = 128;
/// Bytes of a head.
pub(super) const HEAD_BYTES: usize = 48;
/// Most payload of a frame.
pub(super) const PAYLOAD_MAX: u32 = 64 << 10;
/// Most reads that an end may have asked for and not got.
pub(super) const READS_MAX: usize = 16;

const MAGIC: [u8; 4] = *b"DyVI";
const VERSION: u16 = 1;
const PACKET_CRC: usize = PACKET_BYTES - 4;
const HEAD_CRC: usize = HEAD_BYTES - 4;
const FLAG_MORE: u8 = 1;
const FLAG_IMMEDIATE: u8 = 2;

const _: () = assert!(20 + PRIVATE_DATA_MAX <= PACKET_CRC, "private data fits into a packet");

pub(super) type PacketBytes = [u8; PACKET_BYTES];
pub(super) type HeadBytes = [u8; HEAD_BYTES];

/// What makes a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Request { discriminator: Discriminator, timeout_ms: u32, reliability: Reliability, private_data: PrivateData },
    Accept { private_data: PrivateData },
    Refuse { why: RefusedReason, private_data: PrivateData },
    Confirm,
}

/// Why a packet means nothing.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum NotUnderstood {
    /// It is one of ours, but of another version.
    OtherVersion,
    /// It is none of ours.
    Garbage,
}

impl Packet {
    pub(super) fn encode(&self) -> PacketBytes {
        let nothing = PrivateData::new();
        let (kind, detail, private_data) = match self {
            Self::Request { reliability, private_data, .. } => (1, level(*reliability), private_data),
            Self::Accept { private_data } => (2, 0, private_data),
            Self::Refuse { why, private_data } => (3, refusal(*why), private_data),
            Self::Confirm => (4, 0, &nothing),
        };
        let mut bytes = [0; PACKET_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(4, &VERSION.to_le_bytes());
        put(6, &[kind, detail]);
        if let Self::Request { discriminator, timeout_ms, .. } = self {
            put(8, &discriminator.0.to_le_bytes());
            put(12, &timeout_ms.to_le_bytes());
        }
        put(16, &[u8::try_from(private_data.len()).expect("56 at most")]);
        put(20, private_data);
        let crc = crc32c::crc32c(&bytes[..PACKET_CRC]);
        bytes[PACKET_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &PacketBytes) -> Result<Self, NotUnderstood> {
        let garbage = NotUnderstood::Garbage;
        if bytes[..4] != MAGIC || u32_at(bytes, PACKET_CRC) != crc32c::crc32c(&bytes[..PACKET_CRC]) {
            return Err(garbage);
        }
        if u16::from_le_bytes([bytes[4], bytes[5]]) != VERSION {
            return Err(NotUnderstood::OtherVersion);
        }
        let private_data =
            bytes.get(20..20 + usize::from(bytes[16])).and_then(|data| PrivateData::from_slice(data).ok());
        let private_data = private_data.ok_or(garbage)?;
        let packet = match bytes[6] {
            1 => Self::Request {
                discriminator: Discriminator(u32_at(bytes, 8)),
                timeout_ms: u32_at(bytes, 12),
                reliability: level_of(bytes[7]).ok_or(garbage)?,
                private_data,
            },
            2 => Self::Accept { private_data },
            3 => Self::Refuse { why: refusal_of(bytes[7]).ok_or(garbage)?, private_data },
            4 => Self::Confirm,
            _ => return Err(garbage),
        };
        // All that was not looked at is as we would have written it.
        if packet.encode() == *bytes { Ok(packet) } else { Err(garbage) }
    }
}

/// Why a connection ends, as its last frame says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum End {
    Disconnected,
    Fault,
    RemoteProtection,
    Length,
}

/// What a frame is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Message,
    /// With the bytes of the whole operation from this frame on.
    Write {
        to: RemoteAddress,
        rest: u32,
    },
    Read {
        from: RemoteAddress,
    },
    Answer,
    Tell,
    End(End),
}

/// The head of a frame.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Bytes of payload; of a read, bytes that are wanted.
    pub(super) len: u32,
    pub(super) more: bool,
    pub(super) immediate: Option<u32>,
    /// Of the payload.
    pub(super) crc: u32,
    /// What the sender of the frame has landed of ours.
    pub(super) landed: u32,
    /// The receives that it has posted.
    pub(super) granted: u32,
}

/// A head that no honest peer sends.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Malformed;

impl Head {
    /// A frame without payload.
    pub(super) fn bare(kind: Kind) -> Self {
        Self { kind, len: 0, more: false, immediate: None, crc: 0, landed: 0, granted: 0 }
    }

    pub(super) fn encode(&self) -> HeadBytes {
        let flag = |condition, flag| if condition { flag } else { 0 };
        let flags = flag(self.more, FLAG_MORE) | flag(self.immediate.is_some(), FLAG_IMMEDIATE);
        let (kind, why, address, rest) = match self.kind {
            Kind::Message => (1, 0, None, 0),
            Kind::Write { to, rest } => (2, 0, Some(to), rest),
            Kind::Read { from } => (3, 0, Some(from), 0),
            Kind::Answer => (4, 0, None, 0),
            Kind::Tell => (5, 0, None, 0),
            Kind::End(end) => (6, end_code(end), None, 0),
        };
        let mut bytes = [0; HEAD_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &[kind, flags, why]);
        put(4, &self.len.to_le_bytes());
        if let Some(RemoteAddress { region, offset }) = address {
            put(8, &region.to_key().to_le_bytes());
            put(16, &offset.to_le_bytes());
        }
        put(24, &rest.to_le_bytes());
        put(28, &self.immediate.unwrap_or(0).to_le_bytes());
        put(32, &self.landed.to_le_bytes());
        put(36, &self.granted.to_le_bytes());
        put(40, &self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEAD_CRC]);
        bytes[HEAD_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &HeadBytes) -> Result<Self, Malformed> {
        if u32_at(bytes, HEAD_CRC) != crc32c::crc32c(&bytes[..HEAD_CRC]) {
            return Err(Malformed);
        }
        let address = RemoteAddress { region: RegionHandle::from_key(u64_at(bytes, 8)), offset: u64_at(bytes, 16) };
        let kind = match bytes[0] {
            1 => Kind::Message,
            2 => Kind::Write { to: address, rest: u32_at(bytes, 24) },
            3 => Kind::Read { from: address },
            4 => Kind::Answer,
            5 => Kind::Tell,
            6 => Kind::End(end_of(bytes[2]).ok_or(Malformed)?),
            _ => return Err(Malformed),
        };
        let immediate = (bytes[1] & FLAG_IMMEDIATE != 0).then(|| u32_at(bytes, 28));
        let head = Self {
            kind,
            len: u32_at(bytes, 4),
            more: bytes[1] & FLAG_MORE != 0,
            immediate,
            crc: u32_at(bytes, 40),
            landed: u32_at(bytes, 32),
            granted: u32_at(bytes, 36),
        };
        if head.is_sound() && head.encode() == *bytes { Ok(head) } else { Err(Malformed) }
    }

    /// What can be told without knowing the connection.
    fn is_sound(&self) -> bool {
        let whole = !self.more || self.immediate.is_none();
        match self.kind {
            Kind::Message => whole && self.len <= PAYLOAD_MAX && (self.len > 0 || !self.more),
            Kind::Write { rest, .. } => {
                whole && (1..=PAYLOAD_MAX).contains(&self.len) && self.len <= rest && self.more == (self.len < rest)
            }
            Kind::Read { .. } => self.len > 0 && !self.more && self.immediate.is_none() && self.crc == 0,
            Kind::Answer => (1..=PAYLOAD_MAX).contains(&self.len) && self.immediate.is_none(),
            Kind::Tell | Kind::End(_) => self.len == 0 && !self.more && self.immediate.is_none() && self.crc == 0,
        }
    }

    /// Bytes that follow the head.
    pub(super) fn payload(&self) -> u32 {
        match self.kind {
            Kind::Read { .. } => 0,
            _ => self.len,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn level(reliability: Reliability) -> u8 {
    match reliability {
        Reliability::UnreliableDelivery => 0,
        Reliability::ReliableDelivery => 1,
        Reliability::ReliableReception => 2,
    }
}

fn level_of(byte: u8) -> Option<Reliability> {
    match byte {
        0 => Some(Reliability::UnreliableDelivery),
        1 => Some(Reliability::ReliableDelivery),
        2 => Some(Reliability::ReliableReception),
        _ => None,
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

fn refusal_of(byte: u8) -> Option<RefusedReason> {
    match byte {
        0 => Some(RefusedReason::Rejected),
        1 => Some(RefusedReason::NoListener),
        2 => Some(RefusedReason::TimedOut),
        3 => Some(RefusedReason::Mismatch),
        _ => None,
    }
}

fn end_code(end: End) -> u8 {
    match end {
        End::Disconnected => 0,
        End::Fault => 1,
        End::RemoteProtection => 2,
        End::Length => 3,
    }
}

fn end_of(byte: u8) -> Option<End> {
    match byte {
        0 => Some(End::Disconnected),
        1 => Some(End::Fault),
        2 => Some(End::RemoteProtection),
        3 => Some(End::Length),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: RemoteAddress =
        RemoteAddress { region: RegionHandle { incarnation: 0x0102_0304, index: 0x0506_0708 }, offset: 1 << 40 };

    fn packets() -> Vec<Packet> {
        let private_data = PrivateData::from_slice(&[9; 56]).unwrap();
        vec![
            Packet::Request {
                discriminator: Discriminator(7),
                timeout_ms: 5000,
                reliability: Reliability::ReliableReception,
                private_data: private_data.clone(),
            },
            Packet::Accept { private_data: PrivateData::new() },
            Packet::Refuse { why: RefusedReason::Mismatch, private_data },
            Packet::Confirm,
        ]
    }

    fn heads() -> Vec<Head> {
        let bare = Head { landed: 3, granted: u32::MAX, ..Head::bare(Kind::Tell) };
        vec![
            Head { kind: Kind::Message, len: 0, immediate: Some(0), ..bare },
            Head { kind: Kind::Message, len: PAYLOAD_MAX, more: true, crc: 9, ..bare },
            Head { kind: Kind::Write { to: TO, rest: 70_000 }, len: 4, more: true, crc: 9, ..bare },
            Head { kind: Kind::Write { to: TO, rest: 4 }, len: 4, immediate: Some(7), crc: 9, ..bare },
            Head { kind: Kind::Read { from: TO }, len: 16 << 20, ..bare },
            Head { kind: Kind::Answer, len: 5, crc: 9, ..bare },
            bare,
            Head { kind: Kind::End(End::Length), ..bare },
        ]
    }

    #[test]
    fn what_is_said_is_understood() {
        for packet in packets() {
            assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
        }
        for head in heads() {
            assert_eq!(Head::parse(&head.encode()), Ok(head));
        }
    }

    /// The bytes that other hosts rely on.
    #[test]
    fn the_wire_is_what_it_is() {
        let request = packets()[0].encode();
        assert_eq!(request[..20], [b'D', b'y', b'V', b'I', 1, 0, 1, 2, 7, 0, 0, 0, 0x88, 0x13, 0, 0, 56, 0, 0, 0]);
        let write = heads()[3].encode();
        let beginning =
            [2, 2, 0, 0, 4, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0];
        assert_eq!(write[..32], beginning);
        assert_eq!(write[32..44], [3, 0, 0, 0, 255, 255, 255, 255, 9, 0, 0, 0]);
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut other = packets()[0].encode();
        other[4] = 2;
        assert_eq!(Packet::parse(&other), Err(NotUnderstood::Garbage), "the CRC covers it");
        let crc = crc32c::crc32c(&other[..PACKET_CRC]);
        other[PACKET_CRC..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Packet::parse(&other), Err(NotUnderstood::OtherVersion));
    }

    #[test]
    fn contradictions_are_malformed() {
        let all = heads();
        let wrong = [
            Head { len: PAYLOAD_MAX + 1, ..all[1] },
            Head { len: 0, ..all[1] },
            Head { immediate: Some(1), ..all[1] },
            Head { more: false, ..all[2] },
            Head { len: 5, ..all[3] },
            Head { len: 0, kind: Kind::Write { to: TO, rest: 0 }, ..all[3] },
            Head { len: 0, ..all[4] },
            Head { more: true, ..all[4] },
            Head { len: 0, ..all[5] },
            Head { len: 1, ..all[6] },
            Head { crc: 1, ..all[7] },
        ];
        for head in wrong {
            assert_eq!(Head::parse(&head.encode()), Err(Malformed), "{head:?}");
        }
    }

    proptest::proptest! {
        /// With the CRC made right again, so that more than the CRC is tried.
        #[test]
        fn changed_bytes_are_refused_or_mean_something_sound(which in 0_usize..12, at in 0_usize..124, byte: u8, mend: bool) {
            if let Some(packet) = packets().get(which) {
                let mut bytes = packet.encode();
                bytes[at] = byte;
                if mend {
                    let crc = crc32c::crc32c(&bytes[..PACKET_CRC]);
                    bytes[PACKET_CRC..].copy_from_slice(&crc.to_le_bytes());
                }
                if let Ok(packet) = Packet::parse(&bytes) {
                    assert_eq!(packet.encode(), bytes);
                }
            } else {
                let mut bytes = heads()[which - 4].encode();
                bytes[at % HEAD_BYTES] = byte;
                if mend {
                    let crc = crc32c::crc32c(&bytes[..HEAD_CRC]);
                    bytes[HEAD_CRC..].copy_from_slice(&crc.to_le_bytes());
                }
                if let Ok(head) = Head::parse(&bytes) {
                    assert!(head.encode() == bytes && (matches!(head.kind, Kind::Read { .. }) || head.len <= PAYLOAD_MAX));
                }
            }
        }
    }
}
