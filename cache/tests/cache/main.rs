//! The cache on a pair of directors: against a flat model in virtual time, its slots, its policies, and its vault under every crash.

mod flat;
mod model;
mod policies;
mod slots;
mod vault;
mod world;
