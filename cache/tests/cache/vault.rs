//! The vault: power lost at every moment of a story, also at every moment of the recovery and of the next one; damaged, foreign and unfit vaults.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::device::Io;
use dyad_backend::format::Region;
use dyad_cache::home::Replay;
use dyad_cache::vault::VaultError;
use dyad_cache::{CacheError, Epoch, Vault};
use dyad_matrix::Memory;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

use super::flat::Flat;
use super::world::{self, End, GROUP, MIRRORED, Settings, TestCache, VAULT_START, World};

const BLOCKS: usize = 128;

fn settings() -> Settings {
    Settings { vault_cells: 36, idle: Duration::from_micros(300), ..Settings::default() }
}

/// One host that does one thing after the other.
#[derive(Clone)]
struct Host {
    cache: TestCache,
    flat: Rc<RefCell<Flat>>,
    value: u64,
    sequence: u64,
}

impl Host {
    async fn write(&mut self, lba: u64, blocks: usize, fua: bool) {
        (self.value, self.sequence) = (self.value + 16, self.sequence + 1);
        let (value, first) = (self.value, usize::try_from(lba).unwrap());
        (0..blocks).for_each(|block| self.flat.borrow_mut().begin(first + block, value + block as u64));
        let range = world::range(MIRRORED, lba, blocks);
        world::write(&self.cache, range, value, (1, self.sequence), fua).await.unwrap();
        (0..blocks).for_each(|block| self.flat.borrow_mut().acknowledge(first + block, value + block as u64, fua));
    }

    async fn flush(&mut self) {
        let begun = self.flat.borrow_mut().moment();
        self.cache.flush(MIRRORED, dyad_reactor::Time::FAR_FUTURE).await.unwrap();
        self.flat.borrow_mut().make_durable(0..BLOCKS, begun);
    }

    /// Until nothing is dirty.
    async fn rest(&self) {
        while self.cache.dirty_blocks() > 0 {
            let seen = self.cache.moved().generation();
            self.cache.moved().changed_since(seen).await;
        }
    }

    /// Everything that the vault is for.
    async fn story(mut self) {
        self.write(0, 3, true).await;
        self.write(1, 1, false).await;
        self.flush().await;
        // Older in the vault than on media: the next flush must see to it.
        self.write(0, 2, false).await;
        self.rest().await;
        self.write(20, 5, false).await;
        self.flush().await;
        self.write(0, 16, true).await;
        self.write(40, 2, false).await;
        self.rest().await;
        self.flush().await;
        // More records than there are cells.
        for n in 0..40 {
            self.write(n % 3 * 16 + n % 7, 1, n % 3 > 0).await;
        }
        self.flush().await;
    }
}

/// The story up to an end; then power is lost.
fn cut_story(seed: u64, end: End) -> (World, Rc<RefCell<Flat>>, bool) {
    let mut world = World::whole(seed, settings());
    let flat = Rc::new(RefCell::new(Flat::new(BLOCKS)));
    let host = Host { cache: world.cache(), flat: Rc::clone(&flat), value: 0, sequence: 0 };
    world.steps = 0;
    let done = world.run_until(host.story(), end).is_some();
    world.lose_power();
    (world, flat, done)
}

fn check(world: &mut World, flat: &RefCell<Flat>) -> Result<(), String> {
    for track in 0..8 {
        let (cache, range) = (world.cache(), world::range(MIRRORED, track * 16, 16));
        let values = world.run(async move { world::read(&cache, range).await }).unwrap();
        for (block, value) in (usize::try_from(track).unwrap() * 16..).zip(values) {
            flat.borrow_mut().read_after_loss(block, value)?;
        }
    }
    Ok(())
}

#[test]
fn power_may_be_lost_at_every_moment() {
    let steps = {
        let (world, _, done) = cut_story(1, End::Steps(u64::MAX));
        assert!(done);
        world.steps
    };
    assert!(steps > 500, "{steps} moments");
    for end in 0..steps {
        let (mut world, flat, done) = cut_story(1, End::Steps(end));
        assert!(!done, "cut at {end} of {steps}");
        world.start(0);
        assert_eq!(world.recover(), Ok(()), "cut at {end}");
        assert_eq!(check(&mut world, &flat), Ok(()), "cut at {end}");
    }
}

#[test]
fn recovery_may_be_cut_at_every_moment_and_so_may_the_next_one() {
    for story in [70, 160, 330, 480] {
        for cut in 0.. {
            let (mut world, flat, _) = cut_story(1, End::Steps(story));
            world.start(0);
            let done = world.recover_until(End::Steps(cut), Replay::All);
            world.lose_power();
            world.start(1);
            world.recover_until(End::Steps(cut * 7 % 50), Replay::All);
            world.lose_power();
            world.start(0);
            assert_eq!(world.recover(), Ok(()), "story cut at {story}, recovery at {cut}");
            assert_eq!(check(&mut world, &flat), Ok(()), "story cut at {story}, recovery at {cut}");
            if done {
                break;
            }
        }
    }
}

/// Puts bytes over a block of one medium, behind everybody's back.
fn scribble(world: &mut World, medium: usize, block: u64, bytes: &[u8; BLOCK_BYTES]) {
    let (port, memory) = (world.media[medium].port([9; 16]), Memory::anonymous(BLOCK_BYTES));
    port.map(&memory).unwrap();
    memory.write(0, bytes).unwrap();
    let segments = [memory.segment(0, 4096).unwrap()];
    let writing = port.submit(Io::Write { lba: Lba(VAULT_START.0 + block), segments: &segments, fua: true }).unwrap();
    world.run(writing).unwrap();
}

/// A world whose vault has 25 live records, one of each of so many tracks and blocks; the director is gone.
fn saved() -> (World, Rc<RefCell<Flat>>) {
    let settings = Settings { idle: Duration::from_secs(10), ..settings() };
    let mut world = World::whole(3, settings);
    let flat = Rc::new(RefCell::new(Flat::new(BLOCKS)));
    let mut host = Host { cache: world.cache(), flat: Rc::clone(&flat), value: 0, sequence: 0 };
    world.run(async move {
        for n in 0..25 {
            // Not so much that it is destaged.
            host.write(n % 8 * 16 + n / 8, 1, true).await;
        }
    });
    world.lose_power();
    (world, flat)
}

#[test]
fn one_bad_copy_does_not_matter_and_two_are_told_with_nothing_replayed() {
    let (bytes, first) = ([0x5a; BLOCK_BYTES], 3 * 17);
    for block in [first, first + 1] {
        let (mut world, flat) = saved();
        scribble(&mut world, 0, block, &bytes);
        world.start(0);
        assert_eq!(world.recover(), Ok(()));
        assert_eq!(check(&mut world, &flat), Ok(()));

        let (mut world, _) = saved();
        scribble(&mut world, 0, block, &bytes);
        scribble(&mut world, 1, block, &bytes);
        world.start(0);
        let before = world.media[0].contents(Lba(0));
        let Err(CacheError::Vault(VaultError::Damaged(3))) = world.recover() else { panic!("not told") };
        assert_eq!(world.media[0].contents(Lba(0)), before, "something was replayed");
        // Nothing was retired either: with the block mended everything would be there, and until then the answer stays the same.
        world.kill(0);
        world.start(1);
        assert_eq!(world.recover(), Err(CacheError::Vault(VaultError::Damaged(3))));
    }
}

#[test]
fn a_torn_last_record_was_never_durable() {
    let (mut world, flat) = saved();
    world.start(0);
    let last = open(&mut world, 36, 16, GROUP).unwrap().pop().unwrap();
    scribble(&mut world, 0, last % 36 * 17 + 1, &[1; BLOCK_BYTES]);
    scribble(&mut world, 1, last % 36 * 17 + 1, &[1; BLOCK_BYTES]);
    assert_eq!(world.recover(), Ok(()));
    // Its host was told otherwise, so the model knows; everybody else's blocks are there.
    let lost = check(&mut world, &flat);
    assert!(lost.is_err_and(|lost| lost.starts_with("block 3 ")), "only the last record is gone");
}

fn open(
    world: &mut World,
    cells: u64,
    heads: usize,
    group: dyad_backend::format::GroupId,
) -> Result<Vec<u64>, VaultError> {
    let region = Region { start: VAULT_START, blocks: BlockCount(cells * 17) };
    let ports: Vec<_> = world.media.iter().map(|medium| (medium.port([8; 16]), region)).collect();
    let (handle, memory) = (world.director(0).handle.clone(), Memory::anonymous(heads * BLOCK_BYTES));
    world
        .run(async move { Vault::open(&handle, group, Epoch(99), ports, memory).await })
        .map(|(_, found)| found.records.iter().map(|record| record.sequence).collect())
}

#[test]
fn bad_vaults_are_told_apart() {
    let (mut world, _) = saved();
    world.start(0);
    assert_eq!(open(&mut world, 36, 16, GROUP).map(|records| records.len()), Ok(25));
    assert_eq!(open(&mut world, 35, 16, GROUP), Err(VaultError::TooSmall));
    assert_eq!(open(&mut world, 36, 15, GROUP), Err(VaultError::Unfit));
    // What another group left there is nothing.
    assert_eq!(open(&mut world, 36, 16, dyad_backend::format::GroupId([1; 16])), Ok(vec![]));
    let mut newer = world.media[0].contents(Lba(VAULT_START.0 + 5 * 17)).unwrap();
    newer[8] = 2;
    newer[12..16].fill(0);
    let crc = crc32c::crc32c(&newer);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    scribble(&mut world, 0, 5 * 17, &newer);
    assert_eq!(open(&mut world, 36, 16, GROUP), Err(VaultError::Version(2)));
    let handle = world.director(0).handle.clone();
    let nobody = Vec::<(dyad_backend::fake::FakeDevice, Region)>::new();
    let opened =
        world.run(async move { Vault::open(&handle, GROUP, Epoch(99), nobody, Memory::anonymous(65536)).await });
    assert!(matches!(opened, Err(VaultError::Keepers)));
}

#[test]
fn a_small_fua_write_is_one_append_on_every_keeper() {
    let settings = Settings { idle: Duration::from_secs(10), ..settings() };
    let mut world = World::whole(5, settings);
    let flat = Rc::new(RefCell::new(Flat::new(BLOCKS)));
    let mut host = Host { cache: world.cache(), flat, value: 0, sequence: 0 };
    let mut again = host.clone();
    world.run(async move { host.write(7, 1, true).await });
    let counters = world.cache().counters();
    assert_eq!((counters.vaulted_blocks, counters.destaged_blocks), (1, 0));
    let head = |medium: usize, cell| world.media[medium].contents(Lba(VAULT_START.0 + cell * 17)).unwrap();
    let cell = (0..36).rfind(|cell| head(0, *cell)[..8] == *b"DYADVLT1").unwrap();
    assert_eq!(head(0, cell)[92..94], [1 << 7, 0], "it has block 7");
    assert_eq!(head(0, cell), head(1, cell));
    for medium in &world.media {
        assert_eq!(medium.contents(Lba(VAULT_START.0 + cell * 17 + 1)).unwrap()[0], 16);
    }
    // A flush after that has nothing to do.
    world.run(async move { again.flush().await });
    assert_eq!(world.cache().counters().vaulted_blocks, 1);
}

#[test]
fn a_record_that_a_keeper_missed_counts_when_that_keeper_is_on_record_as_failed() {
    let settings = Settings { idle: Duration::from_secs(10), ..settings() };
    let mut world = World::whole(6, settings);
    let flat = Rc::new(RefCell::new(Flat::new(BLOCKS)));
    let mut host = Host { cache: world.cache(), flat, value: 0, sequence: 0 };
    let vault = world.cache().vault().unwrap();
    world.media[1].fail();
    world.operations.push(Box::pin(async move { host.write(7, 1, true).await }));
    world.pass(Duration::from_millis(100));
    let failing: Vec<_> = vault.failing().collect();
    assert_eq!((failing.len(), world.operations.len()), (1, 1), "the write waits");
    vault.recorded(failing[0]);
    world.finish();
    assert_eq!(vault.failing().count(), 0);
    // The keeper that is left has it.
    let head = |cell: u64| world.media[0].contents(Lba(VAULT_START.0 + cell * 17)).unwrap();
    assert!((0..36).any(|cell| head(cell)[92..94] == [1 << 7, 0]));
}

#[test]
fn whoever_retires_beside_others_does_not_take_the_last_cell_for_nothing() {
    for seed in 0..20 {
        let settings = Settings { idle: Duration::from_micros(20), ..settings() };
        let mut world = World::whole(seed, settings);
        world.kill(1);
        world.go_on_alone();
        world.finish();
        // Alone, with a vault that is full all the time: many write to media, and retire what is older in the vault.
        for host in 1..=8 {
            let cache = world.cache();
            world.operations.push(Box::pin(async move {
                for n in 0..60 {
                    let range = world::range(MIRRORED, (n * 7 + u64::from(host) * 3) % 128, 1);
                    world::write(&cache, range, n, (host, n + 1), n % 3 == 0).await.unwrap();
                }
            }));
        }
        world.finish();
        let cache = world.cache();
        world.run(async move { cache.flush(MIRRORED, dyad_reactor::Time::FAR_FUTURE).await }).unwrap();
    }
}
