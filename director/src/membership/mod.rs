//! Who serves (PROTOCOLS 2, 4): the pair's record, the messages between partners, and the machine that decides.
//!
//! [`machine::Machine`] is sans-I/O: `step(now, event, &mut actions)`. What its actions do is in `crate::node`.

pub mod machine;
pub mod message;
pub mod record;

#[cfg(test)]
mod tests;

pub use machine::{Action, Event, Machine, Timing};
pub use message::PeerMessage;
pub use record::{DirectorId, Incarnation, PairRecord, PairState};
