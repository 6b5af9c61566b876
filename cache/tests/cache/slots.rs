//! Slots: misses, partial hits, writes over what is dirty or on its way to media, overlapping commands, and what is given up.

use std::time::Duration;

use dyad_backend::fake::Latency;
use dyad_cache::TrackRange;
use dyad_reactor::Clock;

use super::world::{self, MIRRORED, Settings, TestCache, World};

/// Dirty blocks stay dirty unless somebody flushes.
fn lazy() -> Settings {
    Settings { idle: Duration::from_secs(100), vault_cells: 0, ..Settings::default() }
}

fn range(lba: u64, blocks: usize) -> TrackRange {
    world::range(MIRRORED, lba, blocks)
}

/// Blocks 0 to 15 with values from 100 on, on media and, if it was not given up, in the cache.
fn filled(settings: Settings) -> (World, TestCache) {
    let mut world = World::whole(1, settings);
    let cache = world.cache();
    let writer = cache.clone();
    world.run(async move {
        world::write(&writer, range(0, 16), 100, (1, 1), false).await.unwrap();
        writer.flush(MIRRORED, dyad_reactor::Time::FAR_FUTURE).await.unwrap();
    });
    (world, cache)
}

/// The same after a restart: nothing is in the cache.
fn cold() -> (World, TestCache) {
    let (mut world, _) = filled(lazy());
    world.lose_power();
    world.start(0);
    world.recover().unwrap();
    let cache = world.cache();
    assert_eq!(cache.cached_blocks(), 0);
    (world, cache)
}

#[test]
fn a_miss_reads_what_is_asked_for_and_a_hit_nothing() {
    let (mut world, cache) = cold();
    let reader = cache.clone();
    world.run(async move {
        assert_eq!(world::read(&reader, range(3, 2)).await, Ok(vec![103, 104]));
        assert_eq!(world::read(&reader, range(3, 2)).await, Ok(vec![103, 104]));
        assert_eq!(world::read(&reader, range(4, 1)).await, Ok(vec![104]));
    });
    let counters = cache.counters();
    assert_eq!((counters.read_misses, counters.read_hits, cache.cached_blocks()), (1, 2, 2));
}

#[test]
fn a_partial_hit_reads_what_is_missing_and_keeps_what_is_newer() {
    let (mut world, cache) = cold();
    let user = cache.clone();
    world.run(async move {
        world::write(&user, range(5, 1), 7, (1, 2), false).await.unwrap();
        assert_eq!(world::read(&user, range(4, 3)).await, Ok(vec![104, 7, 106]));
        assert_eq!(world::read(&user, range(0, 16)).await.unwrap()[3..8], [103, 104, 7, 106, 107]);
    });
    assert_eq!(cache.cached_blocks(), 16);
}

#[test]
fn misses_of_one_track_at_one_time_read_it_once() {
    let (mut world, cache) = cold();
    for _ in 0..4 {
        let reader = cache.clone();
        world.operations.push(Box::pin(async move {
            assert_eq!(world::read(&reader, range(2, 4)).await, Ok(vec![102, 103, 104, 105]));
        }));
    }
    world.finish();
    // All four found nothing; the frames say that only one of them read.
    assert_eq!((cache.counters().read_misses, cache.counters().read_blocks), (4, 4));
}

#[test]
fn a_write_over_dirty_blocks_gives_their_frames_back_here_and_there() {
    let (mut world, cache) = filled(lazy());
    let (free, mirror) = (cache.pool().free_count(), cache.link().unwrap().free_frames());
    for round in 0..50 {
        let writer = cache.clone();
        world.run(async move { world::write(&writer, range(2, 3), 200 + round, (1, 2 + round), false).await }).unwrap();
    }
    assert_eq!(cache.dirty_blocks(), 3);
    assert_eq!((cache.pool().free_count(), cache.link().unwrap().free_frames()), (free, mirror - 3));
    assert_eq!(world.director(1).mirrored(), 3);
}

#[test]
fn a_write_while_its_track_is_on_its_way_to_media_stays_dirty() {
    let (mut world, cache) = filled(lazy());
    world.media[0].set_latency(Latency { base: Duration::from_millis(5), jitter: Duration::ZERO });
    let (flusher, writer) = (cache.clone(), cache.clone());
    world.run(async move { world::write(&writer, range(1, 2), 300, (1, 2), false).await }).unwrap();
    world.operations.push(Box::pin(async move {
        flusher.flush(MIRRORED, dyad_reactor::Time::FAR_FUTURE).await.unwrap();
    }));
    world.pass(Duration::from_millis(1));
    assert!(cache.is_destaging(range(1, 1).track));
    let writer = cache.clone();
    world.run(async move { world::write(&writer, range(2, 1), 400, (1, 3), false).await }).unwrap();
    assert!(cache.is_destaging(range(1, 1).track), "the write did not wait for media");
    world.finish();
    let dirty = cache.dirty();
    assert_eq!(dirty.iter().map(|block| block.index).collect::<Vec<_>>(), [2]);
    assert_eq!(world.media[0].contents(dyad_nvme::types::Lba(2)).unwrap()[..2], 301_u16.to_le_bytes());
    let reader = cache.clone();
    assert_eq!(world.run(async move { world::read(&reader, range(1, 2)).await }), Ok(vec![300, 400]));
}

#[test]
fn overlapping_writes_are_each_whole_block_by_block_and_agree_on_an_order() {
    let (mut world, cache) = filled(lazy());
    for (sequence, (lba, value)) in (10..).zip([(0, 1000), (4, 2000), (2, 3000), (0, 4000)]) {
        let writer = cache.clone();
        world.operations.push(Box::pin(async move {
            world::write(&writer, range(lba, 8), value, (2, sequence), false).await.unwrap();
        }));
    }
    world.finish();
    let reader = cache.clone();
    let first = world.run(async move { world::read(&reader, range(0, 16)).await }).unwrap();
    for (block, value) in first.iter().enumerate().take(12) {
        let of = |lba: usize, from: u64| block.checked_sub(lba).is_some_and(|at| at < 8 && *value == from + at as u64);
        assert!(of(0, 1000) || of(4, 2000) || of(2, 3000) || of(0, 4000), "block {block} has {value}");
    }
    // What memory and media and, after a takeover, the partner have is the same.
    world.kill(0);
    world.take_over().unwrap();
    let reader = world.cache();
    assert_eq!(world.run(async move { world::read(&reader, range(0, 16)).await }), Ok(first));
}

#[test]
fn a_full_cache_gives_up_clean_blocks_and_waits_for_dirty_ones() {
    let mut world = World::whole(2, Settings { vault_cells: 0, ..Settings::default() });
    let cache = world.cache();
    // Every track of the volume, over and over: more than there are frames.
    let (user, frames) = (cache.clone(), cache.pool().free_count());
    world.run(async move {
        for round in 0..3 * frames as u64 {
            let lba = round * 16 % 128;
            world::write(&user, range(lba, 16), 1 + round, (1, 1 + round), false).await.unwrap();
            assert_eq!(world::read(&user, range(lba, 1)).await, Ok(vec![1 + round]));
        }
    });
    let counts = cache.slot_counts();
    assert_eq!(counts.clean + counts.dirty + counts.destaging + counts.free, frames + 12);
    assert!(cache.counters().slowed_writes > 0, "hosts were slowed");
}

#[test]
fn what_rests_is_destaged_when_too_much_is_dirty() {
    let mut world = World::whole(6, lazy());
    let cache = world.cache();
    let writer = cache.clone();
    // More than the mirror holds, and nobody waits for the end of the rest.
    world.run(async move {
        for track in 0..8 {
            world::write(&writer, range(track * 16, 16), 1, (1, 1 + track), false).await.unwrap();
        }
    });
    assert!(world.time.now() < dyad_reactor::Time::ZERO + Duration::from_secs(10));
    assert!(cache.counters().destaged_blocks >= 64);
}

#[test]
fn whole_stripes_go_first_and_in_one_piece() {
    let settings = Settings { stripe_tracks: 2, idle: Duration::from_millis(1), ..lazy() };
    let mut world = World::whole(3, settings);
    let cache = world.cache();
    let writer = cache.clone();
    world.run(async move {
        for (sequence, lba) in (1..).zip([0, 64, 80]) {
            let blocks = if lba == 0 { 3 } else { 16 };
            world::write(&writer, range(lba, blocks), 500, (1, sequence), false).await.unwrap();
        }
    });
    world.pass(Duration::from_millis(100));
    let counters = cache.counters();
    assert_eq!((counters.destaged_stripes, counters.destaged_blocks, cache.dirty_blocks()), (1, 35, 0));
}

#[test]
fn a_scan_is_read_ahead_and_leaves_nothing_behind() {
    let mut world = World::whole(4, Settings { stripe_tracks: 2, ..lazy() });
    let writer = world.cache();
    world.run(async move {
        for track in 0..8 {
            world::write(&writer, range(track * 16, 16), 1000 + track * 16, (1, 1 + track), false).await.unwrap();
        }
        writer.flush(MIRRORED, dyad_reactor::Time::FAR_FUTURE).await.unwrap();
    });
    world.lose_power();
    world.start(0);
    world.recover().unwrap();
    let cache = world.cache();
    for track in 0..8 {
        let reader = cache.clone();
        let values = world.run(async move { world::read(&reader, range(track * 16, 16)).await }).unwrap();
        assert_eq!(values, (0..16).map(|block| 1000 + track * 16 + block).collect::<Vec<_>>());
        world.pass(Duration::from_millis(1));
    }
    let counters = cache.counters();
    // Two tracks are not a stream yet; the third was asked for by the second.
    assert_eq!((counters.read_hits, counters.read_misses, counters.bypassed_reads), (6, 2, 1));
    assert_eq!((counters.read_blocks, counters.read_ahead_blocks), (32, 96));
    assert_eq!(cache.cached_blocks(), 16, "only the first track, before anybody knew of a stream");
}

#[test]
fn a_large_read_of_a_stream_sees_what_is_newer_than_media() {
    let (mut world, cache) = cold();
    let user = cache.clone();
    world.run(async move {
        world::write(&user, range(35, 2), 7, (1, 2), false).await.unwrap();
        for track in 0..2 {
            world::read(&user, range(track * 16, 16)).await.unwrap();
        }
        let values = world::read(&user, range(32, 16)).await.unwrap();
        assert_eq!(values[2..6], [0, 7, 8, 0]);
    });
    assert!(cache.counters().bypassed_reads >= 2);
}
