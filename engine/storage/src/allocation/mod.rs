//! Who owns which page. Space is given in extents of eight pages: *uniform* ones belong to one object, the pages of *mixed* ones to
//! different objects, so that small tables take little.
//!
//! - **GAM**: a bit per extent, set while it is free. **SGAM**: set while it is mixed and has a free page.
//! - **PFS**: a byte per page: in use or not, and how full (the latter is a hint).
//! - **IAM**: per object, and part of a file, the extents that it owns, and its first eight pages, which are in mixed extents.
//!
//! Files are filled in proportion to what is free in each, and grow together. Allocation is the engine's own work, not a transaction's: a
//! transaction that is rolled back leaves empty pages to its table.

mod grow;
pub(crate) mod iam;
pub(crate) mod maps;

use std::sync::Mutex;

pub(crate) use self::grow::EXTENTS_MIN;
use self::maps::{GAM_EXTENTS, MAP, bit, count_bits, find_run, gam_page, narrow};
use crate::buffer::Use;
use crate::error::StorageError;
use crate::ids::{FileId, PageId};
use crate::port::EXTENT_PAGES;
use crate::store::Store;
use crate::sync::{Gate, lock};

/// Extents that a large table is given at once.
pub(crate) const EXTENTS_AT_ONCE: u32 = 4;

/// What is known about the space of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSpace {
    /// Extents of the file as it is.
    pub(crate) extents: u32,
    /// Extents that it can grow to: those of its volume.
    pub(crate) limit: u32,
    /// Free extents.
    pub(crate) free: u64,
    /// Its turn comes when this is the greatest: free space that others were given room instead of.
    credit: i64,
    /// Before this extent nothing is free.
    from: u32,
}

/// The space of all files.
#[derive(Debug, Default)]
pub(crate) struct Allocation {
    /// One at a time looks for space and takes it.
    pub(crate) gate: Gate,
    pub(crate) files: Mutex<Vec<FileSpace>>,
}

impl Allocation {
    pub(crate) fn new(limits: &[u32]) -> Self {
        let files = limits.iter().map(|limit| FileSpace { limit: *limit, ..FileSpace::default() }).collect();
        Self { gate: Gate::default(), files: Mutex::new(files) }
    }

    /// Files with free extents, the one first whose turn it is.
    fn turn(&self) -> Vec<FileId> {
        let mut files = lock(&self.files);
        let total: u64 = files.iter().map(|file| file.free).sum();
        for file in files.iter_mut() {
            file.credit += i64::try_from(file.free).unwrap_or(i64::MAX);
        }
        let mut order: Vec<usize> = (0..files.len()).filter(|file| files[*file].free > 0).collect();
        order.sort_by_key(|file| std::cmp::Reverse(files[*file].credit));
        if let Some(first) = order.first() {
            files[*first].credit -= i64::try_from(total).unwrap_or(i64::MAX);
        }
        order.into_iter().map(|file| FileId(u16::try_from(file).expect("few files"))).collect()
    }

    pub(crate) fn of(&self, file: FileId) -> FileSpace {
        lock(&self.files)[usize::from(file.0)].clone()
    }

    fn update(&self, file: FileId, change: impl FnOnce(&mut FileSpace)) {
        change(&mut lock(&self.files)[usize::from(file.0)]);
    }
}

impl Store {
    /// Finds a run of `count` free extents, or of one if there is no such run. The gate is held.
    pub(crate) async fn find_extents(&self, count: u32) -> Result<(FileId, u32, u32), StorageError> {
        loop {
            for file in self.allocation.turn() {
                for count in [count, 1] {
                    if let Some(first) = self.find_free(file, count).await? {
                        return Ok((file, first, count));
                    }
                }
            }
            if !self.grow().await? {
                return Err(StorageError::Full);
            }
        }
    }

    async fn find_free(&self, file: FileId, count: u32) -> Result<Option<u32>, StorageError> {
        let FileSpace { extents, from, .. } = self.allocation.of(file);
        for interval in from / GAM_EXTENTS..extents.div_ceil(GAM_EXTENTS) {
            let start = interval * GAM_EXTENTS;
            let gam = self.pool.fetch(PageId { file, number: gam_page(start) }, Use::Point).await?;
            let (low, high) = (from.max(start) - start, (extents - start).min(GAM_EXTENTS));
            let found = find_run(*gam.read(), MAP, low, high, count);
            if let Some(found) = found {
                return Ok(Some(start + found));
            }
        }
        Ok(None)
    }

    /// Notes that extents were taken.
    pub(crate) fn took(&self, file: FileId, first: u32, count: u32) {
        self.allocation.update(file, |space| {
            space.free -= u64::from(count);
            if space.from == first {
                space.from = first + count;
            }
        });
    }

    /// Finds a mixed extent with a free page. The gate is held.
    pub(crate) async fn find_mixed(&self) -> Result<Option<(FileId, u32)>, StorageError> {
        let files = lock(&self.allocation.files).len();
        for number in 0..files {
            let file = FileId(u16::try_from(number).expect("few files"));
            let extents = self.allocation.of(file).extents;
            for interval in 0..extents.div_ceil(GAM_EXTENTS) {
                let start = interval * GAM_EXTENTS;
                let sgam = self.pool.fetch(PageId { file, number: gam_page(start) + 1 }, Use::Point).await?;
                let found = find_run(*sgam.read(), MAP, 0, (extents - start).min(GAM_EXTENTS), 1);
                if let Some(found) = found {
                    return Ok(Some((file, start + found)));
                }
            }
        }
        Ok(None)
    }

    /// Learns what is free, when a database is opened.
    pub(crate) async fn survey(&self) -> Result<(), StorageError> {
        for (number, file) in self.pool.files.iter().enumerate() {
            let header = self.pool.fetch(PageId { file: file.file, number: 0 }, Use::Point).await?;
            let extents = header.read().u32_at(maps::FILE_SIZE) / EXTENT_PAGES;
            let mut free = 0;
            for start in (0..extents).step_by(maps::wide(GAM_EXTENTS)) {
                let gam = self.pool.fetch(PageId { file: file.file, number: gam_page(start) }, Use::Point).await?;
                free += count_bits(*gam.read(), MAP, (extents - start).min(GAM_EXTENTS));
            }
            self.allocation.update(FileId(u16::try_from(number).expect("few files")), |space| {
                (space.extents, space.free) = (extents, free);
            });
        }
        Ok(())
    }

    /// Whether the GAM says that the extent is free.
    pub(crate) async fn is_free(&self, file: FileId, extent: u32) -> Result<bool, StorageError> {
        let gam = self.pool.fetch(PageId { file, number: gam_page(extent) }, Use::Point).await?;
        let free = bit(*gam.read(), MAP, extent);
        Ok(free)
    }
}

/// Extents of a volume of so many blocks.
pub(crate) fn extents_of(blocks: u64) -> u32 {
    let extents = blocks / (crate::port::PAGE_BLOCKS * u64::from(EXTENT_PAGES));
    let most = u32::MAX / EXTENT_PAGES;
    u32::try_from(extents).map_or(most, |extents| extents.min(most))
}

/// The extent of a page.
pub(crate) fn extent_of(page: u32) -> u32 {
    page / EXTENT_PAGES
}

/// The pages of an extent.
pub(crate) fn pages_of(extent: u32) -> std::ops::Range<u32> {
    extent * EXTENT_PAGES..(extent + 1) * EXTENT_PAGES
}

const _: () = assert!(maps::PFS_EXTENTS * EXTENT_PAGES <= 8128 && GAM_EXTENTS.is_multiple_of(maps::PFS_EXTENTS));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_filled_in_proportion_to_what_is_free() {
        let allocation = Allocation::new(&[0, 0, 0]);
        for (file, free) in [(0, 300), (1, 100), (2, 0)] {
            allocation.update(FileId(file), |space| space.free = free);
        }
        let mut taken = [0_u64; 3];
        for _ in 0..200 {
            let file = allocation.turn()[0];
            allocation.update(file, |space| space.free -= 1);
            taken[usize::from(file.0)] += 1;
        }
        assert_eq!(taken[2], 0);
        assert!((145..=155).contains(&taken[0]), "{taken:?}");
        assert_eq!(narrow(7), 7);
    }
}
