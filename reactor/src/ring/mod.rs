//! Bounded rings between threads: one sender, one receiver, each of them a task of some executor (ours or any other).
//!
//! The queue is wait-free (`rtrb`): a thread that is preempted in the middle of a push or a pop holds up nobody. Whoever finds it
//! empty or full leaves its waker and looks again before it waits; whoever changed it wakes the other side. An end that is
//! dropped says so; what was sent before still arrives.
//!
//! A wake-up costs a system call only if the other side's reactor sleeps.

mod ends;

/// What a ring is made of; the loom model has others.
mod parts {
    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use rtrb::{Consumer, Producer};
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};

    /// The two ends of a queue for `capacity` items.
    pub(super) fn queue<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
        rtrb::RingBuffer::new(capacity)
    }
}

pub use ends::{Gone, Receiver, Receiving, Sender, Sending, ring};

#[cfg(test)]
mod tests;
