//! The intent log: what writes are about to change, durable before they do (PROTOCOLS 7.2).
//!
//! The region is a ring of blocks, the same on every member that keeps the log. A record is a sealed block and the payload blocks behind it. Its
//! sequence counts blocks: record q is at place `q mod ring`, its payload at the places that follow, and the next record's sequence is at least
//! q + 1 + payload blocks ([`next`]: no record goes around the end). A record of which a block is missing was never complete, and none of the
//! writes that it covers had begun.
//!
//! **Partial parity.** A write of a part of a stripe changes data and parity apart. If a crash comes between and a member fails too, what that
//! member held of the
//! stripe's *other* data could not be made again. So the record has, for every row that is written, the parity of the data that is not: with it and the
//! data that is left, every block that the write did not touch comes back, whatever of the write was done.
//!
//! **Absent data.** What a write gives to a member that is not there exists nowhere until parity has it too: a crash in between would leave
//! neither the old block nor the new one. So the record has the new one.
//!
//! | bytes | field |
//! |---|---|
//! | 48..56 | oldest: records from this sequence on are still needed |
//! | 56..64 | epoch of the home that wrote it |
//! | 64..66 | number of runs |
//! | 66..68 | number of payload blocks |
//! | 68..72 | zero |
//! | 72.. | the runs, one after the other |
//!
//! A run: consecutive blocks of one chunk on one member.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | stripe |
//! | 8..9 | member |
//! | 9..10 | first block in the chunk, 0 to 15 |
//! | 10..11 | number of blocks, 1 to 16 |
//! | 11..12 | 0: they will be written; 1: the payload has their partial parity; 2: the payload has them, for the member is not there |
//! | 12.. | a CRC-32C for each: that it will have; that of its payload block |
//!
//! Payload blocks are in the order of the runs that they belong to.

use dyad_nvme::types::BLOCK_BYTES;

use super::guard::Guard;
use super::seal::{self, FormatError, HEADER, Kind, Reader, Seal, Writer};
use super::{Block, GroupId};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry};

/// Blocks of a chunk.
const RUN_MAX: usize = 16;
const _: () = assert!(RUN_MAX as u64 == CHUNK_BLOCKS);

const RUNS: usize = HEADER + 16;
const FIRST: usize = RUNS + 8;
const RUN_HEADER: usize = 12;

/// The record does not fit: append it and begin another.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record is full")]
pub struct RecordFull;

/// What a run says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RunKind {
    /// The blocks will be written, and have these guards then.
    Written,
    /// The payload has the parity of those data blocks of the same rows that are not written, as this member would hold it; these are its guards.
    PartialParity,
    /// The payload has the blocks: the member is not there to be written. There is a `Written` run for them as well.
    Absent,
}

impl RunKind {
    /// As the format has it.
    const fn code(self) -> u8 {
        match self {
            Self::Written => 0,
            Self::PartialParity => 1,
            Self::Absent => 2,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Written, Self::PartialParity, Self::Absent].into_iter().find(|kind| kind.code() == code)
    }

    /// There is a payload block for each of its blocks.
    #[must_use]
    pub const fn has_payload(self) -> bool {
        match self {
            Self::Written => false,
            Self::PartialParity | Self::Absent => true,
        }
    }
}

/// Consecutive blocks of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is said of them.
    pub kind: RunKind,
    /// The stripe.
    pub stripe: u64,
    /// The member.
    pub member: usize,
    /// The first block in the chunk.
    pub first: usize,
    /// One for each block.
    pub guards: heapless::Vec<Guard, RUN_MAX>,
}

impl Run {
    /// The guard that it gives a block.
    #[must_use]
    pub fn guard(&self, stripe: u64, member: usize, row: u64) -> Option<Guard> {
        let at = usize::try_from(row).ok()?.checked_sub(self.first)?;
        if (stripe, member) == (self.stripe, self.member) { self.guards.get(at).copied() } else { None }
    }
}

/// A record in the making.
#[derive(Debug, Clone)]
pub struct Record {
    block: Block,
    runs: u16,
    payload: u16,
    end: usize,
}

impl Default for Record {
    fn default() -> Self {
        Self { block: [0; BLOCK_BYTES], runs: 0, payload: 0, end: FIRST }
    }
}

/// The sequence of a record with so many payload blocks, if `sequence` is the first that is free: it does not go around the ring's end.
#[must_use]
pub fn next(sequence: u64, payload: u16, ring: u64) -> u64 {
    let blocks = 1 + u64::from(payload);
    if sequence % ring + blocks <= ring { sequence } else { sequence.next_multiple_of(ring) }
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its number.
    pub sequence: u64,
    /// Records from here on are still needed.
    pub oldest: u64,
    /// The home's epoch.
    pub epoch: u64,
    /// What was to change.
    pub runs: Vec<Run>,
}

impl Record {
    /// Nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.runs == 0
    }

    /// Payload blocks that belong behind it.
    #[must_use]
    pub const fn payload(&self) -> u16 {
        self.payload
    }

    /// Adds runs, all of them or none: a stripe's intent must not be torn apart.
    ///
    /// # Errors
    /// [`RecordFull`].
    ///
    /// # Panics
    /// If a run has no blocks or leaves its chunk.
    pub fn add(&mut self, runs: &[Run]) -> Result<(), RecordFull> {
        let bytes: usize = runs.iter().map(|run| RUN_HEADER + 4 * run.guards.len()).sum();
        if bytes > BLOCK_BYTES - self.end {
            return Err(RecordFull);
        }
        let mut to = Writer::at(&mut self.block, self.end);
        for run in runs {
            assert!(!run.guards.is_empty() && run.first + run.guards.len() <= RUN_MAX, "a run lies in its chunk");
            to.u64(run.stripe);
            for field in [run.member, run.first, run.guards.len()] {
                to.u8(u8::try_from(field).expect("at most 18"));
            }
            to.u8(run.kind.code());
            run.guards.iter().for_each(|guard| to.u32(guard.0));
            self.runs += 1;
            if run.kind.has_payload() {
                self.payload += u16::try_from(run.guards.len()).expect("at most 16");
            }
        }
        self.end += bytes;
        Ok(())
    }

    /// Seals the record for a ring of so many blocks. `sequence` comes from [`next`].
    ///
    /// # Panics
    /// If the record would go around the ring's end.
    pub fn close(&mut self, group: GroupId, sequence: u64, oldest: u64, epoch: u64, ring: u64) -> &Block {
        assert_eq!(next(sequence, self.payload, ring), sequence, "a record does not go around the end");
        let mut to = Writer::at(&mut self.block, HEADER);
        to.u64(oldest);
        to.u64(epoch);
        to.u16(self.runs);
        to.u16(self.payload);
        to.bytes(&[0; 4]);
        seal::close(&mut self.block, Kind::Intent, &Seal { group, sequence, place: sequence % ring });
        &self.block
    }
}

impl Decoded {
    /// The guards of the payload blocks, in order. The record counts only if every block has its guard.
    pub fn payload(&self) -> impl Iterator<Item = Guard> + '_ {
        let with = self.runs.iter().filter(|run| run.kind.has_payload());
        with.flat_map(|run| run.guards.iter().copied())
    }
}

/// Reads the record at a place of the ring.
///
/// # Errors
/// [`FormatError`].
pub fn decode(
    block: &Block,
    group: GroupId,
    place: u64,
    ring: u64,
    geometry: Geometry,
    stripes: u64,
) -> Result<Decoded, FormatError> {
    let sequence = seal::open_at(block, Kind::Intent, group, place)?;
    let mut from = Reader::at(block, HEADER);
    let (oldest, epoch, count, payload) = (from.u64(), from.u64(), from.u16(), from.u16());
    let in_ring = sequence % ring == place && next(sequence, payload, ring) == sequence;
    if !in_ring || oldest > sequence || sequence - oldest >= ring {
        return Err(FormatError::Invalid);
    }
    let mut from = Reader::at(block, FIRST);
    let mut runs = Vec::with_capacity(usize::from(count).min(BLOCK_BYTES / RUN_HEADER));
    for _ in 0..count {
        if from.left() < RUN_HEADER {
            return Err(FormatError::Invalid);
        }
        let stripe = from.u64();
        let [member, first, len] = from.bytes::<3>().map(usize::from);
        let kind = RunKind::of(from.u8()).ok_or(FormatError::Invalid)?;
        let inside = stripe < stripes && member < geometry.members() && len >= 1 && first + len <= RUN_MAX;
        if !inside || from.left() < 4 * len {
            return Err(FormatError::Invalid);
        }
        let guards = (0..len).map(|_| Guard(from.u32())).collect();
        runs.push(Run { kind, stripe, member, first, guards });
    }
    let decoded = Decoded { sequence, oldest, epoch, runs };
    if decoded.payload().count() == usize::from(payload) { Ok(decoded) } else { Err(FormatError::Invalid) }
}

/// Of all records that could be read on all members, in any order: those that must be replayed, oldest first, each once.
#[must_use]
pub fn live(mut records: Vec<Decoded>) -> Vec<Decoded> {
    records.sort_by_key(|record| record.sequence);
    records.dedup_by_key(|record| record.sequence);
    let oldest = records.iter().map(|record| record.oldest).max().unwrap_or(0);
    records.retain(|record| record.sequence >= oldest);
    records
}
