//! What `dyad bench frontend` measures, and the target that it measures: one volume in memory behind NVMe/TCP.

mod target;

pub use target::{HOST_NQN, MemoryTarget, NQN, TargetError, VOLUME};
