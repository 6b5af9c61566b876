//! Names of things in a database, and how they are packed into eight bytes where pages mention each other.

use std::fmt;

/// A file of the database: a volume. File 0 has the boot page.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u16);

/// A page of a database: which file, and which 8 KiB of it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId {
    /// The file.
    pub file: FileId,
    /// Pages from the start of the file.
    pub number: u32,
}

/// A row: a slot of a page. It keeps its name for life, wherever its bytes move to.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The page on which it was inserted.
    pub page: PageId,
    /// The slot there.
    pub slot: u16,
}

/// Log sequence number: a place in the log, bytes since it began. It only grows; zero is before every record.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lsn(pub u64);

/// What pages belong to: a heap, or the long values of one.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u32);

impl ObjectId {
    /// Pages of the database itself.
    pub const SYSTEM: Self = Self(0);
    /// The catalog.
    pub const CATALOG: Self = Self(1);
    /// The first one that a table can have.
    pub const FIRST: Self = Self(16);
}

/// A transaction; never used again in one database. Zero is the engine itself, whose changes are never undone.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub u64);

impl TransactionId {
    /// The engine itself.
    pub const SYSTEM: Self = Self(0);
}

impl PageId {
    /// Page `number` of file `file`.
    #[must_use]
    pub const fn new(file: u16, number: u32) -> Self {
        Self { file: FileId(file), number }
    }

    /// As eight bytes: number, file, zero.
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.number) | u64::from(self.file.0) << 32
    }

    /// What [`Self::pack`] or [`RowId::pack`] made.
    #[must_use]
    pub fn unpack(packed: u64) -> Self {
        let [a, b, c, d, e, f, ..] = packed.to_le_bytes();
        Self::new(u16::from_le_bytes([e, f]), u32::from_le_bytes([a, b, c, d]))
    }
}

impl RowId {
    /// As eight bytes: page number, file, slot.
    #[must_use]
    pub fn pack(self) -> u64 {
        self.page.pack() | u64::from(self.slot) << 48
    }

    /// What [`Self::pack`] made.
    #[must_use]
    pub fn unpack(packed: u64) -> Self {
        let [.., low, high] = packed.to_le_bytes();
        Self { page: PageId::unpack(packed), slot: u16::from_le_bytes([low, high]) }
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}:{})", self.file.0, self.number)
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}:{}:{})", self.page.file.0, self.page.number, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_pages_are_packed_as_the_format_says() {
        let page = PageId::new(0x0102, 0x0304_0506);
        let row = RowId { page, slot: 0x0708 };
        assert_eq!(row.pack().to_le_bytes(), [6, 5, 4, 3, 2, 1, 8, 7]);
        assert_eq!(
            (RowId::unpack(row.pack()), PageId::unpack(row.pack()), PageId::unpack(page.pack())),
            (row, page, page)
        );
        assert_eq!(row.to_string(), "(258:50595078:1800)");
    }
}
