//! Fencing on the fake device: each goal, from every state that a crash or a rival can leave.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::types::Lba;
use dyad_reactor::virtual_time::VirtualTime;
use dyad_reactor::{Rng, SeededRng};

use super::*;
use crate::device::{DeviceInfo, Io};
use crate::fake::{Delay, FakeCompletion, FakeDevice, FakeMedium, Latency};
use crate::testing::{HOST_A, HOST_B, fill, info, medium, memory, run, segment, step, uniform};

const A: DirectorId = DirectorId(1);
const B: DirectorId = DirectorId(2);

fn key(director: DirectorId, epoch: u64) -> FenceKey {
    FenceKey { epoch: Epoch::new(epoch).expect("a small epoch"), director }
}

const fn host(director: DirectorId) -> [u8; 16] {
    if director.0 == A.0 { HOST_A } else { HOST_B }
}

/// Two namespaces of a pair.
struct Pair {
    time: VirtualTime,
    media: Vec<FakeMedium>,
    memory: Memory,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let time = VirtualTime::new(seed);
        let media = vec![medium(1, &time, seed), medium(2, &time, seed)];
        let memory = memory(8);
        fill(&memory, 0, 8, 7);
        Self { time, media, memory }
    }

    /// A director comes up: its controllers are reset.
    fn boot(&self, director: DirectorId) -> Vec<FakeDevice> {
        let ports: Vec<_> = self.media.iter().map(|m| m.port(host(director))).collect();
        ports.iter().for_each(|p| p.map(&self.memory).expect("map"));
        ports
    }

    /// Both directors in `both` with epoch 1.
    fn both(seed: u64) -> (Self, Vec<FakeDevice>, Vec<FakeDevice>) {
        let pair = Self::new(seed);
        let (a, b) = (pair.boot(A), pair.boot(B));
        assert_eq!(run(&pair.time, join_both(&a, key(A, 1))), Ok(()));
        assert_eq!(run(&pair.time, join_both(&b, key(B, 1))), Ok(()));
        (pair, a, b)
    }

    fn writers(&self) -> Vec<[bool; 2]> {
        self.media.iter().map(|m| [m.may_write(&HOST_A), m.may_write(&HOST_B)]).collect()
    }

    fn write(&self, port: &FakeDevice) -> FakeCompletion {
        let segments = [segment(&self.memory, 0, 8)];
        port.submit(Io::Write { lba: Lba(0), segments: &segments, fua: false }).expect("submit")
    }

    fn picture(&self) -> Vec<u8> {
        let block = |m: &FakeMedium, lba| uniform(&m.contents(Lba(lba)).expect("a good block"));
        self.media.iter().flat_map(|m| (0..8).map(move |lba| block(m, lba))).collect()
    }

    fn report(&self, port: &FakeDevice) -> ReservationReport {
        run(&self.time, port.reservation_report()).expect("report")
    }
}

const ONLY_A: [bool; 2] = [true, false];
const ONLY_B: [bool; 2] = [false, true];
const NO_ONE_ELSE: [bool; 2] = [true, true];

/// Runs the future for so many events and then forgets it; true if it ended before.
fn run_for<F: Future>(time: &VirtualTime, events: u32, future: F) -> bool {
    let mut future = pin!(future);
    for _ in 0..events {
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
        assert!(step(time), "it waits for nothing");
    }
    false
}

#[test]
fn keys_are_what_the_table_says() {
    let packed = key(DirectorId(0x2a), 0x0605_0403_0201).to_reservation_key();
    assert_eq!(packed.0.to_le_bytes(), [1, 2, 3, 4, 5, 6, 0x2a, 0xd7]);
    assert_eq!(FenceKey::from_reservation_key(packed), Some(key(DirectorId(0x2a), 0x0605_0403_0201)));
    assert_eq!(FenceKey::from_reservation_key(ReservationKey(0xabcd)), None);
    assert_ne!(key(DirectorId(0), 0).to_reservation_key(), ReservationKey(0));
    assert_eq!((Epoch::new(1 << 48), Epoch::new((1 << 48) - 1)), (None, Some(Epoch::MAX)));
}

#[test]
fn both_write_in_both_and_repeating_changes_nothing() {
    let (pair, a, b) = Pair::both(1);
    assert_eq!(pair.writers(), [NO_ONE_ELSE; 2]);
    let before = pair.report(&a[0]);
    assert_eq!(run(&pair.time, join_both(&a, key(A, 1))), Ok(()));
    assert_eq!(run(&pair.time, join_both(&b, key(B, 1))), Ok(()));
    assert_eq!(pair.report(&a[0]), before);
    assert!(pair.media.iter().all(|m| !m.may_write(&[9; 16])), "strangers do not write");
    assert_eq!(highest_epoch(&before), Epoch::new(1));
}

#[test]
fn take_over_leaves_one_writer_whom_no_registration_joins() {
    let (pair, a, b) = Pair::both(1);
    assert_eq!(run(&pair.time, take_over(&b, key(B, 2))), Ok(()));
    assert_eq!(pair.writers(), [ONLY_B; 2]);
    let register = ReservationOp::Register { key: key(A, 1).to_reservation_key() };
    run(&pair.time, a[0].reserve(register)).expect("register");
    assert_eq!(pair.writers(), [ONLY_B; 2]);
    assert_eq!(run(&pair.time, pair.write(&a[0])), Err(DeviceError::ReservationConflict));
    assert_eq!(highest_epoch(&pair.report(&a[0])), Epoch::new(2));
    // And that registration is gone before All Registrants comes back.
    assert_eq!(run(&pair.time, join_both(&b, key(B, 3))), Ok(()));
    assert_eq!(pair.writers(), [ONLY_B; 2]);
    assert_eq!(run(&pair.time, join_both(&a, key(A, 3))), Ok(()));
    assert_eq!(pair.writers(), [NO_ONE_ELSE; 2]);
}

#[test]
fn the_joining_director_waits_for_the_holder() {
    let (pair, a, b) = Pair::both(1);
    run(&pair.time, take_over(&b, key(B, 2))).expect("take over");
    let why = run(&pair.time, join_both(&a, key(A, 3))).map_err(|e| e.why);
    assert_eq!(why, Err(FenceFailure::HeldExclusively { by: key(B, 2) }));
    assert_eq!(pair.report(&a[0]).registrants.len(), 1, "it has not registered before its time");
}

#[test]
fn an_epoch_that_is_over_is_refused() {
    let (pair, a, b) = Pair::both(1);
    run(&pair.time, take_over(&b, key(B, 5))).expect("take over");
    let superseded = Err(FenceFailure::Superseded { by: key(B, 5) });
    assert_eq!(run(&pair.time, take_over(&a, key(A, 4))).map_err(|e| e.why), superseded);
    assert_eq!(run(&pair.time, take_over(&a, key(A, 5))).map_err(|e| e.why), superseded, "an epoch has one winner");
    assert_eq!(run(&pair.time, join_both(&a, key(A, 4))).map_err(|e| e.why), superseded);
    assert_eq!(run(&pair.time, take_over(&b, key(B, 4))).map_err(|e| e.why), superseded, "not even its own");
    assert_eq!(pair.writers(), [ONLY_B; 2]);
}

#[test]
fn other_systems_are_left_alone() {
    let pair = Pair::new(1);
    let (a, stranger) = (pair.boot(A), pair.media[1].port([9; 16]));
    let foreign = ReservationKey(77);
    run(&pair.time, stranger.reserve(ReservationOp::Register { key: foreign })).expect("register");
    let failed = |why| FenceError { device: info(2).id, namespace: info(2).namespace, why };
    assert_eq!(run(&pair.time, take_over(&a, key(A, 1))), Err(failed(FenceFailure::ForeignKey { key: foreign })));
    let report = ReservationReport { rtype: Some(2), persistent: true, registrants: Vec::new() };
    let why = next(Goal::Sole, key(A, 1), &report, true);
    assert_eq!(why, Err(FenceFailure::ForeignReservation { rtype: 2 }));
}

#[test]
fn what_cannot_be_fenced_is_named() {
    let (pair, _, b) = Pair::both(1);
    b[1].remove();
    let error = run(&pair.time, take_over(&b, key(B, 2))).expect_err("a port is gone");
    assert_eq!((error.device, error.why), (info(2).id, FenceFailure::Device(DeviceError::Gone)));
    let time = VirtualTime::new(1);
    let plain = FakeMedium::new(DeviceInfo { reservations: false, ..info(1) }, time.clone(), 1).port(HOST_A);
    let error = run(&time, join_both(&[plain], key(A, 1))).expect_err("no reservations");
    assert_eq!(error.why, FenceFailure::Unsupported);
}

#[test]
fn reservations_lost_by_a_shelf_are_made_again() {
    let (pair, a, b) = Pair::both(1);
    pair.media.iter().for_each(FakeMedium::forget_reservations);
    run(&pair.time, join_both(&a, key(A, 1))).expect("join");
    run(&pair.time, join_both(&b, key(B, 1))).expect("join");
    assert_eq!(pair.writers(), [NO_ONE_ELSE; 2]);
    pair.media.iter().for_each(FakeMedium::forget_reservations);
    run(&pair.time, take_over(&a, key(A, 2))).expect("take over");
    assert_eq!(pair.writers(), [ONLY_A; 2]);
}

#[test]
fn a_device_that_changed_meanwhile_is_done_again() {
    let (pair, _, b) = Pair::both(1);
    let mut take_over = pin!(take_over(&b, key(B, 2)));
    while pair.media[1].may_write(&HOST_A) {
        assert!(take_over.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        step(&pair.time);
    }
    pair.media[0].forget_reservations();
    assert_eq!(run(&pair.time, take_over), Ok(()));
    assert_eq!(pair.writers(), [ONLY_B; 2]);
}

/// B takes over while A's commands are anywhere, and dies after any number of events; then B's next life, or A's, takes over.
#[test]
fn a_take_over_may_end_anywhere_and_is_finished_by_either_director() {
    let mut ended = false;
    for events in 0.. {
        if ended {
            break;
        }
        for (seed, (winner, only)) in (0..40).zip([(A, ONLY_A), (B, ONLY_B)].into_iter().cycle()) {
            let (pair, a, b) = Pair::both(seed);
            pair.media.iter().for_each(|m| {
                m.set_delay(Some(Delay { one_in: 2, by: Duration::from_millis(50) }));
                m.set_latency(Latency { base: Duration::from_micros(1), jitter: Duration::from_millis(5) });
            });
            let _in_flight: Vec<_> = a.iter().map(|port| pair.write(port)).collect();
            step(&pair.time);
            a.iter().for_each(FakeDevice::kill);
            ended = run_for(&pair.time, events, take_over(&b, key(B, 2)));
            b.iter().for_each(FakeDevice::kill);

            let ports = pair.boot(winner);
            assert_eq!(run(&pair.time, take_over(&ports, key(winner, 3))), Ok(()), "after {events} events");
            assert_eq!(pair.writers(), [only; 2]);
            let picture = pair.picture();
            while step(&pair.time) {}
            assert_eq!(pair.picture(), picture, "after {events} events: a fenced write landed");
        }
    }
}

/// The solo director changes back and dies after any number of events; its next life does it again, or the other takes over.
#[test]
fn a_return_may_end_anywhere() {
    let mut ended = false;
    for events in 0.. {
        if ended {
            break;
        }
        for again in [true, false] {
            let (pair, _, b) = Pair::both(u64::from(events));
            run(&pair.time, take_over(&b, key(B, 2))).expect("take over");
            ended = run_for(&pair.time, events, join_both(&b, key(B, 3)));
            b.iter().for_each(FakeDevice::kill);
            let a = pair.boot(A);
            if again {
                let b = pair.boot(B);
                assert_eq!(run(&pair.time, join_both(&b, key(B, 4))), Ok(()), "after {events} events");
                assert_eq!(run(&pair.time, join_both(&a, key(A, 4))), Ok(()), "after {events} events");
                assert_eq!(pair.writers(), [NO_ONE_ELSE; 2]);
            } else {
                assert_eq!(run(&pair.time, take_over(&a, key(A, 4))), Ok(()), "after {events} events");
                assert_eq!(pair.writers(), [ONLY_A; 2]);
            }
        }
    }
}

/// An old winner that was paused anywhere goes on while the new one takes over: the new one has the devices in the end.
#[test]
fn a_paused_winner_never_beats_a_later_one() {
    let (mut given_up, mut came_first) = (0, 0);
    for seed in 0..400 {
        let (pair, a, b) = Pair::both(seed);
        let mut rng = SeededRng::new(seed);
        let (mut old, mut new) = (Box::pin(take_over(&a, key(A, 2))), Box::pin(take_over(&b, key(B, 3))));
        let (mut old_ended, mut new_ended) = (None, None);
        let mut cx = Context::from_waker(Waker::noop());
        let old_runs_until = rng.below(40);
        let mut turn = 0;
        while old_ended.is_none() || new_ended.is_none() {
            turn += 1;
            let paused = turn > old_runs_until && new_ended.is_none() && rng.one_in(2);
            if !paused {
                poll_once(&mut old_ended, old.as_mut(), &mut cx);
            }
            if turn > old_runs_until / 2 {
                poll_once(&mut new_ended, new.as_mut(), &mut cx);
            }
            step(&pair.time);
        }
        assert_eq!(new_ended, Some(Ok(())), "seed {seed}");
        assert_eq!(pair.writers(), [ONLY_B; 2], "seed {seed}");
        match old_ended.expect("it ended") {
            Ok(()) => came_first += 1,
            Err(FenceError { why: FenceFailure::Superseded { by }, .. }) => {
                assert_eq!(by, key(B, 3));
                given_up += 1;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(given_up > 0 && came_first > 0, "{given_up} {came_first}");
}

fn poll_once<F: Future>(ended: &mut Option<F::Output>, future: Pin<&mut F>, cx: &mut Context<'_>) {
    if ended.is_none()
        && let Poll::Ready(output) = future.poll(cx)
    {
        *ended = Some(output);
    }
}
