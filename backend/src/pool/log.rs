//! The share log on a group: two halves, each with a snapshot and the changes after it (`crate::format::share`).
//!
//! **A change** is one block behind the others: there whole, or not at all. It is durable before the next one is begun, so only the last block of a log can be
//! torn; a block that is missing before another one means damage, and is refused.
//! **A full half** is followed by a new log in the other one. Until the snapshot there is whole, the old log is the table, and it is not touched.
//! **Opening** ends with a new log too: so whatever a crash, or a member that was away, left in the copies does not matter any more, and every
//! copy has everything.
//!
//! Numbers of logs only grow and are never used twice, not even for a log whose snapshot was cut short.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::task::Poll;

use dyad_nvme::types::BLOCK_BYTES;

use super::ground::{Facts, Ground, SHARE_BLOCKS_MAX};
use crate::format::share::{self, Header, RECORDS, Record};
use crate::format::{Block, FormatError, VERSION};
use crate::raid::GroupError;

/// How often a block is written while the failure of a member waits to be put on record: each time takes some seconds.
const ATTEMPTS: u32 = 3;

/// Reads of the region at one time, when it is opened: whoever takes a group over is in a hurry.
const READS: usize = 8;

/// Why a share log is not believed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// There was never one: the pool was not made yet, or is gone.
    #[error("the group has no share table")]
    Blank,
    /// There was one, and some of it cannot be read or is not what it was.
    #[error("the group's share table is damaged")]
    Damaged,
    /// Of a format that we do not know.
    #[error("the group's share table has format version {0}, not {VERSION}")]
    Version(u32),
    /// The region has no room for two logs.
    #[error("the group's share region is too small")]
    TooSmall,
    /// The group failed.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// What a log said.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) slice_stripes: u32,
    pub(super) fresh: u32,
    pub(super) records: Vec<Record>,
}

/// What every block says besides its records.
#[derive(Debug, Copy, Clone)]
pub(super) struct Totals {
    pub(super) slice_stripes: u32,
    pub(super) fresh: u32,
}

#[derive(Debug)]
pub(super) struct Log<G> {
    ground: G,
    facts: Facts,
    half: u64,
    number: Cell<u64>,
    /// Blocks of its snapshot.
    snapshot: Cell<u32>,
    /// Where in its half the next block goes.
    next: Cell<u64>,
    buffer: RefCell<Vec<Block>>,
}

/// What is at a place of the region.
type Found = Option<(Header, Vec<Record>)>;

impl<G: Ground> Log<G> {
    /// A log that has not begun: [`Self::begin`] comes next.
    pub(super) fn new(ground: G) -> Result<Self, LogError> {
        let facts = ground.facts();
        let half = facts.share_blocks / 2;
        if half < 2 {
            return Err(LogError::TooSmall);
        }
        let buffer = RefCell::new(vec![[0; BLOCK_BYTES]; SHARE_BLOCKS_MAX]);
        let log =
            Self { ground, facts, half, number: Cell::new(0), snapshot: Cell::new(0), next: Cell::new(0), buffer };
        Ok(log)
    }

    /// Most records that a snapshot may have, so that a change fits behind it.
    pub(super) const fn capacity(&self) -> u64 {
        (self.half - 1) * RECORDS as u64
    }

    /// Reads what is there. The next log will be a new one.
    pub(super) async fn read(&self) -> Result<Replay, LogError> {
        let (mut best, mut blank, mut version) = (Vec::<Found>::new(), true, None);
        best.resize_with(usize::try_from(2 * self.half).map_err(|_| LogError::TooSmall)?, || None);
        let runs = (0..2 * self.half).step_by(SHARE_BLOCKS_MAX);
        let all: Vec<_> = runs.flat_map(|from| (0..self.facts.copies).map(move |copy| (copy, from))).collect();
        for some in all.chunks(READS) {
            let reads = some.iter().map(|(copy, from)| self.fetch(*copy, *from)).collect();
            for ((_, from), blocks) in some.iter().zip(join_all(reads).await) {
                for (place, block) in (*from..).zip(blocks?) {
                    let decoded = block.map(|block| share::decode(&block, self.facts.group, place));
                    blank &= decoded == Some(Err(FormatError::Blank));
                    match decoded {
                        Some(Ok(found)) if found.0.log % 2 == place / self.half => {
                            let best = &mut best[usize::try_from(place).expect("it was allocated")];
                            if best.as_ref().is_none_or(|(header, _)| header.log < found.0.log) {
                                *best = Some(found);
                            }
                        }
                        Some(Err(FormatError::Version(other))) => version = Some(other),
                        Some(Ok(_) | Err(_)) | None => {}
                    }
                }
            }
        }
        if blank {
            return Err(LogError::Blank);
        }
        let damaged = version.map_or(LogError::Damaged, LogError::Version);
        let half = usize::try_from(self.half).map_err(|_| LogError::TooSmall)?;
        let newest = best.iter().flatten().map(|(header, _)| header.log).max().ok_or(damaged)?;
        let (first, second) = best.split_at(half);
        let (first, second) = (whole(first, damaged)?, whole(second, damaged)?);
        let log = first.into_iter().chain(second).max_by_key(|log| log.number).ok_or(damaged)?;
        // The next one is in the other half, and its number is new.
        let next = newest + 1;
        self.number.set(if next % 2 == log.number % 2 { next } else { next - 1 });
        Ok(log.replay)
    }

    /// Begins a new log in the other half, with these records.
    pub(super) async fn begin(&self, totals: Totals, records: &[Record]) -> Result<(), GroupError> {
        let number = self.number.get() + 1;
        let blocks = records.len().div_ceil(RECORDS).max(1);
        let snapshot = u32::try_from(blocks).map_err(|_| GroupError::Invalid)?;
        if u64::from(snapshot) >= self.half {
            return Err(GroupError::Invalid);
        }
        let Totals { slice_stripes, fresh } = totals;
        let header = Header { log: number, snapshot, fresh, slice_stripes };
        let mut place = number % 2 * self.half;
        let mut left = records;
        for from in (0..blocks).step_by(SHARE_BLOCKS_MAX) {
            let count = (blocks - from).min(SHARE_BLOCKS_MAX);
            let mut buffer = self.buffer.take();
            for block in &mut buffer[..count] {
                let (of_block, rest) = left.split_at(left.len().min(RECORDS));
                share::encode(block, self.facts.group, place, &header, of_block);
                (left, place) = (rest, place + 1);
            }
            let written = self.write(place - count as u64, &buffer[..count]).await;
            self.buffer.replace(buffer);
            written?;
        }
        self.number.set(number);
        self.snapshot.set(snapshot);
        self.next.set(snapshot.into());
        Ok(())
    }

    /// No change fits any more.
    pub(super) fn is_full(&self) -> bool {
        self.next.get() == self.half
    }

    /// Makes a change of at most [`RECORDS`] records durable.
    pub(super) async fn append(&self, totals: Totals, records: &[Record]) -> Result<(), GroupError> {
        assert!(!self.is_full(), "a new log comes first");
        let Totals { slice_stripes, fresh } = totals;
        let header = Header { log: self.number.get(), snapshot: self.snapshot.get(), fresh, slice_stripes };
        let place = self.number.get() % 2 * self.half + self.next.get();
        let mut buffer = self.buffer.take();
        share::encode(&mut buffer[0], self.facts.group, place, &header, records);
        let written = self.write(place, &buffer[..1]).await;
        self.buffer.replace(buffer);
        written?;
        self.next.set(self.next.get() + 1);
        Ok(())
    }

    /// A member that fails must be on record before a write counts; writing the same again is no change.
    async fn write(&self, place: u64, blocks: &[Block]) -> Result<(), GroupError> {
        let mut written = self.ground.write_share(place, blocks).await;
        for _ in 1..ATTEMPTS {
            if written == Err(GroupError::Unrecorded) {
                written = self.ground.write_share(place, blocks).await;
            }
        }
        written
    }

    /// Blocks of one copy from a place on, those that can be read; one by one where they cannot be read together.
    async fn fetch(&self, copy: usize, from: u64) -> Result<Vec<Option<Block>>, GroupError> {
        let count = (2 * self.half - from).min(SHARE_BLOCKS_MAX as u64);
        let mut together = vec![[0; BLOCK_BYTES]; usize::try_from(count).expect("at most SHARE_BLOCKS_MAX")];
        if self.ground.read_share(copy, from, &mut together).await? {
            return Ok(together.into_iter().map(Some).collect());
        }
        let mut blocks = Vec::with_capacity(together.len());
        for place in from..from + count {
            let read = self.ground.read_share(copy, place, &mut together[..1]).await?;
            blocks.push(read.then(|| together[0]));
        }
        Ok(blocks)
    }
}

/// Runs futures together until the last of them has ended.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().map(|(_, output)| output.expect("all of them have ended")).collect()
}

struct Whole {
    number: u64,
    replay: Replay,
}

/// The log in a half, if its snapshot is whole.
fn whole(places: &[Found], damaged: LogError) -> Result<Option<Whole>, LogError> {
    let Some(number) = places.iter().flatten().map(|(header, _)| header.log).max() else { return Ok(None) };
    let of_log = |found: &Found| found.as_ref().is_some_and(|(header, _)| header.log == number);
    let length = places.iter().take_while(|found| of_log(found)).count();
    let last = places.iter().rposition(of_log).expect("the one that was found");
    let snapshot = places.iter().flatten().find(|(header, _)| header.log == number).expect("it was found").0.snapshot;
    let snapshot = usize::try_from(snapshot).map_err(|_| damaged)?;
    if last >= snapshot && last >= length {
        return Err(damaged); // there was more, and it is gone
    }
    if length < snapshot {
        return Ok(None); // it was cut short: the log before it counts
    }
    let blocks = || places[..length].iter().flatten();
    let mut slice_stripes = None;
    for (header, _) in blocks() {
        let same = slice_stripes.replace(header.slice_stripes).is_none_or(|before| before == header.slice_stripes);
        if !same || header.snapshot as usize != snapshot {
            return Err(damaged);
        }
    }
    let fresh = blocks().last().ok_or(damaged)?.0.fresh;
    let records = blocks().flat_map(|(_, records)| records.iter().copied()).collect();
    let replay = Replay { slice_stripes: slice_stripes.ok_or(damaged)?, fresh, records };
    Ok(Some(Whole { number, replay }))
}
