//! What the vault holds, in memory: for each block the newest record that has it, and which records can be retired.
//!
//! A block of a record is *settled* when media has that version or a newer one. Records are retired in order, when none of their blocks is both the newest of
//! its block in the vault and not settled. What is retired here counts only when a durable record says so ([`Ledger::durable`]).
//!
//! A record is *stale* if it has the vault's newest version of a block and media has a newer one: a replay would undo that. So nothing may be promised to
//! survive a loss of power before all stale records are retired durably, or superseded by a newer record of the block (PROTOCOLS 6.4).

use dyad_reactor::collections::{FixedMap, fixed_map};

use super::record::{WINDOW, WINDOW_RECORDS};
use crate::address::{TRACK_BLOCKS, TrackAddress, Version};

/// The newest version of one block that the vault has.
#[derive(Debug, Copy, Clone)]
struct Newest {
    sequence: u64,
    version: Version,
    settled: bool,
}

/// Versions of a track's blocks.
pub(super) type Settled = [Option<Version>; TRACK_BLOCKS];

/// A record with contents.
#[derive(Debug, Copy, Clone)]
struct Cell {
    track: TrackAddress,
    /// Its blocks that keep it from being retired.
    unsettled: usize,
}

/// The records from `oldest` on.
#[derive(Debug)]
pub(super) struct Ledger {
    cells: Vec<Option<Cell>>,
    tracks: FixedMap<TrackAddress, [Option<Newest>; TRACK_BLOCKS]>,
    under_way: heapless::Vec<u64, WINDOW_RECORDS>,
    /// Tracks of which a record is being made, with what reached media meanwhile.
    watched: heapless::Vec<(TrackAddress, Settled), WINDOW_RECORDS>,
    /// The first record of this opening.
    base: u64,
    next: u64,
    oldest: u64,
    durable: u64,
    /// The last record that is stale, or was.
    stale: Option<u64>,
}

impl Ledger {
    /// A vault of `cells` cells whose records from `oldest` on are live, and whose next one is `next`.
    pub(super) fn new(cells: u64, oldest: u64, next: u64) -> Self {
        let count = usize::try_from(cells).expect("a vault's cells fit memory");
        Self {
            cells: vec![None; count],
            tracks: fixed_map(count),
            under_way: heapless::Vec::new(),
            watched: heapless::Vec::new(),
            base: next,
            next,
            oldest,
            durable: oldest,
            stale: None,
        }
    }

    /// Records that can be begun before a durable record must have retired some.
    pub(super) fn room(&self) -> u64 {
        self.durable + self.cells.len() as u64 - self.next
    }

    /// Whether another record may be begun beside those under way.
    pub(super) fn has_window(&self) -> bool {
        self.under_way.iter().all(|sequence| self.next - sequence < WINDOW)
    }

    /// Records that were begun and are not finished.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Begins a record.
    pub(super) fn begin(&mut self) -> u64 {
        assert!(self.room() > 0 && self.has_window(), "a record is begun when it may be");
        let sequence = self.next;
        self.next += 1;
        assert!(self.under_way.push(sequence).is_ok(), "no more than a window");
        sequence
    }

    /// A record is durable that said `oldest`.
    pub(super) fn finish(&mut self, sequence: u64, oldest: u64) {
        self.under_way.retain(|other| *other != sequence);
        self.durable = self.durable.max(oldest);
    }

    /// Records before this one are retired, as far as memory is concerned.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Records before this one are retired durably.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Record `sequence` has these versions of the track's blocks; records of one track come in the order of their numbers and of their versions.
    pub(super) fn add(&mut self, sequence: u64, track: TrackAddress, blocks: impl Iterator<Item = (usize, Version)>) {
        let place = self.place(sequence);
        assert!(self.cells[place].is_none(), "a cell has one record");
        let entries = self.tracks.entry(track).or_default();
        let mut unsettled = 0;
        for (index, version) in blocks {
            let entry = &mut entries[index];
            if let Some(newest) = entry {
                if newest.version > version {
                    continue;
                }
                if !newest.settled {
                    let before = usize::try_from(newest.sequence % self.cells.len() as u64).expect("a place");
                    self.cells[before].as_mut().expect("a record with something unsettled is live").unsettled -= 1;
                }
            }
            *entry = Some(Newest { sequence, version, settled: false });
            unsettled += 1;
        }
        self.cells[place] = Some(Cell { track, unsettled });
    }

    /// A record of the track is going to be made: from before its blocks are looked up until [`Self::unwatch`].
    pub(super) fn watch(&mut self, track: TrackAddress) {
        assert!(self.watched.push((track, [None; TRACK_BLOCKS])).is_ok(), "as many as there are turns");
    }

    /// What reached media since [`Self::watch`]: to be settled once more, now that the record is there.
    pub(super) fn unwatch(&mut self, track: TrackAddress) -> Settled {
        let place = self.watched.iter().position(|(watched, _)| *watched == track).expect("it was watched");
        self.watched.swap_remove(place).1
    }

    /// Media has `version` of the block, durably.
    pub(super) fn settle(&mut self, track: TrackAddress, index: usize, version: Version) {
        for (_, settled) in self.watched.iter_mut().filter(|(watched, _)| *watched == track) {
            settled[index] = settled[index].max(Some(version));
        }
        let Some(newest) = self.tracks.get_mut(&track).and_then(|entries| entries[index].as_mut()) else {
            // A record may have had it that is retired here and not yet durably.
            if self.durable < self.oldest {
                self.stale = self.stale.max(Some(self.oldest - 1));
            }
            return;
        };
        if newest.version < version {
            self.stale = self.stale.max(Some(newest.sequence));
        }
        if newest.version <= version && !std::mem::replace(&mut newest.settled, true) {
            let sequence = newest.sequence;
            let place = self.place(sequence);
            self.cells[place].as_mut().expect("a record with something unsettled is live").unsettled -= 1;
        }
    }

    /// Media has everything of the track but the blocks for which `dirty` is true, whatever its versions.
    pub(super) fn settle_others(&mut self, track: TrackAddress, dirty: impl Fn(usize) -> bool) {
        for index in (0..TRACK_BLOCKS).filter(|index| !dirty(*index)) {
            if let Some(version) = self.newest(track, index) {
                self.settle(track, index, version);
            }
        }
    }

    /// Media, or a newer record, has everything that the records before `sequence` have.
    pub(super) fn settle_before(&mut self, sequence: u64) {
        for earlier in self.oldest..sequence {
            let Some(Cell { track, .. }) = self.cells[self.place(earlier)] else { continue };
            for index in 0..TRACK_BLOCKS {
                let newest = self.tracks.get(&track).and_then(|entries| entries[index]);
                if let Some(newest) = newest.filter(|newest| newest.sequence < sequence) {
                    self.settle(track, index, newest.version);
                }
            }
        }
        self.stale = self.stale.max(sequence.checked_sub(1));
    }

    /// The newest version of the block that a record has.
    pub(super) fn newest(&self, track: TrackAddress, index: usize) -> Option<Version> {
        self.tracks.get(&track)?[index].map(|newest| newest.version)
    }

    /// A record of this opening has this version of the block, or a newer one. Those of former ones will be retired together.
    pub(super) fn covers(&self, track: TrackAddress, index: usize, version: Version) -> bool {
        let newest = self.tracks.get(&track).and_then(|entries| entries[index]);
        newest.is_some_and(|newest| newest.version >= version && newest.sequence >= self.base)
    }

    /// Retires, in memory, what can be. Returns the track that keeps the next record from it, if contents do.
    pub(super) fn advance(&mut self) -> Option<TrackAddress> {
        while self.oldest < self.next && !self.under_way.contains(&self.oldest) {
            let place = self.place(self.oldest);
            if let Some(cell) = self.cells[place] {
                if cell.unsettled > 0 {
                    return Some(cell.track);
                }
                self.forget(self.oldest, cell.track);
                self.cells[place] = None;
            }
            self.oldest += 1;
        }
        None
    }

    /// Something stale is not retired durably.
    pub(super) fn is_stale(&self) -> bool {
        self.stale.is_some_and(|stale| stale >= self.durable)
    }

    /// Everything stale is retired in memory.
    pub(super) fn can_retire_stale(&self) -> bool {
        self.stale.is_none_or(|stale| stale < self.oldest)
    }

    /// Records with contents that are not retired.
    pub(super) fn live(&self) -> usize {
        self.cells.iter().flatten().count()
    }

    fn forget(&mut self, sequence: u64, track: TrackAddress) {
        let Some(entries) = self.tracks.get_mut(&track) else { return };
        for entry in entries.iter_mut() {
            entry.take_if(|newest| newest.sequence == sequence);
        }
        if entries.iter().all(Option::is_none) {
            self.tracks.remove(&track);
        }
    }

    fn place(&self, sequence: u64) -> usize {
        usize::try_from(sequence % self.cells.len() as u64).expect("a place in memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Epoch, VolumeId};

    fn track(track: u64) -> TrackAddress {
        TrackAddress { volume: VolumeId { uuid: [1; 16], generation: 1 }, track }
    }

    fn version(sequence: u64) -> Version {
        Version { epoch: Epoch(1), sequence }
    }

    /// A record with one version of the first `blocks` blocks of a track.
    fn append(ledger: &mut Ledger, of: u64, blocks: usize, number: u64) -> u64 {
        let sequence = ledger.begin();
        let oldest = ledger.oldest();
        ledger.finish(sequence, oldest);
        ledger.add(sequence, track(of), (0..blocks).map(|index| (index, version(number))));
        sequence
    }

    #[test]
    fn records_are_retired_in_order_when_media_or_a_newer_record_has_what_they_have() {
        let mut ledger = Ledger::new(40, 1, 1);
        assert_eq!([append(&mut ledger, 7, 2, 10), append(&mut ledger, 8, 1, 11)], [1, 2]);
        assert!(ledger.covers(track(7), 1, version(10)) && !ledger.covers(track(7), 1, version(11)));
        ledger.settle(track(8), 0, version(11));
        ledger.settle(track(7), 0, version(9));
        ledger.settle(track(7), 0, version(10));
        assert_eq!(ledger.advance(), Some(track(7)), "one of its blocks is on no media");
        append(&mut ledger, 7, 2, 12);
        assert_eq!(ledger.advance(), Some(track(7)));
        assert_eq!((ledger.oldest(), ledger.durable(), ledger.live()), (3, 1, 1));
        let sequence = ledger.begin();
        ledger.finish(sequence, ledger.oldest());
        assert_eq!(ledger.durable(), 3);
        ledger.settle(track(7), 0, version(12));
        ledger.settle(track(7), 1, version(12));
        assert_eq!((ledger.advance(), ledger.oldest(), ledger.live()), (None, 5, 0));
        assert!(ledger.tracks.is_empty() && !ledger.is_stale());
    }

    #[test]
    fn a_record_older_than_media_is_stale_until_it_is_retired_durably() {
        let mut ledger = Ledger::new(40, 1, 1);
        append(&mut ledger, 9, 1, 1);
        append(&mut ledger, 7, 1, 2);
        ledger.settle(track(7), 0, version(2));
        assert!(!ledger.is_stale(), "media has just what the record has");
        ledger.settle(track(7), 0, version(5));
        assert!(ledger.is_stale() && !ledger.can_retire_stale());
        assert_eq!(ledger.advance(), Some(track(9)), "the record before it is in the way");
        ledger.settle(track(9), 0, version(1));
        assert_eq!(ledger.advance(), None);
        assert!(ledger.is_stale() && ledger.can_retire_stale());
        let sequence = ledger.begin();
        ledger.finish(sequence, ledger.oldest());
        assert!(!ledger.is_stale());
    }

    #[test]
    fn what_is_retired_in_memory_only_can_still_become_stale() {
        let mut ledger = Ledger::new(40, 1, 1);
        append(&mut ledger, 7, 1, 2);
        ledger.settle(track(7), 0, version(2));
        assert_eq!((ledger.advance(), ledger.oldest()), (None, 2));
        assert!(!ledger.is_stale());
        ledger.settle(track(7), 0, version(3));
        assert!(ledger.is_stale() && ledger.can_retire_stale());
    }

    #[test]
    fn what_reaches_media_while_a_record_is_made_counts_for_that_record() {
        let mut ledger = Ledger::new(40, 1, 1);
        ledger.watch(track(7));
        ledger.settle(track(7), 0, version(5));
        ledger.settle(track(8), 0, version(6));
        append(&mut ledger, 7, 2, 3);
        for (index, settled) in ledger.unwatch(track(7)).into_iter().enumerate() {
            assert_eq!(settled, (index == 0).then_some(version(5)));
            settled.into_iter().for_each(|settled| ledger.settle(track(7), index, settled));
        }
        assert!(ledger.is_stale());
    }

    #[test]
    fn records_under_way_hold_back_the_window_and_what_is_retired() {
        let mut ledger = Ledger::new(40, 1, 1);
        let first = ledger.begin();
        for _ in 1..WINDOW {
            let sequence = ledger.begin();
            ledger.finish(sequence, 1);
        }
        assert!(!ledger.has_window());
        assert_eq!((ledger.advance(), ledger.oldest()), (None, first));
        ledger.finish(first, 1);
        assert!(ledger.has_window());
        assert_eq!((ledger.advance(), ledger.oldest()), (None, 17));
        assert_eq!(ledger.room(), 24, "only what is durable makes room");
    }

    #[test]
    fn all_before_a_record_can_be_retired_at_once() {
        let mut ledger = Ledger::new(40, 1, 1);
        for of in 1..5 {
            append(&mut ledger, of, 3, of);
        }
        append(&mut ledger, 2, 1, 9);
        ledger.settle_before(5);
        assert_eq!((ledger.advance(), ledger.oldest()), (Some(track(2)), 5));
        assert!(ledger.is_stale() && ledger.can_retire_stale());
    }
}
