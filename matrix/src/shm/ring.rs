//! One ring of a channel: entries with small payloads inside, and a data area for larger ones. One end fills it, the
//! other empties it; neither believes the other.
//!
//! Invariants:
//! - an entry is there when its stamp is; the sender stores the stamp last, so a sender that died in the middle of an
//!   entry left nothing;
//! - the sender overwrites an entry, or payload, only when `consumed` says that the receiver is done with it, and a
//!   `consumed` that runs ahead of it is garbage;
//! - what an end needs to know of its own progress it keeps in its own memory.

use std::sync::atomic::{Ordering, fence};

use super::layout::{
    ENTRY_BYTES, ENTRY_INLINE, ENTRY_STAMP, ENTRY_WORDS, FLAG_IMMEDIATE, FLAG_MORE, FLAG_WRITTEN, Geometry, INLINE_MAX,
    LINE, RingPlace,
};

/// The memory that a ring lies in; offsets and alignment are right. (The loom model brings another.)
pub(super) trait Shared {
    /// An acquiring load.
    fn get_u32(&self, at: u64) -> u32;
    /// An acquiring load.
    fn get_u64(&self, at: u64) -> u64;
    /// A releasing store.
    fn put_u32(&self, at: u64, value: u32);
    /// A releasing store.
    fn put_u64(&self, at: u64, value: u64);
    /// The line at `at` will be read soon.
    fn prefetch(&self, at: u64);
    /// The line at `at` will be written soon.
    fn prefetch_write(&self, at: u64);
    /// A sequentially consistent fence.
    fn full_fence(&self);
}

impl Shared for crate::memory::Memory {
    fn get_u32(&self, at: u64) -> u32 {
        self.load_u32(at).expect("the channel is as long as its geometry says")
    }

    fn get_u64(&self, at: u64) -> u64 {
        self.load_u64(at).expect("the channel is as long as its geometry says")
    }

    fn put_u32(&self, at: u64, value: u32) {
        self.store_u32(at, value).expect("the channel is as long as its geometry says");
    }

    fn put_u64(&self, at: u64, value: u64) {
        self.store_u64(at, value).expect("the channel is as long as its geometry says");
    }

    fn prefetch(&self, at: u64) {
        self.prefetch(at);
    }

    fn prefetch_write(&self, at: u64) {
        self.prefetch_write(at);
    }

    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The peer wrote what it never may.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Garbage;

/// What an entry says, beside its payload.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of payload.
    pub(super) len: u32,
    /// The message goes on in the next entry.
    pub(super) more: bool,
    /// An RDMA write came before it; there is no message.
    pub(super) written: bool,
    pub(super) immediate: Option<u32>,
}

/// Where the payload of `len` bytes lies that comes behind `position`, and the position behind it. Positions count bytes
/// of the data area over all laps.
fn place(position: u64, len: u32, geometry: Geometry) -> (u64, u64) {
    let data = u64::from(geometry.data);
    let need = u64::from(len).next_multiple_of(LINE);
    let start = if position % data + need > data { position.next_multiple_of(data) } else { position };
    (start, start + need)
}

/// The end that fills.
#[derive(Debug)]
pub(super) struct Producer<M> {
    memory: M,
    ring: RingPlace,
    geometry: Geometry,
    /// Entries so far, modulo 2^32.
    produced: u32,
    /// As many of them are known to be dealt with.
    consumed: u32,
    data_tail: u64,
    data_head: u64,
    /// `data_tail` behind each entry that is outstanding.
    ends: Box<[u64]>,
}

impl<M: Shared> Producer<M> {
    pub(super) fn new(memory: M, ring: RingPlace, geometry: Geometry) -> Self {
        let ends = (0..geometry.entries).map(|_| 0).collect();
        Self { memory, ring, geometry, produced: 0, consumed: 0, data_tail: 0, data_head: 0, ends }
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    /// Looks how far the receiver is; returns whether it moved.
    pub(super) fn refresh(&mut self) -> Result<bool, Garbage> {
        self.learn(self.memory.get_u32(self.ring.consumed))
    }

    /// The receiver says how far it is; it may have said more before. Returns whether it moved.
    pub(super) fn learn(&mut self, consumed: u32) -> Result<bool, Garbage> {
        let moved = consumed.wrapping_sub(self.consumed);
        if moved == 0 || self.is_consumed(consumed) {
            return Ok(false);
        }
        if moved > self.produced.wrapping_sub(self.consumed) {
            return Err(Garbage);
        }
        self.consumed = consumed;
        self.data_head = self.ends[self.slot(consumed.wrapping_sub(1))];
        Ok(true)
    }

    /// Whether the receiver has dealt with the first `entries` entries.
    pub(super) fn is_consumed(&self, entries: u32) -> bool {
        // Both lie in a window that is shorter than half the numbers.
        self.consumed.wrapping_sub(entries) < 1 << 31
    }

    /// Whether an entry with `len` bytes of payload fits.
    pub(super) fn has_room(&self, len: u32) -> bool {
        let outstanding = self.produced.wrapping_sub(self.consumed);
        let (_, end) = place(self.data_tail, len, self.geometry);
        outstanding < self.geometry.entries
            && (len <= INLINE_MAX || end - self.data_head <= u64::from(self.geometry.data))
    }

    /// The next entry will be filled soon: its lines, which the peer watches, come over meanwhile.
    pub(super) fn prepare(&self) {
        let entry = self.ring.entries + ENTRY_BYTES * self.slot(self.produced) as u64;
        self.memory.prefetch_write(entry);
        self.memory.prefetch_write(entry + LINE);
    }

    /// Publishes an entry whose payload `fill` puts at the offset it is given, and with it how far we are with the peer's
    /// ring; returns the number of entries so far.
    pub(super) fn push<E>(
        &mut self,
        header: Header,
        consumed: u32,
        fill: impl FnOnce(&M, u64) -> Result<(), E>,
    ) -> Result<u32, E> {
        assert!(self.has_room(header.len) && header.len <= self.geometry.payload_max(), "asked before");
        let entry = self.ring.entries + ENTRY_BYTES * self.slot(self.produced) as u64;
        let mut data_tail = self.data_tail;
        let payload = if header.len <= INLINE_MAX {
            entry + ENTRY_INLINE
        } else {
            let (start, end) = place(self.data_tail, header.len, self.geometry);
            data_tail = end;
            self.ring.data + start % u64::from(self.geometry.data)
        };
        fill(&self.memory, payload)?;
        let slot = self.slot(self.produced);
        self.ends[slot] = data_tail;
        self.data_tail = data_tail;
        self.produced = self.produced.wrapping_add(1);
        let flag = |condition, flag| if condition { flag } else { 0 };
        let flags = flag(header.more, FLAG_MORE)
            | flag(header.written, FLAG_WRITTEN)
            | flag(header.immediate.is_some(), FLAG_IMMEDIATE);
        let words = u64::from(consumed) << 32 | u64::from(header.immediate.unwrap_or(0));
        self.memory.put_u64(entry + ENTRY_WORDS, words);
        let first = u64::from(flags) << 56 | u64::from(header.len) << 32 | u64::from(self.produced);
        self.memory.put_u64(entry + ENTRY_STAMP, first);
        Ok(self.produced)
    }

    fn slot(&self, number: u32) -> usize {
        usize::try_from(number & (self.geometry.entries - 1)).expect("rings are shorter than the address space")
    }
}

/// An entry that has arrived.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) header: Header,
    /// How far its sender was with our ring.
    pub(super) consumed: u32,
    /// Where its payload lies in the channel.
    pub(super) payload: u64,
    data_position: u64,
}

/// The end that empties.
#[derive(Debug)]
pub(super) struct Consumer<M> {
    memory: M,
    ring: RingPlace,
    geometry: Geometry,
    consumed: u32,
    data_position: u64,
}

impl<M: Shared> Consumer<M> {
    pub(super) fn new(memory: M, ring: RingPlace, geometry: Geometry) -> Self {
        Self { memory, ring, geometry, consumed: 0, data_position: 0 }
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    /// The next entry, if it has arrived. It is read once; what the sender writes later changes nothing any more but the
    /// payload itself.
    pub(super) fn peek(&self) -> Result<Option<Arrived>, Garbage> {
        let slot = u64::from(self.consumed & (self.geometry.entries - 1));
        let entry = self.ring.entries + ENTRY_BYTES * slot;
        // Both lines of the entry travel at the same time.
        self.memory.prefetch(entry + LINE);
        let first = self.memory.get_u64(entry + ENTRY_STAMP);
        let [s0, s1, s2, s3, l0, l1, l2, flags] = first.to_le_bytes();
        if u32::from_le_bytes([s0, s1, s2, s3]) != self.consumed.wrapping_add(1) {
            return Ok(None);
        }
        let len = u32::from_le_bytes([l0, l1, l2, 0]);
        let [i0, i1, i2, i3, c0, c1, c2, c3] = self.memory.get_u64(entry + ENTRY_WORDS).to_le_bytes();
        let is = |flag: u8| flags & flag != 0;
        let known = flags & !(FLAG_MORE | FLAG_IMMEDIATE | FLAG_WRITTEN) == 0;
        let whole = !is(FLAG_MORE) || (len > 0 && !is(FLAG_IMMEDIATE) && !is(FLAG_WRITTEN));
        let notice = !is(FLAG_WRITTEN) || (len == 0 && is(FLAG_IMMEDIATE));
        if !known || !whole || !notice || len > self.geometry.payload_max() {
            return Err(Garbage);
        }
        let (payload, data_position) = if len <= INLINE_MAX {
            (entry + ENTRY_INLINE, self.data_position)
        } else {
            let (start, end) = place(self.data_position, len, self.geometry);
            (self.ring.data + start % u64::from(self.geometry.data), end)
        };
        let immediate = is(FLAG_IMMEDIATE).then(|| u32::from_le_bytes([i0, i1, i2, i3]));
        let header = Header { len, more: is(FLAG_MORE), written: is(FLAG_WRITTEN), immediate };
        let consumed = u32::from_le_bytes([c0, c1, c2, c3]);
        Ok(Some(Arrived { header, consumed, payload, data_position }))
    }

    /// Is done with the entry that [`Self::peek`] showed: its payload is wherever it belongs. The sender learns it from
    /// the next entry that goes its way, or from [`Self::publish`].
    pub(super) fn pop(&mut self, arrived: &Arrived) {
        self.consumed = self.consumed.wrapping_add(1);
        self.data_position = arrived.data_position;
    }

    /// Entries taken so far, modulo 2^32.
    pub(super) fn consumed(&self) -> u32 {
        self.consumed
    }

    /// Says how far we are.
    pub(super) fn publish(&self) {
        self.memory.put_u32(self.ring.consumed, self.consumed);
    }
}
