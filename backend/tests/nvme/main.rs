//! Devices as directors use them: processes with shelves and directors that die.
//!
//! The test binary starts itself again for each role (module `process`).

mod conformance;
mod interop;
mod process;
mod shelf;
mod ways;
