//! Floor 5: what makes a director: pair membership, the registry, and the node that ties cache, link and port together.

pub mod membership;
pub mod node;
pub mod registry;
