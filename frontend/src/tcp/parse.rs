//! PDUs from the host, found and checked in the bytes that came (NVMe/TCP 1.0, 3.6). A pure function of the bytes and of what was
//! negotiated; whatever breaks a rule is named with the fatal error status that the specification has for it.

use dyad_nvme::tcp::{
    ADMIN_IN_CAPSULE_BYTES, ALIGNMENT_MAX, COMMAND_BYTES, CommonHeader, DIGEST_BYTES, DataHeader, FatalError, IC_BYTES,
    IcReq, SHORT_BYTES, flags, kind,
};
use dyad_nvme::{SubmissionEntry, bytes};

/// What a connection agreed on, and how far it is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Params {
    /// `IC_REQ` was taken.
    pub started: bool,
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// CPDA: how the host aligns data in its PDUs.
    pub alignment: u8,
    /// Bytes of data in a command capsule.
    pub in_capsule_max: u32,
    /// MAXH2CDATA: bytes of data in a data PDU.
    pub data_max: u32,
}

impl Params {
    /// Before `IC_REQ`.
    #[must_use]
    pub const fn new(alignment: u8, data_max: u32) -> Self {
        Self {
            started: false,
            header_digest: false,
            data_digest: false,
            alignment,
            in_capsule_max: ADMIN_IN_CAPSULE_BYTES,
            data_max,
        }
    }
}

/// What the bytes hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Not enough yet: so many bytes are needed in all.
    More(usize),
    /// A PDU, up to its data.
    Pdu(Pdu),
}

/// A PDU without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pdu {
    /// Bytes before the data, padding included.
    pub head: usize,
    /// What it says.
    pub content: Content,
    /// Bytes of data that follow.
    pub payload: u32,
    /// A digest follows the data.
    pub digest: bool,
}

/// What a PDU says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The host wants to begin.
    Init(IcReq),
    /// A command, perhaps with data.
    Command(SubmissionEntry),
    /// Data that was asked for.
    Data {
        /// Which.
        header: DataHeader,
        /// Nothing of this transfer comes after it.
        last: bool,
    },
    /// The host gives up, and why.
    Terminate(FatalError),
}

/// The PDU that `bytes` begin with.
///
/// # Errors
/// What to end the connection with.
pub fn parse(bytes: &[u8], params: &Params) -> Result<Parsed, FatalError> {
    let Some(common) = bytes.first_chunk::<{ CommonHeader::BYTES }>() else {
        return Ok(Parsed::More(CommonHeader::BYTES));
    };
    let common = CommonHeader::from_bytes(*common);
    let (header_len, may_have_digest) = match common.kind {
        kind::IC_REQ => (IC_BYTES, false),
        kind::H2C_TERM => (SHORT_BYTES, false),
        kind::COMMAND => (COMMAND_BYTES, true),
        kind::H2C_DATA => (SHORT_BYTES, true),
        _ => return Err(FatalError::InvalidField(CommonHeader::KIND_AT)),
    };
    // First of all, once, and nothing else before it (3.1).
    let in_order = match common.kind {
        kind::IC_REQ => !params.started,
        kind::H2C_TERM => true,
        _ => params.started,
    };
    if !in_order {
        return Err(FatalError::Sequence);
    }
    if usize::from(common.header_len) != header_len {
        return Err(FatalError::InvalidField(CommonHeader::HEADER_LEN_AT));
    }
    let digested = may_have_digest && params.header_digest;
    if may_have_digest && (common.flags & flags::HEADER_DIGEST != 0) != digested {
        return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
    }
    let head = header_len + if digested { DIGEST_BYTES } else { 0 };
    let Some(header) = bytes.get(..head) else { return Ok(Parsed::More(head)) };
    if digested {
        // Before anything in the header but its length is believed (3.5, digest errors).
        let received = bytes::u32_at(header, header_len);
        if crc32c::crc32c(&header[..header_len]) != received {
            return Err(FatalError::HeaderDigest(received));
        }
    }
    let layout = Layout { common, head };
    match common.kind {
        kind::IC_REQ => {
            layout.exact(IC_BYTES)?;
            let request = IcReq::from_bytes(&bytes::array(header, 0));
            if request.version != 0 {
                return Err(FatalError::Unsupported(IcReq::VERSION_AT));
            }
            if request.alignment > ALIGNMENT_MAX {
                return Err(FatalError::InvalidField(IcReq::ALIGNMENT_AT));
            }
            Ok(Parsed::Pdu(Pdu { head, content: Content::Init(request), payload: 0, digest: false }))
        }
        kind::H2C_TERM => {
            // What it quotes, and how much of it, is of no interest: nothing is read after it (3.5).
            let content = Content::Terminate(FatalError::from_pdu(&bytes::array(header, 0)));
            Ok(Parsed::Pdu(Pdu { head, content, payload: 0, digest: false }))
        }
        kind::COMMAND => {
            let content = Content::Command(SubmissionEntry::from_bytes(bytes::array(header, 8)));
            if layout.len() == head {
                return Ok(Parsed::Pdu(Pdu { head, content, payload: 0, digest: false }));
            }
            layout.with_data(bytes.len(), content, params, params.in_capsule_max)
        }
        _ => {
            let data = DataHeader::from_bytes(&bytes::array(header, 8));
            let content = Content::Data { header: data, last: common.flags & flags::LAST != 0 };
            let parsed = layout.with_data(bytes.len(), content, params, params.data_max)?;
            match &parsed {
                Parsed::Pdu(pdu) if pdu.payload != data.len => Err(FatalError::InvalidField(DataHeader::LEN_AT)),
                _ => Ok(parsed),
            }
        }
    }
}

/// Where the parts of a PDU are.
struct Layout {
    common: CommonHeader,
    /// Header and its digest.
    head: usize,
}

impl Layout {
    fn len(&self) -> usize {
        usize::try_from(self.common.len).expect("32 bits fit")
    }

    fn exact(&self, len: usize) -> Result<(), FatalError> {
        if self.len() == len { Ok(()) } else { Err(FatalError::InvalidField(CommonHeader::LEN_AT)) }
    }

    /// A PDU with data, of which `have` bytes are here.
    fn with_data(&self, have: usize, content: Content, params: &Params, limit: u32) -> Result<Parsed, FatalError> {
        let at = usize::from(self.common.data_at);
        let unit = 4 * (usize::from(params.alignment) + 1);
        if at < self.head || !at.is_multiple_of(unit) {
            return Err(FatalError::InvalidField(CommonHeader::DATA_AT_AT));
        }
        let digest = params.data_digest;
        if (self.common.flags & flags::DATA_DIGEST != 0) != digest {
            return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
        }
        let around = at + if digest { DIGEST_BYTES } else { 0 };
        let payload = self.len().checked_sub(around).filter(|payload| *payload > 0);
        let payload = payload.ok_or(FatalError::InvalidField(CommonHeader::LEN_AT))?;
        let payload = u32::try_from(payload).expect("it is part of 32 bits");
        if payload > limit {
            return Err(FatalError::LimitExceeded);
        }
        Ok(if have < at { Parsed::More(at) } else { Parsed::Pdu(Pdu { head: at, content, payload, digest }) })
    }
}

#[cfg(test)]
mod tests {
    use dyad_nvme::types::{BlockCount, CommandId, Lba, NamespaceId};
    use proptest::prelude::*;

    use super::*;

    const STARTED: Params = Params {
        started: true,
        header_digest: false,
        data_digest: false,
        alignment: 0,
        in_capsule_max: 8192,
        data_max: 65536,
    };

    fn common(kind: u8, flags: u8, header_len: u8, data_at: u8, len: u32) -> Vec<u8> {
        let mut pdu = CommonHeader { kind, flags, header_len, data_at, len }.to_bytes().to_vec();
        pdu.resize(256, 0);
        pdu
    }

    fn fatal(pdu: &[u8], params: &Params) -> FatalError {
        parse(pdu, params).expect_err("it is malformed")
    }

    #[test]
    fn each_class_of_malformed_pdu_has_its_status() {
        let fresh = Params { started: false, ..STARTED };
        let field = FatalError::InvalidField;
        for (pdu, params, expected) in [
            (common(kind::COMMAND, 0, 72, 0, 72), fresh, FatalError::Sequence),
            (common(kind::IC_REQ, 0, 128, 0, 128), STARTED, FatalError::Sequence),
            (common(kind::IC_RESP, 0, 128, 0, 128), fresh, field(0)),
            (common(kind::C2H_DATA, 0, 24, 24, 28), STARTED, field(0)),
            (common(kind::R2T, 0, 24, 0, 24), STARTED, field(0)),
            (common(0x08, 0, 24, 0, 24), STARTED, field(0)),
            (common(kind::COMMAND, 0, 71, 0, 72), STARTED, field(2)),
            (common(kind::COMMAND, 1, 72, 0, 72), STARTED, field(1)),
            (common(kind::COMMAND, 0, 72, 0, 71), STARTED, field(3)),
            (common(kind::COMMAND, 0, 72, 72, 71), STARTED, field(4)),
            (common(kind::COMMAND, 0, 72, 74, 80), STARTED, field(3)),
            (common(kind::COMMAND, 0, 72, 68, 80), STARTED, field(3)),
            (common(kind::COMMAND, 0, 72, 76, 76), STARTED, field(4)),
            (common(kind::COMMAND, 2, 72, 72, 80), STARTED, field(1)),
            (common(kind::COMMAND, 0, 72, 72, 72 + 8193), STARTED, FatalError::LimitExceeded),
            (common(kind::COMMAND, 0, 72, 72, u32::MAX), STARTED, FatalError::LimitExceeded),
            (common(kind::H2C_DATA, 0, 24, 24, 24), STARTED, field(4)),
            (common(kind::H2C_DATA, 0, 24, 24, 28), STARTED, field(16)),
            (common(kind::H2C_DATA, 0, 24, 24, 24 + 65537), STARTED, FatalError::LimitExceeded),
            (common(kind::IC_REQ, 0, 128, 0, 129), fresh, field(4)),
            (common(kind::COMMAND, 0, 72, 72, 80), Params { alignment: 3, ..STARTED }, field(3)),
            (common(kind::COMMAND, 0, 72, 0, 72), Params { header_digest: true, ..STARTED }, field(1)),
            (
                common(kind::COMMAND, 1, 72, 0, 76),
                Params { header_digest: true, ..STARTED },
                FatalError::HeaderDigest(0),
            ),
        ] {
            assert_eq!(fatal(&pdu, &params), expected, "{:?} under {params:?}", &pdu[..8]);
        }
        let long = parse(&common(kind::H2C_TERM, 0, 24, 0, 153), &STARTED);
        let ended = |parsed| matches!(parsed, Ok(Parsed::Pdu(Pdu { content: Content::Terminate(_), .. })));
        assert!(ended(long), "it is no answer that it wants");
        let request = IcReq { version: 1, alignment: 0, header_digest: false, data_digest: false, r2t_max: 0 };
        assert_eq!(fatal(&request.to_bytes(), &fresh), FatalError::Unsupported(8));
        let request = IcReq { version: 0, alignment: 32, ..request };
        assert_eq!(fatal(&request.to_bytes(), &fresh), field(10));
    }

    #[test]
    fn good_pdus_are_found_wherever_they_are_cut() {
        let entry = SubmissionEntry::write(NamespaceId(1), Lba(5), BlockCount(1), false).with_command(CommandId(9));
        let params = Params { header_digest: true, data_digest: true, alignment: 1, ..STARTED };
        let mut pdu = CommonHeader { kind: kind::COMMAND, flags: 3, header_len: 72, data_at: 80, len: 80 + 4096 + 4 }
            .to_bytes()
            .to_vec();
        pdu.extend(entry.as_bytes());
        pdu.extend(crc32c::crc32c(&pdu).to_le_bytes());
        pdu.resize(80, 0);
        let expected = Pdu { head: 80, content: Content::Command(entry), payload: 4096, digest: true };
        assert_eq!(parse(&pdu, &params), Ok(Parsed::Pdu(expected)));
        for len in 0..80 {
            let Ok(Parsed::More(needed)) = parse(&pdu[..len], &params) else { panic!("{len} bytes are not enough") };
            assert!(needed > len && needed <= 80);
        }
        pdu[20] ^= 1;
        assert!(matches!(parse(&pdu, &params), Err(FatalError::HeaderDigest(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(
            kind in prop_oneof![Just(0_u8), Just(2), Just(4), Just(6), any::<u8>()],
            flags in any::<u8>(),
            header_len in prop_oneof![Just(24_u8), Just(72), Just(128), any::<u8>()],
            data_at in any::<u8>(),
            len in prop_oneof![0..300_u32, any::<u32>()],
            rest in proptest::collection::vec(any::<u8>(), 0..260),
            started in any::<bool>(),
            header_digest in any::<bool>(),
            data_digest in any::<bool>(),
            alignment in 0..32_u8,
        ) {
            let mut pdu = CommonHeader { kind, flags, header_len, data_at, len }.to_bytes().to_vec();
            pdu.extend(rest);
            let params = Params { started, header_digest, data_digest, alignment, ..STARTED };
            match parse(&pdu, &params) {
                Ok(Parsed::More(needed)) => prop_assert!(needed > pdu.len() && needed <= 255),
                Ok(Parsed::Pdu(found)) => {
                    let tail = if found.digest { 4 } else { 0 };
                    let whole = found.head + usize::try_from(found.payload).unwrap() + tail;
                    prop_assert!(found.head <= pdu.len() && found.head <= 255);
                    if !matches!(found.content, Content::Terminate(_)) {
                        prop_assert_eq!(whole, usize::try_from(len).unwrap());
                    }
                    prop_assert!(found.payload <= params.data_max);
                }
                Err(_) => {}
            }
        }
    }
}
