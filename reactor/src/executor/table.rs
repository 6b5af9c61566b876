//! The table of all executors of this process. It is static, so a waker outlives its executor without counting.
//!
//! A slot's number means nothing but its place: scheduling never depends on it.

use super::slot::{Slot, WORD_BITS};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// Executors that may exist at once in one process.
pub const MAX_EXECUTORS: usize = 4096;
/// Tasks that one executor may have.
pub const MAX_TASKS: usize = 1024;

const WORDS: usize = MAX_TASKS / WORD_BITS;

/// A slot on cache lines of its own (pairs of lines, because processors fetch them so).
#[repr(align(128))]
struct Entry {
    slot: Slot<WORDS>,
    /// The eventfd that ends a sleep. Made for the first owner that sleeps, and kept for ever: a late waker must never
    /// write into an fd that means something else by now.
    alarm: OnceLock<EventFd>,
}

impl Entry {
    const fn new() -> Self {
        let slot = Slot {
            generation: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            ready: [const { AtomicU64::new(0) }; WORDS],
        };
        Self { slot, alarm: OnceLock::new() }
    }

    fn raise_alarm(&self) {
        if let Some(alarm) = self.alarm.get() {
            // Fails only when the counter is full, and then the sleeper is awake.
            let _ = alarm.write(1);
        }
    }
}

static TABLE: [Entry; MAX_EXECUTORS] = [const { Entry::new() }; MAX_EXECUTORS];
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
        let entry = &TABLE[self.slot];
        if entry.slot.wake(self.generation, self.task) {
            entry.raise_alarm();
        }
    }
}

/// Ends an executor's sleep, from any thread. Outlives the executor, and then does nothing that matters.
#[derive(Debug, Copy, Clone)]
pub(crate) struct Alarm {
    slot: usize,
}

impl Alarm {
    /// Ends the sleep, if there is one. What the caller published before is seen by the sleeper.
    pub(crate) fn raise(self) {
        let entry = &TABLE[self.slot];
        fence(Ordering::SeqCst);
        if entry.slot.must_raise_alarm() {
            entry.raise_alarm();
        }
    }

    /// What becomes readable when the alarm is raised.
    pub(crate) fn fd(self) -> &'static EventFd {
        TABLE[self.slot].alarm.get().expect("made with the first `Alarm` of this slot")
    }
}

/// An executor's hold on its slot, until [`release`](Self::release).
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
            .find_map(|slot| TABLE[slot].slot.claim().map(|generation| Self { slot, generation }))
            .unwrap_or_else(|| panic!("this process has {MAX_EXECUTORS} executors already, the most it may have"))
    }

    /// The alarm of this executor.
    pub(crate) fn alarm(&self) -> Result<Alarm, Errno> {
        let alarm = &TABLE[self.slot].alarm;
        if alarm.get().is_none() {
            let made = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            // Only the owner of the slot comes here, so nobody was faster.
            alarm.get_or_init(|| made);
        }
        Ok(Alarm { slot: self.slot })
    }

    /// This executor's thread is about to sleep; it must look for work once more after this.
    pub(crate) fn fall_asleep(&self) {
        TABLE[self.slot].slot.fall_asleep();
    }

    /// This executor's thread is awake.
    pub(crate) fn wake_up(&self) {
        TABLE[self.slot].slot.wake_up();
    }

    /// The name of a task of this executor.
    pub(crate) fn task(&self, task: usize) -> TaskId {
        debug_assert!(task < MAX_TASKS);
        TaskId { slot: self.slot, task, generation: self.generation }
    }

    /// Calls `found` with every task that became ready, lowest index first.
    pub(crate) fn take_ready(&self, tasks: usize, mut found: impl FnMut(usize)) {
        for word in 0..tasks.div_ceil(WORD_BITS) {
            let mut bits = TABLE[self.slot].slot.take(word);
            while bits != 0 {
                found(word * WORD_BITS + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// True if a task became ready since the last `take_ready`.
    pub(crate) fn any_ready(&self, tasks: usize) -> bool {
        TABLE[self.slot].slot.any_ready(tasks.div_ceil(WORD_BITS))
    }

    /// Gives the slot back, once: wakers of this executor's tasks have no effect any more.
    pub(crate) fn release(&self) {
        TABLE[self.slot].slot.release(self.generation);
    }
}
