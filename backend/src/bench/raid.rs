//! What `dyad bench raid` measures (DESIGN 8): how fast parity is made, beside memcpy in the same run; commands on devices for one write of each shape;
//! and, in virtual time with devices of a fixed latency and depth, a group against the sum of its devices, and a rebuild beside hosts.
//!
//! Bytes read and bytes written both count, for memcpy too. The set is many times larger than any cache, and is gone through in stripes of eight
//! data chunks of 64 KiB, as full-stripe writes do.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba, NamespaceId};
use dyad_reactor::figures::{Figures, ROUNDS, Row, to_f64};
use dyad_reactor::{BootClock, Clock, Executor, Fifo, Limits, Rng, SeededRng, VirtualTime};

use crate::device::{Device, DeviceId, DeviceInfo, Io};
use crate::fake::{FakeDevice, FakeMedium, Latency};
use crate::format::{Expected, GroupId};
use crate::parity::{Gf, Member, Piece, Recipe, combine, xor};
use crate::raid::geometry::{CHUNK_BLOCKS, Level};
use crate::raid::group::{Background, create};
use crate::raid::{Group, GroupError, GroupState};

const CHUNK: u64 = BlockCount(CHUNK_BLOCKS).bytes();
const DATA: u64 = 8;
const MEMBERS: u64 = DATA + 2;
/// Of the whole set: 1.25 GiB.
const STRIPES: u64 = 2048;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum RaidBenchError {
    /// A group could not be made.
    #[error(transparent)]
    Create(#[from] crate::raid::group::CreateError),
    /// Or opened.
    #[error(transparent)]
    Open(#[from] crate::raid::group::OpenError),
    /// Or used.
    #[error("the group failed: {0}")]
    Group(#[from] GroupError),
}

/// Takes all figures; `progress` gets a line now and then.
///
/// # Errors
/// [`RaidBenchError`].
pub fn run_raid(mut progress: impl FnMut(&str)) -> Result<Vec<Row>, RaidBenchError> {
    let mut figures = Figures::default();
    progress("parity");
    parity(&mut figures);
    progress("commands");
    commands(&mut figures)?;
    progress("a group and its devices");
    against_devices(&mut figures)?;
    progress("a rebuild");
    rebuild(&mut figures)?;
    Ok(figures.rows())
}

/// Speeds of memcpy, XOR and P+Q in GB/s.
pub fn parity(figures: &mut Figures) {
    let bytes = usize::try_from(STRIPES * MEMBERS * CHUNK).expect("a 64-bit machine");
    let memory = Memory::anonymous(bytes);
    let chunk = vec![7_u8; 64 << 10];
    (0..STRIPES * MEMBERS).for_each(|n| memory.write(n * CHUNK, &chunk).expect("inside"));
    let row = |parity| {
        let recipe = Recipe::new(8, 2, parity, None).expect("parity of all data");
        std::array::from_fn::<Gf, 8, _>(|i| recipe.factor(Member::Data(i)))
    };
    let (of_p, of_q) = (row(Member::P), row(Member::Q));
    let mut plain = vec![1_u8; bytes];
    let blocks = BlockCount(CHUNK_BLOCKS);
    let stripe = |n: u64| -> [Piece<'_>; 10] {
        std::array::from_fn(|i| Piece { memory: &memory, offset: (n * MEMBERS + i as u64) * CHUNK })
    };
    for _ in 0..ROUNDS {
        let copied = rate(bytes as u64, || {
            let (from, to) = plain.split_at_mut(bytes / 2);
            to.copy_from_slice(from);
        });
        let of_xor = rate(STRIPES * (DATA + 1) * CHUNK, || {
            for n in 0..STRIPES {
                let members = stripe(n);
                xor(members[8], &members[..8], blocks).expect("inside");
            }
        });
        let of_pq = rate(STRIPES * MEMBERS * CHUNK, || {
            for n in 0..STRIPES {
                let members = stripe(n);
                combine(&members[8..], &members[..8], &[&of_p, &of_q], blocks).expect("inside");
            }
        });
        figures.add("memcpy.gb_s", "GB/s", copied);
        figures.add("xor.gb_s", "GB/s", of_xor);
        figures.add("pq.gb_s", "GB/s", of_pq);
        figures.add("xor.of_memcpy", "x", of_xor / copied);
        figures.add("pq.of_memcpy", "x", of_pq / copied);
    }
}

/// GB/s of `bytes` read and written by `work`.
fn rate(bytes: u64, work: impl FnOnce()) -> f64 {
    let before = BootClock.now();
    work();
    let spent = BootClock.now().since(before).max(Duration::from_nanos(1));
    to_f64(bytes) / spent.as_secs_f64() / 1e9
}

/// A group of fake devices, in virtual time.
struct World {
    time: VirtualTime,
    executor: Executor,
    ports: Vec<FakeDevice>,
    group: Group<FakeDevice>,
    memory: Memory,
}

/// Lanes have this many blocks of memory each.
const LANE_BLOCKS: u64 = 64;
const LANES: u64 = 64;
const DEPTH: u16 = 8;
/// Of a command on a device, whatever its length.
const LATENCY: Duration = Duration::from_micros(100);
/// Of virtual time under load.
const WHILE: Duration = Duration::from_millis(200);

impl World {
    fn new(level: Level, members: u8, blocks: BlockCount) -> Result<Self, RaidBenchError> {
        let time = VirtualTime::new(1);
        let executor = Executor::new(Limits { tasks: 1024, timers: 64 }, Rc::new(time.clone()));
        let ports: Vec<_> = (1..=members).map(|name| medium(name, blocks, &time).port([1; 16])).collect();
        let memory = Memory::anonymous(usize::try_from(LANES * LANE_BLOCKS).expect("small") * BLOCK_BYTES);
        let mut rng = SeededRng::new(1);
        for at in (0..memory.len()).step_by(BLOCK_BYTES) {
            memory.write(at, &rng.next_u64().to_le_bytes()).expect("inside");
        }
        ports.iter().for_each(|port| port.map(&memory).expect("a device that is there"));
        let (id, handle, own) = (GroupId([1; 16]), executor.handle(), ports.clone());
        let opened = finish(&time, &executor, async move {
            create(&own, level, id, 1, BlockCount(0)).await?;
            let expected = Expected { group: id, sequence: 1 };
            Ok::<_, RaidBenchError>(Group::open(handle, own, expected, 1, &[]).await?)
        });
        let group = opened?;
        group.map(&memory)?;
        Ok(Self { time, executor, ports, group, memory })
    }

    fn finish<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        finish(&self.time, &self.executor, future)
    }

    fn segment(&self, lane: u64, blocks: u64) -> Segment {
        let len = u32::try_from(BlockCount(blocks).bytes()).expect("small");
        self.memory.segment(BlockCount(lane * LANE_BLOCKS).bytes(), len).expect("inside")
    }

    /// Lanes that go on for a while, each with its segment of so many blocks. Returns how long each command took, sorted.
    fn load<F: Future<Output = ()>>(
        &self,
        lanes: u64,
        blocks: u64,
        command: impl Fn(u64, Segment, u64) -> F + Clone + 'static,
    ) -> Vec<Duration> {
        let took = Rc::new(RefCell::new(Vec::new()));
        let end = self.time.now() + WHILE;
        let over = Rc::new(Cell::new(0));
        for lane in 0..lanes {
            let (time, took, over, command) = (self.time.clone(), Rc::clone(&took), Rc::clone(&over), command.clone());
            let (mut rng, segment) = (SeededRng::new(lane), self.segment(lane, blocks));
            self.executor.handle().spawn("lane", async move {
                while time.now() < end {
                    let start = time.now();
                    command(lane, segment, rng.next_u64()).await;
                    took.borrow_mut().push(time.now().since(start));
                }
                over.set(over.get() + 1);
            });
        }
        while over.get() < lanes {
            step(&self.time, &self.executor);
        }
        let mut took = took.take();
        took.sort_unstable();
        took
    }
}

fn medium(name: u8, blocks: BlockCount, time: &VirtualTime) -> FakeMedium {
    let info = DeviceInfo {
        id: DeviceId([name; 16]),
        namespace: NamespaceId(1),
        blocks,
        transfer_blocks_max: BlockCount(32),
        queue_depth: DEPTH,
        volatile_cache: false,
        reservations: true,
    };
    let medium = FakeMedium::new(info, time.clone(), u64::from(name));
    medium.set_latency(Latency { base: LATENCY, jitter: Duration::ZERO });
    medium
}

/// Goes to the next event.
fn step(time: &VirtualTime, executor: &Executor) {
    executor.run_until_idle(&mut Fifo);
    let next = [time.next_event(), executor.next_deadline()].into_iter().flatten().min();
    if let Some(next) = next {
        time.advance_to(next.max(time.now()));
        time.run_due();
        executor.fire_timers();
    }
    executor.run_until_idle(&mut Fifo);
}

fn finish<T: 'static>(time: &VirtualTime, executor: &Executor, future: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(Cell::new(None));
    let to = Rc::clone(&result);
    executor.handle().spawn("once", async move { to.set(Some(future.await)) });
    loop {
        step(time, executor);
        if let Some(value) = result.take() {
            return value;
        }
    }
}

/// Commands on devices for one write: reads, writes of data and parity, appends to the log.
fn commands(figures: &mut Figures) -> Result<(), RaidBenchError> {
    let small = BlockCount(400);
    let levels = [
        ("raid0", Level::Raid0, 4),
        ("raid1", Level::Raid1, 2),
        ("raid10", Level::Raid10, 4),
        ("raid5", Level::Raid5, 5),
        ("raid6", Level::Raid6, 6),
    ];
    for (name, level, members) in levels {
        let stripe = World::new(level, members, small)?.group.geometry().data() as u64 * CHUNK_BLOCKS;
        let shapes = [
            ("full_stripe", 0, stripe),
            ("partial_4k", 3, 1),
            ("partial_64k", 0, CHUNK_BLOCKS),
            ("all_but_4k", 1, stripe - 1),
        ];
        for (shape, lba, blocks) in shapes {
            let world = World::new(level, members, small)?;
            let (group, segments) = (world.group.clone(), [world.segment(0, blocks)]);
            let before = group.counters();
            world.finish(async move { group.write(Lba(lba), &segments).await })?;
            let after = world.group.counters();
            let (reads, writes) = (after.reads - before.reads, after.writes - before.writes);
            let log = after.log_writes - before.log_writes;
            let name = format!("{name}.{shape}");
            figures.add(format!("{name}.reads_per_write"), "1", to_f64(reads));
            figures.add(format!("{name}.log_writes_per_write"), "1", to_f64(log));
            figures.add(format!("{name}.ios_per_write"), "1", to_f64(reads + writes + log));
        }
    }
    Ok(())
}

/// Random reads and whole stripes, in virtual time: what the group does of what its devices could do.
fn against_devices(figures: &mut Figures) -> Result<(), RaidBenchError> {
    const MEMBERS: u8 = 5;
    const STRIPE: u64 = 64;
    let world = World::new(Level::Raid5, MEMBERS, BlockCount(8192))?;
    let ports = world.ports.clone();
    let alone = world.load(u64::from(DEPTH) * u64::from(MEMBERS), 1, move |lane, segment, random| {
        let port = ports[usize::try_from(lane % u64::from(MEMBERS)).expect("few")].clone();
        async move {
            let io = Io::Read { lba: Lba(random % 8192), segments: &[segment] };
            port.submit(io).expect("room").await.expect("a read");
        }
    });
    let sum = to_f64(alone.len() as u64);
    let group = world.group.clone();
    let reads = world.load(LANES, 1, move |_, segment, random| {
        let group = group.clone();
        async move { group.read(Lba(random % group.blocks().0), &[segment]).await.expect("a read") }
    });
    figures.add("raid5.random_read.of_sum", "x", to_f64(reads.len() as u64) / sum);
    let (group, next) = (world.group.clone(), Rc::new(Cell::new(0)));
    let before = world.group.counters();
    let writes = world.load(8, STRIPE, move |_, segment, _| {
        let (group, at) = (group.clone(), next.get());
        next.set((at + STRIPE) % (group.blocks().0 / STRIPE * STRIPE));
        async move { group.write(Lba(at), &[segment]).await.expect("a write") }
    });
    let after = world.group.counters();
    let all = |c: crate::raid::group::GroupCounters| c.writes + c.log_writes + c.guard_writes;
    let members = to_f64(writes.len() as u64 * u64::from(MEMBERS));
    figures.add("raid5.full_stripe.stripe_writes_of_all", "x", members / to_f64(all(after) - all(before)));
    figures.add("raid5.full_stripe.per_s", "1/s", to_f64(writes.len() as u64) / WHILE.as_secs_f64());
    Ok(())
}

/// How fast a member is rebuilt, alone and beside a host that reads and writes at depth 1, and what the host sees of it.
fn rebuild(figures: &mut Figures) -> Result<(), RaidBenchError> {
    const SIZE: BlockCount = BlockCount(16384);
    let host = |world: &World| {
        let group = world.group.clone();
        let took = world.load(1, 1, move |_, segment, random| {
            let group = group.clone();
            async move {
                let lba = Lba(random % group.blocks().0);
                match random >> 63 {
                    0 => group.read(lba, &[segment]).await.expect("a read"),
                    _ => group.write(lba, &[segment]).await.expect("a write"),
                }
            }
        });
        took[took.len() * 99 / 100].as_secs_f64() * 1e6
    };
    for (name, with_host) in [("alone", false), ("beside_host", true)] {
        let world = World::new(Level::Raid5, 5, SIZE)?;
        world.executor.handle().spawn("record", world.group.clone().run_record(async |_| true));
        let retired = world.ports[2].info().id;
        world.group.retire(retired)?;
        while world.group.has_failing() {
            step(&world.time, &world.executor);
        }
        if with_host {
            figures.add("rebuild.host_p99_us.without", "us", host(&world));
        }
        let (group, spare) = (world.group.clone(), medium(99, SIZE, &world.time).port([1; 16]));
        world.finish(async move { group.add_spare(spare).await }).expect("a good spare");
        world.executor.handle().spawn("background", world.group.clone().run_background(Background::default()));
        while world.group.counters().rebuilt == 0 {
            step(&world.time, &world.executor);
        }
        let (start, before) = (world.time.now(), world.group.counters().rebuilt);
        if with_host {
            figures.add("rebuild.host_p99_us.during", "us", host(&world));
        } else {
            while world.group.state() != GroupState::Optimal {
                step(&world.time, &world.executor);
            }
        }
        let rebuilt = world.group.counters().rebuilt - before;
        let spent = world.time.now().since(start).as_secs_f64();
        figures.add(format!("rebuild.{name}.mb_s"), "MB/s", to_f64(rebuilt * CHUNK) / spent / 1e6);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_take_exactly_so_many_commands() {
        let mut figures = Figures::default();
        commands(&mut figures).expect("figures");
        let rows = figures.rows();
        let value = |name: &str| rows.iter().find(|row| row.name == name).expect(name).value;
        assert!((value("raid5.full_stripe.reads_per_write")).abs() < 0.1);
        assert!((value("raid5.partial_4k.ios_per_write") - 6.0).abs() < 0.1, "2 reads, 2 writes, 2 of the log");
        assert!((value("raid6.partial_4k.ios_per_write") - 9.0).abs() < 0.1, "3 reads, 3 writes, 3 of the log");
        assert!((value("raid1.partial_4k.ios_per_write") - 4.0).abs() < 0.1, "2 writes, 2 of the log");
    }

    #[test]
    fn a_group_reads_what_its_devices_can_and_a_rebuild_leaves_hosts_their_share() {
        let mut figures = Figures::default();
        against_devices(&mut figures).expect("figures");
        rebuild(&mut figures).expect("figures");
        let rows = figures.rows();
        rows.iter().for_each(|row| println!("{:44} {:>12.2} {}", row.name, row.value, row.unit));
        let value = |name: &str| rows.iter().find(|row| row.name == name).expect(name).value;
        assert!(value("raid5.random_read.of_sum") > 0.85);
        assert!(value("raid5.full_stripe.stripe_writes_of_all") > 0.6);
        assert!(value("rebuild.host_p99_us.during") < 3.0 * value("rebuild.host_p99_us.without"));
        assert!(value("rebuild.beside_host.mb_s") > 0.05 * value("rebuild.alone.mb_s"));
    }
}
