//! Replay: what a crash interrupted is brought to an end (PROTOCOLS 7.3, 7.4), before anything else is done with the group.
//!
//! Of every stripe that a record names each block is old or new afterwards, parity or mirrors agree with the data, and guards with both. Replay may
//! itself be interrupted anywhere: the records stay until all of it is on media.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dyad_nvme::types::Lba;
use dyad_reactor::mutation::{Mutation, is_active};

use super::log::{Log, nowhere};
use super::members::Op;
use super::repair::Known;
use super::stripe::{Area, Rows, Runs, Terms, bit, factor};
use super::{AREAS, Group, GroupError, joined};
use crate::device::Device;
use crate::format::Block;
use crate::format::guard::Guard;
use crate::format::intent::{self, Decoded, RunKind};
use crate::parity::Member as Part;
use crate::raid::geometry::{CHUNK_BLOCKS, MEMBERS_MAX};

/// Which parity a block is made with.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Parity {
    /// Of what the interrupted write left alone: the payload has it.
    OfTheRest,
    /// Of all data: the devices have it.
    OfAll,
}

/// A record with its payload.
struct Whole {
    record: Decoded,
    payload: Vec<Block>,
}

impl<D: Device> Group<D> {
    /// Brings what was interrupted to an end. Returns the first sequence that is free.
    pub(super) async fn replay_log(&self) -> Result<u64, GroupError> {
        let (records, next) = self.read_log().await?;
        let mut stripes: BTreeMap<u64, Vec<&Whole>> = BTreeMap::new();
        for whole in &records {
            for run in &whole.record.runs {
                let touching = stripes.entry(run.stripe).or_default();
                if touching.last().is_none_or(|last| last.record.sequence != whole.record.sequence) {
                    touching.push(whole);
                }
            }
        }
        if is_active(Mutation::OpenWithoutReplay) {
            return Ok(next);
        }
        let area = self.area().await;
        for (stripe, records) in stripes {
            self.replay(&area, stripe, &records).await?;
        }
        self.count(|c| c.replayed += records.len() as u64);
        Ok(next)
    }

    /// What was replayed is on media, and so are its guards: no intent is needed any more.
    pub(super) async fn begin_log(&self, next: u64) -> Result<(), GroupError> {
        *self.0.log.borrow_mut() = Log::new(next, self.0.layout.intent.blocks.0, AREAS);
        // An empty record says so: else the next life would take old blocks for what an interrupted write left.
        let empty = self.intend(&RefCell::new(Runs::new()), nowhere).await?;
        self.retire_intent(empty);
        Ok(())
    }

    /// The records that must be replayed, oldest first, and the first sequence that is free.
    async fn read_log(&self) -> Result<(Vec<Whole>, u64), GroupError> {
        let area = self.area().await;
        let ring = self.0.layout.intent.blocks.0;
        let (mut found, mut next) = (Vec::new(), 0);
        for member in 0..self.0.geometry.members() {
            if !self.is_live(member) {
                continue;
            }
            let mut blocks: Vec<Option<Block>> = Vec::new();
            for place in (0..ring).step_by(16) {
                let lba = Lba(self.0.layout.intent.start.0 + place);
                self.read_run(&area, member, lba, CHUNK_BLOCKS.min(ring - place), &mut blocks).await?;
            }
            for (place, block) in (0..).zip(&blocks) {
                let Some(block) = block else { continue };
                let chunks = self.0.layout.chunks();
                let Ok(record) = intent::decode(block, self.0.id, place, ring, self.0.geometry, chunks) else {
                    continue;
                };
                let behind = blocks.iter().skip(usize::try_from(place).expect("a ring in memory") + 1);
                let payload: Vec<Block> = record
                    .payload()
                    .zip(behind)
                    .map_while(|(guard, block)| block.filter(|block| Guard::of(block) == guard))
                    .collect();
                next = next.max(record.sequence + 1 + record.payload().count() as u64);
                if payload.len() == record.payload().count() {
                    found.push(Whole { record, payload });
                }
            }
        }
        let live = intent::live(found.iter().map(|whole| whole.record.clone()).collect());
        found.sort_by_key(|whole| whole.record.sequence);
        found.dedup_by_key(|whole| whole.record.sequence);
        let oldest = live.first().map_or(0, |record| record.sequence);
        found.retain(|whole| whole.record.sequence >= oldest);
        Ok((found, next))
    }

    /// Brings one stripe to where every block is old or new, and parity or mirrors agree. Writes of one stripe follow one another, so all but the
    /// last one were done; of them only the guards may be missing.
    async fn replay(&self, area: &Area<'_, D>, stripe: u64, records: &[&Whole]) -> Result<(), GroupError> {
        let n = self.0.geometry.members();
        let (last, done) = records.split_last().expect("a stripe that a record names");
        for run in done.iter().flat_map(|whole| &whole.record.runs) {
            if run.kind == RunKind::Written && run.stripe == stripe {
                for (row, guard) in (run.first as u64..).zip(&run.guards) {
                    self.0.table.borrow_mut().set(run.member, stripe, row, *guard);
                }
            }
        }
        let mut missing: Rows = [u16::MAX; 18];
        self.read_members(area, stripe, 0..CHUNK_BLOCKS, &mut missing).await?;
        for row in 0..CHUNK_BLOCKS {
            if !(0..n).any(|m| last.writes(stripe, m, row).is_some()) {
                continue;
            }
            for (member, missing) in missing.iter_mut().enumerate().take(n) {
                if *missing & bit(row) == 0 && !self.accept(area, stripe, member, row, last) {
                    *missing |= bit(row);
                    self.count(|c| c.mismatches += 1);
                }
            }
            let mut wrong: heapless::Vec<usize, 18> =
                (0..n).filter(|m| self.holds(*m, stripe) && missing[*m] & bit(row) != 0).collect();
            let bad = wrong.clone();
            if self.parities().is_empty() {
                self.equalise_mirrors(area, stripe, row, last, &missing, &mut wrong);
            } else {
                self.take_absent(area, stripe, row, last, &mut missing);
                self.bring_forward(area, stripe, row, last, &missing, &mut wrong);
                self.make_again(area, stripe, row, last, &mut missing);
                self.give_up(stripe, row, last, &missing);
                wrong.retain(|m| missing[*m] & bit(row) == 0);
                self.make_parity_again(area, stripe, row, &missing, &mut wrong);
            }
            wrong.sort_unstable();
            for member in wrong {
                let ops = [Op::write(member, self.lba(stripe, row), 1, row)];
                let outcomes = self.run(&ops, |_| joined([area.held(member, row)].into_iter())).await;
                self.count(|c| c.repaired += u64::from(bad.contains(&member)));
                match self.judge_writes(&ops, &outcomes) {
                    Err(error @ (GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) => return Err(error),
                    Ok(()) | Err(GroupError::Media | GroupError::Unrecorded) => {}
                }
            }
        }
        Ok(())
    }

    /// True if what was read of a block is one of the things that it may be; then that is its guard.
    fn accept(&self, area: &Area<'_, D>, stripe: u64, member: usize, row: u64, last: &Whole) -> bool {
        let found = self.guard_of(area.held(member, row));
        let mut table = self.0.table.borrow_mut();
        let old = table.get(member, stripe, row);
        let good = old.is_none_or(|old| old == found) || last.writes(stripe, member, row) == Some(found);
        if good {
            table.set(member, stripe, row, found);
        }
        good
    }

    fn equalise_mirrors(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        last: &Whole,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        wrong.clear();
        for data in 0..self.0.geometry.data() {
            let part = Part::Data(data);
            let good = |m: &usize| missing[*m] & bit(row) == 0;
            let new = |m: &usize| last.writes(stripe, *m, row) == Some(self.guard_of(area.held(*m, row)));
            let holders = || self.0.geometry.holders(stripe, part).filter(good);
            // The new bytes, if any leg has them: an old one may have lost a write that had ended.
            let Some(source) = holders().find(new).or_else(|| holders().next()) else { continue };
            let guard = self.guard_of(area.held(source, row));
            for leg in self.0.geometry.holders(stripe, part).filter(|leg| *leg != source) {
                let same = missing[leg] & bit(row) == 0 && self.guard_of(area.held(leg, row)) == guard;
                if !same && self.holds(leg, stripe) {
                    self.copy(area.held(source, row), area.held(leg, row));
                    assert!(wrong.push(leg).is_ok(), "at most all members");
                }
                self.0.table.borrow_mut().set(leg, stripe, row, guard);
            }
        }
    }

    /// One block of a row is old, and with the others it would be new: the write had ended, and the device lost it.
    fn bring_forward(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        last: &Whole,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        let geometry = self.0.geometry;
        let old = |m: &usize| {
            let new = last.writes(stripe, *m, row);
            new.is_some_and(|new| missing[*m] & bit(row) == 0 && new != self.guard_of(area.held(*m, row)))
        };
        let mut olds = (0..geometry.members()).filter(old);
        let (Some(member), None) = (olds.next(), olds.next()) else { return };
        let known = |m: usize| match missing[m] & bit(row) {
            0 => Known::At(area.held(m, row)),
            _ => Known::Lost,
        };
        let made = area.parity(0, row);
        if !self.solve(stripe, geometry.role(stripe, member), None, known, made) {
            return;
        }
        let guard = self.guard_of(made);
        if last.writes(stripe, member, row) == Some(guard) {
            self.copy(made, area.held(member, row));
            self.0.table.borrow_mut().set(member, stripe, row, guard);
            assert!(wrong.push(member).is_ok(), "at most all members");
        }
    }

    /// The new blocks of members that were not there to be written.
    fn take_absent(&self, area: &Area<'_, D>, stripe: u64, row: u64, last: &Whole, missing: &mut Rows) {
        for (member, missing) in missing.iter_mut().enumerate().take(self.0.geometry.members()) {
            if *missing & bit(row) != 0
                && let Some(block) = last.payload(RunKind::Absent, stripe, member, row)
            {
                self.0.work.write(area.held(member, row).offset, block).expect("our own memory");
                self.0.table.borrow_mut().set(member, stripe, row, Guard::of(block));
                *missing &= !bit(row);
            }
        }
    }

    /// Makes missing data of a row: with partial parity what a write left alone, else with parity if that gives something that it may be.
    fn make_again(&self, area: &Area<'_, D>, stripe: u64, row: u64, last: &Whole, missing: &mut Rows) {
        let geometry = self.0.geometry;
        for (k, part) in self.parities().zip([Part::P, Part::Q]) {
            let holder = geometry.holders(stripe, part).next().expect("parity has a holder");
            if let Some(block) = last.payload(RunKind::PartialParity, stripe, holder, row) {
                self.0.work.write(area.partial(k, row).offset, block).expect("our own memory");
            }
        }
        for parity in [Parity::OfTheRest, Parity::OfAll] {
            let known = |missing: &Rows, m: usize| self.known(area, stripe, row, last, missing, parity, m);
            let is_lost =
                |m: &usize| matches!(geometry.role(stripe, *m), Part::Data(_)) && known(missing, *m) == Known::Lost;
            let lost: heapless::Vec<usize, MEMBERS_MAX> = (0..geometry.members()).filter(is_lost).collect();
            for member in &lost {
                let (part, place) = (geometry.role(stripe, *member), area.held(*member, row));
                // With one lost and both parities there are two ways; what is stale shows in the guard.
                let ways = match lost.as_slice() {
                    [_] => [None, Some(Part::P)],
                    [a, b] => [Some(geometry.role(stripe, if a == member { *b } else { *a })), None],
                    _ => return,
                };
                let made = ways.into_iter().any(|other| {
                    let known = |m: usize| if lost.contains(&m) { Known::Lost } else { known(missing, m) };
                    self.solve(stripe, part, other, known, place) && self.accept(area, stripe, *member, row, last)
                });
                if made {
                    missing[*member] &= !bit(row);
                }
            }
        }
    }

    /// What is known of a member's block of a row, with that parity.
    #[expect(clippy::too_many_arguments, reason = "all that a replay of one row is about")]
    fn known(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        last: &Whole,
        missing: &Rows,
        parity: Parity,
        member: usize,
    ) -> Known {
        let there = if missing[member] & bit(row) == 0 { Known::At(area.held(member, row)) } else { Known::Lost };
        let partial = |k: usize| match last.payload(RunKind::PartialParity, stripe, member, row) {
            Some(_) => Known::At(area.partial(k, row)),
            None => Known::Lost,
        };
        match (parity, self.0.geometry.role(stripe, member)) {
            (Parity::OfAll, _) => there,
            (Parity::OfTheRest, Part::Data(_)) if last.writes(stripe, member, row).is_some() => Known::Zero,
            (Parity::OfTheRest, Part::Data(_)) => there,
            (Parity::OfTheRest, Part::P) => partial(0),
            (Parity::OfTheRest, Part::Q) => partial(1),
        }
    }

    /// Data of the interrupted write that is neither old nor new any more (its device lost it meanwhile): nothing but the new bytes will have its guard.
    fn give_up(&self, stripe: u64, row: u64, last: &Whole, missing: &Rows) {
        for member in (0..self.0.geometry.members()).filter(|m| missing[*m] & bit(row) != 0) {
            if let Some(guard) = last.writes(stripe, member, row) {
                self.0.table.borrow_mut().set(member, stripe, row, guard);
            }
        }
    }

    /// Makes the parity of a row of the data that there is. Data that is lost counts as zeros: its guard tells that it is not.
    fn make_parity_again(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        let geometry = self.0.geometry;
        let mut terms = Terms::new();
        for (member, missing) in missing.iter().enumerate().take(geometry.members()) {
            if let Part::Data(data) = geometry.role(stripe, member)
                && missing & bit(row) == 0
            {
                let added = terms.push((area.held(member, row), [factor(0, data), factor(1, data)]));
                assert!(added.is_ok(), "at most all members");
            }
        }
        let targets = [area.parity(0, row), area.parity(1, row)];
        self.sum(&targets[..self.parities().end], &terms);
        for k in self.parities() {
            let part = if k == 0 { Part::P } else { Part::Q };
            let holder = geometry.holders(stripe, part).next().expect("parity has a holder");
            let guard = self.guard_of(area.parity(k, row));
            let same = missing[holder] & bit(row) == 0 && self.guard_of(area.held(holder, row)) == guard;
            if !same && self.holds(holder, stripe) {
                self.copy(area.parity(k, row), area.held(holder, row));
                if !wrong.contains(&holder) {
                    assert!(wrong.push(holder).is_ok(), "at most all members");
                }
            }
            self.0.table.borrow_mut().set(holder, stripe, row, guard);
        }
    }
}

impl Whole {
    /// The guard that a block will have, if this record writes it.
    fn writes(&self, stripe: u64, member: usize, row: u64) -> Option<Guard> {
        let mut runs = self.record.runs.iter().filter(|run| run.kind == RunKind::Written);
        runs.find_map(|run| run.guard(stripe, member, row))
    }

    /// The payload block for a row of a member.
    fn payload(&self, kind: RunKind, stripe: u64, member: usize, row: u64) -> Option<&Block> {
        let mut at = 0;
        for run in self.record.runs.iter().filter(|run| run.kind.has_payload()) {
            if run.kind == kind && run.guard(stripe, member, row).is_some() {
                let row = usize::try_from(row).expect("below 16");
                return self.payload.get(at + row - run.first);
            }
            at += run.guards.len();
        }
        None
    }
}
