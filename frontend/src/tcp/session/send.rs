//! The queue of PDUs as bytes: headers are written anew for each call, into room that lasts as long as it, and data is named where
//! it lies. A call that took half a PDU is followed by one that begins in its middle: the bytes are the same again.

use dyad_matrix::{Memory, Segment};
use dyad_nvme::tcp::SHORT_BYTES;

use super::super::socket::{Gather, Moved, PIECES_MAX};
use super::{
    CommonHeader, CompletionEntry, DIGEST_BYTES, DataHeader, Outgoing, Phase, Session, Transfer, bytes, flags, kind,
};

/// Bytes of headers and digests in one call.
const SCRATCH: usize = 4096;
/// Most bytes that one PDU adds to them: a header padded to 128 bytes, a digest, a response.
const PDU_SCRATCH: usize = 200;
/// Most pieces of one PDU: its head, a run of frames, its tail.
const PDU_PIECES: usize = 18;
/// Most PDUs of one call.
const PDUS: usize = 32;

enum Piece {
    Scratch(usize, usize),
    Memory(Segment),
    /// The bytes of the PDU at this place of the queue.
    Owned(usize),
}

struct Batch {
    scratch: [u8; SCRATCH],
    used: usize,
    pieces: heapless::Vec<Piece, PIECES_MAX>,
    /// Bytes of each PDU.
    lengths: heapless::Vec<usize, PDUS>,
    total: usize,
}

impl Batch {
    fn put(&mut self, field: &[u8]) {
        bytes::put(&mut self.scratch, self.used, field);
        match self.pieces.last_mut() {
            Some(Piece::Scratch(_, end)) if *end == self.used => *end += field.len(),
            _ => self.piece(Piece::Scratch(self.used, self.used + field.len())),
        }
        self.used += field.len();
        self.total += field.len();
    }

    fn piece(&mut self, piece: Piece) {
        assert!(self.pieces.push(piece).is_ok(), "a PDU is begun only if there is room for it");
    }

    fn has_room(&self) -> bool {
        self.used + PDU_SCRATCH <= SCRATCH && self.pieces.len() + PDU_PIECES <= PIECES_MAX && !self.lengths.is_full()
    }
}

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
    fn header(self, batch: &mut Batch, kind: u8, extra: u8, rest: &[u8; 16], data: Option<u32>) {
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
        let start = batch.used;
        batch.put(&common.to_bytes());
        batch.put(rest);
        if self.header_digest {
            let crc = crc32c::crc32c(&batch.scratch[start..batch.used]);
            batch.put(&crc.to_le_bytes());
        }
        if let Some(at) = data_at {
            batch.put(&[0; 128][..at - head]);
        }
    }

    fn response(self, batch: &mut Batch, response: CompletionEntry) {
        self.header(batch, kind::RESPONSE, 0, &response.to_bytes(), None);
    }

    /// Data that completes its command says so itself if the host does not look at submission queue heads (3.3.2.2).
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
            let batch = self.batch();
            let mut gather = Gather::new();
            let mut skip = self.sent;
            for piece in &batch.pieces {
                match piece {
                    Piece::Scratch(from, to) => {
                        let cut = skip.min(to - from);
                        gather.bytes(&batch.scratch[from + cut..*to]);
                        skip -= cut;
                    }
                    Piece::Owned(at) => {
                        let Outgoing::AdminData { bytes, .. } = &self.out[*at] else { continue };
                        let cut = skip.min(bytes.len());
                        gather.bytes(&bytes[cut..]);
                        skip -= cut;
                    }
                    Piece::Memory(segment) => {
                        let len = usize::try_from(segment.len).expect("32 bits fit");
                        let cut = u32::try_from(skip.min(len)).expect("32 bits fit");
                        let rest = Segment {
                            offset: segment.offset + u64::from(cut),
                            len: segment.len - cut,
                            memory: segment.memory,
                        };
                        gather.memory(memory, rest);
                        skip -= skip.min(len);
                    }
                }
            }
            let wanted = gather.len();
            match self.socket.send(&gather) {
                Moved::Gone => return None,
                Moved::Blocked => self.writable = false,
                Moved::Bytes(bytes) => {
                    moved += bytes;
                    self.writable = bytes == wanted;
                    self.was_sent(&batch.lengths, bytes);
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
    fn batch(&self) -> Batch {
        let style = self.style();
        let mut batch = Batch {
            scratch: [0; SCRATCH],
            used: 0,
            pieces: heapless::Vec::new(),
            lengths: heapless::Vec::new(),
            total: 0,
        };
        for (place, out) in self.out.iter().enumerate() {
            if !batch.has_room() {
                break;
            }
            let before = batch.total;
            self.encode(style, &mut batch, place, out);
            assert!(batch.lengths.push(batch.total - before).is_ok(), "there is room");
        }
        batch
    }

    fn encode(&self, style: Style, batch: &mut Batch, place: usize, out: &Outgoing) {
        match out {
            Outgoing::Raw(pdu) => batch.put(pdu),
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
                for segment in segments {
                    batch.piece(Piece::Memory(*segment));
                    batch.total += usize::try_from(segment.len).expect("32 bits fit");
                }
                if style.data_digest {
                    batch.put(&crc.to_le_bytes());
                }
                if let Some(response) = response.filter(|_| extra & flags::SUCCESS == 0) {
                    style.response(batch, response);
                }
            }
            Outgoing::AdminData { bytes, response } => {
                let len = u32::try_from(bytes.len()).expect("one transfer at most");
                let header = DataHeader { command: response.command(), tag: 0, offset: 0, len };
                style.header(batch, kind::C2H_DATA, flags::LAST, &header.to_bytes(), Some(len));
                batch.piece(Piece::Owned(place));
                batch.total += bytes.len();
                if style.data_digest {
                    batch.put(&crc32c::crc32c(bytes).to_le_bytes());
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
