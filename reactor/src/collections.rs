//! Maps and sets whose iteration order depends only on what was done to them, never on the process.
#![expect(clippy::disallowed_types, reason = "this is the room that gives the standard maps a fixed hasher")]

use foldhash::fast::FixedState;
use std::hash::Hash;

/// The standard hash map with a fixed hasher.
pub type FixedMap<K, V> = std::collections::HashMap<K, V, FixedState>;

/// The standard hash set with a fixed hasher.
pub type FixedSet<K> = std::collections::HashSet<K, FixedState>;

/// A map that never allocates while it holds at most `capacity` entries.
///
/// The table gets twice the room: when removed entries have used up its free places, a table that is at most half full
/// is tidied in place instead of being replaced.
#[must_use]
pub fn fixed_map<K: Eq + Hash, V>(capacity: usize) -> FixedMap<K, V> {
    FixedMap::with_capacity_and_hasher(2 * capacity + 2, FixedState::default())
}

/// A set that never allocates while it holds at most `capacity` keys.
#[must_use]
pub fn fixed_set<K: Eq + Hash>(capacity: usize) -> FixedSet<K> {
    FixedSet::with_capacity_and_hasher(2 * capacity + 2, FixedState::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_depends_on_history_alone() {
        let keys = |_| {
            let mut map = fixed_map(100);
            map.extend((0..100_u64).map(|key| (key * 7919, key)));
            map.remove(&7919);
            map.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(keys(1), keys(2));
    }
}
