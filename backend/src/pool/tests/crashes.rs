//! Every kind of change, cut short at every write, in several ways; and the one after it too.

use super::super::*;
use super::array::{Array, Outcome, track};
use super::uuid;

/// What is done, and dies somewhere in the middle.
#[derive(Debug, Copy, Clone)]
enum Act {
    CreateThin,
    CreateFull,
    FirstWrite,
    WriteOverTwoSlices,
    Grow,
    GrowFull,
    NewGroups,
    Shrink,
    ShrinkToOneGroup,
    Delete,
    Deallocate,
    TakeFromFreed,
}

const ACTS: [Act; 12] = [
    Act::CreateThin,
    Act::CreateFull,
    Act::FirstWrite,
    Act::WriteOverTwoSlices,
    Act::Grow,
    Act::GrowFull,
    Act::NewGroups,
    Act::Shrink,
    Act::ShrinkToOneGroup,
    Act::Delete,
    Act::Deallocate,
    Act::TakeFromFreed,
];

/// Two groups with twelve slices each, a thin volume with data in most of it, a full one, and slices that another one had.
fn furnished(seed: u64) -> Array {
    let mut array = Array::new(2, 24, 8, 2, seed);
    let ids = array.ids();
    for (name, extents, allocation) in [(1, 40, Allocation::Thin), (2, 9, Allocation::Full), (3, 40, Allocation::Thin)]
    {
        assert_eq!(array.create(uuid(name), track(), extents, allocation, ids.clone()), Outcome::Done);
    }
    for at in 0..6 {
        assert_eq!(array.write(uuid(1), at * 64 + 10, 20, 10 + u8::try_from(at).expect("small")), Outcome::Done);
        assert_eq!(array.write(uuid(3), at * 32, 20, 40), Outcome::Done);
    }
    assert_eq!(array.write(uuid(2), 0, 40, 30), Outcome::Done);
    assert_eq!(array.delete(uuid(3)), Outcome::Done);
    array
}

fn act(array: &mut Array, act: Act) -> Outcome {
    let (ids, now) = (array.ids(), array.registry[&uuid(1)].clone());
    match act {
        Act::CreateThin => array.create(uuid(5), track(), 20, Allocation::Thin, ids),
        Act::CreateFull => array.create(uuid(5), track(), 20, Allocation::Full, ids),
        Act::FirstWrite => array.write(uuid(1), 39 * 16, 5, 99),
        Act::WriteOverTwoSlices => array.write(uuid(1), 30 * 16 + 2, 39, 99),
        Act::Grow => array.grow(uuid(1), now.grown(50).expect("longer")),
        Act::GrowFull => {
            let longer = array.registry[&uuid(2)].grown(30).expect("longer");
            array.grow(uuid(2), longer)
        }
        Act::NewGroups => array.grow(uuid(1), now.with_groups(vec![ids[1]], 50).expect("longer")),
        Act::Shrink => array.shrink(uuid(1), 5),
        Act::ShrinkToOneGroup => array.shrink(uuid(1), 1),
        Act::Delete => array.delete(uuid(1)),
        Act::Deallocate => array.deallocate(uuid(1), 0, 30 * 16),
        Act::TakeFromFreed => {
            // All slices but the last were somebody's.
            for at in (0..40).step_by(3) {
                match array.write(uuid(1), at * 16, 1, 100) {
                    Outcome::Done => {}
                    other => return other,
                }
            }
            Outcome::Done
        }
    }
}

/// After a life that was cut short: another one sees to it that all is well, goes on, and ends well.
fn recover(array: &mut Array, seed: u64) {
    array.reopen(usize::try_from(seed % 4).ok().filter(|copy| *copy < 3));
    array.check();
    if let Some(now) = array.registry.get(&uuid(1)).cloned() {
        assert_eq!(array.grow(uuid(1), now.grown(now.extents() + 8).expect("longer")), Outcome::Done);
        assert_eq!(array.write(uuid(1), now.blocks().0 - 3, 9, 77), Outcome::Done);
    }
    array.check();
}

#[test]
fn a_crash_at_any_write_of_any_change_is_survived() {
    let seeds = if std::env::var_os("DYAD_LONG").is_some() { 100 } else { 4 };
    let (mut lives, mut died) = (0, 0);
    for what in ACTS {
        for seed in 0..seeds {
            for budget in 1.. {
                let mut array = furnished(seed * 1000 + budget);
                array.grounds[0].die_after(budget);
                let outcome = act(&mut array, what);
                assert_eq!(outcome == Outcome::Died, array.grounds[0].dead(), "{what:?}");
                recover(&mut array, seed);
                (lives, died) = (lives + 1, died + u64::from(outcome == Outcome::Died));
                if outcome != Outcome::Died {
                    assert!(budget > 1, "{what:?} writes nothing");
                    break;
                }
            }
        }
    }
    println!("{lives} lives, {died} cut short");
}

/// The one who takes over dies too, while it opens the pools and finishes what was begun.
#[test]
fn a_crash_in_the_recovery_is_survived() {
    let mut died = 0;
    for what in ACTS {
        for budget in 1..6 {
            for second in 1..6 {
                let mut array = furnished(budget * 100 + second);
                array.grounds[0].die_after(budget);
                let _ = act(&mut array, what);
                array.grounds[0].die_after(second);
                died += u64::from(array.try_reopen());
                recover(&mut array, second);
            }
        }
    }
    println!("{died} of the second ones died");
    assert!(died > 100);
}
