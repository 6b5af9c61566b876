//! Timers: a hierarchical wheel (Varghese and Lauck 1987) with nanosecond slots and a fixed number of timers.
//!
//! Level `l` has 64 slots of `64^l` ns, so eleven levels span every 64-bit [`Time`]. A timer stands at the level of the
//! highest six-bit digit in which its deadline differs from the wheel's position. From this follow:
//! - inserting and freeing are O(1); a timer moves down at most ten times before it expires;
//! - in every level all occupied slots lie after the position's own slot, so nothing ever wraps, and the earliest timer is
//!   in the first occupied slot of the lowest occupied level;
//! - nothing is rounded: a timer never expires early, and [`Wheel::next_deadline`] is exact.

use crate::Time;

const DIGIT_BITS: u32 = 6;
const SLOTS: usize = 1 << DIGIT_BITS;
const LEVELS: usize = u64::BITS.div_ceil(DIGIT_BITS) as usize;

/// End of a list.
const NIL: u32 = u32::MAX;

/// Where an entry is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Place {
    /// On the free list.
    Free,
    /// In a slot of the wheel.
    Waiting,
    /// Expired; the owner of its key has not freed it yet.
    Expired,
}

#[derive(Debug)]
struct Entry<T> {
    deadline: Time,
    place: Place,
    value: Option<T>,
    prev: u32,
    next: u32,
}

/// A timer in the wheel. Whoever has it must [`free`](Wheel::free) it.
#[derive(Debug)]
#[must_use = "the timer is in use until it is freed"]
pub(crate) struct TimerKey(u32);

/// The wheel; each timer carries a `T`.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    position: Time,
    /// Per level, bit `s` is set while slot `s` has entries.
    occupied: [u64; LEVELS],
    /// Per level and slot, the first entry.
    heads: Box<[[u32; SLOTS]; LEVELS]>,
    entries: Box<[Entry<T>]>,
    free: u32,
    /// The earliest deadline, while known.
    earliest: Option<Time>,
}

impl<T> Wheel<T> {
    /// A wheel at `position` with room for `capacity` timers.
    ///
    /// # Panics
    /// If `capacity` is 2^32 - 1 or more.
    pub(crate) fn new(position: Time, capacity: usize) -> Self {
        let count = u32::try_from(capacity).ok().filter(|count| *count < NIL).expect("fewer than 2^32 - 1 timers");
        let entries = (0..count)
            .map(|index| Entry {
                deadline: Time::ZERO,
                place: Place::Free,
                value: None,
                prev: NIL,
                next: if index + 1 == count { NIL } else { index + 1 },
            })
            .collect();
        let heads = Box::new([[NIL; SLOTS]; LEVELS]);
        Self { position, occupied: [0; LEVELS], heads, entries, free: if count == 0 { NIL } else { 0 }, earliest: None }
    }

    /// The latest time given to [`expire`](Self::expire): every timer due by then has expired.
    pub(crate) fn position(&self) -> Time {
        self.position
    }

    /// Timers that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Starts a timer; `None` if all are in use.
    ///
    /// # Panics
    /// If `deadline` is not after the position.
    pub(crate) fn insert(&mut self, deadline: Time, value: T) -> Option<TimerKey> {
        assert!(deadline > self.position, "a timer is for the future: {deadline:?} at {:?}", self.position);
        let index = self.free;
        if index == NIL {
            return None;
        }
        let entry = &mut self.entries[index as usize];
        debug_assert_eq!(entry.place, Place::Free);
        self.free = entry.next;
        entry.deadline = deadline;
        entry.value = Some(value);
        self.link(index);
        if self.earliest.is_some_and(|earliest| deadline < earliest) {
            self.earliest = Some(deadline);
        }
        Some(TimerKey(index))
    }

    /// What the timer carries.
    ///
    /// # Panics
    /// If the timer has expired.
    pub(crate) fn get_mut(&mut self, key: &TimerKey) -> &mut T {
        self.entries[key.0 as usize].value.as_mut().expect("the timer still waits")
    }

    /// Stops the timer if it still waits, and frees its place.
    #[expect(clippy::needless_pass_by_value, reason = "the key must not be used again")]
    pub(crate) fn free(&mut self, key: TimerKey) {
        let index = key.0;
        match self.entries[index as usize].place {
            Place::Free => unreachable!("a key is freed once"),
            Place::Expired => {}
            Place::Waiting => {
                self.unlink(index);
                if self.earliest == Some(self.entries[index as usize].deadline) {
                    self.earliest = None;
                }
            }
        }
        let entry = &mut self.entries[index as usize];
        entry.place = Place::Free;
        entry.value = None;
        entry.next = self.free;
        self.free = index;
    }

    /// The earliest deadline, exactly; `None` if no timer waits.
    pub(crate) fn next_deadline(&mut self) -> Option<Time> {
        if self.earliest.is_none() {
            let (level, slot) = self.first_occupied()?;
            let mut earliest = Time::FAR_FUTURE;
            let mut index = self.heads[level][slot];
            while index != NIL {
                let entry = &self.entries[index as usize];
                earliest = earliest.min(entry.deadline);
                index = entry.next;
            }
            self.earliest = Some(earliest);
        }
        self.earliest
    }

    /// Moves the position to `now` and gives every timer due by then to `due`.
    ///
    /// An earlier `now` than the position changes nothing.
    pub(crate) fn expire(&mut self, now: Time, mut due: impl FnMut(T)) {
        if now <= self.position {
            return;
        }
        while let Some((level, slot)) = self.first_occupied() {
            let start = slot_start(self.position, level, slot);
            if start > now {
                // No occupied slot begins by `now`, so every timer keeps its level and slot when the position moves there.
                break;
            }
            self.position = start;
            let mut index = std::mem::replace(&mut self.heads[level][slot], NIL);
            self.occupied[level] &= !(1 << slot);
            self.earliest = None;
            while index != NIL {
                let entry = &mut self.entries[index as usize];
                let next = entry.next;
                if entry.deadline <= now {
                    entry.place = Place::Expired;
                    due(entry.value.take().expect("a waiting timer has its value"));
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
        self.position = now;
    }

    /// The lowest level that has entries, and its first slot that has.
    fn first_occupied(&self) -> Option<(usize, usize)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        Some((level, self.occupied[level].trailing_zeros() as usize))
    }

    /// Puts an entry into the slot of its deadline.
    fn link(&mut self, index: u32) {
        let (level, slot) = place_of(self.position, self.entries[index as usize].deadline);
        let head = std::mem::replace(&mut self.heads[level][slot], index);
        self.occupied[level] |= 1 << slot;
        if head != NIL {
            self.entries[head as usize].prev = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.place = Place::Waiting;
        entry.prev = NIL;
        entry.next = head;
    }

    /// Takes an entry out of its slot.
    fn unlink(&mut self, index: u32) {
        let Entry { deadline, prev, next, .. } = self.entries[index as usize];
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
        if prev == NIL {
            let (level, slot) = place_of(self.position, deadline);
            debug_assert_eq!(self.heads[level][slot], index);
            self.heads[level][slot] = next;
            if next == NIL {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.entries[prev as usize].next = next;
        }
    }
}

/// The level and slot of `deadline`, seen from `position`.
fn place_of(position: Time, deadline: Time) -> (usize, usize) {
    let differing = position.as_nanos() ^ deadline.as_nanos();
    // Equal only while `expire` stands on the deadline itself, and then the entry expires.
    let level = differing.checked_ilog2().unwrap_or(0) / DIGIT_BITS;
    let digit = (deadline.as_nanos() >> (level * DIGIT_BITS)) % SLOTS as u64;
    (level as usize, usize::try_from(digit).expect("a digit is below 64"))
}

/// The first nanosecond of a slot that lies ahead of `position`.
fn slot_start(position: Time, level: usize, slot: usize) -> Time {
    let shift = u32::try_from(level).expect("a level is below 11") * DIGIT_BITS;
    let above = position.as_nanos().checked_shr(shift + DIGIT_BITS).unwrap_or(0);
    let above = above.checked_shl(shift + DIGIT_BITS).unwrap_or(0);
    Time::from_nanos(above | (slot as u64) << shift)
}

#[cfg(test)]
mod tests;
