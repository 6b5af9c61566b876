//! The cache on a pair of directors: against a flat model in virtual time, its slots, its policies, its vault under every crash, and what it costs.
#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

#[path = "../../../reactor/tests/allocations/mod.rs"]
mod allocations;
mod cost;
mod flat;
mod model;
mod policies;
mod slots;
mod vault;
mod world;
