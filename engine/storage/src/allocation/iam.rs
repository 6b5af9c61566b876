//! The pages of one object: what it owns, and how it is given more.

use std::collections::VecDeque;

use super::maps::{ALLOCATED, FULLNESS, GAM_EXTENTS, IAM, MAP, MIXED, gam_page, pfs_byte, pfs_page, set_bits};
use super::{EXTENTS_AT_ONCE, extent_of, pages_of};
use crate::buffer::{Pin, Use};
use crate::change::Change;
use crate::error::StorageError;
use crate::ids::{FileId, ObjectId, PageId};
use crate::page::{Page, PageKind};
use crate::store::{Author, Plan, Store};

/// Pages that an object has in mixed extents at most.
pub(crate) const SINGLES: usize = 8;
/// From so many extents on an object is given several at once.
const LARGE: u64 = 16;

// Where fields of an IAM page are.
const SEQUENCE: usize = 64;
const START: usize = 68;
const FILE: usize = 72;
const NEXT: usize = 80;
const SINGLE: usize = 88;
const BITS: usize = 192;

/// One IAM page of an object.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Map {
    page: PageId,
    file: FileId,
    /// The first extent that it covers.
    start: u32,
}

/// What is known of an object's pages. The IAM pages say so; this remembers it.
#[derive(Debug)]
pub(crate) struct Owned {
    object: ObjectId,
    kind: PageKind,
    maps: Vec<Map>,
    singles: usize,
    extents: u64,
    /// Pages of its extents that were never used.
    blank: VecDeque<PageId>,
    /// Pages that may have room.
    pub(crate) roomy: VecDeque<PageId>,
}

/// Pages with room that are remembered at most.
pub(crate) const ROOMY: usize = 64;

fn field(at: usize) -> u16 {
    u16::try_from(at).expect("within a page")
}

impl Owned {
    fn covers(&self, file: FileId, extent: u32) -> Option<&Map> {
        let start = extent - extent % GAM_EXTENTS;
        self.maps.iter().find(|map| map.file == file && map.start == start)
    }

    /// Remembers a page that may have room.
    pub(crate) fn has_room(&mut self, page: PageId) {
        if self.roomy.len() < ROOMY && !self.roomy.contains(&page) {
            self.roomy.push_back(page);
        }
    }
}

fn iam_fields(sequence: usize, file: FileId, start: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&super::narrow(sequence).to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&u64::from(file.0).to_le_bytes());
    bytes
}

/// The names of an IAM page's single pages.
fn singles(page: Page<'_>) -> impl Iterator<Item = PageId> {
    (0..SINGLES).map(move |slot| page.u64_at(SINGLE + 8 * slot)).filter(|packed| *packed != 0).map(PageId::unpack)
}

impl Store {
    /// Makes an object's first IAM page.
    pub(crate) async fn create_object(&self, object: ObjectId) -> Result<PageId, StorageError> {
        let _gate = self.allocation.gate.enter().await;
        let format = move |page: PageId| {
            let bytes = iam_fields(0, page.file, 0);
            vec![Change::Format { kind: PageKind::Iam, owner: object }, Change::Bytes { at: field(SEQUENCE), bytes }]
        };
        self.take_single(IAM, None, |_, page| Ok((format(page), Vec::new()))).await
    }

    /// Learns what an object owns from its IAM pages, which begin with `first`.
    pub(crate) async fn open_object(
        &self,
        object: ObjectId,
        kind: PageKind,
        first: PageId,
    ) -> Result<Owned, StorageError> {
        let mut owned = Owned {
            object,
            kind,
            maps: Vec::new(),
            singles: 0,
            extents: 0,
            blank: VecDeque::new(),
            roomy: VecDeque::new(),
        };
        let mut next = first;
        loop {
            let pin = self.pool.fetch(next, Use::Point).await?;
            let page = pin.read();
            if page.kind() != Some(PageKind::Iam) || page.owner() != object {
                return Err(StorageError::Inconsistent(next));
            }
            let file = FileId(page.u16_at(FILE));
            let map = Map { page: next, file, start: page.u32_at(START) };
            if owned.maps.contains(&map) {
                return Err(StorageError::Inconsistent(next));
            }
            owned.maps.push(map);
            owned.singles += singles(*page).count();
            owned.extents += super::count_bits(*page, BITS, GAM_EXTENTS);
            let packed = page.u64_at(NEXT);
            if packed == 0 {
                break;
            }
            next = PageId::unpack(packed);
        }
        for page in self.pages_of_object(&owned, true).await? {
            match page {
                (page, None) => owned.blank.push_back(page),
                (page, Some(pfs)) if pfs & FULLNESS < 4 => owned.has_room(page),
                _ => {}
            }
        }
        Ok(owned)
    }

    /// The object's pages in the order of the disk, with their PFS bytes; with `blank`, those too that were never used.
    pub(crate) async fn pages_of_object(
        &self,
        owned: &Owned,
        blank: bool,
    ) -> Result<Vec<(PageId, Option<u8>)>, StorageError> {
        let mut pages = Vec::new();
        for map in owned.maps.clone() {
            let (alone, extents) = {
                let pin = self.pool.fetch(map.page, Use::Point).await?;
                let page = pin.read();
                let alone: Vec<PageId> = singles(*page).collect();
                let mut extents = Vec::new();
                let mut from = 0;
                while let Some(found) = super::find_run(*page, BITS, from, GAM_EXTENTS, 1) {
                    extents.push(map.start + found);
                    from = found + 1;
                }
                (alone, extents)
            };
            let of_extents = extents.iter().flat_map(|extent| pages_of(*extent));
            let all = alone.into_iter().chain(of_extents.map(|number| PageId { file: map.file, number }));
            let mut held: Option<Pin<'_>> = None;
            for page in all {
                let name = PageId { file: page.file, number: pfs_page(extent_of(page.number)) };
                if held.as_ref().is_none_or(|pin| pin.name() != name) {
                    held = Some(self.pool.fetch(name, Use::Point).await?);
                }
                let pfs = held.as_ref().expect("just fetched").read().u8_at(pfs_byte(page.number));
                let used = pfs & ALLOCATED != 0;
                if used || blank {
                    pages.push((page, used.then_some(pfs)));
                }
            }
        }
        pages.sort_unstable();
        Ok(pages)
    }

    /// Gives the object one more page, formatted and empty.
    pub(crate) async fn extend(&self, owned: &mut Owned) -> Result<PageId, StorageError> {
        let _gate = self.allocation.gate.enter().await;
        if owned.blank.is_empty() && owned.singles < SINGLES {
            return self.extend_singly(owned).await;
        }
        if owned.blank.is_empty() {
            self.extend_by_extents(owned).await?;
        }
        let page = *owned.blank.front().expect("extents have pages");
        let new = self.pool.fetch_new(page).await?;
        let pfs = self.fetch_pfs(page).await?;
        let (kind, owner) = (owned.kind, owned.object);
        self.change(Author::Engine, &[&new, &pfs], |_| {
            Ok(vec![(0, Change::Format { kind, owner }), (1, pfs_change(page, ALLOCATED))])
        })
        .await?;
        owned.blank.pop_front();
        Ok(page)
    }

    async fn fetch_pfs(&self, page: PageId) -> Result<Pin<'_>, StorageError> {
        self.pool.fetch(PageId { file: page.file, number: pfs_page(extent_of(page.number)) }, Use::Point).await
    }

    async fn extend_singly(&self, owned: &mut Owned) -> Result<PageId, StorageError> {
        let first = self.pool.fetch(owned.maps[0].page, Use::Point).await?;
        let (kind, owner) = (owned.kind, owned.object);
        let page = self
            .take_single(0, Some(&first), |iam, page| {
                let iam = iam.expect("it was given");
                let empty = (0..SINGLES).find(|slot| iam.u64_at(SINGLE + 8 * slot) == 0);
                let slot = empty.ok_or(StorageError::Inconsistent(page))?;
                let bytes = page.pack().to_le_bytes().to_vec();
                let entry = Change::Bytes { at: field(SINGLE + 8 * slot), bytes };
                Ok((vec![Change::Format { kind, owner }], vec![entry]))
            })
            .await?;
        owned.singles += 1;
        Ok(page)
    }

    async fn extend_by_extents(&self, owned: &mut Owned) -> Result<(), StorageError> {
        let wanted = if owned.extents >= LARGE { EXTENTS_AT_ONCE } else { 1 };
        let (file, first, count) = self.find_extents(wanted).await?;
        let map = match owned.covers(file, first) {
            Some(map) => map.page,
            None => self.add_map(owned, file, first - first % GAM_EXTENTS).await?,
        };
        // The map may have taken a page of that very extent.
        if !self.is_free(file, first).await? {
            return Box::pin(self.extend_by_extents(owned)).await;
        }
        let gam = self.pool.fetch(PageId { file, number: gam_page(first) }, Use::Point).await?;
        let iam = self.pool.fetch(map, Use::Point).await?;
        self.change(Author::Engine, &[&gam, &iam], |pages| {
            Ok(vec![
                (0, set_bits(pages[0], MAP, first, count, false)),
                (1, set_bits(pages[1], BITS, first, count, true)),
            ])
        })
        .await?;
        self.took(file, first, count);
        owned.extents += u64::from(count);
        let pages = (first..first + count).flat_map(pages_of);
        owned.blank.extend(pages.map(|number| PageId { file, number }));
        Ok(())
    }

    /// One more IAM page, for another part of a file.
    async fn add_map(&self, owned: &mut Owned, file: FileId, start: u32) -> Result<PageId, StorageError> {
        let last = self.pool.fetch(owned.maps.last().expect("the first is there").page, Use::Point).await?;
        let (owner, sequence) = (owned.object, owned.maps.len());
        let page = self
            .take_single(IAM, Some(&last), |_, page| {
                let bytes = iam_fields(sequence, file, start);
                let format = Change::Format { kind: PageKind::Iam, owner };
                let next = Change::Bytes { at: field(NEXT), bytes: page.pack().to_le_bytes().to_vec() };
                Ok((vec![format, Change::Bytes { at: field(SEQUENCE), bytes }], vec![next]))
            })
            .await?;
        owned.maps.push(Map { page, file, start });
        Ok(page)
    }

    /// Takes a page of a mixed extent and, in the same record, does what `plan` says to it and to the page `also`.
    async fn take_single(
        &self,
        pfs_bits: u8,
        also: Option<&Pin<'_>>,
        mut plan: impl FnMut(Option<Page<'_>>, PageId) -> Result<(Vec<Change>, Vec<Change>), StorageError>,
    ) -> Result<PageId, StorageError> {
        let (file, extent, fresh) = match self.find_mixed().await? {
            Some((file, extent)) => (file, extent, false),
            None => {
                let (file, extent, _) = self.find_extents(1).await?;
                (file, extent, true)
            }
        };
        let gam = self.pool.fetch(PageId { file, number: gam_page(extent) }, Use::Point).await?;
        let sgam = self.pool.fetch(PageId { file, number: gam_page(extent) + 1 }, Use::Point).await?;
        let pfs = self.pool.fetch(PageId { file, number: pfs_page(extent) }, Use::Point).await?;
        let is_empty = |page: Page<'_>, number: &u32| page.u8_at(pfs_byte(*number)) & ALLOCATED == 0;
        let empty: Vec<u32> = pages_of(extent).filter(|number| is_empty(*pfs.read(), number)).collect();
        let number = *empty.first().ok_or(StorageError::Inconsistent(sgam.name()))?;
        let page = PageId { file, number };
        let new = self.pool.fetch_new(page).await?;
        let mut pins = vec![&gam, &sgam, &pfs, &new];
        pins.extend(also);
        self.change(Author::Engine, &pins, |pages| {
            let (to_new, to_also) = plan(pages.get(4).copied(), page)?;
            let mut changes = Plan::new();
            if fresh {
                changes.push((0, set_bits(pages[0], MAP, extent, 1, false)));
                changes.push((1, set_bits(pages[1], MAP, extent, 1, true)));
            }
            if empty.len() == 1 {
                changes.push((1, set_bits(pages[1], MAP, extent, 1, false)));
            }
            changes.push((2, pfs_change(page, ALLOCATED | MIXED | pfs_bits)));
            changes.extend(to_new.into_iter().map(|change| (3, change)));
            changes.extend(to_also.into_iter().map(|change| (4, change)));
            Ok(changes)
        })
        .await?;
        if fresh {
            self.took(file, extent, 1);
        }
        Ok(page)
    }

    /// Notes how full a page is, if PFS says otherwise.
    pub(crate) async fn note_fullness(&self, page: PageId, free: usize) -> Result<(), StorageError> {
        let pfs = self.fetch_pfs(page).await?;
        let full = super::maps::fullness(free);
        self.change(Author::Engine, &[&pfs], |pages| {
            let now = pages[0].u8_at(pfs_byte(page.number));
            Ok(if now & FULLNESS == full { Plan::new() } else { vec![(0, pfs_change(page, now & !FULLNESS | full))] })
        })
        .await
    }
}

fn pfs_change(page: PageId, byte: u8) -> Change {
    Change::Bytes { at: field(pfs_byte(page.number)), bytes: vec![byte] }
}
