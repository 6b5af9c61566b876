//! RAID 1 on the fake device: balance, failures of legs, and what a success promises.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{Executor, Handle, Limits, SeededRng, Shuffled, VirtualTime};

use super::*;
use crate::device::{Device, DeviceId, DeviceInfo, ReservationKey, ReservationOp, ReservationType};
use crate::fake::{BadBlock, Delay, FakeDevice, FakeMedium};
use crate::testing::{HOST_A, HOST_B, byte_of, fill, info, medium, memory, segment, uniform};

const SEEDS: u64 = 50;

struct Bench {
    time: VirtualTime,
    executor: Executor,
    order: RefCell<Shuffled<SeededRng>>,
    media: Vec<FakeMedium>,
    ports: Vec<FakeDevice>,
    memory: Memory,
    group: Raid1<FakeDevice>,
}

impl Bench {
    fn new(seed: u64, legs: u8) -> Self {
        let time = VirtualTime::new(seed);
        let executor = Executor::new(Limits { tasks: 64, timers: 64 }, Rc::new(time.clone()));
        let media: Vec<_> = (1..=legs).map(|name| medium(name, &time, seed)).collect();
        let ports: Vec<_> = media.iter().map(|m| m.port(HOST_A)).collect();
        let memory = memory(64);
        let group = Raid1::new(executor.handle(), ports.clone(), &[]).expect("a group");
        group.map(&memory).expect("map");
        let order = RefCell::new(Shuffled(SeededRng::new(seed)));
        Self { time, executor, order, media, ports, memory, group }
    }

    fn handle(&self) -> Handle {
        self.executor.handle()
    }

    /// Runs until nothing can happen before something is done from outside.
    fn run(&self) {
        loop {
            self.executor.run_until_idle(&mut *self.order.borrow_mut());
            let next = [self.time.next_event(), self.executor.next_deadline()].into_iter().flatten().min();
            let Some(next) = next else { return };
            self.time.advance_to(next.max(dyad_reactor::Clock::now(&self.time)));
            self.time.run_due();
            self.executor.fire_timers();
        }
    }

    /// Starts a task whose result appears in the cell.
    fn start<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
        let result = Rc::new(Cell::new(None));
        let to = Rc::clone(&result);
        self.handle().spawn("test", async move { to.set(Some(future.await)) });
        result
    }

    fn finish<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = self.start(future);
        self.run();
        result.take().expect("the command never ends")
    }

    fn segment(&self, first: u64, blocks: u64) -> Segment {
        segment(&self.memory, first, blocks)
    }

    fn start_write(&self, lba: u64, blocks: u64, byte: u8) -> Rc<Cell<Option<Result<(), GroupError>>>> {
        fill(&self.memory, 0, blocks, byte);
        let (group, segments) = (self.group.clone(), [self.segment(0, blocks)]);
        self.start(async move { group.write(Lba(lba), &segments, false).await })
    }

    fn write(&self, lba: u64, blocks: u64, byte: u8) -> Result<(), GroupError> {
        let result = self.start_write(lba, blocks, byte);
        self.run();
        result.take().expect("the write never ends")
    }

    /// What a read finds.
    fn read(&self, lba: u64) -> Result<u8, GroupError> {
        let (group, segments) = (self.group.clone(), [self.segment(40, 1)]);
        fill(&self.memory, 40, 1, 0xee);
        self.finish(async move { group.read(Lba(lba), &segments).await })?;
        Ok(byte_of(&self.memory, 40))
    }

    fn flush(&self) -> Result<(), GroupError> {
        let group = self.group.clone();
        self.finish(async move { group.flush().await })
    }

    fn on_leg(&self, leg: usize, lba: u64) -> u8 {
        uniform(&self.media[leg].contents(Lba(lba)).expect("a good block"))
    }

    fn failing(&self) -> Vec<DeviceId> {
        self.group.failing().collect()
    }

    /// The service that puts failures on record, as a director has it.
    fn keep_record(&self) -> Rc<RefCell<Vec<DeviceId>>> {
        let record = Rc::new(RefCell::new(Vec::new()));
        let (group, to, handle) = (self.group.clone(), Rc::clone(&record), self.handle());
        self.handle().spawn("record", async move {
            loop {
                let seen = group.changes().generation();
                while let Some(failed) = { group.failing().next() } {
                    handle.sleep(Duration::from_millis(3)).await;
                    to.borrow_mut().push(failed);
                    group.recorded(failed);
                }
                group.changes().changed_since(seen).await;
            }
        });
        record
    }
}

#[test]
fn a_write_is_on_all_legs_and_reads_come_from_all() {
    for legs in 1..=4 {
        let bench = Bench::new(u64::from(legs), legs);
        assert_eq!(bench.write(5, 3, 9), Ok(()));
        assert!((0..usize::from(legs)).all(|leg| [5, 6, 7].map(|lba| bench.on_leg(leg, lba)) == [9, 9, 9]));
        assert_eq!(bench.group.state(), GroupState::Optimal);
        // Each leg has another byte by now: reads show which leg they came from.
        for (leg, port) in bench.ports.iter().enumerate() {
            fill(&bench.memory, 50, 1, u8::try_from(leg).expect("small"));
            let segments = [bench.segment(50, 1)];
            let write = crate::device::Io::Write { lba: Lba(5), segments: &segments, fua: true };
            let completion = port.submit(write).expect("submit");
            bench.finish(completion).expect("write");
        }
        let mut seen: Vec<u8> = (0..8).map(|_| bench.read(5).expect("read")).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), usize::from(legs), "the turn goes around");
    }
}

#[test]
fn commands_that_do_not_fit_are_refused() {
    let bench = Bench::new(1, 2);
    let refused = |lba, blocks| {
        let (group, segments) = (bench.group.clone(), [segment(&bench.memory, 0, blocks)]);
        bench.finish(async move { group.write(Lba(lba), &segments, false).await })
    };
    assert_eq!(refused(1024, 1), Err(GroupError::Invalid));
    assert_eq!(refused(1000, 25), Err(GroupError::Invalid));
    assert_eq!(refused(u64::MAX, 1), Err(GroupError::Invalid));
    assert_eq!(refused(0, 33), Err(GroupError::Invalid));
    assert_eq!(refused(0, 32), Ok(()));
    let group = bench.group.clone();
    assert_eq!(bench.finish(async move { group.read(Lba(0), &[]).await }), Err(GroupError::Invalid));
    assert_eq!(bench.group.state(), GroupState::Optimal);
}

#[test]
fn a_group_is_assembled_from_different_legs_that_are_not_out() {
    let bench = Bench::new(1, 3);
    let new = |ports: Vec<FakeDevice>, out: &[DeviceId]| Raid1::new(bench.handle(), ports, out);
    let [a, b, c] = [0, 1, 2].map(|i| bench.ports[i].clone());
    assert_eq!(new(vec![], &[]).err(), Some(NewGroupError::NoLegs));
    assert_eq!(new(vec![a.clone()], &[info(1).id]).err(), Some(NewGroupError::NoLegs));
    assert_eq!(new(vec![a.clone(), b.clone(), a.clone()], &[]).err(), Some(NewGroupError::SameDevice(info(1).id)));
    assert_eq!(new(vec![a.clone(); 5], &[]).err(), Some(NewGroupError::TooManyLegs));
    let smaller = DeviceInfo { blocks: BlockCount(100), transfer_blocks_max: BlockCount(8), ..info(9) };
    let small = FakeMedium::new(smaller, bench.time.clone(), 1).port(HOST_A);
    let group = new(vec![a.clone(), small], &[]).expect("a group");
    assert_eq!((group.blocks(), group.transfer_blocks_max()), (BlockCount(100), BlockCount(8)));
    // One that is out is neither read nor written, whether or not its device is there.
    let group = new(vec![a, b, c], &[info(2).id, info(8).id]).expect("a group");
    assert_eq!(group.state(), GroupState::Degraded);
    fill(&bench.memory, 0, 1, 3);
    let segments = [bench.segment(0, 1)];
    bench.finish(async move { group.write(Lba(0), &segments, true).await }).expect("write");
    assert_eq!([0, 1, 2].map(|leg| bench.on_leg(leg, 0)), [3, 0, 3]);
}

#[test]
fn a_media_error_is_read_from_another_leg_and_counted() {
    let bench = Bench::new(1, 2);
    bench.write(0, 2, 7).expect("write");
    bench.media[0].spoil(Lba(0), BadBlock::UntilWritten);
    for _ in 0..4 {
        assert_eq!(bench.read(0), Ok(7));
    }
    assert_eq!(bench.group.counters().read_media_errors, 2, "half of the reads went there first");
    assert_eq!(bench.group.state(), GroupState::Optimal);
    bench.media[1].spoil(Lba(0), BadBlock::UntilWritten);
    assert_eq!((bench.read(0), bench.read(1)), (Err(GroupError::Media), Ok(7)));
    bench.write(0, 1, 8).expect("a write mends it");
    assert_eq!((bench.read(0), bench.read(0)), (Ok(8), Ok(8)));
}

#[test]
fn a_lost_leg_is_put_on_record_before_a_write_that_missed_it_succeeds() {
    for seed in 0..SEEDS {
        let bench = Bench::new(seed, 2);
        bench.write(0, 8, 1).expect("write");
        let open = bench.start_write(0, 8, 2);
        bench.executor.run_until_idle(&mut *bench.order.borrow_mut());
        bench.ports[0].remove();
        let record = bench.keep_record();
        let (checked, group) = (Rc::clone(&record), bench.group.clone());
        let segments = [bench.segment(0, 8)];
        let again = bench.start(async move {
            group.write(Lba(0), &segments, true).await.expect("the other leg has it");
            checked.borrow().clone()
        });
        bench.run();
        assert_eq!(open.take(), Some(Ok(())));
        assert_eq!(again.take(), Some(vec![info(1).id]), "it was on record when the write succeeded");
        assert_eq!((bench.group.state(), bench.failing()), (GroupState::Degraded, vec![]));
        assert_eq!((bench.read(0), bench.read(7)), (Ok(2), Ok(2)));
        assert_eq!((bench.write(0, 8, 3), bench.flush(), bench.read(0)), (Ok(()), Ok(()), Ok(3)));
        assert_eq!(bench.group.counters().legs_failed, 1);
    }
}

/// The partner went on without a leg while it was the home; this director's group has not noticed.
#[test]
fn a_leg_that_others_put_on_record_is_not_used_any_more() {
    let bench = Bench::new(1, 2);
    bench.write(0, 1, 1).expect("write");
    bench.group.recorded(info(1).id);
    assert_eq!(bench.write(0, 1, 2), Ok(()));
    assert!((0..4).all(|_| bench.read(0) == Ok(2)), "the other one has old blocks");
    assert_eq!(bench.group.state(), GroupState::Degraded);
    bench.group.recorded(info(2).id);
    assert_eq!((bench.group.state(), bench.read(0)), (GroupState::Lost, Err(GroupError::Lost)));
}

#[test]
fn without_a_record_writes_fail_and_reads_go_on() {
    let bench = Bench::new(1, 2);
    bench.write(0, 1, 1).expect("write");
    bench.ports[1].remove();
    assert_eq!(bench.write(0, 1, 2), Err(GroupError::Unrecorded));
    assert_eq!((bench.failing(), bench.group.state()), (vec![info(2).id], GroupState::Degraded));
    assert_eq!((bench.flush(), bench.read(0)), (Err(GroupError::Unrecorded), Ok(2)));
    bench.group.recorded(info(2).id);
    assert_eq!((bench.write(0, 1, 3), bench.read(0)), (Ok(()), Ok(3)));
}

#[test]
fn a_leg_that_cannot_write_a_block_fails() {
    let bench = Bench::new(1, 2);
    bench.media[0].spoil(Lba(3), BadBlock::Forever);
    let record = bench.keep_record();
    assert_eq!(bench.write(0, 8, 5), Ok(()));
    assert_eq!(*record.borrow(), [info(1).id]);
    assert!((0..8).all(|lba| bench.read(lba) == Ok(5)));
    // The last one stays, whatever it does: other blocks are good.
    bench.media[1].spoil(Lba(4), BadBlock::Forever);
    assert_eq!((bench.write(0, 8, 6), bench.read(4)), (Err(GroupError::Media), Err(GroupError::Media)));
    assert_eq!((bench.group.state(), bench.write(5, 1, 6)), (GroupState::Degraded, Ok(())));
}

#[test]
fn a_group_without_legs_is_lost_and_judges_nobody() {
    for seed in 0..SEEDS {
        let bench = Bench::new(seed, 2);
        bench.write(0, 1, 1).expect("write");
        let open = bench.start_write(0, 8, 2);
        bench.executor.run_until_idle(&mut *bench.order.borrow_mut());
        bench.ports.iter().for_each(FakeDevice::remove);
        bench.run();
        assert_eq!(open.take(), Some(Err(GroupError::Lost)));
        assert_eq!((bench.group.state(), bench.failing()), (GroupState::Lost, vec![]));
        assert_eq!(
            (bench.read(0), bench.write(0, 1, 1), bench.flush()),
            (Err(GroupError::Lost), Err(GroupError::Lost), Err(GroupError::Lost))
        );
    }
}

#[test]
fn a_conflict_on_any_leg_means_fenced() {
    for (seed, fenced) in (0..SEEDS).zip([0, 1].into_iter().cycle()) {
        let bench = Bench::new(seed, 2);
        let open = bench.start_write(0, 8, 1);
        let (key, rtype) = (ReservationKey(0xb), ReservationType::WriteExclusive);
        let b = bench.media[fenced].port(HOST_B);
        bench.start(async move {
            b.reserve(ReservationOp::Register { key }).await.expect("register");
            b.reserve(ReservationOp::Acquire { key, rtype }).await.expect("acquire");
        });
        bench.run();
        assert!(matches!(open.take(), Some(Ok(()) | Err(GroupError::Fenced))));
        assert_eq!((bench.write(0, 8, 2), bench.flush()), (Err(GroupError::Fenced), Err(GroupError::Fenced)));
        assert_eq!(bench.read(0).map(drop), Ok(()), "reads pass these types");
        assert_eq!(bench.group.state(), GroupState::Optimal, "the legs are not to blame");
    }
}

#[test]
fn aborted_commands_are_tried_again() {
    let bench = Bench::new(1, 2);
    let open = bench.start_write(0, 8, 4);
    bench.executor.run_until_idle(&mut *bench.order.borrow_mut());
    bench.media[0].power_loss();
    bench.run();
    assert_eq!((open.take(), bench.group.counters().aborted), (Some(Ok(())), 1));
    assert!((0..8).all(|lba| bench.on_leg(0, lba) == 4));
    assert_eq!(bench.group.state(), GroupState::Optimal);
}

#[test]
fn more_commands_than_the_queue_holds_wait_their_turn() {
    for seed in 0..SEEDS {
        let bench = Bench::new(seed, 2);
        // Somebody's abandoned commands hold entries that the group does not know of.
        for lba in 100..105 {
            let segments = [bench.segment(50, 1)];
            drop(bench.ports[0].submit(crate::device::Io::Read { lba: Lba(lba), segments: &segments }));
        }
        let writes: Vec<_> = (0..40).map(|i| bench.start_write(i, 1, 1)).collect();
        bench.run();
        assert!(writes.iter().all(|w| w.take() == Some(Ok(()))));
        assert!((0..40).all(|lba| bench.on_leg(0, lba) == 1 && bench.on_leg(1, lba) == 1));
    }
}

#[test]
fn nothing_is_outstanding_when_a_command_ends() {
    for seed in 0..SEEDS {
        let bench = Bench::new(seed, 2);
        bench.media[1].set_delay(Some(Delay { one_in: 1, by: Duration::from_secs(1) }));
        bench.media[0].spoil(Lba(0), BadBlock::Forever);
        bench.media[1].spoil(Lba(0), BadBlock::Forever);
        let (group, segments, memory) = (bench.group.clone(), [bench.segment(0, 8)], bench.memory.clone());
        fill(&memory, 0, 8, 1);
        let failed = bench.finish(async move {
            let failed = group.write(Lba(0), &segments, false).await;
            fill(&memory, 0, 8, 2);
            failed
        });
        assert!(failed.is_err());
        assert!(
            (1..8).all(|lba| [0, 1].into_iter().all(|leg| bench.on_leg(leg, lba) == 1)),
            "it read memory that was free"
        );
    }
}

#[test]
fn futures_are_small_enough_for_lanes() {
    let bench = Bench::new(1, 2);
    let segments = [bench.segment(0, 1)];
    let sizes = (
        size_of_val(&bench.group.read(Lba(0), &segments)),
        size_of_val(&bench.group.write(Lba(0), &segments, true)),
        size_of_val(&bench.group.flush()),
    );
    println!("read, write, flush: {sizes:?} bytes");
    assert!(sizes.0 <= 512 && sizes.1 <= 1536 && sizes.2 <= 1536, "{sizes:?}");
}
