//! Tests of the production loop, on the machine's clock but without assumptions about its speed.

use super::*;
use nix::sched::sched_getaffinity;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::task::{Poll, Waker};

fn reactor(max_spin: Duration) -> Reactor {
    Reactor::new(Options { limits: Limits { tasks: 4, timers: 4 }, max_spin, core: None }).expect("fds")
}

/// Waits until the reactor runs, so that what comes next meets it asleep or on the way there.
fn await_first_turn(counters: &Counters) {
    while counters.values().turns == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_sleeping_reactor_hears_the_stopper() {
    for max_spin in [Duration::ZERO, MAX_SPIN] {
        let mut reactor = reactor(max_spin);
        let (stopper, counters) = (reactor.stopper(), reactor.counters());
        let other = std::thread::spawn(move || {
            await_first_turn(&counters);
            stopper.stop();
        });
        reactor.run().expect("ran");
        other.join().expect("stopped it");
        reactor.run().expect("a stopped reactor stays stopped");
    }
}

#[test]
fn a_task_may_stop_its_reactor() {
    let mut reactor = reactor(Duration::ZERO);
    let stopper = reactor.stopper();
    reactor.handle().spawn("stop", async move { stopper.stop() });
    reactor.run().expect("ran");
}

#[test]
fn no_wake_up_from_another_thread_is_lost() {
    const ROUNDS: u64 = 5000;
    for max_spin in [Duration::ZERO, MAX_SPIN] {
        let mut reactor = reactor(max_spin);
        let stopper = reactor.stopper();
        let (wakers, arrived) = mpsc::channel::<Waker>();
        let other = std::thread::spawn(move || arrived.into_iter().for_each(Waker::wake));
        let rounds = Rc::new(Cell::new(0));
        let counted = Rc::clone(&rounds);
        // Each poll but the first is owed to one wake; a lost one would be the end.
        reactor.handle().spawn("ping", async move {
            poll_fn(move |cx| {
                counted.set(counted.get() + 1);
                if counted.get() == ROUNDS {
                    return Poll::Ready(());
                }
                wakers.send(cx.waker().clone()).expect("the other thread listens");
                Poll::Pending
            })
            .await;
            stopper.stop();
        });
        reactor.run().expect("ran");
        assert_eq!(rounds.get(), ROUNDS);
        drop(reactor);
        other.join().expect("all wakers woken");
    }
}

#[test]
fn timers_wake_a_sleeper_and_never_early() {
    let mut reactor = reactor(MAX_SPIN);
    let (handle, stopper) = (reactor.handle(), reactor.stopper());
    reactor.handle().spawn("sleeper", async move {
        for micros in [1, 10, 100, 1000, 1000, 3000] {
            let deadline = handle.now() + Duration::from_micros(micros);
            handle.sleep_until(deadline).await;
            assert!(handle.now() >= deadline);
        }
        stopper.stop();
    });
    reactor.run().expect("ran");
    assert_eq!(reactor.counters().values().timers_fired, 6);
}

#[test]
fn an_idle_reactor_has_no_tick() {
    let mut reactor = reactor(MAX_SPIN);
    let (handle, stopper) = (reactor.handle(), reactor.stopper());
    reactor.handle().spawn("idle", pending());
    reactor.handle().spawn("stop", async move {
        handle.sleep(Duration::from_millis(300)).await;
        stopper.stop();
    });
    reactor.run().expect("ran");
    let values = reactor.counters().values();
    assert!(values.asleep > values.busy + values.spinning, "{values:?}");
    assert!((1..=3).contains(&values.sleeps), "one sleep, or a spurious end more: {values:?}");
    assert_eq!((values.task_polls, values.timers_fired), (3, 1));
}

/// A source that works each time another thread wrote its eventfd, and looks only while polled or armed.
struct Door {
    bell: Rc<EventFd>,
    visits: Rc<RefCell<Vec<&'static str>>>,
    stopper: Stopper,
}

impl Source for Door {
    fn poll(&mut self) -> usize {
        let Ok(rings) = self.bell.read() else { return 0 };
        self.visits.borrow_mut().push("work");
        self.stopper.stop();
        usize::try_from(rings).expect("a few")
    }

    fn arm(&mut self) {
        self.visits.borrow_mut().push("arm");
    }

    fn disarm(&mut self) {
        self.visits.borrow_mut().push("disarm");
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }
}

#[test]
fn a_sleeper_hears_its_sources_and_arms_them_around_the_sleep() {
    let mut reactor = reactor(Duration::ZERO);
    let bell = Rc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an eventfd"));
    let visits = Rc::new(RefCell::new(Vec::new()));
    let door = Door { bell: Rc::clone(&bell), visits: Rc::clone(&visits), stopper: reactor.stopper() };
    reactor.add_source(door).expect("an fd to wait for");
    let counters = reactor.counters();
    let far_end = bell.as_fd().try_clone_to_owned().expect("a second fd");
    let visitor = std::thread::spawn(move || {
        await_first_turn(&counters);
        nix::unistd::write(far_end, &1_u64.to_ne_bytes()).expect("rung");
    });
    reactor.run().expect("ran");
    visitor.join().expect("rang");
    let visits = visits.borrow();
    assert_eq!(visits.iter().filter(|visit| **visit == "work").count(), 1);
    assert_eq!(visits[0], "arm");
    assert_eq!(reactor.counters().values().source_work, 1);
}

#[test]
fn a_reactor_stays_on_its_core() {
    let cores = || {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("a thread has cores");
        (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect::<Vec<_>>()
    };
    // The last one, so that it is not where everything starts.
    let core = *cores().last().expect("at least one");
    let mut reactor =
        Reactor::new(Options { limits: Limits { tasks: 1, timers: 0 }, max_spin: MAX_SPIN, core: Some(core) })
            .expect("fds");
    let stopper = reactor.stopper();
    reactor.handle().spawn("look", async move {
        assert_eq!(cores(), [core]);
        stopper.stop();
    });
    reactor.run().expect("ran");
    assert_eq!(reactor.counters().values().task_polls, 1);
}

#[test]
fn a_core_that_does_not_exist_is_an_error() {
    let limits = Limits { tasks: 1, timers: 0 };
    let mut reactor = Reactor::new(Options { limits, max_spin: MAX_SPIN, core: Some(1023) }).expect("fds");
    assert_eq!(reactor.run(), Err(ReactorError::Core { core: 1023, errno: Errno::EINVAL }));
}
