//! A set of places, ordered by a key, that never allocates after it was made.
//!
//! A treap (Seidel and Aragon, "Randomized Search Trees", 1996): a search tree by key and a heap by priority. The priority of a place is a fixed
//! scramble of its number, so the shape depends only on what is in it: O(log n) expected for every step.

const NONE: u32 = u32::MAX;

#[derive(Debug, Copy, Clone)]
struct Node<K> {
    key: K,
    less: u32,
    more: u32,
}

/// Places `0 .. capacity`, each in the set or not, in the order of their keys.
#[derive(Debug)]
pub(crate) struct OrderedPlaces<K> {
    nodes: Vec<Option<Node<K>>>,
    root: u32,
}

impl<K: Copy + Ord> OrderedPlaces<K> {
    /// An empty set.
    ///
    /// # Panics
    /// If `capacity` does not fit 32 bits.
    #[must_use]
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(u32::try_from(capacity).is_ok_and(|capacity| capacity < NONE), "{capacity} places");
        Self { nodes: (0..capacity).map(|_| None).collect(), root: NONE }
    }

    /// Whether `place` is in the set.
    #[must_use]
    pub(crate) fn contains(&self, place: usize) -> bool {
        self.nodes[place].is_some()
    }

    /// Adds `place` with a key that no other place in the set has. Nothing happens if it is in the set.
    pub(crate) fn insert(&mut self, place: usize, key: K) {
        if self.contains(place) {
            return;
        }
        let (less, more) = self.split(self.root, key);
        self.nodes[place] = Some(Node { key, less: NONE, more: NONE });
        let alone = u32::try_from(place).expect("places fit 32 bits");
        let left = self.join(less, alone);
        self.root = self.join(left, more);
    }

    /// Takes `place` out. Nothing happens if it is not in the set.
    pub(crate) fn remove(&mut self, place: usize) {
        let Some(gone) = self.nodes[place] else { return };
        let joined = self.join(gone.less, gone.more);
        let gone_place = u32::try_from(place).expect("places fit 32 bits");
        if self.root == gone_place {
            self.root = joined;
        } else {
            let mut at = self.root;
            loop {
                let node = self.node_mut(at);
                let next = if gone.key < node.key { &mut node.less } else { &mut node.more };
                if *next == gone_place {
                    *next = joined;
                    break;
                }
                at = *next;
            }
        }
        self.nodes[place] = None;
    }

    /// The place with the least key that is not less than `from`.
    #[must_use]
    pub(crate) fn first_from(&self, from: K) -> Option<usize> {
        let (mut at, mut found) = (self.root, None);
        while at != NONE {
            let node = self.node(at);
            if node.key < from {
                at = node.more;
            } else {
                found = Some(index(at));
                at = node.less;
            }
        }
        found
    }

    /// The place with the least key.
    #[must_use]
    pub(crate) fn first(&self) -> Option<usize> {
        let (mut at, mut found) = (self.root, None);
        while at != NONE {
            found = Some(index(at));
            at = self.node(at).less;
        }
        found
    }

    /// Two trees: keys less than `key`, and the others.
    fn split(&mut self, tree: u32, key: K) -> (u32, u32) {
        if tree == NONE {
            return (NONE, NONE);
        }
        let Node { key: at, less, more } = *self.node(tree);
        if at < key {
            let (left, right) = self.split(more, key);
            self.node_mut(tree).more = left;
            (tree, right)
        } else {
            let (left, right) = self.split(less, key);
            self.node_mut(tree).less = right;
            (left, tree)
        }
    }

    /// One tree of two, where all keys of `less` are less than those of `more`.
    fn join(&mut self, less: u32, more: u32) -> u32 {
        if less == NONE {
            return more;
        }
        if more == NONE {
            return less;
        }
        if priority(less) > priority(more) {
            let rest = self.node(less).more;
            let joined = self.join(rest, more);
            self.node_mut(less).more = joined;
            less
        } else {
            let rest = self.node(more).less;
            let joined = self.join(less, rest);
            self.node_mut(more).less = joined;
            more
        }
    }

    fn node(&self, place: u32) -> &Node<K> {
        self.nodes[index(place)].as_ref().expect("the tree names places that are in it")
    }

    fn node_mut(&mut self, place: u32) -> &mut Node<K> {
        self.nodes[index(place)].as_mut().expect("the tree names places that are in it")
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).expect("32 bits fit")
}

/// Different for different places: multiplication by an odd number and shifts can be undone.
fn priority(place: u32) -> u32 {
    let mixed = (place ^ (place >> 16)).wrapping_mul(0x7feb_352d);
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x846c_a68b);
    mixed ^ (mixed >> 16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dyad_reactor::{Rng, SeededRng};

    use super::*;

    #[test]
    fn it_is_a_sorted_map_of_keys_to_places() {
        let mut rng = SeededRng::new(5);
        let mut places = OrderedPlaces::new(200);
        let mut model = BTreeMap::new();
        let mut keys = [None; 200];
        for _ in 0..20_000 {
            let place = usize::try_from(rng.below(200)).unwrap();
            match keys[place].take() {
                Some(key) => {
                    places.remove(place);
                    model.remove(&key);
                }
                None => {
                    let key = rng.below(1 << 40);
                    if model.contains_key(&key) {
                        continue;
                    }
                    keys[place] = Some(key);
                    places.insert(place, key);
                    places.insert(place, key);
                    model.insert(key, place);
                }
            }
            let from = rng.below(1 << 40);
            assert_eq!(places.first_from(from), model.range(from..).next().map(|(_, place)| *place));
            assert_eq!(places.first(), model.values().next().copied());
            assert_eq!(places.contains(place), keys[place].is_some());
        }
    }
}
