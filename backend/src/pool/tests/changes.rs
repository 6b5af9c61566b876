//! One change at a time: what is refused and how, what is freed and when, and what the log survives.

use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use proptest::prelude::*;

use super::super::*;
use super::array::{Array, Outcome, thin, track};
use super::ground::{FakeGround, Pace, grounds};
use super::{group, run, run_for, uuid};
use crate::format::share::{self, Change, Header, Record};
use crate::raid::GroupError;

/// One group with eight slices of two stripes; an extent is a track, so four of them fill a slice.
fn small() -> Array {
    Array::new(1, 16, 8, 2, 1)
}

fn spec(name: u8, generation: u32, positions: u64) -> ShareSpec {
    let (volume, generation) = (uuid(name), Generation(generation));
    ShareSpec { volume, generation, extent: track(), positions, allocation: Allocation::Thin }
}

fn only(array: &Array) -> &Pool<FakeGround> {
    &array.pools[0]
}

#[test]
fn unknown_old_and_future_generations_are_each_refused_in_their_own_way() {
    let array = small();
    let pool = only(&array);
    assert_eq!(pool.share(uuid(1), Generation(1)), Err(PoolError::UnknownVolume));
    let id = run(pool.ensure(spec(1, 3, 9))).expect("a share");
    assert_eq!(pool.share(uuid(1), Generation(3)), Ok(id));
    assert_eq!(pool.share(uuid(1), Generation(2)), Err(PoolError::OldGeneration(Generation(3))));
    assert_eq!(pool.share(uuid(1), Generation(4)), Err(PoolError::UnknownGeneration(Generation(3))));
    assert_eq!(pool.locate(id, 8, 0), Ok(None));
    assert_eq!(pool.locate(id, 9, 0), Err(PoolError::OutOfRange(9)));
    assert_eq!(pool.admit(id, 9), Err(PoolError::OutOfRange(9)));
    assert_eq!(run(pool.settle(id, 0..1)), Err(PoolError::NotAdmitted));
    run(pool.cut(spec(1, 4, 5))).expect("shorter");
    for refused in [pool.locate(id, 0, 0).map(drop), pool.admit(id, 0).map(drop), run(pool.settle(id, 0..1))] {
        assert_eq!(refused, Err(PoolError::OldGeneration(Generation(4))));
    }
    assert_eq!(run(pool.trim(id, 0..4)), Err(PoolError::OldGeneration(Generation(4))));
    let id = pool.share(uuid(1), Generation(4)).expect("the new one");
    assert_eq!(run(pool.delete(uuid(1), Generation(4))), Err(PoolError::OldGeneration(Generation(4))));
    run(pool.delete(uuid(1), Generation(5))).expect("gone");
    assert_eq!(pool.locate(id, 0, 0), Err(PoolError::UnknownVolume));
    // Its place in the table is another volume's now.
    run(pool.ensure(spec(2, 4, 5))).expect("a share");
    assert_eq!(pool.locate(id, 0, 0), Err(PoolError::UnknownVolume));
    assert_eq!(run(pool.delete(uuid(1), Generation(9))), Ok(()), "again");
}

#[test]
fn what_contradicts_the_share_is_refused_and_changes_nothing() {
    let array = small();
    let pool = only(&array);
    run(pool.ensure(spec(1, 2, 9))).expect("a share");
    let before = (pool.volumes(), pool.counters());
    let wide = Extent::of_tracks(2).expect("an extent");
    for (refused, why) in [
        (spec(1, 1, 9), PoolError::OldGeneration(Generation(2))),
        (spec(1, 3, 9), PoolError::UnknownGeneration(Generation(2))),
        (spec(1, 2, 8), PoolError::Contradiction),
        (ShareSpec { extent: wide, ..spec(1, 2, 9) }, PoolError::Contradiction),
        (ShareSpec { allocation: Allocation::Full, ..spec(1, 2, 9) }, PoolError::Contradiction),
        (
            ShareSpec { extent: Extent::of_tracks(3).expect("an extent"), ..spec(2, 1, 9) },
            PoolError::Extent { extent: 48, slice: 64 },
        ),
        (spec(2, 1, u64::MAX), PoolError::TooLong(u64::MAX)),
        (spec(2, 1, 4 * (1 << 24) + 1), PoolError::TooLong(4 * (1 << 24) + 1)),
        (ShareSpec { allocation: Allocation::Full, ..spec(2, 1, 33) }, PoolError::Full),
    ] {
        assert_eq!(run(pool.ensure(refused)).map(drop), Err(why));
    }
    for (refused, why) in [
        (spec(1, 1, 5), PoolError::OldGeneration(Generation(2))),
        (spec(1, 2, 5), PoolError::Contradiction),
        (spec(1, 3, 10), PoolError::Contradiction),
        (spec(2, 1, 1), PoolError::UnknownVolume),
    ] {
        assert_eq!(run(pool.cut(refused)), Err(why), "{refused:?}");
    }
    assert_eq!((pool.volumes(), pool.counters()), before);
    assert_eq!(run(pool.ensure(spec(1, 2, 9))).map(drop), Ok(()), "what is there already");
    assert_eq!(pool.counters(), before.1);
}

#[test]
fn a_full_pool_says_so_before_and_never_after() {
    let mut array = small();
    let a = thin(&mut array, 1, 100);
    // Eight slices, four extents each: a slice is kept as soon as one of its extents is to be written.
    let pool = only(&array).clone();
    let id = pool.share(a, Generation(1)).expect("a share");
    for slice in 0..8 {
        assert_eq!(pool.admit(id, 4 * slice + 1), Ok(true));
        assert_eq!(pool.admit(id, 4 * slice + 2), Ok(false), "it is kept already");
    }
    assert_eq!(pool.admit(id, 32), Err(PoolError::Full));
    let b = thin(&mut array, 2, 100);
    assert_eq!(array.write(b, 0, 1, 7), Outcome::Full);
    // What was admitted finds its place, whatever the order; what was not, does not take it.
    for slice in (0..8).rev() {
        assert_eq!(run(pool.settle(id, 4 * slice..4 * slice + 3)), Ok(()));
    }
    let space = pool.space();
    assert_eq!((space.in_use, space.reserved, space.slices), (8, 0, 8));
    // A command over two slices of which only one is left takes none.
    assert_eq!(array.deallocate(a, 16 * 4, 16 * 4), Outcome::Done);
    assert_eq!(array.write(b, 4 * 16 - 1, 2, 7), Outcome::Full);
    assert_eq!(pool.space().reserved, 0);
    assert_eq!(array.write(b, 4 * 16 - 1, 1, 7), Outcome::Done);
    array.check();
}

#[test]
fn full_allocation_keeps_its_promise() {
    let mut array = small();
    let ids = array.ids();
    assert_eq!(array.create(uuid(1), track(), 13, Allocation::Full, ids.clone()), Outcome::Done);
    let pool = only(&array).clone();
    assert_eq!((pool.space().in_use, pool.space().reserved), (4, 0));
    let thin = thin(&mut array, 2, 100);
    for slice in 0..4 {
        assert_eq!(array.write(thin, slice * 64, 1, 9), Outcome::Done);
    }
    assert_eq!(array.write(thin, 4 * 64, 1, 9), Outcome::Full);
    assert_eq!(array.write(uuid(1), 0, 40, 3), Outcome::Done, "it has its slices");
    assert_eq!(array.deallocate(uuid(1), 0, 13 * 16), Outcome::Done);
    assert_eq!(pool.space().in_use, 8, "and keeps them");
    assert_eq!(array.create(uuid(3), track(), 1, Allocation::Full, ids), Outcome::Full);
    assert_eq!(pool.volumes().len(), 2, "nothing is left of it");
    array.check();
    array.reopen(None);
    array.check();
}

/// Its making was cut short between the share and its slices: whoever opens the pool keeps them for it before anybody else can take them.
#[test]
fn full_allocation_that_was_cut_short_keeps_its_promise() {
    let mut kept = 0;
    for seed in 0..40 {
        let mut array = Array::new(1, 16, 8, 2, seed);
        let ids = array.ids();
        array.grounds[0].die_after(2);
        assert_eq!(array.create(uuid(1), track(), 13, Allocation::Full, ids), Outcome::Died);
        array.grounds[0].live();
        let space = run(Pool::open(array.grounds[0].clone())).expect("a pool").space();
        assert_eq!(space.in_use + space.reserved, 4);
        kept += u32::from(space.reserved > 0);
    }
    assert!(kept > 0, "{kept} of them had not got their slices");
}

/// PROTOCOLS 13: delete and slice reuse with old maps.
#[test]
fn old_map_after_slice_reuse() {
    let mut array = small();
    let a = thin(&mut array, 1, 32);
    for slice in 0..8 {
        assert_eq!(array.write(a, slice * 64 + 5, 3, 11), Outcome::Done);
    }
    let old = array.way(a);
    assert_eq!(array.delete(a), Outcome::Done);
    let b = thin(&mut array, 2, 32);
    for slice in 0..8 {
        assert_eq!(array.write(b, slice * 64 + 7, 1, 22), Outcome::Done);
    }
    let memory = array.grounds[0].memory().clone();
    let segments = [crate::testing::segment(&memory, 0, 1)];
    let unknown = Err(VolumeError::Pool(PoolError::UnknownVolume));
    assert_eq!(run(old.read(Lba(5), &segments)), unknown);
    assert_eq!(run(old.write(Lba(5), &segments)), unknown);
    assert_eq!(run(old.deallocate(Lba(0), BlockCount(512))).map(drop), unknown);
    array.check();
    // The same volume, shorter and longer again: what was cut off does not come back.
    let before = array.way(b);
    assert_eq!(array.shrink(b, 2), Outcome::Done);
    let longer = array.registry[&b].grown(32).expect("longer");
    assert_eq!(array.grow(b, longer), Outcome::Done);
    assert_eq!(run(before.write(Lba(5), &segments)), Err(VolumeError::Pool(PoolError::OldGeneration(Generation(2)))));
    array.check();
}

/// A read that was translated before its slice was freed is over before the slice is anybody else's.
#[test]
fn a_slice_is_not_reused_under_a_pin() {
    let mut array = small();
    let a = thin(&mut array, 1, 32);
    for slice in 0..8 {
        assert_eq!(array.write(a, slice * 64, 1, 11), Outcome::Done);
    }
    let pool = only(&array).clone();
    let id = pool.share(a, Generation(1)).expect("a share");
    let pin = pool.pin();
    let at = pool.locate(id, 0, 0).expect("inside").expect("written");
    assert_eq!(run(pool.trim(id, 0..4)), Ok(1));
    let b = thin(&mut array, 2, 32);
    let other = pool.share(b, Generation(1)).expect("a share");
    assert_eq!(pool.admit(other, 0), Ok(true), "it is counted as free");
    {
        let mut settling = std::pin::pin!(pool.settle(other, 0..1));
        let mut poll = || {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            std::future::Future::poll(settling.as_mut(), &mut cx)
        };
        assert!((0..100).all(|_| poll().is_pending()));
        assert_eq!(array.grounds[0].0.data.borrow()[usize::try_from(at.0).expect("small")], 11, "as it was");
        // Those that come later do not keep it.
        let later = pool.pin();
        drop(pin);
        assert!(poll().is_ready());
        drop(later);
    }
    assert_eq!(pool.locate(other, 0, 0), Ok(Some(at)));
    assert_eq!(array.grounds[0].0.data.borrow()[usize::try_from(at.0).expect("small")], 0);
}

#[test]
fn delete_and_cut_wait_for_what_is_in_flight() {
    let array = small();
    let pool = only(&array);
    run(pool.ensure(spec(1, 1, 9))).expect("a share");
    run(pool.ensure(spec(2, 1, 9))).expect("a share");
    let pin = pool.pin();
    assert_eq!(run_for(pool.cut(spec(1, 2, 3)), 50), None);
    assert_eq!(pool.share(uuid(1), Generation(1)), Err(PoolError::OldGeneration(Generation(2))), "refused at once");
    assert_eq!(run_for(pool.delete(uuid(2), Generation(2)), 50), None);
    assert_eq!(pool.share(uuid(2), Generation(1)), Err(PoolError::UnknownVolume), "refused at once");
    drop(pin);
    assert_eq!(run(pool.cut(spec(1, 2, 3))), Ok(()));
    assert_eq!(run(pool.delete(uuid(2), Generation(2))), Ok(()));
}

/// A write that was translated before the cut lands during it, behind the new end, in a slice that stays.
#[test]
fn what_was_in_flight_when_a_volume_was_cut_does_not_come_back() {
    let mut array = small();
    let a = thin(&mut array, 1, 32);
    assert_eq!(array.write(a, 0, 20, 5), Outcome::Done);
    let pool = only(&array).clone();
    let id = pool.share(a, Generation(1)).expect("a share");
    let (pin, at) = (pool.pin(), pool.locate(id, 3, 7).expect("inside").expect("the slice is there"));
    assert_eq!(run_for(pool.cut(spec(1, 2, 1)), 50), None);
    let memory = array.grounds[0].memory().clone();
    memory.write(0, &[66]).expect("in memory");
    run(array.grounds[0].write(at, &[crate::testing::segment(&memory, 0, 1)])).expect("a write");
    drop(pin);
    assert_eq!(run(pool.cut(spec(1, 2, 1))), Ok(()));
    let id = run(pool.ensure(spec(1, 2, 32))).expect("longer");
    assert_eq!(pool.locate(id, 3, 7), Ok(Some(at)));
    let data = array.grounds[0].0.data.borrow();
    assert_eq!((data[0], data[usize::try_from(at.0).expect("small")]), (5, 0));
}

#[test]
fn freed_slices_are_zeroed_ahead_of_need_and_what_cannot_be_zeroed_is_nobodys() {
    let mut array = small();
    let a = thin(&mut array, 1, 32);
    for slice in 0..8 {
        assert_eq!(array.write(a, slice * 64, 1, 11), Outcome::Done);
    }
    let pool = only(&array).clone();
    assert_eq!(array.deallocate(a, 0, 5 * 64), Outcome::Done);
    assert_eq!(pool.counters().zeroed, 0);
    assert_eq!(run_for(pool.serve(), 100), None);
    assert_eq!((pool.counters().zeroed, pool.zeroed().len()), (5, 5));
    array.check_space();
    // A slice that cannot be zeroed does not hold the others up, and is an error for who needs it, not old data.
    assert_eq!(array.deallocate(a, 5 * 64, 3 * 64), Outcome::Done);
    array.grounds[0].0.bad.set(Some(5 * 64 + 3));
    assert_eq!(run_for(pool.serve(), 100), None);
    for slice in 0..7 {
        assert_eq!(array.write(a, slice * 64, 1, 12), Outcome::Done);
    }
    let id = pool.share(a, Generation(1)).expect("a share");
    assert_eq!(pool.admit(id, 28), Ok(true));
    assert_eq!(run(pool.settle(id, 28..29)), Err(PoolError::Group(GroupError::Media)));
    array.grounds[0].0.bad.set(None);
    assert_eq!(run(pool.settle(id, 28..29)), Ok(()), "when it can, it is there");
    array.check();
}

#[test]
fn a_table_that_is_full_takes_no_other_volume() {
    let array = Array::new(1, 16, 8, 2, 1);
    let pool = only(&array);
    // Half of 8 blocks, one of them for changes; 126 records each; 8 of them are for slices.
    let most = 3 * 126 - 8;
    for n in 0..most {
        let mut volume = uuid(0);
        volume.0[..8].copy_from_slice(&u64::to_le_bytes(n));
        run(pool.ensure(ShareSpec { volume, ..spec(0, 1, 1) })).expect("room");
    }
    assert_eq!(run(pool.ensure(spec(200, 1, 1))).map(drop), Err(PoolError::TooManyShares));
    let mut first = uuid(0);
    first.0[..8].copy_from_slice(&u64::to_le_bytes(0));
    run(pool.delete(first, Generation(2))).expect("gone");
    run(pool.ensure(spec(200, 1, 1))).expect("room again");
    let again = run(Pool::open(array.grounds[0].clone())).expect("a pool");
    assert_eq!(again.volumes().len(), usize::try_from(most).expect("small"));
}

/// A change that somebody began and dropped may be in the log or not: only opening it again tells.
#[test]
fn a_change_that_is_dropped_closes_the_pool() {
    let array = small();
    let pool = only(&array);
    array.grounds[0].0.pace.set(Pace::Random);
    let mut dropped = 0;
    for polls in 1..20 {
        let pool = run(Pool::open(array.grounds[0].clone())).expect("a pool");
        let id = pool.share(uuid(1), Generation(1)).or_else(|_| run(pool.ensure(spec(1, 1, 9)))).expect("a share");
        if run_for(pool.ensure(spec(1, 1, 9 + polls)), usize::try_from(polls % 4).expect("small")).is_none() {
            let closed = pool.admit(id, 0) == Err(PoolError::Group(GroupError::Invalid));
            dropped += u64::from(closed);
        }
        let pool = run(Pool::open(array.grounds[0].clone())).expect("a pool");
        run(pool.delete(uuid(1), Generation(2))).expect("gone");
    }
    assert!(dropped > 3, "{dropped}");
    drop(pool.clone());
}

/// What slices cost: one block of the share log for the first write of each, or of many together; nothing after that.
#[test]
fn a_slice_costs_one_append_and_many_that_wait_together_share_it() {
    let mut array = Array::new(1, 64, 32, 2, 1);
    let a = thin(&mut array, 1, 128);
    let pool = only(&array).clone();
    let appends = || pool.counters().appends;
    let before = appends();
    assert_eq!(array.write(a, 3, 1, 1), Outcome::Done);
    assert_eq!(appends() - before, 1);
    assert_eq!(array.write(a, 0, 40, 2), Outcome::Done);
    assert_eq!(appends() - before, 1, "it is there");
    let id = pool.share(a, Generation(1)).expect("a share");
    for position in (8..48).step_by(4) {
        assert_eq!(pool.admit(id, position), Ok(true));
    }
    array.grounds[0].0.pace.set(Pace::Polls(3));
    let mut waiting: Vec<_> = (8..48).step_by(4).map(|p| Box::pin(pool.settle(id, p..p + 1))).collect();
    let mut polls = 0;
    while !waiting.is_empty() {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        waiting.retain_mut(|one| std::future::Future::poll(one.as_mut(), &mut cx).is_pending());
        polls += 1;
        assert!(polls < 1000);
    }
    array.grounds[0].0.pace.set(Pace::AtOnce);
    assert_eq!(appends() - before, 1 + 2, "the first one alone, those that came meanwhile together");
    assert_eq!(array.deallocate(a, 0, 128 * 16), Outcome::Done);
    assert_eq!(appends() - before, 1 + 2 + 1, "however many slices");
}

// The log.

/// Pages of all copies, for comparing and for spoiling.
fn spoil(ground: &FakeGround, place: usize, with: impl Fn(usize, &mut [u8; BLOCK_BYTES])) {
    for (copy, pages) in ground.0.shares.borrow_mut().iter_mut().enumerate() {
        with(copy, &mut pages[place]);
    }
}

/// A pool whose log has a snapshot and two changes behind it, the last one at the place returned.
fn with_changes() -> (FakeGround, usize) {
    let ground = grounds(1, 16, 8, 3, 1).remove(0);
    let pool = run(Pool::format(ground.clone(), Some(2))).expect("a pool");
    run(pool.ensure(spec(1, 1, 9))).expect("a share");
    run(pool.ensure(spec(2, 1, 9))).expect("a share");
    // Number 1: the second half; the snapshot, then two changes.
    (ground, 4 + 2)
}

#[test]
fn a_log_without_its_last_change_is_the_log_before_it_and_without_another_one_is_damaged() {
    let volumes = |ground: &FakeGround| run(Pool::open(ground.clone())).map(|pool| pool.volumes().len());
    let (ground, _) = with_changes();
    assert_eq!(volumes(&ground), Ok(2));
    let (ground, last) = with_changes();
    spoil(&ground, last, |_, block| block[4000] ^= 1);
    assert_eq!(volumes(&ground), Ok(1), "torn: nobody was told that it was done");
    let (ground, last) = with_changes();
    spoil(&ground, last, |copy, block| block[4000] ^= u8::from(copy != 2));
    assert_eq!(volumes(&ground), Ok(2), "one copy is enough");
    for place in [4, 5] {
        let (ground, _) = with_changes();
        let before = ground.0.shares.borrow().clone();
        spoil(&ground, place, |_, block| block[70] ^= 1);
        let spoiled = ground.0.shares.borrow().clone();
        assert_eq!(volumes(&ground), Err(OpenError::Log(LogError::Damaged)), "what came before is missing");
        assert_eq!(*ground.0.shares.borrow(), spoiled, "and nothing was written");
        *ground.0.shares.borrow_mut() = before;
        assert_eq!(volumes(&ground), Ok(2));
    }
}

/// A block of a snapshot that was cut short must not be taken for a change of the log that is begun there next.
#[test]
fn the_number_of_a_log_that_was_cut_short_is_not_used_again() {
    let (ground, _) = with_changes();
    let stale = Record { volume: uuid(9), change: Change::Gone };
    let header = Header { log: 2, snapshot: 2, fresh: 0, slice_stripes: 2 };
    spoil(&ground, 1, |_, block| share::encode(block, group(1), 1, &header, &[stale]));
    for _ in 0..3 {
        let pool = run(Pool::open(ground.clone())).expect("a pool");
        assert_eq!(pool.volumes().len(), 2);
    }
}

/// A copy that slept, and woke up as good as it was then.
#[test]
fn a_copy_that_was_away_does_not_count() {
    for away in 0..3 {
        let (ground, _) = with_changes();
        let before = ground.0.shares.borrow()[away].clone();
        // The log after the next one is where that copy has its last one.
        drop(run(Pool::open(ground.clone())).expect("a pool"));
        let pool = run(Pool::open(ground.clone())).expect("a pool");
        run(pool.ensure(spec(3, 1, 9))).expect("a share");
        run(pool.delete(uuid(1), Generation(2))).expect("gone");
        ground.0.shares.borrow_mut()[away] = before.clone();
        let pool = run(Pool::open(ground.clone())).expect("a pool");
        assert_eq!(pool.volumes(), [spec(2, 1, 9), spec(3, 1, 9)]);
        assert_ne!(ground.0.shares.borrow()[away], before, "now it has everything again");
    }
}

/// The snapshot of a table with many shares has many blocks. Whoever dies in it leaves the log before it as it was.
#[test]
fn a_crash_in_a_long_snapshot_is_survived() {
    let make = || {
        let ground = grounds(1, 16, 48, 3, 5).remove(0);
        let pool = run(Pool::format(ground.clone(), Some(2))).expect("a pool");
        for n in 0..300 {
            let mut volume = uuid(0);
            volume.0[..8].copy_from_slice(&u64::to_le_bytes(n));
            run(pool.ensure(ShareSpec { volume, ..spec(0, 1, 1) })).expect("room");
        }
        (ground, pool.volumes())
    };
    let (ground, volumes) = make();
    for budget in 1..4 {
        ground.die_after(budget);
        let died = run(Pool::open(ground.clone())).is_err();
        assert_eq!(died, budget == 1, "three blocks are one write");
        ground.live();
        let mut found = run(Pool::open(ground.clone())).expect("a pool").volumes();
        found.sort_by_key(|share| share.volume);
        let mut expected = volumes.clone();
        expected.sort_by_key(|share| share.volume);
        assert_eq!(found, expected);
    }
    // Some blocks of it, in any copies, and the rest not.
    for some in 1..7_usize {
        let (ground, volumes) = make();
        let before = ground.0.shares.borrow().clone();
        drop(run(Pool::open(ground.clone())).expect("a pool"));
        let first = before[0].iter().zip(&ground.0.shares.borrow()[0]).position(|(a, b)| a != b).expect("a new log");
        for (block, place) in (first..first + 3).enumerate() {
            if some >> block & 1 == 0 {
                for (copy, pages) in ground.0.shares.borrow_mut().iter_mut().enumerate() {
                    pages[place] = before[copy][place];
                }
            }
        }
        assert_eq!(run(Pool::open(ground.clone())).expect("a pool").volumes().len(), volumes.len(), "{some:b}");
        assert_eq!(run(Pool::open(ground.clone())).expect("a pool").volumes().len(), volumes.len(), "{some:b}");
    }
}

#[test]
fn a_table_that_is_not_ours_is_refused() {
    let open = |ground: &FakeGround| run(Pool::open(ground.clone())).map(drop);
    let ground = grounds(1, 16, 8, 3, 1).remove(0);
    assert_eq!(open(&ground), Err(OpenError::Log(LogError::Blank)));
    let make = |ground: &FakeGround, stripes| run(Pool::format(ground.clone(), stripes)).map(drop);
    for bad in [0, 17, 1000] {
        assert_eq!(make(&ground, Some(bad)), Err(OpenError::SliceSize(bad)));
    }
    assert_eq!(make(&ground, None), Ok(()));
    assert_eq!(make(&ground, None), Err(OpenError::Exists));
    // A version that is not known here.
    let (ground, _) = with_changes();
    for place in 0..8 {
        spoil(&ground, place, |_, block| {
            block[8] = 2;
            block[12..16].fill(0);
            let crc = crc32c::crc32c(block);
            block[12..16].copy_from_slice(&crc.to_le_bytes());
        });
    }
    assert_eq!(open(&ground), Err(OpenError::Log(LogError::Version(2))));
    // The region of another group.
    let (other, _) = with_changes();
    let mut two = grounds(2, 16, 8, 3, 1);
    let second = two.remove(1);
    *second.0.shares.borrow_mut() = other.0.shares.borrow().clone();
    assert_eq!(open(&second), Err(OpenError::Log(LogError::Damaged)));
    assert_eq!(make(&second, None), Err(OpenError::Exists), "nor is it overwritten");
    // Too small for two logs; and nothing can be read.
    assert_eq!(make(&grounds(1, 16, 3, 3, 1)[0], None), Err(OpenError::Log(LogError::TooSmall)));
    let single = grounds(1, 16, 8, 1, 1).remove(0);
    single.0.lost.set(Some(0));
    assert_eq!(open(&single), Err(OpenError::Log(LogError::Damaged)));
    assert_eq!(make(&single, None), Err(OpenError::Exists));
}

#[test]
fn slices_suit_the_group() {
    let slices = super::super::home::suitable;
    assert_eq!(slices(3, 100), 1);
    assert_eq!(slices(64, 100), 4);
    assert_eq!(slices(10_000, 1000), 16);
    assert_eq!(slices(1 << 24, 1 << 18), 64);
    assert_eq!(slices(1 << 28, 1 << 18), 1024);
}

/// Many changes, many more than a half has room for; every few of them somebody opens it anew and finds the same.
#[test]
fn the_log_goes_around() {
    let mut array = small();
    let a = thin(&mut array, 1, 32);
    for round in 0..60 {
        let lba = round * 29 % 512;
        assert_eq!(array.write(a, lba, 1, 1 + u8::try_from(round).expect("small")), Outcome::Done);
        if round % 5 > 0 {
            assert_eq!(array.deallocate(a, lba / 64 * 64, 64), Outcome::Done);
        }
        if round % 7 == 6 {
            assert!(only(&array).counters().logs > 2, "{:?}", only(&array).counters());
            array.reopen(Some(usize::try_from(round % 3).expect("small")));
        }
        array.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is in the region: an error or a pool, never a panic, and never a pool that contradicts itself.
    #[test]
    fn sealed_nonsense_is_no_table(place in 0..8_usize, at in 48..400_usize, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
        let (ground, _) = with_changes();
        spoil(&ground, place, |_, block| {
            block[at..at + bytes.len()].copy_from_slice(&bytes);
            block[12..16].fill(0);
            let crc = crc32c::crc32c(block);
            block[12..16].copy_from_slice(&crc.to_le_bytes());
        });
        if let Ok(pool) = run(Pool::open(ground.clone())) {
            let again = run(Pool::open(ground)).expect("what was just written");
            prop_assert_eq!(again.volumes(), pool.volumes());
            prop_assert_eq!(again.space(), pool.space());
        }
    }
}

#[test]
fn strangers_are_named_and_left_alone() {
    let array = small();
    let pool = only(&array);
    run(pool.ensure(spec(1, 1, 9))).expect("a share");
    run(pool.ensure(spec(2, 3, 9))).expect("a share");
    let name = Name::new("v").expect("a name");
    let describe = |volume, groups| {
        Description::new(name.clone(), volume, track(), 9, Allocation::Thin, groups).expect("a volume")
    };
    let (here, elsewhere) = (describe(uuid(1), vec![group(1)]), describe(uuid(2), vec![group(2)]));
    let done = run(pool.reconcile(&[here.clone(), elsewhere.clone()])).expect("done");
    assert_eq!(done.strangers, [uuid(2)]);
    assert_eq!(run(pool.reconcile(&[])).expect("done").strangers.len(), 2);
    // A registry that is older than the pool is not believed.
    let older = describe(uuid(2), vec![group(1)]);
    assert_eq!(run(pool.reconcile(&[older])), Err(PoolError::OldGeneration(Generation(3))));
    assert_eq!(pool.volumes().len(), 2);
    // Deletion is finished, also for one that was told nothing before.
    let gone = here.deleted().expect("deleted");
    assert_eq!(run(pool.reconcile(&[gone, elsewhere])).map(|done| done.strangers.len()), Ok(1));
    assert_eq!(pool.volumes().len(), 1);
}
