//! An established connection: what arrives on it.
//!
//! Heads, and payload that came along with them, are found in the window; the rest of a payload is received where it belongs. Where
//! that is is asked anew for each piece, so memory that was taken away meanwhile gets nothing more; and each piece is summed
//! right when it has landed, before anybody else can land in the same place.

use super::flow::{Around, Flow, Progress, Stop, each_local, index};
use super::frame::{End, HEAD_BYTES, Head, Kind};
use super::wire::Wire;
use crate::descriptor::total;
use crate::memory::{Memory, Segment};
use crate::provider::{DescriptorError, RemoteAddress, ViAttributes, WorkQueue};
use crate::regions::{LocalUse, RemoteUse};
use crate::socket::{Moved, Scatter, Window};

/// Payload of so many bytes or less is fetched together with what follows it, and copied.
const SHORT: u32 = 1024;

/// A frame whose payload is arriving.
#[derive(Debug, Copy, Clone)]
struct Payload {
    head: Head,
    done: u32,
    crc: u32,
}

/// How far the peer's side of the conversation is.
pub(super) struct Receiving {
    window: Window,
    payload: Option<Payload>,
    /// Bytes of the message whose parts are arriving.
    message: Option<u32>,
    /// Sends and writes of the peer that have landed, and receives posted for it; modulo 2^32.
    landed: u32,
    granted: u32,
    /// What the peer was told of that.
    told: (u32, u32),
}

impl Receiving {
    pub(super) fn new(granted: u32) -> Self {
        Self { window: Window::new(HEAD_BYTES), payload: None, message: None, landed: 0, granted, told: (0, 0) }
    }

    /// Another receive was posted.
    pub(super) fn grant(&mut self) {
        self.granted = self.granted.wrapping_add(1);
    }

    /// The peer does not know how far we are.
    pub(super) fn is_untold(&self) -> bool {
        self.told != (self.landed, self.granted)
    }

    /// Puts into a head how far we are.
    pub(super) fn tell(&mut self, head: Head) -> Head {
        self.told = (self.landed, self.granted);
        Head { landed: self.landed, granted: self.granted, ..head }
    }

    fn take_head(&mut self) -> Option<Result<Head, Stop>> {
        let bytes = self.window.bytes().first_chunk::<HEAD_BYTES>()?;
        let head = Head::parse(bytes).map_err(|_| Stop::Garbage);
        self.window.consume(HEAD_BYTES);
        Some(head)
    }
}

/// What a read from the socket brought.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Pulled {
    /// All that was asked for: there may be more.
    All,
    /// Less than that.
    Some,
    Nothing,
    HungUp,
}

impl Flow {
    /// Receives once: the rest of a payload to where it belongs, and what comes behind it.
    pub(super) fn pull(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> Result<Pulled, Stop> {
        let Receiving { window, payload, message, .. } = &mut self.receiving;
        let mut scatter = Scatter::new();
        let mut direct = 0;
        if let Some(payload) = payload {
            let left = payload.head.len - payload.done;
            each_place(payload, *message, payload.done, left, around, |memory, segment| {
                let room = !scatter.is_full();
                if room {
                    scatter.memory(memory, segment);
                    direct += segment.len;
                }
                room
            })
            .map_err(|_| lost(payload.head.kind))?;
        }
        let whole = payload.is_none_or(|payload| direct == payload.head.len - payload.done);
        if whole && !scatter.is_full() {
            scatter.bytes(window.room(HEAD_BYTES));
        }
        let asked = scatter.len();
        let moved = match wire.receive(&mut scatter) {
            Moved::Bytes(moved) => moved,
            Moved::Blocked => return Ok(Pulled::Nothing),
            Moved::Gone => return Ok(Pulled::HungUp),
        };
        if wire.is_secure() {
            *around.copied += moved as u64;
        }
        let landed = moved.min(index(direct));
        window.filled(moved - landed);
        if let Some(payload) = payload {
            let landed = u32::try_from(landed).expect("a part of the payload");
            let mut crc = payload.crc;
            each_place(payload, *message, payload.done, landed, around, |memory, segment| {
                crc = memory.crc32c_append(crc, segment.offset, u64::from(segment.len)).expect("it was checked");
                true
            })
            .expect("it was there a moment ago");
            (payload.crc, payload.done) = (crc, payload.done + landed);
        }
        Ok(if moved == asked { Pulled::All } else { Pulled::Some })
    }

    /// Deals with all that is here; returns how many frames came to their end.
    pub(super) fn digest(&mut self, around: &mut Around<'_>) -> Result<usize, Stop> {
        let mut frames = 0;
        loop {
            match self.receiving.payload {
                Some(payload) if payload.done == payload.head.len => {
                    self.receiving.payload = None;
                    self.finish(payload, around)?;
                    frames += 1;
                }
                Some(_) if self.receiving.window.is_empty() => return Ok(frames),
                Some(_) => self.land_from_window(around)?,
                None => {
                    let Some(head) = self.receiving.take_head() else { return Ok(frames) };
                    let head = head?;
                    self.begin(head, around)?;
                    self.receiving.window.learn(head.payload() > SHORT);
                    frames += usize::from(self.receiving.payload.is_none());
                }
            }
        }
    }

    /// A head has arrived.
    fn begin(&mut self, head: Head, around: &mut Around<'_>) -> Result<(), Stop> {
        self.learn(head.landed, head.granted)?;
        let receive = around.receives.get(0).map(|(receive, segments)| (receive.cookie, total(segments)));
        match head.kind {
            Kind::Message => {
                let arrived = self.receiving.message.unwrap_or(0);
                // It sends only what there is a receive for.
                let (cookie, room) = receive.ok_or(Stop::Garbage)?;
                if u64::from(arrived) + u64::from(head.len) > room {
                    around.receives.pop();
                    around.complete(WorkQueue::Receive, cookie, Err(DescriptorError::Length), None);
                    return Err(Stop::Refused(End::Length));
                }
                self.receiving.message = Some(arrived);
            }
            Kind::Write { to, rest } => {
                if self.receiving.message.is_some() || (head.immediate.is_some() && receive.is_none()) {
                    return Err(Stop::Garbage);
                }
                let ViAttributes { tag, remote_access, .. } = *around.attributes;
                let reached = around.regions.remote_memory(to, u64::from(rest), RemoteUse::Write, tag, remote_access);
                reached.map_err(|_| Stop::Refused(End::RemoteProtection))?;
            }
            Kind::Read { from } => self.ask(from, head.len)?,
            Kind::Answer => {
                let read = self.oldest_read(around.sends).and_then(|at| around.sends.get(at)).map(|(item, _)| item);
                let read = read.ok_or(Stop::Garbage)?;
                let Progress::Reading(arrived) = read.progress else { return Err(Stop::Garbage) };
                let left = read.len - arrived;
                if head.len > left || head.more != (head.len < left) {
                    return Err(Stop::Garbage);
                }
            }
            Kind::Tell => {}
            Kind::End(end) => return Err(Stop::Ended(end)),
        }
        if matches!(head.kind, Kind::Message | Kind::Write { .. } | Kind::Answer) {
            self.receiving.payload = Some(Payload { head, done: 0, crc: 0 });
        }
        Ok(())
    }

    /// Copies what of a payload came along with its head.
    fn land_from_window(&mut self, around: &mut Around<'_>) -> Result<(), Stop> {
        let Receiving { window, payload: Some(payload), message, .. } = &mut self.receiving else { return Ok(()) };
        let left = payload.head.len - payload.done;
        let len = u32::try_from(window.bytes().len()).map_or(left, |here| here.min(left));
        let bytes = &window.bytes()[..index(len)];
        let mut at = 0;
        each_place(payload, *message, payload.done, len, around, |memory, segment| {
            let end = at + index(segment.len);
            memory.write(segment.offset, &bytes[at..end]).expect("it was checked");
            at = end;
            true
        })
        .map_err(|_| lost(payload.head.kind))?;
        *around.copied += u64::from(len);
        payload.crc = crc32c::crc32c_append(payload.crc, bytes);
        payload.done += len;
        window.consume(index(len));
        Ok(())
    }

    /// A frame is here, whole.
    fn finish(&mut self, payload: Payload, around: &mut Around<'_>) -> Result<(), Stop> {
        let Payload { head, crc, .. } = payload;
        if crc != head.crc {
            return Err(Stop::Garbage);
        }
        let mut received = None;
        match head.kind {
            Kind::Message => {
                let arrived = self.receiving.message.unwrap_or(0) + head.len;
                self.receiving.message = head.more.then_some(arrived);
                received = (!head.more).then_some(arrived);
            }
            Kind::Write { .. } => received = head.immediate.map(|_| 0),
            Kind::Answer => {
                let at = self.oldest_read(around.sends).ok_or(Stop::Garbage)?;
                let (item, _) = around.sends.get_mut(at).expect("it was just there");
                let Progress::Reading(arrived) = item.progress else { return Err(Stop::Garbage) };
                item.progress = if head.more {
                    Progress::Reading(arrived + head.len)
                } else {
                    self.reads -= 1;
                    Progress::Done(Ok(item.len))
                };
            }
            Kind::Read { .. } | Kind::Tell | Kind::End(_) => unreachable!("they have no payload"),
        }
        if let Some(len) = received {
            let receive = around.receives.pop().expect("it was there when the frame began");
            around.complete(WorkQueue::Receive, receive.cookie, Ok(len), head.immediate);
        }
        if !head.more && head.kind != Kind::Answer {
            self.receiving.landed = self.receiving.landed.wrapping_add(1);
        }
        Ok(())
    }
}

/// The memory that a payload goes to was taken away while it was arriving.
fn lost(kind: Kind) -> Stop {
    if matches!(kind, Kind::Write { .. }) { Stop::Refused(End::RemoteProtection) } else { Stop::Failed }
}

/// Calls `each` with the places of `len` bytes of a payload from byte `from` on, until it says no.
fn each_place<'a>(
    payload: &Payload,
    message: Option<u32>,
    from: u32,
    len: u32,
    around: &Around<'a>,
    mut each: impl FnMut(&'a Memory, Segment) -> bool,
) -> Result<(), DescriptorError> {
    let Around { attributes, regions, .. } = *around;
    let ViAttributes { tag, remote_access, .. } = *attributes;
    match payload.head.kind {
        Kind::Write { to: RemoteAddress { region, offset }, .. } => {
            let to = RemoteAddress { region, offset: offset + u64::from(from) };
            let memory = regions.remote_memory(to, u64::from(len), RemoteUse::Write, tag, remote_access)?;
            each(memory, Segment { memory: memory.id(), offset: to.offset, len });
            Ok(())
        }
        Kind::Answer => {
            let reading = (0..).map_while(|at| around.sends.get(at)).find_map(|(item, segments)| match item.progress {
                Progress::Reading(arrived) => Some((arrived, segments)),
                _ => None,
            });
            let (arrived, segments) = reading.ok_or(DescriptorError::LocalProtection)?;
            each_local(segments, arrived + from, len, regions, tag, LocalUse::Target, each)
        }
        _ => {
            let (_, segments) = around.receives.get(0).ok_or(DescriptorError::LocalProtection)?;
            each_local(segments, message.unwrap_or(0) + from, len, regions, tag, LocalUse::Target, each)
        }
    }
}
