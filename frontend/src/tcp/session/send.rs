//! The queue of PDUs as bytes: headers are made for the call, data is named where it lies.

use dyad_matrix::Memory;
use dyad_matrix::socket::{Batch, Moved};
use dyad_nvme::tcp::SHORT_BYTES;

use super::{CommonHeader, CompletionEntry, DIGEST_BYTES, DataHeader, Outgoing, Phase, Session, Transfer, flags, kind};

/// Most header bytes of one PDU: a header padded to 128 bytes, a digest, a response.
const PDU_HEADERS: usize = 200;
/// Most pieces of one PDU: its head, a run of frames, its tail.
const PDU_PIECES: usize = 18;

/// How headers are made on a connection.
#[derive(Copy, Clone)]
struct Style {
    header_digest: bool,
    data_digest: bool,
    /// Data begins at a multiple of this.
    unit: usize,
    flow_control: bool,
}

impl Style {
    fn header(self, batch: &mut Batch<'_>, kind: u8, extra: u8, rest: &[u8; 16], data: Option<u32>) {
        let digest = if self.header_digest { DIGEST_BYTES } else { 0 };
        let head = SHORT_BYTES + digest;
        let data_at = data.map(|_| head.next_multiple_of(self.unit));
        let tail = if data.is_some() && self.data_digest { DIGEST_BYTES } else { 0 };
        let around = u32::try_from(data_at.unwrap_or(head) + tail).expect("short");
        let common = CommonHeader {
            kind,
            flags: extra
                | if self.header_digest { flags::HEADER_DIGEST } else { 0 }
                | if tail > 0 { flags::DATA_DIGEST } else { 0 },
            header_len: 24,
            data_at: u8::try_from(data_at.unwrap_or(0)).expect("at most 128"),
            len: around + data.unwrap_or(0),
        };
        let start = batch.mark();
        batch.header(&common.to_bytes());
        batch.header(rest);
        if self.header_digest {
            let crc = crc32c::crc32c(batch.since(start));
            batch.header(&crc.to_le_bytes());
        }
        if let Some(at) = data_at {
            batch.header(&[0; 128][..at - head]);
        }
    }

    fn response(self, batch: &mut Batch<'_>, response: CompletionEntry) {
        self.header(batch, kind::RESPONSE, 0, &response.to_bytes(), None);
    }

    /// Data that completes its command says so itself if the host does not look at submission queue heads (3.3.2.1).
    fn data_flags(self, response: Option<CompletionEntry>) -> u8 {
        match response {
            None => 0,
            Some(_) if self.flow_control => flags::LAST,
            Some(response) if response.result() != 0 => flags::LAST,
            Some(_) => flags::LAST | flags::SUCCESS,
        }
    }
}

impl Session {
    fn style(&self) -> Style {
        Style {
            header_digest: self.params.header_digest,
            data_digest: self.params.data_digest,
            unit: 4 * (usize::from(self.host_alignment) + 1),
            flow_control: self.flow_control,
        }
    }

    /// Sends what is queued, as far as the kernel takes it. Bytes sent; `None` if the host is gone.
    pub(in super::super) fn send(&mut self, memory: &Memory) -> Option<usize> {
        let mut moved = 0;
        while !self.out.is_empty() && self.writable {
            self.calls += 1;
            let (sent, lengths, whole) = {
                let batch = self.batch();
                let (sent, whole) = batch.send(&self.socket, memory, self.sent);
                (sent, batch.lengths(), whole)
            };
            match sent {
                Moved::Gone => return None,
                Moved::Blocked => self.writable = false,
                Moved::Bytes(bytes) => {
                    moved += bytes;
                    self.writable = whole;
                    self.was_sent(&lengths, bytes);
                }
            }
        }
        if self.out.is_empty() && self.finish && self.phase == Phase::Ending {
            self.finish = false;
            self.socket.finish();
        }
        Some(moved)
    }

    /// The PDUs at the head of the queue, as many as one call takes.
    fn batch(&self) -> Batch<'_> {
        let style = self.style();
        let mut batch = Batch::new();
        for out in &self.out {
            if !batch.has_room(PDU_HEADERS, PDU_PIECES) {
                break;
            }
            self.encode(style, &mut batch, out);
            batch.end();
        }
        batch
    }

    fn encode<'a>(&'a self, style: Style, batch: &mut Batch<'a>, out: &'a Outgoing) {
        match out {
            Outgoing::Raw(pdu) => batch.header(pdu),
            Outgoing::Response(response) => style.response(batch, *response),
            Outgoing::ReadyToTransfer { slot, at, len } => {
                let command = self.slots[usize::from(*slot)].id;
                let header = DataHeader { command, tag: *slot, offset: *at, len: *len };
                style.header(batch, kind::R2T, 0, &header.to_bytes(), None);
            }
            Outgoing::Data { slot, response } => {
                let slot = &self.slots[usize::from(*slot)];
                let Transfer::Deliver { segments, at, len, crc } = &slot.transfer else {
                    unreachable!("data is queued as long as it is delivered")
                };
                let header = DataHeader { command: slot.id, tag: 0, offset: *at, len: *len };
                let extra = style.data_flags(*response);
                style.header(batch, kind::C2H_DATA, extra, &header.to_bytes(), Some(*len));
                segments.iter().for_each(|segment| batch.memory(*segment));
                if style.data_digest {
                    batch.header(&crc.to_le_bytes());
                }
                if let Some(response) = response.filter(|_| extra & flags::SUCCESS == 0) {
                    style.response(batch, response);
                }
            }
            Outgoing::AdminData { bytes, response } => {
                let len = u32::try_from(bytes.len()).expect("one transfer at most");
                let header = DataHeader { command: response.command(), tag: 0, offset: 0, len };
                style.header(batch, kind::C2H_DATA, flags::LAST, &header.to_bytes(), Some(len));
                batch.bytes(bytes);
                if style.data_digest {
                    batch.header(&crc32c::crc32c(bytes).to_le_bytes());
                }
                style.response(batch, *response);
            }
        }
    }

    /// Takes what was sent from the queue, and wakes whoever waits for that.
    fn was_sent(&mut self, lengths: &[usize], bytes: usize) {
        self.sent += bytes;
        for length in lengths {
            if self.sent < *length {
                break;
            }
            self.sent -= length;
            if let Some(Outgoing::Data { slot, .. }) = self.out.pop_front() {
                let slot = self.slot(slot);
                slot.transfer = Transfer::Done;
                slot.wake();
            }
        }
    }
}
