//! loom tries every interleaving of the two protocols between threads: the slot (wake-ups and sleep) and the ring.
//!
//! The lines under test are the production files themselves, compiled a second time over loom's atomics.
//! `RUSTFLAGS="--cfg loom" cargo test -p dyad-reactor --release loom` runs them.

#![allow(unreachable_pub)] // The production files are public elsewhere.

/// Runs `test` in every interleaving with at most three preemptions. Bugs of this kind need two (and without the bound the
/// larger tests would take hours).
fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

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
