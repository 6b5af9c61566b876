//! The write-ahead log, on a volume of its own.
//!
//! Records are appended in memory (the log cache) and written by one task, [`Log::run`], which writes whatever has gathered when
//! somebody wants it durable: the transactions that wait for one write commit together.
//!
//! Invariants:
//! - an LSN is a place: block number times 4096, and bytes in that block; block `n` lies at block `1 + n mod capacity` of the volume;
//! - blocks are written in any order; nobody is told of a record before every block up to its end is on media;
//! - a block is written again while it is not full; each time it begins with what it had;
//! - each opening is a generation, durable in the header before its first block. Generations begin at a block of their own. So what an older
//!   one left behind its end is never taken for the log;
//! - room for undoing every active transaction is kept: a rollback never fails for want of log.

mod block;
pub(crate) mod record;
mod scan;

use std::sync::{Arc, Mutex};

use dyad_host::VolumeError;
use dyad_matrix::frames::RUN_FRAMES_MAX;
use dyad_reactor::mutation::{Mutation, is_active};

use self::block::{BLOCK_HEADER, BlockHead, Header};
use self::record::Record;
pub(crate) use self::scan::{Scan, ScanError};
use crate::error::StorageError;
use crate::ids::Lsn;
use crate::page::Stamp;
use crate::port::{BLOCK_BYTES, Port};
use crate::sync::{Event, lock};

/// Bytes that wait to be written before whoever appends must wait.
const CACHE_BYTES: usize = 1 << 20;
/// Bytes that are written although nobody waits for them.
const EAGER_BYTES: usize = CACHE_BYTES / 4;
/// Bytes of the log that only checkpoints and ends of transactions may use, in addition to what is kept for each buffer.
const SLACK_BYTES: u64 = 128 << 10;
/// Least blocks of a log volume.
pub const LOG_BLOCKS_MIN: u64 = 128;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// When a commit is answered.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Durability {
    /// When media have it: it survives total loss of power.
    Media,
    /// When the volume has acknowledged it: on an array, both directors' memory. It survives any single failure, not total loss of power.
    Mirrored,
}

struct State {
    generation: u32,
    /// The block that `pending` begins with.
    first: u64,
    /// Blocks that are not written, or not full, without their headers' content.
    pending: Vec<u8>,
    /// Up to here the volume has acknowledged.
    mirrored: Lsn,
    /// Up to here media have it.
    media: Lsn,
    wanted_mirrored: Lsn,
    wanted_media: Lsn,
    /// The log is needed from here on.
    start: Lsn,
    /// Bytes kept for undoing.
    reserved: u64,
    failed: Option<VolumeError>,
}

/// The log.
pub(crate) struct Log {
    port: Arc<Port>,
    stamp: Stamp,
    capacity: u64,
    slack: u64,
    durability: Durability,
    state: Mutex<State>,
    work: Event,
    progress: Event,
}

/// Bytes that a record of `len` bytes takes, with the headers of the blocks that it may begin.
pub(crate) fn framed(len: usize) -> u64 {
    let blocks = len / (BLOCK_BYTES - BLOCK_HEADER) + 2;
    (len + blocks * BLOCK_HEADER) as u64
}

/// The place of block `number` on the volume.
fn place(number: u64, capacity: u64) -> u64 {
    1 + number % capacity
}

impl State {
    /// Where the next record begins.
    fn end(&self) -> Lsn {
        let at = self.first * BLOCK + self.pending.len() as u64;
        Lsn(if at.is_multiple_of(BLOCK) { at + BLOCK_HEADER as u64 } else { at })
    }

    fn push(&mut self, mut bytes: &[u8]) -> Lsn {
        let lsn = self.end();
        while !bytes.is_empty() {
            if self.pending.len().is_multiple_of(BLOCK_BYTES) {
                self.pending.resize(self.pending.len() + BLOCK_HEADER, 0);
            }
            let room = BLOCK_BYTES - self.pending.len() % BLOCK_BYTES;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
        }
        lsn
    }

    /// All that is not written, sealed; what is full leaves the cache.
    fn take(&mut self, stamp: Stamp) -> (u64, Vec<u8>) {
        let (first, used) = (self.first, self.pending.len());
        let full = used / BLOCK_BYTES * BLOCK_BYTES;
        let mut blocks = if full == used { std::mem::take(&mut self.pending) } else { self.pending.clone() };
        if full < used {
            self.pending.drain(..full);
        }
        self.first += (full / BLOCK_BYTES) as u64;
        blocks.resize(used.next_multiple_of(BLOCK_BYTES), 0);
        for (number, (at, block)) in (first..).zip(blocks.chunks_mut(BLOCK_BYTES).enumerate()) {
            let used = (used - at * BLOCK_BYTES).min(BLOCK_BYTES);
            BlockHead { generation: self.generation, number, used }.seal(stamp, block);
        }
        (first, blocks)
    }
}

impl Log {
    fn new(port: Arc<Port>, header: Header, first: u64, durability: Durability, buffers: usize) -> Arc<Self> {
        let end = Lsn(first * BLOCK);
        let state = State {
            generation: header.generation,
            first,
            pending: Vec::new(),
            mirrored: end,
            media: end,
            wanted_mirrored: end,
            wanted_media: end,
            start: end,
            reserved: 0,
            failed: None,
        };
        Arc::new(Self {
            port,
            stamp: header.stamp,
            capacity: header.capacity,
            slack: SLACK_BYTES.min(header.capacity * BLOCK / 4) + 16 * buffers as u64,
            durability,
            state: Mutex::new(state),
            work: Event::default(),
            progress: Event::default(),
        })
    }

    /// An empty log on the volume behind `port`.
    pub(crate) async fn create(
        port: Arc<Port>,
        stamp: Stamp,
        durability: Durability,
        buffers: usize,
    ) -> Result<Arc<Self>, VolumeError> {
        let header = Header { stamp, generation: 1, capacity: port.blocks - 1 };
        port.write_blocks(0, header.encode()).await?;
        Ok(Self::new(port, header, 1, durability, buffers))
    }

    /// Reads the log from `from` to its end.
    pub(crate) async fn scan(port: &Arc<Port>, stamp: Stamp, from: Lsn) -> Result<Scan, ScanError> {
        let block = port.read_blocks(0, 1).await?;
        let header = Header::decode(&block).filter(|header| header.stamp == stamp).ok_or(ScanError::Foreign)?;
        Scan::start(Arc::clone(port), header, from).await
    }

    /// The log whose end `scan` has found, opened for writing; it is needed from `start` on.
    pub(crate) async fn open(
        scan: &mut Scan,
        start: Lsn,
        durability: Durability,
        buffers: usize,
    ) -> Result<Arc<Self>, VolumeError> {
        let header = Header { generation: scan.header.generation + 1, ..scan.header };
        scan.port.write_blocks(0, header.encode()).await?;
        let log = Self::new(Arc::clone(&scan.port), header, scan.last + 1, durability, buffers);
        lock(&log.state).start = start;
        Ok(log)
    }

    /// Where the next record begins.
    pub(crate) fn end(&self) -> Lsn {
        lock(&self.state).end()
    }

    fn used_bytes(&self, state: &State) -> u64 {
        state.end().0 - state.start.0 / BLOCK * BLOCK
    }

    /// Whether so much of the log is needed that a checkpoint is due.
    pub(crate) fn is_filling(&self) -> bool {
        let state = lock(&self.state);
        self.used_bytes(&state) + state.reserved > self.capacity * BLOCK / 3
    }

    /// Waits until the cache has room.
    pub(crate) async fn room(&self) -> Result<(), StorageError> {
        self.progress
            .until(|| {
                let state = lock(&self.state);
                match state.failed {
                    Some(error) => Some(Err(StorageError::Down(error))),
                    None => (state.pending.len() < CACHE_BYTES).then_some(Ok(())),
                }
            })
            .await
    }

    /// Appends a record that changes pages. `undo` bytes are kept for undoing it.
    ///
    /// # Errors
    /// [`StorageError::LogFull`], [`StorageError::Down`]: nothing was appended.
    pub(crate) fn append(&self, record: &Record, undo: u64) -> Result<Lsn, StorageError> {
        let bytes = record.encode();
        let mut state = lock(&self.state);
        let needed = self.used_bytes(&state) + state.reserved + framed(bytes.len()) + undo + self.slack + 2 * BLOCK;
        if needed > self.capacity * BLOCK {
            return Err(StorageError::LogFull);
        }
        state.reserved += undo;
        self.push(state, &bytes)
    }

    /// Appends a record for which room was kept: `released` bytes of it are free again.
    ///
    /// # Errors
    /// [`StorageError::Down`]. [`StorageError::LogFull`] only for a checkpoint that does not fit.
    pub(crate) fn append_kept(&self, record: &Record, released: u64) -> Result<Lsn, StorageError> {
        let bytes = record.encode();
        let mut state = lock(&self.state);
        if self.used_bytes(&state) + framed(bytes.len()) + 2 * BLOCK > self.capacity * BLOCK {
            return Err(StorageError::LogFull);
        }
        state.reserved -= released.min(state.reserved);
        self.push(state, &bytes)
    }

    fn push(&self, mut state: std::sync::MutexGuard<'_, State>, bytes: &[u8]) -> Result<Lsn, StorageError> {
        if let Some(error) = state.failed {
            return Err(StorageError::Down(error));
        }
        let lsn = state.push(bytes);
        let eager = state.pending.len() >= EAGER_BYTES;
        if eager {
            state.wanted_mirrored = state.end();
        }
        drop(state);
        if eager {
            self.work.wake_all();
        }
        Ok(lsn)
    }

    /// Room that was kept and is not needed.
    pub(crate) fn release(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.reserved -= bytes.min(state.reserved);
    }

    /// The log is not needed before `start` any more.
    pub(crate) fn truncate(&self, start: Lsn) {
        let mut state = lock(&self.state);
        assert!(start >= state.start, "the log is truncated forwards");
        state.start = start;
    }

    /// Waits until everything before `lsn` is as durable as a commit must be.
    pub(crate) async fn committed(&self, lsn: Lsn) -> Result<(), StorageError> {
        self.durable(lsn, self.durability).await
    }

    /// Waits until everything before `lsn` is so durable.
    pub(crate) async fn durable(&self, lsn: Lsn, durability: Durability) -> Result<(), StorageError> {
        {
            let mut state = lock(&self.state);
            match durability {
                Durability::Media => state.wanted_media = state.wanted_media.max(lsn),
                Durability::Mirrored => state.wanted_mirrored = state.wanted_mirrored.max(lsn),
            }
        }
        self.work.wake_all();
        self.progress
            .until(|| {
                let state = lock(&self.state);
                let done = match durability {
                    Durability::Media => state.media,
                    Durability::Mirrored => state.mirrored,
                };
                match state.failed {
                    _ if done >= lsn => Some(Ok(())),
                    Some(error) => Some(Err(StorageError::Down(error))),
                    None => None,
                }
            })
            .await
    }

    /// Why the log, and with it the database, is down, if it is.
    pub(crate) fn failure(&self) -> Option<VolumeError> {
        lock(&self.state).failed
    }

    /// The database cannot go on.
    pub(crate) fn fail(&self, error: VolumeError) {
        lock(&self.state).failed.get_or_insert(error);
        self.progress.wake_all();
        self.work.wake_all();
    }

    /// Writes the log, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.work
                .until(|| {
                    let state = lock(&self.state);
                    let due = state.wanted_mirrored > state.mirrored || state.wanted_media > state.media;
                    (due && state.failed.is_none()).then_some(())
                })
                .await;
            if let Err(error) = self.write().await {
                self.fail(error);
            }
            self.progress.wake_all();
        }
    }

    /// One write of everything that has gathered.
    async fn write(&self) -> Result<(), VolumeError> {
        let (first, blocks, end, media) = {
            let mut state = lock(&self.state);
            let end = state.end();
            let (first, blocks) = state.take(self.stamp);
            (first, blocks, end, self.durability == Durability::Media || state.wanted_media > state.media)
        };
        let runs = self.runs(first, &blocks);
        let durable = media && runs.len() == 1 && !is_active(Mutation::CommitUnflushed);
        let replies: Vec<_> = runs.iter().map(|(at, run)| self.port.start_write(*at, run.to_vec(), durable)).collect();
        for reply in replies {
            reply.take().await?;
        }
        if media && !durable && !is_active(Mutation::CommitUnflushed) {
            self.port.flush().await?;
        }
        let mut state = lock(&self.state);
        state.mirrored = state.mirrored.max(end);
        if media {
            state.media = state.media.max(end);
        }
        Ok(())
    }

    /// Pieces that are consecutive on the volume, at most as long as a command.
    fn runs<'a>(&self, first: u64, blocks: &'a [u8]) -> Vec<(u64, &'a [u8])> {
        let mut runs = Vec::new();
        let (mut number, mut rest) = (first, blocks);
        while !rest.is_empty() {
            let until_wrap = self.capacity - number % self.capacity;
            let most = RUN_FRAMES_MAX.min(usize::try_from(until_wrap).unwrap_or(RUN_FRAMES_MAX)) * BLOCK_BYTES;
            let (run, later) = rest.split_at(most.min(rest.len()));
            runs.push((place(number, self.capacity), run));
            number += (run.len() / BLOCK_BYTES) as u64;
            rest = later;
        }
        runs
    }
}
