//! What is missing of a stripe: reading all that there is, making the rest, and putting it back.

use std::ops::Range;

use dyad_matrix::{Segment, memory};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount};

use super::members::Op;
use super::stripe::{Area, Rows, Terms, Touch, bit};
use super::{Group, GroupError, joined, push};
use crate::device::{Device, DeviceError};
use crate::parity::{Gf, Member as Part, Piece, Recipe, SOURCES_MAX, combine};
use crate::raid::geometry::MEMBERS_MAX;

const ONE: BlockCount = BlockCount(1);

/// What is known of a member's block of a row.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It is there.
    At(Segment),
    /// It counts as zeros.
    Zero,
    /// It is lost.
    Lost,
}

impl<D: Device> Group<D> {
    /// With nobody writing, from all members, repairing what is wrong.
    pub(super) async fn read_carefully(
        &self,
        stripe: u64,
        touch: Touch,
        segments: &[Segment],
        at: u64,
    ) -> Result<(), GroupError> {
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

    /// Reads rows of all members, makes what is missing as far as parity or mirrors give it, and repairs it on members that should have it. Returns what
    /// is still missing.
    pub(super) async fn load(&self, area: &Area<'_, D>, stripe: u64, rows: Range<u64>) -> Result<Rows, GroupError> {
        let n = self.0.geometry.members();
        let all = rows.clone().fold(0, |bits, row| bits | bit(row));
        let mut missing: Rows = [all; MEMBERS_MAX];
        self.read_members(area, stripe, rows.clone(), &mut missing).await?;
        let mut wrong: Rows = [0; MEMBERS_MAX];
        for member in 0..n {
            for row in rows.clone() {
                let read = missing[member] & bit(row) == 0;
                if read && !self.is_as_written(member, stripe, row, area.held(member, row)) {
                    missing[member] |= bit(row);
                    self.count(|c| c.mismatches += 1);
                }
            }
            if self.holds(member, stripe) {
                wrong[member] = missing[member];
            }
        }
        for row in rows.clone() {
            self.make_missing(area, stripe, row, &mut missing);
        }
        for member in 0..n {
            for row in rows.clone().filter(|row| wrong[member] & !missing[member] & bit(*row) != 0) {
                if self.holds(member, stripe) {
                    let ops = [Op::write(member, self.lba(stripe, row), 1, row)];
                    let outcomes = self.run(&ops, |op| joined([area.held(member, op.from())].into_iter())).await;
                    match self.judge_writes(&ops, &outcomes) {
                        Err(why @ (GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) => return Err(why),
                        Ok(()) | Err(GroupError::Media | GroupError::Unrecorded) => {}
                    }
                    self.count(|c| c.repaired += u64::from(outcomes[0].is_ok()));
                }
            }
            let left = (wrong[member] & missing[member]).count_ones();
            self.count(|c| c.beyond_repair += u64::from(left));
        }
        Ok(missing)
    }

    /// Reads rows of all members that have them, block by block where a device cannot read them all.
    pub(super) async fn read_members(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        rows: Range<u64>,
        missing: &mut Rows,
    ) -> Result<(), GroupError> {
        let mut ops = self.batch();
        for member in (0..self.0.geometry.members()).filter(|m| self.holds(*m, stripe)) {
            push(&mut ops, Op::read(member, self.lba(stripe, rows.start), rows.end - rows.start, rows.start));
        }
        let place = |op: &Op| joined(op.range().map(|row| area.held(op.member(), row)));
        let outcomes = self.run(&ops, place).await;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            if self.judge_read(op.member(), *outcome)? {
                missing[op.member()] = 0;
                continue;
            }
            for row in rows.clone().filter(|_| self.holds(op.member(), stripe)) {
                let one = [Op::read(op.member(), self.lba(stripe, row), 1, row)];
                let outcome = self.run(&one, place).await[0];
                if self.judge_read(op.member(), outcome)? {
                    missing[op.member()] &= !bit(row);
                } else {
                    self.count(|c| c.media_errors += 1);
                }
            }
        }
        Ok(())
    }

    /// Makes the missing blocks of one row in their places, if what is made has the guard that it should have.
    fn make_missing(&self, area: &Area<'_, D>, stripe: u64, row: u64, missing: &mut Rows) {
        let geometry = self.0.geometry;
        let lacks = |missing: &Rows, m: usize| missing[m] & bit(row) != 0;
        let lost: heapless::Vec<usize, MEMBERS_MAX> = (0..geometry.members()).filter(|m| lacks(missing, *m)).collect();
        for member in &lost {
            let (part, place) = (geometry.role(stripe, *member), area.held(*member, row));
            if self.parities().is_empty() {
                let Some(other) = geometry.holders(stripe, part).find(|m| !lacks(missing, *m)) else { continue };
                self.copy(area.held(other, row), place);
            } else {
                let other = match lost.as_slice() {
                    [_] => None,
                    [a, b] => Some(geometry.role(stripe, if a == member { *b } else { *a })),
                    _ => return,
                };
                let known = |m: usize| if lost.contains(&m) { Known::Lost } else { Known::At(area.held(m, row)) };
                if !self.solve(stripe, part, other, known, place) {
                    continue;
                }
            }
            if self.is_as_written(*member, stripe, row, place) {
                missing[*member] &= !bit(row);
            }
        }
    }

    /// Makes a block of a row of the others, without `other`; false if what that takes is lost.
    pub(super) fn solve(
        &self,
        stripe: u64,
        part: Part,
        other: Option<Part>,
        known: impl Fn(usize) -> Known,
        to: Segment,
    ) -> bool {
        let geometry = self.0.geometry;
        let Some(recipe) = Recipe::new(geometry.data(), self.parities().end, part, other) else { return false };
        let mut terms = Terms::new();
        for member in 0..geometry.members() {
            let factor = recipe.factor(geometry.role(stripe, member));
            match known(member) {
                _ if factor == Gf::ZERO => {}
                Known::At(place) => assert!(terms.push((place, [factor, Gf::ZERO])).is_ok(), "at most all members"),
                Known::Zero => {}
                Known::Lost => return false,
            }
        }
        self.sum(&[to], &terms);
        true
    }

    /// What is missing of a row is lost for good, and others of its blocks are to be written: for parity it counts as zeros from now on, and its guard goes
    /// on telling that it is not.
    ///
    /// # Errors
    /// `Media`: a device may have it still, and cannot say so now.
    pub(super) async fn give_up_row(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        missing: &Rows,
    ) -> Result<(), GroupError> {
        for member in (0..self.0.geometry.members()).filter(|m| missing[*m] & bit(row) != 0) {
            let place = area.held(member, row);
            if self.holds(member, stripe) {
                let ops = [Op::read(member, self.lba(stripe, row), 1, row)];
                let outcome = self.run(&ops, |_| joined([place].into_iter())).await[0];
                if !matches!(outcome, Ok(()) | Err(DeviceError::Media)) {
                    return Err(GroupError::Media);
                }
            }
            self.0.work.fill_zero(place.offset, u64::from(place.len)).expect("our own memory");
        }
        Ok(())
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
}
