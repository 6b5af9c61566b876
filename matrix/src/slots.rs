//! Tables of fixed capacity whose entries are named by numbers that are never used twice.
//!
//! A number is the place (low 16 bits) and how often the place was used before (high 16 bits). A place that has been
//! used 65536 times is retired, so that a number of long ago can never name something new.

/// A table of at most 65536 entries.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Place<T> {
    uses: u16,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// An empty table with room for `capacity` entries.
    pub(crate) fn new(capacity: u16) -> Self {
        Self {
            places: (0..capacity).map(|_| Place { uses: 0, value: None }).collect(),
            free: (0..capacity).rev().collect(),
        }
    }

    /// Puts `value` in and says how it is named, unless the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Option<u32> {
        let index = self.free.pop()?;
        let place = &mut self.places[usize::from(index)];
        place.value = Some(value);
        Some(u32::from(place.uses) << 16 | u32::from(index))
    }

    /// Takes the entry out.
    pub(crate) fn remove(&mut self, name: u32) -> Option<T> {
        let (index, uses) = split(name);
        let place = self.places.get_mut(usize::from(index)).filter(|place| place.uses == uses)?;
        let value = place.value.take()?;
        if let Some(uses) = place.uses.checked_add(1) {
            place.uses = uses;
            self.free.push(index);
        }
        Some(value)
    }

    /// The entry.
    pub(crate) fn get(&self, name: u32) -> Option<&T> {
        let (index, uses) = split(name);
        self.places.get(usize::from(index)).filter(|place| place.uses == uses)?.value.as_ref()
    }

    /// The entry, to be changed.
    pub(crate) fn get_mut(&mut self, name: u32) -> Option<&mut T> {
        let (index, uses) = split(name);
        self.places.get_mut(usize::from(index)).filter(|place| place.uses == uses)?.value.as_mut()
    }

    /// All entries with their names, in the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0_u32..)
            .zip(&self.places)
            .filter_map(|(index, place)| place.value.as_ref().map(|value| (u32::from(place.uses) << 16 | index, value)))
    }
}

/// Place and number of uses.
fn split(name: u32) -> (u16, u16) {
    let bytes = name.to_le_bytes();
    (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_used_twice() {
        let mut slots = Slots::new(2);
        let mut before = Vec::new();
        for round in 0..70_000 {
            let Some(name) = slots.insert(round) else { break };
            assert!(slots.get(name) == Some(&round) && !before.contains(&name));
            assert_eq!(slots.remove(name), Some(round));
            assert!(slots.get(name).is_none() && slots.get_mut(name).is_none() && slots.remove(name).is_none());
            if round % 5_000 == 0 {
                before.push(name);
            }
        }
        let last = slots.insert(1).expect("the second place is still fresh");
        assert_eq!(split(last), (1, 4464), "70000 = 65536 uses of place 0 + 4464 of place 1");
        assert_eq!(slots.insert(2), None);
    }

    #[test]
    fn what_is_full_says_so() {
        let mut slots = Slots::new(2);
        let (a, b) = (slots.insert('a').unwrap(), slots.insert('b').unwrap());
        assert_eq!(slots.insert('c'), None);
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(a, &'a'), (b, &'b')]);
    }
}
