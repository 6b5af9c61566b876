//! PCI functions in other processes: the vfio-user protocol 0.1 (libvfio-user's specification; the structures are VFIO's, `linux/vfio.h`), both ends.
//!
//! BAR 0 is a file that both processes map: doorbells and the MSI-X table are plain memory. DMA goes straight to the
//! client's memory, which it sends by file descriptor. So the I/O path has no system call while the server polls. When
//! the server is about to sleep it asks for doorbells (shadow doorbells, `EventIdx`), and a doorbell then also sends a
//! posted write of zero to INTMS, which changes nothing and wakes the server. Completions signal an eventfd while
//! vector 0 is unmasked in the MSI-X table.
//!
//! **Why not the crate `vfio_user` (0.1.7)**: its client waits without a bound and hides its socket, so neither
//! time-outs nor hang-ups can be had; it ignores errors of DMA map and unmap, and waits for ever for the rest of a
//! reply that is an error; its own server's reply to DMA unmap is longer than what its client reads. Its server blocks,
//! serves one client at a time per thread, cannot be stopped, and panics on a version message that is short or not
//! terminated. It is the judge instead: tests connect its client to our server, and our client to its server.
//!
//! Rooms: `wire` the messages; `socket` bytes and descriptors (the only unsafe code); `client` and its `questions`; `server`, one connection of one port.

mod client;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod questions;
pub(crate) mod server;
mod socket;
mod wire;

pub use client::{ConnectError, VfioUserFunction};
