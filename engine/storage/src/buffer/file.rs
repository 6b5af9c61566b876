//! The buffers of one file: who is where, the free list, and what reads and writes do to them.
//!
//! Who may change what:
//! - a buffer's page changes only under the lock of the page's shard of the table, and only while nobody has it pinned;
//! - pins are added under that lock, too; so a buffer that nobody pins while the lock is held can be taken away from its page.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dyad_host::VolumeError;
use dyad_matrix::Memory;
use dyad_reactor::collections::{FixedMap, fixed_map};

use super::frame::{Buffer, Hold};
use crate::error::StorageError;
use crate::ids::{FileId, PageId};
use crate::page::{Page, Stamp};
use crate::port::{Port, Request, Sink};
use crate::sync::{Event, lock};

/// The table is in so many pieces, each with a lock of its own.
const SHARDS: usize = 64;
/// Buffers that a sweep looks at while a read is in flight.
const SWEEP: u32 = 32;

/// What happened in a file's buffers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Pages that were found in the pool.
    pub(crate) hits: AtomicU64,
    /// Pages that had to be read.
    pub(crate) misses: AtomicU64,
    /// Pages that left the pool.
    pub(crate) evicted: AtomicU64,
}

/// The buffers of a file.
pub(crate) struct FilePool {
    pub(crate) file: FileId,
    pub(crate) port: Arc<Port>,
    pub(crate) tally: Tally,
    pub(super) memory: Memory,
    stamp: AtomicU64,
    pub(super) buffers: Box<[Buffer]>,
    shards: Box<[Mutex<FixedMap<u32, u32>>]>,
    free: Mutex<Vec<u32>>,
    free_count: AtomicUsize,
    hand: AtomicU32,
    /// Below so many free buffers it is time to look for more.
    pub(super) low: usize,
    /// Buffers have become free, or could now.
    pub(super) freed: Event,
    /// Free buffers are few.
    pub(super) scarce: Event,
    failed: Mutex<Option<VolumeError>>,
}

fn place(buffer: u32) -> usize {
    usize::try_from(buffer).expect("32 bits fit")
}

impl FilePool {
    pub(crate) fn new(file: FileId, port: Arc<Port>, memory: Memory, halves: Vec<[u64; 2]>) -> Arc<Self> {
        let count = u32::try_from(halves.len()).expect("fewer than 2^32 buffers");
        let per_shard = halves.len() / SHARDS + 8;
        Arc::new(Self {
            file,
            port,
            tally: Tally::default(),
            memory,
            stamp: AtomicU64::new(0),
            low: (halves.len() / 16).clamp(4, 1024),
            buffers: halves.into_iter().map(Buffer::new).collect(),
            shards: (0..SHARDS).map(|_| Mutex::new(fixed_map(per_shard))).collect(),
            free: Mutex::new((0..count).rev().collect()),
            free_count: AtomicUsize::new(place(count)),
            hand: AtomicU32::new(0),
            freed: Event::default(),
            scarce: Event::default(),
            failed: Mutex::default(),
        })
    }

    /// Pages belong to this database.
    pub(crate) fn belong_to(&self, stamp: Stamp) {
        self.stamp.store(stamp.0, Ordering::Release);
    }

    fn stamp(&self) -> Stamp {
        Stamp(self.stamp.load(Ordering::Acquire))
    }

    #[inline]
    fn shard(&self, page: u32) -> &Mutex<FixedMap<u32, u32>> {
        // Neighbours lie in different shards.
        &self.shards[place(page) % SHARDS]
    }

    #[inline]
    pub(super) fn buffer(&self, buffer: u32) -> &Buffer {
        &self.buffers[place(buffer)]
    }

    #[inline]
    pub(super) fn view(&self, buffer: u32) -> Page<'_> {
        self.buffer(buffer).view(&self.memory)
    }

    pub(super) fn name(&self, number: u32) -> PageId {
        PageId { file: self.file, number }
    }

    /// The buffer of a page, pinned.
    #[inline]
    pub(super) fn pin(&self, page: u32) -> Option<u32> {
        let shard = lock(self.shard(page));
        let buffer = *shard.get(&page)?;
        self.buffer(buffer).pins.fetch_add(1, Ordering::Acquire);
        Some(buffer)
    }

    pub(super) fn has(&self, page: u32) -> bool {
        lock(self.shard(page)).contains_key(&page)
    }

    /// Gives a free buffer to a page that has none, pinned so many times; otherwise the buffer is free again.
    pub(super) fn install(&self, page: u32, buffer: u32, hold: Hold, pins: u32) -> bool {
        let mut shard = lock(self.shard(page));
        if shard.contains_key(&page) {
            drop(shard);
            self.put_free(buffer);
            return false;
        }
        let of = self.buffer(buffer);
        of.start_again(hold, page);
        of.pins.store(pins, Ordering::Release);
        shard.insert(page, buffer);
        true
    }

    pub(super) fn unpin(&self, buffer: u32) {
        let of = self.buffer(buffer);
        if of.pins.fetch_sub(1, Ordering::AcqRel) == 1 {
            if of.hold() == Hold::Failed && of.bury() {
                self.put_free(buffer);
            } else if self.is_scarce() {
                self.freed.wake_all();
            }
        }
    }

    pub(super) fn is_scarce(&self) -> bool {
        self.free_count.load(Ordering::Relaxed) < self.low
    }

    pub(crate) fn buffer_count(&self) -> usize {
        self.buffers.len()
    }

    /// Whether scans should give back what they have looked at, before sweeps take it from others.
    pub(super) fn is_tight(&self) -> bool {
        self.free_count.load(Ordering::Relaxed) < 2 * self.low + 8
    }

    /// Whether read-ahead would leave the others without.
    pub(super) fn spares_none(&self) -> bool {
        self.free_count.load(Ordering::Relaxed) < self.low + 2
    }

    fn put_free(&self, buffer: u32) {
        self.buffer(buffer).set_hold(Hold::Free);
        lock(&self.free).push(buffer);
        self.free_count.fetch_add(1, Ordering::Relaxed);
        self.freed.wake_all();
    }

    /// The first buffer of the free list.
    pub(super) fn try_free(&self) -> Option<u32> {
        let buffer = lock(&self.free).pop();
        if buffer.is_some() {
            self.free_count.fetch_sub(1, Ordering::Relaxed);
        }
        if self.is_scarce() {
            self.scarce.wake_all();
        }
        buffer
    }

    /// Takes a clean page that nobody uses out of its buffer.
    pub(super) fn evict(&self, buffer: u32) -> bool {
        let of = self.buffer(buffer);
        let page = of.page.load(Ordering::Relaxed);
        let mut shard = lock(self.shard(page));
        let unused = of.hold() == Hold::Ready && of.pins.load(Ordering::Acquire) == 0;
        if !unused || of.is_dirty() || of.is_writing() || shard.get(&page) != Some(&buffer) {
            return false;
        }
        shard.remove(&page);
        of.set_hold(Hold::Free);
        drop(shard);
        self.tally.evicted.fetch_add(1, Ordering::Relaxed);
        self.put_free(buffer);
        true
    }

    /// The clock: ages the next few buffers, and frees those that are clean and were not used since. Done by whoever waits for a read.
    pub(super) fn sweep_some(&self) {
        if self.is_scarce() {
            self.sweep(SWEEP);
        }
    }

    /// Sweeps over `count` buffers; how many it freed.
    pub(super) fn sweep(&self, count: u32) -> usize {
        let all = u32::try_from(self.buffers.len()).expect("fewer than 2^32 buffers");
        let count = count.min(all);
        let first = self.hand.fetch_add(count, Ordering::Relaxed);
        let swept = (0..count).map(|step| first.wrapping_add(step) % all);
        swept.filter(|buffer| self.buffer(*buffer).age() == 0 && self.evict(*buffer)).count()
    }

    /// Asks for pages that are in nobody's buffer; those that are next to each other come with one command.
    pub(super) fn read(&self, first: u32, buffers: Vec<u32>) {
        self.tally.misses.fetch_add(buffers.len() as u64, Ordering::Relaxed);
        self.port.ask(Request::ReadPages { first, buffers });
    }

    pub(super) fn failure(&self) -> Option<VolumeError> {
        *lock(&self.failed)
    }

    fn read_failed(&self, buffer: u32, error: StorageError) {
        let of = self.buffer(buffer);
        let page = of.page.load(Ordering::Relaxed);
        let mut shard = lock(self.shard(page));
        shard.remove(&page);
        of.fail(error);
        let bury = of.pins.load(Ordering::Acquire) == 0 && of.bury();
        drop(shard);
        if bury {
            self.put_free(buffer);
        }
    }
}

impl Sink for FilePool {
    fn moved(&self, buffer: u32, halves: [u64; 2]) {
        self.buffer(buffer).move_to(halves);
    }

    fn read(&self, buffers: &[u32], done: Result<(), VolumeError>) {
        for buffer in buffers {
            let of = self.buffer(*buffer);
            let page = self.name(of.page.load(Ordering::Relaxed));
            let error = match done {
                Err(error) => Some(StorageError::Unreadable { page, error }),
                Ok(()) => {
                    let verified = self.view(*buffer).verify(page, self.stamp());
                    verified.err().map(|damage| StorageError::Corrupt { page, damage })
                }
            };
            match error {
                None => of.set_hold(Hold::Ready),
                Some(error) => self.read_failed(*buffer, error),
            }
            of.changed.wake_all();
        }
        self.freed.wake_all();
    }

    fn written(&self, buffers: &[u32], done: Result<(), VolumeError>) {
        if let Err(error) = done {
            lock(&self.failed).get_or_insert(error);
        }
        for buffer in buffers {
            let of = self.buffer(*buffer);
            if done.is_ok() {
                of.clean();
            }
            of.set_writing(false);
            of.changed.wake_all();
            self.unpin(*buffer);
        }
        self.freed.wake_all();
    }
}
