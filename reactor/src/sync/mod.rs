//! Waiting places for the tasks of one executor: no locks, fixed capacity, first come first served.
//!
//! Invariants of all of them:
//! - memory is taken at construction; waiting and waking allocate nothing;
//! - at most [`MAX_TASKS`](crate::executor::MAX_TASKS) wait at one object at one time (one more is a panic);
//! - what a waiter was given is promised to it alone: nobody who comes later overtakes it;
//! - dropping any of the futures at any time loses nothing: what it was given goes to the next.

mod inbox;
mod keyed_locks;
mod permits;
mod replies;
mod signal;
mod waiters;

pub use inbox::{Full, Inbox, Next, Push};
pub use keyed_locks::{KeyGuard, KeyedLocks, Lock};
pub use permits::{Acquire, Permit, Permits};
pub use replies::{Pending, Replies, Ticket};
pub use signal::{Changed, Signal};

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod testing;
