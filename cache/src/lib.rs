//! Floor 3. The write cache that two directors mirror: an acknowledged write is in the memory of both (PROTOCOLS 3).
//!
//! The home of a group runs [`Cache`]: frames, slots, commit, destage. Its partner runs [`MirrorArea`]: it checks and remembers what the home wrote
//! into its memory, and hands it over when it becomes the home itself. [`Vault`] is where dirty blocks survive total loss of power. Who may serve is
//! decided elsewhere and read from [`Authority`].

pub mod address;
pub mod authority;
pub mod bench;
pub mod counters;
pub mod home;
pub mod link;
pub mod mirror;
mod ordered;
pub mod outcomes;
pub mod record;
mod replacement;
pub mod slots;
pub mod store;
mod streams;
pub mod vault;

pub use address::{Epoch, TrackAddress, TrackRange, Version, VolumeId};
pub use authority::{Authority, Regime};
pub use home::{Cache, CacheConfig, CacheError, ConfigError, Policy, VolumePlace, WriteCommand};
pub use link::MirrorLink;
pub use mirror::MirrorArea;
pub use store::Store;
pub use vault::Vault;
