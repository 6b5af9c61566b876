//! The share tables of a group in memory, and whose its slices are. No I/O: it changes by [`Table::apply`], with the same records at run time, after they
//! have become durable, and when the log is read.
//!
//! A slice that is nobody's is in one of these places; it moves only down, and from the top again when it is somebody's:
//!
//! | place | contents | next |
//! |---|---|---|
//! | fresh: from the number `fresh` on | zeros: never used | taken |
//! | `limbo` | somebody's, who may still be reading or writing | `dirty`, after a grace period |
//! | `dirty` | anything, freed in this life | zeroed: `clean` |
//! | `stale` | anything, freed in an earlier life | zeroed: `clean` |
//! | `clean` | zeros | taken |
//! | taken | zeros; its record is on its way to the log | an entry |

use std::collections::{BTreeMap, VecDeque};

use super::description::{Allocation, Extent, ShareSpec};
use super::entries::{Entries, Entry};
use super::{PoolError, SliceNumber};
use crate::format::VolumeUuid;
use crate::format::share::{Change, Record};

/// Most entries of a share.
pub(super) const ENTRIES_MAX: u64 = 1 << 24;

/// The log says what cannot be.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Nonsense;

/// Whether a share serves.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Serving,
    /// It is being cut to this: who means the generation before is refused.
    Cutting(ShareSpec),
    /// It is being deleted: nobody gets in.
    Ending,
}

#[derive(Debug)]
pub(super) struct Share {
    /// As the log has it.
    spec: ShareSpec,
    pub(super) standing: Standing,
    /// Positions of an entry.
    per_slice: u64,
    entries: Entries,
}

impl Share {
    /// What requests may ask for.
    pub(super) const fn spec(&self) -> &ShareSpec {
        match &self.standing {
            Standing::Cutting(spec) => spec,
            Standing::Serving | Standing::Ending => &self.spec,
        }
    }

    /// The entry of a position, and which extent of its slice the position is.
    pub(super) fn entry_of(&self, position: u64) -> Option<(usize, u64)> {
        if position >= self.spec().positions {
            return None;
        }
        Some(self.place_of(position))
    }

    /// The same of a position that may be at the end.
    pub(super) fn place_of(&self, position: u64) -> (usize, u64) {
        let entry = usize::try_from(position / self.per_slice).expect("at most ENTRIES_MAX");
        (entry, position % self.per_slice)
    }

    pub(super) fn entry(&self, at: usize) -> Entry {
        self.entries.get(at)
    }

    /// How many entries it has, to its end as it is now.
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.spec().positions.div_ceil(self.per_slice)).expect("at most ENTRIES_MAX")
    }

    /// The entries that lie whole in these positions; the last one may end with the share.
    pub(super) fn whole_entries(&self, positions: std::ops::Range<u64>) -> std::ops::Range<usize> {
        let end = match positions.end >= self.spec().positions {
            true => self.len() as u64,
            false => positions.end / self.per_slice,
        };
        let first = positions.start.div_ceil(self.per_slice).min(end);
        let index = |at| usize::try_from(at).expect("at most ENTRIES_MAX");
        index(first)..index(end)
    }
}

impl ShareSpec {
    /// What says this in the log.
    pub(super) fn record(&self) -> Record {
        let full = self.allocation == Allocation::Full;
        let (generation, positions, extent_tracks) = (self.generation, self.positions, self.extent.tracks());
        Record { volume: self.volume, change: Change::Share { generation, positions, extent_tracks, full } }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    slice_blocks: u64,
    slices: u32,
    /// In the order in which they were made; places are used again.
    shares: Vec<Option<Share>>,
    by_volume: BTreeMap<VolumeUuid, usize>,
    /// Whether a slice is an entry of somebody.
    used: Vec<bool>,
    in_use: u32,
    reserved: u32,
    taken: u32,
    fresh: u32,
    clean: VecDeque<SliceNumber>,
    pub(super) limbo: VecDeque<SliceNumber>,
    pub(super) dirty: VecDeque<SliceNumber>,
    pub(super) stale: VecDeque<SliceNumber>,
}

impl Table {
    pub(super) fn new(slice_blocks: u64, slices: u32) -> Self {
        Self {
            slice_blocks,
            slices,
            shares: Vec::new(),
            by_volume: BTreeMap::new(),
            used: vec![false; slices as usize],
            in_use: 0,
            reserved: 0,
            taken: 0,
            fresh: 0,
            clean: VecDeque::new(),
            limbo: VecDeque::new(),
            dirty: VecDeque::new(),
            stale: VecDeque::new(),
        }
    }

    /// Everything has been read from the log, which says that slices from `fresh` on were never used. Those that are nobody's are stale; shares with
    /// full allocation have their missing slices kept for them.
    pub(super) fn settle(&mut self, fresh: u32) -> Result<(), Nonsense> {
        let beyond = self.used.iter().skip(fresh as usize).any(|used| *used);
        if fresh > self.slices || beyond {
            return Err(Nonsense);
        }
        self.fresh = fresh;
        self.limbo.clear();
        self.stale = (0..fresh).filter(|slice| !self.used[*slice as usize]).map(SliceNumber).collect();
        for at in 0..self.shares.len() {
            let full = self.shares[at].as_ref().is_some_and(|share| share.spec.allocation == Allocation::Full);
            if full {
                let len = self.shares[at].as_ref().map_or(0, Share::len);
                self.reserve(at, 0..len).map_err(|_| Nonsense)?;
            }
        }
        Ok(())
    }

    pub(super) const fn slice_blocks(&self) -> u64 {
        self.slice_blocks
    }

    pub(super) const fn slices(&self) -> u32 {
        self.slices
    }

    pub(super) const fn fresh(&self) -> u32 {
        self.fresh
    }

    pub(super) const fn in_use(&self) -> u32 {
        self.in_use
    }

    pub(super) const fn reserved(&self) -> u32 {
        self.reserved
    }

    pub(super) fn shares(&self) -> usize {
        self.by_volume.len()
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter().flatten()
    }

    pub(super) fn share(&self, at: usize) -> Option<&Share> {
        self.shares.get(at)?.as_ref()
    }

    pub(super) fn share_mut(&mut self, at: usize) -> Option<&mut Share> {
        self.shares.get_mut(at)?.as_mut()
    }

    pub(super) fn find(&self, volume: VolumeUuid) -> Option<usize> {
        self.by_volume.get(&volume).copied()
    }

    /// Slices that nobody has and nobody counts on.
    pub(super) const fn available(&self) -> u32 {
        self.slices - self.in_use - self.reserved
    }

    /// Keeps slices for these entries, or for none of them.
    pub(super) fn reserve(&mut self, at: usize, entries: std::ops::Range<usize>) -> Result<(), PoolError> {
        let available = self.available();
        let share = self.shares[at].as_mut().expect("a share");
        let empty = entries.clone().filter(|at| share.entry(*at) == Entry::Empty).count();
        let needed = u32::try_from(empty).ok().filter(|needed| *needed <= available).ok_or(PoolError::Full)?;
        for at in entries {
            if share.entry(at) == Entry::Empty {
                share.entries.set(at, Entry::Reserved);
            }
        }
        self.reserved += needed;
        Ok(())
    }

    /// Keeps so many slices for a share that is still to be made.
    pub(super) fn hold(&mut self, slices: u32) -> Result<(), PoolError> {
        if slices > self.available() {
            return Err(PoolError::Full);
        }
        self.reserved += slices;
        Ok(())
    }

    /// Gives back what [`Self::hold`] kept.
    pub(super) fn release(&mut self, slices: u32) {
        self.reserved -= slices;
    }

    /// These entries need no slice any more, if they have none.
    pub(super) fn forgo(&mut self, at: usize, entries: std::ops::Range<usize>) {
        let share = self.shares[at].as_mut().expect("a share");
        for at in entries {
            if share.entry(at) == Entry::Reserved {
                share.entries.set(at, Entry::Empty);
                self.reserved -= 1;
            }
        }
    }

    /// A slice of zeros for an entry that has one kept for it, if there is one already.
    pub(super) fn take_clean(&mut self) -> Option<SliceNumber> {
        let slice = match self.clean.pop_front() {
            Some(slice) => slice,
            None if self.fresh < self.slices => {
                self.fresh += 1;
                SliceNumber(self.fresh - 1)
            }
            None => return None,
        };
        self.taken += 1;
        debug_assert!(self.taken <= self.reserved, "only for reserved entries");
        Some(slice)
    }

    /// The next slice that must be zeroed before it is used. It stays where it is until [`Self::zeroed`].
    pub(super) fn next_dirty(&self) -> Option<SliceNumber> {
        self.dirty.front().or(self.stale.front()).copied()
    }

    /// The next dirty slice is zeros now, or could not be made so: then it comes last.
    pub(super) fn zeroed(&mut self, good: bool) {
        let next = self.dirty.pop_front().or_else(|| self.stale.pop_front());
        let place = if good { &mut self.clean } else { &mut self.dirty };
        place.extend(next);
    }

    /// Slices that are zeros.
    pub(super) fn ready(&self) -> usize {
        self.clean.len() + (self.slices - self.fresh) as usize
    }

    #[cfg(test)]
    pub(super) fn zeroed_slices(&self) -> Vec<SliceNumber> {
        self.clean.iter().copied().chain((self.fresh..self.slices).map(SliceNumber)).collect()
    }

    /// What is durable in the log.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Nonsense> {
        let at = self.find(record.volume);
        match (record.change, at) {
            (Change::Share { generation, positions, extent_tracks, full }, at) => {
                let extent = Extent::of_tracks(extent_tracks).map_err(|_| Nonsense)?;
                let allocation = if full { Allocation::Full } else { Allocation::Thin };
                let spec = ShareSpec { volume: record.volume, generation, extent, positions, allocation };
                match at {
                    None => self.insert(spec),
                    Some(at) => self.resize(at, spec),
                }
            }
            (Change::Mapped { first, entries, slice }, Some(at)) => {
                (0..entries).try_for_each(|i| self.map(at, first.checked_add(i), slice.0.checked_add(i)))
            }
            (Change::Unmapped { first, entries }, Some(at)) => {
                let range = self.range(at, first, entries).ok_or(Nonsense)?;
                range.into_iter().try_for_each(|entry| self.unmap(at, entry))
            }
            (Change::Gone, Some(at)) => {
                self.set_len(at, 0);
                self.by_volume.remove(&record.volume);
                self.shares[at] = None;
                Ok(())
            }
            (Change::Mapped { .. } | Change::Unmapped { .. } | Change::Gone, None) => Err(Nonsense),
        }
    }

    /// The length of a share of such a kind in entries, if there can be one.
    pub(super) fn entries_for(&self, extent: Extent, positions: u64) -> Result<usize, PoolError> {
        if !self.slice_blocks.is_multiple_of(extent.blocks()) {
            return Err(PoolError::Extent { extent: extent.blocks(), slice: self.slice_blocks });
        }
        let entries = positions.div_ceil(self.slice_blocks / extent.blocks());
        let fits = entries <= ENTRIES_MAX;
        usize::try_from(entries).ok().filter(|_| fits).ok_or(PoolError::TooLong(positions))
    }

    fn insert(&mut self, spec: ShareSpec) -> Result<(), Nonsense> {
        let len = self.entries_for(spec.extent, spec.positions).map_err(|_| Nonsense)?;
        let per_slice = self.slice_blocks / spec.extent.blocks();
        let mut entries = Entries::default();
        entries.resize(len);
        let share = Share { spec, standing: Standing::Serving, per_slice, entries };
        let at = self.shares.iter().position(Option::is_none).unwrap_or_else(|| {
            self.shares.push(None);
            self.shares.len() - 1
        });
        self.shares[at] = Some(share);
        self.by_volume.insert(spec.volume, at);
        Ok(())
    }

    fn resize(&mut self, at: usize, spec: ShareSpec) -> Result<(), Nonsense> {
        let len = self.entries_for(spec.extent, spec.positions).map_err(|_| Nonsense)?;
        let share = self.shares[at].as_mut().expect("a share");
        let same = spec.extent == share.spec.extent && spec.allocation == share.spec.allocation;
        if !same || spec.generation < share.spec.generation {
            return Err(Nonsense);
        }
        share.spec = spec;
        share.standing = Standing::Serving;
        self.set_len(at, len);
        Ok(())
    }

    fn set_len(&mut self, at: usize, len: usize) {
        let share = self.shares[at].as_mut().expect("a share");
        for entry in share.entries.resize(len) {
            match entry {
                Entry::Empty => {}
                Entry::Reserved => self.reserved -= 1,
                Entry::Mapped(slice) => {
                    self.used[slice.0 as usize] = false;
                    self.in_use -= 1;
                    self.limbo.push_back(slice);
                }
            }
        }
    }

    fn range(&self, at: usize, first: u32, entries: u32) -> Option<std::ops::Range<usize>> {
        let (first, end) = (usize::try_from(first).ok()?, usize::try_from(first.checked_add(entries)?).ok()?);
        (end <= self.shares[at].as_ref()?.entries.len()).then_some(first..end)
    }

    fn map(&mut self, at: usize, entry: Option<u32>, slice: Option<u32>) -> Result<(), Nonsense> {
        let (entry, slice) = (entry.ok_or(Nonsense)?, slice.ok_or(Nonsense)?);
        let used = self.used.get_mut(slice as usize).filter(|used| !**used).ok_or(Nonsense)?;
        let share = self.shares[at].as_mut().expect("a share");
        let entry = usize::try_from(entry).ok().filter(|entry| *entry < share.entries.len()).ok_or(Nonsense)?;
        match share.entry(entry) {
            Entry::Mapped(_) => return Err(Nonsense),
            Entry::Empty => {}
            Entry::Reserved => {
                self.reserved -= 1;
                self.taken -= 1;
            }
        }
        share.entries.set(entry, Entry::Mapped(SliceNumber(slice)));
        *used = true;
        self.in_use += 1;
        Ok(())
    }

    fn unmap(&mut self, at: usize, entry: usize) -> Result<(), Nonsense> {
        let entries = &mut self.shares[at].as_mut().expect("a share").entries;
        let Entry::Mapped(slice) = entries.get(entry) else { return Err(Nonsense) };
        entries.set(entry, Entry::Empty);
        self.used[slice.0 as usize] = false;
        self.in_use -= 1;
        self.limbo.push_back(slice);
        Ok(())
    }

    /// Records that make this table from nothing.
    pub(super) fn snapshot(&self) -> Vec<Record> {
        let mut records = Vec::with_capacity(self.shares());
        for share in self.shares.iter().flatten() {
            records.push(share.spec.record());
            let mut run: Option<(u32, u32, u32)> = None;
            for (at, entry) in share.entries.used() {
                let Entry::Mapped(SliceNumber(slice)) = entry else { continue };
                let at = u32::try_from(at).expect("at most ENTRIES_MAX");
                run = match run {
                    Some((first, entries, of)) if first + entries == at && of + entries == slice => {
                        Some((first, entries + 1, of))
                    }
                    before => {
                        records.extend(before.map(|run| mapped(share.spec.volume, run)));
                        Some((at, 1, slice))
                    }
                };
            }
            records.extend(run.map(|run| mapped(share.spec.volume, run)));
        }
        records
    }

    /// Most records that a snapshot of this table can ever have, if no share is added.
    pub(super) fn records_max(&self) -> u64 {
        self.shares() as u64 + u64::from(self.slices)
    }
}

const fn mapped(volume: VolumeUuid, (first, entries, slice): (u32, u32, u32)) -> Record {
    Record { volume, change: Change::Mapped { first, entries, slice: SliceNumber(slice) } }
}
