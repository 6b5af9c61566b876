//! Slots: which track is cached where, and in which state each of its blocks is.
//!
//! A block is absent, clean (media has the same version or a newer one of the same bytes) or dirty (media has an older
//! one). Only committed bytes are ever here (PROTOCOLS 3.3). The table never grows: as many slots as frames suffice,
//! since a slot without blocks is given back.

use dyad_matrix::frames::FrameIndex;
use dyad_reactor::collections::{FixedMap, fixed_map};

use crate::address::{TRACK_BLOCKS, TrackAddress, Version, VolumeId};
use crate::record::MirrorFrame;

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
    /// Used since the eviction hand passed.
    recent: bool,
}

impl Slot {
    /// Some block is dirty.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.blocks.iter().flatten().any(|block| block.state != BlockState::Clean)
    }
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
    hand: usize,
    dirty_blocks: usize,
}

impl SlotTable {
    /// A table for `capacity` tracks.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        // Removals leave marks that count as used until the table rehashes in place: twice the room keeps that from growing it.
        let places = fixed_map(2 * capacity);
        Self {
            places,
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            hand: 0,
            dirty_blocks: 0,
        }
    }

    /// Number of dirty blocks.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.dirty_blocks
    }

    /// The slot of `track`, for looking.
    #[must_use]
    pub fn get(&self, track: TrackAddress) -> Option<&Slot> {
        self.places.get(&track).and_then(|place| self.slots[*place].as_ref())
    }

    /// The slot of `track`, counted as used.
    pub fn touch(&mut self, track: TrackAddress) -> Option<&Slot> {
        let slot = self.slots[*self.places.get(&track)?].as_mut()?;
        slot.recent = true;
        Some(slot)
    }

    /// Says that a write of the track to media begins or ends. A track without a slot gets none.
    pub fn set_destaging(&mut self, track: TrackAddress, destaging: bool) {
        if let Some(place) = self.places.get(&track).copied() {
            let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
            assert_ne!(slot.destaging, destaging, "a track is written to media once at a time");
            slot.destaging = destaging;
            self.drop_if_empty(place);
        }
    }

    /// Makes `block` the contents of block `index` of `track`; returns what was there.
    ///
    /// # Panics
    /// If an older version would replace a newer one, or the table is full (it has room for every frame).
    pub fn install(&mut self, track: TrackAddress, index: usize, block: Block) -> Option<Block> {
        let place = self.place_of(track);
        let slot = self.slots[place].as_mut().expect("a mapped place holds a slot");
        slot.recent = true;
        let before = slot.blocks[index].replace(block);
        if let Some(before) = before {
            assert!(
                before.version <= block.version,
                "{track:?}.{index}: {:?} would replace {:?}",
                block.version,
                before.version
            );
            self.dirty_blocks -= usize::from(before.state != BlockState::Clean);
        }
        self.dirty_blocks += usize::from(block.state != BlockState::Clean);
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
        self.dirty_blocks -= 1;
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
        let blocks = self.slots.iter().flatten().flat_map(|slot| {
            let blocks = slot.blocks.iter().enumerate().filter_map(|(index, block)| Some((index, (*block)?)));
            let dirty = blocks.filter(|(_, block)| block.state != BlockState::Clean);
            dirty.map(|(index, Block { version, crc, .. })| DirtyBlock { track: slot.track, index, version, crc })
        });
        let mut blocks: Vec<_> = blocks.collect();
        blocks.sort_unstable_by_key(|block| (block.track, block.index));
        blocks
    }

    /// Number of blocks.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.slots.iter().flatten().map(|slot| slot.blocks.iter().flatten().count()).sum()
    }

    /// Up to `tracks.capacity()` dirty tracks at or after `from`, in address order; wraps to the lowest when there are none after.
    pub fn dirty_tracks(&self, from: Option<TrackAddress>, tracks: &mut Vec<TrackAddress>) {
        tracks.clear();
        let dirty = self.slots.iter().flatten().filter(|slot| slot.is_dirty() && !slot.destaging);
        for track in dirty.map(|slot| slot.track).filter(|track| from.is_none_or(|from| *track >= from)) {
            if tracks.len() < tracks.capacity() {
                tracks.push(track);
                if tracks.len() == tracks.capacity() {
                    tracks.sort_unstable();
                }
            } else if tracks.last().is_some_and(|last| track < *last) {
                let at = tracks.partition_point(|other| *other < track);
                tracks.pop();
                tracks.insert(at, track);
            }
        }
        tracks.sort_unstable();
        if tracks.is_empty() && from.is_some() {
            self.dirty_tracks(None, tracks);
        }
    }

    /// The first track of `volume` at or after `from` with a dirty block, even one that is being written to media.
    #[must_use]
    pub fn next_dirty(&self, volume: VolumeId, from: u64) -> Option<TrackAddress> {
        let dirty = self.slots.iter().flatten().filter(|slot| slot.is_dirty()).map(|slot| slot.track);
        dirty.filter(|track| track.volume == volume && track.track >= from).min()
    }

    /// Gives up clean blocks of tracks not used lately until `enough` says so; `release` gets their frames. Returns whether it was enough.
    pub fn evict(&mut self, mut release: impl FnMut(FrameIndex), enough: impl Fn() -> bool) -> bool {
        for _ in 0..2 * self.slots.len() {
            if enough() {
                return true;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = self.slots[place].as_mut() else { continue };
            if slot.destaging || std::mem::take(&mut slot.recent) {
                continue;
            }
            for block in &mut slot.blocks {
                if let Some(clean) = block.take_if(|block| block.state == BlockState::Clean) {
                    release(clean.frame);
                }
            }
            self.drop_if_empty(place);
        }
        enough()
    }

    fn place_of(&mut self, track: TrackAddress) -> usize {
        if let Some(place) = self.places.get(&track) {
            return *place;
        }
        let place = self.free.pop().expect("there are as many slots as frames");
        self.slots[place] = Some(Slot { track, blocks: [None; TRACK_BLOCKS], destaging: false, recent: true });
        self.places.insert(track, place);
        place
    }

    fn drop_if_empty(&mut self, place: usize) {
        let slot = self.slots[place].take_if(|slot| !slot.destaging && slot.blocks.iter().all(Option::is_none));
        if let Some(slot) = slot {
            self.places.remove(&slot.track);
            self.free.push(place);
        }
    }
}
