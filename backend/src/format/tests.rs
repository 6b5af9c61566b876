//! Golden images of every kind of block; what is refused; assembly against what others got wrong.

use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use proptest::prelude::*;

use super::guard::{GUARDS, Guard};
use super::intent::{Decoded, Record, Run, RunKind};
use super::seal::Seal;
use super::share::{Change, Generation, Header, Record as ShareRecord, SliceNumber};
use super::*;
use crate::device::DeviceId;
use crate::raid::geometry::{Geometry, Level};

const GROUP: GroupId = GroupId([0x67; 16]);
const DEVICE: BlockCount = BlockCount(4096);

fn device(member: usize) -> DeviceId {
    DeviceId([0xd0 + u8::try_from(member).expect("small"); 16])
}

fn superblock(level: Level, members: usize) -> Superblock {
    let geometry = Geometry::new(level, members).expect("a level");
    let layout = Layout::new(geometry, DEVICE, BlockCount(64)).expect("room");
    let record = |m| MemberRecord { device: device(m), state: MemberState::InSync };
    Superblock { group: GROUP, sequence: 7, epoch: 3, geometry, layout, members: (0..members).map(record).collect() }
}

/// Rows of sixteen bytes that are not all zeros.
fn dump(block: &Block) -> String {
    let rows = block.chunks_exact(16).enumerate().filter(|(_, row)| row.iter().any(|b| *b != 0));
    let line = |(at, row): (usize, &[u8])| {
        let bytes: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        format!("{:04x}: {}\n", 16 * at, bytes.join(" "))
    };
    rows.map(line).collect()
}

fn undump(text: &str) -> Block {
    let mut block = [0; BLOCK_BYTES];
    for line in text.lines() {
        let (at, bytes) = line.split_once(": ").expect("a row");
        let at = usize::from_str_radix(at, 16).expect("hexadecimal");
        for (i, byte) in bytes.split(' ').enumerate() {
            block[at + i] = u8::from_str_radix(byte, 16).expect("hexadecimal");
        }
    }
    block
}

fn golden_superblock() -> Superblock {
    let mut golden = superblock(Level::Raid6, 4);
    golden.members[1].state = MemberState::Out;
    golden.members[3].state = MemberState::Rebuilding { done: 17 };
    golden
}

fn golden_runs() -> [Run; 4] {
    let run = |kind, member, blocks: u32| {
        let guards = (0..blocks).map(|i| Guard(0x1111_1111 * (i + 1))).collect();
        Run { kind, stripe: 5, member, first: 3, guards }
    };
    let [written, absent] = [RunKind::Written, RunKind::Absent].map(|kind| run(kind, 2, 2));
    [written, run(RunKind::Written, 0, 2), run(RunKind::PartialParity, 0, 2), absent]
}

fn golden_share() -> (Header, Vec<ShareRecord>) {
    let changes = [
        Change::Share { generation: Generation(3), positions: 0x1_0000_0002, extent_tracks: 48, full: true },
        Change::Mapped { first: 7, entries: 3, slice: SliceNumber(40) },
        Change::Unmapped { first: 8, entries: 1 },
        Change::Gone,
    ];
    let records = changes.map(|change| ShareRecord { volume: VolumeUuid([0x76; 16]), change });
    (Header { log: 5, snapshot: 2, fresh: 42, slice_stripes: 16 }, records.to_vec())
}

fn golden_guards() -> Box<[Guard; GUARDS]> {
    let mut guards = Box::new([Guard::OF_ZEROS; GUARDS]);
    (guards[0], guards[1007]) = (Guard(0x0102_0304), Guard(0));
    guards
}

/// What version 1 is, for ever. If one of these fails, the format has changed: that needs a new version.
#[test]
fn golden_images() {
    let block = golden_superblock().encode(3, 1);
    assert_eq!(dump(&block), include_str!("golden/superblock.hex"));
    let mut record = Record::default();
    record.add(&golden_runs()).expect("room");
    assert_eq!(dump(record.close(GROUP, 100, 98, 3, 16)), include_str!("golden/intent.hex"));
    let mut block = [0; BLOCK_BYTES];
    guard::encode(&mut block, &Seal { group: GROUP, sequence: 9, place: 4 }, 2, &golden_guards());
    assert_eq!(dump(&block), include_str!("golden/guards.hex"));
    let mut block = [0; BLOCK_BYTES];
    let (header, records) = golden_share();
    share::encode(&mut block, GROUP, 9, &header, &records);
    assert_eq!(dump(&block), include_str!("golden/share.hex"));
}

#[test]
fn golden_images_are_read() {
    let block = undump(include_str!("golden/superblock.hex"));
    let found = Superblock::decode(&block, 1).expect("a superblock");
    assert_eq!((found.superblock, found.member), (golden_superblock(), 3));
    let raid6 = Geometry::new(Level::Raid6, 4).expect("four");
    let block = undump(include_str!("golden/intent.hex"));
    let expected = Decoded { sequence: 100, oldest: 98, epoch: 3, runs: golden_runs().to_vec() };
    assert_eq!(intent::decode(&block, GROUP, 4, 16, raid6, 6), Ok(expected));
    assert_eq!(intent::decode(&block, GROUP, 4, 16, raid6, 5), Err(FormatError::Invalid), "a stripe beyond the last");
    let mut guards = Box::new([Guard(1); GUARDS]);
    let block = undump(include_str!("golden/guards.hex"));
    assert_eq!(guard::decode(&block, GROUP, 4, 2, &mut guards), Ok(9));
    assert_eq!(guards, golden_guards());
    assert_eq!(guard::decode(&block, GROUP, 4, 1, &mut guards), Err(FormatError::Invalid), "another member's");
    let block = undump(include_str!("golden/share.hex"));
    assert_eq!(share::decode(&block, GROUP, 9), Ok(golden_share()));
    assert_eq!(share::decode(&block, GROUP, 8), Err(FormatError::Misplaced(9)));
}

#[test]
fn torn_foreign_misplaced_and_future_blocks_are_refused() {
    let good = undump(include_str!("golden/guards.hex"));
    let mut guards = Box::new([Guard(1); GUARDS]);
    let mut read = |block: &Block, group, place| guard::decode(block, group, place, 2, &mut guards);
    assert_eq!(read(&good, GroupId([1; 16]), 4), Err(FormatError::Foreign));
    assert_eq!(read(&good, GROUP, 5), Err(FormatError::Misplaced(4)));
    let mut other = good;
    other[..8].copy_from_slice(b"DYADINT1");
    assert_eq!(read(&other, GROUP, 4), Err(FormatError::Kind));
    let mut future = good;
    future[8] = 2;
    future[12..16].fill(0);
    let crc = crc32c::crc32c(&future);
    future[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(read(&future, GROUP, 4), Err(FormatError::Version(2)));
    assert_eq!(read(&[0; BLOCK_BYTES], GROUP, 4), Ok(0), "never written");
    assert_eq!(guards, Box::new([Guard::OF_ZEROS; GUARDS]));
    assert_eq!(Guard::of(&[0; BLOCK_BYTES]), Guard::OF_ZEROS);
    assert_eq!(Superblock::decode(&[0; BLOCK_BYTES], 0), Err(FormatError::Blank));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever changes in a block, it is not believed; and no bytes at all make decoding panic.
    #[test]
    fn a_changed_byte_is_found(at in 0..BLOCK_BYTES, by in 1..=255_u8) {
        let raid6 = Geometry::new(Level::Raid6, 4).expect("four");
        let changed = |text| { let mut block = undump(text); block[at] ^= by; block };
        prop_assert!(Superblock::decode(&changed(include_str!("golden/superblock.hex")), 1).is_err());
        prop_assert!(intent::decode(&changed(include_str!("golden/intent.hex")), GROUP, 4, 16, raid6, 6).is_err());
        prop_assert!(share::decode(&changed(include_str!("golden/share.hex")), GROUP, 9).is_err());
    }

    #[test]
    fn sealed_nonsense_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 400), from in 48..768_usize) {
        let raid6 = Geometry::new(Level::Raid6, 4).expect("four");
        for (kind, text) in [
            (seal::Kind::Superblock, include_str!("golden/superblock.hex")),
            (seal::Kind::Intent, include_str!("golden/intent.hex")),
            (seal::Kind::Share, include_str!("golden/share.hex")),
        ] {
            let mut block = undump(text);
            let seal = seal::open(&block, kind).expect("golden");
            block[from..from + 400].copy_from_slice(&bytes);
            seal::close(&mut block, kind, &seal);
            drop(Superblock::decode(&block, 1));
            drop(intent::decode(&block, GROUP, 4, 16, raid6, 6));
            drop(share::decode(&block, GROUP, 9));
        }
    }

    #[test]
    fn layouts_fill_the_device_and_are_believed(level in 0..5_usize, members in 1..=18_usize, device in 1..200_000_u64, vault in 0..2000_u64) {
        let level = [Level::Raid0, Level::Raid1, Level::Raid10, Level::Raid5, Level::Raid6][level];
        let Ok(geometry) = Geometry::new(level, members) else { return Ok(()) };
        match Layout::new(geometry, BlockCount(device), BlockCount(vault)) {
            Ok(layout) => {
                prop_assert_eq!(layout.check(geometry), Ok(()));
                prop_assert!(layout.last.0 < device);
                prop_assert!(device - layout.last.0 <= 2 * 16 + 2, "{} blocks are left over", device - layout.last.0 - 1);
                // Every chunk's guards have a place in the region, and no two tables the same.
                let mut used = std::collections::BTreeSet::new();
                for member in 0..members {
                    for table in 0..layout.chunks().div_ceil(guard::GUARDED_CHUNKS) {
                        for copy in guard::copies(geometry, layout, member, table) {
                            prop_assert!(copy.place < layout.guards.blocks.0 && used.insert((copy.member, copy.place)));
                            prop_assert!(level == Level::Raid0 || copy.member != member);
                        }
                    }
                }
            }
            Err(error) => {
                prop_assert_eq!(error, LayoutError::TooSmall(BlockCount(device)));
                prop_assert!(device < vault + 200 + device / 500);
            }
        }
    }
}

#[test]
fn a_record_takes_whole_intents_only() {
    let full =
        |member| Run { kind: RunKind::Written, stripe: 1, member, first: 0, guards: (0..16).map(Guard).collect() };
    let stripe: Vec<Run> = (0..10).map(full).collect();
    let mut record = Record::default();
    assert!(record.is_empty());
    let fitted = (0..).take_while(|_| record.add(&stripe).is_ok()).count();
    assert_eq!(fitted, 5, "full stripes of ten members");
    assert_eq!(record.add(&stripe), Err(intent::RecordFull));
    let block = *record.close(GROUP, 33, 33, 1, 16);
    let raid6 = Geometry::new(Level::Raid6, 10).expect("ten");
    let decoded = intent::decode(&block, GROUP, 1, 16, raid6, 6).expect("a record");
    assert_eq!(decoded.runs.len(), 50);
    assert!(decoded.runs.chunks(10).all(|runs| runs == stripe));
}

#[test]
fn no_record_goes_around_the_end_of_the_ring() {
    assert_eq!([0, 13, 14, 15, 16].map(|q| intent::next(q, 2, 16)), [0, 13, 16, 16, 16]);
    assert_eq!([15, 31].map(|q| intent::next(q, 0, 16)), [15, 31]);
    let mut record = Record::default();
    record.add(&golden_runs()[..3]).expect("room");
    assert_eq!(record.payload(), 2);
    let mut block = *record.close(GROUP, 13, 13, 1, 16);
    let raid6 = Geometry::new(Level::Raid6, 4).expect("four");
    let read = |block: &Block| intent::decode(block, GROUP, 13, 16, raid6, 6);
    assert_eq!(read(&block).map(|r| r.payload().collect::<Vec<_>>()), Ok(golden_runs()[2].guards.to_vec()));
    // A payload that the runs do not know of.
    let seal = seal::open(&block, seal::Kind::Intent).expect("sealed");
    block[66] = 1;
    seal::close(&mut block, seal::Kind::Intent, &seal);
    assert_eq!(read(&block), Err(FormatError::Invalid));
}

#[test]
fn the_live_records_are_those_the_newest_still_needs() {
    let record = |sequence, oldest| Decoded { sequence, oldest, epoch: 1, runs: vec![] };
    let found = vec![record(9, 7), record(7, 5), record(8, 5), record(6, 5), record(9, 7), record(8, 5)];
    let live: Vec<u64> = intent::live(found).iter().map(|r| r.sequence).collect();
    assert_eq!(live, [7, 8, 9]);
    assert_eq!(intent::live(vec![]), []);
}

// Assembly.

struct Shelf {
    blocks: Vec<[Block; 2]>,
    names: Vec<DeviceId>,
}

impl Shelf {
    fn new(superblock: &Superblock) -> Self {
        let members = 0..superblock.members.len();
        Self {
            blocks: members.clone().map(|m| [superblock.encode(m, 0), superblock.encode(m, 1)]).collect(),
            names: members.map(device).collect(),
        }
    }

    /// Writes a newer superblock to these members.
    fn write(&mut self, superblock: &Superblock, members: &[usize]) {
        for m in members {
            self.blocks[*m] = [superblock.encode(*m, 0), superblock.encode(*m, 1)];
        }
    }

    fn assemble_of(&self, members: &[usize], sequence: u64) -> Result<Assembly, AssemblyError> {
        let candidate = |m: &usize| {
            let [first, last] = &self.blocks[*m];
            Candidate { device: self.names[*m], blocks: DEVICE, copies: [Some(first), Some(last)] }
        };
        let candidates: Vec<_> = members.iter().map(candidate).collect();
        assemble(&candidates, Expected { group: GROUP, sequence })
    }
}

fn without(old: &Superblock, member: usize) -> Superblock {
    let mut newer = old.clone();
    newer.sequence += 1;
    newer.members[member].state = MemberState::Out;
    newer
}

#[test]
fn devices_in_any_order_are_assembled() {
    let superblock = superblock(Level::Raid5, 3);
    let shelf = Shelf::new(&superblock);
    let assembly = shelf.assemble_of(&[2, 0, 1], 7).expect("all are there");
    assert_eq!((assembly.superblock, assembly.excluded), (superblock.clone(), vec![]));
    assert_eq!(assembly.members, [Some(1), Some(2), Some(0)]);
    let degraded = shelf.assemble_of(&[2, 0], 7).expect("one may be missing");
    assert_eq!(degraded.members, [Some(1), None, Some(0)]);
    let geometry = superblock.geometry;
    assert_eq!(shelf.assemble_of(&[1], 7), Err(AssemblyError::TooFew { usable: 1, members: 3, geometry }));
    assert_eq!(shelf.assemble_of(&[], 7), Err(AssemblyError::NotFound));
}

#[test]
fn an_old_member_that_returns_is_left_out() {
    let old = superblock(Level::Raid5, 3);
    let mut shelf = Shelf::new(&old);
    shelf.write(&without(&old, 1), &[0, 2]);
    let assembly = shelf.assemble_of(&[0, 1, 2], 8).expect("two of three");
    assert_eq!(assembly.members, [Some(0), None, Some(2)]);
    assert_eq!(assembly.excluded, [(device(1), Excluded::Stale { own: 7, newest: 8 })]);
    assert!(matches!(shelf.assemble_of(&[0, 1], 8), Err(AssemblyError::TooFew { usable: 1, .. })));
}

/// The old leg of a mirror alone would look whole: only what is on record elsewhere tells that it is not.
#[test]
fn an_old_leg_alone_is_never_online_without_its_data() {
    let old = superblock(Level::Raid1, 2);
    let mut shelf = Shelf::new(&old);
    shelf.write(&without(&old, 0), &[1]);
    assert_eq!(shelf.assemble_of(&[0], 8), Err(AssemblyError::Outdated { found: 7, expected: 8 }));
    assert!(shelf.assemble_of(&[1], 8).is_ok());
}

/// A crash between the superblocks of two members: the change was not complete, and nobody is stale.
#[test]
fn a_change_that_was_cut_short_is_no_reason_to_leave_members_out() {
    let old = superblock(Level::Raid6, 4);
    let mut shelf = Shelf::new(&old);
    shelf.write(&without(&old, 3), &[0]);
    let assembly = shelf.assemble_of(&[0, 1, 2, 3], 7).expect("three of four");
    assert_eq!(assembly.members, [Some(0), Some(1), Some(2), None]);
    // Who missed two changes was not there.
    shelf.write(&without(&without(&old, 3), 3), &[0, 2]);
    let assembly = shelf.assemble_of(&[0, 1, 2], 7).expect("two of four");
    assert_eq!(assembly.members, [Some(0), None, Some(2), None]);
}

#[test]
fn a_torn_superblock_has_a_second_copy() {
    let superblock = superblock(Level::Raid5, 3);
    let mut shelf = Shelf::new(&superblock);
    shelf.blocks[1][0][2000] = 1;
    shelf.blocks[2][1][100] ^= 1;
    assert_eq!(shelf.assemble_of(&[0, 1, 2], 7).map(|a| a.excluded), Ok(vec![]));
    // The newer of two good copies counts: the device was cut off between them.
    shelf.blocks[0][1] = without(&superblock, 2).encode(0, 1);
    assert_eq!(shelf.assemble_of(&[0, 1, 2], 7).map(|a| a.superblock.sequence), Ok(8));
    shelf.blocks[1][1][8] = 9;
    let excluded =
        shelf.assemble_of(&[0, 1, 2], 7).map_err(|error| assert!(matches!(error, AssemblyError::TooFew { .. })));
    assert_eq!(excluded, Err(()), "one is out, one cannot be read");
}

#[test]
fn foreign_copied_and_doubled_devices_are_told_apart() {
    let ours = superblock(Level::Raid5, 3);
    let mut shelf = Shelf::new(&ours);
    // Another group's device, with the same name of device.
    let theirs = Superblock { group: GroupId([9; 16]), ..ours.clone() };
    shelf.write(&theirs, &[1]);
    let excluded = |shelf: &Shelf| shelf.assemble_of(&[0, 1, 2], 7).expect("two of three").excluded;
    assert_eq!(excluded(&shelf), [(device(1), Excluded::Foreign(GroupId([9; 16])))]);
    // The bytes of member 0, copied onto another device.
    shelf.blocks[1] = shelf.blocks[0];
    assert_eq!(excluded(&shelf), [(device(1), Excluded::CopyOf(device(0)))]);
    // One device through two ways.
    assert_eq!(shelf.assemble_of(&[0, 2, 0], 7), Err(AssemblyError::Duplicate(device(0), device(0), 0)));
    // Two histories.
    let other = Superblock { epoch: 4, ..ours.clone() };
    shelf.write(&other, &[1]);
    assert!(matches!(shelf.assemble_of(&[0, 1, 2], 7), Err(AssemblyError::Conflict(..))));
    // A member that was replaced.
    let mut newer = Superblock { sequence: 8, ..ours };
    newer.members[1].device = device(9);
    shelf.write(&newer, &[0, 2]);
    assert_eq!(excluded(&shelf), [(device(1), Excluded::Replaced)]);
}

#[test]
fn a_member_that_is_being_rebuilt_is_there_but_does_not_count() {
    let mut rebuilding = superblock(Level::Raid5, 3);
    rebuilding.members[2].state = MemberState::Rebuilding { done: 4 };
    let shelf = Shelf::new(&rebuilding);
    assert_eq!(shelf.assemble_of(&[0, 1, 2], 7).map(|a| a.members[2]), Ok(Some(2)));
    assert!(matches!(shelf.assemble_of(&[0, 2], 7), Err(AssemblyError::TooFew { usable: 1, .. })));
}

#[test]
fn a_device_that_shrank_is_left_out() {
    let superblock = superblock(Level::Raid1, 2);
    let shelf = Shelf::new(&superblock);
    let candidate = |m: usize, blocks| {
        let [first, last] = &shelf.blocks[m];
        Candidate { device: device(m), blocks, copies: [Some(first), Some(last)] }
    };
    let small = BlockCount(superblock.layout.last.0);
    let candidates = [candidate(0, small), candidate(1, BlockCount(small.0 + 1))];
    let assembly = assemble(&candidates, Expected { group: GROUP, sequence: 0 }).expect("one leg");
    assert_eq!(assembly.excluded, [(device(0), Excluded::TooSmall(small))]);
}

#[test]
fn regions_that_contradict_each_other_are_refused() {
    let good = superblock(Level::Raid5, 3);
    let change = |with: fn(&mut Superblock)| {
        let mut bad = good.clone();
        with(&mut bad);
        Superblock::decode(&bad.encode(0, 0), 0).map(drop)
    };
    assert_eq!(change(|_| {}), Ok(()));
    assert_eq!(change(|s| s.layout.guards.start = Lba(1)), Err(FormatError::Invalid));
    assert_eq!(change(|s| s.layout.data.blocks = BlockCount(u64::MAX)), Err(FormatError::Invalid));
    assert_eq!(change(|s| s.layout.data.start.0 += 1), Err(FormatError::Invalid));
    assert_eq!(change(|s| s.layout.guards.blocks.0 -= 1), Err(FormatError::Invalid));
    assert_eq!(change(|s| s.members[1].device = s.members[0].device), Err(FormatError::Invalid));
    assert_eq!(change(|s| s.members[1].state = MemberState::Rebuilding { done: u64::MAX }), Err(FormatError::Invalid));
}
