//! The intent log at work: batches, the ring, and settling.
//!
//! Whoever has runs to add puts them into the record in the making. One of them, the *leader*, closes it and writes it to all members that keep the
//! log, while the next record fills; the others wait until theirs is durable. When the ring has no room the leader first *settles*: all guards that
//! changed are written, and records of writes that have ended are needed no more. Every write has gone to media before it ends, so nothing else is waited for.

use std::cell::RefCell;

use dyad_matrix::Segment;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

use super::members::{Op, Outcomes};
use super::stripe::Runs;
use super::{BLOCK_LEN, Group, GroupError, joined, push};
use crate::device::Device;
use crate::format::intent::{self, Record, Run};
use crate::format::seal::Seal;
use crate::format::{Block, guard};

/// Most payload blocks of one record: partial parity of a stripe twice, and what two members that are not there should get.
const PAYLOAD_MAX: usize = 64;

/// Blocks of one command of the log.
const COMMAND_BLOCKS: u64 = 16;

pub(super) struct Log {
    /// The record in the making.
    pending: Record,
    /// Its payload, block by block.
    payload: heapless::Vec<Segment, PAYLOAD_MAX>,
    /// The payload of the record that the leader writes.
    leading: heapless::Vec<Segment, PAYLOAD_MAX>,
    /// The number of the record in the making: records are counted here, not blocks.
    making: u64,
    /// Records below this number are durable.
    durable: u64,
    /// Somebody is the leader.
    led: bool,
    /// The first sequence that is free.
    next: u64,
    /// Records from this sequence on are needed.
    oldest: u64,
    /// Writes that have not ended: the sequence of their record, once it has one.
    open: Vec<(u64, Option<u64>)>,
    ring: u64,
}

impl Log {
    /// The ring is empty; records begin at `next`. At most `writers` are open at one time.
    pub(super) fn new(next: u64, ring: u64, writers: usize) -> Self {
        Self {
            pending: Record::default(),
            payload: heapless::Vec::new(),
            leading: heapless::Vec::new(),
            making: 0,
            durable: 0,
            led: false,
            next,
            oldest: next,
            open: Vec::with_capacity(writers),
            ring,
        }
    }

    fn try_add(&mut self, runs: &[Run], place: impl Fn(&Run, u64) -> Segment) -> Option<u64> {
        let with = || runs.iter().filter(|run| run.kind.has_payload());
        let blocks: usize = with().map(|run| run.guards.len()).sum();
        if self.payload.len() + blocks > PAYLOAD_MAX || self.pending.add(runs).is_err() {
            return None;
        }
        for run in with() {
            let rows = (run.first as u64..).take(run.guards.len());
            self.payload.extend(rows.map(|row| place(run, row)));
        }
        self.open.push((self.making, None));
        Some(self.making)
    }

    /// Where the record in the making goes, and the oldest that is needed then: if nothing before it is, what it skips at the ring's end does not count.
    /// So the shortest ring has room for the longest record, once all is settled.
    fn place(&self) -> (u64, u64) {
        let sequence = intent::next(self.next, self.pending.payload(), self.ring);
        (sequence, if self.oldest == self.next { sequence } else { self.oldest })
    }

    /// What the record in the making needs from the ring is free.
    fn has_room(&self) -> bool {
        let (sequence, oldest) = self.place();
        sequence + 1 + u64::from(self.pending.payload()) - oldest <= self.ring
    }

    fn settled_to(&self) -> u64 {
        self.open.iter().filter_map(|(_, sequence)| *sequence).min().unwrap_or(self.next)
    }
}

/// What a leader is there for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Duty {
    /// To append the record in the making.
    Append,
    /// To settle.
    Settle,
}

/// Makes room for the next leader. One that is dropped on its way leaves a record behind of which nobody knows whether it is durable: that ends the group.
struct Leader<'a, D: Device> {
    group: &'a Group<D>,
    outcome: Result<(), GroupError>,
}

impl<'a, D: Device> Leader<'a, D> {
    fn new(group: &'a Group<D>) -> Self {
        assert!(!std::mem::replace(&mut group.0.log.borrow_mut().led, true), "one leader at a time");
        Self { group, outcome: Err(GroupError::Lost) }
    }
}

impl<D: Device> Drop for Leader<'_, D> {
    fn drop(&mut self) {
        match self.outcome {
            Ok(()) => {}
            Err(GroupError::Fenced) => self.group.end(GroupError::Fenced),
            Err(_) => self.group.end(GroupError::Lost),
        }
        self.group.0.log.borrow_mut().led = false;
        self.group.0.log_changed.notify_all();
    }
}

/// Of runs without payload.
pub(super) fn nowhere(run: &Run, _: u64) -> Segment {
    unreachable!("{:?} has no payload", run.kind)
}

/// An intent that is durable. The write that it covers ends with [`Group::retire_intent`].
#[derive(Debug)]
pub(super) struct Intent(u64);

impl<D: Device> Group<D> {
    /// Makes the intent durable. `place` says where the payload block for a row of a run is; it stays as it is until then.
    ///
    /// # Errors
    /// `Fenced`, or `Lost`: nothing may be written.
    pub(super) async fn intend(
        &self,
        runs: &RefCell<Runs>,
        place: impl Fn(&Run, u64) -> Segment,
    ) -> Result<Intent, GroupError> {
        let mut added = None;
        loop {
            let seen = self.0.log_changed.generation();
            self.going_on()?;
            {
                let mut log = self.0.log.borrow_mut();
                if added.is_none() {
                    added = log.try_add(&runs.borrow(), &place);
                }
                if let Some(number) = added.filter(|number| log.durable > *number) {
                    return Ok(Intent(number));
                }
            }
            if self.0.log.borrow().led {
                self.0.log_changed.changed_since(seen).await;
            } else {
                self.lead(Duty::Append).await?;
            }
        }
    }

    /// Everything that has ended is settled: no record that is on the devices now is needed for it.
    ///
    /// # Errors
    /// As [`Self::intend`].
    pub(super) async fn settle_all(&self) -> Result<(), GroupError> {
        loop {
            let seen = self.0.log_changed.generation();
            self.going_on()?;
            if !self.0.log.borrow().led {
                return self.lead(Duty::Settle).await;
            }
            self.0.log_changed.changed_since(seen).await;
        }
    }

    /// The write is over: on media, with its guards in the table.
    pub(super) fn retire_intent(&self, intent: Intent) {
        let mut log = self.0.log.borrow_mut();
        let at = log.open.iter().position(|(number, _)| *number == intent.0).expect("an intent ends once");
        log.open.swap_remove(at);
        drop(log);
        self.0.log_changed.notify_all();
    }

    /// As the leader, whom nobody else is.
    async fn lead(&self, duty: Duty) -> Result<(), GroupError> {
        let mut leader = Leader::new(self);
        leader.outcome = match duty {
            Duty::Append => self.append().await,
            Duty::Settle => self.settle().await,
        };
        leader.outcome
    }

    async fn append(&self) -> Result<(), GroupError> {
        loop {
            let seen = self.0.log_changed.generation();
            self.going_on()?;
            if self.0.log.borrow().has_room() {
                break;
            }
            self.settle().await?;
            if !self.0.log.borrow().has_room() {
                self.0.log_changed.changed_since(seen).await;
            }
        }
        let (sequence, blocks) = {
            let mut log = self.0.log.borrow_mut();
            let log = &mut *log;
            let sequence;
            (sequence, log.oldest) = log.place();
            let mut record = std::mem::take(&mut log.pending);
            std::mem::swap(&mut log.leading, &mut log.payload);
            log.payload.clear();
            let block = record.close(self.0.id, sequence, log.oldest, self.0.epoch, log.ring);
            self.0.work.write(self.record_place().offset, block).expect("our own memory");
            log.next = sequence + 1 + u64::from(record.payload());
            for (_, open) in log.open.iter_mut().filter(|(number, _)| *number == log.making) {
                *open = Some(sequence);
            }
            log.making += 1;
            (sequence, log.next - sequence)
        };
        // Members that fail meanwhile are followed by the next ones.
        for _ in 0..self.0.members.len() {
            if self.write_record(sequence, blocks).await? {
                let mut log = self.0.log.borrow_mut();
                log.durable = log.making;
                return Ok(());
            }
        }
        Err(GroupError::Lost)
    }

    /// Writes the record to all members that keep the log; true if one of them has it.
    async fn write_record(&self, sequence: u64, blocks: u64) -> Result<bool, GroupError> {
        let ring = self.0.log.borrow().ring;
        let mut ops = self.batch();
        for member in self.live().take(self.0.geometry.tolerated() + 1) {
            for from in (0..blocks).step_by(16) {
                let lba = Lba(self.0.layout.intent.start.0 + sequence % ring + from);
                push(&mut ops, Op::write(member, lba, (blocks - from).min(COMMAND_BLOCKS), from));
            }
        }
        let block = |at: u64| match at.checked_sub(1) {
            None => self.record_place(),
            Some(at) => self.0.log.borrow().leading[usize::try_from(at).expect("below 64")],
        };
        let outcomes = self.run(&ops, |op| joined(op.range().map(block))).await;
        self.durable_somewhere(&ops, &outcomes)
    }

    /// Writes all guards that changed; then the records of writes that have ended are needed no more.
    pub(super) async fn settle(&self) -> Result<(), GroupError> {
        let upto = self.0.log.borrow().settled_to();
        loop {
            let Some((member, table)) = self.0.table.borrow_mut().next_dirty() else { break };
            let mut places = heapless::Vec::<_, 4>::new();
            places.extend(guard::copies(self.0.geometry, self.0.layout, member, table as u64));
            places.sort_unstable_by_key(|place| place.member);
            let mut ops = heapless::Vec::<Op, 4>::new();
            for (copy, place) in (0..).zip(&places).filter(|(_, place)| self.keeps_guards(place.member)) {
                assert!(ops.push(Op::write(place.member, place.lba, 1, copy)).is_ok(), "one for each copy");
            }
            {
                let mut table_guards = self.0.table.borrow_mut();
                let (sequence, guards) = table_guards.for_write(member, table);
                for (copy, place) in places.iter().enumerate() {
                    let mut block: Block = [0; BLOCK_BYTES];
                    let seal = Seal { group: self.0.id, sequence, place: place.place };
                    guard::encode(&mut block, &seal, member, guards);
                    self.0.work.write(self.table_place(copy as u64).offset, &block).expect("our own memory");
                }
            }
            let outcomes = self.run(&ops, |op| joined([self.table_place(op.from())].into_iter())).await;
            // Nobody has it: good as long as no member that should is left.
            if !self.durable_somewhere(&ops, &outcomes)? && ops.iter().any(|op| self.is_live(op.member())) {
                return Err(GroupError::Lost);
            }
        }
        self.0.log.borrow_mut().oldest = upto;
        Ok(())
    }

    /// At least one member that is in sync has all that was written to it of `ops`.
    fn durable_somewhere(&self, ops: &[Op], outcomes: &Outcomes) -> Result<bool, GroupError> {
        match self.judge_writes(ops, outcomes) {
            Ok(()) | Err(GroupError::Media | GroupError::Unrecorded) => {}
            Err(why @ (GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) => return Err(why),
        }
        let whole = |member: usize| {
            let mut of_member = ops.iter().zip(outcomes).filter(|(op, _)| op.member() == member);
            self.is_live(member) && of_member.all(|(_, outcome)| outcome.is_ok())
        };
        Ok(ops.iter().any(|op| whole(op.member())))
    }

    fn record_place(&self) -> Segment {
        self.tail(0)
    }

    fn table_place(&self, copy: u64) -> Segment {
        self.tail(1 + copy)
    }

    /// Blocks behind the work areas.
    pub(super) fn tail(&self, at: u64) -> Segment {
        let offset = self.0.work.len() - BlockCount(super::TAIL_BLOCKS - at).bytes();
        Segment { memory: self.0.work.id(), offset, len: BLOCK_LEN }
    }
}
