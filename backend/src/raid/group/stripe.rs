//! One stripe: reading it and writing parts of it.
//!
//! A **row** is the blocks at the same place of all chunks of a stripe: parity is a matter of rows. A write touches a run of rows in each data chunk. For
//! parity it reads either what it overwrites and the old parity (read-modify-write), or what it leaves (reconstruct-write), whichever are fewer
//! commands; nothing when it leaves nothing. When something of that cannot be had, it reads all rows that it touches from all members, makes what
//! is missing, and goes on from there.

use std::cell::RefCell;
use std::ops::Range;

use dyad_matrix::Segment;
use dyad_nvme::types::BlockCount;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::Permit;

use super::members::{BATCH_MAX, Op, Ops};
use super::{BLOCK_LEN, Group, GroupError, joined, push};
use crate::device::Device;
use crate::format::guard::Guard;
use crate::format::intent::{Run, RunKind};
use crate::parity::{Gf, Member as Part, SOURCES_MAX};
use crate::raid::geometry::{CHUNK_BLOCKS, MEMBERS_MAX};

/// Runs of one write: every member's, partial parity, and those of two members that are not there.
pub(super) type Runs = heapless::Vec<Run, { MEMBERS_MAX + 4 }>;

/// For each member a bit per row.
pub(super) type Rows = [u16; MEMBERS_MAX];

/// Memory for one stripe: every member's chunk, new parity, partial parity.
pub(super) struct Area<'a, D: Device> {
    group: &'a Group<D>,
    index: usize,
    _permit: Permit,
}

impl<D: Device> Drop for Area<'_, D> {
    fn drop(&mut self) {
        self.group.0.free_areas.borrow_mut().push(self.index);
    }
}

/// Chunks of an area.
pub(super) const fn area_chunks(members: usize) -> u64 {
    members as u64 + 4
}

impl<'a, D: Device> Area<'a, D> {
    pub(super) fn new(group: &'a Group<D>, index: usize, permit: Permit) -> Self {
        Self { group, index, _permit: permit }
    }

    /// Which of the areas.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    fn block(&self, chunk: usize, row: u64) -> Segment {
        let n = self.group.0.geometry.members();
        let block = (self.index as u64 * area_chunks(n) + chunk as u64) * CHUNK_BLOCKS + row;
        Segment { memory: self.group.0.work.id(), offset: BlockCount(block).bytes(), len: BLOCK_LEN }
    }

    /// What a member holds.
    pub(super) fn held(&self, member: usize, row: u64) -> Segment {
        self.block(member, row)
    }

    /// What a parity will be.
    pub(super) fn parity(&self, k: usize, row: u64) -> Segment {
        self.block(self.group.0.geometry.members() + k, row)
    }

    /// The parity of what is not written.
    pub(super) fn partial(&self, k: usize, row: u64) -> Segment {
        self.block(self.group.0.geometry.members() + 2 + k, row)
    }
}

/// Which rows of which data chunks a write touches.
#[derive(Debug, Copy, Clone)]
pub(super) struct Touch {
    first: u64,
    count: u64,
}

impl Touch {
    /// The rows of a data chunk, and the place of the first of them in the command.
    pub(super) fn of(self, data: usize) -> (Range<u64>, u64) {
        let chunk = data as u64 * CHUNK_BLOCKS;
        let start = self.first.clamp(chunk, chunk + CHUNK_BLOCKS);
        let end = (self.first + self.count).clamp(chunk, chunk + CHUNK_BLOCKS);
        (start - chunk..end - chunk, start.saturating_sub(self.first))
    }

    /// The place in the command of a row that it touches.
    fn place(self, data: usize, row: u64) -> u64 {
        let (rows, from) = self.of(data);
        from + row - rows.start
    }

    /// The rows that parity is made for.
    pub(super) fn window(self) -> Range<u64> {
        let (from, to) = (self.first / CHUNK_BLOCKS, (self.first + self.count - 1) / CHUNK_BLOCKS);
        if from != to {
            return 0..CHUNK_BLOCKS;
        }
        let row = self.first % CHUNK_BLOCKS;
        row..row + self.count
    }
}

pub(super) const fn bit(row: u64) -> u16 {
    1 << row
}

fn parity_number(part: Part) -> Option<usize> {
    match part {
        Part::Data(_) => None,
        Part::P => Some(0),
        Part::Q => Some(1),
    }
}

/// The factor of a data chunk in parity `k`.
pub(super) fn factor(k: usize, data: usize) -> Gf {
    if k == 0 { Gf::ONE } else { Gf::power_of_g(data) }
}

/// Blocks to be summed: where, and with which factor for each parity.
pub(super) type Terms = heapless::Vec<(Segment, [Gf; 2]), SOURCES_MAX>;

impl<D: Device> Group<D> {
    pub(super) async fn read_stripe(
        &self,
        stripe: u64,
        first: u64,
        count: u64,
        segments: &[Segment],
        at: u64,
    ) -> Result<(), GroupError> {
        let touch = Touch { first, count };
        if self.read_straight(stripe, touch, segments, at).await? {
            return Ok(());
        }
        self.read_carefully(stripe, touch, segments, at).await
    }

    /// From one holder of each chunk into the caller's memory; true if all of it is what it should be.
    async fn read_straight(
        &self,
        stripe: u64,
        touch: Touch,
        segments: &[Segment],
        at: u64,
    ) -> Result<bool, GroupError> {
        let mut ops = self.batch();
        let mut whole = true;
        for data in 0..self.0.geometry.data() {
            let (rows, from) = touch.of(data);
            if rows.is_empty() {
                continue;
            }
            match self.reader(stripe, data) {
                Some(member) => {
                    push(&mut ops, Op::read(member, self.lba(stripe, rows.start), rows.end - rows.start, at + from));
                }
                None => whole = false,
            }
        }
        ops.sort_unstable_by_key(Op::member);
        let outcomes = self.run(&ops, |op| joined(op.range().map(|at| self.payload(segments, at)))).await;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            let first = op.lba.0 - self.lba(stripe, 0).0;
            whole &= self.judge_read(op.member(), *outcome)?
                && (0..op.blocks())
                    .all(|i| self.is_as_written(op.member(), stripe, first + i, self.payload(segments, op.from() + i)));
        }
        Ok(whole)
    }

    /// A holder of a data chunk that is there; of a mirror the one that is least busy.
    fn reader(&self, stripe: u64, data: usize) -> Option<usize> {
        let turn = self.0.turn.get();
        self.0.turn.set(turn.wrapping_add(1));
        let there = self.0.geometry.holders(stripe, Part::Data(data)).filter(|m| self.holds(*m, stripe));
        there.min_by_key(|m| {
            let busy = usize::MAX - self.0.members[*m].room.borrow().available();
            (busy, (m + turn) % self.0.members.len())
        })
    }

    pub(super) async fn write_stripe(
        &self,
        stripe: u64,
        first: u64,
        count: u64,
        segments: &[Segment],
        at: u64,
    ) -> Result<(), GroupError> {
        let _lock = self.0.locks.lock(stripe).await;
        let area = self.area().await;
        let touch = Touch { first, count };
        if self.0.geometry.level().parities() > 0 {
            self.make_parity(&area, stripe, touch, segments, at).await?;
        }
        let runs = &self.0.runs[area.index()];
        self.describe(&mut runs.borrow_mut(), &area, stripe, touch, segments, at);
        if is_active(Mutation::WriteWithoutIntent) {
            self.write_members(&area, stripe, touch, segments, at).await?;
        }
        let place = |run: &Run, row| match self.0.geometry.role(stripe, run.member) {
            Part::Data(data) => self.payload(segments, at + touch.place(data, row)),
            Part::P => area.partial(0, row),
            Part::Q => area.partial(1, row),
        };
        let intent = self.intend(runs, place).await?;
        let judged = self.write_members(&area, stripe, touch, segments, at).await;
        if matches!(judged, Err(GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) {
            // What is on the devices only a replay can tell. The intent stays open.
            self.end(judged.expect_err("an error"));
            return judged;
        }
        self.note_guards(runs);
        self.retire_intent(intent);
        judged?;
        self.on_record().await
    }

    async fn write_members(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        touch: Touch,
        segments: &[Segment],
        at: u64,
    ) -> Result<(), GroupError> {
        let mut ops = self.batch();
        for member in (0..self.0.geometry.members()).filter(|m| self.holds(*m, stripe)) {
            let (rows, from) = match self.0.geometry.role(stripe, member) {
                Part::Data(data) => touch.of(data),
                Part::P | Part::Q => (touch.window(), 0),
            };
            if !rows.is_empty() {
                push(&mut ops, Op::write(member, self.lba(stripe, rows.start), rows.end - rows.start, at + from));
            }
        }
        let outcomes = self
            .run(&ops, |op| {
                let first = op.lba.0 - self.lba(stripe, 0).0;
                match parity_number(self.0.geometry.role(stripe, op.member())) {
                    Some(k) => joined((first..first + op.blocks()).map(|row| area.parity(k, row))),
                    None => joined(op.range().map(|at| self.payload(segments, at))),
                }
            })
            .await;
        self.judge_writes(&ops, &outcomes)
    }

    /// What was intended is on media.
    pub(super) fn note_guards(&self, runs: &RefCell<Runs>) {
        let mut table = self.0.table.borrow_mut();
        for run in runs.borrow().iter().filter(|run| run.kind == RunKind::Written) {
            for (row, guard) in (run.first as u64..).zip(&run.guards) {
                table.set(run.member, run.stripe, row, *guard);
            }
        }
    }

    pub(super) fn parities(&self) -> Range<usize> {
        0..self.0.geometry.level().parities()
    }

    /// The runs of a write's intent.
    fn describe(&self, runs: &mut Runs, area: &Area<'_, D>, stripe: u64, touch: Touch, segments: &[Segment], at: u64) {
        runs.clear();
        let mut add = |kind, member, rows: Range<u64>, block: &dyn Fn(u64) -> Segment| {
            let first = usize::try_from(rows.start).expect("below 16");
            let guards: heapless::Vec<Guard, 16> = rows.map(|row| self.guard_of(block(row))).collect();
            if !guards.is_empty() {
                assert!(runs.push(Run { kind, stripe, member, first, guards }).is_ok(), "a run for each member");
            }
        };
        let whole = touch.count == self.stripe_blocks();
        for member in 0..self.0.geometry.members() {
            match self.0.geometry.role(stripe, member) {
                Part::Data(data) => {
                    let place = |row| self.payload(segments, at + touch.place(data, row));
                    add(RunKind::Written, member, touch.of(data).0, &place);
                }
                part @ (Part::P | Part::Q) => {
                    let k = parity_number(part).expect("a parity");
                    add(RunKind::Written, member, touch.window(), &|row| area.parity(k, row));
                }
            }
        }
        let partial = !whole && !self.parities().is_empty();
        for k in self.parities().filter(|_| partial) {
            let part = if k == 0 { Part::P } else { Part::Q };
            let member = self.0.geometry.holders(stripe, part).next().expect("parity has a holder");
            add(RunKind::PartialParity, member, touch.window(), &|row| area.partial(k, row));
        }
        // Of mirrors another member gets what an absent one should.
        let absent = |member: &usize| !self.parities().is_empty() && !self.holds(*member, stripe);
        for member in (0..self.0.geometry.members()).filter(absent) {
            if let Part::Data(data) = self.0.geometry.role(stripe, member) {
                let place = |row| self.payload(segments, at + touch.place(data, row));
                add(RunKind::Absent, member, touch.of(data).0, &place);
            }
        }
    }

    /// Makes new and partial parity of the rows of a write.
    async fn make_parity(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        touch: Touch,
        segments: &[Segment],
        at: u64,
    ) -> Result<(), GroupError> {
        let mut modify = self.modifies(stripe, touch);
        let read = match self.reads(stripe, touch, modify) {
            Some(ops) => self.read_checked(area, stripe, &ops).await?,
            None => false,
        };
        if !read {
            modify = false;
            let missing = self.load(area, stripe, touch.window()).await?;
            for row in touch.window() {
                let left = (0..self.0.geometry.data()).filter(|data| !touch.of(*data).0.contains(&row));
                let holder =
                    |data| self.0.geometry.holders(stripe, Part::Data(data)).next().expect("data has a holder");
                if left.map(holder).any(|holder| missing[holder] & bit(row) != 0) {
                    self.give_up_row(area, stripe, row, &missing).await?;
                }
            }
        }
        let k = self.parities().end;
        for row in touch.window() {
            let mut terms = Terms::new();
            let mut term = |segment, factors| assert!(terms.push((segment, factors)).is_ok(), "at most all members");
            for member in 0..self.0.geometry.members() {
                match self.0.geometry.role(stripe, member) {
                    // What is overwritten is taken out of the old parity; what is left makes the partial parity.
                    Part::Data(data) if touch.of(data).0.contains(&row) == modify => {
                        term(area.held(member, row), [factor(0, data), factor(1, data)]);
                    }
                    Part::P if modify => term(area.held(member, row), [Gf::ONE, Gf::ZERO]),
                    Part::Q if modify => term(area.held(member, row), [Gf::ZERO, Gf::ONE]),
                    Part::Data(_) | Part::P | Part::Q => {}
                }
            }
            let targets = [area.partial(0, row), area.partial(1, row)];
            self.sum(&targets[..k], &terms);
            let mut terms = Terms::new();
            let mut term = |segment, factors| assert!(terms.push((segment, factors)).is_ok(), "at most all members");
            term(area.partial(0, row), [Gf::ONE, Gf::ZERO]);
            if k > 1 {
                term(area.partial(1, row), [Gf::ZERO, Gf::ONE]);
            }
            for data in 0..self.0.geometry.data() {
                let (rows, from) = touch.of(data);
                if rows.contains(&row) {
                    let new = self.payload(segments, at + from + row - rows.start);
                    term(new, [factor(0, data), factor(1, data)]);
                }
            }
            let targets = [area.parity(0, row), area.parity(1, row)];
            self.sum(&targets[..k], &terms);
        }
        Ok(())
    }

    /// Read-modify-write needs fewer commands than reconstruct-write, or is all that can be done.
    fn modifies(&self, stripe: u64, touch: Touch) -> bool {
        match (self.reads(stripe, touch, true), self.reads(stripe, touch, false)) {
            (Some(modify), Some(rest)) => modify.len() < rest.len(),
            (modify, _) => modify.is_some(),
        }
    }

    /// What must be read for a write: what it overwrites with the parity, or what it leaves. `None` if a member is not there.
    fn reads(&self, stripe: u64, touch: Touch, modify: bool) -> Option<Ops> {
        let window = touch.window();
        let mut ops = self.batch();
        for member in 0..self.0.geometry.members() {
            let rows = match self.0.geometry.role(stripe, member) {
                Part::Data(data) => {
                    let touched = touch.of(data).0;
                    if modify {
                        touched
                    } else if touched.is_empty() {
                        window.clone()
                    } else if touched.start > window.start {
                        window.start..touched.start
                    } else {
                        touched.end..window.end
                    }
                }
                Part::P | Part::Q if modify => window.clone(),
                Part::P | Part::Q => continue,
            };
            if rows.is_empty() {
                continue;
            }
            if !self.holds(member, stripe) {
                return None;
            }
            push(&mut ops, Op::read(member, self.lba(stripe, rows.start), rows.end - rows.start, rows.start));
        }
        Some(ops)
    }

    /// Reads into the area; true if everything was read and has its guard.
    async fn read_checked(&self, area: &Area<'_, D>, stripe: u64, ops: &Ops) -> Result<bool, GroupError> {
        let outcomes = self.run(ops, |op| joined(op.range().map(|row| area.held(op.member(), row)))).await;
        let mut good = true;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            good &= self.judge_read(op.member(), *outcome)?
                && op.range().all(|row| self.is_as_written(op.member(), stripe, row, area.held(op.member(), row)));
        }
        Ok(good)
    }
}

const _: () = assert!(BATCH_MAX >= MEMBERS_MAX);
