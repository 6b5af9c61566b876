//! An established connection: what is sent on it. [`super::incoming`] is the other half.
//!
//! Descriptors become frames in the order of posting, and what the peer asked to read does too, in turns. A frame knows where its
//! payload lies; it is handed to the kernel from there. What stands behind an RDMA read waits until the read is done.
//!
//! Invariants:
//! - at most [`FRAMES`] frames wait for the kernel, and at most one answer among them;
//! - a descriptor leaves its queue only after the kernel has taken all its frames, whatever the peer says;
//! - the bytes of a frame do not change once it is made: the owner of a descriptor's memory promised that, and an answer is a copy.

use std::collections::VecDeque;

use super::frame::{End, HEAD_BYTES, Head, HeadBytes, Kind, PAYLOAD_MAX, READS_MAX};
use super::incoming::Receiving;
use super::wire::Wire;
use crate::completion::CompletionQueue;
use crate::memory::{Memory, Segment};
use crate::provider::{
    Completion, DescriptorError, ProtectionTag, RemoteAddress, SendOperation, ViAttributes, ViId, WorkQueue,
};
use crate::regions::{LocalUse, Regions, RemoteUse};
use crate::slots::Slots;
use crate::socket::{Gather, Moved};
use crate::work_items::WorkItems;

/// Frames that are handed to the kernel at once.
const FRAMES: usize = 16;

/// A send or RDMA that did not complete yet.
#[derive(Debug)]
pub(super) struct SendItem {
    pub(super) cookie: u64,
    pub(super) operation: SendOperation,
    pub(super) immediate: Option<u32>,
    pub(super) len: u32,
    pub(super) progress: Progress,
}

/// How far it is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes are in frames.
    Framed(u32),
    /// All is in frames; it is done when so many operations have landed at the peer.
    Travelling(u32),
    /// A read that was asked for: so many bytes are here.
    Reading(u32),
    Done(Result<u32, DescriptorError>),
}

/// A buffer for one message.
#[derive(Debug)]
pub(super) struct ReceiveItem {
    pub(super) cookie: u64,
}

/// Why a connection cannot go on.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The peer sent what it may not.
    Garbage,
    /// An operation of the peer failed.
    Refused(End),
    /// A descriptor of ours failed.
    Failed,
    /// The peer said that it is over.
    Ended(End),
    /// The socket is closed, and the peer said nothing.
    HungUp,
}

/// What a connection works on: the rest of its VI and of the provider.
pub(super) struct Around<'a> {
    pub(super) vi: ViId,
    pub(super) attributes: &'a ViAttributes,
    pub(super) sends: &'a mut WorkItems<SendItem>,
    pub(super) receives: &'a mut WorkItems<ReceiveItem>,
    pub(super) regions: &'a Regions,
    pub(super) cqs: &'a mut Slots<CompletionQueue>,
    /// Payload bytes copied.
    pub(super) copied: &'a mut u64,
}

impl Around<'_> {
    /// Reports a finished descriptor.
    pub(super) fn complete(
        &mut self,
        queue: WorkQueue,
        cookie: u64,
        result: Result<u32, DescriptorError>,
        immediate: Option<u32>,
    ) {
        let cq = match queue {
            WorkQueue::Send => self.attributes.send_cq,
            WorkQueue::Receive => self.attributes.receive_cq,
        };
        let cq = self.cqs.get_mut(cq.0).expect("queues outlive VIs");
        cq.push(Completion { vi: self.vi, queue, cookie, result, immediate });
    }
}

/// Where the payload of a frame lies.
#[derive(Debug, Copy, Clone)]
enum Source {
    Nothing,
    /// In the descriptor of that number, from that byte on.
    Descriptor(u64, u32),
    /// In the copy.
    Copy,
}

struct Frame {
    head: HeadBytes,
    len: u32,
    source: Source,
    /// It is the last of a send or write.
    ends: bool,
}

impl Frame {
    fn of(head: Head, source: Source) -> Self {
        let ends = !head.more && matches!(head.kind, Kind::Message | Kind::Write { .. });
        Self { head: head.encode(), len: head.payload(), source, ends }
    }

    fn bytes(&self) -> usize {
        HEAD_BYTES + index(self.len)
    }
}

/// A read of the peer that was not answered yet.
#[derive(Debug, Copy, Clone)]
struct Answer {
    from: RemoteAddress,
    len: u32,
    done: u32,
}

/// Both directions of an established connection.
pub(super) struct Flow {
    pub(super) receiving: Receiving,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that the kernel has taken.
    taken: usize,
    /// The number of the first descriptor in the send queue.
    first: u64,
    /// How many of the descriptors, from the front, are all in frames.
    framed: usize,
    /// A descriptor failed; what was posted behind it will be flushed.
    poisoned: bool,
    /// Receives of the peer that our messages have used or will, and those that it has posted; modulo 2^32, as all that follow.
    messages: u32,
    messages_max: u32,
    /// Sends and writes that are in frames, that the kernel has taken, and that have landed at the peer.
    operations: u32,
    operations_taken: u32,
    operations_landed: u32,
    /// Reads that we asked for and did not get.
    pub(super) reads: usize,
    answers: VecDeque<Answer>,
    answer_is_next: bool,
    /// One answer's payload, and whether a frame needs it.
    copy: Option<Box<[u8]>>,
    copy_in_use: bool,
}

impl Flow {
    /// `granted` receives were posted before there was a connection.
    pub(super) fn new(granted: u32) -> Self {
        Self {
            receiving: Receiving::new(granted),
            frames: VecDeque::with_capacity(FRAMES),
            taken: 0,
            first: 0,
            framed: 0,
            poisoned: false,
            messages: 0,
            messages_max: 0,
            operations: 0,
            operations_taken: 0,
            operations_landed: 0,
            reads: 0,
            answers: VecDeque::with_capacity(READS_MAX),
            answer_is_next: false,
            copy: None,
            copy_in_use: false,
        }
    }

    /// What the peer says in each head: how much of ours has landed, and how many receives it has posted.
    pub(super) fn learn(&mut self, landed: u32, granted: u32) -> Result<(), Stop> {
        let newly_landed = landed.wrapping_sub(self.operations_landed);
        let newly_granted = granted.wrapping_sub(self.messages_max);
        let on_their_way = self.operations_taken.wrapping_sub(self.operations_landed);
        if newly_landed > on_their_way || newly_granted > u32::from(u16::MAX) {
            return Err(Stop::Garbage);
        }
        (self.operations_landed, self.messages_max) = (landed, granted);
        Ok(())
    }

    /// The peer wants to read.
    pub(super) fn ask(&mut self, from: RemoteAddress, len: u32) -> Result<(), Stop> {
        if self.answers.len() == READS_MAX {
            return Err(Stop::Garbage);
        }
        self.copy.get_or_insert_with(|| vec![0; index(PAYLOAD_MAX)].into_boxed_slice());
        self.answers.push_back(Answer { from, len, done: 0 });
        Ok(())
    }

    /// The oldest read that was asked for, as an index into the send queue.
    pub(super) fn oldest_read(&self, sends: &WorkItems<SendItem>) -> Option<usize> {
        let reading =
            |at: &usize| sends.get(*at).is_some_and(|(item, _)| matches!(item.progress, Progress::Reading(_)));
        (0..self.framed).find(reading)
    }

    /// Completes what is done, in order; how many.
    pub(super) fn complete(&mut self, around: &mut Around<'_>) -> Result<usize, Stop> {
        let mut done = 0;
        while let Some(item) = around.sends.front().filter(|_| self.framed > 0) {
            let result = match item.progress {
                Progress::Done(result) => result,
                // Both lie in a window that is shorter than half the numbers.
                Progress::Travelling(number) if self.operations_landed.wrapping_sub(number) < 1 << 31 => Ok(item.len),
                Progress::Framed(_) | Progress::Travelling(_) | Progress::Reading(_) => break,
            };
            let cookie = item.cookie;
            around.sends.pop();
            (self.framed, self.first, done) = (self.framed - 1, self.first + 1, done + 1);
            around.complete(WorkQueue::Send, cookie, result, None);
            if result.is_err() {
                return Err(Stop::Failed);
            }
        }
        Ok(done)
    }

    /// The peer said that our oldest operation failed.
    pub(super) fn fail_oldest(&mut self, around: &mut Around<'_>, error: DescriptorError) {
        if let Some((item, _)) = around.sends.get_mut(0).filter(|_| self.framed > 0) {
            item.progress = Progress::Done(Err(error));
        }
    }

    /// Makes frames of what is to be sent, as many as there is room for. `tell` asks for one in any case if the peer does not know
    /// how far we are.
    pub(super) fn pack(&mut self, around: &mut Around<'_>, tell: bool) -> Result<(), Stop> {
        while self.frames.len() < FRAMES {
            let frame = if self.answer_is_next {
                self.next_answer(around)?.or_else(|| self.next_part(around))
            } else {
                let part = self.next_part(around);
                if part.is_some() { part } else { self.next_answer(around)? }
            };
            let Some(frame) = frame else { break };
            self.answer_is_next = matches!(frame.source, Source::Descriptor(..) | Source::Nothing);
            self.frames.push_back(frame);
        }
        if tell && self.receiving.is_untold() && self.frames.len() < FRAMES {
            let head = self.receiving.tell(Head::bare(Kind::Tell));
            self.frames.push_back(Frame::of(head, Source::Nothing));
        }
        Ok(())
    }

    /// The next frame of the descriptors.
    fn next_part(&mut self, around: &mut Around<'_>) -> Option<Frame> {
        let tag = around.attributes.tag;
        loop {
            if self.poisoned {
                return None;
            }
            let (item, segments) = around.sends.get_mut(self.framed)?;
            let at = match item.progress {
                Progress::Framed(at) => at,
                Progress::Done(result) => {
                    self.poisoned = result.is_err();
                    self.framed += 1;
                    continue;
                }
                Progress::Travelling(_) | Progress::Reading(_) => unreachable!("it is all in frames"),
            };
            let needs_receive = at == 0 && (item.immediate.is_some() || item.operation == SendOperation::Send);
            match item.operation {
                SendOperation::RdmaRead(_) if self.reads == READS_MAX => return None,
                SendOperation::RdmaRead(from) => {
                    self.reads += 1;
                    self.framed += 1;
                    item.progress = Progress::Reading(0);
                    let head = Head { len: item.len, ..Head::bare(Kind::Read { from }) };
                    return Some(Frame::of(self.receiving.tell(head), Source::Nothing));
                }
                // It takes effect behind the reads.
                SendOperation::Send | SendOperation::RdmaWrite(_) if self.reads > 0 => return None,
                _ if needs_receive && self.messages == self.messages_max => return None,
                SendOperation::Send | SendOperation::RdmaWrite(_) => {}
            }
            let len = (item.len - at).min(PAYLOAD_MAX);
            let mut crc = 0;
            let summed = each_local(segments, at, len, around.regions, tag, LocalUse::Source, |memory, segment| {
                crc = memory.crc32c_append(crc, segment.offset, u64::from(segment.len)).expect("it was checked");
                true
            });
            if let Err(error) = summed {
                item.progress = Progress::Done(Err(error));
                continue;
            }
            let more = at + len < item.len;
            let kind = match item.operation {
                SendOperation::RdmaWrite(RemoteAddress { region, offset }) => {
                    let to = RemoteAddress { region, offset: offset.wrapping_add(u64::from(at)) };
                    Kind::Write { to, rest: item.len - at }
                }
                _ => Kind::Message,
            };
            let immediate = item.immediate.filter(|_| !more);
            let head = self.receiving.tell(Head { len, more, immediate, crc, ..Head::bare(kind) });
            let number = self.first + self.framed as u64;
            self.messages = self.messages.wrapping_add(u32::from(needs_receive));
            if more {
                item.progress = Progress::Framed(at + len);
            } else {
                self.operations = self.operations.wrapping_add(1);
                item.progress = Progress::Travelling(self.operations);
                self.framed += 1;
            }
            return Some(Frame::of(head, Source::Descriptor(number, at)));
        }
    }

    /// The next frame of what the peer wants to read.
    fn next_answer(&mut self, around: &mut Around<'_>) -> Result<Option<Frame>, Stop> {
        let (Some(answer), false) = (self.answers.front_mut(), self.copy_in_use) else { return Ok(None) };
        let ViAttributes { tag, remote_access, .. } = *around.attributes;
        let RemoteAddress { region, offset } = answer.from;
        let from = RemoteAddress { region, offset: offset.wrapping_add(u64::from(answer.done)) };
        let rest = answer.len - answer.done;
        let memory = around.regions.remote_memory(from, u64::from(rest), RemoteUse::Read, tag, remote_access);
        let memory = memory.map_err(|_| Stop::Refused(End::RemoteProtection))?;
        let len = rest.min(PAYLOAD_MAX);
        let copy = self.copy.as_deref_mut().expect("made when the first read came");
        let copy = &mut copy[..index(len)];
        memory.read(from.offset, copy).expect("it was checked");
        *around.copied += u64::from(len);
        answer.done += len;
        let more = len < rest;
        if !more {
            self.answers.pop_front();
        }
        self.copy_in_use = true;
        let head = Head { len, more, crc: crc32c::crc32c(copy), ..Head::bare(Kind::Answer) };
        Ok(Some(Frame::of(self.receiving.tell(head), Source::Copy)))
    }

    /// Nothing waits for the kernel.
    pub(super) fn is_flushed(&self) -> bool {
        self.frames.is_empty()
    }

    /// Hands frames to the kernel.
    pub(super) fn transmit(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> Result<Moved, Stop> {
        let mut gather = Gather::new();
        let mut skip = self.taken;
        for frame in &self.frames {
            let cut = skip.min(HEAD_BYTES);
            skip -= cut;
            gather.bytes(&frame.head[cut..]);
            let cut = skip.min(index(frame.len));
            skip -= cut;
            match frame.source {
                Source::Nothing => {}
                Source::Copy if gather.is_full() => {}
                Source::Copy => {
                    gather.bytes(&self.copy.as_deref().expect("a frame needs it")[cut..index(frame.len)]);
                }
                Source::Descriptor(number, at) => {
                    let place = usize::try_from(number - self.first).expect("queues are short");
                    let (_, segments) = around.sends.get(place).expect("a descriptor outlives its frames");
                    let cut = u32::try_from(cut).expect("payload is shorter");
                    let tag = around.attributes.tag;
                    each_local(
                        segments,
                        at + cut,
                        frame.len - cut,
                        around.regions,
                        tag,
                        LocalUse::Source,
                        |memory, segment| {
                            let room = !gather.is_full();
                            if room {
                                gather.memory(memory, segment);
                            }
                            room
                        },
                    )
                    // Its owner took it away under our hands.
                    .map_err(|_| Stop::Failed)?;
                }
            }
            if gather.is_full() {
                break;
            }
        }
        let moved = wire.send(&gather);
        if let Moved::Bytes(bytes) = moved {
            if wire.is_secure() {
                *around.copied += bytes as u64;
            }
            self.taken += bytes;
            while let Some(frame) = self.frames.front().filter(|frame| frame.bytes() <= self.taken) {
                self.taken -= frame.bytes();
                self.operations_taken = self.operations_taken.wrapping_add(u32::from(frame.ends));
                self.copy_in_use &= !matches!(frame.source, Source::Copy);
                self.frames.pop_front();
            }
        }
        Ok(moved)
    }

    /// The last frame, unless the kernel has a part of another.
    pub(super) fn last_frame(&mut self, end: End) -> Option<HeadBytes> {
        (self.taken == 0).then(|| self.receiving.tell(Head::bare(Kind::End(end))).encode())
    }
}

/// Calls `each` with the places of `len` bytes from byte `from` on of a descriptor's segments, until it says no.
pub(super) fn each_local<'a>(
    segments: &[Segment],
    from: u32,
    len: u32,
    regions: &'a Regions,
    tag: ProtectionTag,
    how: LocalUse,
    mut each: impl FnMut(&'a Memory, Segment) -> bool,
) -> Result<(), DescriptorError> {
    let (mut skip, mut left) = (from, len);
    for segment in segments {
        if left == 0 {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let part = (segment.len - skip).min(left);
        let memory = regions.local_memory(segment, tag, how)?;
        if !each(memory, Segment { offset: segment.offset + u64::from(skip), len: part, ..*segment }) {
            break;
        }
        (left, skip) = (left - part, 0);
    }
    Ok(())
}

/// A place in an address space of at least 32 bits.
pub(super) fn index(n: u32) -> usize {
    usize::try_from(n).expect("32 bits fit")
}
