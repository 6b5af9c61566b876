//! What each policy promises, and `nvcache`: who has the bytes when a host is answered, and what is lost with whom.

use std::time::Duration;

use dyad_cache::record::CommandId;
use dyad_cache::{CacheConfig, CacheError, ConfigError, VolumeId};
use dyad_nvme::types::Lba;
use dyad_reactor::Time;

use super::world::{self, MIRRORED, Settings, THROUGH, UNMIRRORED, World};

fn lazy(vault_cells: u64) -> Settings {
    Settings { idle: Duration::from_secs(100), vault_cells, ..Settings::default() }
}

fn write(world: &mut World, volume: VolumeId, value: u64, sequence: u64, fua: bool) -> Result<(), CacheError> {
    let cache = world.cache();
    world.run(async move { world::write(&cache, world::range(volume, 0, 4), value, (1, sequence), fua).await })
}

fn read(world: &mut World, volume: VolumeId) -> Result<Vec<u64>, CacheError> {
    let cache = world.cache();
    world.run(async move { world::read(&cache, world::range(volume, 0, 4)).await })
}

fn flush(world: &mut World, volume: VolumeId) {
    let cache = world.cache();
    world.run(async move { cache.flush(volume, Time::FAR_FUTURE).await }).unwrap();
}

#[test]
fn unmirrored_sends_no_byte_over_the_link() {
    for cells in [0, 40] {
        let mut world = World::whole(1, lazy(cells));
        let sent =
            |world: &World| [0, 1].map(|me| (world.director(me).messages.get(), world.director(me).mirror_bytes()));
        let before = sent(&world);
        for sequence in 1..20 {
            write(&mut world, UNMIRRORED, sequence * 100, sequence, sequence % 3 == 0).unwrap();
        }
        flush(&mut world, UNMIRRORED);
        assert_eq!(sent(&world), before);
        write(&mut world, MIRRORED, 1, 50, false).unwrap();
        assert_ne!(sent(&world), before, "a mirrored write does");
    }
}

#[test]
fn an_unmirrored_volume_that_was_dirty_is_lost_with_its_director_until_it_is_reset() {
    let mut world = World::whole(2, lazy(40));
    write(&mut world, UNMIRRORED, 10, 1, false).unwrap();
    write(&mut world, MIRRORED, 20, 2, false).unwrap();
    world.kill(0);
    world.take_over().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Err(CacheError::PersistentLoss));
    assert_eq!(write(&mut world, UNMIRRORED, 30, 3, false), Err(CacheError::PersistentLoss));
    assert_eq!(read(&mut world, MIRRORED), Ok(vec![20, 21, 22, 23]));
    // It stays lost whoever comes next.
    world.finish();
    world.lose_power();
    world.start(0);
    world.recover().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Err(CacheError::PersistentLoss));
    let cache = world.cache();
    world.run(async move { cache.reset_volume(UNMIRRORED).await }).unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Ok(vec![0; 4]));
    world.lose_power();
    world.start(1);
    world.recover().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Ok(vec![0; 4]));
}

#[test]
fn an_unmirrored_volume_that_was_flushed_is_not_lost() {
    let mut world = World::whole(3, lazy(40));
    write(&mut world, UNMIRRORED, 10, 1, false).unwrap();
    flush(&mut world, UNMIRRORED);
    world.kill(0);
    world.take_over().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Ok(vec![10, 11, 12, 13]));
    // Nor is one whose blocks all reached media by themselves.
    let mut world = World::whole(3, Settings { idle: Duration::from_millis(1), ..lazy(40) });
    write(&mut world, UNMIRRORED, 10, 1, false).unwrap();
    world.pass(Duration::from_millis(100));
    world.kill(0);
    world.take_over().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Ok(vec![10, 11, 12, 13]));
}

#[test]
fn without_a_vault_every_takeover_is_a_loss_of_unmirrored_volumes() {
    let mut world = World::whole(4, lazy(0));
    world.kill(0);
    world.take_over().unwrap();
    assert_eq!(read(&mut world, UNMIRRORED), Err(CacheError::PersistentLoss));
    assert_eq!(read(&mut world, THROUGH), Ok(vec![0; 4]));
}

#[test]
fn through_is_answered_from_media_and_the_partner_knows_the_outcome() {
    let mut world = World::whole(5, lazy(40));
    write(&mut world, THROUGH, 10, 1, false).unwrap();
    assert_eq!(world.media[0].contents(Lba(160)).unwrap()[0], 10);
    assert_eq!((world.cache().dirty_blocks(), world.director(1).mirrored()), (0, 0));
    let command = CommandId { origin: [1; 16], sequence: 1, part: 0 };
    assert!(world.director(1).cache.outcomes().contains(command));
    world.kill(0);
    world.take_over().unwrap();
    // Sent again, it is not applied again.
    let repeated = |world: &World| world.cache().counters().repeated_writes;
    write(&mut world, THROUGH, 99, 1, false).unwrap();
    assert_eq!((repeated(&world), read(&mut world, THROUGH)), (1, Ok(vec![10, 11, 12, 13])));
}

#[test]
fn fua_and_flush_survive_a_loss_of_power_and_the_rest_may_not() {
    for cells in [0, 40] {
        let mut world = World::whole(6, lazy(cells));
        write(&mut world, MIRRORED, 10, 1, true).unwrap();
        write(&mut world, UNMIRRORED, 20, 2, false).unwrap();
        flush(&mut world, UNMIRRORED);
        write(&mut world, MIRRORED, 30, 3, false).unwrap();
        world.lose_power();
        world.start(0);
        world.recover().unwrap();
        assert_eq!(read(&mut world, MIRRORED), Ok(vec![10, 11, 12, 13]));
        let expected = if cells == 0 { Err(CacheError::PersistentLoss) } else { Ok(vec![20, 21, 22, 23]) };
        assert_eq!(read(&mut world, UNMIRRORED), expected);
    }
}

#[test]
fn with_nvcache_flush_costs_nothing_and_the_power_warning_saves_everything() {
    let mut world = World::whole(7, Settings { nvcache: true, ..lazy(40) });
    write(&mut world, MIRRORED, 10, 1, true).unwrap();
    write(&mut world, UNMIRRORED, 20, 2, false).unwrap();
    flush(&mut world, MIRRORED);
    assert_eq!((world.cache().counters().vaulted_blocks, world.cache().dirty_blocks()), (0, 8));
    let cache = world.cache();
    world.run(async move { cache.power_warning().await }).unwrap();
    assert_eq!(world.cache().counters().vaulted_blocks, 8);
    // Until power is gone, what is answered survives.
    write(&mut world, MIRRORED, 30, 3, false).unwrap();
    world.lose_power();
    world.start(1);
    world.recover().unwrap();
    assert_eq!(read(&mut world, MIRRORED), Ok(vec![30, 31, 32, 33]));
    assert_eq!(read(&mut world, UNMIRRORED), Ok(vec![20, 21, 22, 23]));
}

#[test]
fn a_survivor_is_settled_when_all_it_adopted_is_in_the_vault() {
    let mut world = World::whole(8, lazy(40));
    write(&mut world, MIRRORED, 10, 1, false).unwrap();
    write(&mut world, MIRRORED, 20, 2, true).unwrap();
    world.kill(0);
    world.take_over().unwrap();
    assert!(!world.cache().is_settled());
    assert_eq!(read(&mut world, MIRRORED), Ok(vec![20, 21, 22, 23]), "adopted slots serve at once");
    world.finish();
    assert!(world.cache().is_settled() && world.cache().dirty_blocks() == 4);
    // From settled the other one may take over: everything is on media or in the vault.
    world.kill(1);
    world.start(0);
    world.recover().unwrap();
    assert_eq!(read(&mut world, MIRRORED), Ok(vec![20, 21, 22, 23]));
}

#[test]
fn a_director_that_is_alone_answers_from_the_vault_and_one_without_from_media() {
    for cells in [0, 40] {
        let mut world = World::whole(9, lazy(cells));
        world.kill(1);
        world.go_on_alone();
        write(&mut world, MIRRORED, 10, 1, false).unwrap();
        let counters = world.cache().counters();
        assert_eq!((counters.media_writes, counters.journalled_writes), if cells == 0 { (1, 0) } else { (0, 1) });
        world.finish();
        world.lose_power();
        world.start(1);
        world.recover().unwrap();
        assert_eq!(read(&mut world, MIRRORED), Ok(vec![10, 11, 12, 13]));
    }
}

#[test]
fn a_cache_that_is_too_small_is_refused_with_numbers() {
    let config = CacheConfig {
        takeover_frames: 96,
        destage_above: 48,
        write_pending_limit: 96,
        stripe_tracks: 1,
        nvcache: false,
        commands: 10,
        hosts: 1,
        outcomes_per_host: 8,
    };
    assert_eq!(config.check(257), Ok(()));
    let refused = config.check(256).unwrap_err();
    assert_eq!(refused.to_string(), "the cache has 256 frames of 4 KiB and needs more than 256, which are reserved");
    assert_eq!(CacheConfig { stripe_tracks: 17, ..config }.check(500), Err(ConfigError::Stripe(17)));
    assert_eq!(CacheConfig { write_pending_limit: 48, ..config }.check(500), Err(ConfigError::Pending));
}
