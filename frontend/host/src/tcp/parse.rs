//! PDUs from the controller, found and checked in the bytes that came (NVMe/TCP 1.0, 3.6). A pure function of the bytes and of what
//! was negotiated.

use dyad_nvme::tcp::{CommonHeader, DIGEST_BYTES, DataHeader, FatalError, SHORT_BYTES, flags, kind};
use dyad_nvme::{CompletionEntry, bytes};

/// What the connection agreed on.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
}

/// What the bytes hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Not enough yet: so many bytes are needed in all.
    More(usize),
    /// A PDU, up to its data.
    Pdu(Pdu),
}

/// A PDU without its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pdu {
    /// Bytes before the data, padding included.
    pub(super) head: usize,
    pub(super) content: Content,
}

/// What a PDU says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A command is complete.
    Response(CompletionEntry),
    /// Data of a command follows; with it the command is complete if `success`.
    Data { header: DataHeader, success: bool },
    /// Data is asked for.
    ReadyToTransfer(DataHeader),
    /// The controller gives up, and why.
    Terminate(FatalError),
}

/// The PDU that `bytes` begin with.
///
/// # Errors
/// What to end the connection with.
pub(super) fn parse(bytes: &[u8], params: Params) -> Result<Parsed, FatalError> {
    let Some(common) = bytes.first_chunk::<{ CommonHeader::BYTES }>() else {
        return Ok(Parsed::More(CommonHeader::BYTES));
    };
    let common = CommonHeader::from_bytes(*common);
    if !matches!(common.kind, kind::RESPONSE | kind::C2H_DATA | kind::R2T | kind::C2H_TERM) {
        return Err(FatalError::InvalidField(CommonHeader::KIND_AT));
    }
    if usize::from(common.header_len) != SHORT_BYTES {
        return Err(FatalError::InvalidField(CommonHeader::HEADER_LEN_AT));
    }
    let digested = params.header_digest && common.kind != kind::C2H_TERM;
    if (common.flags & flags::HEADER_DIGEST != 0) != digested {
        return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
    }
    let head = SHORT_BYTES + if digested { DIGEST_BYTES } else { 0 };
    let Some(header) = bytes.get(..head) else { return Ok(Parsed::More(head)) };
    if digested {
        let received = bytes::u32_at(header, SHORT_BYTES);
        if crc32c::crc32c(&header[..SHORT_BYTES]) != received {
            return Err(FatalError::HeaderDigest(received));
        }
    }
    let rest = bytes::array::<16>(header, CommonHeader::BYTES);
    let len = usize::try_from(common.len).expect("32 bits fit");
    let content = match common.kind {
        kind::C2H_TERM => Content::Terminate(FatalError::from_pdu(&bytes::array(header, 0))),
        kind::C2H_DATA => {
            let data = DataHeader::from_bytes(&rest);
            let at = usize::from(common.data_at);
            let tail = if params.data_digest { DIGEST_BYTES } else { 0 };
            if at < head || !at.is_multiple_of(4) {
                return Err(FatalError::InvalidField(CommonHeader::DATA_AT_AT));
            }
            if (common.flags & flags::DATA_DIGEST != 0) != params.data_digest {
                return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
            }
            let payload = usize::try_from(data.len).expect("32 bits fit");
            if payload == 0 || at.checked_add(payload).and_then(|end| end.checked_add(tail)) != Some(len) {
                return Err(FatalError::InvalidField(CommonHeader::LEN_AT));
            }
            // Success completes the command, so nothing may follow (3.3.2.1).
            let (last, success) = (common.flags & flags::LAST != 0, common.flags & flags::SUCCESS != 0);
            if success && !last {
                return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
            }
            if bytes.len() < at {
                return Ok(Parsed::More(at));
            }
            return Ok(Parsed::Pdu(Pdu { head: at, content: Content::Data { header: data, success } }));
        }
        _ if len != head => return Err(FatalError::InvalidField(CommonHeader::LEN_AT)),
        kind::R2T => Content::ReadyToTransfer(DataHeader::from_bytes(&rest)),
        _ => Content::Response(CompletionEntry::from_bytes(rest)),
    };
    Ok(Parsed::Pdu(Pdu { head, content }))
}

#[cfg(test)]
mod tests {
    use dyad_nvme::types::CommandId;

    use super::*;

    const PLAIN: Params = Params { header_digest: false, data_digest: false };

    fn pdu(kind: u8, flags: u8, header_len: u8, data_at: u8, len: u32, rest: [u8; 16]) -> Vec<u8> {
        let mut pdu = CommonHeader { kind, flags, header_len, data_at, len }.to_bytes().to_vec();
        pdu.extend(rest);
        pdu
    }

    #[test]
    fn what_a_controller_says_is_found_or_refused() {
        let header = DataHeader { command: CommandId(3), tag: 0, offset: 0, len: 8 };
        let data = |flags, at, len| pdu(kind::C2H_DATA, flags, 24, at, len, header.to_bytes());
        let field = |at| Err(FatalError::InvalidField(at));
        let found = Content::Data { header, success: true };
        assert_eq!(parse(&data(12, 24, 32), PLAIN), Ok(Parsed::Pdu(Pdu { head: 24, content: found })));
        assert_eq!(parse(&data(12, 28, 36), PLAIN), Ok(Parsed::More(28)), "padding");
        assert_eq!(parse(&data(8, 24, 32), PLAIN), field(1), "success without last");
        assert_eq!(parse(&data(0, 24, 33), PLAIN), field(4));
        assert_eq!(parse(&data(0, 20, 28), PLAIN), field(3));
        assert_eq!(parse(&data(2, 24, 32), PLAIN), field(1));
        assert_eq!(parse(&pdu(kind::COMMAND, 0, 72, 0, 72, [0; 16]), PLAIN), field(0));
        assert_eq!(parse(&pdu(kind::R2T, 0, 25, 0, 24, [0; 16]), PLAIN), field(2));
        assert_eq!(parse(&pdu(kind::RESPONSE, 0, 24, 0, 28, [0; 16]), PLAIN), field(4));
        for len in 0..24 {
            assert!(matches!(parse(&data(0, 24, 32)[..len], PLAIN), Ok(Parsed::More(needed)) if needed > len));
        }
        let digests = Params { header_digest: true, data_digest: false };
        let mut response = pdu(kind::RESPONSE, 1, 24, 0, 28, [7; 16]);
        response.extend(crc32c::crc32c(&response).to_le_bytes());
        assert!(matches!(parse(&response, digests), Ok(Parsed::Pdu(Pdu { head: 28, .. }))));
        response[10] ^= 1;
        assert!(matches!(parse(&response, digests), Err(FatalError::HeaderDigest(_))));
    }
}
