//! Devices as directors use them: processes with shelves and directors that die.
//!
//! The test binary starts itself again for each role (module `process`).
#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

#[path = "../../../reactor/tests/allocations/mod.rs"]
mod allocations;
mod conformance;
mod cost;
mod group;
mod interop;
mod process;
mod qtest;
mod shelf;
mod volumes;
mod ways;
