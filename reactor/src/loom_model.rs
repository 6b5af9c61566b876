//! loom tries every interleaving of the two protocols between threads: the slot (wake-ups and sleep) and the ring.
//!
//! The lines under test are the production files themselves, compiled a second time over loom's atomics.
//! `RUSTFLAGS="--cfg loom" cargo test -p dyad-reactor --release loom` runs them.

/// The slot over loom's atomics.
mod executor {
    mod atomic {
        pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

        /// loom gives sequentially consistent accesses no more than acquire and release, so here the order that they have
        /// in truth must come from a fence.
        pub(crate) fn order_before_looking() {
            fence(Ordering::SeqCst);
        }
    }

    #[path = "../../executor/slot.rs"]
    mod slot;

    mod tests;
}

/// The ring over a queue and wakers made of loom's parts.
mod ring {
    mod parts;

    #[path = "../../ring/ends.rs"]
    mod ends;

    mod tests;
}
