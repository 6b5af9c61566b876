//! What the fake promises its users, and that it is as hostile as it says.

use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{Clock, virtual_time::VirtualTime};

use super::*;
use crate::device::{Device, DeviceError, Io, ReservationKey, ReservationOp, ReservationType, SubmitError};
use crate::testing::{HOST_A, HOST_B, byte_of, fill, info, medium, memory, run, segment, step, uniform};

const SEEDS: u64 = 50;
const KEY_A: ReservationKey = ReservationKey(0xa);
const KEY_B: ReservationKey = ReservationKey(0xb);
const WE: ReservationType = ReservationType::WriteExclusive;
const WE_AR: ReservationType = ReservationType::WriteExclusiveAllRegistrants;

struct Bench {
    time: VirtualTime,
    medium: FakeMedium,
    a: FakeDevice,
    b: FakeDevice,
    memory: Memory,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let time = VirtualTime::new(seed);
        let medium = medium(1, &time, seed);
        let (a, b, memory) = (medium.port(HOST_A), medium.port(HOST_B), memory(64));
        a.map(&memory).expect("map");
        b.map(&memory).expect("map");
        Self { time, medium, a, b, memory }
    }

    /// Both registered, All Registrants held.
    fn shared(seed: u64) -> Self {
        let bench = Self::new(seed);
        bench.reserve(&bench.a, ReservationOp::Register { key: KEY_A }).expect("register A");
        bench.reserve(&bench.b, ReservationOp::Register { key: KEY_B }).expect("register B");
        bench.reserve(&bench.a, ReservationOp::Acquire { key: KEY_A, rtype: WE_AR }).expect("acquire");
        bench
    }

    fn reserve(&self, port: &FakeDevice, op: ReservationOp) -> Result<(), DeviceError> {
        run(&self.time, port.reserve(op))
    }

    fn segment(&self, first: u64, blocks: u64) -> Segment {
        segment(&self.memory, first, blocks)
    }

    /// Submits a write of memory blocks 0.. and does not wait.
    fn start_write(&self, port: &FakeDevice, lba: u64, blocks: u64, byte: u8) -> FakeCompletion {
        fill(&self.memory, 0, blocks, byte);
        let segments = [self.segment(0, blocks)];
        port.submit(Io::Write { lba: Lba(lba), segments: &segments, fua: false }).expect("submit")
    }

    fn write(&self, port: &FakeDevice, lba: u64, blocks: u64, byte: u8) -> Result<(), DeviceError> {
        run(&self.time, self.start_write(port, lba, blocks, byte))
    }

    fn flush(&self) {
        run(&self.time, self.a.submit(Io::Flush).expect("submit")).expect("flush");
    }

    fn on_medium(&self, lba: u64) -> u8 {
        uniform(&self.medium.contents(Lba(lba)).expect("a good block"))
    }

    fn run_out(&self) {
        while step(&self.time) {}
    }
}

#[test]
fn bytes_come_back_through_any_port_and_any_segments() {
    for seed in 0..SEEDS {
        let bench = Bench::new(seed);
        for i in 0..4 {
            fill(&bench.memory, i, 1, u8::try_from(i).expect("small") + 1);
        }
        let scattered = [bench.segment(3, 1), bench.segment(0, 2)];
        run(&bench.time, bench.a.submit(Io::Write { lba: Lba(7), segments: &scattered, fua: false }).expect("submit"))
            .expect("write");
        let target = [bench.segment(10, 1), bench.segment(20, 3)];
        run(&bench.time, bench.b.submit(Io::Read { lba: Lba(7), segments: &target }).expect("submit")).expect("read");
        let read = [10, 20, 21, 22].map(|block| byte_of(&bench.memory, block));
        assert_eq!(read, [4, 1, 2, 0]);
        run(&bench.time, bench.a.submit(Io::WriteZeroes { lba: Lba(8), blocks: BlockCount(1) }).expect("submit"))
            .expect("zero");
        assert_eq!([7, 8, 9].map(|lba| bench.on_medium(lba)), [4, 0, 2]);
    }
}

#[test]
fn commands_that_do_not_fit_are_refused_before_anything_is_done() {
    let bench = Bench::new(1);
    let (good, foreign) = (bench.segment(0, 1), segment(&memory(1), 0, 1));
    let refused = |lba, segments: &[Segment]| {
        let read = bench.a.submit(Io::Read { lba: Lba(lba), segments }).err();
        let write = bench.a.submit(Io::Write { lba: Lba(lba), segments, fua: false }).err();
        assert_eq!((read, write), (Some(SubmitError::Invalid), Some(SubmitError::Invalid)));
    };
    refused(1024, &[good]);
    refused(1023, &[good, good]);
    refused(u64::MAX, &[good]);
    refused(0, &[]);
    refused(0, &[foreign]);
    refused(0, &[good; 33]);
    refused(0, &[Segment { offset: 512, ..good }]);
    refused(0, &[Segment { len: 512, ..good }]);
    refused(0, &[Segment { offset: 64 * 4096, ..good }]);
    let zeroes = |lba, blocks| bench.a.submit(Io::WriteZeroes { lba: Lba(lba), blocks: BlockCount(blocks) }).err();
    assert_eq!([zeroes(0, 0), zeroes(0, 1025), zeroes(1024, 1)], [Some(SubmitError::Invalid); 3]);
    assert_eq!(zeroes(1023, 1), None);
}

#[test]
fn a_full_queue_says_so_and_has_room_again_after_a_completion() {
    let bench = Bench::new(1);
    let mut writes: Vec<_> = (0..8).map(|lba| bench.start_write(&bench.a, lba, 1, 1)).collect();
    assert_eq!(bench.a.submit(Io::Flush).err(), Some(SubmitError::Full));
    bench.b.submit(Io::Flush).expect("the other port has its own queue");
    run(&bench.time, writes.remove(0)).expect("write");
    bench.a.submit(Io::Flush).expect("there is room");
}

#[test]
fn an_abandoned_command_still_happens() {
    let bench = Bench::new(3);
    drop(bench.start_write(&bench.a, 5, 3, 9));
    bench.run_out();
    assert_eq!([5, 6, 7].map(|lba| bench.on_medium(lba)), [9, 9, 9]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let bench = Bench::new(seed);
        let writes: Vec<_> =
            (0..4).map(|i| bench.start_write(&bench.a, i, 4, 1 + u8::try_from(i).expect("small"))).collect();
        let ends = writes.into_iter().map(|w| run(&bench.time, w).map(|()| bench.time.now()));
        (ends.collect::<Vec<_>>(), (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>())
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
fn overlapping_writes_mix_by_whole_blocks() {
    let mut mixed = false;
    for seed in 0..SEEDS {
        let bench = Bench::new(seed);
        fill(&bench.memory, 0, 8, 1);
        fill(&bench.memory, 8, 8, 2);
        let write = |first| {
            let segments = [bench.segment(first, 8)];
            bench.a.submit(Io::Write { lba: Lba(0), segments: &segments, fua: false }).expect("submit")
        };
        let (one, two) = (write(0), write(8));
        run(&bench.time, one).expect("write");
        run(&bench.time, two).expect("write");
        let blocks = (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        assert!(blocks.iter().all(|b| [1, 2].contains(b)));
        mixed |= blocks.contains(&1) && blocks.contains(&2);
    }
    assert!(mixed, "a fake that never mixes hides bugs");
}

#[test]
fn who_has_no_access_gets_a_conflict_and_changes_nothing() {
    let bench = Bench::shared(1);
    bench.write(&bench.a, 0, 4, 1).expect("A is registered");
    bench.write(&bench.b, 4, 4, 2).expect("B is registered");
    bench
        .reserve(&bench.b, ReservationOp::PreemptAndAbort { key: KEY_B, victim: ReservationKey(0), rtype: WE })
        .expect("preempt");
    assert_eq!(bench.write(&bench.a, 0, 4, 3), Err(DeviceError::ReservationConflict));
    let zero = bench.a.submit(Io::WriteZeroes { lba: Lba(0), blocks: BlockCount(4) }).expect("submit");
    assert_eq!(run(&bench.time, zero), Err(DeviceError::ReservationConflict));
    assert_eq!(run(&bench.time, bench.a.submit(Io::Flush).expect("submit")), Err(DeviceError::ReservationConflict));
    assert_eq!((0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>(), [1, 1, 1, 1, 2, 2, 2, 2]);
    let segments = [bench.segment(0, 1)];
    run(&bench.time, bench.a.submit(Io::Read { lba: Lba(0), segments: &segments }).expect("submit"))
        .expect("reads pass");
    let report = run(&bench.time, bench.a.reservation_report()).expect("report");
    assert_eq!((report.rtype, report.persistent, report.registrants.len()), (Some(1), true, 1));
}

/// The promise that takeover stands on.
#[test]
fn nothing_of_a_preempted_host_lands_after_preempt_and_abort() {
    let (mut landed_before, mut aborted, mut refused, mut late) = (0, 0, 0, 0);
    for seed in 0..10 * SEEDS {
        let bench = Bench::shared(seed);
        bench.medium.set_delay(Some(Delay { one_in: 2, by: Duration::from_secs(2) }));
        let writes: Vec<_> = (0..4).map(|i| bench.start_write(&bench.a, 8 * i, 8, 7)).collect();
        if seed % 2 == 0 {
            bench.a.kill();
        }
        let preempt = ReservationOp::PreemptAndAbort { key: KEY_B, victim: ReservationKey(0), rtype: WE };
        let before = bench.time.now();
        bench.reserve(&bench.b, preempt).expect("preempt");
        late += u32::from(bench.time.now().since(before) > Duration::from_secs(1));
        let picture = || (0..32).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        let then = picture();
        bench.run_out();
        assert_eq!(picture(), then, "seed {seed}: a write landed after it was fenced");
        for (i, write) in writes.into_iter().enumerate() {
            match run(&bench.time, write) {
                Ok(()) => {
                    landed_before += 1;
                    assert!(then[8 * i..8 * i + 8].iter().all(|b| *b == 7));
                }
                Err(DeviceError::ReservationConflict) => {
                    refused += 1;
                    assert!(then[8 * i..8 * i + 8].iter().all(|b| *b == 0), "a refused write did something");
                }
                Err(DeviceError::Aborted) => aborted += 1,
                Err(DeviceError::Gone) if seed % 2 == 0 => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(landed_before > 0 && aborted > 0 && refused > 0 && late > 0, "{landed_before} {aborted} {refused} {late}");
}

#[test]
fn a_second_preempt_waits_for_what_the_first_left_behind() {
    for seed in 0..10 * SEEDS {
        let bench = Bench::shared(seed);
        bench.medium.set_delay(Some(Delay { one_in: 1, by: Duration::from_secs(2) }));
        let _write = bench.start_write(&bench.a, 0, 16, 7);
        for _ in 0..8 {
            step(&bench.time);
        }
        // The first preempting director dies before it hears the outcome; its next life starts over.
        let first = ReservationOp::PreemptAndAbort { key: KEY_B, victim: ReservationKey(0), rtype: WE };
        let id = bench.medium.0.borrow_mut().reserve(bench.b.port, first).expect("reserve");
        while bench.medium.may_write(&HOST_A) {
            assert!(step(&bench.time));
        }
        bench.medium.0.borrow_mut().abandon(id);
        let b = bench.medium.port(HOST_B);
        let again = ReservationOp::PreemptAndAbort { key: KEY_B, victim: KEY_B, rtype: WE };
        bench.reserve(&b, again).expect("preempt");
        let then = (0..16).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        bench.run_out();
        assert_eq!((0..16).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>(), then);
    }
}

#[test]
fn without_preemption_the_writes_of_a_dead_director_may_land_late() {
    let mut late = false;
    for seed in 0..SEEDS {
        let bench = Bench::shared(seed);
        let _write = bench.start_write(&bench.a, 0, 8, 7);
        step(&bench.time);
        bench.a.kill();
        let then = (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        bench.run_out();
        late |= (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>() != then;
        assert_eq!(bench.a.submit(Io::Flush).err(), Some(SubmitError::Gone));
    }
    assert!(late);
}

#[test]
fn a_controller_reset_ends_what_its_host_had_outstanding() {
    for seed in 0..SEEDS {
        let bench = Bench::shared(seed);
        let write = bench.start_write(&bench.a, 0, 8, 7);
        step(&bench.time);
        let again = bench.medium.port(HOST_A);
        let then = (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        assert_eq!(run(&bench.time, write), Err(DeviceError::Aborted));
        bench.run_out();
        assert_eq!((0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>(), then);
        again.map(&bench.memory).expect("map");
        bench.write(&again, 0, 8, 8).expect("the registration outlives the controller");
    }
}

#[test]
fn a_removed_port_is_gone_and_touches_nothing_any_more() {
    let bench = Bench::shared(1);
    let write = bench.start_write(&bench.a, 0, 8, 7);
    let read = bench.a.submit(Io::Read { lba: Lba(0), segments: &[bench.segment(8, 8)] }).expect("submit");
    bench.a.remove();
    let then = (0..8).map(|block| byte_of(&bench.memory, 8 + block)).collect::<Vec<_>>();
    assert_eq!(run(&bench.time, write), Err(DeviceError::Gone));
    assert_eq!(run(&bench.time, read), Err(DeviceError::Gone));
    bench.run_out();
    assert_eq!((0..8).map(|block| byte_of(&bench.memory, 8 + block)).collect::<Vec<_>>(), then);
    assert_eq!(bench.a.map(&bench.memory), Err(SubmitError::Gone));
    assert_eq!(run(&bench.time, bench.a.reservation_report()), Err(DeviceError::Gone));
    bench.write(&bench.b, 0, 1, 2).expect("the other port lives");
    bench.medium.fail();
    assert_eq!(bench.b.submit(Io::Flush).err(), Some(SubmitError::Gone));
}

#[test]
fn bad_blocks_fail_alone() {
    let bench = Bench::new(1);
    bench.write(&bench.a, 0, 4, 1).expect("write");
    bench.medium.spoil(Lba(1), BadBlock::UntilWritten);
    bench.medium.spoil(Lba(2), BadBlock::Forever);
    let read = |lba| {
        run(&bench.time, bench.a.submit(Io::Read { lba: Lba(lba), segments: &[bench.segment(9, 1)] }).expect("submit"))
    };
    assert_eq!(
        [read(0), read(1), read(2), read(3)],
        [Ok(()), Err(DeviceError::Media), Err(DeviceError::Media), Ok(())]
    );
    assert_eq!(bench.write(&bench.a, 0, 4, 2), Err(DeviceError::Media));
    assert_eq!([read(1), read(2)], [Ok(()), Err(DeviceError::Media)]);
}

#[test]
fn power_loss_keeps_what_was_flushed_and_may_lose_the_rest_by_whole_blocks() {
    let (mut lost, mut kept, mut torn) = (false, false, false);
    for seed in 0..SEEDS {
        let bench = Bench::new(seed);
        bench.write(&bench.a, 0, 8, 1).expect("write");
        bench.flush();
        bench.write(&bench.a, 0, 4, 2).expect("write");
        fill(&bench.memory, 0, 2, 3);
        let fua =
            bench.a.submit(Io::Write { lba: Lba(6), segments: &[bench.segment(0, 2)], fua: true }).expect("submit");
        run(&bench.time, fua).expect("write");
        let open = bench.start_write(&bench.a, 20, 4, 4);
        bench.medium.power_loss();
        assert_eq!(run(&bench.time, open), Err(DeviceError::Aborted));
        let after = (0..8).map(|lba| bench.on_medium(lba)).collect::<Vec<_>>();
        assert_eq!(after[4..], [1, 1, 3, 3], "what was promised to be durable");
        assert!(after[..4].iter().all(|b| [1, 2].contains(b)));
        (lost, kept) = (lost | after[..4].contains(&1), kept | after[..4].contains(&2));
        torn |= after[..4].contains(&1) && after[..4].contains(&2);
        bench.write(&bench.a, 0, 1, 5).expect("it works again");
    }
    assert!(lost && kept && torn);
}

#[test]
fn without_a_volatile_cache_power_takes_nothing() {
    let time = VirtualTime::new(1);
    let medium = FakeMedium::new(DeviceInfo { volatile_cache: false, ..info(1) }, time.clone(), 1);
    let (port, memory) = (medium.port(HOST_A), memory(8));
    port.map(&memory).expect("map");
    fill(&memory, 0, 8, 1);
    run(
        &time,
        port.submit(Io::Write { lba: Lba(0), segments: &[segment(&memory, 0, 8)], fua: false }).expect("submit"),
    )
    .expect("write");
    medium.power_loss();
    assert!((0..8).all(|lba| medium.contents(Lba(lba)).map(|b| uniform(&b)) == Some(1)));
}

#[test]
fn reservations_persist_through_power_loss_unless_forgotten() {
    let bench = Bench::shared(1);
    bench.medium.power_loss();
    assert!(bench.medium.may_write(&HOST_A) && !bench.medium.may_write(&[1; 16]));
    bench.medium.forget_reservations();
    assert!(bench.medium.may_write(&[1; 16]));
}

#[test]
fn a_device_without_reservations_cannot_be_fenced() {
    let time = VirtualTime::new(1);
    let port = FakeMedium::new(DeviceInfo { reservations: false, ..info(1) }, time.clone(), 1).port(HOST_A);
    assert_eq!(run(&time, port.reserve(ReservationOp::Register { key: KEY_A })), Err(DeviceError::Rejected));
}
