//! Slots: which track is cached where, and in which state each of its blocks is.
//!
//! A block is absent, clean (media has the same version or a newer one of the same bytes) or dirty (media has an older
//! one). Only committed bytes are ever here (PROTOCOLS 3.3). The table never grows: as many slots as frames suffice,
//! since a slot without blocks is given back.

use dyad_matrix::frames::FrameIndex;
use dyad_reactor::collections::{FixedMap, fixed_map};

use crate::address::{TRACK_BLOCKS, TrackAddress, TrackRange, Version, VolumeId};
use crate::ordered::OrderedPlaces;
use crate::record::MirrorFrame;
use crate::replacement::Replacement;

/// One cached block.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where its bytes are.
    pub frame: FrameIndex,
    /// CRC-32C, computed when the bytes arrived.
    pub crc: u32,
    /// Which contents these are.
    pub version: Version,
    /// Whether media has them.
    pub state: BlockState,
}

/// Whether media has the block's bytes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BlockState {
    /// It has.
    Clean,
    /// It has not; the partner holds them in this frame, if there is a partner.
    Dirty(Option<MirrorFrame>),
}

/// One cached track.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Which track.
    pub track: TrackAddress,
    /// Its blocks.
    pub blocks: [Option<Block>; TRACK_BLOCKS],
    /// A write of this track to media is under way; there is never a second one.
    pub destaging: bool,
    clean: usize,
    dirty: usize,
    /// Blocks that were read: to read them again is to use the track again, to read the others is to go on in it.
    seen: u16,
    /// It was read before anybody asked for it, and is for one stream.
    ahead: bool,
}

impl Slot {
    /// Some block is dirty.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// Every block is dirty.
    #[must_use]
    pub fn is_wholly_dirty(&self) -> bool {
        self.dirty == TRACK_BLOCKS
    }

    /// Its blocks that are dirty.
    #[must_use]
    pub fn dirty_blocks(&self) -> [Option<Block>; TRACK_BLOCKS] {
        self.blocks.map(|block| block.filter(|block| block.state != BlockState::Clean))
    }
}

/// How many slots are in which state.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// All blocks that are there are clean.
    pub clean: usize,
    /// Some block is dirty, and no write to media is under way.
    pub dirty: usize,
    /// A write to media is under way.
    pub destaging: usize,
    /// Nothing is cached there.
    pub free: usize,
}

/// A block that media does not have yet.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct DirtyBlock {
    /// Which track.
    pub track: TrackAddress,
    /// Which block of it.
    pub index: usize,
    /// Which contents these are.
    pub version: Version,
    /// Their CRC-32C.
    pub crc: u32,
}

/// All slots of a director.
pub struct SlotTable {
    places: FixedMap<TrackAddress, usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots with a dirty block, in address order.
    dirty: OrderedPlaces<TrackAddress>,
    /// Slots with a clean block, in the order in which they give them up.
    replacement: Replacement,
    dirty_blocks: usize,
    destaging: usize,
}

impl SlotTable {
    /// A table for `capacity` tracks.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            places: fixed_map(capacity),
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            dirty: OrderedPlaces::new(capacity),
            replacement: Replacement::new(capacity),
            dirty_blocks: 0,
            destaging: 0,
        }
    }

    /// Number of dirty blocks.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.dirty_blocks
    }

    /// How many slots are in which state. Looks at the dirty ones.
    #[must_use]
    pub fn counts(&self) -> SlotCounts {
        let (free, destaging) = (self.free.len(), self.destaging);
        let dirty = self.slots.iter().flatten().filter(|slot| slot.is_dirty() && !slot.destaging).count();
        SlotCounts { clean: self.slots.len() - free - destaging - dirty, dirty, destaging, free }
    }

    /// The slot of `track`, for looking.
    #[must_use]
    pub fn get(&self, track: TrackAddress) -> Option<&Slot> {
        self.places.get(&track).and_then(|place| self.slots[*place].as_ref())
    }

    /// The slot of a range that is read.
    pub fn touch(&mut self, range: TrackRange) -> Option<&Slot> {
        let place = *self.places.get(&range.track)?;
        let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
        let read = range.indices().fold(0, |mask, index| mask | 1 << index);
        if slot.seen & read == read {
            self.replacement.touch(place);
        }
        slot.seen |= read;
        Some(slot)
    }

    /// Says that a write of the track to media begins or ends. A track without a slot gets one for that long.
    pub fn set_destaging(&mut self, track: TrackAddress, destaging: bool) {
        let place = self.place_of(track);
        let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
        assert_ne!(slot.destaging, destaging, "a track is written to media once at a time");
        slot.destaging = destaging;
        self.destaging = if destaging { self.destaging + 1 } else { self.destaging - 1 };
        self.changed(place);
    }

    /// Makes `block` the contents of block `index` of `track`; returns what was there.
    ///
    /// # Panics
    /// If an older version would replace a newer one, or the table is full (it has room for every frame).
    pub fn install(&mut self, track: TrackAddress, index: usize, block: Block) -> Option<Block> {
        let place = self.place_of(track);
        let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
        let before = slot.blocks[index].replace(block);
        if let Some(before) = before {
            assert!(
                before.version <= block.version,
                "{track:?}.{index}: {:?} would replace {:?}",
                block.version,
                before.version
            );
        }
        self.changed(place);
        before
    }

    /// Media has `version` of the block: it is clean, unless a newer one came meanwhile. Returns the mirror frame that is free now.
    pub fn mark_clean(&mut self, track: TrackAddress, index: usize, version: Version) -> Option<MirrorFrame> {
        let place = self.places.get(&track).copied()?;
        let block = self.slots[place].as_mut()?.blocks[index].as_mut()?;
        let BlockState::Dirty(mirror) = block.state else { return None };
        if block.version != version {
            return None;
        }
        block.state = BlockState::Clean;
        self.changed(place);
        mirror
    }

    /// There is no partner any more: no block is mirrored.
    pub fn forget_mirrors(&mut self) {
        for block in self.slots.iter_mut().flatten().flat_map(|slot| slot.blocks.iter_mut().flatten()) {
            if let BlockState::Dirty(mirror) = &mut block.state {
                *mirror = None;
            }
        }
    }

    /// All dirty blocks, in address order.
    #[must_use]
    pub fn dirty(&self) -> Vec<DirtyBlock> {
        let mut blocks = Vec::with_capacity(self.dirty_blocks);
        let mut next = self.dirty.first();
        while let Some(place) = next {
            let slot = self.slots[place].as_ref().expect("the index names slots that are there");
            let dirty = (0..).zip(slot.dirty_blocks()).filter_map(|(index, block)| Some((index, block?)));
            blocks.extend(dirty.map(|(index, Block { version, crc, .. })| DirtyBlock {
                track: slot.track,
                index,
                version,
                crc,
            }));
            next = self.dirty.first_from(slot.track.next());
        }
        blocks
    }

    /// Number of blocks.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.slots.iter().flatten().map(|slot| slot.clean + slot.dirty).sum()
    }

    /// The first slot with a dirty block at or after `from`, even if it is being written to media.
    #[must_use]
    pub fn next_dirty(&self, from: Option<TrackAddress>) -> Option<&Slot> {
        let place = from.map_or_else(|| self.dirty.first(), |from| self.dirty.first_from(from))?;
        self.slots[place].as_ref()
    }

    /// The same, within one volume.
    #[must_use]
    pub fn next_dirty_of(&self, volume: VolumeId, from: u64) -> Option<TrackAddress> {
        let found = self.next_dirty(Some(TrackAddress { volume, track: from }))?.track;
        (found.volume == volume).then_some(found)
    }

    /// Gives up clean blocks of the tracks that are least worth keeping until `enough` says so; `release` gets their frames. Returns whether it was enough.
    pub fn evict(&mut self, mut release: impl FnMut(FrameIndex), enough: impl Fn() -> bool) -> bool {
        while !enough() {
            let Some(place) = self.replacement.pop() else { return false };
            self.give_up_clean(place, &mut release);
        }
        true
    }

    /// The track was read ahead.
    pub fn set_ahead(&mut self, track: TrackAddress) {
        if let Some(slot) = self.places.get(&track).and_then(|place| self.slots[*place].as_mut()) {
            slot.ahead = true;
        }
    }

    /// A stream has read the track: gives up its clean blocks, if it was read ahead for that.
    pub fn give_up_ahead(&mut self, track: TrackAddress, release: impl FnMut(FrameIndex)) {
        let Some(place) = self.places.get(&track).copied() else { return };
        if self.slots[place].as_ref().is_some_and(|slot| slot.ahead) {
            self.give_up_clean(place, release);
        }
    }

    fn give_up_clean(&mut self, place: usize, mut release: impl FnMut(FrameIndex)) {
        let slot = self.slots[place].as_mut().expect("what can give something up is there");
        for block in &mut slot.blocks {
            if let Some(clean) = block.take_if(|block| block.state == BlockState::Clean) {
                release(clean.frame);
            }
        }
        self.changed(place);
    }

    fn place_of(&mut self, track: TrackAddress) -> usize {
        if let Some(place) = self.places.get(&track) {
            return *place;
        }
        let place = self.free.pop().expect("there are as many slots as frames, and as tracks that can be in work");
        self.slots[place] = Some(Slot {
            track,
            blocks: [None; TRACK_BLOCKS],
            destaging: false,
            clean: 0,
            dirty: 0,
            seen: 0,
            ahead: false,
        });
        self.places.insert(track, place);
        place
    }

    /// Brings everything that is counted about a slot up to date, and gives it back if nothing is in it.
    fn changed(&mut self, place: usize) {
        let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
        self.dirty_blocks -= slot.dirty;
        slot.dirty = slot.dirty_blocks().iter().flatten().count();
        slot.clean = slot.blocks.iter().flatten().count() - slot.dirty;
        self.dirty_blocks += slot.dirty;
        let (track, clean, dirty, destaging) = (slot.track, slot.clean, slot.dirty, slot.destaging);
        if dirty > 0 {
            self.dirty.insert(place, track);
        } else {
            self.dirty.remove(place);
        }
        if clean > 0 {
            self.replacement.insert(place, &track);
        } else {
            self.replacement.remove(place);
        }
        if clean + dirty == 0 && !destaging {
            self.slots[place] = None;
            self.places.remove(&track);
            self.free.push(place);
        }
    }
}
