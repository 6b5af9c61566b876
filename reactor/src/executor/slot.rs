//! What other threads touch of an executor: the ready bits of its tasks, and the word that says whether its thread sleeps.
//!
//! Only protocol stands here, over `super::atomic`, so that loom can run the same lines over its own atomics.
//!
//! Invariants:
//! - `generation` is odd while an executor has the slot and even while nobody has it; it only grows;
//! - a bit set by [`Slot::wake`] is seen by the next [`Slot::take`] of its word, with all that the waker's thread
//!   wrote before;
//! - the sleeper says `asleep`, makes a full fence, then looks; whoever brings something publishes it, then (in one total
//!   order with the sleeper) looks at `asleep`. So either the sleeper finds it, or the other raises the alarm;
//! - every access that changes a word is a read-modify-write, so the changes of a word are one chain, whoever makes them
//!   (where a store would do, too: loom orders stores beside read-modify-writes less than the memory model does);
//! - a waker that races with the end of its executor may set a bit, or raise the alarm, for the slot's next owner: one spurious
//!   poll or wake-up, which everybody must bear anyway.

use super::atomic::{AtomicBool, AtomicU64, Ordering, fence, order_before_looking};

/// Bits per ready word.
pub(crate) const WORD_BITS: usize = 64;

/// The public side of one executor.
#[derive(Debug)]
pub(crate) struct Slot<const WORDS: usize> {
    pub(crate) generation: AtomicU64,
    pub(crate) asleep: AtomicBool,
    pub(crate) ready: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Slot<WORDS> {
    /// Takes a free slot: the owner's generation, or `None` if somebody has it.
    pub(crate) fn claim(&self) -> Option<u64> {
        let free = self.generation.load(Ordering::Relaxed);
        if free % 2 == 1 {
            return None;
        }
        self.generation.compare_exchange(free, free + 1, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        for word in &self.ready {
            word.swap(0, Ordering::AcqRel);
        }
        self.asleep.swap(false, Ordering::AcqRel);
        Some(free + 1)
    }

    /// Gives the slot back; wakers of `generation` have no effect any more.
    pub(crate) fn release(&self, generation: u64) {
        let before = self.generation.swap(generation + 1, Ordering::AcqRel);
        assert_eq!(before, generation, "only its owner releases a slot");
    }

    /// Marks `task` ready, if `generation` still has the slot; true if the caller must raise the alarm.
    #[must_use]
    pub(crate) fn wake(&self, generation: u64, task: usize) -> bool {
        if self.generation.load(Ordering::Acquire) != generation {
            return false;
        }
        self.ready[task / WORD_BITS].fetch_or(1 << (task % WORD_BITS), Ordering::SeqCst);
        order_before_looking();
        self.must_raise_alarm()
    }

    /// After a publication that is sequentially consistent or followed by a full fence: true if the owner sleeps and
    /// nobody else has raised the alarm for this sleep.
    #[must_use]
    pub(crate) fn must_raise_alarm(&self) -> bool {
        self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst)
    }

    /// The owner is about to sleep; it must look for work once more after this.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.swap(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake.
    pub(crate) fn wake_up(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Takes the ready bits of one word.
    pub(crate) fn take(&self, word: usize) -> u64 {
        if self.ready[word].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.ready[word].swap(0, Ordering::AcqRel)
    }

    /// True if any of the first `words` words has a ready bit.
    pub(crate) fn any_ready(&self, words: usize) -> bool {
        self.ready[..words].iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }
}
