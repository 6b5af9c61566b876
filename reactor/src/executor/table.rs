//! The table of all executors of this process. It is static, so a waker outlives its executor without counting.
//!
//! A slot's number means nothing but its place: scheduling never depends on it.

use super::slot::{Slot, WORD_BITS};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Executors that may exist at once in one process.
pub const MAX_EXECUTORS: usize = 4096;
/// Tasks that one executor may have.
pub const MAX_TASKS: usize = 1024;

const WORDS: usize = MAX_TASKS / WORD_BITS;

/// A slot on cache lines of its own (two, because processors fetch lines in pairs).
#[repr(align(128))]
struct Entry(Slot<WORDS>);

static TABLE: [Entry; MAX_EXECUTORS] =
    [const { Entry(Slot { generation: AtomicU64::new(0), ready: [const { AtomicU64::new(0) }; WORDS] }) };
        MAX_EXECUTORS];
/// Where the next search for a free slot starts.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Names a task of this process, for ever: the slot, its owner's generation and the task's index.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct TaskId {
    pub(crate) slot: usize,
    pub(crate) task: usize,
    pub(crate) generation: u64,
}

impl TaskId {
    /// Marks the task ready; nothing happens if its executor is gone. Any thread may call it.
    pub(crate) fn wake(self) {
        TABLE[self.slot].0.wake(self.generation, self.task);
    }
}

/// An executor's hold on its slot.
#[derive(Debug)]
pub(crate) struct Seat {
    slot: usize,
    generation: u64,
}

impl Seat {
    /// Takes any free slot.
    ///
    /// # Panics
    /// If [`MAX_EXECUTORS`] exist already.
    pub(crate) fn take() -> Self {
        let start = NEXT.fetch_add(1, Ordering::Relaxed);
        (0..MAX_EXECUTORS)
            .map(|step| start.wrapping_add(step) % MAX_EXECUTORS)
            .find_map(|slot| TABLE[slot].0.claim().map(|generation| Self { slot, generation }))
            .unwrap_or_else(|| panic!("this process has {MAX_EXECUTORS} executors already, the most it may have"))
    }

    /// The name of a task of this executor.
    pub(crate) fn task(&self, task: usize) -> TaskId {
        debug_assert!(task < MAX_TASKS);
        TaskId { slot: self.slot, task, generation: self.generation }
    }

    /// Calls `found` with every task that became ready, lowest index first.
    pub(crate) fn take_ready(&self, tasks: usize, mut found: impl FnMut(usize)) {
        for word in 0..tasks.div_ceil(WORD_BITS) {
            let mut bits = TABLE[self.slot].0.take(word);
            while bits != 0 {
                found(word * WORD_BITS + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// True if a task became ready since the last `take_ready`.
    pub(crate) fn any_ready(&self, tasks: usize) -> bool {
        TABLE[self.slot].0.any_ready(tasks.div_ceil(WORD_BITS))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TABLE[self.slot].0.release(self.generation);
    }
}
