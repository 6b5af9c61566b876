//! The driver against the emulated controller, in one thread and virtual time.

mod hostile;
mod leaving;
mod power;

use super::*;
use crate::device::{ReservationKey, ReservationType};
use crate::emulator::{
    BlockFault, BlockFormat, Delay, EmulatedFunction, Latency, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig,
};
use dyad_reactor::time::ManualClock;
use dyad_reactor::{Clock, Limits, SeededRng};
use std::pin::pin;

pub(super) const A: [u8; 16] = [0xa; 16];
pub(super) const B: [u8; 16] = [0xb; 16];
const KEY_A: ReservationKey = ReservationKey(0xa);
const KEY_B: ReservationKey = ReservationKey(0xb);
const WE: ReservationType = ReservationType::WriteExclusive;
const WE_AR: ReservationType = ReservationType::WriteExclusiveAllRegistrants;

type EmulatedDriver = Driver<EmulatedFunction>;

pub(super) struct Rig {
    pub(super) executor: Executor,
    pub(super) clock: Rc<ManualClock>,
    pub(super) subsystem: Rc<RefCell<Subsystem>>,
    drivers: RefCell<Vec<EmulatedDriver>>,
}

impl Rig {
    pub(super) fn new(format: BlockFormat) -> Self {
        Self::seeded(format, 1)
    }

    pub(super) fn seeded(format: BlockFormat, seed: u64) -> Self {
        let clock = Rc::new(ManualClock::default());
        let executor = Executor::new(Limits { tasks: 16, timers: 64 }, Rc::<ManualClock>::clone(&clock));
        let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(seed));
        let config = NamespaceConfig { uuid: [7; 16], blocks: BlockCount(4096), cache_blocks: Some(64), format };
        let media = MemoryMedia::new(usize::try_from(config.media_bytes()).unwrap());
        subsystem.add_namespace(config, Box::new(media));
        Self { executor, clock, subsystem: Rc::new(RefCell::new(subsystem)), drivers: RefCell::default() }
    }

    pub(super) fn function(&self, port: usize) -> EmulatedFunction {
        EmulatedFunction::new(&self.subsystem, port, Rc::<ManualClock>::clone(&self.clock))
    }

    pub(super) fn attach(&self, port: usize, host: [u8; 16]) -> EmulatedDriver {
        let handle = self.executor.handle();
        let driver = self.run(Driver::attach(self.function(port), &handle, host)).expect("attached");
        self.drivers.borrow_mut().push(driver.clone());
        driver
    }

    /// Everything that can happen now, once.
    pub(super) fn turn(&self) -> usize {
        let tasks = self.executor.run_until_idle(&mut Fifo);
        let polled: usize = self.drivers.borrow().iter().map(Driver::poll).sum();
        tasks + polled + self.subsystem.borrow_mut().step(self.clock.now())
    }

    /// Runs until the future is done, moving time whenever nothing happens now.
    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            if self.turn() == 0 && self.turn() == 0 {
                assert!(self.wait(), "the future waits for something that will never happen");
            }
        }
    }

    /// Goes to the next thing that happens by itself; false if there is none.
    pub(super) fn wait(&self) -> bool {
        let next = [self.subsystem.borrow().next_event(), self.executor.next_deadline()];
        let Some(next) = next.into_iter().flatten().min() else { return false };
        self.clock.set(next.max(self.clock.now()));
        self.executor.fire_timers();
        true
    }

    /// Nobody drives the ports any more.
    pub(super) fn detach_all(&self) {
        self.drivers.borrow_mut().clear();
    }

    /// Lets time go by.
    pub(super) fn pass(&self, time: Duration) {
        let handle = self.executor.handle();
        self.run(handle.sleep(time));
    }
}

fn rig() -> Rig {
    Rig::new(BlockFormat::Bare)
}

fn segment(memory: &Memory, first: u64, blocks: u32) -> Segment {
    memory.segment(first * 4096, blocks * 4096).expect("inside")
}

fn fill(memory: &Memory, block: u64, byte: u8) {
    memory.write(block * 4096, &[byte; 4096]).unwrap();
}

fn byte(memory: &Memory, block: u64) -> u8 {
    let mut data = [0; 4096];
    memory.read(block * 4096, &mut data).unwrap();
    assert!(data.iter().all(|b| *b == data[0]), "a torn block");
    data[0]
}

fn mapped(driver: &EmulatedDriver, blocks: usize) -> Memory {
    let memory = Memory::anonymous(blocks * 4096);
    driver.map(&memory).expect("mapped");
    memory
}

fn write(
    rig: &Rig,
    driver: &EmulatedDriver,
    memory: &Memory,
    lba: u64,
    byte: u8,
    fua: bool,
) -> Result<(), DeviceError> {
    fill(memory, 0, byte);
    let io = Io::Write { lba: Lba(lba), segments: &[segment(memory, 0, 1)], fua };
    rig.run(driver.submit(io).expect("taken"))
}

fn read(rig: &Rig, driver: &EmulatedDriver, memory: &Memory, lba: u64) -> Result<u8, DeviceError> {
    let io = Io::Read { lba: Lba(lba), segments: &[segment(memory, 1, 1)] };
    rig.run(driver.submit(io).expect("taken")).map(|()| byte(memory, 1))
}

fn reserve(rig: &Rig, driver: &EmulatedDriver, op: ReservationOp) -> Result<(), DeviceError> {
    rig.run(driver.reserve(op))
}

/// Both directors registered, the reservation as in `both`.
fn both(rig: &Rig) -> (EmulatedDriver, EmulatedDriver) {
    let (a, b) = (rig.attach(0, A), rig.attach(1, B));
    reserve(rig, &a, ReservationOp::Register { key: KEY_A }).unwrap();
    reserve(rig, &b, ReservationOp::Register { key: KEY_B }).unwrap();
    reserve(rig, &a, ReservationOp::Acquire { key: KEY_A, rtype: WE_AR }).unwrap();
    (a, b)
}

#[test]
fn what_a_device_says_about_itself() {
    let rig = rig();
    let (a, b) = (rig.attach(0, A), rig.attach(1, B));
    let info = a.info();
    assert_eq!(info, b.info(), "two ways to one medium");
    assert_eq!(info.id, DeviceId([7; 16]));
    assert_eq!((info.blocks, info.transfer_blocks_max), (BlockCount(4096), BlockCount(256)));
    assert!(info.volatile_cache && info.reservations);
    assert_ne!(a.controller().controller, b.controller().controller);
}

#[test]
fn blocks_come_back_through_either_port_whatever_the_shape_of_memory() {
    let rig = rig();
    let (a, b) = (rig.attach(0, A), rig.attach(1, B));
    let (from, to) = (mapped(&a, 256), mapped(&b, 256));
    let shapes: &[&[(u64, u32)]] = &[
        &[(0, 1)],
        &[(3, 2)],
        &[(9, 1), (4, 1)],
        &[(0, 256)],
        &[(200, 1), (100, 1), (50, 1)],
        &[(10, 100), (120, 100)],
        &[(10, 1), (20, 1), (30, 2), (40, 5), (50, 1)],
    ];
    for (round, shape) in shapes.iter().enumerate() {
        let segments: Vec<_> = shape.iter().map(|(first, len)| segment(&from, *first, *len)).collect();
        let blocks: Vec<u64> = shape.iter().flat_map(|(first, len)| *first..*first + u64::from(*len)).collect();
        for (index, block) in blocks.iter().enumerate() {
            fill(&from, *block, u8::try_from((index * 7 + round) % 256).unwrap());
        }
        let lba = Lba(round as u64 * 300);
        rig.run(a.submit(Io::Write { lba, segments: &segments, fua: false }).unwrap()).unwrap();
        let segments: Vec<_> = shape.iter().rev().map(|(first, len)| segment(&to, *first, *len)).collect();
        let total: u32 = shape.iter().map(|(_, len)| len).sum();
        rig.run(b.submit(Io::Read { lba, segments: &segments }).unwrap()).unwrap();
        let read: Vec<u64> = shape.iter().rev().flat_map(|(first, len)| *first..*first + u64::from(*len)).collect();
        for (index, block) in read.iter().enumerate() {
            assert_eq!(byte(&to, *block), u8::try_from((index * 7 + round) % 256).unwrap(), "shape {shape:?}");
        }
        assert_eq!(read.len(), total as usize);
    }
}

#[test]
fn zeroes_and_refusals() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 4);
    write(&rig, &a, &memory, 77, 9, false).unwrap();
    rig.run(a.submit(Io::WriteZeroes { lba: Lba(70), blocks: BlockCount(16) }).unwrap()).unwrap();
    assert_eq!(read(&rig, &a, &memory, 77), Ok(0));
    let foreign = Memory::anonymous(4096);
    let short = Segment { memory: memory.id(), offset: 0, len: 512 };
    for (io, why) in [
        (Io::Read { lba: Lba(4096), segments: &[segment(&memory, 0, 1)] }, SubmitError::Invalid),
        (Io::Read { lba: Lba(u64::MAX), segments: &[segment(&memory, 0, 1)] }, SubmitError::Invalid),
        (Io::Read { lba: Lba(0), segments: &[] }, SubmitError::Invalid),
        (Io::Read { lba: Lba(0), segments: &[segment(&foreign, 0, 1)] }, SubmitError::Invalid),
        (Io::Read { lba: Lba(0), segments: &[short] }, SubmitError::Invalid),
        (
            Io::Read { lba: Lba(0), segments: &[Segment { memory: memory.id(), offset: 8192, len: 3 * 4096 }] },
            SubmitError::Invalid,
        ),
        (Io::WriteZeroes { lba: Lba(0), blocks: BlockCount(0) }, SubmitError::Invalid),
    ] {
        assert_eq!(a.submit(io).unwrap_err(), why, "{io:?}");
    }
    assert_eq!(rig.turn(), 0, "nothing was started");
}

#[test]
fn blocks_are_compared_and_given_up() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 4);
    write(&rig, &a, &memory, 7, 9, false).unwrap();
    assert_eq!(rig.run(a.compare(Lba(7), &[segment(&memory, 0, 1)])), Ok(true));
    fill(&memory, 1, 8);
    assert_eq!(rig.run(a.compare(Lba(7), &[segment(&memory, 1, 1)])), Ok(false));
    assert_eq!(rig.run(a.compare(Lba(4096), &[segment(&memory, 1, 1)])), Err(DeviceError::Rejected));
    rig.run(a.deallocate(&[(Lba(0), BlockCount(2)), (Lba(7), BlockCount(1))])).unwrap();
    assert_eq!(read(&rig, &a, &memory, 7), Ok(0));
    assert_eq!(rig.run(a.deallocate(&[(Lba(4096), BlockCount(1))])), Err(DeviceError::Rejected));
    assert_eq!(rig.run(a.deallocate(&[])), Err(DeviceError::Rejected));
    assert_eq!(rig.run(a.deallocate(&[(Lba(0), BlockCount(1)); 256])), Ok(()));
    assert_eq!(rig.run(a.deallocate(&[(Lba(0), BlockCount(1)); 257])), Err(DeviceError::Rejected));
}

#[test]
fn a_controller_that_refuses_events_is_not_asked_again_and_again() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    let (asked, refused) = {
        let core = a.shared.core.borrow();
        let Listening::Asked(asked) = core.listening else { panic!("it listens") };
        (asked, dyad_nvme::CompletionEntry::new(0, asked, Status::ASYNC_EVENT_LIMIT_EXCEEDED))
    };
    a.shared.core.borrow().admin.forge(0, refused);
    rig.pass(Duration::from_secs(5));
    assert_eq!(a.shared.core.borrow().listening, Listening::Refused, "command {asked:?} was the last");
    assert_eq!(write(&rig, &a, &memory, 1, 1, false), Ok(()));
    assert_eq!(a.resets(), 0);
}

#[test]
fn an_admin_command_without_an_answer_leads_to_a_reset() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    // The completion is at a place where nobody looks.
    a.shared.core.borrow_mut().admin.lose_sight();
    assert_eq!(rig.run(a.smart_log()).unwrap_err(), AttachError::Silent(0x02));
    rig.pass(Duration::from_secs(1));
    assert_eq!(a.resets(), 1);
    assert_eq!(write(&rig, &a, &memory, 1, 1, false), Ok(()));
    assert!(rig.run(a.smart_log()).is_ok());
}

#[test]
fn a_full_queue_says_so_and_dropped_futures_leave_their_commands_running() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 1);
    fill(&memory, 0, 5);
    let write = |lba| a.submit(Io::Write { lba: Lba(lba), segments: &[segment(&memory, 0, 1)], fua: false });
    let futures: Vec<_> = (0..128).map(|lba| write(lba).expect("room")).collect();
    assert_eq!(write(128).unwrap_err(), SubmitError::Full);
    drop(futures);
    assert_eq!(write(128).unwrap_err(), SubmitError::Full, "the commands are still the device's");
    rig.pass(Duration::from_micros(1));
    assert_eq!(*rig.subsystem.borrow_mut().peek(NamespaceId(1), Lba(127)).unwrap(), [5; 4096]);
    rig.run(write(128).expect("room again")).unwrap();
}

#[test]
fn the_ladder_aborts_then_resets_then_gives_up() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    // First rung: the controller aborts what hangs.
    rig.subsystem.borrow_mut().hang(1, false);
    let start = rig.clock.now();
    assert_eq!(write(&rig, &a, &memory, 1, 1, false), Err(DeviceError::Aborted));
    assert!(rig.clock.now().since(start) >= Duration::from_secs(4));
    assert_eq!(a.resets(), 0);
    // Second rung: it does not find the command, and is reset.
    rig.subsystem.borrow_mut().hang(1, true);
    assert_eq!(write(&rig, &a, &memory, 1, 2, false), Err(DeviceError::Aborted));
    assert_eq!(a.resets(), 1);
    assert_eq!(write(&rig, &a, &memory, 1, 3, false), Ok(()));
    assert_eq!(read(&rig, &a, &memory, 1), Ok(3));
    // A fatal controller needs no time-out.
    rig.subsystem.borrow_mut().fail(0);
    let start = rig.clock.now();
    assert_eq!(write(&rig, &a, &memory, 1, 4, false), Err(DeviceError::Aborted));
    assert!(rig.clock.now().since(start) < Duration::from_secs(2));
    assert_eq!(a.resets(), 2);
    // Pulled out.
    rig.subsystem.borrow_mut().remove(0);
    assert_eq!(write(&rig, &a, &memory, 1, 5, false), Err(DeviceError::Gone));
    assert!(a.failed());
    assert_eq!(a.submit(Io::Flush).unwrap_err(), SubmitError::Gone);
    // Plugged in again it is attached again.
    rig.subsystem.borrow_mut().plug_in(0);
    let again = rig.attach(0, A);
    again.map(&memory).unwrap();
    assert_eq!(read(&rig, &again, &memory, 1), Ok(3));
}

#[test]
fn submissions_during_a_reset_are_done_after_it() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    rig.subsystem.borrow_mut().fail(0);
    let failing = a.submit(Io::Flush).unwrap();
    while a.resets() == 0 {
        rig.pass(Duration::from_millis(10));
    }
    fill(&memory, 0, 8);
    let during = a.submit(Io::Write { lba: Lba(5), segments: &[segment(&memory, 0, 1)], fua: false }).unwrap();
    let during = rig.run(during);
    assert!(matches!(during, Ok(()) | Err(DeviceError::Aborted)), "{during:?}");
    assert_eq!(rig.run(failing), Err(DeviceError::Aborted));
}

#[test]
fn a_reset_sets_the_host_identifier_again_and_registers_nothing() {
    let rig = rig();
    let (a, b) = both(&rig);
    let memory = mapped(&a, 2);
    let other = mapped(&b, 2);
    rig.subsystem.borrow_mut().fail(0);
    let _ = write(&rig, &a, &memory, 1, 1, false);
    assert_eq!(a.resets(), 1);
    assert_eq!(write(&rig, &a, &memory, 1, 2, false), Ok(()), "still registered, because it is the same host");
    // Preempted while it is being reset: fenced, and stays so.
    rig.subsystem.borrow_mut().fail(0);
    reserve(&rig, &b, ReservationOp::PreemptAndAbort { key: KEY_B, victim: ReservationKey(0), rtype: WE }).unwrap();
    let _ = write(&rig, &a, &memory, 1, 3, false);
    assert_eq!(a.resets(), 2);
    assert_eq!(write(&rig, &a, &memory, 1, 4, false), Err(DeviceError::ReservationConflict));
    assert_eq!(read(&rig, &b, &other, 1), Ok(2));
    let report = rig.run(b.reservation_report()).unwrap();
    assert_eq!((report.rtype, report.persistent), (Some(1), true));
    let registrants: Vec<_> = report.registrants.iter().map(|r| (r.host, r.key, r.holder)).collect();
    assert_eq!(registrants, [(B, KEY_B, true)]);
}

/// One delayed write of A is fetched; B preempts; what does the media hold afterwards?
fn late_write(abort: bool) -> (u8, Result<(), DeviceError>) {
    let rig = rig();
    let (a, b) = both(&rig);
    let memory = mapped(&a, 2);
    rig.subsystem.borrow_mut().set_delay(Some(Delay { one_in: 1, by: Duration::from_secs(1) }));
    fill(&memory, 0, 0xaa);
    let late = a.submit(Io::Write { lba: Lba(3), segments: &[segment(&memory, 0, 1)], fua: false }).unwrap();
    rig.pass(Duration::from_millis(1));
    rig.subsystem.borrow_mut().set_delay(None);
    if abort {
        reserve(&rig, &b, ReservationOp::PreemptAndAbort { key: KEY_B, victim: ReservationKey(0), rtype: WE }).unwrap();
    } else {
        // The same without "and Abort", which a director never uses.
        let acquire =
            SubmissionEntry::reservation_acquire(NamespaceId(1), dyad_nvme::reservation::AcquireAction::Preempt, 1);
        let keys = dyad_nvme::reservation::AcquireData { current: KEY_B.0, preempt: 0 }.to_bytes();
        let deadline = rig.clock.now() + Duration::from_secs(1);
        let entry = rig.run(b.shared.exchange(slow::Which::Io, acquire, &keys, &mut [], deadline)).unwrap();
        assert!(entry.status().is_success());
    }
    let other = mapped(&b, 2);
    write(&rig, &b, &other, 3, 0xbb, false).unwrap();
    let outcome = rig.run(late);
    rig.pass(Duration::from_secs(2));
    (read(&rig, &b, &other, 3).unwrap(), outcome)
}

#[test]
fn preempt_and_abort_stops_fetched_writes_and_preempt_alone_does_not() {
    assert_eq!(late_write(true), (0xbb, Err(DeviceError::Aborted)));
    assert_eq!(late_write(false), (0xaa, Ok(())));
}

#[test]
fn media_errors_and_lost_writes() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    let inject = |lba, fault| assert!(rig.subsystem.borrow_mut().inject(NamespaceId(1), Lba(lba), fault));
    write(&rig, &a, &memory, 10, 1, false).unwrap();
    inject(10, BlockFault::Bad(crate::emulator::BadBlock::UntilWritten));
    assert_eq!(read(&rig, &a, &memory, 10), Err(DeviceError::Media));
    assert_eq!(write(&rig, &a, &memory, 10, 2, false), Ok(()));
    assert_eq!(read(&rig, &a, &memory, 10), Ok(2));
    inject(10, BlockFault::LoseNextWrite);
    assert_eq!(write(&rig, &a, &memory, 10, 3, false), Ok(()));
    assert_eq!(read(&rig, &a, &memory, 10), Ok(2), "lost, and nobody was told");
    inject(10, BlockFault::MisdirectNextWrite(Lba(11)));
    assert_eq!(write(&rig, &a, &memory, 10, 4, false), Ok(()));
    assert_eq!((read(&rig, &a, &memory, 10), read(&rig, &a, &memory, 11)), (Ok(2), Ok(4)));
    let smart = rig.run(a.smart_log()).unwrap();
    assert_eq!((smart.media_errors, smart.error_entries), (1, 1));
    assert_eq!((smart.host_reads, smart.host_writes), (4, 4), "one of the reads failed");
    assert_eq!((smart.data_units_read, smart.data_units_written), (1, 1), "32 KiB are not yet 512 kB");
    let errors = rig.run(a.error_log()).unwrap();
    assert_eq!((errors[0].status.code(), errors[0].lba), (Status::UNRECOVERED_READ, Lba(10)));
}

#[test]
fn protection_information_finds_corruption() {
    let rig = Rig::new(BlockFormat::Protected);
    let a = rig.attach(0, A);
    let memory = mapped(&a, 2);
    assert_eq!(read(&rig, &a, &memory, 9), Ok(0), "never written is never wrong");
    write(&rig, &a, &memory, 9, 7, false).unwrap();
    assert_eq!(read(&rig, &a, &memory, 9), Ok(7));
    assert!(rig.subsystem.borrow_mut().inject(NamespaceId(1), Lba(9), BlockFault::Corrupt));
    assert_eq!(read(&rig, &a, &memory, 9), Err(DeviceError::Media));
    // A misdirected write shows by its reference tag.
    assert!(rig.subsystem.borrow_mut().inject(NamespaceId(1), Lba(20), BlockFault::MisdirectNextWrite(Lba(21))));
    write(&rig, &a, &memory, 20, 1, false).unwrap();
    assert_eq!(read(&rig, &a, &memory, 21), Err(DeviceError::Media));
    // Formatted back, blocks are bare and zero.
    rig.run(a.format(0, false)).unwrap();
    drop(a);
    rig.detach_all();
    let a = rig.attach(0, A);
    a.map(&memory).unwrap();
    assert_eq!(read(&rig, &a, &memory, 9), Ok(0));
}

#[test]
fn a_format_through_one_port_is_heard_at_the_other() {
    let rig = rig();
    let (a, b) = (rig.attach(0, A), rig.attach(1, B));
    rig.run(a.format(0, false)).unwrap();
    assert_eq!(rig.run(b.next_event()), AsyncEvent::NAMESPACE_CHANGED);
    rig.pass(Duration::from_secs(1));
    rig.run(a.format(0, false)).unwrap();
    assert_eq!(
        rig.run(b.next_event()),
        AsyncEvent::NAMESPACE_CHANGED,
        "the page was read, so the event was armed again"
    );
}

#[test]
fn latency_and_bandwidth_are_as_set() {
    let rig = rig();
    let a = rig.attach(0, A);
    let memory = mapped(&a, 64);
    rig.subsystem.borrow_mut().set_latency(Latency {
        read: Duration::from_micros(80),
        write: Duration::from_micros(20),
        bytes_per_s: Some(1 << 30),
        ..Latency::default()
    });
    let start = rig.clock.now();
    read(&rig, &a, &memory, 0).unwrap();
    assert_eq!(rig.clock.now().since(start), Duration::from_micros(80));
    let start = rig.clock.now();
    let io = Io::Write { lba: Lba(0), segments: &[segment(&memory, 0, 64)], fua: false };
    let commands: Vec<_> = (0..16).map(|_| a.submit(io).unwrap()).collect();
    for command in commands {
        rig.run(command).unwrap();
    }
    // 4 MiB at 1 GiB/s.
    let took = rig.clock.now().since(start);
    assert!((Duration::from_micros(3900)..Duration::from_micros(4000)).contains(&took), "{took:?}");
}
