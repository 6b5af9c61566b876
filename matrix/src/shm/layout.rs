//! The bytes that two processes share, besides the regions themselves. Little-endian; both ends run on one machine.
//!
//! **Channel**, one file per connection, made by the client, written by both ends. Side 0 is the client, 1 the server.
//!
//! | offset | size | what |
//! |---|---|---|
//! | `0x000 + 0x80 * side` | 4 | `consumed`: entries of the other side's ring that `side` has dealt with, modulo 2^32 |
//! | `0x040 + 0x80 * side` | 4 | `announced`: 1 + the regions that `side` has announced, or 0 while it is not ready |
//! | `0x048 + 0x80 * side` | 4 | `quiet`: 1 while `side` looks at the channel only now and then (see [`super::attention`]) |
//! | `0x1000 + side * ring` | 128 * entries | ring of `side`: entries |
//! | behind them | data | ring of `side`: payload of messages longer than 112 bytes |
//!
//! **Entry**, 128 bytes:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | `stamp`: 1 + the entry's number, modulo 2^32; stored last |
//! | 4 | 3 | length of the payload |
//! | 7 | 1 | flags |
//! | 8 | 4 | immediate data |
//! | 12 | 4 | what the sender's `consumed` is by now, so that who answers need not store it as well |
//! | 16 | 112 | the payload, if it fits |
//!
//! A longer payload lies in the data area: at the next multiple of 64 behind the one before, or at the area's start if it
//! would cross the end. Both ends compute the place; nothing that one of them writes leads the other anywhere.
//!
//! **Status**, one file per provider, written by its owner, mapped read-only by its peers.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0x000 | 4 | `asleep`: 1 while the owner's reactor sleeps or is about to |
//! | 0x1000 | 8 * regions | what the region at this place is called (see [`open_word`]), 0 if closed |
//! | behind them | 8 * VIs | the same for VIs |

use crate::provider::{RegionHandle, ViId};

pub(super) const ENTRY_BYTES: u64 = 128;
pub(super) const INLINE_MAX: u32 = 112;
pub(super) const LINE: u64 = 64;

pub(super) const ENTRY_STAMP: u64 = 0;
pub(super) const ENTRY_WORDS: u64 = 8;
pub(super) const ENTRY_INLINE: u64 = 16;
const _: () = assert!(ENTRY_INLINE + INLINE_MAX as u64 == ENTRY_BYTES);

/// The payload goes on in the next entry.
pub(super) const FLAG_MORE: u8 = 1;
/// The entry carries immediate data.
pub(super) const FLAG_IMMEDIATE: u8 = 2;
/// No message but the notice of an RDMA write that carries immediate data.
pub(super) const FLAG_WRITTEN: u8 = 4;

const CHANNEL_HEADER: u64 = 0x1000;

pub(super) const STATUS_ASLEEP: u64 = 0;
const STATUS_WORDS: u64 = 0x1000;

/// Which end of a channel.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    fn index(self) -> u64 {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// Sizes of a channel's rings.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Entries of each ring; a power of two.
    pub(super) entries: u32,
    /// Bytes of each data area; a power of two.
    pub(super) data: u32,
}

impl Geometry {
    /// Sizes that a peer may ask for.
    pub(super) fn is_sane(self) -> bool {
        let entries = self.entries.is_power_of_two() && (2..=1 << 16).contains(&self.entries);
        // The length of a payload has 24 bits.
        entries && self.data.is_power_of_two() && (1 << 12..=1 << 26).contains(&self.data)
    }

    /// The most payload that one entry carries: an eighth of the data area, so that sender and receiver overlap.
    pub(super) fn payload_max(self) -> u32 {
        self.data / 8
    }

    fn ring_bytes(self) -> u64 {
        u64::from(self.entries) * ENTRY_BYTES + u64::from(self.data)
    }

    pub(super) fn channel_bytes(self) -> u64 {
        CHANNEL_HEADER + 2 * self.ring_bytes()
    }

    /// Where the ring that `side` fills lies.
    pub(super) fn ring(self, side: Side) -> RingPlace {
        let entries = CHANNEL_HEADER + side.index() * self.ring_bytes();
        let data = entries + u64::from(self.entries) * ENTRY_BYTES;
        RingPlace { entries, data, consumed: 0x80 * side.other().index() }
    }

    /// Where `side` says how many regions it announced.
    pub(super) fn announced(side: Side) -> u64 {
        0x40 + 0x80 * side.index()
    }

    /// Where `side` says that it wants to be rung.
    pub(super) fn quiet(side: Side) -> u64 {
        0x48 + 0x80 * side.index()
    }
}

/// Offsets of the parts of one ring in its channel.
#[derive(Debug, Copy, Clone)]
pub(super) struct RingPlace {
    pub(super) entries: u64,
    pub(super) data: u64,
    /// The receiver's `consumed` word.
    pub(super) consumed: u64,
}

/// Capacities of a status file.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct StatusShape {
    pub(super) regions: u16,
    pub(super) vis: u16,
}

impl StatusShape {
    pub(super) fn bytes(self) -> u64 {
        STATUS_WORDS + 8 * (u64::from(self.regions) + u64::from(self.vis))
    }

    /// Where the word of a region lies, if the table has such a place.
    pub(super) fn region(self, region: RegionHandle) -> Option<u64> {
        let place = region.index & 0xffff;
        (place < u32::from(self.regions)).then(|| STATUS_WORDS + 8 * u64::from(place))
    }

    /// Where the word of a VI lies, if the table has such a place.
    pub(super) fn vi(self, vi: ViId) -> Option<u64> {
        let place = vi.0 & 0xffff;
        (place < u32::from(self.vis)).then(|| STATUS_WORDS + 8 * (u64::from(self.regions) + u64::from(place)))
    }
}

/// What stands in a status word while the region or VI of that name is open.
pub(super) fn open_word(name: u32) -> u64 {
    1 << 32 | u64::from(name)
}
