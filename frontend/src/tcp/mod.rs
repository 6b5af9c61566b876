//! NVMe/TCP, the target's side (NVMe/TCP Transport Specification 1.0): volumes under every host that has a network.
//!
//! - `parse`: PDUs from the host, found and checked; a pure function;
//! - `session`: one connection, sans-I/O: bytes in, PDUs out, and where the data of its commands belongs;
//! - `port`: the connections of a director on its reactor, and the lanes that do their commands.
//!
//! Data is received where it belongs and sent from where it lies: beside the kernel's own copy there is none, but for bytes
//! that a read of headers caught (matrix: `socket`). A malformed PDU costs its connection and nothing else.

pub mod parse;
mod port;
mod session;

pub use port::{TcpConfig, TcpCounters, TcpPort, TcpSource};
