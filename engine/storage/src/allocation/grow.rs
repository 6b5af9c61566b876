//! Making files and letting them grow, all together.

use super::maps::{
    ALLOCATED, BOOT_PAGE, FILE_SIZE, MAP, PFS_EXTENTS, gam_page, is_system, pfs_byte, pfs_page, set_bits,
};
use crate::change::Change;
use crate::error::StorageError;
use crate::ids::{FileId, ObjectId, PageId};
use crate::page::PageKind;
use crate::port::EXTENT_PAGES;
use crate::store::{Author, Plan, Store};

/// Extents that a file grows by at least, as far as its volume reaches: 2 MiB.
const STEP: u32 = 32;

impl Store {
    /// Makes the header of a new file.
    pub(crate) async fn create_file(&self, file: FileId) -> Result<(), StorageError> {
        let header = self.pool.fetch_new(PageId { file, number: 0 }).await?;
        let number = file.0.to_le_bytes().to_vec();
        self.change(Author::Engine, &[&header], |_| {
            let format = Change::Format { kind: PageKind::FileHeader, owner: ObjectId::SYSTEM };
            let at = u16::try_from(MAP).expect("small");
            Ok(vec![(0, format), (0, Change::Bytes { at, bytes: number.clone() })])
        })
        .await
    }

    /// Lets all files grow; false if none can. The gate is held.
    pub(crate) async fn grow(&self) -> Result<bool, StorageError> {
        let mut grown = false;
        for file in &self.pool.files {
            grown |= self.grow_file(file.file).await?;
        }
        Ok(grown)
    }

    async fn grow_file(&self, file: FileId) -> Result<bool, StorageError> {
        let space = self.allocation.of(file);
        let first = space.extents;
        // At most to the end of what one PFS page covers: so there is one of each map to change.
        let most = (first / PFS_EXTENTS + 1) * PFS_EXTENTS;
        let end = space.limit.min(most).min(first.saturating_add(STEP.max(first / 8)));
        // Extents of maps alone are of no use.
        if end <= first || (end == first + 1 && is_system(first)) {
            return Ok(false);
        }
        let fresh = is_system(first);
        let fresh_gam = first.is_multiple_of(super::GAM_EXTENTS);
        let numbers = [0, gam_page(first), gam_page(first) + 1, pfs_page(first)];
        let new = [false, fresh_gam, fresh_gam, fresh];
        let mut pins = Vec::new();
        for (number, new) in numbers.into_iter().zip(new) {
            let name = PageId { file, number };
            pins.push(if new {
                self.pool.fetch_new(name).await?
            } else {
                self.pool.fetch(name, super::Use::Point).await?
            });
        }
        let pins: Vec<_> = pins.iter().collect();
        self.change(Author::Engine, &pins, |pages| {
            let mut plan = Plan::new();
            for (place, kind) in [(1, PageKind::Gam), (2, PageKind::Sgam), (3, PageKind::Pfs)] {
                if new[place] {
                    plan.push((place, Change::Format { kind, owner: ObjectId::SYSTEM }));
                }
            }
            let usable = first + u32::from(fresh);
            let free = if fresh_gam {
                // Its bits are all zero when this is done; the page may hold anything now.
                let count = super::maps::wide(end - usable);
                let mut bits = vec![0; (count + 1).div_ceil(8)];
                (1..=count).for_each(|at| bits[at / 8] |= 1 << (at % 8));
                Change::Bytes { at: u16::try_from(MAP).expect("small"), bytes: bits }
            } else {
                set_bits(pages[1], MAP, usable, end - usable, true)
            };
            plan.push((1, free));
            if fresh {
                let at = u16::try_from(pfs_byte(first * EXTENT_PAGES)).expect("within a page");
                let bytes = vec![ALLOCATED; super::maps::wide(EXTENT_PAGES)];
                plan.push((3, Change::Bytes { at, bytes }));
            }
            let size = (end * EXTENT_PAGES).to_le_bytes().to_vec();
            plan.push((0, Change::Bytes { at: u16::try_from(FILE_SIZE).expect("small"), bytes: size }));
            Ok(plan)
        })
        .await?;
        self.allocation.update(file, |space| {
            space.extents = end;
            space.free += u64::from(end - first - u32::from(fresh));
        });
        Ok(true)
    }
}

const _: () = assert!(BOOT_PAGE < EXTENT_PAGES);

/// Least extents of a file.
pub(crate) const EXTENTS_MIN: u32 = 4;
