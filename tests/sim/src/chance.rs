//! Chance, as the simulator draws it.

use std::time::Duration;

use dyad_reactor::{Rng, SeededRng};

/// A place below `count`; zero if there is none.
pub(crate) fn place(rng: &mut SeededRng, count: usize) -> usize {
    if count == 0 {
        return 0;
    }
    usize::try_from(rng.below(count as u64)).expect("below a count")
}

/// One of these.
pub(crate) fn one_of<T: Copy>(rng: &mut SeededRng, of: &[T]) -> T {
    of[place(rng, of.len())]
}

/// Nothing to `longest`.
pub(crate) fn up_to(rng: &mut SeededRng, longest: Duration) -> Duration {
    Duration::from_nanos(rng.below(u64::try_from(longest.as_nanos()).expect("short") + 1))
}
