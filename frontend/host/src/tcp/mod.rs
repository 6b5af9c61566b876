//! The NVMe/TCP initiator (NVMe/TCP Transport Specification 1.0): volumes of arrays that are reached over a network.
//!
//! - `parse`: PDUs from the controller, found and checked; a pure function;
//! - `queue`: one connection, an NVMe queue: commands in flight, and their data from and to frames without a copy;
//! - `initiator`: an admin queue and an I/O queue as a [`Volume`](crate::Volume).

mod initiator;
mod parse;
mod queue;

pub use initiator::{AttachError, TcpInitiator, TcpInitiatorConfig, TcpInitiatorSource};
