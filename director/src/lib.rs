//! Floor 5: what makes a director: pair membership, the registry, the node that ties cache, link and port together, and
//! the processes and commands around it.

pub mod bench;
pub mod catalog;
pub mod config;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod fabric;
pub mod function;
pub mod layout;
pub mod membership;
pub mod node;
pub mod process;
pub mod registry;
pub mod takeover;
pub mod trial;
pub mod up;
