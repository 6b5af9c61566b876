//! For the fuzzer: whatever is on a device, decoding it ends in a value or an error.

use dyad_nvme::types::{BLOCK_BYTES, BlockCount};

use super::guard::{self, GUARDS, Guard};
use super::{Block, Candidate, Expected, GroupId, Superblock, assemble, intent, seal};
use crate::device::DeviceId;
use crate::raid::geometry::{Geometry, Level};

const GROUP: GroupId = GroupId([0x11; 16]);

/// Blocks of superblocks, intents and guards that anybody made up. A block is also looked at with the checksum that it should have: what lies behind
/// the check must stand up to a fault of ours.
///
/// # Panics
/// If what was decoded does not encode to what it was.
pub fn group(bytes: &[u8]) {
    let mut blocks: Vec<Block> = bytes.chunks(BLOCK_BYTES).take(8).map(padded).collect();
    for block in blocks.clone() {
        blocks.extend(resealed(block));
    }
    for (at, block) in (0..).zip(&blocks) {
        for copy in 0..2 {
            if let Ok(found) = Superblock::decode(block, copy) {
                let again = found.superblock.encode(found.member, copy);
                assert_eq!(Superblock::decode(&again, copy).as_ref(), Ok(&found));
            }
        }
        for (level, members) in [(Level::Raid1, 2), (Level::Raid5, 5), (Level::Raid6, 18)] {
            let geometry = Geometry::new(level, members).expect("a level that they make");
            let _ = intent::decode(block, GROUP, at, 128, geometry, 1000);
            let mut guards = Box::new([Guard::OF_ZEROS; GUARDS]);
            let _ = guard::decode(block, GROUP, at, 1, &mut guards);
        }
    }
    let candidates: Vec<_> = (1..=4_u8)
        .map(|name| {
            let copy = |n: usize| blocks.get((usize::from(name) + n) % blocks.len().max(1));
            Candidate { device: DeviceId([name; 16]), blocks: BlockCount(1000), copies: [copy(0), copy(1)] }
        })
        .collect();
    if let Ok(assembly) = assemble(&candidates, Expected { group: GROUP, sequence: 1 }) {
        let geometry = assembly.superblock.geometry;
        assert!(geometry.survives(|m| assembly.members[m].is_none()), "a group without all its data");
    }
}

fn padded(bytes: &[u8]) -> Block {
    let mut block = [0; BLOCK_BYTES];
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

/// The block of each kind, with a checksum that fits.
fn resealed(block: Block) -> Vec<Block> {
    let place = u64::from(block[40] % 8);
    let seal = seal::Seal { group: GROUP, sequence: u64::from(block[32]), place };
    [seal::Kind::Superblock, seal::Kind::Intent, seal::Kind::Guards]
        .into_iter()
        .map(|kind| {
            let mut sealed = block;
            seal::close(&mut sealed, kind, &seal);
            sealed
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_on_a_device_is_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            super::group(&bytes);
        }
    }
}
