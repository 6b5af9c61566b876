//! Floor 1. The VI Architecture 1.0 (Compaq, Intel, Microsoft 1997) in Rust: memory that peers may reach, virtual
//! interfaces with work queues, completion queues, connections, and the providers that implement them.
//!
//! Logic above sees one trait, [`Provider`]; which transport lies behind it is decided where the process starts.

pub mod bench;
pub mod class;
pub mod conformance;
pub mod crossover;
pub mod endpoint;
pub mod exchange;
pub mod frames;
pub mod memory;
pub mod provider;
pub mod shm;
pub mod sim;
pub mod socket;
pub mod stream;
pub mod tcp;

mod completion;
mod descriptor;
mod pieces;
mod regions;
mod slots;
mod vi_state;
mod work_items;

pub use memory::{Memory, MemoryId, Segment};
pub use provider::Provider;
