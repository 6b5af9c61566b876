//! One connection, sans-I/O: bytes in through the window or straight into the places of data, PDUs out of a queue.
//!
//! Invariants:
//! - data of a command is received only into a place that a lane has given, or into the buffer of an admin command; until there
//!   is one nothing more is read: that is the back-pressure to the host;
//! - every slot has at most one transfer and one answer in the queue, so the queue is bounded by the slots;
//! - when the connection is over, everybody who waits on it is woken and finds it so.

use std::collections::VecDeque;
use std::task::Waker;

use dyad_matrix::frames::{Pinned, Segments};
use dyad_matrix::socket::{Moved, Scatter, Socket, Window};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::tcp::{
    COMMAND_BYTES, CommonHeader, DIGEST_BYTES, DataHeader, FatalError, IcReq, IcResp, TERM_BYTES_MAX, flags, kind,
};
use dyad_nvme::types::CommandId;
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::Time;

use super::parse::{Content, Params, Parsed, parse};
use crate::subsystem::{IoCommand, Queue};

/// Where a connection stands.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until `IC_REQ`.
    Opening,
    /// Until Connect.
    Unconnected,
    /// It is a queue.
    Running(Queue),
    /// A termination request is on its way, or the host has disconnected: what comes is thrown away until the host closes.
    Ending,
    /// Over.
    Closed,
}

/// What is being received.
#[derive(Debug)]
enum Intake {
    /// A header.
    Header,
    /// Data of a slot's command.
    Payload { slot: u16, left: u32, digest: bool, crc: u32 },
    /// The digest behind it.
    Digest { slot: u16, crc: u32 },
    /// Data that nobody wants, with its digest.
    Skip { left: u32 },
}

/// Where the data of a command is to go, or comes from.
#[derive(Debug, Default)]
pub(super) enum Transfer {
    /// None is under way.
    #[default]
    Idle,
    /// Bytes `at..at + len` of the command's data go to these segments, `got` of them are there. A header has announced all or,
    /// with R2T, some of them.
    Fetch { segments: Segments, at: u32, len: u32, got: u32 },
    /// These segments are queued as bytes `at..at + len`.
    Deliver { segments: Segments, at: u32, len: u32, crc: u32 },
    /// It is complete.
    Done,
}

/// A command.
pub(super) struct Slot {
    pub(super) used: bool,
    pub(super) id: CommandId,
    /// Of an I/O queue; a lane has it.
    pub(super) io: Option<IoCommand>,
    /// The queue that it came on.
    pub(super) queue: Option<Queue>,
    /// Of an admin queue, with the data that has come.
    admin: Option<(SubmissionEntry, Vec<u8>)>,
    /// Bytes of data in all.
    pub(super) total: u32,
    /// Bytes of in-capsule data that were not received yet.
    pub(super) in_capsule: u32,
    pub(super) transfer: Transfer,
    /// The frames of a transfer that was begun before a lane has the command.
    pub(super) placed: Option<Pinned>,
    /// An R2T is open.
    r2t: bool,
    /// The answer is queued, or was sent with the data.
    pub(super) answered: bool,
    /// A data digest did not match: nothing of the command may be done.
    pub(super) damaged: bool,
    pub(super) waker: Option<Waker>,
}

/// A PDU to be sent.
#[derive(Debug)]
enum Outgoing {
    /// As it is.
    Raw(Box<heapless::Vec<u8, TERM_BYTES_MAX>>),
    /// A response capsule.
    Response(CompletionEntry),
    /// A request for data.
    ReadyToTransfer { slot: u16, at: u32, len: u32 },
    /// The data of [`Transfer::Deliver`]; with the response if it is the last.
    Data { slot: u16, response: Option<CompletionEntry> },
    /// The data of an admin command, and the response.
    AdminData { bytes: Vec<u8>, response: CompletionEntry },
}

/// What a received PDU means to the port.
#[derive(Debug)]
pub(super) enum Event {
    /// A command came; its data, if any, waits to be given a place by [`Session::admit`], [`Session::begin_admin`] or
    /// [`Session::refuse`].
    Command(SubmissionEntry, u32),
    /// An admin command and all of its data.
    Admin(SubmissionEntry, Vec<u8>, bool),
}

/// What [`Session::step`] came to.
#[derive(Debug)]
pub(super) enum Step {
    /// Something for the port.
    Event(Event),
    /// Something was done; go on.
    Again,
    /// Bytes are needed: see [`Session::read`].
    Hungry,
    /// A place for data, or a slot, is needed first.
    Stalled,
}

pub(super) struct Session {
    pub(super) socket: Socket,
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) params: Params,
    /// HPDA: how data in PDUs to the host is aligned.
    host_alignment: u8,
    window: Window,
    intake: Intake,
    /// Data of a command that was announced and has no place yet.
    announced: Option<(u32, bool)>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Commands that the host has not been answered.
    pub(super) outstanding: u16,
    /// Entries of the queue.
    pub(super) entries: u16,
    flow_control: bool,
    sq_head: u16,
    out: VecDeque<Outgoing>,
    /// Bytes of the first PDU of `out` that were sent.
    sent: usize,
    /// The kernel may have bytes for us.
    pub(super) readable: bool,
    /// The kernel may take bytes.
    pub(super) writable: bool,
    /// It stands in the list of connections to look at.
    pub(super) noticed: bool,
    /// System calls so far.
    pub(super) calls: u64,
    /// Lanes that have one of its commands.
    pub(super) lanes: u16,
    /// Something moved, in either direction, or nothing had to.
    pub(super) progress: Time,
    /// End it when the queue is sent.
    pub(super) finish: bool,
}

impl Session {
    pub(super) fn new(socket: Socket, generation: u32, params: Params, entries: u16, now: Time) -> Self {
        // Answers may overtake lanes that have yet to return: a few slots more than entries.
        let slots = entries + 8;
        let slot = || Slot {
            used: false,
            id: CommandId(0),
            io: None,
            queue: None,
            admin: None,
            total: 0,
            in_capsule: 0,
            transfer: Transfer::Idle,
            placed: None,
            r2t: false,
            answered: false,
            damaged: false,
            waker: None,
        };
        Self {
            socket,
            generation,
            phase: Phase::Opening,
            params,
            host_alignment: 0,
            window: Window::new(COMMAND_BYTES + DIGEST_BYTES),
            intake: Intake::Header,
            announced: None,
            slots: (0..slots).map(|_| slot()).collect(),
            free: (0..slots).rev().collect(),
            outstanding: 0,
            entries,
            flow_control: true,
            sq_head: 0,
            out: VecDeque::with_capacity(usize::from(slots) * 2 + 8),
            sent: 0,
            readable: true,
            writable: true,
            noticed: false,
            calls: 0,
            lanes: 0,
            progress: now,
            finish: false,
        }
    }

    /// The connection has become a queue.
    pub(super) fn run(&mut self, queue: Queue, entries: u16, flow_control: bool, in_capsule_max: u32) {
        (self.phase, self.entries, self.flow_control) = (Phase::Running(queue), entries, flow_control);
        self.params.in_capsule_max = in_capsule_max;
        // Connect was the first command.
        self.sq_head = 1 % entries;
    }

    pub(super) fn slot(&mut self, slot: u16) -> &mut Slot {
        &mut self.slots[usize::from(slot)]
    }

    /// Something is queued to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// The host owes us bytes: part of a PDU, or data that was asked for.
    pub(super) fn awaits_host(&self) -> bool {
        let data = |slot: &Slot| slot.used && matches!(slot.transfer, Transfer::Fetch { .. });
        !self.window.is_empty()
            || matches!(self.intake, Intake::Digest { .. } | Intake::Skip { .. })
            || self.slots.iter().any(data)
    }

    /// Deals with what was received so far.
    ///
    /// # Errors
    /// What to end the connection with.
    pub(super) fn step(&mut self, memory: &Memory) -> Result<Step, FatalError> {
        if matches!(self.phase, Phase::Ending | Phase::Closed) {
            let len = self.window.bytes().len();
            self.window.consume(len);
            return Ok(Step::Hungry);
        }
        if self.announced.is_some() {
            return Ok(Step::Stalled);
        }
        match self.intake {
            // The answers to commands that are refused at once need room, too.
            Intake::Header if self.free.is_empty() || self.out.len() >= self.slots.len() * 2 => Ok(Step::Stalled),
            Intake::Header => match parse(self.window.bytes(), &self.params)? {
                Parsed::More(_) => Ok(Step::Hungry),
                Parsed::Pdu(pdu) => {
                    // On an error the header stays, to be quoted.
                    let taken = self.take(pdu.content, pdu.payload, pdu.digest)?;
                    if self.phase != Phase::Ending {
                        self.window.consume(pdu.head);
                        self.window.learn(pdu.payload > 0);
                    }
                    Ok(taken)
                }
            },
            Intake::Payload { slot, left, .. } => self.take_caught(memory, slot, left),
            Intake::Digest { slot, crc } => {
                let Some(digest) = self.window.bytes().first_chunk::<DIGEST_BYTES>() else { return Ok(Step::Hungry) };
                let damaged = u32::from_le_bytes(*digest) != crc;
                self.window.consume(DIGEST_BYTES);
                self.intake = Intake::Header;
                self.slot(slot).damaged |= damaged;
                Ok(self.complete_fetch(slot))
            }
            Intake::Skip { left } => {
                let here = u32::try_from(self.window.bytes().len()).unwrap_or(u32::MAX).min(left);
                self.window.consume(usize::try_from(here).expect("32 bits fit"));
                self.intake = if left == here { Intake::Header } else { Intake::Skip { left: left - here } };
                Ok(if left == here { Step::Again } else { Step::Hungry })
            }
        }
    }

    fn take(&mut self, content: Content, payload: u32, digest: bool) -> Result<Step, FatalError> {
        match content {
            Content::Init(request) => {
                self.open(request);
                Ok(Step::Again)
            }
            Content::Command(entry) => {
                self.sq_head = (self.sq_head + 1) % self.entries;
                self.announced = (payload > 0).then_some((payload, digest));
                Ok(Step::Event(Event::Command(entry, payload)))
            }
            Content::Data { header, last } => self.take_data(header, last, digest),
            Content::Terminate(_) => {
                self.end();
                Ok(Step::Again)
            }
        }
    }

    /// Answers `IC_REQ` (3.1).
    fn open(&mut self, request: IcReq) {
        let Params { alignment, data_max, .. } = self.params;
        let IcReq { header_digest, data_digest, .. } = request;
        self.params = Params { started: true, header_digest, data_digest, ..self.params };
        self.host_alignment = request.alignment;
        self.phase = Phase::Unconnected;
        let response = IcResp { version: 0, alignment, header_digest, data_digest, data_max };
        let raw = heapless::Vec::from_slice(&response.to_bytes()).expect("it is shorter");
        self.out.push_back(Outgoing::Raw(Box::new(raw)));
    }

    /// Data that was asked for (3.3.2.2): of an open transfer, in order, and not more of it than was asked for.
    fn take_data(&mut self, header: DataHeader, last: bool, digest: bool) -> Result<Step, FatalError> {
        let index = usize::from(header.tag);
        let slot = self.slots.get(index).filter(|slot| slot.used && slot.r2t);
        let slot = slot.ok_or(FatalError::InvalidField(DataHeader::TAG_AT))?;
        if slot.id != header.command {
            return Err(FatalError::InvalidField(DataHeader::COMMAND_AT));
        }
        let (at, len, got) = match (&slot.transfer, &slot.admin) {
            (Transfer::Fetch { at, len, got, .. }, _) => (*at, *len, *got),
            (_, Some((_, data))) => (0, slot.total, u32::try_from(data.len()).expect("8 KiB at most")),
            _ => return Err(FatalError::InvalidField(DataHeader::TAG_AT)),
        };
        let end = header.offset.checked_add(header.len);
        if header.offset < at || end.is_none_or(|end| end > at + len) {
            return Err(FatalError::OutOfRange);
        }
        if header.offset != at + got {
            return Err(FatalError::Sequence);
        }
        if last != (header.len == len - got) {
            return Err(FatalError::InvalidField(CommonHeader::FLAGS_AT));
        }
        self.intake = Intake::Payload { slot: header.tag, left: header.len, digest, crc: 0 };
        Ok(Step::Again)
    }

    /// Data that lies in the window already goes to its place: the only copy that is not the kernel's.
    fn take_caught(&mut self, memory: &Memory, slot: u16, left: u32) -> Result<Step, FatalError> {
        if left == 0 {
            return Ok(self.end_payload());
        }
        let here = u32::try_from(self.window.bytes().len()).unwrap_or(u32::MAX).min(left);
        let slot = &mut self.slots[usize::from(slot)];
        if let Some((_, data)) = &mut slot.admin {
            let len = usize::try_from(here).expect("32 bits fit");
            data.extend(&self.window.bytes()[..len]);
            self.window.consume(len);
            return Ok(self.received(memory, here));
        }
        let Transfer::Fetch { segments, len, got, .. } = &slot.transfer else { return Ok(Step::Stalled) };
        let mut taken = 0;
        for segment in cut(segments, *got, (*len - *got).min(here)) {
            let len = usize::try_from(segment.len).expect("32 bits fit");
            memory.write(segment.offset, &self.window.bytes()[..len]).expect("segments lie in their memory");
            self.window.consume(len);
            taken += segment.len;
        }
        Ok(self.received(memory, taken))
    }

    /// So many bytes of data are where they belong.
    fn received(&mut self, memory: &Memory, bytes: u32) -> Step {
        let Intake::Payload { slot: index, left, digest, crc } = &mut self.intake else {
            unreachable!("bytes of data came while none were expected")
        };
        let (index, digest) = (*index, *digest);
        let slot = &mut self.slots[usize::from(index)];
        *left -= bytes;
        slot.in_capsule = slot.in_capsule.saturating_sub(bytes);
        match (&mut slot.transfer, &slot.admin) {
            (_, Some((_, data))) if digest => {
                let from = data.len() - usize::try_from(bytes).expect("32 bits fit");
                *crc = crc32c::crc32c_append(*crc, &data[from..]);
            }
            (Transfer::Fetch { segments, got, .. }, None) => {
                if digest {
                    for segment in cut(segments, *got, bytes) {
                        *crc = append(memory, *crc, segment);
                    }
                }
                *got += bytes;
            }
            _ => {}
        }
        if *left == 0 {
            return self.end_payload();
        }
        match &self.slots[usize::from(index)].transfer {
            Transfer::Fetch { len, got, .. } if got == len => self.complete_fetch(index),
            _ if bytes == 0 => Step::Hungry,
            _ => Step::Again,
        }
    }

    fn end_payload(&mut self) -> Step {
        let Intake::Payload { slot, digest, crc, .. } = self.intake else { unreachable!("data was received") };
        if digest {
            self.intake = Intake::Digest { slot, crc };
            return Step::Again;
        }
        self.intake = Intake::Header;
        self.complete_fetch(slot)
    }

    /// Tells whoever waits for data that it is here, if all of it is.
    fn complete_fetch(&mut self, index: u16) -> Step {
        let slot = &mut self.slots[usize::from(index)];
        if let Some((_, data)) = &slot.admin {
            if data.len() < usize::try_from(slot.total).expect("32 bits fit") {
                return Step::Again;
            }
            let (entry, data) = slot.admin.take().expect("it was just there");
            let damaged = slot.damaged;
            self.free_slot(index);
            return Step::Event(Event::Admin(entry, data, damaged));
        }
        if matches!(&slot.transfer, Transfer::Fetch { len, got, .. } if got == len) {
            (slot.transfer, slot.r2t) = (Transfer::Done, false);
            slot.wake();
        }
        Step::Again
    }

    /// Receives into where the next bytes belong; what became of it, and how much there was room for.
    pub(super) fn read(&mut self, memory: &Memory) -> (Moved, usize) {
        self.calls += 1;
        let mut scatter = Scatter::new();
        let needed = match self.intake {
            Intake::Payload { slot, left, digest, .. } if self.window.is_empty() => {
                let digest = if digest { DIGEST_BYTES } else { 0 };
                if self.slots[usize::from(slot)].admin.is_some() {
                    usize::try_from(left).expect("32 bits fit") + digest
                } else if let Transfer::Fetch { segments, len, got, .. } = &self.slots[usize::from(slot)].transfer {
                    let wanted = (*len - *got).min(left);
                    for segment in cut(segments, *got, wanted) {
                        scatter.memory(memory, segment);
                    }
                    if wanted < left {
                        return (self.socket.receive(&mut scatter), scatter.len());
                    }
                    digest
                } else {
                    0
                }
            }
            Intake::Skip { left } => usize::try_from(left).expect("32 bits fit"),
            Intake::Header => match parse(self.window.bytes(), &self.params) {
                Ok(Parsed::More(needed)) => needed,
                _ => 0,
            },
            _ => 0,
        };
        scatter.bytes(self.window.room(needed));
        (self.socket.receive(&mut scatter), scatter.len())
    }

    /// So many bytes came to where [`Self::read`] had them put.
    pub(super) fn scattered(&mut self, memory: &Memory, bytes: usize) -> Step {
        let mut direct = 0;
        if let Intake::Payload { slot, left, .. } = self.intake
            && self.window.is_empty()
            && let Transfer::Fetch { len, got, .. } = &self.slots[usize::from(slot)].transfer
        {
            direct = (*len - *got).min(left).min(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        self.window.filled(bytes - usize::try_from(direct).expect("32 bits fit"));
        if direct > 0 { self.received(memory, direct) } else { Step::Again }
    }

    fn take_slot(&mut self, id: CommandId) -> u16 {
        let index = self.free.pop().expect("headers are parsed only while there is a free slot");
        self.outstanding += 1;
        let slot = self.slot(index);
        assert!(!slot.used, "a free slot is in use");
        (slot.used, slot.id, slot.io, slot.admin) = (true, id, None, None);
        (slot.total, slot.in_capsule, slot.transfer) = (0, 0, Transfer::Idle);
        (slot.r2t, slot.answered, slot.damaged) = (false, false, false);
        index
    }

    /// The command is over.
    pub(super) fn free_slot(&mut self, index: u16) {
        // In-capsule data that nobody fetched.
        if let Intake::Payload { slot, left, digest, .. } = self.intake
            && slot == index
        {
            self.intake = Intake::Skip { left: left + if digest { 4 } else { 0 } };
        }
        let slot = self.slot(index);
        let answered = slot.answered;
        (slot.used, slot.transfer, slot.placed, slot.waker) = (false, Transfer::Idle, None, None);
        self.free.push(index);
        self.outstanding -= u16::from(!answered);
    }

    /// An I/O command is valid: a slot for it, in which its in-capsule data waits.
    pub(super) fn admit(&mut self, command: IoCommand, total: u32) -> u16 {
        let index = self.take_slot(command.id);
        let announced = self.announced.take();
        let Phase::Running(queue) = self.phase else { unreachable!("I/O commands come on queues") };
        let slot = self.slot(index);
        (slot.io, slot.queue, slot.total) = (Some(command), Some(queue), total);
        if let Some((payload, digest)) = announced {
            slot.in_capsule = payload;
            self.intake = Intake::Payload { slot: index, left: payload, digest, crc: 0 };
        }
        index
    }

    /// All of an admitted command's data may go to these frames before a lane has the command.
    pub(super) fn place(&mut self, index: u16, frames: Pinned) {
        let slot = self.slot(index);
        let (mut segments, mut left) = (frames.segments(), slot.total);
        for segment in &mut segments {
            segment.len = segment.len.min(left);
            left -= segment.len;
        }
        let len = slot.total;
        (slot.transfer, slot.placed) = (Transfer::Fetch { segments, at: 0, len, got: 0 }, Some(frames));
        if slot.in_capsule == 0 {
            self.request(index, 0, len);
        }
    }

    /// An admin command whose data has to come first.
    pub(super) fn begin_admin(&mut self, entry: SubmissionEntry, total: u32) {
        let index = self.take_slot(entry.command());
        let announced = self.announced.take();
        let slot = self.slot(index);
        (slot.admin, slot.total) = (Some((entry, Vec::new())), total);
        match announced {
            Some((payload, digest)) => {
                self.intake = Intake::Payload { slot: index, left: payload, digest, crc: 0 };
            }
            None => self.request(index, 0, total),
        }
    }

    /// Data that came with a command is not wanted.
    pub(super) fn refuse(&mut self) {
        if let Some((payload, digest)) = self.announced.take() {
            self.intake = Intake::Skip { left: payload + if digest { 4 } else { 0 } };
        }
    }

    /// Asks the host for bytes of a command's data.
    pub(super) fn request(&mut self, slot: u16, at: u32, len: u32) {
        self.slot(slot).r2t = true;
        self.out.push_back(Outgoing::ReadyToTransfer { slot, at, len });
    }

    /// A completion as this queue sends it.
    fn completion(&self, id: CommandId, status: Status) -> CompletionEntry {
        CompletionEntry::new(if self.flow_control { self.sq_head } else { 0xffff }, id, status)
    }

    /// Answers a command.
    pub(super) fn answer(&mut self, id: CommandId, status: Status, result: u64) {
        let completion = self.completion(id, status).with_result(result);
        self.out.push_back(Outgoing::Response(completion));
    }

    /// Answers an admin command with data.
    pub(super) fn answer_data(&mut self, id: CommandId, bytes: Vec<u8>, result: u64) {
        let response = self.completion(id, Status::SUCCESS).with_result(result);
        self.out.push_back(Outgoing::AdminData { bytes, response });
    }

    /// Sends a completion that the core made: of a request for events.
    pub(super) fn complete(&mut self, completion: CompletionEntry) {
        let entry = self.completion(completion.command(), completion.status()).with_result(completion.result());
        self.out.push_back(Outgoing::Response(entry));
    }

    /// Queues data for the host; the last of a command's data completes it.
    pub(super) fn deliver(&mut self, index: u16, segments: Segments, at: u32, memory: &Memory) {
        let len = segments.iter().map(|segment| segment.len).sum();
        let crc = if self.params.data_digest {
            segments.iter().fold(0, |crc, segment| append(memory, crc, *segment))
        } else {
            0
        };
        let slot = &self.slots[usize::from(index)];
        let response = (at + len == slot.total).then(|| self.completion(slot.id, Status::SUCCESS));
        let slot = self.slot(index);
        slot.transfer = Transfer::Deliver { segments, at, len, crc };
        slot.answered = response.is_some();
        self.outstanding -= u16::from(response.is_some());
        self.out.push_back(Outgoing::Data { slot: index, response });
    }

    /// Tells the host why, and reads on only to let it hear that (3.5).
    pub(super) fn terminate(&mut self, error: FatalError) {
        let header = self.window.bytes();
        let header_len = header.get(2).map_or(0, |len| usize::from(*len)).clamp(CommonHeader::BYTES, 128);
        let pdu = error.to_pdu(kind::C2H_TERM, &header[..header_len.min(header.len())]);
        self.end();
        // In the middle of a PDU there is nothing to say.
        if !self.is_cut() {
            self.out.push_back(Outgoing::Raw(Box::new(pdu)));
        }
    }

    /// A PDU was begun and is not in the queue any more.
    fn is_cut(&self) -> bool {
        self.out.is_empty() && self.sent > 0
    }

    /// Nothing more is to be done for this host; what was promised is sent if it can be.
    pub(super) fn end(&mut self) {
        (self.phase, self.finish) = (Phase::Ending, true);
        // Data whose frames are about to go is not sent, nor anything behind it: the host sees the connection end.
        let whole = self.out.iter().take_while(|out| !matches!(out, Outgoing::Data { .. })).count();
        self.out.truncate(whole);
        (self.intake, self.announced) = (Intake::Header, None);
        self.slots.iter_mut().for_each(Slot::wake);
    }

    /// It is over.
    pub(super) fn close(&mut self) {
        self.end();
        self.phase = Phase::Closed;
        self.out.clear();
    }
}

impl Slot {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// CRC-32C of what `crc` is of, and the segment behind it.
fn append(memory: &Memory, crc: u32, segment: Segment) -> u32 {
    let of_segment = memory.crc32c(segment.offset, u64::from(segment.len)).expect("segments lie in their memory");
    crc32c::crc32c_combine(crc, of_segment, usize::try_from(segment.len).expect("32 bits fit"))
}

/// Bytes `from..from + len` of the segments.
pub(super) fn cut(segments: &[Segment], from: u32, len: u32) -> impl Iterator<Item = Segment> + use<> {
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

mod send;
