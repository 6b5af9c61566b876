//! What a command of a RAID group costs besides its I/O and its parity: nothing (DESIGN 8, Counting).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_backend::bench::drive;
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use dyad_backend::format::{Expected, GroupId};
use dyad_backend::raid::geometry::Level;
use dyad_backend::raid::group::create;
use dyad_backend::raid::{Group, GroupState};
use dyad_matrix::Memory;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::sync::Signal;
use dyad_reactor::{BootClock, Clock, Executor, Limits, Rng, SeededRng, Time};

use crate::allocations;
use crate::cost::forbid_system_calls;

const MEMBERS: u8 = 5;
const LANES: u64 = 16;
/// Blocks that a lane has in memory.
const LANE_BLOCKS: u64 = 96;
/// Commands of a round of warming up. The group's pools grow with what is under way at one time: it is warm when they have not for so many rounds.
const ROUND: u64 = 1_000;
const ROUNDS_QUIET: u64 = 20;
const ROUNDS_MAX: u64 = 500;
const COUNTED: u64 = 4_000;

struct Bench {
    executor: Executor,
    subsystems: Vec<Rc<RefCell<Subsystem>>>,
    drivers: Vec<Driver<EmulatedFunction>>,
    group: Group<Driver<EmulatedFunction>>,
    memory: Memory,
    left: Rc<Cell<u64>>,
    done: Rc<Cell<u64>>,
    more: Signal,
}

impl Bench {
    fn new(level: Level) -> Self {
        let executor = Executor::new(Limits { tasks: 64, timers: 64 }, Rc::new(BootClock));
        let subsystem = |n: u8| {
            let config = SubsystemConfig { ports: 1, ..SubsystemConfig::default() };
            let mut subsystem = Subsystem::new(config, SeededRng::new(u64::from(n)));
            let blocks = BlockCount(4096);
            let config = NamespaceConfig { uuid: [n; 16], blocks, cache_blocks: None, format: BlockFormat::Bare };
            let bytes = usize::try_from(config.media_bytes()).unwrap();
            subsystem.add_namespace(config, Box::new(MemoryMedia::new(bytes)));
            Rc::new(RefCell::new(subsystem))
        };
        let subsystems: Vec<_> = (1..=MEMBERS).map(subsystem).collect();
        let pump =
            || -> usize { subsystems.iter().map(|subsystem| subsystem.borrow_mut().step(BootClock.now())).sum() };
        let attach = |subsystem| {
            let function = EmulatedFunction::new(subsystem, 0, Rc::new(BootClock));
            block_on(&executor, pump, Driver::attach(function, &executor.handle(), [1; 16])).unwrap()
        };
        let drivers: Vec<_> = subsystems.iter().map(attach).collect();
        let pump = || pump() + drivers.iter().map(Driver::poll).sum::<usize>();
        let (id, handle) = (GroupId([1; 16]), executor.handle());
        block_on(&executor, pump, create(&drivers, level, id, 1, BlockCount(0))).unwrap();
        let expected = Expected { group: id, sequence: 1 };
        let group = block_on(&executor, pump, Group::open(handle, drivers.clone(), expected, 1, &[])).unwrap();
        let memory = Memory::anonymous(usize::try_from(LANES * LANE_BLOCKS * 4096).unwrap());
        let mut rng = SeededRng::new(9);
        (0..memory.len()).step_by(512).for_each(|at| memory.write(at, &rng.next_u64().to_le_bytes()).unwrap());
        group.map(&memory).unwrap();
        let (left, done, more) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Signal::new());
        let bench = Self { executor, subsystems, drivers, group, memory, left, done, more };
        (0..LANES).for_each(|lane| bench.executor.handle().spawn("lane", bench.lane(lane)));
        bench
    }

    fn lane(&self, lane: u64) -> impl Future<Output = ()> + 'static {
        let (group, memory) = (self.group.clone(), self.memory.clone());
        let (left, done, more) = (Rc::clone(&self.left), Rc::clone(&self.done), self.more.clone());
        async move {
            let mut rng = SeededRng::new(lane);
            loop {
                if left.get() == 0 {
                    more.changed_since(more.generation()).await;
                    continue;
                }
                left.set(left.get() - 1);
                let blocks = [1, 1, 3, 16, 64, 80][usize::try_from(rng.below(6)).unwrap()];
                let len = u32::try_from(blocks * 4096).unwrap();
                let segments = [memory.segment(lane * LANE_BLOCKS * 4096, len).unwrap()];
                let lba = Lba(rng.below(group.blocks().0 - blocks));
                match rng.below(2) {
                    0 => group.read(lba, &segments).await.unwrap(),
                    _ => group.write(lba, &segments).await.unwrap(),
                }
                done.set(done.get() + 1);
            }
        }
    }

    fn run(&self, commands: u64) {
        let until = self.done.get() + commands;
        self.left.set(commands);
        self.more.notify_all();
        let pump = || {
            for (driver, subsystem) in self.drivers.iter().zip(&self.subsystems) {
                driver.poll();
                subsystem.borrow_mut().step(Time::ZERO);
            }
        };
        drive(&self.executor, pump, || self.done.get() == until);
    }
}

#[test]
fn commands_of_a_group_neither_allocate_nor_call_the_kernel() {
    for level in [Level::Raid5, Level::Raid6] {
        let allocated = Arc::new(AtomicU64::new(u64::MAX));
        let report = Arc::clone(&allocated);
        // It ends in `pause`, with the process: to end by itself would take system calls.
        let thread = std::thread::spawn(move || {
            let bench = Bench::new(level);
            let (mut quiet, mut rounds) = (0, 0);
            while quiet < ROUNDS_QUIET {
                let before = allocations::of_this_thread();
                bench.run(ROUND);
                quiet = if allocations::of_this_thread() == before { quiet + 1 } else { 0 };
                rounds += 1;
                assert!(rounds < ROUNDS_MAX, "it never stops allocating");
            }
            forbid_system_calls();
            let before = allocations::of_this_thread();
            let guards = bench.group.counters().guard_writes;
            bench.run(COUNTED);
            assert!(bench.group.counters().guard_writes > guards, "the log went around");
            assert_eq!(bench.group.state(), GroupState::Optimal);
            report.store(allocations::of_this_thread() - before, Ordering::Release);
            nix::unistd::pause();
        });
        while allocated.load(Ordering::Acquire) == u64::MAX {
            std::thread::yield_now();
            assert!(!thread.is_finished(), "it failed while warming up");
        }
        assert_eq!(allocated.load(Ordering::Acquire), 0, "{level:?}");
    }
}
