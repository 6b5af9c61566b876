//! The fast path of one connection: what the reactor does with rings and mapped regions.
//!
//! A send goes through the ring in pieces. An RDMA is done by its initiator, straight between its own memory and the
//! peer's mapped region, in steps of [`RDMA_STEP`]. Both happen in the order of posting, and at once unless something in front
//! has to wait: for room in the ring, or for a region whose announcement is still on its way.
//!
//! The order of an RDMA write (PROTOCOLS 3.5): look that region and VI are open; copy; full fence; look again; only if both
//! are still open does it complete with success. [`super`] says what the owner can rely on.

use std::os::fd::OwnedFd;

use super::agent::Wire;
use super::layout::Geometry;
use super::ring::{Arrived, Consumer, Garbage, Header, Producer, Shared};
use super::status::PeerStatus;
use super::{socket, status};
use crate::descriptor::total;
use crate::memory::{self, Memory, Segment};
use crate::provider::{
    DescriptorError, ProtectionTag, RegionHandle, Reliability, RemoteAccess, RemoteAddress, SendOperation,
};
use crate::regions::{LocalUse, Regions, RemoteUse};
use crate::work_items::WorkItems;

/// Bytes that one RDMA moves before the reactor has its turn again.
pub(super) const RDMA_STEP: u64 = 256 << 10;

/// So many turns a peer that answers needs not store how far it is: the answer says it.
const UNTOLD: u8 = 32;

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
    /// So many bytes are moved; more follow.
    Begun(u32),
    /// All is in the ring; it is done when the peer has dealt with that many entries.
    InRing(u32),
    Done(Result<u32, DescriptorError>),
}

/// A buffer for one message.
#[derive(Debug)]
pub(super) struct ReceiveItem {
    pub(super) cookie: u64,
}

/// A region of the peer that is mapped here.
struct PeerRegion {
    handle: RegionHandle,
    memory: Memory,
    access: RemoteAccess,
}

/// What became of a step.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    /// More to do, now.
    Again,
    /// The ring is full: the peer must move.
    NoRoom,
    /// The region may still be announced.
    NoRegion,
}

/// What a message did to the receive at the front.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Nothing there, or no receive for it.
    Nothing,
    /// A part of a message; more follows.
    Part,
    /// The receive is to be completed.
    Complete(Result<u32, DescriptorError>, Option<u32>),
    /// Lost, as Unreliable Delivery allows.
    Dropped,
}

pub(super) struct Link {
    reliability: Reliability,
    tag: ProtectionTag,
    geometry: Geometry,
    producer: Producer<Memory>,
    consumer: Consumer<Memory>,
    peer: PeerStatus,
    doorbell: OwnedFd,
    regions: Vec<Option<PeerRegion>>,
    /// Payload bytes copied into regions that are gone.
    copied_before: u64,
    /// Announcements of the peer that have been dealt with.
    announced_seen: u32,
    /// Where each side says how many it made.
    announced_by_peer: u64,
    announced_by_us: u64,
    announced: u32,
    /// Where each side says that it wants to be rung.
    quiet_peer: u64,
    quiet_us: u64,
    /// Bytes of the message that is arriving, and whether the rest of it is to be thrown away.
    arrived: u32,
    dropping: bool,
    /// Something was published since the last full fence, and the peer may be asleep.
    stirred: bool,
    /// Turns since entries were taken that the peer was told of only in an entry of ours, which it may not come to see
    /// while one in front of it waits for a receive; [`UNTOLD`] if it was not told at all.
    untold: Option<u8>,
}

impl Link {
    /// `None` if the peer's VI has no place in its status.
    pub(super) fn new(wire: Wire, reliability: Reliability, tag: ProtectionTag) -> Option<Self> {
        let Wire { side, geometry, channel, peer_status, peer_shape, peer_vi, doorbell } = wire;
        Some(Self {
            reliability,
            tag,
            geometry,
            producer: Producer::new(channel.clone(), geometry.ring(side), geometry),
            consumer: Consumer::new(channel, geometry.ring(side.other()), geometry),
            peer: PeerStatus::new(peer_status, peer_shape, peer_vi)?,
            doorbell,
            regions: (0..peer_shape.regions).map(|_| None).collect(),
            copied_before: 0,
            announced_seen: 0,
            announced_by_peer: Geometry::announced(side.other()),
            announced_by_us: Geometry::announced(side),
            announced: 0,
            quiet_peer: Geometry::quiet(side.other()),
            quiet_us: Geometry::quiet(side),
            arrived: 0,
            dropping: false,
            stirred: false,
            untold: None,
        })
    }

    pub(super) fn doorbell(&self) -> &OwnedFd {
        &self.doorbell
    }

    /// Says that `regions` more will be announced, or, with 0, that all that were there before the connection have been.
    pub(super) fn announce(&mut self, regions: u32) {
        self.announced += regions;
        self.producer.memory().put_u32(self.announced_by_us, 1 + self.announced);
    }

    /// A region of the peer has arrived; false if it cannot be one.
    pub(super) fn add_region(&mut self, handle: RegionHandle, memory: Memory, access: RemoteAccess) -> bool {
        self.announced_seen += 1;
        let place = usize::try_from(handle.index & 0xffff).expect("16 bits");
        let Some(place) = self.regions.get_mut(place) else { return false };
        *place = Some(PeerRegion { handle, memory, access });
        true
    }

    pub(super) fn remove_region(&mut self, handle: RegionHandle) -> Option<Memory> {
        let place = self.regions.get_mut(usize::try_from(handle.index & 0xffff).expect("16 bits"))?;
        let memory = place.take_if(|region| region.handle == handle)?.memory;
        self.copied_before += memory.copied_bytes();
        Some(memory)
    }

    /// Payload bytes copied to the peer.
    pub(super) fn copied_bytes(&self) -> u64 {
        let regions = self.regions.iter().flatten().map(|region| region.memory.copied_bytes());
        self.producer.memory().copied_bytes() + regions.sum::<u64>() + self.copied_before
    }

    /// All that is mapped, to be unmapped elsewhere.
    pub(super) fn into_memories(self) -> Vec<Memory> {
        let mut memories: Vec<_> = self.regions.into_iter().flatten().map(|region| region.memory).collect();
        memories.push(self.producer.memory().clone());
        memories
    }

    /// Wakes the peer if it sleeps and something happened that it waits for. Once per turn and not per message: the fence
    /// waits until all stores have reached the peer's cache, which is as long as a message takes.
    pub(super) fn stir(&mut self, before_sleep: bool) {
        if let Some(turns) = &mut self.untold {
            *turns += 1;
            if *turns > UNTOLD || before_sleep {
                self.untold = None;
                self.consumer.publish();
                self.stirred = true;
            }
        }
        if std::mem::take(&mut self.stirred) {
            // In this order: the fence is in the first.
            let (asleep, quiet) = (self.peer.is_asleep(), self.producer.memory().get_u32(self.quiet_peer) != 0);
            if asleep || quiet {
                socket::ring(&self.doorbell);
            }
        }
    }

    /// Whether nothing is left to be said to the peer.
    pub(super) fn is_settled(&self) -> bool {
        !self.stirred && self.untold.is_none()
    }

    /// Has the peer ring from now on, or no more.
    pub(super) fn say_quiet(&self, quiet: bool) {
        status::say_quiet(self.producer.memory(), self.quiet_us, quiet);
    }

    /// Whether the peer closed its VI: nothing sent to it counts any more.
    pub(super) fn is_peer_open(&self) -> bool {
        self.peer.is_vi_open()
    }

    // Sending.

    /// Something will be sent at once.
    pub(super) fn prepare(&self) {
        self.producer.prepare();
    }

    /// Looks how far the peer is with what was sent.
    pub(super) fn refresh(&mut self) -> Result<bool, Garbage> {
        self.producer.refresh()
    }

    pub(super) fn is_consumed(&self, entries: u32) -> bool {
        self.producer.is_consumed(entries)
    }

    /// Does the next part of a descriptor.
    pub(super) fn advance(&mut self, item: &mut SendItem, segments: &[Segment], ours: &Regions) -> Step {
        let Progress::Begun(moved) = item.progress else { return Step::Done };
        let step = match item.operation {
            SendOperation::Send => self.advance_send(item, moved, segments, ours),
            SendOperation::RdmaWrite(to) => self.advance_rdma(item, moved, segments, ours, to, RemoteUse::Write),
            SendOperation::RdmaRead(from) => self.advance_rdma(item, moved, segments, ours, from, RemoteUse::Read),
        };
        step.unwrap_or_else(|error| {
            item.progress = Progress::Done(Err(error));
            Step::Done
        })
    }

    fn advance_send(
        &mut self,
        item: &mut SendItem,
        moved: u32,
        segments: &[Segment],
        ours: &Regions,
    ) -> Result<Step, DescriptorError> {
        let len = (item.len - moved).min(self.geometry.payload_max());
        if !self.producer.has_room(len) {
            return Ok(Step::NoRoom);
        }
        let more = moved + len < item.len;
        let immediate = if more { None } else { item.immediate };
        let header = Header { len, more, written: false, immediate };
        let from = Local { segments, ours, tag: self.tag };
        let end = self.push(header, |channel, at| from.gather(moved, len, channel, at))?;
        item.progress = match (more, self.reliability) {
            (true, _) => Progress::Begun(moved + len),
            (false, Reliability::ReliableReception) => Progress::InRing(end),
            (false, _) => Progress::Done(Ok(item.len)),
        };
        Ok(if more { Step::Again } else { Step::Done })
    }

    fn advance_rdma(
        &mut self,
        item: &mut SendItem,
        moved: u32,
        segments: &[Segment],
        ours: &Regions,
        at: RemoteAddress,
        how: RemoteUse,
    ) -> Result<Step, DescriptorError> {
        let Some(region) = self.reach(at, item.len, how)? else { return Ok(Step::NoRegion) };
        let (memory, handle) = (&region.memory, region.handle);
        if moved < item.len {
            if self.stirred {
                // Every message before it is published before the look (Order, in the module above).
                self.peer.fence();
            }
            self.peer.may_begin(handle)?;
            let len = (item.len - moved).min(u32::try_from(RDMA_STEP).expect("it is small"));
            let (local, offset) = (Local { segments, ours, tag: self.tag }, at.offset + u64::from(moved));
            match how {
                RemoteUse::Write => local.gather(moved, len, memory, offset)?,
                RemoteUse::Read => local.scatter(moved, len, memory, offset)?,
            }
            item.progress = Progress::Begun(moved + len);
            if moved + len < item.len {
                return Ok(Step::Again);
            }
        }
        let notice = item.immediate.filter(|_| how == RemoteUse::Write);
        if notice.is_some() && !self.producer.has_room(0) {
            return Ok(Step::NoRoom);
        }
        self.peer.may_succeed(handle)?;
        item.progress = Progress::Done(Ok(item.len));
        if notice.is_some() {
            let header = Header { len: 0, more: false, written: true, immediate: notice };
            let end = self.push(header, |_, _| Ok(()))?;
            if self.reliability == Reliability::ReliableReception {
                item.progress = Progress::InRing(end);
            }
        }
        Ok(Step::Done)
    }

    /// The peer's region, if the access is allowed; `None` while it may still be announced.
    fn reach(&self, at: RemoteAddress, len: u32, how: RemoteUse) -> Result<Option<&PeerRegion>, DescriptorError> {
        let refused = DescriptorError::RemoteProtection;
        let place = usize::try_from(at.region.index & 0xffff).expect("16 bits");
        let known = self.regions.get(place).and_then(Option::as_ref).filter(|region| region.handle == at.region);
        let Some(region) = known else {
            // Registered before its handle was given away, so the count was raised before we could know the handle.
            let announced = self.producer.memory().get_u32(self.announced_by_peer);
            let all_here = announced.checked_sub(1).is_some_and(|announced| announced <= self.announced_seen);
            return if all_here { Err(refused) } else { Ok(None) };
        };
        let end = at.offset.checked_add(u64::from(len)).ok_or(refused)?;
        if !region.access.allows(how) || end > region.memory.len() {
            return Err(refused);
        }
        Ok(Some(region))
    }

    // Receiving.

    /// As many entries as can have been published and not taken.
    pub(super) fn published_max(&self) -> usize {
        usize::try_from(self.geometry.entries).expect("rings are shorter than the address space")
    }

    /// Takes the next entry of the peer, if there is one and a receive for it.
    pub(super) fn take_incoming(
        &mut self,
        receives: &mut WorkItems<ReceiveItem>,
        ours: &Regions,
    ) -> Result<Incoming, Garbage> {
        let Some(arrived) = self.consumer.peek()? else { return Ok(Incoming::Nothing) };
        let Header { len, more, written, immediate } = arrived.header;
        self.producer.learn(arrived.consumed)?;
        if written && (self.arrived > 0 || self.dropping) {
            return Err(Garbage);
        }
        let receive = receives.get_mut(0).filter(|_| !self.dropping);
        let Some((_, segments)) = receive else {
            if self.reliability != Reliability::UnreliableDelivery {
                return Ok(Incoming::Nothing);
            }
            self.pop(&arrived);
            self.dropping = more;
            return Ok(Incoming::Dropped);
        };
        let end = self.arrived.checked_add(len).filter(|end| u64::from(*end) <= total(segments));
        let outcome = match end {
            None => Err(DescriptorError::Length),
            Some(end) if written => Ok(end),
            Some(end) => {
                let to = Local { segments, ours, tag: self.tag };
                to.scatter(self.arrived, len, self.consumer.memory(), arrived.payload).map(|()| end)
            }
        };
        self.pop(&arrived);
        match outcome {
            Ok(end) if more => {
                self.arrived = end;
                Ok(Incoming::Part)
            }
            _ => {
                self.arrived = 0;
                self.dropping = more;
                Ok(Incoming::Complete(outcome, immediate.filter(|_| outcome.is_ok())))
            }
        }
    }

    fn pop(&mut self, arrived: &Arrived) {
        self.consumer.pop(arrived);
        self.untold = Some(UNTOLD);
    }

    /// Publishes an entry; returns the number of entries so far.
    fn push(
        &mut self,
        header: Header,
        fill: impl FnOnce(&Memory, u64) -> Result<(), DescriptorError>,
    ) -> Result<u32, DescriptorError> {
        let end = self.producer.push(header, self.consumer.consumed(), fill)?;
        self.untold = self.untold.map(|_| 0);
        self.stirred = true;
        Ok(end)
    }
}

/// Our own segments, in the order of the descriptor.
struct Local<'a> {
    segments: &'a [Segment],
    ours: &'a Regions,
    tag: ProtectionTag,
}

impl Local<'_> {
    /// Copies `len` bytes from `at` on to `to`.
    fn gather(&self, at: u32, len: u32, to: &Memory, to_at: u64) -> Result<(), DescriptorError> {
        self.each(at, len, LocalUse::Source, |memory, offset, done, part| {
            memory::copy(memory, offset, to, to_at + done, part)
        })
    }

    /// Copies `len` bytes of `from` to `at` and on.
    fn scatter(&self, at: u32, len: u32, from: &Memory, from_at: u64) -> Result<(), DescriptorError> {
        self.each(at, len, LocalUse::Target, |memory, offset, done, part| {
            memory::copy(from, from_at + done, memory, offset, part)
        })
    }

    fn each(
        &self,
        at: u32,
        len: u32,
        how: LocalUse,
        mut copy: impl FnMut(&Memory, u64, u64, u64) -> Result<(), memory::RangeError>,
    ) -> Result<(), DescriptorError> {
        let (mut skip, len) = (u64::from(at), u64::from(len));
        let mut done = 0;
        for segment in self.segments {
            let whole = u64::from(segment.len);
            if skip >= whole {
                skip -= whole;
                continue;
            }
            let part = (whole - skip).min(len - done);
            if part == 0 {
                break;
            }
            let memory = self.ours.local_memory(segment, self.tag, how)?;
            copy(memory, segment.offset + skip, done, part).map_err(|_| DescriptorError::LocalProtection)?;
            (done, skip) = (done + part, 0);
        }
        Ok(())
    }
}
