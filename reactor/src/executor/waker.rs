//! Wakers without `Arc`: the name of the task is packed into the data word of the `RawWaker`.
//!
//! `word = slot (12 bits) | task (10 bits) << 12 | generation (42 bits) << 22`. The word is never dereferenced: it is looked
//! up in a static table, so a waker may be cloned, sent, used and dropped anywhere, and outlive its executor.
#![allow(unsafe_code)] // `RawWaker` has no safe constructor for wakers that own nothing.

use super::table::{MAX_EXECUTORS, MAX_TASKS, TaskId};
use std::task::{RawWaker, RawWakerVTable, Waker};

const SLOT_BITS: u32 = MAX_EXECUTORS.ilog2();
const TASK_BITS: u32 = MAX_TASKS.ilog2();
const GENERATION_BITS: u32 = u64::BITS - SLOT_BITS - TASK_BITS;

const _: () = assert!(size_of::<*const ()>() == size_of::<u64>(), "the packed name needs a 64-bit pointer");
const _: () = assert!(MAX_EXECUTORS.is_power_of_two() && MAX_TASKS.is_power_of_two());

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, drop);

/// The waker of `task`.
pub(crate) fn waker(task: TaskId) -> Waker {
    // SAFETY: the functions of `VTABLE` are thread-safe and never dereference the data pointer; they only unpack its
    // address, which every clone shares. Nothing is owned, so there is nothing to free twice or too early.
    unsafe { Waker::from_raw(RawWaker::new(pack(task), &VTABLE)) }
}

fn pack(task: TaskId) -> *const () {
    assert!(task.generation >> GENERATION_BITS == 0, "a slot had 2^42 owners");
    let generation = usize::try_from(task.generation).expect("pointers have 64 bits");
    let word = task.slot | task.task << SLOT_BITS | generation << (SLOT_BITS + TASK_BITS);
    std::ptr::without_provenance(word)
}

fn unpack(data: *const ()) -> TaskId {
    let word = data.addr();
    TaskId {
        slot: word % MAX_EXECUTORS,
        task: (word >> SLOT_BITS) % MAX_TASKS,
        generation: (word >> (SLOT_BITS + TASK_BITS)) as u64,
    }
}

fn clone(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake(data: *const ()) {
    unpack(data).wake();
}

fn drop(_: *const ()) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_packing() {
        for id in [
            TaskId { slot: 0, task: 0, generation: 1 },
            TaskId { slot: MAX_EXECUTORS - 1, task: MAX_TASKS - 1, generation: (1 << GENERATION_BITS) - 1 },
            TaskId { slot: 17, task: 300, generation: 99 },
        ] {
            assert_eq!(unpack(pack(id)), id);
        }
    }
}
