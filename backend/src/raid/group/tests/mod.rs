//! The oracle: levels, failed members, shapes of writes and points of crashes against a flat memory; exact counts; and what others got wrong.

mod members;
mod random;
mod rebuild;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;

use dyad_matrix::Memory;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{Clock, Executor, Limits, SeededRng, Shuffled, VirtualTime};

use super::*;
use crate::device::DeviceInfo;
use crate::fake::{BadBlock, FakeDevice, FakeMedium};
use crate::format::{AssemblyError, Expected, Superblock};
use crate::parity::Member as Part;
use crate::raid::geometry::Level;
use crate::testing::{HOST_A, fill, info, memory, segment};

const ID: GroupId = GroupId([0x11; 16]);
/// Small: three stripes or so.
const DEVICE: BlockCount = BlockCount(200);

fn small(name: u8) -> DeviceInfo {
    DeviceInfo { blocks: DEVICE, ..info(name) }
}

/// Media that outlive the directors that use them.
struct World {
    time: VirtualTime,
    media: Vec<FakeMedium>,
    superblock: Superblock,
    rng: SeededRng,
    /// What each block of the group may hold.
    model: Vec<BTreeSet<u8>>,
    next: u8,
    /// For messages.
    lost: Vec<usize>,
    life: &'static str,
}

/// One life of a director.
struct Life {
    time: VirtualTime,
    executor: Executor,
    order: RefCell<Shuffled<SeededRng>>,
    ports: Vec<FakeDevice>,
    memory: Memory,
    group: Option<Group<FakeDevice>>,
}

impl Life {
    fn new(world: &mut World, present: &[usize]) -> Self {
        let executor = Executor::new(Limits { tasks: 1024, timers: 64 }, Rc::new(world.time.clone()));
        let ports = present.iter().map(|m| world.media[*m].port(HOST_A)).collect();
        let order = RefCell::new(Shuffled(world.rng.fork()));
        Self { time: world.time.clone(), executor, order, ports, memory: memory(300), group: None }
    }

    fn whole(world: &mut World) -> Self {
        let all = world.all();
        Self::new(world, &all)
    }

    /// Goes to the next event; false if nothing will happen.
    fn step(&self) -> bool {
        self.executor.run_until_idle(&mut *self.order.borrow_mut());
        let next = [self.time.next_event(), self.executor.next_deadline()].into_iter().flatten().min();
        let Some(next) = next else { return false };
        self.time.advance_to(next.max(self.time.now()));
        self.time.run_due();
        self.executor.fire_timers();
        true
    }

    fn start<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
        let result = Rc::new(Cell::new(None));
        let to = Rc::clone(&result);
        self.executor.handle().spawn("test", async move { to.set(Some(future.await)) });
        result
    }

    fn finish<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = self.start(future);
        loop {
            let more = self.step();
            if let Some(value) = result.take() {
                return value;
            }
            assert!(more, "the command never ends");
        }
    }

    fn open(&mut self, expected: u64, out: &[DeviceId]) -> Result<(), OpenError> {
        let (handle, ports, out) = (self.executor.handle(), self.ports.clone(), out.to_vec());
        let expected = Expected { group: ID, sequence: expected };
        let group = self.finish(async move { Group::open(handle, ports, expected, 2, &out).await })?;
        group.map(&self.memory).expect("map");
        self.group = Some(group);
        Ok(())
    }

    fn group(&self) -> Group<FakeDevice> {
        self.group.clone().expect("it was opened")
    }

    /// Starts a write of blocks that each have a byte of their own kind.
    fn start_write(&self, lba: u64, bytes: &[u8]) -> Rc<Cell<Option<Result<(), GroupError>>>> {
        for (at, byte) in (0..).zip(bytes) {
            fill(&self.memory, at, 1, *byte);
        }
        let (group, segments) = (self.group(), [segment(&self.memory, 0, bytes.len() as u64)]);
        self.start(async move { group.write(Lba(lba), &segments).await })
    }

    /// What reads of these blocks find, one after the other.
    fn read(&self, blocks: std::ops::Range<u64>) -> Vec<Result<u8, GroupError>> {
        let (group, segments, memory) = (self.group(), [segment(&self.memory, 299, 1)], self.memory.clone());
        self.finish(async move {
            let mut found = Vec::new();
            for lba in blocks {
                fill(&memory, 299, 1, 0xee);
                let read = group.read(Lba(lba), &segments).await;
                found.push(read.map(|()| crate::testing::byte_of(&memory, 299)));
            }
            found
        })
    }

    /// Lets this much time go by.
    fn pass(&self, time: std::time::Duration) {
        let handle = self.executor.handle();
        let over = self.start(async move { handle.sleep(time).await });
        while over.take().is_none() && self.step() {}
    }

    /// Steps until `done`; a panic if that takes more than a virtual hour.
    fn until(&self, what: &str, done: impl Fn(&Group<FakeDevice>) -> bool) {
        let (group, end) = (self.group(), self.time.now() + std::time::Duration::from_secs(3600));
        while !done(&group) {
            assert!(self.step() && self.time.now() < end, "{what}: never");
        }
    }

    /// The service that does what a group does for itself.
    fn run_background(&self, policy: Background) {
        self.executor.handle().spawn("background", self.group().run_background(policy));
    }

    /// The service that puts failures on record, at once.
    fn keep_record(&self) {
        self.executor.handle().spawn("record", self.group().run_record(async |_| true));
    }
}

impl World {
    fn new(seed: u64, level: Level, members: u8) -> Self {
        Self::sized(seed, level, members, DEVICE)
    }

    fn sized(seed: u64, level: Level, members: u8, blocks: BlockCount) -> Self {
        let time = VirtualTime::new(seed);
        let medium =
            |n| FakeMedium::new(DeviceInfo { blocks, ..small(n) }, time.clone(), seed.wrapping_mul(31) + u64::from(n));
        let media: Vec<_> = (1..=members).map(medium).collect();
        let ports: Vec<_> = media.iter().map(|m| m.port(HOST_A)).collect();
        let superblock =
            crate::testing::run(&time, async { create(&ports, level, ID, 1, BlockCount(0)).await.expect("a group") });
        let blocks = superblock.geometry.blocks(superblock.layout.chunks()).0;
        let model = vec![BTreeSet::from([0]); usize::try_from(blocks).expect("small")];
        Self { time, media, superblock, rng: SeededRng::new(seed), model, next: 1, lost: vec![], life: "first" }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.media.len()).collect()
    }

    /// A device that no group knows, as large as the members.
    fn spare(&self, name: u8) -> FakeMedium {
        let blocks = self.media[0].port([0; 16]).info().blocks;
        FakeMedium::new(DeviceInfo { blocks, ..small(name) }, self.time.clone(), u64::from(name))
    }

    /// Bytes that nothing has now.
    fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.next = if self.next == 250 { 1 } else { self.next + 1 };
                self.next
            })
            .collect()
    }

    fn write(&mut self, life: &Life, lba: u64, count: u64) {
        let bytes = self.bytes(count);
        let result = life.start_write(lba, &bytes);
        loop {
            let more = life.step();
            if let Some(result) = result.take() {
                assert_eq!(result, Ok(()), "{count} blocks at {lba}");
                break;
            }
            assert!(more, "the write never ends");
        }
        for (at, byte) in bytes.iter().enumerate() {
            self.model[usize::try_from(lba).expect("small") + at] = BTreeSet::from([*byte]);
        }
    }

    /// Reads everything: what may have been written is settled by what is read. Blocks in `torn` may be gone.
    fn check(&mut self, life: &Life, torn: std::ops::Range<u64>) {
        for (lba, found) in life.read(0..self.model.len() as u64).into_iter().enumerate() {
            let at = lba as u64;
            match found {
                Ok(byte) => {
                    assert!(
                        self.model[lba].contains(&byte),
                        "block {at} is {byte}, not one of {:?}: {:?} without {:?}, {} life",
                        self.model[lba],
                        self.superblock.geometry,
                        self.lost,
                        self.life
                    );
                    self.model[lba] = BTreeSet::from([byte]);
                }
                Err(GroupError::Media) if torn.contains(&at) => {}
                Err(error) => panic!(
                    "block {at}: {error}, should be {:?}: {:?} without {:?}, {} life",
                    self.model[lba], self.superblock.geometry, self.lost, self.life
                ),
            }
        }
    }

    /// Parity and mirrors agree with the data on all these members, and guards with both.
    fn check_quiet(&self, life: &Life, present: &[usize]) {
        let geometry = self.superblock.geometry;
        let data = self.superblock.layout.data.start.0;
        let group = life.group();
        for stripe in 0..self.superblock.layout.chunks() {
            for row in 0..CHUNK_BLOCKS {
                let block =
                    |m: usize| self.media[m].contents(Lba(data + stripe * CHUNK_BLOCKS + row)).expect("readable");
                let (mut p, mut q) = ([0_u8; BLOCK_BYTES], [0_u8; BLOCK_BYTES]);
                for d in 0..geometry.data() {
                    let holders: Vec<_> = geometry.holders(stripe, Part::Data(d)).collect();
                    assert!(
                        holders.iter().all(|m| block(*m) == block(holders[0])),
                        "mirrors differ in stripe {stripe}"
                    );
                    let bytes = block(holders[0]);
                    let factor = crate::parity::Gf::power_of_g(d);
                    // All bytes of a block are the same.
                    p = [p[0] ^ bytes[0]; BLOCK_BYTES];
                    q = [q[0] ^ factor.times(crate::parity::Gf(bytes[0])).0; BLOCK_BYTES];
                }
                for m in present {
                    let expected = match geometry.role(stripe, *m) {
                        Part::Data(_) => block(*m),
                        Part::P => p,
                        Part::Q => q,
                    };
                    assert!(
                        block(*m) == expected,
                        "stripe {stripe} row {row}: member {m} is not the parity of the data"
                    );
                    let guard = group.0.table.borrow().get(*m, stripe, row).expect("known");
                    assert_eq!(guard, Guard::of(&block(*m)), "stripe {stripe} row {row} member {m}: guard");
                }
            }
        }
    }
}

const LEVELS: [(Level, u8); 6] =
    [(Level::Raid0, 2), (Level::Raid1, 3), (Level::Raid10, 4), (Level::Raid5, 3), (Level::Raid5, 4), (Level::Raid6, 5)];

/// Sets of members that the level survives without.
fn losses(superblock: &Superblock) -> Vec<Vec<usize>> {
    let n = superblock.geometry.members();
    let set = |bits: u32| (0..n).filter(move |m| bits >> m & 1 == 1).collect::<Vec<_>>();
    (0..1_u32 << n).map(set).filter(|lost| superblock.geometry.survives(|m| lost.contains(&m))).collect()
}

/// One block, a part of a chunk, over the border of two chunks, a chunk, all but one block of a stripe, a stripe, more than a stripe.
fn shapes(superblock: &Superblock) -> Vec<(u64, u64)> {
    let stripe = superblock.geometry.data() as u64 * CHUNK_BLOCKS;
    let mut shapes = vec![(3, 1), (2, 9), (16, 16), (1, stripe - 1), (0, stripe), (stripe - 2, 4)];
    if stripe > CHUNK_BLOCKS {
        shapes.push((14, 4));
    }
    shapes
}

#[test]
fn what_was_written_is_read_with_every_set_of_members() {
    for (level, members) in LEVELS {
        let mut world = World::new(1, level, members);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        for (lba, count) in shapes(&world.superblock) {
            world.write(&life, lba, count);
        }
        world.check(&life, 0..0);
        world.check_quiet(&life, &world.all());
        let counters = life.group().counters();
        assert_eq!((counters.mismatches, counters.repaired, counters.media_errors), (0, 0, 0));
        for lost in losses(&world.superblock) {
            // Live they fail one after the other, and writes go on.
            let mut world = World::new(2, level, members);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            life.keep_record();
            world.lost.clone_from(&lost);
            world.write(&life, 0, world.superblock.geometry.data() as u64 * CHUNK_BLOCKS);
            lost.iter().for_each(|m| life.ports[*m].remove());
            for (lba, count) in shapes(&world.superblock) {
                world.write(&life, lba, count);
            }
            world.check(&life, 0..0);
            // And the next life finds everything without them.
            let present: Vec<usize> = world.all().into_iter().filter(|m| !lost.contains(m)).collect();
            let out: Vec<DeviceId> = lost.iter().map(|m| world.superblock.members[*m].device).collect();
            drop(life);
            world.life = "second";
            let mut life = Life::new(&mut world, &present);
            life.open(1, &out).expect("open");
            world.check(&life, 0..0);
        }
    }
}

/// When members fail.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Lost {
    /// Before the write: it is made without them, and each of its blocks is old or new.
    Before,
    /// With the crash: what the write gave them may be gone.
    With,
}

/// A crash anywhere in a write, and members that fail.
fn crash_oracle(
    level: Level,
    members: u8,
    (when, lost): (Lost, &[usize]),
    shape: (u64, u64),
    crash: usize,
    power: bool,
) -> bool {
    let seed = crash as u64 * 31 + shape.0 * 7 + shape.1;
    let mut world = World::new(seed, level, members);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    let blocks = world.model.len() as u64;
    world.write(&life, 0, blocks.min(TRANSFER_BLOCKS_MAX));
    let present: Vec<usize> = world.all().into_iter().filter(|m| !lost.contains(m)).collect();
    let out: Vec<DeviceId> = lost.iter().map(|m| world.superblock.members[*m].device).collect();
    if when == Lost::Before {
        life.ports.iter().for_each(FakeDevice::kill);
        life = Life::new(&mut world, &present);
        life.open(1, &out).expect("open");
    }
    let (lba, count) = shape;
    let bytes = world.bytes(count);
    let result = life.start_write(lba, &bytes);
    let mut steps = 0;
    while steps < crash && life.step() {
        steps += 1;
    }
    let over = steps < crash;
    let written = result.take() == Some(Ok(()));
    for (at, byte) in bytes.iter().enumerate() {
        let may = &mut world.model[usize::try_from(lba).expect("small") + at];
        if written {
            may.clear();
        }
        may.insert(*byte);
    }
    life.ports.iter().for_each(FakeDevice::kill);
    if power {
        world.media.iter().for_each(FakeMedium::power_loss);
    }
    drop(life);
    (world.lost, world.life) = (lost.to_vec(), "second");
    let mut life = Life::new(&mut world, &present);
    life.open(1, &out)
        .unwrap_or_else(|error| panic!("{level:?} of {members} without {lost:?}, crash at {crash}: {error}"));
    let torn = if written || when == Lost::Before { 0..0 } else { lba..lba + count };
    world.check(&life, torn);
    if lost.is_empty() {
        world.check_quiet(&life, &world.all());
    }
    // It goes on, and whatever the crash left behind does not matter when it is written again.
    world.write(&life, lba, count);
    world.check(&life, 0..0);
    over
}

/// Every point and every set with `DYAD_LONG` in the environment, else some of them, different ones for every shape and set.
#[test]
fn a_crash_anywhere_leaves_old_or_new_and_nothing_else_changed() {
    let long = std::env::var_os("DYAD_LONG").is_some();
    let mut runs = 0;
    for (level, members) in LEVELS {
        let world = World::new(1, level, members);
        let (all, shapes) = (losses(&world.superblock), shapes(&world.superblock));
        for (s, shape) in shapes.iter().enumerate() {
            let whens = [Lost::Before, Lost::With].into_iter();
            for (l, (when, lost)) in whens.flat_map(|when| all.iter().map(move |lost| (when, lost))).enumerate() {
                // Whom nobody misses is lost at any time.
                if when == Lost::Before && lost.is_empty() {
                    continue;
                }
                let step = if long { 1 } else { 199 };
                let mut crash = (l * 7 + s * 11) % step;
                while !crash_oracle(level, members, (when, lost), *shape, crash, (crash + l).is_multiple_of(2)) {
                    crash += step;
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} crashes");
}

/// A director that dies while it replays, and the next one too.
#[test]
fn a_crash_in_a_replay_is_replayed() {
    for crash in (40..1200).step_by(97) {
        let mut world = World::new(crash, Level::Raid5, 4);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.write(&life, 0, 96);
        let bytes = world.bytes(20);
        let result = life.start_write(5, &bytes);
        let _ = (0..crash % 60).all(|_| life.step());
        let written = result.take() == Some(Ok(()));
        for (at, byte) in bytes.iter().enumerate() {
            if written {
                world.model[5 + at].clear();
            }
            world.model[5 + at].insert(*byte);
        }
        for again in [crash, crash / 2] {
            life.ports.iter().for_each(FakeDevice::kill);
            life = Life::whole(&mut world);
            let (handle, ports) = (life.executor.handle(), life.ports.clone());
            let expected = Expected { group: ID, sequence: 1 };
            drop(life.start(async move { Group::open(handle, ports, expected, 2, &[]).await }));
            let _ = (0..again).all(|_| life.step());
        }
        life.ports.iter().for_each(FakeDevice::kill);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.check(&life, 0..0);
        world.check_quiet(&life, &world.all());
    }
}

#[derive(Debug, Copy, Clone)]
enum Lie {
    Corrupt,
    /// The device said that it wrote, and did not.
    Lost,
    /// Another block's bytes came here.
    Misdirected,
    Media,
}

/// Puts bytes on a medium behind the group's back.
fn overwrite(life: &Life, port: usize, lba: Lba, byte: u8) {
    fill(&life.memory, 290, 1, byte);
    let segments = [segment(&life.memory, 290, 1)];
    let write = crate::device::Io::Write { lba, segments: &segments, fua: true };
    let completion = life.ports[port].submit(write).expect("submit");
    life.finish(completion).expect("a write");
}

fn lie(world: &World, life: &Life, lie: Lie, lba: u64, before: u8) -> (usize, Lba) {
    let place = world.superblock.geometry.place(Lba(lba));
    let on_device = Lba(world.superblock.layout.data.start.0 + place.stripe * CHUNK_BLOCKS + place.block);
    match lie {
        Lie::Corrupt => overwrite(life, place.member, on_device, 251),
        Lie::Lost => overwrite(life, place.member, on_device, before),
        Lie::Misdirected => {
            let other = world.media[place.member].contents(Lba(on_device.0 + 1)).expect("readable")[0];
            overwrite(life, place.member, on_device, other);
        }
        Lie::Media => world.media[place.member].spoil(on_device, BadBlock::UntilWritten),
    }
    (place.member, on_device)
}

#[test]
fn corrupt_lost_and_misdirected_writes_are_found_at_the_next_read_and_repaired() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        for kind in [Lie::Corrupt, Lie::Lost, Lie::Misdirected, Lie::Media] {
            let mut world = World::new(3, level, members);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            world.write(&life, 0, 16);
            let before = *world.model[5].first().expect("written");
            world.write(&life, 0, 16);
            let (member, on_device) = lie(&world, &life, kind, 5, before);
            // Mirrors are read in turn, so that the lie is met.
            (0..6).for_each(|_| drop(life.read(5..6)));
            world.check(&life, 0..0);
            let counters = life.group().counters();
            let found = counters.mismatches + counters.media_errors;
            assert_eq!((found, counters.repaired), (1, 1), "{level:?} {kind:?}");
            let good = *world.model[5].first().expect("written");
            assert_eq!(world.media[member].contents(on_device), Some([good; BLOCK_BYTES]), "written back");
            world.check_quiet(&life, &world.all());
            // A lie between two lives is found by the guard table on the devices.
            drop(life);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            lie(&world, &life, kind, 5, before);
            drop(life);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            (0..6).for_each(|_| drop(life.read(5..6)));
            world.check(&life, 0..0);
            assert_eq!(life.group().counters().repaired, 1, "{level:?} {kind:?}");
            world.check_quiet(&life, &world.all());
        }
    }
}

/// A write that a device lost, and then a crash while its intent was still in the log: old is not good enough for what had been acknowledged.
#[test]
fn a_lost_write_is_found_by_replay_too() {
    for (level, members) in LEVELS.into_iter().filter(|(level, _)| *level != Level::Raid0) {
        let mut world = World::new(8, level, members);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.write(&life, 0, 16);
        let before = *world.model[5].first().expect("written");
        world.write(&life, 0, 16);
        lie(&world, &life, Lie::Lost, 5, before);
        life.ports.iter().for_each(FakeDevice::kill);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.check(&life, 0..0);
        world.check_quiet(&life, &world.all());
    }
}

/// More writes than the log has room for, several at a time; a crash in the middle; and again.
#[test]
fn the_log_goes_around() {
    for (level, members) in LEVELS {
        let mut world = World::new(9, level, members);
        for crash in [700, 350] {
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            for round in 0..40_u64 {
                let bytes: Vec<u8> = world.bytes(6);
                for (at, byte) in (0..).zip(&bytes) {
                    fill(&life.memory, at, 1, *byte);
                }
                let lbas: Vec<u64> = (0..6).map(|i| (round * 5 + i * 7) % (world.model.len() as u64).min(64)).collect();
                let writes: Vec<_> = (0..6_u64)
                    .map(|i| {
                        let (group, segments) = (life.group(), [segment(&life.memory, i, 1)]);
                        let lba = lbas[usize::try_from(i).expect("small")];
                        life.start(async move { group.write(Lba(lba), &segments).await })
                    })
                    .collect();
                let last = round == 39;
                let _ = (0..if last { crash / 20 } else { usize::MAX }).all(|_| life.step());
                for ((write, lba), byte) in writes.iter().zip(&lbas).zip(bytes) {
                    let may = &mut world.model[usize::try_from(*lba).expect("small")];
                    match write.take() {
                        Some(result) => {
                            assert_eq!(result, Ok(()));
                            *may = BTreeSet::from([byte]);
                        }
                        None => drop(may.insert(byte)),
                    }
                }
            }
            assert!(life.group().counters().guard_writes > 0, "{level:?}: it never settled");
            life.ports.iter().for_each(FakeDevice::kill);
            let mut life = Life::whole(&mut world);
            life.open(1, &[]).expect("open");
            world.check(&life, 0..0);
            world.check_quiet(&life, &world.all());
        }
    }
}

/// What cannot be repaired is an error for exactly those blocks, until they are written again.
#[test]
fn what_cannot_be_repaired_is_a_media_error_for_those_blocks() {
    for kind in [Lie::Corrupt, Lie::Lost, Lie::Misdirected, Lie::Media] {
        let mut world = World::new(4, Level::Raid0, 2);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        world.write(&life, 0, 32);
        lie(&world, &life, kind, 5, 0);
        let found = life.read(0..32);
        let bad: Vec<usize> = (0..32).filter(|at| found[*at].is_err()).collect();
        assert_eq!((bad, found[5]), (vec![5], Err(GroupError::Media)), "{kind:?}");
        assert_eq!(life.group().state(), GroupState::Optimal);
        world.write(&life, 5, 1);
        world.check(&life, 0..0);
    }
}

/// Commands on the devices for one write of the group: reads, writes, and appends to the log.
#[test]
fn a_write_takes_exactly_so_many_commands() {
    let counts = |level, members, lba, count| {
        let mut world = World::new(5, level, members);
        let mut life = Life::whole(&mut world);
        life.open(1, &[]).expect("open");
        let before = life.group().counters();
        world.write(&life, lba, count);
        let after = life.group().counters();
        assert_eq!(after.guard_writes, before.guard_writes, "guards wait until the log is full");
        (after.reads - before.reads, after.writes - before.writes, after.log_writes - before.log_writes)
    };
    use Level::{Raid0, Raid1, Raid5, Raid6, Raid10};
    // Whole stripes need no reads.
    assert_eq!(counts(Raid0, 4, 0, 64), (0, 4, 1));
    assert_eq!(counts(Raid1, 3, 0, 16), (0, 3, 3));
    assert_eq!(counts(Raid10, 4, 0, 32), (0, 4, 2));
    assert_eq!(counts(Raid5, 5, 0, 64), (0, 5, 2));
    assert_eq!(counts(Raid6, 6, 0, 64), (0, 6, 3));
    // One block: mirrors need no reads, parity the old data and the old parity.
    assert_eq!(counts(Raid1, 2, 3, 1), (0, 2, 2));
    assert_eq!(counts(Raid10, 4, 3, 1), (0, 2, 2));
    assert_eq!(counts(Raid5, 5, 3, 1), (2, 2, 2));
    assert_eq!(counts(Raid6, 6, 3, 1), (3, 3, 3));
    // With few members what is left is less than what is overwritten and its parity.
    assert_eq!(counts(Raid5, 3, 3, 1), (1, 2, 2));
    assert_eq!(counts(Raid6, 5, 3, 1), (2, 3, 3));
    // All but a block: only that one is read. Partial parity of a window of 16 rows makes the record two commands long, and three with Q.
    assert_eq!(counts(Raid5, 5, 1, 63), (1, 5, 4));
    assert_eq!(counts(Raid6, 6, 1, 63), (1, 6, 9));
}

#[test]
fn more_failures_than_the_level_tolerates_lose_the_group_and_judge_nobody() {
    let mut world = World::new(6, Level::Raid5, 4);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    life.keep_record();
    world.write(&life, 0, 48);
    life.ports[1].remove();
    world.write(&life, 0, 48);
    assert_eq!(life.group().state(), GroupState::Degraded);
    life.ports[2].remove();
    let result = life.start_write(0, &[1; 48]);
    while life.step() {}
    assert_eq!(result.take(), Some(Err(GroupError::Lost)));
    assert!(life.group().state() == GroupState::Lost && !life.group().has_failing());
    assert_eq!(life.read(0..1), [Err(GroupError::Lost)]);
    // The one that failed first is stale: with it there would be enough members, but not the data.
    let mut life = Life::new(&mut world, &[0, 1, 3]);
    let refused = life.open(1, &[]).expect_err("too few");
    assert!(matches!(refused, OpenError::Assembly(AssemblyError::TooFew { usable: 2, members: 4, .. })), "{refused}");
}

#[test]
fn bad_devices_make_no_group() {
    let time = VirtualTime::new(1);
    let port = |info: DeviceInfo| FakeMedium::new(info, time.clone(), 1).port(HOST_A);
    let make = |infos: &[DeviceInfo], level| {
        let ports: Vec<_> = infos.iter().map(|i| port(*i)).collect();
        crate::testing::run(&time, create(&ports, level, ID, 1, BlockCount(0))).map(drop)
    };
    let [a, b, c] = [small(1), small(2), small(3)];
    assert!(matches!(make(&[a, b], Level::Raid5), Err(CreateError::Geometry(_))));
    assert_eq!(make(&[a, b, a], Level::Raid5), Err(CreateError::SameDevice(a.id)));
    assert_eq!(
        make(&[a, b, DeviceInfo { blocks: BlockCount(300), ..c }], Level::Raid5),
        Err(CreateError::MixedSizes(c.id))
    );
    let short = DeviceInfo { transfer_blocks_max: BlockCount(8), ..c };
    assert_eq!(make(&[a, b, short], Level::Raid5), Err(CreateError::ShortTransfers(c.id)));
    let tiny = |i| DeviceInfo { blocks: BlockCount(100), ..i };
    assert!(matches!(make(&[tiny(a), tiny(b)], Level::Raid1), Err(CreateError::Layout(_))));
}

#[test]
fn futures_are_small_enough_for_lanes() {
    let mut world = World::new(1, Level::Raid6, 5);
    let mut life = Life::whole(&mut world);
    life.open(1, &[]).expect("open");
    let (group, segments) = (life.group(), [segment(&life.memory, 0, 1)]);
    let sizes = (
        size_of_val(&group.read(Lba(0), &segments)),
        size_of_val(&group.write(Lba(0), &segments)),
        size_of_val(&group.flush()),
    );
    println!("read, write, flush: {sizes:?} bytes");
    assert!(sizes.0 <= 2560 && sizes.1 <= 2560 && sizes.2 <= 512, "{sizes:?}");
}
