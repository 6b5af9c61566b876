//! One buffer: a frame of the pool and what is known about the page in it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dyad_matrix::Memory;

use crate::error::StorageError;
use crate::ids::Lsn;
use crate::page::Page;
use crate::sync::{Event, lock};

/// What a buffer holds.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Hold {
    /// Nothing; it is on the free list, or in somebody's hand.
    Free = 0,
    /// A page that is being read.
    Pending = 1,
    /// A page.
    Ready = 2,
    /// Nothing: the read has failed, and those who waited for it have not all heard of it.
    Failed = 3,
}

/// References beyond these count no more.
const USES_MAX: u32 = 255;

/// A frame of the pool. What every look at a page needs comes first, in one line of the processor's cache.
#[repr(C, align(64))]
pub(super) struct Buffer {
    halves: [AtomicU64; 2],
    /// Held shortly, never across an await. Who holds it for writing may change the page, unless it is being written to the volume.
    latch: RwLock<()>,
    hold: AtomicU8,
    /// Page number; of what it holds.
    pub(super) page: AtomicU32,
    /// While it is not zero the buffer keeps its page.
    pub(super) pins: AtomicU32,
    /// References since the sweeps brought it to zero.
    uses: AtomicU32,
    /// Media may not have what is in it.
    dirty: AtomicBool,
    /// It is being written to the volume.
    writing: AtomicBool,
    /// While it is dirty: no later than the first record that media may miss.
    recovery: AtomicU64,
    failure: Mutex<Option<StorageError>>,
    pub(super) changed: Event,
}

impl Buffer {
    pub(super) fn new(halves: [u64; 2]) -> Self {
        Self {
            halves: halves.map(AtomicU64::new),
            latch: RwLock::new(()),
            hold: AtomicU8::new(Hold::Free as u8),
            page: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            uses: AtomicU32::new(0),
            dirty: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            recovery: AtomicU64::new(0),
            failure: Mutex::default(),
            changed: Event::default(),
        }
    }

    #[inline]
    pub(super) fn hold(&self) -> Hold {
        match self.hold.load(Ordering::Acquire) {
            1 => Hold::Pending,
            2 => Hold::Ready,
            3 => Hold::Failed,
            _ => Hold::Free,
        }
    }

    pub(super) fn set_hold(&self, hold: Hold) {
        self.hold.store(hold as u8, Ordering::Release);
    }

    /// Whoever gets true puts the buffer back on the free list: it held nothing, and nobody looks at it any more.
    pub(super) fn bury(&self) -> bool {
        let (failed, free) = (Hold::Failed as u8, Hold::Free as u8);
        self.hold.compare_exchange(failed, free, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn move_to(&self, halves: [u64; 2]) {
        for (here, there) in self.halves.iter().zip(halves) {
            here.store(there, Ordering::Release);
        }
    }

    #[inline]
    pub(super) fn view<'a>(&self, memory: &'a Memory) -> Page<'a> {
        let halves = [self.halves[0].load(Ordering::Acquire), self.halves[1].load(Ordering::Acquire)];
        Page::new(memory, halves).expect("buffers lie in their memory")
    }

    #[inline]
    pub(super) fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.latch.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.latch.write().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn refer(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < USES_MAX {
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// The sweep has come by.
    pub(super) fn age(&self) -> u32 {
        let uses = self.uses() / 4;
        self.uses.store(uses, Ordering::Relaxed);
        uses
    }

    pub(super) fn start_again(&self, hold: Hold, page: u32) {
        self.uses.store(0, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        *lock(&self.failure) = None;
        self.set_hold(hold);
    }

    pub(super) fn fail(&self, error: StorageError) {
        *lock(&self.failure) = Some(error);
        self.set_hold(Hold::Failed);
    }

    pub(super) fn failure(&self) -> Option<StorageError> {
        lock(&self.failure).clone()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Acquire)
    }

    /// The first record that media may miss, if any.
    pub(super) fn recovery(&self) -> Option<Lsn> {
        self.is_dirty().then(|| Lsn(self.recovery.load(Ordering::Acquire)))
    }

    /// Records from `lsn` on will change it; says whether it was clean.
    pub(super) fn soil(&self, lsn: Lsn) -> bool {
        let clean = !self.is_dirty();
        if clean {
            self.recovery.store(lsn.0, Ordering::Release);
            self.dirty.store(true, Ordering::Release);
        }
        clean
    }

    /// Media need not have it: nothing was changed after all, or it was written.
    pub(super) fn clean(&self) {
        self.dirty.store(false, Ordering::Release);
    }

    pub(super) fn set_writing(&self, writing: bool) {
        self.writing.store(writing, Ordering::Release);
    }
}
