//! How cached data is named: by volume, never by device (PROTOCOLS 2.4).

use dyad_nvme::types::{BLOCK_BYTES, Lba};

/// 4 KiB blocks in a track.
pub const TRACK_BLOCKS: usize = 16;

/// Bytes in a track.
pub const TRACK_BYTES: usize = TRACK_BLOCKS * BLOCK_BYTES;

/// A volume and the generation of its map: after a delete the same volume address means something else (PROTOCOLS 8.4).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId {
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// Raised by delete and shrink.
    pub generation: u32,
}

/// Number of the current ownership of a pair; it only grows.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// Orders the committed contents of a block, across takeovers (PROTOCOLS 3.4).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// In whose epoch it was committed.
    pub epoch: Epoch,
    /// Grows with every commit of that epoch's home.
    pub sequence: u64,
}

/// An aligned piece of [`TRACK_BYTES`] of a volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackAddress {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which piece, counted from the volume's start.
    pub track: u64,
}

impl TrackAddress {
    /// The first block of the track.
    #[must_use]
    pub const fn first_lba(self) -> Lba {
        Lba(self.track * TRACK_BLOCKS as u64)
    }

    /// The track behind it in the volume.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { volume: self.volume, track: self.track + 1 }
    }
}

/// Some consecutive blocks of one track.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct TrackRange {
    /// The track.
    pub track: TrackAddress,
    first: u8,
    count: u8,
}

impl TrackRange {
    /// Blocks `first .. first + count` of `track`; `None` if they are none or not all in the track.
    #[must_use]
    pub fn new(track: TrackAddress, first: usize, count: usize) -> Option<Self> {
        if count == 0 || first.checked_add(count)? > TRACK_BLOCKS {
            return None;
        }
        Some(Self { track, first: u8::try_from(first).ok()?, count: u8::try_from(count).ok()? })
    }

    /// The whole track.
    #[must_use]
    pub fn whole(track: TrackAddress) -> Self {
        Self::new(track, 0, TRACK_BLOCKS).expect("a track has its blocks")
    }

    /// Splits blocks of a volume at track boundaries, in address order.
    pub fn split(volume: VolumeId, lba: Lba, blocks: u64) -> impl Iterator<Item = Self> {
        const BLOCKS: u64 = TRACK_BLOCKS as u64;
        let end = lba.0.saturating_add(blocks);
        let mut at = lba.0;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let track = at / BLOCKS;
            let stop = end.min((track + 1) * BLOCKS);
            let first = usize::try_from(at % BLOCKS).ok()?;
            let count = usize::try_from(stop - at).ok()?;
            at = stop;
            Self::new(TrackAddress { volume, track }, first, count)
        })
    }

    /// Number of blocks.
    #[must_use]
    pub const fn count(self) -> usize {
        self.count as usize
    }

    /// Index of the first block within its track.
    #[must_use]
    pub const fn first(self) -> usize {
        self.first as usize
    }

    /// Indices within the track.
    #[must_use]
    pub const fn indices(self) -> std::ops::Range<usize> {
        self.first()..self.first() + self.count()
    }

    /// Address in the volume of the first block.
    #[must_use]
    pub const fn lba(self) -> Lba {
        Lba(self.track.first_lba().0 + self.first as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_covers_exactly_the_blocks() {
        let volume = VolumeId { uuid: [1; 16], generation: 1 };
        let parts: Vec<_> =
            TrackRange::split(volume, Lba(14), 20).map(|r| (r.track.track, r.first(), r.count())).collect();
        assert_eq!(parts, [(0, 14, 2), (1, 0, 16), (2, 0, 2)]);
        assert_eq!(TrackRange::split(volume, Lba(3), 0).count(), 0);
        assert!(TrackRange::new(TrackAddress { volume, track: 0 }, 15, 2).is_none());
    }
}
