//! The NVMe/TCP initiator (NVMe/TCP Transport Specification 1.0): volumes of arrays that are reached over a network.
//!
//! - `parse`: PDUs from the controller, found and checked; a pure function;
//! - `queue`: one connection, an NVMe queue: commands in flight, and their data from and to frames without a copy;
//! - `attach`: how a controller's admin queue and I/O queue come to be;
//! - `initiator`: controllers of one subsystem as a [`Volume`](crate::Volume), over whichever of them serves it.

mod attach;
mod initiator;
mod parse;
mod queue;

pub use attach::AttachError;
pub use initiator::{TcpInitiator, TcpInitiatorConfig, TcpInitiatorCounters, TcpInitiatorSource};
