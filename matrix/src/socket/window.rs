//! The few bytes of a connection that are read before it is known what they are.
//!
//! A read asks for as many bytes as the next header needs. While messages without data come one after the other it asks for
//! more and more, so that a burst of them is fetched in one call; the first message with data brings it back, so that data is
//! received where it belongs. What of it was caught in the window all the same is copied, and counted, by whoever takes it.

/// Holds the longest header twice over, and bursts of commands.
const CAPACITY: usize = 8192;
/// What a read asks for at most: the rest is room for a header that was cut.
const GOAL_MAX: usize = CAPACITY / 2;

/// Bytes that were read and not dealt with yet.
#[derive(Debug)]
pub struct Window {
    bytes: Box<[u8; CAPACITY]>,
    start: usize,
    end: usize,
    goal: usize,
    /// What a read asks for at least.
    goal_min: usize,
}

impl Window {
    /// Empty. Reads ask for `header` bytes or more: what most messages begin with.
    ///
    /// # Panics
    /// If that is more than 4 KiB.
    #[must_use]
    pub fn new(header: usize) -> Self {
        assert!(header <= GOAL_MAX, "a header of {header} bytes");
        Self { bytes: Box::new([0; CAPACITY]), start: 0, end: 0, goal: header, goal_min: header }
    }

    /// What is here.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `len` bytes are dealt with.
    ///
    /// # Panics
    /// If they are not here.
    pub fn consume(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "bytes that are not here were dealt with");
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// A message came; the next will probably be like it.
    pub fn learn(&mut self, has_data: bool) {
        self.goal = if has_data { self.goal_min } else { (self.goal * 2).min(GOAL_MAX) };
    }

    /// Room for a read, when `needed` bytes are needed in all.
    pub fn room(&mut self, needed: usize) -> &mut [u8] {
        let have = self.end - self.start;
        let wanted = needed.saturating_sub(have).max(self.goal);
        if self.end + wanted > CAPACITY {
            // copy: a header that was cut, at most a few bytes
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        let to = (self.end + wanted).min(CAPACITY);
        &mut self.bytes[self.end..to]
    }

    /// So many bytes were put where [`Self::room`] said.
    ///
    /// # Panics
    /// If there was no room for them.
    pub fn filled(&mut self, len: usize) {
        self.end += len;
        assert!(self.end <= CAPACITY, "more was read than there was room");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_while_no_data_comes() {
        let mut window = Window::new(76);
        let put = |window: &mut Window, bytes: &[u8], needed| {
            let room = window.room(needed);
            let n = bytes.len().min(room.len());
            room[..n].copy_from_slice(&bytes[..n]);
            window.filled(n);
            n
        };
        assert_eq!(put(&mut window, &[1; 9000], 128), 128);
        window.consume(128);
        for _ in 0..10 {
            window.learn(false);
        }
        assert_eq!(put(&mut window, &[2; 9000], 8), GOAL_MAX);
        window.consume(GOAL_MAX - 5);
        assert_eq!(put(&mut window, &[3; 9000], 8), GOAL_MAX, "what was left is kept");
        assert_eq!((window.bytes()[..6].to_vec(), window.bytes().len()), (vec![2, 2, 2, 2, 2, 3], GOAL_MAX + 5));
        window.consume(GOAL_MAX + 5);
        window.learn(true);
        assert_eq!(put(&mut window, &[4; 9000], 72), 76);
    }
}
