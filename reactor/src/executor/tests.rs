//! Tests of the executor with a clock that stands still until told to move.

use super::*;
use crate::SeededRng;
use crate::time::ManualClock;
use std::future::{pending, poll_fn};
use std::task::Poll;

fn executor(tasks: usize) -> (Executor, Rc<ManualClock>) {
    let clock = Rc::new(ManualClock::default());
    (Executor::new(Limits { tasks, timers: 4 }, Rc::<ManualClock>::clone(&clock)), clock)
}

/// Waits once, waking itself.
async fn pass() {
    let mut passed = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut passed, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Names the steps of four tasks in the order in which they ran.
fn trace(order: &mut dyn Order) -> Vec<(usize, usize)> {
    let (executor, _) = executor(4);
    let steps = Rc::new(RefCell::new(Vec::new()));
    for task in 0..4 {
        let steps = Rc::clone(&steps);
        executor.handle().spawn("stepper", async move {
            for step in 0..3 {
                steps.borrow_mut().push((task, step));
                pass().await;
            }
        });
    }
    executor.run_until_idle(order);
    drop(executor);
    Rc::into_inner(steps).expect("the executor dropped its tasks").into_inner()
}

#[test]
fn first_come_first_served() {
    let expected: Vec<_> = (0..3).flat_map(|step| (0..4).map(move |task| (task, step))).collect();
    assert_eq!(trace(&mut Fifo), expected);
}

#[test]
fn one_seed_is_one_order_whatever_slot_the_executor_got() {
    let shuffled = |seed| trace(&mut Shuffled(SeededRng::new(seed)));
    let first = shuffled(7);
    let _other_slots: Vec<_> = (0..5).map(|_| executor(1)).collect();
    assert_eq!(first, shuffled(7));
    assert_ne!(first, shuffled(8));
}

#[test]
fn sleeps_end_at_their_deadline_and_never_before() {
    let (executor, clock) = executor(2);
    let handle = executor.handle();
    let woken = Rc::new(Cell::new(None));
    let report = Rc::clone(&woken);
    executor.handle().spawn("sleeper", async move {
        handle.sleep(Duration::from_nanos(1000)).await;
        report.set(Some(handle.now()));
    });
    executor.run_until_idle(&mut Fifo);
    assert_eq!(executor.next_deadline(), Some(Time::from_nanos(1000)));
    clock.set(Time::from_nanos(999));
    assert_eq!(executor.fire_timers(), 0);
    assert!(!executor.has_ready());
    clock.set(Time::from_nanos(1000));
    assert_eq!(executor.fire_timers(), 1);
    executor.run_until_idle(&mut Fifo);
    assert_eq!(woken.get(), Some(Time::from_nanos(1000)));
    assert_eq!(executor.next_deadline(), None);
}

#[test]
fn a_timeout_frees_its_timer_either_way() {
    let (executor, clock) = executor(1);
    let handle = executor.handle();
    let results = Rc::new(RefCell::new(Vec::new()));
    let report = Rc::clone(&results);
    executor.handle().spawn("caller", async move {
        // More rounds than there are timers.
        for round in 0..20 {
            let deadline = handle.now() + Duration::from_micros(5);
            let result = if round % 2 == 0 {
                handle.timeout_at(deadline, pass()).await
            } else {
                handle.timeout_at(deadline, pending()).await
            };
            report.borrow_mut().push(result);
        }
    });
    while executor.run_until_idle(&mut Fifo) > 0 {
        clock.advance(Duration::from_micros(5));
        executor.fire_timers();
    }
    assert_eq!(*results.borrow(), [Ok(()), Err(Elapsed)].repeat(10));
    assert_eq!(executor.next_deadline(), None);
}

#[test]
#[should_panic(expected = "all 4 timers")]
fn too_many_timers_are_a_bug_that_shows() {
    let (executor, _) = executor(5);
    for _ in 0..5 {
        let handle = executor.handle();
        executor.handle().spawn("sleeper", async move { handle.sleep(Duration::from_secs(1)).await });
    }
    executor.run_until_idle(&mut Fifo);
}

#[test]
#[should_panic(expected = "before the executor is sealed")]
fn nothing_is_spawned_after_sealing() {
    let (executor, _) = executor(1);
    executor.seal();
    executor.handle().spawn("late", async {});
}

#[test]
fn wakers_work_from_other_threads_and_outlive_their_executor() {
    let (executor, _) = executor(2);
    let seen = Rc::new(RefCell::new(None));
    let report = Rc::clone(&seen);
    executor.handle().spawn("other", pending());
    executor.handle().spawn(
        "waiter",
        poll_fn(move |cx| {
            *report.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }),
    );
    executor.run_until_idle(&mut Fifo);
    let waker = seen.borrow_mut().take().expect("polled");
    let abroad = waker.clone();
    std::thread::spawn(move || abroad.wake()).join().expect("woken");
    assert_eq!(executor.run_until_idle(&mut Fifo), 1);
    drop(executor);
    // Whoever has the slot now must not notice.
    let successors: Vec<_> = (0..MAX_EXECUTORS / 2).map(|_| self::executor(2).0).collect();
    for successor in &successors {
        successor.handle().spawn("idle", pending());
        successor.handle().spawn("idle", pending());
        successor.run_until_idle(&mut Fifo);
    }
    std::thread::spawn(move || waker.wake()).join().expect("woken");
    assert!(successors.iter().all(|successor| !successor.has_ready()));
}

#[test]
fn handles_that_are_kept_cost_no_slot() {
    let handles: Vec<_> = (0..=MAX_EXECUTORS).map(|_| executor(1).0.handle()).collect();
    assert_eq!(handles.len(), MAX_EXECUTORS + 1);
}

#[test]
fn sizes_of_lanes_are_told() {
    let (executor, _) = executor(2);
    let page = [0_u8; 2000];
    executor.handle().spawn("small", async {});
    executor.handle().spawn("large", async move {
        pass().await;
        std::hint::black_box(&page);
    });
    let sizes = executor.task_sizes();
    assert_eq!(sizes[0], ("small", 1));
    assert!(sizes[1].0 == "large" && sizes[1].1 >= 2000);
}
