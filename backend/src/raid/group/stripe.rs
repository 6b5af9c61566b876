//! One stripe: reading it, making what is missing, and writing parts of it.
//!
//! A **row** is the blocks at the same place of all chunks of a stripe: parity is a matter of rows. A write touches a run of rows in each data chunk. For
//! parity it reads either what it overwrites and the old parity (read-modify-write), or what it leaves (reconstruct-write), whichever are fewer
//! commands; nothing when it leaves nothing. When something of that cannot be had, it reads all rows that it touches from all members, makes what
//! is missing, and goes on from there.

use std::ops::Range;

use dyad_matrix::{Segment, memory};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount};
use dyad_reactor::sync::Permit;

use super::members::{BATCH_MAX, Op, Ops};
use super::{BLOCK_LEN, Group, GroupError, joined, push};
use crate::device::{Device, DeviceError};
use crate::format::guard::Guard;
use crate::format::intent::{Run, RunKind};
use crate::parity::{Gf, Member as Part, Piece, Recipe, SOURCES_MAX, combine};
use crate::raid::geometry::{CHUNK_BLOCKS, MEMBERS_MAX};

/// Runs of one write: every member's, and partial parity.
pub(super) type Runs = heapless::Vec<Run, { MEMBERS_MAX + 2 }>;

const ONE: BlockCount = BlockCount(1);

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
struct Touch {
    first: u64,
    count: u64,
}

impl Touch {
    /// The rows of a data chunk, and the place of the first of them in the command.
    fn of(self, data: usize) -> (Range<u64>, u64) {
        let chunk = data as u64 * CHUNK_BLOCKS;
        let start = self.first.clamp(chunk, chunk + CHUNK_BLOCKS);
        let end = (self.first + self.count).clamp(chunk, chunk + CHUNK_BLOCKS);
        (start - chunk..end - chunk, start.saturating_sub(self.first))
    }

    /// The rows that parity is made for.
    fn window(self) -> Range<u64> {
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
        let mut ops = Ops::new();
        let mut whole = true;
        for data in 0..self.0.geometry.data() {
            let (rows, from) = touch.of(data);
            if rows.is_empty() {
                continue;
            }
            match self.reader(stripe, data) {
                Some(member) => {
                    let (lba, blocks) = (self.lba(stripe, rows.start), rows.end - rows.start);
                    push(&mut ops, Op { member, lba, write: false, blocks, from: at + from });
                }
                None => whole = false,
            }
        }
        ops.sort_unstable_by_key(|op| op.member);
        let place = |op: &Op| joined((op.from..op.from + op.blocks).map(|at| self.payload(segments, at)));
        let outcomes = self.run(&ops, place).await;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            match outcome {
                Ok(()) => {
                    let first = op.lba.0 - self.lba(stripe, 0).0;
                    let table = self.0.table.borrow();
                    whole &= (0..op.blocks).all(|i| {
                        let guard = table.get(op.member, stripe, first + i);
                        guard.is_none_or(|guard| guard == self.guard_of(self.payload(segments, op.from + i)))
                    });
                }
                Err(DeviceError::ReservationConflict) => return Err(GroupError::Fenced),
                Err(DeviceError::Rejected) => return Err(GroupError::Invalid),
                Err(DeviceError::Media | DeviceError::Aborted) => whole = false,
                Err(DeviceError::Gone) => {
                    self.fail(op.member, DeviceError::Gone);
                    whole = false;
                }
            }
        }
        if whole { Ok(()) } else { self.read_carefully(stripe, touch, segments, at).await }
    }

    /// A holder of a data chunk that is there; of a mirror the one that is least busy.
    fn reader(&self, stripe: u64, data: usize) -> Option<usize> {
        let turn = self.0.turn.get();
        self.0.turn.set(turn.wrapping_add(1));
        let live = self.0.geometry.holders(stripe, Part::Data(data)).filter(|m| self.is_live(*m));
        live.min_by_key(|m| {
            let busy = usize::MAX - self.0.members[*m].room.available();
            (busy, (m + turn) % self.0.members.len())
        })
    }

    /// With nobody writing, from all members, repairing what is wrong.
    async fn read_carefully(&self, stripe: u64, touch: Touch, segments: &[Segment], at: u64) -> Result<(), GroupError> {
        let _lock = self.0.locks.lock(stripe).await;
        let area = self.area().await;
        let missing = self.load(&area, stripe, touch.window()).await?;
        for data in 0..self.0.geometry.data() {
            let (rows, from) = touch.of(data);
            for row in rows.clone() {
                let mut holders = self.0.geometry.holders(stripe, Part::Data(data));
                let holder = holders.find(|m| missing[*m] & bit(row) == 0).ok_or(GroupError::Media)?;
                self.copy(area.held(holder, row), self.payload(segments, at + from + row - rows.start));
            }
        }
        Ok(())
    }

    pub(super) fn copy(&self, from: Segment, to: Segment) {
        let (source, target) = (self.memory_of(from), self.memory_of(to));
        memory::copy(&source, from.offset, &target, to.offset, BLOCK_BYTES as u64).expect("checked segments");
    }

    /// Reads rows of all members, makes what is missing as far as parity or mirrors give it, and repairs it on members that are there. Returns what is
    /// still missing.
    pub(super) async fn load(&self, area: &Area<'_, D>, stripe: u64, rows: Range<u64>) -> Result<Rows, GroupError> {
        let n = self.0.geometry.members();
        let all = rows.clone().fold(0, |bits, row| bits | bit(row));
        let mut missing: Rows = [all; MEMBERS_MAX];
        self.read_members(area, stripe, rows.clone(), &mut missing).await?;
        let mut wrong: Rows = [0; MEMBERS_MAX];
        for member in 0..n {
            for row in rows.clone() {
                let guard = self.0.table.borrow().get(member, stripe, row);
                let read = missing[member] & bit(row) == 0;
                if read && guard.is_some_and(|guard| guard != self.guard_of(area.held(member, row))) {
                    missing[member] |= bit(row);
                    self.count(|c| c.mismatches += 1);
                }
            }
            if self.is_live(member) {
                wrong[member] = missing[member];
            }
        }
        for row in rows.clone() {
            self.make_missing(area, stripe, row, &mut missing);
        }
        for member in 0..n {
            for row in rows.clone().filter(|row| wrong[member] & !missing[member] & bit(*row) != 0) {
                if self.is_live(member) {
                    let mut ops = Ops::new();
                    push(&mut ops, Op { member, lba: self.lba(stripe, row), write: true, blocks: 1, from: row });
                    let outcomes = self.run(&ops, |op| joined([area.held(member, op.from)].into_iter())).await;
                    if self.judge_writes(&ops, &outcomes) == Err(GroupError::Fenced) {
                        return Err(GroupError::Fenced);
                    }
                    self.count(|c| c.repaired += u64::from(outcomes[0].is_ok()));
                }
            }
        }
        Ok(missing)
    }

    /// Reads rows of all members that are there, block by block where a device cannot read them all.
    pub(super) async fn read_members(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        rows: Range<u64>,
        missing: &mut Rows,
    ) -> Result<(), GroupError> {
        let mut ops = Ops::new();
        for member in self.live() {
            let (lba, blocks) = (self.lba(stripe, rows.start), rows.end - rows.start);
            push(&mut ops, Op { member, lba, write: false, blocks, from: rows.start });
        }
        let place = |op: &Op| joined((op.from..op.from + op.blocks).map(|row| area.held(op.member, row)));
        let outcomes = self.run(&ops, place).await;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            match self.judge_read(op.member, *outcome)? {
                true => missing[op.member] = 0,
                false => {
                    for row in rows.clone().filter(|_| self.is_live(op.member)) {
                        let mut one = Ops::new();
                        push(&mut one, Op { lba: self.lba(stripe, row), blocks: 1, from: row, ..*op });
                        let outcome = self.run(&one, place).await[0];
                        if self.judge_read(op.member, outcome)? {
                            missing[op.member] &= !bit(row);
                        } else {
                            self.count(|c| c.media_errors += 1);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn judge_read(&self, member: usize, outcome: Result<(), DeviceError>) -> Result<bool, GroupError> {
        match outcome {
            Ok(()) => Ok(true),
            Err(DeviceError::ReservationConflict) => Err(GroupError::Fenced),
            Err(DeviceError::Rejected) => Err(GroupError::Invalid),
            Err(DeviceError::Media | DeviceError::Aborted) => Ok(false),
            Err(DeviceError::Gone) => {
                self.fail(member, DeviceError::Gone);
                Ok(false)
            }
        }
    }

    /// Makes the missing blocks of one row in their places, if what is made has the guard that it should have.
    fn make_missing(&self, area: &Area<'_, D>, stripe: u64, row: u64, missing: &mut Rows) {
        let geometry = self.0.geometry;
        let lacks = |missing: &Rows, m: usize| missing[m] & bit(row) != 0;
        let lost: heapless::Vec<usize, MEMBERS_MAX> = (0..geometry.members()).filter(|m| lacks(missing, *m)).collect();
        let parities = geometry.level().parities();
        for member in &lost {
            let part = geometry.role(stripe, *member);
            if parities == 0 {
                let Some(other) = geometry.holders(stripe, part).find(|m| !lacks(missing, *m)) else { continue };
                self.copy(area.held(other, row), area.held(*member, row));
            } else {
                let other = match lost.as_slice() {
                    [_] => None,
                    [a, b] => Some(geometry.role(stripe, if a == member { *b } else { *a })),
                    _ => return,
                };
                let Some(recipe) = Recipe::new(geometry.data(), parities, part, other) else { continue };
                let mut terms = Terms::new();
                for m in (0..geometry.members()).filter(|m| !lost.contains(m)) {
                    let f = recipe.factor(geometry.role(stripe, m));
                    assert!(terms.push((area.held(m, row), [f, Gf::ZERO])).is_ok(), "at most all members");
                }
                self.sum(&[area.held(*member, row)], &terms);
            }
            let guard = self.0.table.borrow().get(*member, stripe, row);
            if guard.is_none_or(|guard| guard == self.guard_of(area.held(*member, row))) {
                missing[*member] &= !bit(row);
            }
        }
    }

    /// Sums terms into one block, or with the second factors into two.
    pub(super) fn sum(&self, targets: &[Segment], terms: &Terms) {
        let memories: heapless::Vec<_, SOURCES_MAX> = terms.iter().map(|(s, _)| self.memory_of(*s)).collect();
        let sources: heapless::Vec<Piece<'_>, SOURCES_MAX> =
            terms.iter().zip(&memories).map(|((s, _), memory)| Piece { memory, offset: s.offset }).collect();
        let row = |k: usize| -> heapless::Vec<Gf, SOURCES_MAX> { terms.iter().map(|(_, f)| f[k]).collect() };
        let rows = [row(0), row(1)];
        let rows: [&[Gf]; 2] = [&rows[0], &rows[1]];
        let targets: heapless::Vec<Piece<'_>, 2> =
            targets.iter().map(|s| Piece { memory: &self.0.work, offset: s.offset }).collect();
        combine(&targets, &sources, &rows[..targets.len()], ONE).expect("pieces of checked segments");
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
        let runs = &self.0.runs[area.index];
        let partial = self.describe(&mut runs.borrow_mut(), &area, stripe, touch, segments, at);
        let intent = {
            let payload: heapless::Vec<Segment, 32> = match partial {
                true => self
                    .parities()
                    .flat_map(|k| touch.window().map(move |row| (k, row)))
                    .map(|(k, row)| area.partial(k, row))
                    .collect(),
                false => heapless::Vec::new(),
            };
            self.intend(runs, &payload).await?
        };
        let mut ops = Ops::new();
        for member in self.live() {
            let part = self.0.geometry.role(stripe, member);
            let (rows, from) = match part {
                Part::Data(data) => touch.of(data),
                Part::P | Part::Q => (touch.window(), 0),
            };
            if !rows.is_empty() {
                let (lba, blocks) = (self.lba(stripe, rows.start), rows.end - rows.start);
                push(&mut ops, Op { member, lba, write: true, blocks, from: at + from });
            }
        }
        let outcomes = self
            .run(&ops, |op| {
                let first = op.lba.0 - self.lba(stripe, 0).0;
                match parity_number(self.0.geometry.role(stripe, op.member)) {
                    Some(k) => joined((first..first + op.blocks).map(|row| area.parity(k, row))),
                    None => joined((op.from..op.from + op.blocks).map(|at| self.payload(segments, at))),
                }
            })
            .await;
        let judged = self.judge_writes(&ops, &outcomes);
        if matches!(judged, Err(GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) {
            // What is on the devices only a replay can tell. The intent stays open.
            self.0.lost.set(true);
            self.0.changes.notify_all();
            return judged;
        }
        {
            let mut table = self.0.table.borrow_mut();
            for run in runs.borrow().iter().filter(|run| run.kind == RunKind::Written) {
                for (row, guard) in (run.first as u64..).zip(&run.guards) {
                    table.set(run.member, stripe, row, *guard);
                }
            }
        }
        self.end(intent);
        judged?;
        self.on_record().await
    }

    pub(super) fn parities(&self) -> Range<usize> {
        0..self.0.geometry.level().parities()
    }

    /// The runs of a write's intent; true if there is partial parity.
    fn describe(
        &self,
        runs: &mut Runs,
        area: &Area<'_, D>,
        stripe: u64,
        touch: Touch,
        segments: &[Segment],
        at: u64,
    ) -> bool {
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
                    let (rows, from) = touch.of(data);
                    let start = rows.start;
                    add(RunKind::Written, member, rows, &|row| self.payload(segments, at + from + row - start));
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
        partial
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
        let modify = self.reads(stripe, touch, true);
        let reconstruct = self.reads(stripe, touch, false);
        let (how, ops) = match (modify, reconstruct) {
            (Some(modify), Some(rest)) if modify.len() < rest.len() => (Some(true), modify),
            (_, Some(rest)) => (Some(false), rest),
            (Some(modify), None) => (Some(true), modify),
            (None, None) => (None, Ops::new()),
        };
        let mut modify = how == Some(true);
        if how.is_none() || !self.read_checked(area, stripe, &ops).await? {
            modify = false;
            let missing = self.load(area, stripe, touch.window()).await?;
            let needed = |data: usize, row: u64| !touch.of(data).0.contains(&row);
            for (data, row) in (0..self.0.geometry.data()).flat_map(|d| touch.window().map(move |row| (d, row))) {
                let holder = self.0.geometry.holders(stripe, Part::Data(data)).next().expect("data has a holder");
                if needed(data, row) && missing[holder] & bit(row) != 0 {
                    return Err(GroupError::Media);
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

    /// What must be read for a write: what it overwrites with the parity, or what it leaves. `None` if a member is not there.
    fn reads(&self, stripe: u64, touch: Touch, modify: bool) -> Option<Ops> {
        let window = touch.window();
        let mut ops = Ops::new();
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
            if !self.is_live(member) {
                return None;
            }
            let (lba, blocks) = (self.lba(stripe, rows.start), rows.end - rows.start);
            push(&mut ops, Op { member, lba, write: false, blocks, from: rows.start });
        }
        Some(ops)
    }

    /// Reads into the area; true if everything was read and has its guard.
    async fn read_checked(&self, area: &Area<'_, D>, stripe: u64, ops: &Ops) -> Result<bool, GroupError> {
        let rows = |op: &Op| op.from..op.from + op.blocks;
        let outcomes = self.run(ops, |op| joined(rows(op).map(|row| area.held(op.member, row)))).await;
        let mut good = true;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            good &= self.judge_read(op.member, *outcome)?
                && rows(op).all(|row| {
                    let guard = self.0.table.borrow().get(op.member, stripe, row);
                    guard.is_none_or(|guard| guard == self.guard_of(area.held(op.member, row)))
                });
        }
        Ok(good)
    }
}

const _: () = assert!(BATCH_MAX >= MEMBERS_MAX);
