//! Which track gives up its clean blocks first: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! What comes in waits in a *small* queue; what is not used again there leaves after one pass, so that a scan pushes nothing out that is in use. What
//! is used again moves to the *main* queue, where every use (up to three) buys another round. What left the small queue unused is remembered by name
//! only, as a *ghost*: if it comes back soon it goes to the main queue at once. Every step is O(1), and nothing is allocated after start.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

const NONE: u32 = u32::MAX;

/// Uses that count.
const USES_MAX: u8 = 3;

/// The small queue gets one place in so many.
const SMALL_SHARE: usize = 10;

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug, Copy, Clone)]
struct Link {
    queue: Option<Queue>,
    newer: u32,
    older: u32,
    uses: u8,
    name: u32,
}

#[derive(Debug, Copy, Clone)]
struct Ends {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl Ends {
    const EMPTY: Self = Self { newest: NONE, oldest: NONE, len: 0 };
}

/// The queues over places `0 .. capacity`.
#[derive(Debug)]
pub(crate) struct Replacement {
    links: Vec<Link>,
    small: Ends,
    main: Ends,
    /// Names of what left lately: where a name hashes to, that name or another.
    ghosts: Vec<u32>,
}

impl Replacement {
    /// Empty queues.
    #[must_use]
    pub(crate) fn new(capacity: usize) -> Self {
        let link = Link { queue: None, newer: NONE, older: NONE, uses: 0, name: 0 };
        Self { links: vec![link; capacity], small: Ends::EMPTY, main: Ends::EMPTY, ghosts: vec![0; capacity.max(1)] }
    }

    /// The place can give something up now; `key` is what it is for. Nothing happens if it already could.
    pub(crate) fn insert(&mut self, place: usize, key: &impl Hash) {
        if self.links[place].queue.is_some() {
            return;
        }
        // Zero stands for no ghost.
        let name = u32::try_from(FixedState::default().hash_one(key) >> 32).expect("half of 64 bits").max(1);
        let ghost = self.ghost(name);
        let returned = std::mem::take(&mut self.ghosts[ghost]) == name;
        self.links[place].name = name;
        self.links[place].uses = 0;
        self.push(place, if returned { Queue::Main } else { Queue::Small });
    }

    /// The place has nothing to give up any more.
    pub(crate) fn remove(&mut self, place: usize) {
        let Link { queue: Some(queue), newer, older, .. } = self.links[place] else { return };
        let ends = self.ends(queue);
        ends.len -= 1;
        if newer == NONE {
            ends.newest = older;
        }
        if older == NONE {
            ends.oldest = newer;
        }
        if newer != NONE {
            self.links[index(newer)].older = older;
        }
        if older != NONE {
            self.links[index(older)].newer = newer;
        }
        self.links[place].queue = None;
    }

    /// The place was used.
    pub(crate) fn touch(&mut self, place: usize) {
        let uses = &mut self.links[place].uses;
        *uses = (*uses + 1).min(USES_MAX);
    }

    /// Takes out the place that should give up what it has.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        loop {
            let small_first =
                self.small.len > 0 && (self.small.len > self.links.len() / SMALL_SHARE || self.main.len == 0);
            let oldest = if small_first { self.small.oldest } else { self.main.oldest };
            if oldest == NONE {
                return None;
            }
            let place = index(oldest);
            self.remove(place);
            let link = &mut self.links[place];
            match (small_first, link.uses) {
                // Used more than once: it has earned its place.
                (true, 2..) => {
                    link.uses = 0;
                    self.push(place, Queue::Main);
                }
                (true, _) => {
                    let name = link.name;
                    let ghost = self.ghost(name);
                    self.ghosts[ghost] = name;
                    return Some(place);
                }
                (false, 0) => return Some(place),
                (false, _) => {
                    link.uses -= 1;
                    self.push(place, Queue::Main);
                }
            }
        }
    }

    fn push(&mut self, place: usize, queue: Queue) {
        let number = u32::try_from(place).expect("places fit 32 bits");
        let newest = std::mem::replace(&mut self.ends(queue).newest, number);
        if newest == NONE {
            self.ends(queue).oldest = number;
        } else {
            self.links[index(newest)].newer = number;
        }
        self.ends(queue).len += 1;
        let link = &mut self.links[place];
        (link.queue, link.newer, link.older) = (Some(queue), NONE, newest);
    }

    fn ends(&mut self, queue: Queue) -> &mut Ends {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn ghost(&self, name: u32) -> usize {
        index(name) % self.ghosts.len()
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).expect("32 bits fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of `capacity` names; how many of the reads found theirs.
    fn hits(capacity: usize, reads: impl Iterator<Item = u64>) -> usize {
        let mut queues = Replacement::new(capacity);
        let mut names = vec![None; capacity];
        let mut hits = 0;
        for name in reads {
            if let Some(place) = names.iter().position(|held| *held == Some(name)) {
                queues.touch(place);
                hits += 1;
                continue;
            }
            let place = names.iter().position(Option::is_none).or_else(|| queues.pop()).expect("one gives up");
            names[place] = Some(name);
            queues.insert(place, &name);
        }
        hits
    }

    #[test]
    fn a_scan_pushes_nothing_out_that_is_in_use() {
        let hot = 0..50_u64;
        let warm = hot.clone().cycle().take(50 * 4);
        // Ten times the cache is read once, a few hot names in between.
        let scan = (0..1000_u64).flat_map(|n| [1000 + n, n % 50]);
        let found = hits(100, warm.chain(scan));
        assert!(found >= 150 + 980, "{found} of {} hot reads found", 150 + 1000);
    }

    #[test]
    fn whoever_comes_back_soon_stays() {
        let mut queues = Replacement::new(10);
        queues.insert(0, &"a");
        assert_eq!(queues.pop(), Some(0));
        queues.insert(0, &"a");
        for place in 1..5 {
            queues.insert(place, &place);
        }
        // The ghost went to the main queue; the small one, over its share, gives up first.
        assert_eq!([queues.pop(), queues.pop(), queues.pop()], [Some(1), Some(2), Some(3)]);
        assert_eq!([queues.pop(), queues.pop()], [Some(0), Some(4)]);
        assert_eq!(queues.pop(), None);
    }

    #[test]
    fn a_place_leaves_from_anywhere() {
        let mut queues = Replacement::new(4);
        for place in 0..4 {
            queues.insert(place, &place);
        }
        for place in [1, 3, 0] {
            queues.remove(place);
            queues.remove(place);
        }
        queues.insert(1, &1);
        assert_eq!([queues.pop(), queues.pop(), queues.pop()], [Some(2), Some(1), None]);
    }
}
