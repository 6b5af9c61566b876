//! Where the maps of a file are, and what their bits and bytes say. `FORMAT.md`, "Files".

use crate::change::Change;
use crate::page::{HEADER_BYTES, Page};
use crate::port::EXTENT_PAGES;

/// Extents that one PFS page covers.
pub(crate) const PFS_EXTENTS: u32 = 1000;
/// Extents that one GAM, SGAM or IAM page covers.
pub(crate) const GAM_EXTENTS: u32 = 64_000;
/// The boot page, of file 0.
pub(crate) const BOOT_PAGE: u32 = 4;
/// Where the map begins in GAM, SGAM and PFS pages.
pub(crate) const MAP: usize = HEADER_BYTES;
/// Where the size of the file is in its header.
pub(crate) const FILE_SIZE: usize = 68;

/// In a PFS byte: the page is in use.
pub(crate) const ALLOCATED: u8 = 0x40;
/// In a PFS byte: its extent is mixed.
pub(crate) const MIXED: u8 = 0x20;
/// In a PFS byte: it is an IAM page.
pub(crate) const IAM: u8 = 0x10;
/// The bits of a PFS byte that say how full the page is.
pub(crate) const FULLNESS: u8 = 0x07;

pub(crate) fn wide(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}

pub(crate) fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("a file has fewer than 2^32 pages")
}

/// The PFS page of the extent.
pub(crate) fn pfs_page(extent: u32) -> u32 {
    extent / PFS_EXTENTS * PFS_EXTENTS * EXTENT_PAGES + 1
}

/// The GAM page of the extent; its SGAM page is the next one.
pub(crate) fn gam_page(extent: u32) -> u32 {
    extent / GAM_EXTENTS * GAM_EXTENTS * EXTENT_PAGES + 2
}

/// Whether the extent has maps, and nothing else.
pub(crate) fn is_system(extent: u32) -> bool {
    extent.is_multiple_of(PFS_EXTENTS)
}

/// Where the PFS byte of a page is in its PFS page.
pub(crate) fn pfs_byte(page: u32) -> usize {
    MAP + wide(page % (PFS_EXTENTS * EXTENT_PAGES))
}

/// The bit of an extent in a map that begins at `base`.
pub(crate) fn bit(page: Page<'_>, base: usize, extent: u32) -> bool {
    let at = wide(extent % GAM_EXTENTS);
    page.u8_at(base + at / 8) & 1 << (at % 8) != 0
}

/// Sets the bits of `count` extents, all in one map, to `value`.
pub(crate) fn set_bits(page: Page<'_>, base: usize, first: u32, count: u32, value: bool) -> Change {
    let from = wide(first % GAM_EXTENTS);
    let to = from + wide(count);
    let mut bytes = page.bytes(base + from / 8, to.div_ceil(8) - from / 8);
    for at in from..to {
        let (byte, mask) = (&mut bytes[at / 8 - from / 8], 1 << (at % 8));
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
    Change::Bytes { at: u16::try_from(base + from / 8).expect("within a page"), bytes }
}

/// The first run of `count` set bits at or after bit `from` and before bit `to` of a map.
pub(crate) fn find_run(page: Page<'_>, base: usize, from: u32, to: u32, count: u32) -> Option<u32> {
    let (mut at, mut run) = (from, 0);
    while at < to {
        if run == 0 && at.is_multiple_of(64) && page.u64_at(base + wide(at / 8)) == 0 {
            at += 64;
            continue;
        }
        run = if bit(page, base, at) { run + 1 } else { 0 };
        at += 1;
        if run == count {
            return Some(at - count);
        }
    }
    None
}

/// How many bits of the first `to` are set.
pub(crate) fn count_bits(page: Page<'_>, base: usize, to: u32) -> u64 {
    (0..to).filter(|at| bit(page, base, *at)).count() as u64
}

/// How full a page with so many free bytes is, as PFS says: 0 empty, 1 up to half, 2 to 80 %, 3 to 95 %, 4 more.
pub(crate) fn fullness(free: usize) -> u8 {
    let used = crate::page::BODY_BYTES - free;
    match used * 100 / crate::page::BODY_BYTES {
        0 if used == 0 => 0,
        0..=50 => 1,
        51..=80 => 2,
        81..=95 => 3,
        _ => 4,
    }
}

/// Free bytes that a page of this fullness has at least.
pub(crate) fn free_at_least(fullness: u8) -> usize {
    let used = match fullness & FULLNESS {
        0 => 0,
        1 => 51,
        2 => 81,
        3 => 96,
        _ => 100,
    };
    crate::page::BODY_BYTES * (100 - used) / 100
}

#[cfg(test)]
mod tests {
    use dyad_matrix::Memory;

    use super::*;
    use crate::ids::PageId;

    #[test]
    fn runs_of_bits_are_found_set_and_counted() {
        let memory = Memory::anonymous(8192);
        let page = Page::new(&memory, [0, 4096]).unwrap();
        let apply = |change: Change| change.apply(page, PageId::new(0, 2), crate::page::Stamp(1)).unwrap();
        apply(set_bits(page, MAP, 5, 3, true));
        apply(set_bits(page, MAP, 62, 4, true));
        apply(set_bits(page, MAP, 63_999, 1, true));
        assert_eq!(find_run(page, MAP, 0, 64_000, 1), Some(5));
        assert_eq!(find_run(page, MAP, 0, 64_000, 4), Some(62));
        assert_eq!(find_run(page, MAP, 63, 64_000, 4), None);
        assert_eq!(find_run(page, MAP, 66, 64_000, 1), Some(63_999));
        assert_eq!(find_run(page, MAP, 0, 64, 4), None, "across the end");
        assert_eq!(count_bits(page, MAP, 64_000), 8);
        apply(set_bits(page, MAP, 6, 60, false));
        assert_eq!(count_bits(page, MAP, 64_000), 2);
        assert_eq!(set_bits(page, MAP, 8, 8, true), Change::Bytes { at: 65, bytes: vec![255] });
    }

    #[test]
    fn what_pfs_promises_is_there() {
        for free in 0..=crate::page::BODY_BYTES {
            assert!(free_at_least(fullness(free)) <= free, "{free}");
        }
        assert_eq!([8128, 8127, 3900, 3000, 1000, 100].map(fullness), [0, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn maps_are_where_the_format_says() {
        assert_eq!((pfs_page(0), pfs_page(999), pfs_page(1000)), (1, 1, 8001));
        assert_eq!((gam_page(63_999), gam_page(64_000)), (2, 512_002));
        assert_eq!((pfs_byte(7999), pfs_byte(8000)), (64 + 7999, 64));
    }
}
