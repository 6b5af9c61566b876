//! The intent log: what writes are about to change, durable before they do (PROTOCOLS 7.2).
//!
//! The region is a ring of sealed blocks, one record each, the same on every member that keeps the log. Record `sequence` is at place
//! `sequence mod ring`. A record is valid or was never complete: then none of the writes that it covers had begun.
//!
//! | bytes | field |
//! |---|---|
//! | 48..56 | oldest: records from this sequence on are still needed |
//! | 56..64 | epoch of the home that wrote it |
//! | 64..66 | number of runs |
//! | 66..72 | zero |
//! | 72.. | the runs, one after the other |
//!
//! A run: consecutive blocks of one chunk on one member, and the guards that they will have.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | stripe |
//! | 8..9 | member |
//! | 9..10 | first block in the chunk, 0 to 15 |
//! | 10..11 | number of blocks, 1 to 16 |
//! | 11..12 | zero |
//! | 12.. | a CRC-32C for each |

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

/// Consecutive blocks of one chunk that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The stripe.
    pub stripe: u64,
    /// The member.
    pub member: usize,
    /// The first block in the chunk.
    pub first: usize,
    /// The guards they will have, one for each.
    pub guards: heapless::Vec<Guard, RUN_MAX>,
}

/// A record in the making.
#[derive(Debug, Clone)]
pub struct Record {
    block: Block,
    runs: u16,
    end: usize,
}

impl Default for Record {
    fn default() -> Self {
        Self { block: [0; BLOCK_BYTES], runs: 0, end: FIRST }
    }
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
            for field in [run.member, run.first, run.guards.len(), 0] {
                to.u8(u8::try_from(field).expect("at most 18"));
            }
            run.guards.iter().for_each(|guard| to.u32(guard.0));
            self.runs += 1;
        }
        self.end += bytes;
        Ok(())
    }

    /// Seals the record as number `sequence` for a ring of so many.
    pub fn close(&mut self, group: GroupId, sequence: u64, oldest: u64, epoch: u64, ring: u64) -> &Block {
        let mut to = Writer::at(&mut self.block, HEADER);
        to.u64(oldest);
        to.u64(epoch);
        to.u16(self.runs);
        to.bytes(&[0; 6]);
        seal::close(&mut self.block, Kind::Intent, &Seal { group, sequence, place: sequence % ring });
        &self.block
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
    let (oldest, epoch, count) = (from.u64(), from.u64(), from.u16());
    if sequence % ring != place || oldest > sequence || sequence - oldest >= ring {
        return Err(FormatError::Invalid);
    }
    let mut from = Reader::at(block, FIRST);
    let mut runs = Vec::with_capacity(usize::from(count).min(BLOCK_BYTES / RUN_HEADER));
    for _ in 0..count {
        if from.left() < RUN_HEADER {
            return Err(FormatError::Invalid);
        }
        let stripe = from.u64();
        let [member, first, len, _] = from.bytes::<4>().map(usize::from);
        let inside = stripe < stripes && member < geometry.members() && len >= 1 && first + len <= RUN_MAX;
        if !inside || from.left() < 4 * len {
            return Err(FormatError::Invalid);
        }
        let guards = (0..len).map(|_| Guard(from.u32())).collect();
        runs.push(Run { stripe, member, first, guards });
    }
    Ok(Decoded { sequence, oldest, epoch, runs })
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
