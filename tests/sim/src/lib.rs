//! The array in virtual time: directors, devices, registry and hosts in one thread, from one seed.
//!
//! The code under test is the production code: cache, membership, node, port, host library, RAID group. What is simulated
//! is the world around it: time, the matrix (`dyad_matrix::sim`), devices (`dyad_backend::fake`) and the registry
//! (`dyad_director::registry::FakeRegistry`). Same seed, same run.
//!
//! - `kernel`: processes, the order in which their tasks run, and time; the processor costs nothing;
//! - `pair`: two directors with all that belongs to them;
//! - `faults`, `injector`: what is done to them, within which limits;
//! - `workload`, `checker`, `invariants`: hosts, what they may see, what must always be true;
//! - `run`: war, peace, and a last look.
//!
//! What it cannot see, and who looks there:
//! - memory ordering, of rings between processes and of wake-ups: loom (`dyad-reactor`), the `shm` provider's tests;
//! - back-pressure of kernels, processes that really die: the `shm` provider's tests and the demo;
//! - NVMe queues, controller resets, host identifiers: the devices here stand at the `Device` trait; the driver and the
//!   emulated controller have their own tests (`dyad-backend`);
//! - two reactors in one director, and anything between pairs: the node has one reactor, and there is no routing yet.

mod chance;
pub mod checker;
pub mod faults;
pub mod injector;
pub mod invariants;
pub mod kernel;
pub mod pair;
pub mod run;
pub mod timeline;
pub mod trap;
pub mod workload;

pub use run::{Failure, Outcome, SimOptions, run};
