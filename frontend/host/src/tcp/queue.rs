//! One connection to a controller: an NVMe queue. Data goes straight from and to the frames of the commands; nothing here waits.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::task::Waker;
use std::time::Duration;

use dyad_matrix::frames::Segments;
use dyad_matrix::socket::{Batch, Moved, Scatter, Socket, Window};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::tcp::{
    COMMAND_BYTES, CommonHeader, DATA_MAX_MIN, DIGEST_BYTES, DataHeader, FatalError, IC_BYTES, IcReq, IcResp,
    SHORT_BYTES, flags, kind,
};
use dyad_nvme::types::CommandId;
use dyad_nvme::{CompletionEntry, SglDescriptor, Status, SubmissionEntry};

use super::parse::{Content, Params, Parsed, parse};

/// How a connection is to be.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
}

/// Which way a command's data goes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Way {
    ToHost,
    FromHost,
}

struct Slot {
    used: bool,
    entry: SubmissionEntry,
    way: Way,
    segments: Segments,
    /// Bytes of data in all.
    total: u32,
    /// Bytes that have come, or that the controller has asked for.
    got: u32,
    completion: Option<CompletionEntry>,
    waker: Option<Waker>,
    /// Nobody waits for it any more; its frames are kept all the same until the controller is done with it.
    abandoned: bool,
}

enum Outgoing {
    Command { slot: u16 },
    Data { slot: u16, tag: u16, at: u32, len: u32, last: bool },
}

enum Intake {
    Header,
    Payload { slot: u16, left: u32, crc: u32, success: bool },
    Digest { slot: u16, crc: u32, success: bool },
}

pub(super) struct Queue {
    pub(super) socket: Socket,
    params: Params,
    /// What the controller said.
    agreed: IcResp,
    /// Data of a command that goes into its capsule.
    pub(super) in_capsule_max: u32,
    window: Window,
    intake: Intake,
    slots: Vec<Slot>,
    free: Vec<u16>,
    out: VecDeque<Outgoing>,
    sent: usize,
    readable: bool,
    writable: bool,
    /// It is over.
    pub(super) dead: bool,
}

/// Most header bytes of one PDU: a command padded to 128 bytes, a digest.
const PDU_HEADERS: usize = 160;
/// Most pieces of one PDU: its head, a run of frames, its tail.
const PDU_PIECES: usize = 18;
/// Steps in one turn.
const STEPS: usize = 512;

impl Queue {
    /// Connects, and agrees on how PDUs are (3.1). The only thing here that waits: `timeout` for each step.
    ///
    /// # Errors
    /// The kernel's, or [`std::io::ErrorKind::InvalidData`] if the peer speaks something else.
    pub(super) fn open(
        address: SocketAddr,
        style: Style,
        entries: u16,
        timeout: Duration,
    ) -> Result<Self, std::io::Error> {
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let Style { header_digest, data_digest } = style;
        let request = IcReq { version: 0, alignment: 0, header_digest, data_digest, r2t_max: 0 };
        stream.write_all(&request.to_bytes())?;
        let mut response = [0; IC_BYTES];
        stream.read_exact(&mut response)?;
        let [kind, _, header_len, _, len @ ..] = *response.first_chunk::<8>().expect("128 bytes");
        let agreed = IcResp::from_bytes(&response);
        let fits = (kind, header_len, u32::from_le_bytes(len)) == (kind::IC_RESP, 128, 128)
            && agreed.version == 0
            // A digest that was not asked for is not the controller's to want (3.3.1.1).
            && (header_digest || !agreed.header_digest)
            && (data_digest || !agreed.data_digest)
            && agreed.alignment <= dyad_nvme::tcp::ALIGNMENT_MAX
            && agreed.data_max >= DATA_MAX_MIN;
        if !fits {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let slot = || Slot {
            used: false,
            entry: SubmissionEntry::default(),
            way: Way::FromHost,
            segments: Segments::new(),
            total: 0,
            got: 0,
            completion: None,
            waker: None,
            abandoned: false,
        };
        Ok(Self {
            socket: Socket::new(stream)?,
            params: Params { header_digest: agreed.header_digest, data_digest: agreed.data_digest },
            agreed,
            in_capsule_max: dyad_nvme::tcp::ADMIN_IN_CAPSULE_BYTES,
            window: Window::new(SHORT_BYTES + if agreed.header_digest { DIGEST_BYTES } else { 0 }),
            intake: Intake::Header,
            slots: (0..entries).map(|_| slot()).collect(),
            free: (0..entries).rev().collect(),
            out: VecDeque::with_capacity(usize::from(entries) * 2),
            sent: 0,
            readable: true,
            writable: true,
            dead: false,
        })
    }

    /// Its slots.
    pub(super) fn entries(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("as many as entries")
    }

    /// Queues a command with its data; `None` if all slots are taken. The frames must be held until the slot is given back.
    pub(super) fn submit(&mut self, entry: SubmissionEntry, way: Way, segments: Segments) -> Option<u16> {
        let index = self.free.pop()?;
        let total = segments.iter().map(|segment| segment.len).sum();
        let in_capsule = way == Way::FromHost && total > 0 && total <= self.in_capsule_max;
        let sgl = if in_capsule { SglDescriptor::in_capsule(0, total) } else { SglDescriptor::transport(total) };
        let slot = &mut self.slots[usize::from(index)];
        slot.entry = entry.with_command(CommandId(index)).with_sgl(sgl);
        (slot.used, slot.way, slot.segments, slot.total) = (true, way, segments, total);
        (slot.got, slot.completion, slot.waker, slot.abandoned) = (0, None, None, false);
        self.out.push_back(Outgoing::Command { slot: index });
        Some(index)
    }

    /// How a command ended, if it has; then its slot is free. Else it is told by the waker.
    pub(super) fn completion(&mut self, index: u16, waker: &Waker) -> Option<CompletionEntry> {
        let slot = &mut self.slots[usize::from(index)];
        let completion = slot.completion.take();
        match completion {
            Some(_) => self.give_back(index),
            None => slot.waker = Some(waker.clone()),
        }
        completion
    }

    fn give_back(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        (slot.used, slot.waker) = (false, None);
        self.free.push(index);
    }

    /// Nobody waits for a command any more. Whether the controller may still touch its frames: then the slot stays taken.
    pub(super) fn abandon(&mut self, index: u16) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        if slot.completion.is_some() || self.dead {
            self.give_back(index);
            return false;
        }
        slot.abandoned = true;
        true
    }

    /// Gives slots back whose commands nobody waits for and that have ended; which they were.
    pub(super) fn take_abandoned(&mut self) -> Option<u16> {
        let ended = |slot: &Slot| slot.used && slot.abandoned && slot.completion.is_some();
        let index = u16::try_from(self.slots.iter().position(ended)?).expect("as many as entries");
        self.give_back(index);
        Some(index)
    }

    /// The kernel may have something.
    pub(super) fn notice(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Sends and receives what can be; how much that was.
    pub(super) fn poll(&mut self, memory: &Memory) -> usize {
        if self.dead {
            return 0;
        }
        let moved = self.send(memory).and_then(|sent| Some(sent + self.receive(memory)?));
        let moved = moved.and_then(|moved| Some(moved + self.send(memory)?));
        if moved.is_none() {
            self.end();
        }
        moved.unwrap_or(1)
    }

    /// It is over: all commands end, as if their path had gone.
    pub(super) fn end(&mut self) {
        self.dead = true;
        self.out.clear();
        for slot in self.slots.iter_mut().filter(|slot| slot.used && slot.completion.is_none()) {
            let path_error = CompletionEntry::new(0, slot.entry.command(), Status::HOST_PATHING_ERROR);
            slot.complete(path_error);
        }
    }

    fn receive(&mut self, memory: &Memory) -> Option<usize> {
        let mut moved = 0;
        for _ in 0..STEPS {
            match self.step(memory) {
                Ok(true) => {}
                Ok(false) if !self.readable => break,
                Ok(false) => match self.read(memory) {
                    (Moved::Gone, _) => return None,
                    (Moved::Blocked, _) => self.readable = false,
                    (Moved::Bytes(bytes), whole) => {
                        self.readable = whole;
                        moved += bytes;
                    }
                },
                // The controller is told, if it listens; whatever it is, nothing more can be believed.
                Err(error) => {
                    self.out.clear();
                    let pdu = error.to_pdu(kind::H2C_TERM, &[]);
                    let mut batch = Batch::new();
                    batch.header(&pdu);
                    batch.end();
                    let _ = batch.send(&self.socket, memory, 0);
                    return None;
                }
            }
        }
        Some(moved)
    }

    /// Deals with what was received; false if more is needed.
    fn step(&mut self, memory: &Memory) -> Result<bool, FatalError> {
        match self.intake {
            Intake::Header => match parse(self.window.bytes(), self.params)? {
                Parsed::More(_) => Ok(false),
                Parsed::Pdu(pdu) => {
                    self.window.consume(pdu.head);
                    self.window.learn(matches!(pdu.content, Content::Data { .. }));
                    self.take(pdu.content)
                }
            },
            Intake::Payload { slot, left, .. } => {
                let here = u32::try_from(self.window.bytes().len()).unwrap_or(u32::MAX).min(left);
                if here == 0 {
                    return Ok(false);
                }
                let index = usize::from(slot);
                for segment in cut(&self.slots[index].segments, self.slots[index].got, here) {
                    let len = usize::try_from(segment.len).expect("32 bits fit");
                    memory.write(segment.offset, &self.window.bytes()[..len]).expect("segments lie in their memory");
                    self.window.consume(len);
                }
                self.received(memory, here);
                Ok(true)
            }
            Intake::Digest { slot, crc, success } => {
                let Some(digest) = self.window.bytes().first_chunk::<DIGEST_BYTES>() else { return Ok(false) };
                let damaged = u32::from_le_bytes(*digest) != crc;
                self.window.consume(DIGEST_BYTES);
                self.intake = Intake::Header;
                if damaged {
                    // What is in the frames is not what was sent, whatever the controller says about the command.
                    self.complete(slot, Status::TRANSIENT_TRANSPORT);
                } else if success {
                    self.complete(slot, Status::SUCCESS);
                }
                Ok(true)
            }
        }
    }

    fn take(&mut self, content: Content) -> Result<bool, FatalError> {
        match content {
            Content::Terminate(error) => Err(error),
            Content::Response(completion) => {
                let slot = self.slot_of(completion.command())?;
                self.slots[usize::from(slot)].complete(completion);
                Ok(true)
            }
            // In order and within the command's data (3.3.2.1).
            Content::Data { header, success } => {
                let index = self.slot_of(header.command)?;
                let slot = &self.slots[usize::from(index)];
                let end = header.offset.checked_add(header.len);
                if slot.way != Way::ToHost || slot.got == slot.total {
                    return Err(FatalError::Sequence);
                }
                if end.is_none_or(|end| end > slot.total) {
                    return Err(FatalError::OutOfRange);
                }
                if header.offset != slot.got {
                    return Err(FatalError::Sequence);
                }
                self.intake = Intake::Payload { slot: index, left: header.len, crc: 0, success };
                Ok(true)
            }
            Content::ReadyToTransfer(header) => {
                let index = self.slot_of(header.command)?;
                let slot = &mut self.slots[usize::from(index)];
                let fits = header.offset.checked_add(header.len).is_some_and(|end| end <= slot.total);
                if slot.way != Way::FromHost || !fits || header.len == 0 {
                    return Err(FatalError::OutOfRange);
                }
                // Each byte is asked for once (3.3.2.2): what is queued to be sent is bounded by that.
                if header.offset != slot.got {
                    return Err(FatalError::Sequence);
                }
                slot.got += header.len;
                let (mut at, end) = (header.offset, header.offset + header.len);
                while at < end {
                    let len = (end - at).min(self.agreed.data_max);
                    let last = at + len == end;
                    self.out.push_back(Outgoing::Data { slot: index, tag: header.tag, at, len, last });
                    at += len;
                }
                Ok(true)
            }
        }
    }

    fn slot_of(&self, command: CommandId) -> Result<u16, FatalError> {
        let slot = self.slots.get(usize::from(command.0));
        let open = slot.is_some_and(|slot| slot.used && slot.completion.is_none());
        if open { Ok(command.0) } else { Err(FatalError::InvalidField(DataHeader::COMMAND_AT)) }
    }

    fn complete(&mut self, index: u16, status: Status) {
        let slot = &mut self.slots[usize::from(index)];
        slot.complete(CompletionEntry::new(0, CommandId(index), status));
    }

    /// So many bytes of data are where they belong.
    fn received(&mut self, memory: &Memory, bytes: u32) {
        let Intake::Payload { slot, left, crc, success } = &mut self.intake else {
            unreachable!("bytes of data came while none were expected")
        };
        let index = usize::from(*slot);
        if self.params.data_digest {
            for segment in cut(&self.slots[index].segments, self.slots[index].got, bytes) {
                *crc = append(memory, *crc, segment);
            }
        }
        self.slots[index].got += bytes;
        *left -= bytes;
        if *left > 0 {
            return;
        }
        let (slot, crc, success) = (*slot, *crc, *success);
        if self.params.data_digest {
            self.intake = Intake::Digest { slot, crc, success };
        } else {
            self.intake = Intake::Header;
            if success {
                self.complete(slot, Status::SUCCESS);
            }
        }
    }

    /// Receives into where the next bytes belong, and whether all of the room was used.
    fn read(&mut self, memory: &Memory) -> (Moved, bool) {
        let mut scatter = Scatter::new();
        let mut direct = 0;
        let needed = match self.intake {
            Intake::Payload { slot, left, .. } => {
                let slot = &self.slots[usize::from(slot)];
                for segment in cut(&slot.segments, slot.got, left) {
                    scatter.memory(memory, segment);
                }
                direct = left;
                0
            }
            Intake::Header => match parse(self.window.bytes(), self.params) {
                Ok(Parsed::More(needed)) => needed,
                _ => 0,
            },
            Intake::Digest { .. } => DIGEST_BYTES,
        };
        scatter.bytes(self.window.room(needed));
        let (moved, room) = (self.socket.receive(&mut scatter), scatter.len());
        if let Moved::Bytes(bytes) = moved {
            let direct = direct.min(u32::try_from(bytes).unwrap_or(u32::MAX));
            self.window.filled(bytes - usize::try_from(direct).expect("32 bits fit"));
            if direct > 0 {
                self.received(memory, direct);
            }
        }
        (moved, moved == Moved::Bytes(room))
    }

    fn send(&mut self, memory: &Memory) -> Option<usize> {
        let mut moved = 0;
        while !self.out.is_empty() && self.writable {
            let mut batch = Batch::new();
            for out in &self.out {
                if !batch.has_room(PDU_HEADERS, PDU_PIECES) {
                    break;
                }
                self.encode(memory, &mut batch, out);
                batch.end();
            }
            let (sent, whole) = batch.send(&self.socket, memory, self.sent);
            let lengths = batch.lengths();
            match sent {
                Moved::Gone => return None,
                Moved::Blocked => self.writable = false,
                Moved::Bytes(bytes) => {
                    moved += bytes;
                    self.writable = whole;
                    self.sent += bytes;
                    for length in &lengths {
                        if self.sent < *length {
                            break;
                        }
                        self.sent -= length;
                        self.out.pop_front();
                    }
                }
            }
        }
        Some(moved)
    }

    fn encode(&self, memory: &Memory, batch: &mut Batch<'_>, out: &Outgoing) {
        match out {
            Outgoing::Command { slot } => {
                let slot = &self.slots[usize::from(*slot)];
                let in_capsule = slot.way == Way::FromHost && slot.total > 0 && slot.total <= self.in_capsule_max;
                let data = in_capsule.then_some((&slot.segments, 0, slot.total));
                self.pdu(memory, batch, (kind::COMMAND, 0), slot.entry.as_bytes(), data);
            }
            Outgoing::Data { slot, tag, at, len, last } => {
                let command = CommandId(*slot);
                let slot = &self.slots[usize::from(*slot)];
                let header = DataHeader { command, tag: *tag, offset: *at, len: *len };
                let extra = if *last { flags::LAST } else { 0 };
                let data = Some((&slot.segments, *at, *len));
                self.pdu(memory, batch, (kind::H2C_DATA, extra), &header.to_bytes(), data);
            }
        }
    }

    fn pdu(
        &self,
        memory: &Memory,
        batch: &mut Batch<'_>,
        (kind, extra): (u8, u8),
        rest: &[u8],
        data: Option<(&Segments, u32, u32)>,
    ) {
        let Params { header_digest, data_digest } = self.params;
        let header_len = CommonHeader::BYTES + rest.len();
        let head = header_len + if header_digest { DIGEST_BYTES } else { 0 };
        let unit = 4 * (usize::from(self.agreed.alignment) + 1);
        let data_at = data.map(|_| head.next_multiple_of(unit));
        let tail = if data.is_some() && data_digest { DIGEST_BYTES } else { 0 };
        let around = u32::try_from(data_at.unwrap_or(head) + tail).expect("short");
        let common = CommonHeader {
            kind,
            flags: extra
                | if header_digest { flags::HEADER_DIGEST } else { 0 }
                | if tail > 0 { flags::DATA_DIGEST } else { 0 },
            header_len: u8::try_from(header_len).expect("72 at most"),
            data_at: u8::try_from(data_at.unwrap_or(0)).expect("at most 128"),
            len: around + data.map_or(0, |(_, _, len)| len),
        };
        let start = batch.mark();
        batch.header(&common.to_bytes());
        batch.header(rest);
        if header_digest {
            let crc = crc32c::crc32c(batch.since(start));
            batch.header(&crc.to_le_bytes());
        }
        let Some(((segments, at, len), data_at)) = data.zip(data_at) else { return };
        batch.header(&[0; 128][..data_at - head]);
        let mut crc = 0;
        for segment in cut(segments, at, len) {
            batch.memory(segment);
            if data_digest {
                crc = append(memory, crc, segment);
            }
        }
        if data_digest {
            batch.header(&crc.to_le_bytes());
        }
    }
}

impl Slot {
    fn complete(&mut self, completion: CompletionEntry) {
        self.completion = Some(completion);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

const _: () = assert!(COMMAND_BYTES == CommonHeader::BYTES + SubmissionEntry::BYTES);

/// CRC-32C of what `crc` is of, and the segment behind it.
fn append(memory: &Memory, crc: u32, segment: Segment) -> u32 {
    let of_segment = memory.crc32c(segment.offset, u64::from(segment.len)).expect("segments lie in their memory");
    crc32c::crc32c_combine(crc, of_segment, usize::try_from(segment.len).expect("32 bits fit"))
}

/// Bytes `from..from + len` of the segments.
fn cut(segments: &[Segment], from: u32, len: u32) -> impl Iterator<Item = Segment> + use<> {
    let mut found = Segments::new();
    let (mut at, end) = (0, from + len);
    for segment in segments {
        let (first, last) = (from.max(at), end.min(at + segment.len));
        if first < last {
            let piece =
                Segment { memory: segment.memory, offset: segment.offset + u64::from(first - at), len: last - first };
            assert!(found.push(piece).is_ok(), "a cut has no more pieces than what it is cut from");
        }
        at += segment.len;
    }
    found.into_iter()
}
