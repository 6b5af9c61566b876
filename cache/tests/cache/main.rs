//! The cache on a pair of directors: against a flat model in virtual time.

mod flat;
mod model;
mod world;
