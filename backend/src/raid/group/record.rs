//! The group's record: who its members are and what became of them, in the superblocks of all that are not out.
//!
//! A change is written to all of them, and only then the next one is made; a member that cannot take it fails, which is the next change. Writes that a
//! failing member missed are acknowledged when its failure is on record here **and** wherever the caller keeps it ([`Group::recorded`]).

use dyad_matrix::{Memory, Segment};

use super::members::{MemberEvent, Op};
use super::{BLOCK_LEN, Group, GroupError, MEMBERS_MAX, MemberState, joined};
use crate::device::{Device, DeviceError, DeviceId, Io, SubmitError};
use crate::format::{MemberState as Recorded, Superblock};

/// What a change of the superblocks says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Of the superblocks: whoever opens the group must know one that is not older.
    pub sequence: u64,
    /// Devices in places of members that are out.
    pub out: heapless::Vec<DeviceId, MEMBERS_MAX>,
}

impl<D: Device> Group<D> {
    /// A failure is not on record.
    #[must_use]
    pub fn has_failing(&self) -> bool {
        self.going_on().is_ok() && self.0.members.iter().any(|m| m.state.get() == MemberState::Failing)
    }

    /// Writes what the members are now into the superblocks of all of them. The caller puts the record wherever else it is kept, then tells [`Self::recorded`].
    ///
    /// # Errors
    /// `Fenced`, `Lost`, and `Media` if a member that the data needs cannot take it.
    pub async fn put_on_record(&self) -> Result<GroupRecord, GroupError> {
        let _one = self.0.recorder.acquire(1).await;
        loop {
            self.going_on()?;
            let (current, mut next) = (self.0.superblock.borrow().clone(), self.superblock_now());
            if next == current {
                let out = current.members.iter().filter(|m| m.state == Recorded::Out).map(|m| m.device).collect();
                return Ok(GroupRecord { sequence: current.sequence, out });
            }
            next.sequence += 1;
            self.write_superblocks(&next).await?;
            *self.0.superblock.borrow_mut() = next;
        }
    }

    /// Writes it to all members that have one.
    pub(super) async fn write_superblocks(&self, superblock: &Superblock) -> Result<(), GroupError> {
        for m in 0..self.0.members.len() {
            let has_one = match self.0.members[m].state.get() {
                MemberState::Live | MemberState::Rebuilding => true,
                MemberState::Failing | MemberState::Out | MemberState::Preparing => false,
            };
            for (copy, lba) in (0..).zip(superblock.places()).filter(|_| has_one) {
                self.0.work.write(self.superblock_place().offset, &superblock.encode(m, copy)).expect("our own memory");
                let ops = [Op::write(m, lba, 1, 0)];
                let outcomes = self.run(&ops, |_| joined([self.superblock_place()].into_iter())).await;
                self.judge_writes(&ops, &outcomes)?;
            }
        }
        Ok(())
    }

    /// This record is everywhere where it has to be: members that failed before it was written are not missed any more.
    pub fn recorded(&self, record: &GroupRecord) {
        for member in self.0.members.iter().filter(|m| record.out.contains(&m.id.get())) {
            member.event(MemberEvent::Recorded);
        }
        self.0.changes.notify_all();
    }

    /// Takes a member out of the group by command.
    ///
    /// # Errors
    /// `Invalid` if it is not a member that is in use, `Lost` if the data needs it; nothing was changed.
    pub fn retire(&self, device: DeviceId) -> Result<(), GroupError> {
        self.going_on()?;
        let used = |m: &usize| self.0.members[*m].id.get() == device && self.keeps_guards(*m);
        let member = (0..self.0.members.len()).find(used).ok_or(GroupError::Invalid)?;
        if self.fail(member) { Ok(()) } else { Err(GroupError::Lost) }
    }

    /// A task that puts failures on record as they come; `put` keeps the record elsewhere, and says whether it does now.
    pub async fn run_record(self, put: impl AsyncFn(&GroupRecord) -> bool) {
        loop {
            let seen = self.0.changes.generation();
            if !self.has_failing() {
                self.0.changes.changed_since(seen).await;
                continue;
            }
            match self.put_on_record().await {
                Ok(record) if put(&record).await => self.recorded(&record),
                Ok(_) | Err(_) => self.0.handle.sleep(super::RECORD_WAIT_MAX / 50).await,
            }
        }
    }

    fn superblock_place(&self) -> Segment {
        self.tail(4)
    }

    fn superblock_now(&self) -> Superblock {
        let mut now = self.0.superblock.borrow().clone();
        now.epoch = self.0.epoch;
        for (record, member) in now.members.iter_mut().zip(&self.0.members) {
            record.device = member.id.get();
            record.state = match member.state.get() {
                MemberState::Live => Recorded::InSync,
                MemberState::Rebuilding => Recorded::Rebuilding { done: member.rebuilt.get() },
                MemberState::Failing | MemberState::Out | MemberState::Preparing => Recorded::Out,
            };
        }
        now
    }
}

/// Writes both copies of a member's superblock.
pub(super) async fn write_superblock<D: Device>(
    device: &D,
    memory: &Memory,
    superblock: &Superblock,
    member: usize,
) -> Result<(), DeviceError> {
    device.map(memory).map_err(|_| DeviceError::Gone)?;
    let segments = [memory.segment(0, BLOCK_LEN).expect("a block")];
    for (copy, lba) in (0..).zip(superblock.places()) {
        memory.write(0, &superblock.encode(member, copy)).expect("a block");
        done(device, Io::Write { lba, segments: &segments, fua: true }).await?;
    }
    Ok(())
}

/// One command of a slow path.
pub(super) async fn done<D: Device>(device: &D, io: Io<'_>) -> Result<(), DeviceError> {
    let completion = device.submit(io).map_err(|error| match error {
        SubmitError::Gone => DeviceError::Gone,
        SubmitError::Full | SubmitError::Invalid => DeviceError::Rejected,
    })?;
    completion.await
}
