//! A RAID group of any level on its devices: no write hole, no silent lie (PROTOCOLS 7).
//!
//! **A write** to a stripe, under the stripe's lock: read what parity needs (nothing, if the stripe is written whole), compute parity and guards, make
//! the intent durable, write all members at once, note the new guards. All of it goes through to media: a write that has ended needs no flush.
//! **A read** goes straight into the caller's memory and is checked against the guards; what does not match is made again from the other members,
//! written back, and counted.
//! **After a crash** [`Group::open`] replays the intents before anything else is done.
//! **A member that fails** ([`members`]: gone, a write failed for good, or as [`health`] says) is left out as soon as
//! that is on record: in the superblocks of the
//! others ([`Group::put_on_record`]) and wherever else the caller keeps it ([`Group::recorded`]). Writes that it missed wait for that.
//! **In the background** ([`Group::run_background`]) spares take the place of members that are out, are rebuilt, and everything is read now and then.
//!
//! What it promises to the cache above is what the parent module says of every level; but for a write that a crash cut short nobody needs to read the whole
//! group: every block is old or new, and every block that the write did not name is as it was.

mod background;
mod health;
mod log;
mod members;
mod open;
mod pool;
mod record;
mod repair;
mod replay;
mod sections;
mod stripe;
mod system;
mod table;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{KeyedLocks, Permits, Signal};

use self::health::Watch;
use self::log::Log;
use self::members::{Member, MemberEvent, Op, Ops, SegmentList};
use self::pool::Pool;
use self::sections::Sections;
use self::stripe::{Area, Runs};
use self::table::Table;
use super::geometry::{CHUNK_BLOCKS, Geometry, MEMBERS_MAX};
use super::{GroupError, GroupState};
use crate::device::{Device, DeviceError, DeviceId, SubmitError};
use crate::format::guard::Guard;
use crate::format::{Excluded, GroupId, Layout, Superblock};

pub use self::background::{Background, SpareError};
pub use self::health::Complaint;
pub use self::members::MemberState;
pub use self::open::{CreateError, OpenError, create, create_in};
pub use self::record::GroupRecord;

/// Stripes that are written or repaired at one time.
const AREAS: usize = 8;

/// Blocks behind the work areas: a record of the log, as many copies of a guard table block as there may be, a superblock.
const TAIL_BLOCKS: u64 = 5;

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
    /// Blocks that should have been made again, and could not be: reading them is a media error.
    pub beyond_repair: u64,
    /// Commands that a device aborted and that were tried again.
    pub aborted: u64,
    /// Members that failed.
    pub members_failed: u64,
    /// Of these, because they were slow.
    pub members_slow: u64,
    /// Of these, because they erred too often.
    pub members_erring: u64,
    /// Records of the intent log that were replayed when the group was opened.
    pub replayed: u64,
    /// Stripes that were made again on a spare.
    pub rebuilt: u64,
    /// Stripes that were read by the patrol.
    pub patrolled: u64,
    /// Blocks whose guards were right and that were not the parity, or the mirror, of the data. They were made so.
    pub inconsistent: u64,
    /// Commands that read data or parity.
    pub reads: u64,
    /// Commands that wrote data or parity.
    pub writes: u64,
    /// Commands that wrote the intent log.
    pub log_writes: u64,
    /// Commands that wrote the guard table.
    pub guard_writes: u64,
}

struct Inner<D: Device> {
    handle: Handle,
    id: GroupId,
    epoch: u64,
    geometry: Geometry,
    layout: Layout,
    members: Vec<Member<D>>,
    batches: Pool<Op, { members::BATCH_MAX }>,
    slots: members::Slots<D>,
    excluded: Vec<(DeviceId, Excluded)>,
    watch: RefCell<Watch>,
    /// As it is on all members.
    superblock: RefCell<Superblock>,
    /// One change of the superblock at a time.
    recorder: Permits,
    table: RefCell<Table>,
    log: RefCell<Log>,
    log_changed: Signal,
    locks: KeyedLocks<u64>,
    sections: Sections,
    /// Work areas, then a block for records of the log and some for copies of a guard table block.
    work: Memory,
    areas: Permits,
    free_areas: RefCell<Vec<usize>>,
    /// What the writes in the areas intend.
    runs: Vec<RefCell<Runs>>,
    source: MemorySource,
    /// Callers' memories.
    memories: RefCell<Vec<Memory>>,
    spares: RefCell<Vec<D>>,
    /// Why nothing is done any more.
    ended: Cell<Option<GroupError>>,
    turn: Cell<usize>,
    /// Commands of hosts so far.
    commands: Cell<u64>,
    counters: Cell<GroupCounters>,
    changes: Signal,
}

/// Where memory comes from that devices must reach: so many bytes of it.
pub type MemorySource = Rc<dyn Fn(usize) -> Memory>;

/// A group that was opened. Clones are the same group.
pub struct Group<D: Device>(Rc<Inner<D>>);

impl<D: Device> Clone for Group<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: Device> std::fmt::Debug for Group<D> {
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

    /// Level and number of members.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Where everything is on its members.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.0.layout
    }

    /// Lets commands name `memory`. Done at start.
    ///
    /// # Errors
    /// [`GroupError::Invalid`] if a device cannot reach it, [`GroupError::Lost`] if no device is there. A device that is gone fails out when it is used.
    pub fn map(&self, memory: &Memory) -> Result<(), GroupError> {
        let mut mapped = false;
        for device in self.0.members.iter().filter(|m| m.state.get() != MemberState::Out).filter_map(Member::device) {
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
        let _section = self.0.sections.enter();
        for (stripe, first, count, at) in self.by_stripe(lba, blocks) {
            self.read_stripe(stripe, first, count, segments, at).await?;
        }
        Ok(())
    }

    /// Writes blocks, through to media. Segments as in [`crate::device::Io::Write`].
    ///
    /// # Errors
    /// [`GroupError`]. Each block is as it was or as it should be.
    pub async fn write(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        let blocks = self.check(lba, segments)?;
        let _section = self.0.sections.enter();
        for (stripe, first, count, at) in self.by_stripe(lba, blocks) {
            self.write_stripe(stripe, first, count, segments, at).await?;
        }
        Ok(())
    }

    /// What was written before is on media when this is done: it already is.
    ///
    /// # Errors
    /// [`GroupError::Lost`], [`GroupError::Fenced`], [`GroupError::Unrecorded`].
    pub async fn flush(&self) -> Result<(), GroupError> {
        self.on_record().await
    }

    /// What it can do now.
    #[must_use]
    pub fn state(&self) -> GroupState {
        if self.0.ended.get().is_some() {
            GroupState::Lost
        } else if self.live().count() < self.0.members.len() {
            GroupState::Degraded
        } else {
            GroupState::Optimal
        }
    }

    /// Its members as they are now.
    pub fn members(&self) -> impl Iterator<Item = (DeviceId, MemberState)> + '_ {
        self.0.members.iter().map(|m| (m.id.get(), m.state.get()))
    }

    /// Devices that were there when it was opened and are not used, and why.
    #[must_use]
    pub fn excluded(&self) -> &[(DeviceId, Excluded)] {
        &self.0.excluded
    }

    /// Fires when a member changes its state, or the group.
    #[must_use]
    pub fn changes(&self) -> &Signal {
        &self.0.changes
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> GroupCounters {
        self.0.counters.get()
    }

    /// The parts of a command that lie in one stripe each: stripe, first block in it, blocks, and the place of the first in the command.
    fn by_stripe(&self, lba: Lba, blocks: u64) -> impl Iterator<Item = (u64, u64, u64, u64)> {
        let (of_stripe, end) = (self.stripe_blocks(), lba.0 + blocks);
        (lba.0 / of_stripe..=(end - 1) / of_stripe).map(move |stripe| {
            let (from, to) = (lba.0.max(stripe * of_stripe), end.min((stripe + 1) * of_stripe));
            (stripe, from - stripe * of_stripe, to - from, from - lba.0)
        })
    }

    fn check(&self, lba: Lba, segments: &[Segment]) -> Result<u64, GroupError> {
        self.going_on()?;
        self.0.commands.set(self.0.commands.get() + 1);
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
        if fits { Ok(blocks) } else { Err(GroupError::Invalid) }
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

    /// The member has this stripe: it is read, and written with it.
    fn holds(&self, member: usize, stripe: u64) -> bool {
        let member = &self.0.members[member];
        match member.state.get() {
            MemberState::Live => true,
            MemberState::Rebuilding => stripe < member.rebuilt.get(),
            MemberState::Failing | MemberState::Out | MemberState::Preparing => false,
        }
    }

    /// The member gets guards.
    fn keeps_guards(&self, member: usize) -> bool {
        match self.0.members[member].state.get() {
            MemberState::Live | MemberState::Rebuilding | MemberState::Preparing => true,
            MemberState::Failing | MemberState::Out => false,
        }
    }

    /// Where a block of a chunk is on its device.
    fn lba(&self, stripe: u64, row: u64) -> Lba {
        Lba(self.0.layout.data.start.0 + stripe * CHUNK_BLOCKS + row)
    }

    /// Commands in the making.
    fn batch(&self) -> Ops {
        self.0.batches.take()
    }

    async fn run(&self, ops: &[Op], segments: impl Fn(&Op) -> SegmentList) -> members::Outcomes {
        let layout = &self.0.layout;
        self.count(|c| {
            for op in ops {
                let data = op.lba >= layout.data.start;
                match (op.writes(), data) {
                    (true, true) => c.writes += 1,
                    (true, false) if op.lba < layout.guards.start => c.log_writes += 1,
                    (true, false) => c.guard_writes += 1,
                    (false, _) => c.reads += u64::from(data),
                }
            }
        });
        let ended = |op: &Op, outcome, took| self.observe(op.member(), outcome, took);
        members::run(&self.0.handle, &self.0.members, &self.0.slots, ops, segments, ended).await
    }

    fn observe(&self, member: usize, outcome: Result<(), DeviceError>, took: Duration) {
        self.count(|c| c.aborted += u64::from(outcome == Err(DeviceError::Aborted)));
        let complaint = self.0.watch.borrow_mut().observe(self.0.handle.now(), member, outcome, took);
        if let Some((member, complaint)) = complaint
            && self.fail(member)
        {
            self.count(|c| match complaint {
                Complaint::Slow => c.members_slow += 1,
                Complaint::Errs => c.members_erring += 1,
            });
        }
    }

    /// A member cannot do its part any more, or should not. False if the data needs it: then it stays.
    fn fail(&self, member: usize) -> bool {
        let spared = self.0.geometry.survives(|m| m == member || !self.is_live(m));
        let gone = spared && self.0.members[member].event(MemberEvent::Failed);
        if gone {
            self.count(|c| c.members_failed += 1);
            self.0.changes.notify_all();
        }
        gone
    }

    /// A member that is gone: if the data needs it, the group is lost.
    fn gone(&self, member: usize) {
        if !self.fail(member) && self.is_live(member) {
            self.end(GroupError::Lost);
        }
    }

    /// Nothing is done any more: `Lost` or `Fenced`. What is on the devices only a replay can tell.
    fn end(&self, why: GroupError) {
        self.0.ended.set(Some(self.0.ended.get().unwrap_or(why)));
        self.0.changes.notify_all();
        self.0.log_changed.notify_all();
    }

    fn going_on(&self) -> Result<(), GroupError> {
        self.0.ended.get().map_or(Ok(()), Err)
    }

    /// What the outcome of a read means: true if the blocks are there.
    fn judge_read(&self, member: usize, outcome: Result<(), DeviceError>) -> Result<bool, GroupError> {
        match outcome {
            Ok(()) => return Ok(true),
            Err(DeviceError::Media | DeviceError::Aborted) => {}
            Err(DeviceError::ReservationConflict) => self.end(GroupError::Fenced),
            Err(DeviceError::Rejected) => return Err(GroupError::Invalid),
            Err(DeviceError::Gone) => self.gone(member),
        }
        self.going_on().map(|()| false)
    }

    /// What the outcomes of writes mean. Members that failed, fail out.
    fn judge_writes(&self, ops: &[Op], outcomes: &members::Outcomes) -> Result<(), GroupError> {
        if outcomes.contains(&Err(DeviceError::ReservationConflict)) {
            self.end(GroupError::Fenced);
        }
        let mut result = Ok(());
        for (op, outcome) in ops.iter().zip(outcomes) {
            match outcome {
                Ok(()) | Err(DeviceError::ReservationConflict) => {}
                Err(DeviceError::Rejected) => result = Err(GroupError::Invalid),
                Err(DeviceError::Gone) => self.gone(op.member()),
                Err(DeviceError::Media | DeviceError::Aborted) => {
                    if !self.fail(op.member()) && self.is_live(op.member()) {
                        result = Err(GroupError::Media);
                    }
                }
            }
        }
        self.going_on().and(result)
    }

    /// Waits until no failure is missing in the record.
    async fn on_record(&self) -> Result<(), GroupError> {
        let deadline = self.0.handle.now() + RECORD_WAIT_MAX;
        loop {
            let seen = self.0.changes.generation();
            self.going_on()?;
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

    /// A block that was read is what was written there last, as far as anybody knows.
    fn is_as_written(&self, member: usize, stripe: u64, row: u64, block: Segment) -> bool {
        let guard = self.0.table.borrow().get(member, stripe, row);
        guard.is_none_or(|guard| guard == self.guard_of(block) || is_active(Mutation::GuardsUnchecked))
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
