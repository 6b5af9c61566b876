//! PDUs of NVMe/TCP (NVMe/TCP Transport Specification 1.0, 3.6): a common header, a header of their own, digests and data.
//!
//! Common header: type (0), flags (1), header length (2), offset of the data (3), length of the whole PDU (4..8). A header
//! digest (CRC-32C, little-endian) follows the header, then zeros up to the data, the data, and a data digest.

use crate::bytes;
use crate::types::CommandId;

/// Values of the type.
pub mod kind {
    /// Initialize Connection Request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response.
    pub const IC_RESP: u8 = 0x01;
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM: u8 = 0x02;
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM: u8 = 0x03;
    /// Command Capsule.
    pub const COMMAND: u8 = 0x04;
    /// Response Capsule.
    pub const RESPONSE: u8 = 0x05;
    /// Host to Controller Data Transfer.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to Host Data Transfer.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const R2T: u8 = 0x09;
}

/// Bits of the flags.
pub mod flags {
    /// HDGSTF: a header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1 << 0;
    /// DDGSTF: a data digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// LAST_PDU of data: nothing of this transfer comes after it.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS of data to the host: the command is complete with success, no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;
/// Bytes of the headers of `IC_REQ` and `IC_RESP`.
pub const IC_BYTES: usize = 128;
/// Bytes of the header of a command capsule: the common header and the submission queue entry.
pub const COMMAND_BYTES: usize = 72;
/// Bytes of the headers of responses, data, R2T and termination requests.
pub const SHORT_BYTES: usize = 24;
/// Longest termination request: the header and up to 128 bytes of the header that was in error.
pub const TERM_BYTES_MAX: usize = SHORT_BYTES + 128;
/// Offset of the data can be aligned to `4 * (1 + alignment)` bytes, `alignment` up to this.
pub const ALIGNMENT_MAX: u8 = 31;
/// In-capsule data of admin and Fabrics commands that every controller takes (3.3: 8192 bytes).
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// Smallest MAXH2CDATA (3.6.2.3).
pub const DATA_MAX_MIN: u32 = 4096;

/// The first eight bytes of every PDU.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct CommonHeader {
    /// See [`kind`].
    pub kind: u8,
    /// See [`flags`].
    pub flags: u8,
    /// HLEN: bytes of the header without its digest.
    pub header_len: u8,
    /// PDO: where the data begins; zero if there is none.
    pub data_at: u8,
    /// PLEN: bytes of the PDU with digests, padding and data.
    pub len: u32,
}

impl CommonHeader {
    /// Size on the wire.
    pub const BYTES: usize = 8;
    /// Offset of the type, as a termination request names it.
    pub const KIND_AT: u32 = 0;
    /// Offset of the flags.
    pub const FLAGS_AT: u32 = 1;
    /// Offset of HLEN.
    pub const HEADER_LEN_AT: u32 = 2;
    /// Offset of PDO.
    pub const DATA_AT_AT: u32 = 3;
    /// Offset of PLEN.
    pub const LEN_AT: u32 = 4;

    /// The bytes of the wire.
    #[must_use]
    #[inline]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.len.to_le_bytes();
        [self.kind, self.flags, self.header_len, self.data_at, a, b, c, d]
    }

    /// From the wire.
    #[must_use]
    #[inline]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [kind, flags, header_len, data_at, a, b, c, d] = bytes;
        Self { kind, flags, header_len, data_at, len: u32::from_le_bytes([a, b, c, d]) }
    }
}

/// The rest of `IC_REQ` (3.6.2.2): PFV (8..10), HPDA (10), digests (11), MAXR2T (12..16), zero up to 128.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct IcReq {
    /// PFV: format; zero is the only one.
    pub version: u16,
    /// HPDA: how the host wants data aligned in PDUs to it, see [`ALIGNMENT_MAX`].
    pub alignment: u8,
    /// The host wants header digests.
    pub header_digest: bool,
    /// The host wants data digests.
    pub data_digest: bool,
    /// MAXR2T: R2T PDUs per command that may be open, zero-based.
    pub r2t_max: u32,
}

/// The rest of `IC_RESP` (3.6.2.3): PFV (8..10), CPDA (10), digests (11), MAXH2CDATA (12..16), zero up to 128.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct IcResp {
    /// PFV.
    pub version: u16,
    /// CPDA: how the controller wants data aligned in PDUs to it.
    pub alignment: u8,
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// MAXH2CDATA: bytes of data in one PDU to the controller, at least [`DATA_MAX_MIN`].
    pub data_max: u32,
}

fn ic_bytes(kind: u8, version: u16, alignment: u8, digests: (bool, bool), number: u32) -> [u8; IC_BYTES] {
    let mut pdu = [0; IC_BYTES];
    let common = CommonHeader { kind, flags: 0, header_len: 128, data_at: 0, len: 128 };
    bytes::put(&mut pdu, 0, &common.to_bytes());
    bytes::put(&mut pdu, 8, &version.to_le_bytes());
    pdu[10] = alignment;
    pdu[11] = u8::from(digests.0) | u8::from(digests.1) << 1;
    bytes::put(&mut pdu, 12, &number.to_le_bytes());
    pdu
}

impl IcReq {
    /// Offset of PFV.
    pub const VERSION_AT: u32 = 8;
    /// Offset of HPDA.
    pub const ALIGNMENT_AT: u32 = 10;

    /// The whole PDU.
    #[must_use]
    pub fn to_bytes(self) -> [u8; IC_BYTES] {
        ic_bytes(kind::IC_REQ, self.version, self.alignment, (self.header_digest, self.data_digest), self.r2t_max)
    }

    /// From the whole PDU.
    #[must_use]
    pub fn from_bytes(pdu: &[u8; IC_BYTES]) -> Self {
        Self {
            version: bytes::u16_at(pdu, 8),
            alignment: pdu[10],
            header_digest: pdu[11] & 1 != 0,
            data_digest: pdu[11] & 2 != 0,
            r2t_max: bytes::u32_at(pdu, 12),
        }
    }
}

impl IcResp {
    /// The whole PDU.
    #[must_use]
    pub fn to_bytes(self) -> [u8; IC_BYTES] {
        ic_bytes(kind::IC_RESP, self.version, self.alignment, (self.header_digest, self.data_digest), self.data_max)
    }

    /// From the whole PDU.
    #[must_use]
    pub fn from_bytes(pdu: &[u8; IC_BYTES]) -> Self {
        let IcReq { version, alignment, header_digest, data_digest, r2t_max } = IcReq::from_bytes(pdu);
        Self { version, alignment, header_digest, data_digest, data_max: r2t_max }
    }
}

/// The header of data in either direction and of R2T, behind the common header (3.6.2.8 to 3.6.2.10): command (8..10), transfer tag (10..12;
/// zero in data to the host), offset in the command's data (12..16), bytes (16..20), zero up to 24.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct DataHeader {
    /// CCCID: the command.
    pub command: CommandId,
    /// TTAG: the controller's name for this transfer.
    pub tag: u16,
    /// DATAO or R2TO.
    pub offset: u32,
    /// DATAL or R2TL.
    pub len: u32,
}

impl DataHeader {
    /// Size on the wire, behind the common header.
    pub const BYTES: usize = 16;
    /// Offset of CCCID in the PDU.
    pub const COMMAND_AT: u32 = 8;
    /// Offset of TTAG in the PDU.
    pub const TAG_AT: u32 = 10;
    /// Offset of DATAL in the PDU.
    pub const LEN_AT: u32 = 16;

    /// The bytes of the wire.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut b = [0; Self::BYTES];
        bytes::put(&mut b, 0, &self.command.0.to_le_bytes());
        bytes::put(&mut b, 2, &self.tag.to_le_bytes());
        bytes::put(&mut b, 4, &self.offset.to_le_bytes());
        bytes::put(&mut b, 8, &self.len.to_le_bytes());
        b
    }

    /// From the wire.
    #[must_use]
    #[inline]
    pub fn from_bytes(b: &[u8; Self::BYTES]) -> Self {
        Self {
            command: CommandId(bytes::u16_at(b, 0)),
            tag: bytes::u16_at(b, 2),
            offset: bytes::u32_at(b, 4),
            len: bytes::u32_at(b, 8),
        }
    }
}

/// FES and FEI: why a side ends the connection (3.6.2.4, 3.6.2.5).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum FatalError {
    /// 01h: a field of the header is invalid; where it is.
    InvalidField(u32),
    /// 02h: this PDU may not come now.
    Sequence,
    /// 03h: the header's digest is not what was received.
    HeaderDigest(u32),
    /// 04h: data outside what was asked for.
    OutOfRange,
    /// 05h: more data, or more R2T, than agreed.
    LimitExceeded,
    /// 06h: a parameter that is not supported; where it is.
    Unsupported(u32),
    /// A value that the specification reserves.
    Reserved(u16),
}

impl FatalError {
    /// FES and FEI.
    #[must_use]
    pub const fn to_fields(self) -> (u16, u32) {
        match self {
            Self::InvalidField(at) => (1, at),
            Self::Sequence => (2, 0),
            Self::HeaderDigest(received) => (3, received),
            Self::OutOfRange => (4, 0),
            Self::LimitExceeded => (5, 0),
            Self::Unsupported(at) => (6, at),
            Self::Reserved(status) => (status, 0),
        }
    }

    /// From FES and FEI.
    #[must_use]
    pub const fn from_fields(status: u16, information: u32) -> Self {
        match status {
            1 => Self::InvalidField(information),
            2 => Self::Sequence,
            3 => Self::HeaderDigest(information),
            4 => Self::OutOfRange,
            5 => Self::LimitExceeded,
            6 => Self::Unsupported(information),
            _ => Self::Reserved(status),
        }
    }

    /// The whole termination request of `kind` (`H2C_TERM` or `C2H_TERM`): FES (8..10), FEI (10..14), zero up to 24, and as much of
    /// `header`, the header in error, as fits.
    #[must_use]
    pub fn to_pdu(self, kind: u8, header: &[u8]) -> heapless::Vec<u8, TERM_BYTES_MAX> {
        let header = &header[..header.len().min(TERM_BYTES_MAX - SHORT_BYTES)];
        let len = u32::try_from(SHORT_BYTES + header.len()).expect("152 at most");
        let common = CommonHeader { kind, flags: 0, header_len: 24, data_at: 0, len };
        let (status, information) = self.to_fields();
        let mut pdu = heapless::Vec::new();
        let mut put = |field: &[u8]| pdu.extend_from_slice(field).expect("TERM_BYTES_MAX holds the longest");
        put(&common.to_bytes());
        put(&status.to_le_bytes());
        put(&information.to_le_bytes());
        put(&[0; 10]);
        put(header);
        pdu
    }

    /// From the header of a termination request.
    #[must_use]
    pub fn from_pdu(header: &[u8; SHORT_BYTES]) -> Self {
        Self::from_fields(bytes::u16_at(header, 8), bytes::u32_at(header, 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_requests_lie_where_3_6_2_puts_them() {
        let request = IcReq { version: 0, alignment: 3, header_digest: true, data_digest: false, r2t_max: 0x0102_0304 };
        let pdu = request.to_bytes();
        assert_eq!(pdu[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 1, 4, 3, 2, 1]);
        assert_eq!(IcReq::from_bytes(&pdu), request);
        let response =
            IcResp { version: 0, alignment: 0, header_digest: false, data_digest: true, data_max: DATA_MAX_MIN };
        let pdu = response.to_bytes();
        assert_eq!(pdu[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 2, 0, 0x10, 0, 0]);
        assert_eq!(IcResp::from_bytes(&pdu), response);
    }

    #[test]
    fn data_headers_and_terminations_return() {
        let header = DataHeader { command: CommandId(0x0102), tag: 0x0304, offset: 4096, len: 8192 };
        assert_eq!(header.to_bytes(), [2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
        assert_eq!(DataHeader::from_bytes(&header.to_bytes()), header);
        for error in [FatalError::InvalidField(9), FatalError::Sequence, FatalError::HeaderDigest(0xdead_beef)] {
            let pdu = error.to_pdu(kind::C2H_TERM, &[7; 200]);
            assert_eq!((pdu.len(), pdu[4]), (152, 152));
            assert_eq!(FatalError::from_pdu(&bytes::array(&pdu, 0)), error);
        }
    }
}
