//! What a group does for itself: spares take the places of members that are out and get what they should have, and everything is read now and then.
//!
//! One stripe at a time, under its lock, in this order: guards that nobody could read are made anew; a spare is prepared; a member is rebuilt; the patrol
//! goes on. **It yields**: while hosts have commands it rests after each stripe, so that it works no more than its
//! share of the time ([`Background`]), and never
//! so long that it would not come to an end. A rebuild is put on record every now and then: a crash costs what was done since.

use std::time::Duration;

use dyad_nvme::types::{BlockCount, Lba};

use super::log::nowhere;
use super::members::{MemberEvent, MemberState, Op};
use super::open::ZEROES_BLOCKS;
use super::record::done;
use super::stripe::{Area, Rows, bit, factor};
use super::{Group, GroupError, joined};
use crate::device::{Device, DeviceError, Io};
use crate::format::guard::{self, GUARDED_CHUNKS};
use crate::format::intent::{Run, RunKind};
use crate::format::{GroupId, Region, Superblock};
use crate::parity::{Gf, Member as Part};
use crate::raid::geometry::CHUNK_BLOCKS;

/// How much a group does for itself.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Background {
    /// Percent of the time that a rebuild works while hosts have commands, 1 to 100.
    pub rebuild_share: u32,
    /// Percent of the time that the patrol works, 1 to 100; it never hurries.
    pub patrol_share: u32,
    /// The longest rest after a stripe: a rebuild comes to an end, whatever the hosts do.
    pub rest_max: Duration,
    /// Stripes between two entries of a rebuild in the record.
    pub checkpoint: u64,
}

impl Default for Background {
    fn default() -> Self {
        Self { rebuild_share: 25, patrol_share: 2, rest_max: Duration::from_millis(50), checkpoint: 1024 }
    }
}

impl Background {
    /// The rest that is due after work of this length.
    fn rest(&self, share: u32, worked: Duration) -> Duration {
        let share = share.clamp(1, 100);
        (worked * (100 - share) / share).min(self.rest_max)
    }
}

/// Why a device cannot be a spare. Nothing was written to it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpareError {
    /// It is a member, or a spare already.
    #[error("it is in the group already")]
    Known,
    /// It belongs to another group.
    #[error("it is a member of the group {0:?}")]
    Foreign(GroupId),
    /// It does not reach as far as the group's blocks.
    #[error("it has {0:?} blocks, fewer than the group uses")]
    TooSmall(BlockCount),
    /// A chunk must be one command.
    #[error("it takes less than a chunk at once")]
    ShortTransfers,
    /// It failed.
    #[error("it failed: {0}")]
    Device(DeviceError),
}

/// What was done in one step.
enum Step {
    Rebuilt(Duration),
    Patrolled(Duration),
    /// There is nothing to do.
    Idle,
}

impl<D: Device> Group<D> {
    /// Gives the group a device of which nobody needs the contents: it takes the place of the next member that is out. A former member of this group may come
    /// back so: it is rebuilt from nothing.
    ///
    /// # Errors
    /// [`SpareError`].
    pub async fn add_spare(&self, device: D) -> Result<(), SpareError> {
        let info = device.info();
        if info.blocks.0 <= self.0.layout.last.0 {
            return Err(SpareError::TooSmall(info.blocks));
        }
        if info.transfer_blocks_max.0 < CHUNK_BLOCKS {
            return Err(SpareError::ShortTransfers);
        }
        let memory = (self.0.source)(dyad_nvme::types::BLOCK_BYTES);
        device.map(&memory).map_err(|_| SpareError::Device(DeviceError::Gone))?;
        let segments = [memory.segment(0, super::BLOCK_LEN).expect("a block")];
        for (copy, lba) in [Lba(0), self.0.layout.last].into_iter().enumerate() {
            match done(&device, Io::Read { lba, segments: &segments }).await {
                Ok(()) => {}
                // What cannot be read is nobody's.
                Err(DeviceError::Media) => continue,
                Err(error) => return Err(SpareError::Device(error)),
            }
            let mut block = [0; dyad_nvme::types::BLOCK_BYTES];
            memory.read(0, &mut block).expect("a block");
            match Superblock::decode(&block, copy as u64) {
                Ok(found) if found.superblock.group != self.0.id => {
                    return Err(SpareError::Foreign(found.superblock.group));
                }
                Ok(_) | Err(_) => {}
            }
        }
        let out = |m: &super::Member<D>| matches!(m.state.get(), MemberState::Out);
        let member = self.0.members.iter().any(|m| {
            let in_place = m.device().is_some_and(|other| other.info().id == info.id);
            !out(m) && (m.id.get() == info.id || in_place)
        });
        let mut spares = self.0.spares.borrow_mut();
        if member || spares.iter().any(|spare| spare.info().id == info.id) {
            return Err(SpareError::Known);
        }
        spares.push(device);
        drop(spares);
        self.0.changes.notify_all();
        Ok(())
    }

    /// Spares that wait.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.0.spares.borrow().len()
    }

    /// A task that does what the group does for itself, until the group is lost.
    pub async fn run_background(self, policy: Background) {
        let mut patrol = 0;
        let mut commands = self.0.commands.get();
        while self.going_on().is_ok() {
            let seen = self.0.changes.generation();
            let step = self.step(&policy, &mut patrol).await;
            let busy = std::mem::replace(&mut commands, self.0.commands.get()) != self.0.commands.get();
            let rest = match step {
                Ok(Step::Rebuilt(worked)) if busy => policy.rest(policy.rebuild_share, worked),
                Ok(Step::Rebuilt(_)) => continue,
                Ok(Step::Patrolled(worked)) => policy.rest(policy.patrol_share, worked),
                Ok(Step::Idle) | Err(_) => policy.rest_max,
            };
            // Whatever changes ends the rest: a member that failed, a spare that came.
            let deadline = self.0.handle.now() + rest;
            let _ = self.0.handle.timeout_at(deadline, self.0.changes.changed_since(seen)).await;
        }
    }

    /// Reads everything once, and repairs what is wrong.
    ///
    /// # Errors
    /// `Lost`, `Fenced`.
    pub async fn patrol(&self) -> Result<(), GroupError> {
        for stripe in 0..self.0.layout.chunks() {
            self.patrol_stripe(stripe).await?;
        }
        Ok(())
    }

    async fn step(&self, policy: &Background, patrol: &mut u64) -> Result<Step, GroupError> {
        let start = self.0.handle.now();
        let worked = || self.0.handle.now().since(start);
        let in_state = |state| self.0.members.iter().position(|m| m.state.get() == state);
        if self.has_failing() {
            return Ok(Step::Idle);
        }
        let unknown = self.0.table.borrow().first_unknown();
        if let Some((member, table)) = unknown {
            self.learn(member, table).await?;
            return Ok(Step::Rebuilt(worked()));
        }
        if let Some(member) = in_state(MemberState::Rebuilding) {
            self.rebuild_some(member, policy.checkpoint).await?;
            return Ok(Step::Rebuilt(worked()));
        }
        if let Some(member) = in_state(MemberState::Out) {
            let spare = self.0.spares.borrow_mut().pop();
            if let Some(spare) = spare {
                // A spare that fails in this is not put back.
                self.replace(member, spare).await?;
                return Ok(Step::Rebuilt(worked()));
            }
        }
        if self.live().count() < self.0.members.len() {
            return Ok(Step::Idle);
        }
        self.patrol_stripe(*patrol).await?;
        *patrol = (*patrol + 1) % self.0.layout.chunks();
        Ok(Step::Patrolled(worked()))
    }

    /// Takes the blocks of a table that nobody could read for what they are, as far as parity or mirrors do not say otherwise.
    async fn learn(&self, member: usize, table: usize) -> Result<(), GroupError> {
        let _section = self.0.sections.enter();
        let first = table as u64 * GUARDED_CHUNKS;
        for stripe in first..(first + GUARDED_CHUNKS).min(self.0.layout.chunks()) {
            let _lock = self.0.locks.lock(stripe).await;
            let area = self.area().await;
            let missing = self.load(&area, stripe, 0..CHUNK_BLOCKS).await?;
            for row in (0..CHUNK_BLOCKS).filter(|row| missing[member] & bit(*row) == 0) {
                let guard = self.guard_of(area.held(member, row));
                self.0.table.borrow_mut().set(member, stripe, row, guard);
            }
        }
        self.0.table.borrow_mut().learned(member, table);
        Ok(())
    }

    /// Puts a spare in the place of a member that is out, with everything that is not data.
    async fn replace(&self, member: usize, spare: D) -> Result<(), GroupError> {
        // Nobody who saw the old device there is left, and nothing of it is outstanding.
        self.0.sections.grace().await;
        let layout = self.0.layout;
        let system = [layout.intent, layout.guards, layout.shares, layout.vault];
        let blank = async {
            let memories: Vec<_> = self.0.memories.borrow().iter().chain([&self.0.work]).cloned().collect();
            for memory in &memories {
                spare.map(memory).map_err(|_| DeviceError::Gone)?;
            }
            for Region { start, blocks } in system {
                for from in (0..blocks.0).step_by(1 << 11) {
                    let count = BlockCount((blocks.0 - from).min(ZEROES_BLOCKS));
                    done(&spare, Io::WriteZeroes { lba: Lba(start.0 + from), blocks: count }).await?;
                }
            }
            done(&spare, Io::Flush).await
        };
        match blank.await {
            Ok(()) => {}
            Err(DeviceError::ReservationConflict) => self.end(GroupError::Fenced),
            Err(_) => return self.going_on(),
        }
        self.going_on()?;
        let place = &self.0.members[member];
        let id = spare.info().id;
        place.replace(spare);
        place.rebuilt.set(0);
        self.0.watch.borrow_mut().forget(member, self.0.handle.now());
        self.0.changes.notify_all();
        {
            let (mut all, geometry) = (self.0.table.borrow_mut(), self.0.geometry);
            // Which members keep the guards of a member is the same for all its table blocks.
            let kept_here = |of: &usize| guard::copies(geometry, layout, *of, 0).any(|place| place.member == member);
            for of in (0..geometry.members()).filter(kept_here) {
                (0..all.tables()).for_each(|table| all.touch(of, table));
            }
        }
        self.settle_all().await?;
        if place.event(MemberEvent::Prepared) {
            place.id.set(id);
            self.0.changes.notify_all();
            self.put_on_record().await?;
        }
        Ok(())
    }

    /// The next stripe of a member that is being rebuilt; after the last one it is in sync.
    async fn rebuild_some(&self, member: usize, checkpoint: u64) -> Result<(), GroupError> {
        let place = &self.0.members[member];
        let stripe = place.rebuilt.get();
        if stripe < self.0.layout.chunks() {
            if self.rebuild_stripe(member, stripe).await? && (stripe + 1).is_multiple_of(checkpoint.max(1)) {
                self.put_on_record().await?;
            }
            return Ok(());
        }
        self.copy_shares(member).await?;
        if place.event(MemberEvent::Rebuilt) {
            self.0.changes.notify_all();
            self.put_on_record().await?;
            // From now on it keeps the log, and may be the only one that does: what the others' older records cover must not need them.
            self.0.sections.grace().await;
            self.settle_all().await?;
        }
        Ok(())
    }

    /// True if the member has the stripe now.
    async fn rebuild_stripe(&self, member: usize, stripe: u64) -> Result<bool, GroupError> {
        let _section = self.0.sections.enter();
        let _lock = self.0.locks.lock(stripe).await;
        let area = self.area().await;
        let missing = self.load(&area, stripe, 0..CHUNK_BLOCKS).await?[member];
        // What cannot be made becomes zeros, which do not have the guard that it should have: reading it is an error.
        for row in (0..CHUNK_BLOCKS).filter(|row| missing & bit(*row) != 0) {
            let place = area.held(member, row);
            self.0.work.fill_zero(place.offset, u64::from(place.len)).expect("our own memory");
        }
        self.count(|c| c.beyond_repair += u64::from(missing.count_ones()));
        if self.0.members[member].state.get() != MemberState::Rebuilding {
            return Ok(false);
        }
        let ops = [Op::write(member, self.lba(stripe, 0), CHUNK_BLOCKS, 0)];
        let outcomes = self.run(&ops, |op| joined(op.range().map(|row| area.held(member, row)))).await;
        self.judge_writes(&ops, &outcomes)?;
        let whole = outcomes[0].is_ok() && self.0.members[member].state.get() == MemberState::Rebuilding;
        if whole {
            self.0.members[member].rebuilt.set(stripe + 1);
            self.count(|c| c.rebuilt += 1);
        }
        Ok(whole)
    }

    async fn patrol_stripe(&self, stripe: u64) -> Result<(), GroupError> {
        let _section = self.0.sections.enter();
        let _lock = self.0.locks.lock(stripe).await;
        let area = self.area().await;
        let missing = self.load(&area, stripe, 0..CHUNK_BLOCKS).await?;
        self.count(|c| c.patrolled += 1);
        self.make_consistent(&area, stripe, &missing).await
    }

    /// Makes parity and mirrors what the data says. All blocks have their guards, so this never has anything to do; should a fault of ours, or guards that
    /// were lost, have let it come to that, the next failure would make wrong data of it.
    async fn make_consistent(&self, area: &Area<'_, D>, stripe: u64, missing: &Rows) -> Result<(), GroupError> {
        let geometry = self.0.geometry;
        if !self.parities().is_empty() && missing[..geometry.members()].iter().all(|rows| *rows == 0) {
            for row in 0..CHUNK_BLOCKS {
                self.parity_of_held(area, stripe, row);
            }
        }
        let runs = &self.0.runs[area.index()];
        runs.borrow_mut().clear();
        for member in (0..geometry.members()).filter(|m| self.holds(*m, stripe)) {
            for row in 0..CHUNK_BLOCKS {
                let Some(expected) = self.expected(area, stripe, member, row, missing) else { continue };
                let guard = self.guard_of(expected);
                if guard == self.guard_of(area.held(member, row)) {
                    continue;
                }
                self.copy(expected, area.held(member, row));
                self.count(|c| c.inconsistent += 1);
                let first = usize::try_from(row).expect("below 16");
                let guards = [guard].into_iter().collect();
                let run = Run { kind: RunKind::Written, stripe, member, first, guards };
                runs.borrow_mut().clear();
                assert!(runs.borrow_mut().push(run).is_ok(), "one run");
                let intent = self.intend(runs, nowhere).await?;
                let ops = [Op::write(member, self.lba(stripe, row), 1, row)];
                let outcomes = self.run(&ops, |op| joined([area.held(member, op.from())].into_iter())).await;
                let judged = self.judge_writes(&ops, &outcomes);
                self.note_guards(runs);
                self.retire_intent(intent);
                judged?;
            }
        }
        Ok(())
    }

    /// What a block should be by what the others hold, if they say.
    fn expected(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        member: usize,
        row: u64,
        missing: &Rows,
    ) -> Option<dyad_matrix::Segment> {
        let geometry = self.0.geometry;
        let there = |m: usize| missing[m] & bit(row) == 0;
        match (geometry.role(stripe, member), self.parities().is_empty()) {
            (part @ Part::Data(_), true) => {
                let source = geometry.holders(stripe, part).find(|m| self.holds(*m, stripe) && there(*m))?;
                (source != member && there(member)).then(|| area.held(source, row))
            }
            (Part::Data(_), false) => None,
            (part, _) => (0..geometry.members()).all(there).then(|| area.parity(usize::from(part == Part::Q), row)),
        }
    }

    fn parity_of_held(&self, area: &Area<'_, D>, stripe: u64, row: u64) {
        let mut terms = super::stripe::Terms::new();
        for member in 0..self.0.geometry.members() {
            if let Part::Data(data) = self.0.geometry.role(stripe, member) {
                let factors: [Gf; 2] = [factor(0, data), factor(1, data)];
                assert!(terms.push((area.held(member, row), factors)).is_ok(), "at most all members");
            }
        }
        let targets = [area.parity(0, row), area.parity(1, row)];
        self.sum(&targets[..self.parities().end], &terms);
    }
}
