//! A pool on RAID groups on hostile media: directors that die at any moment, power that goes, a member that goes for good; and what the devices are told.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;

use dyad_matrix::Memory;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::{Clock, Executor, Limits, Rng, SeededRng, Shuffled, VirtualTime};

use super::super::*;
use super::array::track;
use super::{group, uuid};
use crate::device::DeviceInfo;
use crate::fake::{FakeDevice, FakeMedium};
use crate::format::Expected;
use crate::raid::Group;
use crate::raid::geometry::{CHUNK_BLOCKS, Level};
use crate::testing::{HOST_A, byte_of, fill, info, memory, segment};

type Grounded = OnGroup<FakeDevice>;

/// Media, the registry's description, and what every block of the volume may hold.
struct World {
    time: VirtualTime,
    rng: SeededRng,
    media: Vec<FakeMedium>,
    /// A member that is gone for good.
    gone: Option<usize>,
    volume: Description,
    model: Vec<BTreeSet<u8>>,
    next: u8,
}

/// A director, until it dies.
struct Life {
    time: VirtualTime,
    executor: Executor,
    order: RefCell<Shuffled<SeededRng>>,
    ports: Vec<FakeDevice>,
    memory: Memory,
}

impl Life {
    fn new(world: &mut World) -> Self {
        let executor = Executor::new(Limits { tasks: 256, timers: 64 }, Rc::new(world.time.clone()));
        let there = (0..world.media.len()).filter(|m| world.gone != Some(*m));
        let ports = there.map(|m| world.media[m].port(HOST_A)).collect();
        let order = RefCell::new(Shuffled(world.rng.fork()));
        Self { time: world.time.clone(), executor, order, ports, memory: memory(64) }
    }

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

    /// The result, unless the director dies before, after so many events.
    fn within<T: 'static>(&self, events: usize, future: impl Future<Output = T> + 'static) -> Option<T> {
        let result = self.start(future);
        for _ in 0..events {
            let more = self.step();
            if let Some(value) = result.take() {
                return Some(value);
            }
            assert!(more, "it never ends");
        }
        None
    }

    fn finish<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.within(1_000_000, future).expect("it never ends")
    }

    fn open_group(&self) -> Grounded {
        let (handle, ports) = (self.executor.handle(), self.ports.clone());
        let expected = Expected { group: group(1), sequence: 1 };
        let opened = self.finish(async move { Group::open(handle, ports, expected, 2, &[]).await }).expect("a group");
        opened.map(&self.memory).expect("memory");
        let recorded = opened.clone();
        self.executor.handle().spawn("record", async move { recorded.run_record(async |_| true).await });
        OnGroup::new(opened).expect("devices")
    }

    /// The pool, served, and the volume as the registry has it.
    fn open(&self, world: &mut World) -> (Pool<Grounded>, Rc<Volume<Grounded>>) {
        let ground = self.open_group();
        let description = world.volume.clone();
        let pool = self.finish(async move {
            let pool = Pool::open(ground).await.expect("a pool");
            assert_eq!(pool.reconcile(&[description]).await, Ok(Reconciled::default()));
            pool
        });
        if matches!(world.volume.state(), State::Shrinking { .. }) {
            world.volume = world.volume.settled().expect("it was shrinking");
        }
        let served = pool.clone();
        self.executor.handle().spawn("serve", async move { drop(served.serve().await.to_string()) });
        let mut volume = Volume::new(&world.volume, std::slice::from_ref(&pool)).expect("the volume");
        volume.map(&self.memory);
        (pool, Rc::new(volume))
    }
}

impl World {
    fn new(level: Level, members: u8, seed: u64) -> Self {
        let time = VirtualTime::new(seed);
        let device = |n| DeviceInfo { blocks: BlockCount(600), ..info(n) };
        let media: Vec<_> =
            (1..=members).map(|n| FakeMedium::new(device(n), time.clone(), seed + u64::from(n))).collect();
        let name = Name::new("v").expect("a name");
        let volume = Description::new(name, uuid(1), track(), 40, Allocation::Thin, vec![group(1)]).expect("a volume");
        let model = vec![BTreeSet::from([0]); 40 * 16];
        let rng = SeededRng::new(seed);
        let mut world = Self { time, rng, media, gone: None, volume, model, next: 0 };
        let life = Life::new(&mut world);
        let ports = life.ports.clone();
        life.finish(async move { crate::raid::group::create(&ports, level, group(1), 1, BlockCount(0)).await })
            .expect("a group");
        let (ground, spec) = (life.open_group(), world.volume.share(group(1)).expect("a share"));
        life.finish(async move {
            let pool = Pool::format(ground, Some(2)).await.expect("a pool");
            pool.ensure(spec).await.expect("a share");
        });
        world
    }

    /// Reads everything; what is read is what it is.
    fn check(&mut self, life: &Life, volume: &Rc<Volume<Grounded>>) {
        let blocks = self.model.len() as u64;
        assert_eq!(volume.blocks(), BlockCount(blocks));
        for from in (0..blocks).step_by(32) {
            let (volume, segments) = (Rc::clone(volume), [segment(&life.memory, 0, 32.min(blocks - from))]);
            life.finish(async move { volume.read(Lba(from), &segments).await }).expect("a read");
            for at in 0..32.min(blocks - from) {
                let (found, may) =
                    (byte_of(&life.memory, at), &mut self.model[usize::try_from(from + at).expect("small")]);
                assert!(may.contains(&found), "block {} is {found}, not one of {may:?}", from + at);
                *may = BTreeSet::from([found]);
            }
        }
    }

    /// One command, which the director may not survive. True if it did.
    fn command(
        &mut self,
        life: &Life,
        events: usize,
        pool: &Pool<Grounded>,
        volume: &mut Rc<Volume<Grounded>>,
    ) -> bool {
        let size = self.model.len() as u64;
        let lba = self.rng.below(size);
        let range =
            |lba: u64, blocks: u64| usize::try_from(lba).expect("small")..usize::try_from(lba + blocks).expect("small");
        let way = Rc::clone(volume);
        match self.rng.below(8) {
            0..=4 => {
                let blocks = 1 + self.rng.below((size - lba).min(40));
                self.next = self.next % 250 + 1;
                fill(&life.memory, 0, blocks, self.next);
                let segments = [segment(&life.memory, 0, blocks)];
                let outcome = life.within(events, async move { way.write(Lba(lba), &segments).await });
                let next = self.next;
                for may in &mut self.model[range(lba, blocks)] {
                    match outcome {
                        Some(Ok(())) => *may = BTreeSet::from([next]),
                        Some(Err(VolumeError::Pool(PoolError::Full))) => {}
                        Some(Err(error)) => panic!("{error:?}"),
                        None => drop(may.insert(next)),
                    }
                }
                outcome.is_some()
            }
            5..=6 => {
                let lba = lba / 3;
                let outcome =
                    life.within(events, async move { way.deallocate(Lba(lba), BlockCount(size - lba)).await });
                self.model[range(lba, size - lba)].iter_mut().for_each(|may| may.extend([0]));
                if lba == 0 && outcome.is_some() {
                    self.model.fill(BTreeSet::from([0]));
                }
                outcome.map(|outcome| outcome.expect("deallocated")).is_some()
            }
            _ => {
                let extents = self.volume.extents();
                let (changed, cut) = match extents < 30 {
                    true => (self.volume.grown(extents + 15), false),
                    false => (self.volume.shrunk(5 + self.rng.below(20)), true),
                };
                self.volume = changed.expect("another length");
                self.model.resize(usize::try_from(self.volume.blocks().0).expect("small"), BTreeSet::from([0]));
                let (pool, spec) = (pool.clone(), self.volume.share(group(1)).expect("a share"));
                let to = pool.clone();
                let done = life.within(events, async move {
                    if cut { to.cut(spec).await } else { to.ensure(spec).await.map(drop) }
                });
                if done.map(|done| done.expect("done")).is_some() {
                    if cut {
                        self.volume = self.volume.settled().expect("it was shrinking");
                    }
                    let mut way = Volume::new(&self.volume, &[pool]).expect("the volume");
                    way.map(&life.memory);
                    *volume = Rc::new(way);
                }
                done.is_some()
            }
        }
    }
}

const LEVELS: [(Level, u8); 4] = [(Level::Raid0, 2), (Level::Raid1, 2), (Level::Raid5, 3), (Level::Raid6, 5)];

#[test]
fn a_volume_on_a_group_survives_its_directors_a_member_and_the_power() {
    let seeds = if std::env::var_os("DYAD_LONG").is_some() { 40 } else { 2 };
    let mut died = 0;
    for (level, members) in LEVELS {
        for seed in 0..seeds {
            let mut world = World::new(level, members, seed);
            for number in 0..8 {
                if number == 4 && level != Level::Raid0 {
                    world.gone = Some(usize::try_from(seed).expect("small") % usize::from(members));
                }
                let life = Life::new(&mut world);
                let (pool, mut volume) = life.open(&mut world);
                world.check(&life, &volume);
                let mut left = 3 + world.rng.below(12);
                while left > 0 {
                    left -= 1;
                    let events =
                        if left == 0 { 1 + usize::try_from(world.rng.below(60)).expect("small") } else { 100_000 };
                    if !world.command(&life, events, &pool, &mut volume) {
                        died += 1;
                        break;
                    }
                }
                life.ports.iter().for_each(FakeDevice::kill);
                if world.rng.one_in(2) {
                    world.media.iter().for_each(FakeMedium::power_loss);
                }
            }
            let life = Life::new(&mut world);
            let (_pool, volume) = life.open(&mut world);
            world.check(&life, &volume);
        }
    }
    assert!(died > 20, "{died} of them died in a command");
}

/// What is deallocated is zeros on every member, parity too, and the devices were told with Write Zeroes.
#[test]
fn freed_slices_are_zeros_on_all_members() {
    for (level, members) in LEVELS {
        let mut world = World::new(level, members, 7);
        let life = Life::new(&mut world);
        let (pool, volume) = life.open(&mut world);
        fill(&life.memory, 0, 32, 9);
        let stripes = 2 * pool.facts().stripe_blocks;
        let (way, segments) = (Rc::clone(&volume), [segment(&life.memory, 0, 32)]);
        life.finish(async move {
            for lba in (0..2 * stripes).step_by(32) {
                way.write(Lba(lba), &segments).await.expect("a write");
            }
        });
        let layout = pool.ground().group().layout();
        let of_slices = |medium: &FakeMedium| {
            let first = layout.data.start.0;
            let held =
                (first..first + 4 * CHUNK_BLOCKS).filter(|at| medium.contents(Lba(*at)) != Some([0; BLOCK_BYTES]));
            held.count()
        };
        assert!(world.media.iter().all(|medium| of_slices(medium) > 0));
        let way = Rc::clone(&volume);
        assert_eq!(life.finish(async move { way.deallocate(Lba(0), BlockCount(2 * stripes)).await }), Ok(2));
        let _ = (0..10_000).all(|_| life.step());
        assert_eq!(pool.counters().zeroed, 2);
        assert!(world.media.iter().all(|medium| of_slices(medium) == 0), "{level:?}");
        world.check(&life, &volume);
    }
}
