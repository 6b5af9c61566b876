//! One queue pair with its commands in flight: the rings (Base 3.3.1), the doorbells (PCIe 3.1.2) and their shadows
//! (Base B.5), and the table that owns whatever memory a command names until the device is done with it.
//!
//! - A command has a **slot**, which is its command identifier. The slot is taken when the command is submitted and
//!   given back when it completes, whether or not anybody awaits it. Each slot has a page of its own, for PRP and SGL
//!   lists, or for the data of small commands.
//! - The **answer** is kept by [`Replies`] until its future takes it, or was dropped.
//! - Doorbells are rung by [`Channel::ring`], once for all that was submitted since.
//!
//! The device is not trusted: a completion that names no command in flight, or a head outside the queue, is [`Nonsense`].

use std::sync::atomic::{Ordering, fence};

use dyad_matrix::{Memory, Segment};
use dyad_nvme::register::{Doorbell, doorbell_offset};
use dyad_nvme::types::{CommandId, QueueId};
use dyad_nvme::{CompletionEntry, SglDescriptor, SubmissionEntry};
use dyad_reactor::sync::{Pending, Replies, Ticket};

use super::mapping::Mappings;
use crate::device::SubmitError;
use crate::pci::PciFunction;

/// Bytes of a memory page, and of each slot's page.
pub(super) const PAGE: u64 = 4096;

/// Most blocks of one command: a PRP list that fits in its slot's page, behind the first entry.
pub(super) const BLOCKS_MAX: u64 = PAGE / 8;

/// How a command ended without a completion of the device.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The controller was reset under it.
    Reset,
    /// The device has failed.
    Gone,
}

/// What a command's future gets.
pub(super) type Answer = Result<CompletionEntry, Ended>;

/// The device broke the protocol.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Nonsense;

/// Where a channel's parts lie in the queue memory.
#[derive(Debug, Copy, Clone)]
pub(super) struct Layout {
    pub(super) queue: QueueId,
    /// Entries of both rings; one more than the slots, because a full ring looks empty.
    pub(super) entries: u16,
    pub(super) sq: u64,
    pub(super) cq: u64,
    pub(super) pages: u64,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Use {
    /// Free; the next free slot.
    Free(u16),
    /// The device has it.
    InFlight(Ticket),
    /// The same, and its page is somebody's after it completes.
    InFlightKept(Ticket),
    /// Done; its page is somebody's.
    Kept,
}

#[derive(Debug, Copy, Clone)]
struct Slot {
    state: Use,
    /// When it was submitted, in ticks of the watch.
    tick: u32,
    aborting: bool,
}

/// No free slot.
const NONE: u16 = u16::MAX;

#[derive(Debug)]
pub(super) struct Channel {
    layout: Layout,
    memory: Memory,
    /// Bus address of the queue memory.
    base: u64,
    slots: Vec<Slot>,
    free: u16,
    outstanding: u16,
    replies: Replies<Answer>,
    tail: u16,
    rung: u16,
    head: u16,
    head_rung: u16,
    phase: bool,
    stride: u8,
    /// Offsets of the shadow and event index pages in the queue memory, once the controller uses them.
    shadow: Option<(u64, u64)>,
}

impl Channel {
    pub(super) fn new(layout: Layout, memory: Memory, base: u64, stride: u8) -> Self {
        let depth = layout.entries - 1;
        let slots = (0..depth)
            .map(|i| Slot { state: Use::Free(if i + 1 == depth { NONE } else { i + 1 }), tick: 0, aborting: false })
            .collect();
        Self {
            layout,
            memory,
            base,
            slots,
            free: 0,
            outstanding: 0,
            replies: Replies::new(usize::from(depth)),
            tail: 0,
            rung: 0,
            head: 0,
            head_rung: 0,
            phase: true,
            stride,
            shadow: None,
        }
    }

    /// Bus addresses of the rings.
    pub(super) fn rings(&self) -> (u64, u64) {
        (self.base + self.layout.sq, self.base + self.layout.cq)
    }

    /// Bus address of the queue memory.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Zeroes two pages of the queue memory that are not the rings'.
    pub(super) fn clear_pages(&self, first: u64, second: u64) {
        for page in [first, second] {
            self.memory.fill_zero(page, PAGE).expect("a page of the queue memory");
        }
    }

    pub(super) fn entries(&self) -> u16 {
        self.layout.entries
    }

    pub(super) fn queue(&self) -> QueueId {
        self.layout.queue
    }

    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// The shadow of this queue's doorbells, which lie as far apart as the controller wants them, has room in one page.
    pub(super) fn doorbells_fit_in_a_page(&self) -> bool {
        let last = doorbell_offset(self.layout.queue.0, Doorbell::CompletionHead, self.stride);
        u64::from(last - dyad_nvme::register::DOORBELLS) + 4 <= PAGE
    }

    /// The controller uses shadow doorbells at these offsets of the queue memory from now on.
    pub(super) fn set_shadow(&mut self, shadow: u64, event_index: u64) {
        self.shadow = Some((shadow, event_index));
    }

    /// Takes a slot for a command with a list of `segments`, fills in the data pointer and queues it.
    #[inline]
    pub(super) fn submit(
        &mut self,
        entry: SubmissionEntry,
        segments: &[Segment],
        mappings: &Mappings,
        sgl: bool,
        tick: u32,
    ) -> Result<Pending<Answer>, SubmitError> {
        if self.free == NONE {
            return Err(SubmitError::Full);
        }
        let entry = self.with_data(entry, segments, mappings, sgl)?;
        let pending = self.replies.reserve().ok_or(SubmitError::Full)?;
        let state = Use::InFlight(pending.ticket());
        self.push(entry, state, tick);
        Ok(pending)
    }

    /// Takes a slot for a command whose data is the slot's own page, filled with `data`; the page stays taken until [`Self::release`].
    pub(super) fn submit_kept(
        &mut self,
        entry: SubmissionEntry,
        data: &[u8],
        tick: u32,
    ) -> Result<(CommandId, Pending<Answer>), SubmitError> {
        if self.free == NONE {
            return Err(SubmitError::Full);
        }
        let pending = self.replies.reserve().ok_or(SubmitError::Full)?;
        let page = self.page(self.free);
        self.memory.fill_zero(page, PAGE).and_then(|()| self.memory.write(page, data)).expect("a slot's page");
        // Commands that say where their data is say it themselves (doorbell buffers, queues).
        let entry = if entry.prp1() == 0 { entry.with_prp(self.base + page, 0) } else { entry };
        let state = Use::InFlightKept(pending.ticket());
        let slot = self.push(entry, state, tick);
        Ok((CommandId(slot), pending))
    }

    /// Reads a kept slot's page.
    pub(super) fn read_page(&self, command: CommandId, data: &mut [u8]) {
        self.memory.read(self.page(command.0), data).expect("a slot's page");
    }

    /// The owner of a kept page is done with it, or has gone away.
    pub(super) fn release(&mut self, command: CommandId) {
        let slot = &mut self.slots[usize::from(command.0)];
        match slot.state {
            Use::Kept => self.free_slot(command.0),
            Use::InFlightKept(ticket) => slot.state = Use::InFlight(ticket),
            Use::Free(_) | Use::InFlight(_) => unreachable!("a page is released once"),
        }
    }

    #[inline]
    fn push(&mut self, entry: SubmissionEntry, state: Use, tick: u32) -> u16 {
        let index = self.free;
        let slot = &mut self.slots[usize::from(index)];
        let Use::Free(next) = slot.state else { unreachable!("the free list holds free slots") };
        self.free = next;
        *slot = Slot { state, tick, aborting: false };
        self.outstanding += 1;
        let entry = entry.with_command(CommandId(index));
        let at = self.layout.sq + u64::from(self.tail) * SubmissionEntry::BYTES as u64;
        let ring = self.memory.atomics_u64(at, SubmissionEntry::WORDS).expect("the ring is in the queue memory");
        for (to, word) in ring.iter().zip(entry.to_words()) {
            to.store(word, Ordering::Relaxed);
        }
        self.tail = if self.tail + 1 == self.layout.entries { 0 } else { self.tail + 1 };
        index
    }

    fn free_slot(&mut self, index: u16) {
        self.slots[usize::from(index)].state = Use::Free(self.free);
        self.free = index;
    }

    fn page(&self, slot: u16) -> u64 {
        self.layout.pages + u64::from(slot) * PAGE
    }

    /// PRP entries for up to two pages; for more one SGL descriptor if the data is contiguous and the device takes them, else the shorter list.
    #[inline]
    fn with_data(
        &self,
        entry: SubmissionEntry,
        segments: &[Segment],
        mappings: &Mappings,
        sgl: bool,
    ) -> Result<SubmissionEntry, SubmitError> {
        let pages: u64 = segments.iter().map(|s| u64::from(s.len) / PAGE).sum();
        let invalid = SubmitError::Invalid;
        match segments {
            [] => return Ok(entry),
            [only] if pages <= 2 => {
                let address = mappings.address(only).ok_or(invalid)?;
                return Ok(entry.with_prp(address, if pages == 2 { address + PAGE } else { 0 }));
            }
            [only] if sgl => {
                let address = mappings.address(only).ok_or(invalid)?;
                return Ok(entry.with_sgl(SglDescriptor::data_block(address, only.len)));
            }
            _ => {}
        }
        let list = self.page(self.free);
        let mut at = list;
        let mut append = |word: u64| {
            self.memory.store_u64(at, word).expect("lists fit in a slot's page");
            at += 8;
        };
        if sgl && 2 * segments.len() as u64 <= pages {
            for segment in segments {
                let address = mappings.address(segment).ok_or(invalid)?;
                let bytes = SglDescriptor::data_block(address, segment.len).to_bytes();
                let (low, high) = bytes.split_at(8);
                append(u64::from_le_bytes(low.try_into().expect("8 bytes")));
                append(u64::from_le_bytes(high.try_into().expect("8 bytes")));
            }
            let len = u32::try_from(segments.len() * SglDescriptor::BYTES).expect("fits in a page");
            return Ok(entry.with_sgl(SglDescriptor::last_segment(self.base + list, len)));
        }
        let mut first = None;
        for segment in segments {
            let address = mappings.address(segment).ok_or(invalid)?;
            for page in 0..u64::from(segment.len) / PAGE {
                match first {
                    None => first = Some(address),
                    Some(_) => append(address + page * PAGE),
                }
            }
        }
        let second = if pages == 2 { self.memory.load_u64(list).expect("in the page") } else { self.base + list };
        Ok(entry.with_prp(first.expect("there are segments"), second))
    }

    /// Tells the device about everything that was submitted, and about completions that were taken. The doorbell's store publishes the entries.
    #[inline]
    pub(super) fn ring(&mut self, function: &impl PciFunction) {
        if self.tail != self.rung {
            let old = std::mem::replace(&mut self.rung, self.tail);
            self.write_doorbell(function, Doorbell::SubmissionTail, old, self.tail);
        }
        if self.head != self.head_rung {
            let old = std::mem::replace(&mut self.head_rung, self.head);
            self.write_doorbell(function, Doorbell::CompletionHead, old, self.head);
        }
    }

    #[inline]
    fn write_doorbell(&self, function: &impl PciFunction, which: Doorbell, old: u16, new: u16) {
        let offset = doorbell_offset(self.layout.queue.0, which, self.stride);
        if let Some((shadow, event_index)) = self.shadow {
            let at =
                u64::from(doorbell_offset(self.layout.queue.0, which, self.stride) - dyad_nvme::register::DOORBELLS);
            self.memory.store_u32(shadow + at, u32::from(new)).expect("in the shadow page");
            // Either the device sees the new value before it sleeps, or we see that it asked to be woken.
            fence(Ordering::SeqCst);
            let event = self.memory.load_u32(event_index + at).expect("in the page");
            if !passes(event, old, new) {
                return;
            }
        }
        function.doorbell(offset, u32::from(new));
    }

    /// Takes completions; calls `seen` with each.
    #[inline]
    pub(super) fn complete(&mut self, mut seen: impl FnMut(CommandId, &CompletionEntry)) -> Result<usize, Nonsense> {
        let mut count = 0;
        loop {
            let at = self.layout.cq + u64::from(self.head) * CompletionEntry::BYTES as u64;
            let ring = self.memory.atomics_u64(at, 2).expect("the ring is in the queue memory");
            let high = ring[1].load(Ordering::Acquire);
            let [.., status_low, _] = high.to_le_bytes();
            if (status_low & 1 == 1) != self.phase {
                return Ok(count);
            }
            let entry = CompletionEntry::from_words(ring[0].load(Ordering::Relaxed), high);
            let command = entry.command();
            let slot = self.slots.get_mut(usize::from(command.0)).ok_or(Nonsense)?;
            let (ticket, kept) = match slot.state {
                Use::InFlight(ticket) => (ticket, false),
                Use::InFlightKept(ticket) => (ticket, true),
                Use::Free(_) | Use::Kept => return Err(Nonsense),
            };
            if entry.sq_head() >= self.layout.entries || entry.queue() != self.layout.queue {
                return Err(Nonsense);
            }
            self.head = if self.head + 1 == self.layout.entries { 0 } else { self.head + 1 };
            self.phase ^= self.head == 0;
            self.outstanding -= 1;
            if kept {
                slot.state = Use::Kept;
            } else {
                self.free_slot(command.0);
            }
            seen(command, &entry);
            // Nobody waits any more: the command was done all the same.
            let _ = self.replies.complete(ticket, Ok(entry));
            count += 1;
        }
    }

    /// The oldest command: its identifier, since when (in ticks), and whether it is being aborted.
    pub(super) fn oldest(&self, tick: u32) -> Option<(CommandId, u32, bool)> {
        let in_flight = |(index, slot): (usize, &Slot)| {
            let flying = matches!(slot.state, Use::InFlight(_) | Use::InFlightKept(_));
            flying.then(|| (index, tick.wrapping_sub(slot.tick), slot.aborting))
        };
        let (index, age, aborting) =
            self.slots.iter().enumerate().filter_map(in_flight).max_by_key(|(_, age, _)| *age)?;
        Some((CommandId(u16::try_from(index).expect("slots are counted in 16 bits")), age, aborting))
    }

    /// Notes that the command is being aborted and has from `tick` on to end.
    pub(super) fn mark_aborting(&mut self, command: CommandId, tick: u32) {
        let slot = &mut self.slots[usize::from(command.0)];
        slot.aborting = true;
        slot.tick = tick;
    }

    /// The device does not know these queues any more and touches no memory: every command in flight ends, and the rings start anew.
    pub(super) fn restart(&mut self, ended: Ended) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let ticket = match slot.state {
                Use::Free(_) | Use::Kept => continue,
                Use::InFlight(ticket) => {
                    self.free_slot(u16::try_from(index).expect("slots are counted in 16 bits"));
                    ticket
                }
                Use::InFlightKept(ticket) => {
                    slot.state = Use::Kept;
                    ticket
                }
            };
            let _ = self.replies.complete(ticket, Err(ended));
        }
        self.outstanding = 0;
        (self.tail, self.rung, self.head, self.head_rung, self.phase, self.shadow) = (0, 0, 0, 0, true, None);
        let ring_bytes = u64::from(self.layout.entries) * CompletionEntry::BYTES as u64;
        self.memory.fill_zero(self.layout.cq, ring_bytes).expect("the ring is in the queue memory");
    }
}

/// Whether going from `old` to `new` passes the index at which the device asked to be told (Base B.5; the arithmetic is
/// modulo 2^16 as in every implementation).
fn passes(event: u32, old: u16, new: u16) -> bool {
    let [e0, e1, ..] = event.to_le_bytes();
    let event = u16::from_le_bytes([e0, e1]);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
impl Channel {
    /// Looks for completions where there are none yet.
    pub(super) fn lose_sight(&mut self) {
        self.head = (self.head + 20) % self.layout.entries;
    }

    /// Writes a completion as a device would, `ahead` of the next place.
    pub(super) fn forge(&self, ahead: u16, entry: CompletionEntry) {
        let place = u64::from((self.head + ahead) % self.layout.entries);
        let at = self.layout.cq + place * CompletionEntry::BYTES as u64;
        self.memory.write(at, &entry.with_phase(self.phase).to_bytes()).expect("in the ring");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_is_needed_when_the_event_index_is_passed() {
        assert!(passes(5, 5, 6) && passes(5, 3, 9));
        assert!(!passes(5, 6, 7) && !passes(5, 3, 5));
        // The ring wraps at its size, not at 2^16.
        assert!(passes(127, 127, 0) && passes(0, 127, 1));
        // What a device that watches writes: one behind its head, never passed by a ring that is not full.
        assert!(!passes(9, 127, 3) && !passes(9, 10, 127));
    }
}
