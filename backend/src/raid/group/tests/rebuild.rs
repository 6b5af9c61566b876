//! Spares and rebuilds: interrupted, doubled, resumed; and what came back from the dead.

use super::*;
use crate::format::Excluded;
use std::time::Duration;

const WITH_REDUNDANCY: [(Level, u8); 5] =
    [(Level::Raid1, 3), (Level::Raid10, 4), (Level::Raid5, 3), (Level::Raid5, 5), (Level::Raid6, 5)];

/// Twenty stripes or so.
const LARGER: BlockCount = BlockCount(470);

fn policy() -> Background {
    Background { checkpoint: 4, ..Background::default() }
}

fn rebuilding(group: &Group<FakeDevice>) -> bool {
    group.members().any(|(_, state)| state == MemberState::Rebuilding)
}

/// A group with something in it, whose member `lost` has just failed; spares and rebuild run.
fn degraded(level: Level, members: u8, seed: u64, lost: usize) -> (World, Life) {
    let mut world = World::sized(seed, level, members, LARGER);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    fill_up(&mut world, &life);
    life.ports[lost].remove();
    world.write(&life, 3, 1);
    world.write(&life, 0, world.superblock.geometry.data() as u64 * CHUNK_BLOCKS);
    world.write(&life, 7, 30);
    assert_eq!(life.group().state(), GroupState::Degraded);
    (world, life)
}

/// Something in every stripe, and nothing in some blocks.
fn fill_up(world: &mut World, life: &Life) {
    let blocks = world.model.len() as u64;
    for lba in (0..blocks).step_by(64) {
        world.write(life, lba, 61.min(blocks - lba));
    }
}

fn add(life: &Life, medium: &FakeMedium) -> Result<(), SpareError> {
    let (group, port) = (life.group(), medium.port(HOST_A));
    life.finish(async move { group.add_spare(port).await })
}

#[test]
fn a_spare_takes_the_place_of_a_lost_member_while_hosts_write() {
    for (level, members) in WITH_REDUNDANCY {
        for lost in 0..usize::from(members) {
            let (mut world, life) = degraded(level, members, 20 + lost as u64, lost);
            let spare = world.spare(100);
            add(&life, &spare).expect("a good spare");
            life.run_background(policy());
            let blocks = world.model.len() as u64;
            for n in 0.. {
                world.write(&life, (n * 37) % (blocks - 5), 1 + n % 5);
                if life.group().state() == GroupState::Optimal {
                    break;
                }
                assert!(n < 10_000, "{level:?} without {lost}: it never ends");
            }
            world.media[lost] = spare;
            life.until("guards", |group| group.counters().patrolled > 2 * group.layout().chunks());
            world.check_quiet(&life, &world.all());
            world.check(&life, 0..0);
            let counters = life.group().counters();
            assert_eq!((counters.mismatches, counters.beyond_repair, counters.inconsistent), (0, 0, 0));
            // It counts like any other: the next life needs it.
            life.ports.iter().for_each(FakeDevice::kill);
            let others = (0..usize::from(members)).filter(|m| *m != (lost + 1) % usize::from(members));
            let mut life = Life::new(&mut world, &others.collect::<Vec<_>>());
            life.open(1, &[]).expect("open");
            world.check(&life, 0..0);
        }
    }
}

#[test]
fn a_crash_anywhere_in_a_rebuild_costs_what_was_done_since_the_last_entry_in_the_record() {
    for (level, members) in WITH_REDUNDANCY {
        let mut resumed = 0;
        for crash in (0..2400).step_by(353) {
            let (mut world, life) = degraded(level, members, crash, 1);
            let spare = world.spare(100);
            add(&life, &spare).expect("a good spare");
            life.run_background(policy());
            let bytes = world.bytes(9);
            let written = life.start_write(11, &bytes);
            let _ = (0..crash).all(|_| life.step());
            let done = written.take() == Some(Ok(()));
            for (at, byte) in bytes.iter().enumerate() {
                if done {
                    world.model[11 + at].clear();
                }
                world.model[11 + at].insert(*byte);
            }
            life.ports.iter().for_each(FakeDevice::kill);
            drop(life);
            // The old member is there too, and nobody asks it.
            let old = world.media[1].clone();
            world.media[1] = spare.clone();
            world.media.push(old.clone());
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            world.media.pop();
            life.keep_record();
            world.check(&life, 0..0);
            let before = life.group().members().find(|(_, state)| *state == MemberState::Rebuilding);
            resumed += u64::from(before.is_some());
            if life.group().state() == GroupState::Degraded && before.is_none() {
                // It came to no record of the spare: it begins anew.
                add(&life, &spare).expect("a spare again");
            }
            life.run_background(policy());
            life.until("rebuild", |group| group.state() == GroupState::Optimal);
            life.until("patrol", |group| group.counters().patrolled > 2 * group.layout().chunks());
            world.check_quiet(&life, &world.all());
            world.check(&life, 0..0);
            let stale = life.group().excluded().iter().any(|(id, why)| {
                *id == old.port([9; 16]).info().id && matches!(why, Excluded::Stale { .. } | Excluded::Replaced)
            });
            assert!(stale, "{level:?} {crash}: {:?}", life.group().excluded());
        }
        assert!(resumed > 0, "{level:?}: crashes met the rebuild {resumed} times");
    }
}

/// The device that is rebuilt goes away and comes back: what it has is not believed.
#[test]
fn rebuild_interrupted_by_reconnect() {
    for (level, members) in WITH_REDUNDANCY {
        let (mut world, life) = degraded(level, members, 5, 0);
        let spare = world.spare(100);
        add(&life, &spare).expect("a good spare");
        life.run_background(policy());
        life.until("some of it", |group| group.counters().rebuilt > 5);
        // Its controller is gone for a moment.
        drop(spare.port(HOST_A));
        world.write(&life, 3, 20);
        life.until("it is out", |group| !rebuilding(group) && !group.has_failing());
        world.write(&life, 0, 40);
        let before = life.group().counters().rebuilt;
        add(&life, &spare).expect("it may begin anew");
        life.until("rebuild", |group| group.state() == GroupState::Optimal);
        assert!(life.group().counters().rebuilt - before >= life.group().layout().chunks(), "from the beginning");
        world.media[0] = spare;
        life.until("patrol", |group| group.counters().patrolled > 2 * group.layout().chunks());
        world.check_quiet(&life, &world.all());
        world.check(&life, 0..0);
    }
}

#[test]
fn an_old_member_that_returns_is_refused() {
    for (level, members) in WITH_REDUNDANCY {
        let (mut world, life) = degraded(level, members, 6, 2);
        let old = world.superblock.members[2].device;
        life.ports.iter().for_each(FakeDevice::kill);
        drop(life);
        // With all the others.
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        assert!(matches!(life.group().excluded(), [(id, Excluded::Stale { .. })] if *id == old));
        assert_eq!(life.group().state(), GroupState::Degraded);
        world.check(&life, 0..0);
        let newest = life.group().0.superblock.borrow().sequence;
        life.ports.iter().for_each(FakeDevice::kill);
        // Alone, or with too few: what is on record elsewhere says that it is not the newest.
        let mut life = Life::new(&mut world, &[2]);
        let refused = life.open(newest, &[]).expect_err("stale");
        let names_it =
            matches!(refused, OpenError::Assembly(AssemblyError::Outdated { .. } | AssemblyError::TooFew { .. }));
        assert!(names_it, "{level:?}: {refused}");
    }
}

#[test]
fn second_failure_during_rebuild() {
    for (level, members) in WITH_REDUNDANCY {
        let (mut world, life) = degraded(level, members, 7, 0);
        let spare = world.spare(100);
        add(&life, &spare).expect("a good spare");
        life.run_background(policy());
        life.until("some of it", |group| group.counters().rebuilt > 5);
        // Of RAID 10 the one that has no copy left.
        life.ports[1].remove();
        let survives = matches!(level, Level::Raid1 | Level::Raid6);
        let result = life.start_write(0, &[1; 33]);
        life.pass(Duration::from_secs(10));
        if survives {
            assert_eq!(result.take(), Some(Ok(())), "{level:?}");
            (0..33).for_each(|at| world.model[at] = BTreeSet::from([1]));
            life.until("rebuild", |group| !rebuilding(group) && !group.has_failing());
            world.check(&life, 0..0);
            let second = world.spare(101);
            add(&life, &second).expect("a good spare");
            life.until("both are rebuilt", |group| group.state() == GroupState::Optimal);
            (world.media[0], world.media[1]) = (spare, second);
            life.until("patrol", |group| group.counters().patrolled > 2 * group.layout().chunks());
            world.check_quiet(&life, &world.all());
            world.check(&life, 0..0);
        } else {
            assert_eq!(result.take(), Some(Err(GroupError::Lost)), "{level:?}");
            assert_eq!(life.group().state(), GroupState::Lost);
            life.ports.iter().for_each(FakeDevice::kill);
            drop(life);
            // The half that the spare has does not make it a member.
            world.media[0] = spare;
            let present: Vec<_> = world.all().into_iter().filter(|m| *m != 1).collect();
            let mut life = Life::new(&mut world, &present);
            let refused = life.open(1, &[]).expect_err("too few");
            assert!(matches!(refused, OpenError::Assembly(AssemblyError::TooFew { .. })), "{level:?}: {refused}");
            // The one that went away last comes back, and everything is there.
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            world.model[..33].iter_mut().for_each(|may| may.extend([1]));
            world.check(&life, 0..0);
        }
    }
}

/// With one parity and one member lost, a block that another member cannot read takes exactly the blocks of its row with it.
#[test]
fn what_a_rebuild_cannot_make_is_an_error_and_nothing_else_is() {
    let (mut world, life) = degraded(Level::Raid5, 4, 8, 0);
    let data = world.superblock.layout.data.start.0;
    let (stripe, row) = (5, 7);
    world.media[1].spoil(Lba(data + stripe * CHUNK_BLOCKS + row), BadBlock::UntilWritten);
    let spare = world.spare(100);
    add(&life, &spare).expect("a good spare");
    life.run_background(policy());
    life.until("rebuild", |group| group.state() == GroupState::Optimal);
    let found = life.read(0..world.model.len() as u64);
    let geometry = world.superblock.geometry;
    for (lba, found) in found.into_iter().enumerate() {
        let place = geometry.place(Lba(lba as u64));
        let lost = place.stripe == stripe && place.block == row && place.member < 2;
        match found {
            Err(error) => assert!(lost && error == GroupError::Media, "block {lba}: {error}"),
            Ok(byte) => assert!(!lost && world.model[lba].contains(&byte), "block {lba}"),
        }
    }
    // Written again they are there again.
    let lbas: Vec<u64> = (0..world.model.len() as u64)
        .filter(|lba| {
            let place = geometry.place(Lba(*lba));
            place.stripe == stripe && place.block == row
        })
        .collect();
    lbas.iter().for_each(|lba| world.write(&life, *lba, 1));
    world.check(&life, 0..0);
}

#[test]
fn a_rebuild_takes_its_share_and_no_more_while_hosts_have_commands() {
    let slow = |share| {
        let (mut world, life) = degraded(Level::Raid5, 4, 9, 0);
        add(&life, &world.spare(100)).expect("a good spare");
        let start = life.time.now();
        life.run_background(Background { rebuild_share: share, ..policy() });
        let mut writes = 0_u32;
        while life.group().state() != GroupState::Optimal {
            world.write(&life, u64::from(writes) % 50, 1);
            writes += 1;
        }
        (life.time.now().since(start), writes)
    };
    let (all, few) = (slow(100), slow(10));
    assert!(few.0 > all.0 * 4, "{all:?} and {few:?}");
}

#[test]
fn guards_that_nobody_could_read_are_learned_again() {
    // Of RAID 5 the guards of a member are on the next one only.
    let mut world = World::sized(10, Level::Raid5, 4, LARGER);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    fill_up(&mut world, &life);
    life.ports.iter().for_each(FakeDevice::kill);
    drop(life);
    let mut life = Life::new(&mut world, &[0, 1, 3]);
    life.open(1, &[]).expect("open");
    life.keep_record();
    assert!(life.group().0.table.borrow().first_unknown().is_some());
    let spare = world.spare(100);
    add(&life, &spare).expect("a good spare");
    life.run_background(policy());
    life.until("rebuild", |group| group.state() == GroupState::Optimal);
    assert_eq!(life.group().0.table.borrow().first_unknown(), None);
    world.media[2] = spare;
    life.ports.iter().for_each(FakeDevice::kill);
    drop(life);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    world.check(&life, 0..0);
    world.check_quiet(&life, &world.all());
}
