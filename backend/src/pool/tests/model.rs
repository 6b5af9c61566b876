//! Random volumes, commands, deaths and take-overs against a flat model.

use dyad_reactor::{Rng, SeededRng};

use super::super::*;
use super::array::{Array, Outcome};
use super::{run_for, uuid};

/// Seeds; `DYAD_LONG` in the environment makes it a hundred times as many.
const SEEDS: u64 = 60;
const STEPS: usize = 60;

fn one_seed(seed: u64) -> (usize, usize) {
    let mut rng = SeededRng::new(seed);
    // Small regions, so that logs go around; few slices, so that groups are full; slices of two stripes or three, so that extents of
    // one, two and four tracks divide the one and not the other.
    let slice_stripes = if seed.is_multiple_of(3) { 3 } else { 2 };
    let mut array = Array::new(3, 8 + rng.below(12), 8 + rng.below(4), slice_stripes, seed);
    let (mut deaths, mut full, mut next) = (0, 0, 0_u8);
    for _ in 0..STEPS {
        let dying = rng.one_in(4);
        if dying {
            array.grounds[0].die_after(1 + rng.below(6));
        }
        let volumes: Vec<_> = array.model.keys().copied().collect();
        let pick = |rng: &mut SeededRng| volumes[usize::try_from(rng.below(volumes.len() as u64)).expect("small")];
        let outcome = match rng.below(20) {
            _ if volumes.is_empty() || (volumes.len() < 4 && rng.one_in(6)) => {
                next += 1;
                let mut groups = array.ids();
                groups.rotate_left(usize::try_from(rng.below(3)).expect("small"));
                groups.truncate(1 + usize::try_from(rng.below(3)).expect("small"));
                let tracks = if slice_stripes == 3 {
                    1 + u16::try_from(rng.below(3)).expect("small")
                } else {
                    1 << rng.below(3)
                };
                let extent = Extent::of_tracks(tracks).expect("an extent");
                let allocation = if rng.one_in(4) { Allocation::Full } else { Allocation::Thin };
                array.create(uuid(next), extent, 1 + rng.below(12), allocation, groups)
            }
            0..=8 => {
                let volume = pick(&mut rng);
                let size = array.registry[&volume].blocks().0;
                let lba = rng.below(size);
                let blocks = 1 + rng.below((size - lba).min(40));
                array.write(volume, lba, blocks, 1 + u8::try_from(rng.below(250)).expect("small"))
            }
            9..=11 => {
                let volume = pick(&mut rng);
                let size = array.registry[&volume].blocks().0;
                let lba = if rng.one_in(3) { 0 } else { rng.below(size) };
                array.deallocate(volume, lba, size - lba)
            }
            12..=13 => {
                let volume = pick(&mut rng);
                let now = array.registry[&volume].clone();
                let extents = now.extents() + 1 + rng.below(6);
                let longer = match rng.one_in(2) {
                    true => now.grown(extents),
                    false => {
                        let mut groups = array.ids();
                        groups.rotate_left(usize::try_from(rng.below(3)).expect("small"));
                        now.with_groups(groups, extents)
                    }
                };
                array.grow(volume, longer.expect("longer"))
            }
            14..=15 => {
                let volume = pick(&mut rng);
                match array.registry[&volume].extents() {
                    1 => Outcome::Done,
                    extents => array.shrink(volume, 1 + rng.below(extents - 1)),
                }
            }
            16 => array.delete(pick(&mut rng)),
            17..=18 => {
                // The service task gets some time, and loses its life in the middle.
                for pool in &array.pools {
                    let _ = run_for(pool.serve(), usize::try_from(rng.below(4)).expect("small"));
                }
                if array.grounds[0].dead() { Outcome::Died } else { Outcome::Done }
            }
            _ => Outcome::Done,
        };
        full += usize::from(outcome == Outcome::Full);
        let died = outcome == Outcome::Died || array.grounds[0].dead();
        array.grounds[0].live();
        if died || rng.one_in(12) {
            deaths += usize::from(died);
            let lost = if rng.one_in(2) { Some(usize::try_from(rng.below(3)).expect("small")) } else { None };
            array.reopen(lost);
        }
        array.check();
    }
    (deaths, full)
}

#[test]
fn whatever_happens_volumes_are_what_they_should_be() {
    let seeds = if std::env::var_os("DYAD_LONG").is_some() { 100 * SEEDS } else { SEEDS };
    let (mut deaths, mut full) = (0, 0);
    let from = std::env::var("DYAD_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    for seed in from..from + seeds {
        let result = std::panic::catch_unwind(|| one_seed(seed));
        let (d, f) = result.unwrap_or_else(|_| panic!("seed {seed}"));
        (deaths, full) = (deaths + d, full + f);
    }
    println!("{deaths} deaths, {full} times full");
    assert!(deaths > 100 && full > 20, "the test tests: {deaths} deaths, {full} times full");
}
