//! Directors and shelves that die, over vfio-user.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dyad_backend::device::{Device, DeviceError, Io, ReservationKey, ReservationOp, ReservationType, SubmitError};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{BlockFormat, Latency};
use dyad_backend::shelf::{ShelfConfig, ShelfDevice, ShelfError, ShelfMedia, control_path, run_shelf, socket_path};
use dyad_backend::vfio_user::{ConnectError, VfioUserFunction};
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{BootClock, Clock, Executor, Limits, Options, Reactor};

use crate::process::{DEVICE, Role, attach, executor};

/// A director's device with some memory.
struct Side {
    executor: Executor,
    driver: Driver<VfioUserFunction>,
    memory: Memory,
}

impl Side {
    fn new(directory: &Path, port: usize, host: [u8; 16]) -> Self {
        let executor = executor();
        let driver = attach(&executor, directory, port, host);
        let memory = Memory::shared("payload", 1 << 20, HugePages::No).unwrap();
        driver.map(&memory).unwrap();
        Self { executor, driver, memory }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.executor, || self.driver.poll(), future)
    }

    fn write(&self, lba: u64, byte: u8) -> Result<(), DeviceError> {
        self.memory.write(0, &[byte; 4096]).unwrap();
        let segments = [self.memory.segment(0, 4096).unwrap()];
        match self.driver.submit(Io::Write { lba: Lba(lba), segments: &segments, fua: false }) {
            Ok(completion) => self.run(completion),
            Err(_) => Err(DeviceError::Gone),
        }
    }

    fn read(&self, lba: u64) -> Result<u8, DeviceError> {
        let segments = [self.memory.segment(4096, 4096).unwrap()];
        self.run(self.driver.submit(Io::Read { lba: Lba(lba), segments: &segments }).unwrap())?;
        let mut block = [0; 4096];
        self.memory.read(4096, &mut block).unwrap();
        assert!(block.iter().all(|b| *b == block[0]), "a torn block");
        Ok(block[0])
    }
}

const A: [u8; 16] = [0xa; 16];
const B: [u8; 16] = [0xb; 16];

#[test]
fn two_directors_share_a_device_in_a_third_process() {
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    let (a, b) = (Side::new(directory.path(), 0, A), Side::new(directory.path(), 1, B));
    assert_eq!(a.driver.info(), b.driver.info());
    for lba in 0..200 {
        a.write(lba, u8::try_from(lba % 251).unwrap()).unwrap();
    }
    for lba in 0..200 {
        assert_eq!(b.read(lba), Ok(u8::try_from(lba % 251).unwrap()));
    }
    assert_eq!(
        VfioUserFunction::connect(&socket_path(directory.path(), DEVICE, 0)).unwrap_err(),
        ConnectError::InUse,
        "one driver per port"
    );
}

#[test]
fn a_killed_director_leaves_its_port_to_the_next_and_the_other_port_alone() {
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    let b = Side::new(directory.path(), 1, B);
    b.run(b.driver.reserve(ReservationOp::Register { key: ReservationKey(0xb) })).unwrap();
    for round in 0..5 {
        let director = Role::start("director", directory.path());
        for lba in 0..50 {
            b.write(lba, round + 1).unwrap();
        }
        director.kill();
        for lba in 0..50 {
            assert_eq!(b.read(lba), Ok(round + 1));
        }
        // The shelf hears of the death by the end of the connection.
        let a = loop {
            match VfioUserFunction::connect(&socket_path(directory.path(), DEVICE, 0)) {
                Ok(function) => break function,
                Err(ConnectError::InUse) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let executor = executor();
        let a = block_on(&executor, || 0, Driver::attach(a, &executor.handle(), A)).unwrap();
        assert_eq!(a.info(), b.driver.info());
    }
    let report = b.run(b.driver.reservation_report()).unwrap();
    assert_eq!(report.registrants.len(), 1, "the port's reset was nobody else's");
}

#[test]
fn a_killed_shelf_is_an_error_and_no_hang() {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Role::start("shelf", directory.path());
    let a = Side::new(directory.path(), 0, A);
    a.write(1, 1).unwrap();
    shelf.kill();
    assert_eq!(a.write(1, 2), Err(DeviceError::Gone));
    assert!(a.driver.failed());
    assert!(matches!(
        VfioUserFunction::connect(&socket_path(directory.path(), DEVICE, 0)),
        Err(ConnectError::NoListener(_))
    ));
    // A new shelf takes the place of what the dead one left.
    let _shelf = Role::start("shelf", directory.path());
    let again = Side::new(directory.path(), 0, A);
    assert_eq!(again.read(1), Ok(0), "memory is gone with its process");
}

#[test]
fn a_shelf_that_dies_or_stops_under_load_ends_every_command() {
    for stopped in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Role::start("shelf", directory.path());
        let a = Side::new(directory.path(), 0, A);
        let segments = [a.memory.segment(0, 64 * 4096).unwrap()];
        let mut commands = std::collections::VecDeque::new();
        let mut done = 0;
        let mut shelf = Some(shelf);
        let mut still_there = None;
        let failed = loop {
            match a.driver.submit(Io::Write { lba: Lba(done % 1000), segments: &segments, fua: false }) {
                Ok(command) => commands.push_back(command),
                Err(SubmitError::Full) => {
                    let oldest = commands.pop_front().expect("the queue is full of them");
                    if let Err(error) = a.run(oldest) {
                        break error;
                    }
                    done += 1;
                }
                Err(error) => panic!("{error}"),
            }
            if done == 1000 {
                match shelf.take() {
                    Some(shelf) if stopped => {
                        shelf.stop();
                        still_there = Some(shelf);
                    }
                    Some(shelf) => shelf.kill(),
                    None => {}
                }
            }
        };
        assert_eq!((failed, still_there.is_some()), (DeviceError::Gone, stopped));
        for command in commands {
            assert_eq!(a.run(command), Err(DeviceError::Gone));
        }
        assert!(a.driver.failed());
    }
}

#[test]
fn a_stopped_shelf_does_not_hold_the_reactor() {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Role::start("shelf", directory.path());
    let a = Side::new(directory.path(), 0, A);
    let longest = Cell::new((BootClock.now(), Duration::ZERO));
    let turn = || {
        let (last, gap) = longest.get();
        let now = BootClock.now();
        longest.set((now, gap.max(now.since(last))));
        a.driver.poll()
    };
    a.write(1, 1).unwrap();
    shelf.stop();
    // Memory that comes late, a command that names it, the look at the registers, the end: none of it waits for the shelf.
    let late = Memory::shared("late", 4096, HugePages::No).unwrap();
    turn();
    a.driver.map(&late).unwrap();
    let segments = [late.segment(0, 4096).unwrap()];
    let command = a.driver.submit(Io::Read { lba: Lba(1), segments: &segments }).unwrap();
    assert_eq!(block_on(&a.executor, turn, command), Err(DeviceError::Gone));
    turn();
    assert!(a.driver.failed());
    // A question that the reactor waited for would be a second long; a lease has 600 ms (PROTOCOLS 4.1).
    let (_, gap) = longest.get();
    assert!(gap < Duration::from_millis(600), "the reactor stood still for {gap:?}");
}

#[test]
fn flushed_blocks_and_reservations_survive_the_shelf() {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Role::start("file shelf", directory.path());
    let (a, b) = (Side::new(directory.path(), 0, A), Side::new(directory.path(), 1, B));
    let key = |host: [u8; 16]| ReservationKey(u64::from(host[0]));
    for (side, host) in [(&a, A), (&b, B)] {
        side.run(side.driver.reserve(ReservationOp::Register { key: key(host) })).unwrap();
    }
    let rtype = ReservationType::WriteExclusive;
    a.run(a.driver.reserve(ReservationOp::Acquire { key: key(A), rtype })).unwrap();
    a.write(5, 55).unwrap();
    a.run(a.driver.submit(Io::Flush).unwrap()).unwrap();
    assert_eq!(b.write(5, 66), Err(DeviceError::ReservationConflict));
    shelf.kill();
    drop((a, b));
    let _shelf = Role::start("file shelf", directory.path());
    let (a, b) = (Side::new(directory.path(), 0, A), Side::new(directory.path(), 1, B));
    assert_eq!(b.read(5), Ok(55));
    assert_eq!(b.write(5, 66), Err(DeviceError::ReservationConflict));
    assert_eq!(a.write(5, 77), Ok(()));
    let report = b.run(b.driver.reservation_report()).unwrap();
    assert_eq!((report.rtype, report.persistent, report.registrants.len()), (Some(1), true, 2));
}

#[test]
fn an_idle_shelf_costs_nothing() {
    const SECONDS: u64 = 3;
    let directory = tempfile::tempdir().unwrap();
    let shelf = Role::start("shelf", directory.path());
    let a = Side::new(directory.path(), 0, A);
    a.write(1, 1).unwrap();
    let before = shelf.processor_time();
    assert_eq!(nix::poll::poll(&mut [], 1000 * u16::try_from(SECONDS).unwrap()), Ok(0));
    let used = shelf.processor_time() - before;
    assert!(used <= 2 * SECONDS, "{used} % of {SECONDS} s: more than 2 % (DESIGN 8)");
    assert_eq!(a.read(1), Ok(1));
}

#[test]
fn an_idle_shelf_sleeps_and_wakes() {
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    let a = Side::new(directory.path(), 0, A);
    let start = BootClock.now();
    for round in 0..20_u8 {
        // Long enough for the shelf to fall asleep, or not: it must not matter.
        a.run(a.executor.handle().sleep(Duration::from_millis(u64::from(round % 4))));
        a.write(u64::from(round), round).unwrap();
        assert_eq!(a.read(u64::from(round)), Ok(round));
    }
    // A shelf that does not ask for doorbells is woken by the driver's watch, half a second later each time.
    let took = BootClock.now().since(start);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_shelf_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let start = |directory: &Path, device: ShelfDevice| {
        let directory = directory.to_owned();
        let config = ShelfConfig { directory, devices: vec![device], max_spin: Duration::ZERO, core: None, seed: 1 };
        run_shelf(&config, |_| panic!("it must not start")).unwrap_err()
    };
    let device = |media| ShelfDevice {
        name: "other".to_owned(),
        uuid: [1; 16],
        blocks: BlockCount(16),
        media,
        cache_blocks: None,
        format: BlockFormat::Bare,
        latency: Latency::default(),
    };
    let _shelf = Role::start("file shelf", directory.path());
    let blocks = directory.path().join(format!("{DEVICE}.blocks"));
    let error = start(directory.path(), device(ShelfMedia::Memory));
    assert!(matches!(&error, ShelfError::InUse(_)) && error.to_string().contains("stop it first"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let error = start(elsewhere.path(), device(ShelfMedia::File(blocks)));
    assert!(error.to_string().contains("another process uses the file"), "{error}");
    let short = elsewhere.path().join("short");
    std::fs::write(&short, [0; 100]).unwrap();
    let error = start(elsewhere.path(), device(ShelfMedia::File(short)));
    assert!(error.to_string().contains("it has 100 bytes; a device keeps its size"), "{error}");
    let error = start(elsewhere.path(), ShelfDevice { name: "../x".to_owned(), ..device(ShelfMedia::Memory) });
    assert!(matches!(error, ShelfError::Name(_)), "{error}");
    let error = start(&elsewhere.path().join("none"), device(ShelfMedia::Memory));
    assert!(matches!(error, ShelfError::Socket { .. }), "{error}");
}

/// Tells the shelf what is to happen.
fn tell(directory: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(control_path(directory)).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn faults_come_through_the_control_socket() {
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    let a = Side::new(directory.path(), 0, A);
    a.write(5, 5).unwrap();
    for (line, answer) in [
        (
            "",
            "error: not understood
",
        ),
        (
            "disk7 bad 1",
            "error: no such device
",
        ),
        (
            "disk0 bad 99999",
            "error: no such block
",
        ),
        (
            "disk0 fatal 2",
            "error: no such port
",
        ),
        (
            "disk0 frobnicate",
            "error: not understood
",
        ),
        (
            "disk0 bad 5",
            "ok
",
        ),
    ] {
        assert_eq!(tell(directory.path(), line), answer, "{line:?}");
    }
    assert_eq!(a.read(5), Err(DeviceError::Media));
    assert_eq!((a.write(5, 6), a.read(5)), (Ok(()), Ok(6)));
    // Somebody who has not said his line yet holds up nobody, and may say it later.
    let mut slow = UnixStream::connect(control_path(directory.path())).unwrap();
    write!(slow, "disk0 ba").unwrap();
    assert_eq!((tell(directory.path(), "disk0 bad 77777"), a.read(5)), ("error: no such block\n".to_owned(), Ok(6)));
    writeln!(slow, "d 7").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert_eq!((answer.as_str(), a.read(7)), ("ok\n", Err(DeviceError::Media)));
    assert_eq!(
        tell(directory.path(), "disk0 lose 5"),
        "ok
"
    );
    assert_eq!((a.write(5, 7), a.read(5)), (Ok(()), Ok(6)));
    assert_eq!(
        tell(directory.path(), "disk0 fatal 0"),
        "ok
"
    );
    assert_eq!((a.write(5, 8), a.driver.resets()), (Err(DeviceError::Aborted), 1));
    assert_eq!((a.write(5, 8), a.read(5)), (Ok(()), Ok(8)));
    // Pulled out and plugged in again, it is attached again.
    assert_eq!(
        tell(directory.path(), "disk0 remove 0"),
        "ok
"
    );
    assert_eq!(a.write(5, 9), Err(DeviceError::Gone));
    assert_eq!(
        tell(directory.path(), "disk0 plug 0"),
        "ok
"
    );
    let a = Side::new(directory.path(), 0, A);
    assert_eq!(a.read(5), Ok(8));
    a.run(a.driver.submit(Io::Flush).unwrap()).unwrap();
    a.write(6, 1).unwrap();
    assert_eq!(
        tell(directory.path(), "disk0 power off"),
        "ok
"
    );
    assert_eq!(a.write(5, 9), Err(DeviceError::Gone));
    assert_eq!(
        tell(directory.path(), "disk0 power on"),
        "ok
"
    );
    let a = Side::new(directory.path(), 0, A);
    assert_eq!(a.read(5), Ok(8), "flushed");
    assert!(matches!(a.read(6), Ok(0 | 1)), "lost or not");
}

#[test]
fn a_reactor_sleeps_while_the_device_works() {
    const COMMANDS: u64 = 50;
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    assert_eq!(tell(directory.path(), "disk0 latency 2000 2000 2000"), "ok\n");
    let limits = Limits { tasks: 4, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let driver = attach(reactor.executor(), directory.path(), 0, A);
    let memory = Memory::shared("payload", 4096, HugePages::No).unwrap();
    driver.map(&memory).unwrap();
    reactor.add_source(driver.clone()).unwrap();
    let (stopper, counters) = (reactor.stopper(), reactor.counters());
    reactor.handle().spawn("reader", async move {
        let segments = [memory.segment(0, 4096).unwrap()];
        for lba in 0..COMMANDS {
            driver.submit(Io::Read { lba: Lba(lba), segments: &segments }).unwrap().await.unwrap();
        }
        stopper.stop();
    });
    let start = BootClock.now();
    reactor.run().unwrap();
    // Without the interrupt the driver's watch would wake it, half a second later each time.
    let took = BootClock.now().since(start);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(counters.values().sleeps >= COMMANDS, "{:?}", counters.values());
}
