//! The array in virtual time: directors, devices, registry and hosts in one thread, from one seed.
//!
//! The code under test is the production code: cache, membership, node, port, host library, RAID group. What is simulated
//! is the world around it: time, the matrix (`dyad_matrix::sim`), devices (`dyad_backend::fake`) and the registry
//! (`dyad_director::registry::FakeRegistry`). Same seed, same run.
//!
//! What it cannot see: memory ordering of rings and kernel back-pressure (the `shm` provider's tests), the NVMe driver and
//! the emulated controller (their own tests; the devices here stand at the `Device` trait), and anything that needs two
//! reactors in one director.

pub mod array;
pub mod checker;
pub mod faults;
pub mod kernel;
pub mod run;
pub mod workload;

pub use run::{Failure, Outcome, SimOptions, run};
