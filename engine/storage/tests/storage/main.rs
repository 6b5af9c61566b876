//! The storage engine on volumes that lose power: against a plain model, at every write boundary, and what it refuses.

mod crash;
mod disk;
#[cfg(not(feature = "mutations"))]
mod engine;
mod model;
mod world;
