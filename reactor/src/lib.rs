//! Floor 0. Everything that waits, waits here: the poll loop, the single-threaded executor with its lanes, timers,
//! clocks, seeded randomness and fixed-capacity waiting places.
//!
//! Invariants (DESIGN 2):
//! - one executor belongs to one thread; only wakers cross threads;
//! - all tasks are made before [`Executor::seal`]; afterwards nothing is spawned and nothing is allocated;
//! - logic reaches time through [`Clock`] and chance through [`Rng`], so the simulator can hand in virtual ones.

pub mod collections;
pub mod executor;
pub mod figures;
pub mod mutation;
pub mod reactor;
pub mod real_time;
pub mod ring;
pub mod rng;
pub mod sync;
pub mod time;
pub mod virtual_time;
mod wheel;

#[cfg(all(test, loom))]
mod loom_model;

pub use executor::{Elapsed, Executor, Fifo, Handle, Limits, Order, Shuffled, Sleep, Timeout};
pub use reactor::{Options, Reactor, ReactorError, Source, Stopper};
pub use real_time::BootClock;
pub use rng::{Rng, SeededRng};
pub use time::{Clock, Time};
pub use virtual_time::{DriftingClock, VirtualTime};
