//! The array in virtual time: directors, devices, registry and hosts in one thread, from one seed.
//!
//! The code under test is the production code: cache, membership, node, port, host library, RAID group. What is simulated
//! is the world around it: time, the matrix (`dyad_matrix::sim`), devices (`dyad_backend::fake`) and the registry
//! (`dyad_director::registry::FakeRegistry`). Same seed, same run.
//!
//! - `kernel`: processes, the order in which their tasks run, and time;
//! - `pair`: two directors with all that belongs to them;
//! - `faults`, `injector`, `trap`: what is done to them, within which limits, at which moments;
//! - `workload`, `checker`, `invariants`: hosts, what they may see, what must always be true;
//! - `database`: the storage engine on a pair, instead of hosts;
//! - `run`: war, peace, and a last look.
//!
//! The processor costs nothing and devices take a fixed time and some jitter, so no figure about bandwidth comes from here.
//!
//! A seed that failed once stays in `tests/sim.rs` under the name of what it found. `dyad sim --seed N` tells its story.
//!
//! What it cannot see, and who looks there:
//! - memory ordering, of rings between processes and of wake-ups: loom (`dyad-reactor`, `dyad-matrix`);
//! - back-pressure of kernels, processes that really die: the tests of the `shm` and `tcp` providers, and the demo;
//! - NVMe queues, controller resets with a new Host Identifier, corruption: the devices here stand at the `Device` trait; the
//!   driver and the emulated controller have their own tests (`dyad-backend`);
//! - two reactors in one director with delayed rings between them, and anything between pairs: a node has one reactor, and
//!   there is no routing yet; which other faults are missing stands in `faults`.

mod chance;
pub mod checker;
pub mod database;
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
