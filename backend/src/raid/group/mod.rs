//! A RAID group of any level on its devices: no write hole, no silent lie (PROTOCOLS 7).
//!
//! **A write** to a stripe, under the stripe's lock: read what parity needs (nothing, if the stripe is written whole), compute parity and guards, make
//! the intent durable, write all members at once, note the new guards. All of it goes through to media; `fua` changes nothing.
//! **A read** goes straight into the caller's memory and is checked against the guards; what does not match is made again from the other members,
//! written back, and counted.
//! **After a crash** [`Group::open`] replays the intents before anything else is done.
//!
//! What it promises to the cache above is what the parent module says of every level; but for a write that a crash cut short nobody needs to read the whole
//! group: every block is old or new, and every block that the write did not name is as it was.

mod log;
mod members;
mod open;
mod stripe;
mod table;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::sync::{KeyedLocks, Permits, Signal};

use self::log::Log;
use self::members::{Member, MemberState, Op, Ops, SegmentList};
use self::stripe::{Area, Runs};
use self::table::Table;
use super::geometry::{CHUNK_BLOCKS, Geometry, MEMBERS_MAX};
use super::{GroupError, GroupState};
use crate::device::{Device, DeviceError, DeviceId, SubmitError};
use crate::format::guard::Guard;
use crate::format::{GroupId, Layout};

pub use self::open::{CreateError, OpenError, create};

/// Stripes that are written or repaired at one time.
const AREAS: usize = 8;

/// Blocks behind the work areas: a record, and as many copies of a guard table block as there may be.
const TAIL_BLOCKS: u64 = 4;

/// How long a write waits for a failure to be put on record.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(5);

/// Most blocks that one read or write of the group may name: 1 MiB.
const TRANSFER_BLOCKS_MAX: u64 = 256;

/// What happened so far.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct GroupCounters {
    /// Blocks that a device could not read.
    pub media_errors: u64,
    /// Blocks that a device returned and that were not what had been written: corrupt, misdirected, lost.
    pub mismatches: u64,
    /// Blocks that were made again from other members and written back.
    pub repaired: u64,
    /// Members that failed.
    pub members_failed: u64,
    /// Records of the intent log that were replayed when the group was opened.
    pub replayed: u64,
    /// Commands that read data or parity.
    pub reads: u64,
    /// Commands that wrote data or parity.
    pub writes: u64,
    /// Commands that wrote the intent log.
    pub log_writes: u64,
    /// Commands that wrote the guard table.
    pub guard_writes: u64,
}

struct Inner<D> {
    handle: Handle,
    id: GroupId,
    epoch: u64,
    geometry: Geometry,
    layout: Layout,
    members: Vec<Member<D>>,
    table: RefCell<Table>,
    log: RefCell<Log>,
    log_changed: Signal,
    locks: KeyedLocks<u64>,
    /// Work areas, then a block for records of the log and some for copies of a guard table block.
    work: Memory,
    areas: Permits,
    free_areas: RefCell<Vec<usize>>,
    /// What the writes in the areas intend.
    runs: Vec<RefCell<Runs>>,
    /// Callers' memories.
    memories: RefCell<Vec<Memory>>,
    lost: Cell<bool>,
    turn: Cell<usize>,
    aborted: Cell<u64>,
    counters: Cell<GroupCounters>,
    changes: Signal,
}

/// A group that was opened. Clones are the same group.
pub struct Group<D>(Rc<Inner<D>>);

impl<D> Clone for Group<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D> std::fmt::Debug for Group<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("geometry", &self.0.geometry).finish_non_exhaustive()
    }
}

impl<D: Device> Group<D> {
    /// Its size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.0.geometry.blocks(self.0.layout.chunks())
    }

    /// Most blocks that one read or write may name.
    #[must_use]
    pub fn transfer_blocks_max(&self) -> BlockCount {
        BlockCount(TRANSFER_BLOCKS_MAX)
    }

    /// Lets commands name `memory`. Done at start.
    ///
    /// # Errors
    /// [`GroupError::Invalid`] if a device cannot reach it, [`GroupError::Lost`] if no device is there. A device that is gone fails out when it is used.
    pub fn map(&self, memory: &Memory) -> Result<(), GroupError> {
        let mut mapped = false;
        for device in self.live().filter_map(|m| self.0.members[m].device.as_ref()) {
            match device.map(memory) {
                Ok(()) => mapped = true,
                Err(SubmitError::Gone) => {}
                Err(SubmitError::Invalid | SubmitError::Full) => return Err(GroupError::Invalid),
            }
        }
        self.0.memories.borrow_mut().push(memory.clone());
        if mapped { Ok(()) } else { Err(GroupError::Lost) }
    }

    /// Reads blocks. Segments as in [`crate::device::Io::Read`].
    ///
    /// # Errors
    /// [`GroupError`], but not `Unrecorded`; `Media` if blocks can be had from no member. The memory may have been written to.
    pub async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        let blocks = self.check(lba, segments)?;
        let stripe_blocks = self.stripe_blocks();
        let mut at = 0;
        while at < blocks {
            let from = lba.0 + at;
            let (stripe, first) = (from / stripe_blocks, from % stripe_blocks);
            let count = (stripe_blocks - first).min(blocks - at);
            self.read_stripe(stripe, first, count, segments, at).await?;
            at += count;
        }
        Ok(())
    }

    /// Writes blocks, through to media. Segments as in [`crate::device::Io::Write`].
    ///
    /// # Errors
    /// [`GroupError`]. Each block is as it was or as it should be.
    pub async fn write(&self, lba: Lba, segments: &[Segment], _fua: bool) -> Result<(), GroupError> {
        let blocks = self.check(lba, segments)?;
        let stripe_blocks = self.stripe_blocks();
        let mut at = 0;
        while at < blocks {
            let from = lba.0 + at;
            let (stripe, first) = (from / stripe_blocks, from % stripe_blocks);
            let count = (stripe_blocks - first).min(blocks - at);
            self.write_stripe(stripe, first, count, segments, at).await?;
            at += count;
        }
        Ok(())
    }

    /// What was written before is on media when this is done: it already is.
    ///
    /// # Errors
    /// [`GroupError::Lost`], [`GroupError::Unrecorded`].
    pub async fn flush(&self) -> Result<(), GroupError> {
        if self.0.lost.get() { Err(GroupError::Lost) } else { self.on_record().await }
    }

    /// What it can do now.
    #[must_use]
    pub fn state(&self) -> GroupState {
        if self.0.lost.get() {
            GroupState::Lost
        } else if self.live().count() < self.0.members.len() {
            GroupState::Degraded
        } else {
            GroupState::Optimal
        }
    }

    /// Fires when a member changes its state, or the group.
    #[must_use]
    pub fn changes(&self) -> &Signal {
        &self.0.changes
    }

    /// The members whose failure has to be put on record, durably and where the partner will see it; then tell [`Group::recorded`]. Writes wait for it.
    /// Nobody, once the group is lost.
    pub fn failing(&self) -> impl Iterator<Item = DeviceId> + '_ {
        let lost = self.0.lost.get();
        let failing = |m: &&Member<D>| m.state.get() == MemberState::Failing;
        self.0.members.iter().filter(failing).filter(move |_| !lost).map(|m| m.id)
    }

    /// The failure of this device is on record: it is not used any more, whether or not this group has noticed.
    pub fn recorded(&self, failed: DeviceId) {
        for member in self.0.members.iter().filter(|m| m.id == failed) {
            member.state.set(MemberState::Out);
        }
        if !self.0.geometry.survives(|m| !self.is_live(m)) {
            self.0.lost.set(true);
        }
        self.0.changes.notify_all();
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> GroupCounters {
        self.0.counters.get()
    }

    fn check(&self, lba: Lba, segments: &[Segment]) -> Result<u64, GroupError> {
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let blocks = bytes / BLOCK_BYTES as u64;
        let inside = lba.0.checked_add(blocks).is_some_and(|end| end <= self.blocks().0);
        let memories = self.0.memories.borrow();
        let reached = |s: &Segment| {
            let aligned =
                s.offset.is_multiple_of(BLOCK_BYTES as u64) && u64::from(s.len).is_multiple_of(BLOCK_BYTES as u64);
            let memory = memories.iter().find(|m| m.id() == s.memory);
            aligned && memory.is_some_and(|m| m.segment(s.offset, s.len).is_ok())
        };
        let fits = inside && (1..=TRANSFER_BLOCKS_MAX).contains(&blocks) && segments.iter().all(reached);
        if self.0.lost.get() {
            Err(GroupError::Lost)
        } else if fits {
            Ok(blocks)
        } else {
            Err(GroupError::Invalid)
        }
    }

    fn stripe_blocks(&self) -> u64 {
        self.0.geometry.data() as u64 * CHUNK_BLOCKS
    }

    fn is_live(&self, member: usize) -> bool {
        self.0.members[member].state.get() == MemberState::Live
    }

    fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.members.len()).filter(|m| self.is_live(*m))
    }

    /// Where a block of a chunk is on its device.
    fn lba(&self, stripe: u64, row: u64) -> Lba {
        Lba(self.0.layout.data.start.0 + stripe * CHUNK_BLOCKS + row)
    }

    async fn run(&self, ops: &[Op], segments: impl Fn(&Op) -> SegmentList) -> members::Outcomes {
        let layout = &self.0.layout;
        self.count(|c| {
            for op in ops {
                let data = op.lba >= layout.data.start;
                match (op.write, data) {
                    (true, true) => c.writes += 1,
                    (true, false) if op.lba < layout.guards.start => c.log_writes += 1,
                    (true, false) => c.guard_writes += 1,
                    (false, _) => c.reads += u64::from(data),
                }
            }
        });
        members::run(&self.0.handle, &self.0.members, ops, segments, &self.0.aborted).await
    }

    /// A member cannot do its part any more. Those that the data needs stay.
    fn fail(&self, member: usize, why: DeviceError) {
        if !self.is_live(member) {
            return;
        }
        if self.0.geometry.survives(|m| m == member || !self.is_live(m)) {
            self.0.members[member].state.set(MemberState::Failing);
            self.count(|c| c.members_failed += 1);
        } else if why != DeviceError::Media {
            self.0.lost.set(true);
        }
        self.0.changes.notify_all();
    }

    /// What the outcomes of writes mean. Members that failed, fail out.
    fn judge_writes(&self, ops: &[Op], outcomes: &members::Outcomes) -> Result<(), GroupError> {
        if outcomes.contains(&Err(DeviceError::ReservationConflict)) {
            return Err(GroupError::Fenced);
        }
        let mut result = Ok(());
        for (op, outcome) in ops.iter().zip(outcomes) {
            match outcome {
                Ok(()) | Err(DeviceError::ReservationConflict) => {}
                Err(DeviceError::Rejected) => result = Err(GroupError::Invalid),
                Err(error @ (DeviceError::Media | DeviceError::Aborted | DeviceError::Gone)) => {
                    self.fail(op.member, *error);
                    if self.is_live(op.member) {
                        let lost = self.0.lost.get();
                        result = Err(if lost { GroupError::Lost } else { GroupError::Media });
                    }
                }
            }
        }
        result
    }

    /// Waits until no failure is missing in the record.
    async fn on_record(&self) -> Result<(), GroupError> {
        let deadline = self.0.handle.now() + RECORD_WAIT_MAX;
        loop {
            let seen = self.0.changes.generation();
            if self.0.lost.get() {
                return Err(GroupError::Lost);
            }
            if self.0.members.iter().all(|m| m.state.get() != MemberState::Failing) {
                return Ok(());
            }
            if self.0.handle.timeout_at(deadline, self.0.changes.changed_since(seen)).await.is_err() {
                return Err(GroupError::Unrecorded);
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut GroupCounters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }

    /// Where block `at` of the caller's memory is.
    fn payload(&self, segments: &[Segment], at: u64) -> Segment {
        let mut offset = at * BLOCK_BYTES as u64;
        for segment in segments {
            if offset < u64::from(segment.len) {
                return Segment { offset: segment.offset + offset, len: BLOCK_LEN, ..*segment };
            }
            offset -= u64::from(segment.len);
        }
        unreachable!("the segments were checked to be as long as the command")
    }

    /// The memory of a segment that [`Self::check`] found, or that is ours.
    fn memory_of(&self, segment: Segment) -> Memory {
        if segment.memory == self.0.work.id() {
            return self.0.work.clone();
        }
        let memories = self.0.memories.borrow();
        memories.iter().find(|m| m.id() == segment.memory).expect("a checked segment").clone()
    }

    fn guard_of(&self, segment: Segment) -> Guard {
        let crc = self.memory_of(segment).crc32c(segment.offset, u64::from(segment.len));
        Guard(crc.expect("a checked segment"))
    }

    async fn area(&self) -> Area<'_, D> {
        let permit = self.0.areas.acquire(1).await;
        let index = self.0.free_areas.borrow_mut().pop().expect("as many as permits");
        Area::new(self, index, permit)
    }
}

const BLOCK_LEN: u32 = 4096;
const _: () = assert!(BLOCK_LEN as usize == BLOCK_BYTES && MEMBERS_MAX <= members::BATCH_MAX);

/// Adjacent blocks of one memory as one segment.
fn joined(blocks: impl Iterator<Item = Segment>) -> SegmentList {
    let mut list = SegmentList::new();
    for block in blocks {
        match list.last_mut() {
            Some(last) if last.memory == block.memory && last.offset + u64::from(last.len) == block.offset => {
                last.len += block.len;
            }
            _ => assert!(list.push(block).is_ok(), "a chunk has 16 blocks"),
        }
    }
    list
}

fn push(ops: &mut Ops, op: Op) {
    assert!(ops.push(op).is_ok(), "one command for each member");
}
