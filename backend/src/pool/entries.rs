//! The entries of a share in memory. A volume may be far longer than the group is large, so pages of entries that nobody uses are not there.

use super::SliceNumber;

/// Entries of a page: what a change of a volume that is all but empty touches.
const PAGE: usize = 1024;

/// An entry of a share.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// Zeros.
    Empty,
    /// Zeros, but a slice is kept for it: a write was admitted.
    Reserved,
    /// In this slice, durably.
    Mapped(SliceNumber),
}

/// An entry in four bytes.
const fn unpack(packed: u32) -> Entry {
    match packed {
        0 => Entry::Empty,
        1 => Entry::Reserved,
        n => Entry::Mapped(SliceNumber(n - 2)),
    }
}

const fn pack(entry: Entry) -> u32 {
    match entry {
        Entry::Empty => 0,
        Entry::Reserved => 1,
        Entry::Mapped(SliceNumber(n)) => n + 2,
    }
}

/// A row of entries.
#[derive(Debug, Default)]
pub(super) struct Entries {
    len: usize,
    /// One that is not there is all empty.
    pages: Vec<Option<Box<[u32; PAGE]>>>,
}

impl Entries {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The entry at a place; beyond the end it is empty.
    pub(super) fn get(&self, at: usize) -> Entry {
        let page = self.pages.get(at / PAGE).and_then(Option::as_ref);
        page.map_or(Entry::Empty, |page| unpack(page[at % PAGE]))
    }

    /// Replaces an entry. There must be room for it.
    pub(super) fn set(&mut self, at: usize, entry: Entry) {
        assert!(at < self.len, "an entry beyond the end");
        let page = self.pages[at / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        page[at % PAGE] = pack(entry);
    }

    /// Longer, by empty entries, or shorter: those beyond the end that are not empty come back.
    pub(super) fn resize(&mut self, len: usize) -> Vec<Entry> {
        let beyond: Vec<(usize, Entry)> = self.used().skip_while(|(at, _)| *at < len).collect();
        for (at, _) in &beyond {
            self.set(*at, Entry::Empty);
        }
        self.pages.resize_with(len.div_ceil(PAGE), || None);
        self.len = len;
        beyond.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Those that are not empty, in order.
    pub(super) fn used(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        let there = self.pages.iter().enumerate().filter_map(|(at, page)| Some((at, page.as_ref()?)));
        let all = there.flat_map(|(at, page)| (at * PAGE..).zip(page.iter().map(|packed| unpack(*packed))));
        all.filter(|(_, entry)| *entry != Entry::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_row_of_nothing_takes_no_pages() {
        let mut entries = Entries::default();
        assert_eq!(entries.resize(1 << 24), []);
        assert_eq!(entries.get((1 << 24) - 1), Entry::Empty);
        for (at, slice) in [(0, 7), (1023, 0), (1024, u32::MAX - 2), ((1 << 24) - 1, 9)] {
            entries.set(at, Entry::Mapped(SliceNumber(slice)));
        }
        entries.set(5000, Entry::Reserved);
        assert_eq!(entries.pages.iter().flatten().count(), 4);
        let used: Vec<usize> = entries.used().map(|(at, _)| at).collect();
        assert_eq!(used, [0, 1023, 1024, 5000, (1 << 24) - 1]);
        let gone = entries.resize(1024);
        let mapped = |slice| Entry::Mapped(SliceNumber(slice));
        assert_eq!(gone, [mapped(u32::MAX - 2), Entry::Reserved, mapped(9)]);
        assert_eq!((entries.len(), entries.get(1023), entries.get(1024)), (1024, mapped(0), Entry::Empty));
        // What was cut off within a page does not come back.
        entries.resize(3);
        entries.resize(2000);
        assert_eq!(entries.used().collect::<Vec<_>>(), [(0, mapped(7))]);
    }
}
