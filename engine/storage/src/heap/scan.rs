//! Scans: all pages of a heap in the order of the disk, read ahead.

use super::Heap;
use crate::buffer::{PageRead, Pin, Use};
use crate::error::StorageError;
use crate::ids::{PageId, RowId};
use crate::page::Page;
use crate::port::EXTENT_PAGES;
use crate::row::Row;
use crate::store::Store;

/// A scan of a heap. Rows that are inserted, changed or moved meanwhile are seen or not.
pub struct Scan<'a> {
    store: &'a Store,
    /// In the order of their numbers, so that files take turns.
    pages: Vec<PageId>,
    next: usize,
    /// Up to here pages were asked for.
    ahead: usize,
    /// Pages to be ahead.
    depth: usize,
    /// The next page, if it is in the pool: on its way into the processor's cache.
    coming: Option<Pin<'a>>,
}

/// A page of a scan; it stays in the pool for as long as this lives.
pub struct ScanPage<'a> {
    pin: Pin<'a>,
}

/// The rows of a page, while nobody changes it; not to be kept across an await.
pub struct Rows<'a> {
    page: PageRead<'a>,
    name: PageId,
}

impl<'a> Scan<'a> {
    pub(crate) async fn start(store: &'a Store, heap: &Heap, depth: usize) -> Result<Self, StorageError> {
        let owned = heap.take_owned(store).await?;
        let pages = store.pages_of_object(&owned, false).await;
        heap.put_back(owned);
        let mut pages: Vec<PageId> = pages?.into_iter().map(|(page, _)| page).collect();
        pages.sort_unstable_by_key(|page| (page.number, page.file));
        Ok(Self { store, pages, next: 0, ahead: 0, depth, coming: None })
    }

    /// Pages of the scan.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// The next page.
    ///
    /// # Errors
    /// A page that cannot be read: it is named, and the next call goes on behind it.
    pub async fn next(&mut self) -> Result<Option<ScanPage<'a>>, StorageError> {
        let Some(page) = self.pages.get(self.next).copied() else { return Ok(None) };
        if self.ahead < self.pages.len() && self.ahead <= self.next + self.depth {
            self.read_ahead()?;
        }
        self.next += 1;
        let coming = self.coming.take();
        if let Some(next) = self.pages.get(self.next) {
            self.coming = self.store.pool.find(*next, Use::Scan)?;
        }
        if let Some(pin) = coming {
            return Ok(Some(ScanPage { pin }));
        }
        Ok(Some(ScanPage { pin: self.store.pool.fetch(page, Use::Scan).await? }))
    }

    /// Asks for the pages ahead, extent by extent.
    fn read_ahead(&mut self) -> Result<(), StorageError> {
        self.ahead = self.ahead.max(self.next);
        while self.ahead < self.pages.len() && self.ahead <= self.next + self.depth {
            let first = self.pages[self.ahead];
            let extent = |page: &PageId| (page.file, page.number / EXTENT_PAGES);
            let rest = &self.pages[self.ahead..];
            let count = rest.iter().take_while(|page| extent(page) == extent(&first)).count();
            let numbers = rest[..count].iter().map(|page| page.number);
            self.store.pool.read_ahead(first.file, numbers)?;
            self.ahead += count;
        }
        Ok(())
    }
}

impl ScanPage<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> PageId {
        self.pin.name()
    }

    /// Its rows.
    #[must_use]
    #[inline]
    pub fn rows(&self) -> Rows<'_> {
        Rows { page: self.pin.read(), name: self.pin.name() }
    }
}

impl Rows<'_> {
    /// The rows that were not deleted.
    #[must_use]
    #[inline]
    pub fn iter(&self) -> RowIter<'_> {
        RowIter { page: &self.page, name: self.name, slot: 0, count: self.page.slot_count() }
    }
}

/// The rows of a page, in the order of their slots.
pub struct RowIter<'a> {
    page: &'a Page<'a>,
    name: PageId,
    slot: u16,
    count: u16,
}

impl<'a> Iterator for RowIter<'a> {
    type Item = Row<'a>;

    // Whoever looks at a few columns of every row of a table pays for a call as much as for a column.
    #[inline(always)]
    fn next(&mut self) -> Option<Row<'a>> {
        while self.slot < self.count {
            let slot = self.slot;
            self.slot += 1;
            if let Some(row) = Row::in_slot(self.page, RowId { page: self.name, slot }) {
                return Some(row);
            }
        }
        None
    }
}
