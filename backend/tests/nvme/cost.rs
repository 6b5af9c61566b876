//! What a command costs besides its instructions: nothing (DESIGN 8, Counting).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_backend::bench::drive;
use dyad_backend::device::{Device, Io};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{
    BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, NullMedia, Subsystem, SubsystemConfig,
};
use dyad_matrix::Memory;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::sync::Signal;
use dyad_reactor::{BootClock, Clock, Executor, Limits, Rng, SeededRng, Time};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::allocations;

const LANES: u32 = 64;
const WARM_UP: u64 = 5_000;
const COUNTED: u64 = 50_000;

/// From now on this thread may only `pause`; any other system call ends the process with SIGSYS.
pub(crate) fn forbid_system_calls() {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let allowed = [(libc::SYS_pause, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// A driver, its device in the same thread, and lanes that read and write shapes of every kind.
struct Load {
    executor: Executor,
    subsystem: Rc<RefCell<Subsystem>>,
    driver: Driver<EmulatedFunction>,
    memory: Memory,
    left: Rc<Cell<u64>>,
    done: Rc<Cell<u64>>,
    /// Something is left again.
    more: Signal,
}

impl Load {
    fn new(data: bool) -> Self {
        let executor = Executor::new(Limits { tasks: 80, timers: 16 }, Rc::new(BootClock));
        let mut subsystem =
            Subsystem::new(SubsystemConfig { ports: 1, ..SubsystemConfig::default() }, SeededRng::new(1));
        let blocks = BlockCount(4096);
        let config = NamespaceConfig { uuid: [1; 16], blocks, cache_blocks: None, format: BlockFormat::Bare };
        let bytes = usize::try_from(config.media_bytes()).unwrap();
        subsystem.add_namespace(config, if data { Box::new(MemoryMedia::new(bytes)) } else { Box::new(NullMedia) });
        let subsystem = Rc::new(RefCell::new(subsystem));
        let function = EmulatedFunction::new(&subsystem, 0, Rc::new(BootClock));
        let pump = || subsystem.borrow_mut().step(BootClock.now());
        let driver = block_on(&executor, pump, Driver::attach(function, &executor.handle(), [1; 16])).unwrap();
        let memory = Memory::anonymous(256 * 4096);
        driver.map(&memory).unwrap();
        let (left, done, more) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Signal::new());
        for lane in 0..LANES {
            executor.handle().spawn(
                "lane",
                lane_of(lane, driver.clone(), memory.clone(), Rc::clone(&left), Rc::clone(&done), more.clone()),
            );
        }
        Self { executor, subsystem, driver, memory, left, done, more }
    }

    fn run(&self, commands: u64) {
        let until = self.done.get() + commands;
        self.left.set(commands);
        self.more.notify_all();
        let pump = || {
            self.driver.poll();
            self.subsystem.borrow_mut().step(Time::ZERO);
        };
        drive(&self.executor, pump, || self.done.get() == until);
    }
}

async fn lane_of(
    lane: u32,
    driver: Driver<EmulatedFunction>,
    memory: Memory,
    left: Rc<Cell<u64>>,
    done: Rc<Cell<u64>>,
    more: Signal,
) {
    let mut rng = SeededRng::new(u64::from(lane));
    loop {
        if left.get() == 0 {
            more.changed_since(more.generation()).await;
            continue;
        }
        left.set(left.get() - 1);
        let lba = Lba(rng.below(4000));
        let piece = |first: u64, blocks: u32| memory.segment(first * 4096, blocks * 4096).unwrap();
        let (one, two, many) = ([piece(3, 1)], [piece(7, 1), piece(5, 1)], [piece(0, 16), piece(40, 2), piece(20, 1)]);
        let completion = match rng.below(6) {
            0 => driver.submit(Io::Write { lba, segments: &one, fua: false }),
            1 => driver.submit(Io::Write { lba, segments: &many, fua: true }),
            2 => driver.submit(Io::Flush),
            3 => driver.submit(Io::WriteZeroes { lba, blocks: BlockCount(3) }),
            4 => driver.submit(Io::Read { lba, segments: &two }),
            _ => driver.submit(Io::Read { lba, segments: &many }),
        };
        completion.unwrap().await.unwrap();
        done.set(done.get() + 1);
    }
}

#[test]
fn commands_neither_allocate_nor_call_the_kernel() {
    let allocated = Arc::new(AtomicU64::new(u64::MAX));
    let report = Arc::clone(&allocated);
    // It ends in `pause`, with the process: to end by itself would take system calls.
    let thread = std::thread::spawn(move || {
        let load = Load::new(true);
        load.run(WARM_UP);
        forbid_system_calls();
        let before = allocations::of_this_thread();
        load.run(COUNTED);
        report.store(allocations::of_this_thread() - before, Ordering::Release);
        nix::unistd::pause();
    });
    while allocated.load(Ordering::Acquire) == u64::MAX {
        std::thread::yield_now();
        assert!(!thread.is_finished(), "it failed while warming up");
    }
    assert_eq!(allocated.load(Ordering::Acquire), 0);
}

#[test]
fn the_driver_copies_nothing_and_its_futures_are_small() {
    let load = Load::new(false);
    load.run(COUNTED);
    assert_eq!(load.memory.copied_bytes(), 0, "a device without data copies nothing, so a copy would be the driver's");
    let sizes = load.executor.task_sizes();
    println!("{:?}", &sizes[..2]);
    assert!(sizes.iter().all(|(_, size)| *size <= 4096), "{sizes:?}");
    assert!(size_of::<<Driver<EmulatedFunction> as Device>::Completion>() <= 32);
}
