//! Every loop against one that takes byte after byte, and every loss that parity covers.

use dyad_matrix::Memory;
use dyad_matrix::memory::RangeError;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount};
use proptest::prelude::*;

use super::*;
use crate::testing::memory;

const ONE: BlockCount = BlockCount(1);

fn pieces(memory: &Memory, blocks: std::ops::Range<u64>) -> Vec<Piece<'_>> {
    blocks.map(|block| Piece { memory, offset: BlockCount(block).bytes() }).collect()
}

fn bytes(memory: &Memory, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    memory.read(BlockCount(block).bytes(), &mut bytes).expect("inside");
    bytes
}

/// Blocks of bytes that look random.
fn noise(blocks: usize, seed: u64) -> Memory {
    let memory = memory(blocks);
    let mut state = seed | 1;
    for word in 0..blocks as u64 * 512 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory.write(word * 8, &state.to_le_bytes()).expect("inside");
    }
    memory
}

#[test]
fn the_field_is_a_field() {
    for a in 0..=255 {
        for b in 0..=255 {
            let (a, b) = (Gf(a), Gf(b));
            assert_eq!(a.times(b), b.times(a));
            assert_eq!(a.plus(b).times(Gf(0x53)), a.times(Gf(0x53)).plus(b.times(Gf(0x53))));
        }
        assert_eq!(Gf(a).inverse().map(|i| i.times(Gf(a))), (a != 0).then_some(Gf::ONE));
    }
    // g generates everything but zero; these two are in the tables of Anvin's paper and of every RAID 6.
    let mut powers: Vec<u8> = (0..255).map(|i| Gf::power_of_g(i).0).collect();
    assert_eq!((powers[8], powers[254]), (0x1d, 0x8e));
    powers.sort_unstable();
    assert_eq!(powers, (1..=255).collect::<Vec<u8>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn all_loops_compute_what_the_plain_one_does(
        rows in (1..=SOURCES_MAX).prop_flat_map(|n| proptest::collection::vec(proptest::collection::vec(0..=255_u8, n), 1..=2)),
        ones in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let factor = |f: u8| if ones { Gf(f & 1) } else { Gf(f) };
        let rows: Vec<Vec<Gf>> = rows.iter().map(|row| row.iter().map(|f| factor(*f)).collect()).collect();
        let count = rows[0].len();
        let memory = noise(count + 2, seed);
        let all: Vec<Vec<u8>> = (0..count as u64).map(|block| bytes(&memory, block)).collect();
        for isa in kernel::Isa::all() {
            let first = count as u64;
            let targets = pieces(&memory, first..first + rows.len() as u64);
            let by_row: Vec<&[Gf]> = rows.iter().map(Vec::as_slice).collect();
            combine_with(isa, &targets, &pieces(&memory, 0..first), &by_row, ONE).expect("a combination");
            for (t, row) in rows.iter().enumerate() {
                let plain: Vec<u8> = (0..BLOCK_BYTES)
                    .map(|at| row.iter().zip(&all).fold(Gf::ZERO, |sum, (f, block)| sum.plus(f.times(Gf(block[at])))).0)
                    .collect();
                prop_assert!(bytes(&memory, first + t as u64) == plain, "{isa:?}, target {t}");
            }
        }
    }
}

#[test]
fn every_one_or_two_lost_members_come_back() {
    for data in [1, 2, 3, 7, DATA_MAX] {
        let memory = noise(data + 4, 77 + data as u64);
        let members: Vec<Member> = (0..data).map(Member::Data).chain([Member::P, Member::Q]).collect();
        let row = |of| -> Vec<Gf> {
            let recipe = Recipe::new(data, 2, of, None).expect("parity of all data");
            (0..data).map(|i| recipe.factor(Member::Data(i))).collect()
        };
        let n = data as u64;
        let (of_p, of_q) = (row(Member::P), row(Member::Q));
        combine(&pieces(&memory, n..n + 2), &pieces(&memory, 0..n), &[&of_p, &of_q], ONE).expect("P and Q");
        for lost in &members {
            for other in &members {
                let recipe = Recipe::new(data, 2, *lost, Some(*other)).expect("two parities cover two");
                assert_eq!((recipe.factor(*lost), recipe.factor(*other)), (Gf::ZERO, Gf::ZERO));
                let row: Vec<Gf> = members.iter().map(|member| recipe.factor(*member)).collect();
                combine(&pieces(&memory, n + 2..n + 3), &pieces(&memory, 0..n + 2), &[&row], ONE)
                    .expect("a combination");
                let at = members.iter().position(|m| m == lost).expect("a member") as u64;
                assert!(bytes(&memory, n + 2) == bytes(&memory, at), "{data} data, {lost:?} without {other:?}");
            }
        }
    }
}

#[test]
fn one_parity_covers_one() {
    for member in [Member::Data(0), Member::P] {
        assert!(Recipe::new(3, 1, member, None).is_some());
    }
    assert_eq!(Recipe::new(3, 0, Member::Data(0), None), None);
    assert_eq!(Recipe::new(3, 1, Member::Q, None), None);
    assert_eq!(Recipe::new(3, 1, Member::Data(3), None), None);
    assert_eq!(Recipe::new(3, 1, Member::Data(0), Some(Member::Data(1))), None);
    assert_eq!(Recipe::new(3, 1, Member::Data(0), Some(Member::P)), None);
    assert_eq!(Recipe::new(3, 1, Member::P, Some(Member::Data(0))), None);
    assert_eq!(Recipe::new(DATA_MAX + 1, 2, Member::P, None), None);
}

/// Whole chunks are written past the caches.
#[test]
fn long_runs_are_summed_like_short_ones() {
    let memory = noise(16 * 4, 3);
    let at = |chunk: u64| Piece { memory: &memory, offset: BlockCount(16 * chunk).bytes() };
    for isa in kernel::Isa::all() {
        combine_with(isa, &[at(2), at(3)], &[at(0), at(1)], &[&[Gf(1), Gf(1)], &[Gf(2), Gf(77)]], BlockCount(16))
            .expect("two chunks");
        for block in 0..16 {
            let (a, b) = (bytes(&memory, block), bytes(&memory, 16 + block));
            let plain = |f: [Gf; 2]| -> Vec<u8> {
                a.iter().zip(&b).map(|(a, b)| f[0].times(Gf(*a)).plus(f[1].times(Gf(*b))).0).collect()
            };
            assert!(bytes(&memory, 32 + block) == plain([Gf(1), Gf(1)]), "{isa:?}, P of {block}");
            assert!(bytes(&memory, 48 + block) == plain([Gf(2), Gf(77)]), "{isa:?}, Q of {block}");
        }
        memory.fill_zero(BlockCount(32).bytes(), BlockCount(32).bytes()).expect("inside");
    }
}

/// A partial write's parity: P and Q take the difference of old and new data, in place.
#[test]
fn parity_is_updated_in_place() {
    // Data 0 and 1, P, Q, and the new data 1.
    let memory = noise(7, 5);
    let g = Gf::power_of_g(1);
    let whole = |data: [u64; 2], to: u64| {
        let at = |block: u64| Piece { memory: &memory, offset: BlockCount(block).bytes() };
        let rows: [&[Gf]; 2] = [&[Gf::ONE, Gf::ONE], &[Gf::ONE, g]];
        combine(&[at(to), at(to + 1)], &data.map(at), &rows, ONE).expect("whole");
    };
    whole([0, 1], 2);
    let at = |block: u64| Piece { memory: &memory, offset: BlockCount(block).bytes() };
    let (one, none) = (Gf::ONE, Gf::ZERO);
    combine(&[at(2), at(3)], &[at(2), at(3), at(1), at(4)], &[&[one, none, one, one], &[none, one, g, g]], ONE)
        .expect("an update");
    whole([0, 4], 5);
    assert!(bytes(&memory, 2) == bytes(&memory, 5) && bytes(&memory, 3) == bytes(&memory, 6));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let memory = noise(4, 9);
    let before = bytes(&memory, 3);
    let at = |offset| Piece { memory: &memory, offset };
    let [inside, outside] = [at(3 * 4096), at(4 * 4096)];
    assert_eq!(xor(inside, &[at(0), outside], ONE), Err(CombineError::Range(RangeError::Outside)));
    assert_eq!(xor(outside, &[at(0)], ONE), Err(CombineError::Range(RangeError::Outside)));
    assert_eq!(xor(inside, &[at(0)], BlockCount(2)), Err(CombineError::Range(RangeError::Outside)));
    assert_eq!(xor(inside, &[at(32)], ONE), Err(CombineError::Range(RangeError::Misaligned)));
    assert_eq!(xor(inside, &[at(0)], BlockCount(u64::MAX >> 13)), Err(CombineError::Range(RangeError::Outside)));
    assert_eq!(xor(inside, &[at(0); SOURCES_MAX + 1], ONE), Err(CombineError::Shape));
    assert_eq!(combine(&[inside; 3], &[], &[&[], &[], &[]], ONE), Err(CombineError::Shape));
    assert_eq!(combine(&[inside], &[at(0)], &[&[]], ONE), Err(CombineError::Shape));
    assert!(bytes(&memory, 3) == before);
    assert_eq!(xor(inside, &[], ONE), Ok(()), "the sum of nothing");
    assert!(bytes(&memory, 3).iter().all(|b| *b == 0));
}
