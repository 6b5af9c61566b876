//! Rows in slots. Rows lie from the header upwards, in any order, with holes; the slots lie at the end of the page, the first one last.
//!
//! What happens to a page depends on its bytes and the change alone, so that redoing the same changes makes the same page.

use super::{BODY_BYTES, DATA_END, FREE, HEADER_BYTES, PAGE_BYTES, Page, SLOT_COUNT};

/// Bytes of a slot: where the row is, and how long it is.
pub(crate) const SLOT_BYTES: usize = 4;

/// The page has no room for the row.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no room on the page")]
pub struct NoRoom;

fn narrow(value: usize) -> u16 {
    u16::try_from(value).expect("a place in a page")
}

fn slot_place(slot: u16) -> usize {
    PAGE_BYTES - SLOT_BYTES * (usize::from(slot) + 1)
}

impl Page<'_> {
    pub(super) fn start_slots(&self) {
        self.set(SLOT_COUNT, 0_u16.to_le_bytes());
        self.set(DATA_END, narrow(HEADER_BYTES).to_le_bytes());
        self.set(FREE, narrow(BODY_BYTES).to_le_bytes());
    }

    /// Whether the slots stay within the page; pages without rows have none.
    pub(super) fn slots_make_sense(&self) -> bool {
        let (count, end) = (self.slot_count(), self.data_end());
        let slots = SLOT_BYTES * usize::from(count);
        slots <= BODY_BYTES
            && (HEADER_BYTES..=PAGE_BYTES - slots).contains(&end)
            && (0..count).all(|slot| self.row_place(slot).is_none_or(|(at, len)| at >= HEADER_BYTES && at + len <= end))
    }

    /// Slots, empty ones included.
    #[must_use]
    #[inline]
    pub fn slot_count(&self) -> u16 {
        self.u16_at(SLOT_COUNT)
    }

    pub(crate) fn data_end(&self) -> usize {
        usize::from(self.u16_at(DATA_END))
    }

    /// Bytes that are neither rows nor slots.
    #[must_use]
    pub fn free(&self) -> usize {
        usize::from(self.u16_at(FREE))
    }

    /// Where the row in `slot` is, and how long; `None` if there is none.
    #[must_use]
    #[inline]
    pub fn row_place(&self, slot: u16) -> Option<(usize, usize)> {
        if slot >= self.slot_count() {
            return None;
        }
        let entry = self.u32_at(slot_place(slot)).to_le_bytes();
        let at = u16::from_le_bytes([entry[0], entry[1]]);
        let len = u16::from_le_bytes([entry[2], entry[3]]);
        (at != 0).then_some((usize::from(at), usize::from(len)))
    }

    /// The bytes of a row.
    #[must_use]
    pub fn row(&self, slot: u16) -> Option<Vec<u8>> {
        self.row_place(slot).map(|(at, len)| self.bytes(at, len))
    }

    /// Whether a row of `len` bytes finds room in `slot`, which is empty or the first one behind the last.
    #[must_use]
    pub fn has_room(&self, slot: u16, len: usize) -> bool {
        let new = (usize::from(slot) + 1).saturating_sub(usize::from(self.slot_count()));
        self.free() >= len + new * SLOT_BYTES
    }

    fn set_slot(&self, slot: u16, at: usize, len: usize) {
        let ([a, b], [c, d]) = (narrow(at).to_le_bytes(), narrow(len).to_le_bytes());
        self.set(slot_place(slot), [a, b, c, d]);
    }

    fn set_free(&self, free: usize) {
        self.set(FREE, narrow(free).to_le_bytes());
    }

    /// Puts a row into a slot that is empty or behind the last one.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing has changed.
    ///
    /// # Panics
    /// If the slot has a row.
    pub fn insert(&self, slot: u16, row: &[u8]) -> Result<(), NoRoom> {
        assert!(self.row_place(slot).is_none(), "slot {slot} has a row");
        if !self.has_room(slot, row.len()) {
            return Err(NoRoom);
        }
        let count = self.slot_count();
        if slot >= count {
            let slots = SLOT_BYTES * (usize::from(slot) + 1);
            if self.data_end() + slots > PAGE_BYTES {
                self.compact();
            }
            for new in count..=slot {
                self.set_slot(new, 0, 0);
            }
            self.set(SLOT_COUNT, (slot + 1).to_le_bytes());
            self.set_free(self.free() - SLOT_BYTES * usize::from(slot + 1 - count));
        }
        self.place(slot, row);
        Ok(())
    }

    /// Puts a row at the end of the data; there is room.
    fn place(&self, slot: u16, row: &[u8]) {
        let limit = PAGE_BYTES - SLOT_BYTES * usize::from(self.slot_count());
        if self.data_end() + row.len() > limit {
            self.compact();
        }
        let at = self.data_end();
        assert!(at + row.len() <= limit, "free bytes are what they should be");
        self.write(at, row);
        self.set_slot(slot, at, row.len());
        self.set(DATA_END, narrow(at + row.len()).to_le_bytes());
        self.set_free(self.free() - row.len());
    }

    /// Empties a slot.
    ///
    /// # Panics
    /// If it is empty.
    pub fn remove(&self, slot: u16) {
        let (at, len) = self.row_place(slot).expect("a row to remove");
        self.set_slot(slot, 0, 0);
        if at + len == self.data_end() {
            self.set(DATA_END, narrow(at).to_le_bytes());
        }
        self.set_free(self.free() + len);
    }

    /// Changes the row in a slot.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing has changed.
    ///
    /// # Panics
    /// If the slot is empty.
    pub fn replace(&self, slot: u16, row: &[u8]) -> Result<(), NoRoom> {
        let (at, len) = self.row_place(slot).expect("a row to replace");
        if row.len() <= len {
            self.write(at, row);
            self.set_slot(slot, at, row.len());
            self.set_free(self.free() + len - row.len());
            return Ok(());
        }
        if self.free() + len < row.len() {
            return Err(NoRoom);
        }
        self.remove(slot);
        self.place(slot, row);
        Ok(())
    }

    /// Moves all rows together, in the order of their slots.
    fn compact(&self) {
        let mut at = HEADER_BYTES;
        let rows: Vec<_> = (0..self.slot_count()).filter_map(|slot| Some((slot, self.row(slot)?))).collect();
        for (slot, row) in rows {
            self.write(at, &row);
            self.set_slot(slot, at, row.len());
            at += row.len();
        }
        self.set(DATA_END, narrow(at).to_le_bytes());
    }

    /// The page without the hole in its middle: the bytes up to the end of the data, and the slots.
    #[must_use]
    pub fn image(&self) -> (Vec<u8>, Vec<u8>) {
        // Pages without rows use their whole body.
        let low = if self.has_rows() { self.data_end() } else { PAGE_BYTES };
        let slots = PAGE_BYTES - SLOT_BYTES * usize::from(self.slot_count());
        (self.bytes(0, low), if low < PAGE_BYTES { self.bytes(slots, PAGE_BYTES - slots) } else { Vec::new() })
    }

    /// Makes it what [`Self::image`] saw.
    ///
    /// # Panics
    /// If the pieces are longer than a page.
    pub fn restore(&self, low: &[u8], slots: &[u8]) {
        self.clear();
        self.write(0, low);
        self.write(PAGE_BYTES - slots.len(), slots);
    }

    fn has_rows(&self) -> bool {
        use super::PageKind::{Heap, Lob};
        matches!(self.kind(), Some(Heap | Lob))
    }
}
