//! The bytes of pages, and rows in them against a plain map.

use std::collections::BTreeMap;

use dyad_matrix::Memory;
use dyad_reactor::{Rng, SeededRng};

use super::*;

const STAMP_HERE: Stamp = Stamp(0x1122_3344_5566_7788);
const NAME_HERE: PageId = PageId::new(3, 0x0a0b_0c0d);

/// Halves that are not neighbours.
fn page(memory: &Memory) -> Page<'_> {
    Page::new(memory, [8192, 0]).unwrap()
}

fn memory() -> Memory {
    Memory::anonymous(12288)
}

#[test]
fn a_page_is_as_the_format_says() {
    let memory = memory();
    let page = page(&memory);
    page.format(NAME_HERE, PageKind::Heap, ObjectId(77), STAMP_HERE);
    page.insert(0, b"abcdefghi").unwrap();
    page.set_lsn(Lsn(0x0102_0304));
    page.seal();
    let bytes = page.bytes(0, PAGE_BYTES);
    let mut header = vec![];
    header.extend_from_slice(&crc32c::crc32c(&bytes[4..4096]).to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&bytes[4096..]).to_le_bytes());
    header.extend_from_slice(&[4, 3, 2, 1, 0, 0, 0, 0]); // LSN
    header.extend_from_slice(&[0x0d, 0x0c, 0x0b, 0x0a, 3, 0, 0, 0]); // page, file
    header.extend_from_slice(&[7, 0, 1, 0, 77, 0, 0, 0]); // kind, version, owner
    header.extend_from_slice(&[1, 0, 73, 0, 0xb3, 0x1f, 0, 0]); // slots, end of data, 8115 free
    header.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]); // stamp
    header.extend_from_slice(&[0; 16]);
    assert_eq!(bytes[..64], header);
    assert_eq!(bytes[64..74], *b"abcdefghi\0");
    assert_eq!(bytes[8186..], [0, 0, 64, 0, 9, 0]);
    assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Ok(()));
}

#[test]
fn what_is_not_the_page_is_named() {
    let memory = memory();
    let page = page(&memory);
    assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Ok(()), "never written");
    page.format(NAME_HERE, PageKind::Heap, ObjectId(1), STAMP_HERE);
    assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Err(Damage::Checksum), "not sealed");
    page.seal();
    assert_eq!(page.verify(PageId::new(3, 1), STAMP_HERE), Err(Damage::Misplaced(NAME_HERE)));
    assert_eq!(page.verify(NAME_HERE, Stamp(1)), Err(Damage::Foreign));
    let whole = page.bytes(0, PAGE_BYTES);
    for at in (0..PAGE_BYTES).step_by(61) {
        page.write(at, &[whole[at] ^ 1]);
        assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Err(Damage::Checksum), "byte {at}");
        page.write(at, &[whole[at]]);
    }
    page.insert(0, &[1; 20]).unwrap();
    page.seal();
    let newer = page.bytes(0, PAGE_BYTES);
    for (first, second) in [(&whole, &newer), (&newer, &whole)] {
        page.write(0, &first[..HALF_BYTES]);
        page.write(HALF_BYTES, &second[HALF_BYTES..]);
        assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Err(Damage::Checksum), "torn");
    }
    page.write(0, &newer);
    page.set(KIND, 99_u16.to_le_bytes());
    page.seal();
    assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Err(Damage::Header));
    page.set(KIND, 7_u16.to_le_bytes());
    page.set(SLOT_COUNT, 5000_u16.to_le_bytes());
    page.seal();
    assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Err(Damage::Header));
}

#[test]
fn numbers_are_read_wherever_they_begin() {
    let memory = memory();
    let page = page(&memory);
    let bytes: Vec<u8> = (0..PAGE_BYTES).map(|at| (at % 251).to_le_bytes()[0]).collect();
    page.write(0, &bytes);
    assert_eq!(page.bytes(0, PAGE_BYTES), bytes, "a page across its halves");
    for at in (4080..4100).chain(0..10).chain(8180..8184) {
        assert_eq!(page.u64_at(at).to_le_bytes(), bytes[at..at + 8], "at {at}");
    }
    for at in [8188, 8190, 8191] {
        assert_eq!(page.u8_at(at), bytes[at]);
    }
    assert_eq!(page.u32_at(8188).to_le_bytes(), bytes[8188..]);
}

#[test]
fn rows_equal_a_map_through_inserts_changes_and_removals() {
    let mut rng = SeededRng::new(11);
    let memory = memory();
    let page = page(&memory);
    let copied = Memory::anonymous(PAGE_BYTES);
    let mut full = 0;
    for round in 0..40 {
        page.format(NAME_HERE, PageKind::Heap, ObjectId(1), STAMP_HERE);
        let mut rows = BTreeMap::<u16, Vec<u8>>::new();
        for step in 0..300 {
            let slot = u16::try_from(rng.below(60)).unwrap();
            let len = usize::try_from(rng.below(if round % 2 == 0 { 60 } else { 900 })).unwrap() + 9;
            let row = vec![u8::try_from(rng.below(256)).unwrap(); len];
            let free = page.free();
            match (rows.contains_key(&slot), rng.below(3)) {
                (false, _) => match page.insert(slot, &row) {
                    Ok(()) => drop(rows.insert(slot, row)),
                    Err(NoRoom) => {
                        full += 1;
                        assert_eq!(page.free(), free);
                    }
                },
                (true, 0) => {
                    page.remove(slot);
                    rows.remove(&slot);
                }
                (true, _) => match page.replace(slot, &row) {
                    Ok(()) => drop(rows.insert(slot, row)),
                    Err(NoRoom) => full += 1,
                },
            }
            let used: usize = rows.values().map(Vec::len).sum();
            assert_eq!(page.free(), BODY_BYTES - used - SLOT_BYTES * usize::from(page.slot_count()), "step {step}");
            assert!(page.slots_make_sense());
        }
        for slot in 0..page.slot_count() {
            assert_eq!(page.row(slot).as_ref(), rows.get(&slot), "slot {slot}");
        }
        let (low, slots) = page.image();
        let again = Page::new(&copied, [0, 4096]).unwrap();
        again.restore(&low, &slots);
        assert!((0..page.slot_count()).all(|slot| again.row(slot) == page.row(slot)), "an image is the page");
        page.seal();
        assert_eq!(page.verify(NAME_HERE, STAMP_HERE), Ok(()));
    }
    assert!(full > 100, "pages became full {full} times");
}
