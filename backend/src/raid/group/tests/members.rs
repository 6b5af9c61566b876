//! Members that lie, err, are slow, or are not what they seem; and the patrol that meets them.

use super::*;
use crate::fake::Latency;
use std::time::Duration;

/// Data, parity and the guard table itself.
#[test]
fn the_patrol_finds_and_repairs_what_nobody_reads() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        for member in 0..usize::from(members) {
            for kind in [Some(251), Some(0), None] {
                let mut world = World::new(30, level, members);
                let mut life = Life::whole(&mut world);
                life.open(1, &[]).expect("open");
                let blocks = world.model.len() as u64;
                world.write(&life, 0, blocks);
                let lba = Lba(world.superblock.layout.data.start.0 + 21);
                match kind {
                    Some(byte) => overwrite(&life, member, lba, byte),
                    None => world.media[member].spoil(lba, BadBlock::UntilWritten),
                }
                let group = life.group();
                life.finish(async move { group.patrol().await }).expect("patrol");
                world.check_quiet(&life, &world.all());
                let counters = life.group().counters();
                assert_eq!((counters.repaired, counters.inconsistent), (1, 0), "{level:?} {member} {kind:?}");
                assert_eq!(counters.patrolled, life.group().layout().chunks());
            }
        }
    }
}

/// A fault of ours: guard and block agree, and are not what the data says.
#[test]
fn the_patrol_makes_parity_and_mirrors_what_the_data_says() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        let mut world = World::new(31, level, members);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.write(&life, 0, 16);
        let geometry = world.superblock.geometry;
        // Parity, or the last leg.
        let wrong = (0..geometry.members()).rfind(|m| match geometry.role(0, *m) {
            Part::Data(_) => level == Level::Raid1 || level == Level::Raid10,
            Part::P | Part::Q => true,
        });
        let member = wrong.expect("a redundant member");
        overwrite(&life, member, world.superblock.layout.data.start, 99);
        life.group().0.table.borrow_mut().set(member, 0, 0, Guard::of(&[99; BLOCK_BYTES]));
        let group = life.group();
        life.finish(async move { group.patrol().await }).expect("patrol");
        assert_eq!(life.group().counters().inconsistent, 1, "{level:?}");
        world.check_quiet(&life, &world.all());
        world.check(&life, 0..0);
    }
}

#[test]
fn a_device_that_is_slow_for_seconds_is_failed_and_one_that_was_slow_once_is_not() {
    let slow = Latency { base: Duration::from_millis(80), jitter: Duration::ZERO };
    let fair = Latency { base: Duration::from_millis(3), jitter: Duration::from_millis(1) };
    let load = |life: &Life, world: &mut World, time: Duration| {
        world.write(life, 0, 32);
        let (group, segments, clock) = (life.group(), [segment(&life.memory, 0, 32)], life.time.clone());
        let end = clock.now() + time;
        life.finish(async move {
            while clock.now() < end {
                group.write(Lba(0), &segments).await.expect("write");
            }
        });
    };
    let mut world = World::new(32, Level::Raid5, 4);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    world.media.iter().for_each(|medium| medium.set_latency(fair));
    load(&life, &mut world, Duration::from_secs(3));
    world.media[2].set_latency(slow);
    load(&life, &mut world, Duration::from_millis(900));
    world.media[2].set_latency(fair);
    load(&life, &mut world, Duration::from_secs(4));
    assert_eq!(life.group().state(), GroupState::Optimal, "once is not enough");
    world.media[2].set_latency(slow);
    load(&life, &mut world, Duration::from_secs(6));
    assert_eq!(life.group().state(), GroupState::Degraded);
    assert_eq!(life.group().counters().members_slow, 1);
    // Without redundancy nobody is failed for being slow.
    world.media[0].set_latency(slow);
    load(&life, &mut world, Duration::from_secs(6));
    assert_eq!((life.group().state(), life.group().counters().members_failed), (GroupState::Degraded, 1));
    world.check(&life, 0..0);
}

#[test]
fn a_device_that_errs_too_often_is_failed_before_it_is_needed() {
    let mut world = World::new(33, Level::Raid6, 5);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    world.write(&life, 0, world.superblock.geometry.data() as u64 * 32);
    let data = world.superblock.layout.data;
    (0..data.blocks.0).for_each(|at| world.media[3].spoil(Lba(data.start.0 + at), BadBlock::UntilWritten));
    let group = life.group();
    life.finish(async move { group.patrol().await }).expect("patrol");
    let counters = life.group().counters();
    assert_eq!((life.group().state(), counters.members_erring), (GroupState::Degraded, 1), "{counters:?}");
    world.check(&life, 0..0);
}

/// A home puts a failure into the superblocks, and is lost before it is on record where the next home looks first. Should the members that know of it be
/// lost too, the one that failed would be believed: nothing that it missed is acknowledged before the next home has put it there.
#[test]
fn what_only_the_superblocks_know_is_put_on_record_by_the_next_home() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        let mut world = World::new(35, level, members);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        let (group, failed) = (life.group(), world.superblock.members[1].device);
        let record = life.finish(async move { group.retire(failed).map(|()| group)?.put_on_record().await });
        assert_eq!(record.expect("on record").out.as_slice(), [failed]);
        let mut next = Life::whole(&mut world);
        next.open(2, &[]).expect("open");
        let state = |life: &Life| life.group().members().nth(1).expect("a member").1;
        assert_eq!(state(&next), MemberState::Failing, "{level:?}");
        let write = next.start_write(0, &[1]);
        next.pass(Duration::from_secs(10));
        assert_eq!(write.take(), Some(Err(GroupError::Unrecorded)), "{level:?}");
        next.keep_record();
        let write = next.start_write(0, &[2]);
        next.pass(Duration::from_secs(1));
        assert_eq!((write.take(), state(&next)), (Some(Ok(())), MemberState::Out), "{level:?}");
    }
}

/// Each home puts its epoch into the superblocks, one member after the other. One that died before all had it left some behind; the next one, that died
/// too, must not have left them further behind.
#[test]
fn however_often_opening_is_cut_short_the_group_opens() {
    for cut in (1..600).step_by(13) {
        let mut world = World::new(36, Level::Raid10, 6);
        let opened = |world: &mut World, epoch: u64, steps: usize| {
            let life = Life::whole(world);
            let (handle, ports) = (life.executor.handle(), life.ports.clone());
            let expected = Expected { group: ID, sequence: 1 };
            let group = life.start(async move { Group::open(handle, ports, expected, epoch, &[]).await });
            let _ = (0..steps).all(|_| life.step());
            life.ports.iter().for_each(FakeDevice::kill);
            group.take().map(|opened| opened.map(drop))
        };
        for epoch in 2..6 {
            assert!(!matches!(opened(&mut world, epoch, cut), Some(Err(_))), "cut at {cut}");
        }
        assert_eq!(opened(&mut world, 6, 5000), Some(Ok(())), "cut at {cut}");
    }
}

/// A superblock that was cut short is not believed; its other copy is, or the member is left out.
#[test]
fn torn_superblock() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        for copies in [vec![0], vec![1], vec![0, 1]] {
            let mut world = World::new(34, level, members);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            world.write(&life, 0, 20);
            for copy in &copies {
                let lba = world.superblock.places()[*copy];
                let mut torn = world.media[1].contents(lba).expect("readable");
                torn[2048..].fill(0);
                torn[100] ^= 1;
                life.memory.write(BlockCount(290).bytes(), &torn).expect("inside");
                let segments = [segment(&life.memory, 290, 1)];
                let write = crate::device::Io::Write { lba, segments: &segments, fua: true };
                let completion = life.ports[1].submit(write).expect("submit");
                life.finish(completion).expect("a write");
            }
            drop(life);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            let expected = if copies.len() == 2 { GroupState::Degraded } else { GroupState::Optimal };
            assert_eq!((life.group().state(), life.group().excluded().len()), (expected, copies.len() / 2));
            world.check(&life, 0..0);
        }
    }
}

#[test]
fn devices_that_cannot_be_spares_are_refused_and_nothing_is_written() {
    let mut world = World::new(35, Level::Raid1, 2);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    let add = |medium: &FakeMedium| {
        let (group, port) = (life.group(), medium.port([7; 16]));
        life.finish(async move { group.add_spare(port).await })
    };
    let small_one = FakeMedium::new(DeviceInfo { blocks: BlockCount(100), ..small(50) }, world.time.clone(), 1);
    assert_eq!(add(&small_one), Err(SpareError::TooSmall(BlockCount(100))));
    let short = FakeMedium::new(DeviceInfo { transfer_blocks_max: BlockCount(8), ..small(51) }, world.time.clone(), 1);
    assert_eq!(add(&short), Err(SpareError::ShortTransfers));
    assert_eq!(add(&world.media[0]), Err(SpareError::Known));
    // A member of another group is not taken from it.
    let other: Vec<_> = (60..62).map(|n| FakeMedium::new(small(n), world.time.clone(), 1)).collect();
    let ports: Vec<_> = other.iter().map(|m| m.port(HOST_A)).collect();
    let id = GroupId([0x22; 16]);
    life.finish(async move { create(&ports, Level::Raid1, id, 1, BlockCount(0)).await }).expect("a group");
    let before = other[0].contents(Lba(0));
    assert_eq!(add(&other[0]), Err(SpareError::Foreign(id)));
    assert_eq!(other[0].contents(Lba(0)), before);
    let spare = world.spare(70);
    assert_eq!((add(&spare), add(&spare)), (Ok(()), Err(SpareError::Known)));
    assert_eq!(life.group().spares(), 1);
}

#[test]
fn a_member_is_retired_and_replaced_by_command() {
    let mut world = World::new(36, Level::Raid5, 3);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    life.run_background(Background::default());
    world.write(&life, 0, 60);
    let ids: Vec<DeviceId> = life.group().members().map(|(id, _)| id).collect();
    assert_eq!(life.group().retire(DeviceId([9; 16])), Err(GroupError::Invalid));
    assert_eq!(life.group().retire(ids[1]), Ok(()));
    assert_eq!(life.group().retire(ids[2]), Err(GroupError::Lost), "its data is needed");
    let spare = world.spare(71);
    let (group, port) = (life.group(), spare.port(HOST_A));
    life.finish(async move { group.add_spare(port).await }).expect("a good spare");
    life.until("rebuild", |group| group.state() == GroupState::Optimal);
    world.media[1] = spare;
    world.check(&life, 0..0);
}

/// After a fence nothing is done, and it is called what it is.
#[test]
fn a_group_that_is_fenced_says_so_ever_after() {
    let mut world = World::new(37, Level::Raid5, 3);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    world.write(&life, 0, 60);
    let other = world.media[1].port(crate::testing::HOST_B);
    let key = crate::device::ReservationKey(5);
    life.finish(async move {
        other.reserve(crate::device::ReservationOp::Register { key }).await.expect("register");
        let rtype = crate::device::ReservationType::WriteExclusive;
        other.reserve(crate::device::ReservationOp::Acquire { key, rtype }).await.expect("acquire");
    });
    let writes: Vec<_> = (0..12_u8).map(|n| life.start_write(u64::from(n), &[n])).collect();
    life.pass(Duration::from_secs(30));
    assert!(writes.iter().all(|write| write.take() == Some(Err(GroupError::Fenced))), "every one ends");
    assert_eq!(life.read(0..1), [Err(GroupError::Fenced)]);
    assert_eq!(life.group().state(), GroupState::Lost);
}
