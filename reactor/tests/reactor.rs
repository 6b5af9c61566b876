//! The reactor as its users see it: what its busy path costs, and two of them joined by rings.
#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

mod allocations;

use dyad_reactor::ring::{Receiver, Sender, ring};
use dyad_reactor::sync::{Inbox, KeyedLocks, Permits, Replies, Signal};
use dyad_reactor::{Handle, Limits, Options, Reactor};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

const LANES: usize = 8;
const KEYS: u64 = 3;

fn reactor(tasks: usize, max_spin: Duration) -> Reactor {
    Reactor::new(Options { limits: Limits { tasks, timers: LANES + 1 }, max_spin, core: None }).expect("fds")
}

/// Gives the other tasks a turn.
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

/// From now on this thread may only `pause`; any other system call ends the process with SIGSYS.
fn forbid_system_calls() {
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let allowed = [(libc::SYS_pause, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch).expect("a filter");
    seccompiler::apply_filter(&BpfProgram::try_from(filter).expect("a program")).expect("seccomp");
}

/// Everything that lanes do while commands flow: every waiting place, a timer per command, a ring to another thread and back.
fn spawn_lanes(handle: &Handle, mut to_other: Sender<u64>, mut from_other: Receiver<u64>) -> (Inbox<u64>, Signal) {
    let commands = Inbox::new(4);
    let outgoing = Inbox::new(4);
    let replies = Replies::new(LANES);
    let permits = Permits::new(LANES / 2);
    let locks = KeyedLocks::new(2);
    let done = Signal::new();
    for _ in 0..LANES {
        let (commands, outgoing, replies, permits, locks, done, clock) = (
            commands.clone(),
            outgoing.clone(),
            replies.clone(),
            permits.clone(),
            locks.clone(),
            done.clone(),
            handle.clone(),
        );
        handle.spawn("lane", async move {
            loop {
                let command: u64 = commands.next().await;
                let _permit = permits.acquire(2).await;
                let _guard = locks.lock(command % KEYS).await;
                let pending = replies.reserve().expect("one per lane");
                outgoing.push(pending.ticket().to_u64()).await;
                let deadline = clock.now() + Duration::from_secs(600);
                clock.timeout_at(deadline, pending).await.expect("ten minutes are enough");
                done.notify_all();
            }
        });
    }
    handle.spawn("to other thread", async move {
        loop {
            to_other.send(outgoing.next().await).await.expect("the other thread listens");
        }
    });
    handle.spawn("from other thread", async move {
        while let Some(ticket) = from_other.receive().await {
            assert!(replies.complete(dyad_reactor::sync::Ticket::from_u64(ticket), ()));
        }
    });
    (commands, done)
}

#[test]
fn a_busy_reactor_neither_allocates_nor_calls_the_kernel() {
    const WARM_UP: u64 = 2_000;
    const COUNTED: u64 = 20_000;
    let allocated = Arc::new(AtomicU64::new(u64::MAX));
    let report = Arc::clone(&allocated);
    let (to_other, mut arrivals) = ring(4);
    let (mut departures, from_other) = ring(4);
    // It ends in `pause`, with the process: to end by itself would take system calls.
    let thread = std::thread::spawn(move || {
        let mut reactor = reactor(LANES + 4, Duration::from_micros(50));
        let handle = reactor.handle();
        let (commands, done) = spawn_lanes(&handle, to_other, from_other);
        handle.spawn("host", async move {
            let submit = async |from: u64, count: u64| {
                for command in from..from + count {
                    commands.push(command).await;
                }
                while done.generation() < from + count {
                    done.changed_since(done.generation()).await;
                }
            };
            submit(0, WARM_UP).await;
            forbid_system_calls();
            let before = allocations::of_this_thread();
            submit(WARM_UP, COUNTED).await;
            report.store(allocations::of_this_thread() - before, Ordering::Release);
            nix::unistd::pause();
        });
        // While anything is in flight the reactor has something to do, so it never wants to sleep.
        handle.spawn("busy", async move {
            loop {
                pass().await;
            }
        });
        reactor.run().expect("ran");
    });
    while allocated.load(Ordering::Acquire) == u64::MAX {
        match arrivals.try_receive() {
            Some(ticket) => departures.try_send(ticket).expect("no more in flight than there are lanes"),
            None => std::thread::yield_now(),
        }
        assert!(!thread.is_finished(), "it failed while warming up");
    }
    assert_eq!(allocated.load(Ordering::Acquire), 0);
}

#[test]
fn the_counting_allocator_counts() {
    let before = allocations::of_this_thread();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations::of_this_thread() - before, 1);
}

#[test]
fn two_reactors_that_sleep_between_items_lose_none() {
    const ITEMS: u64 = 20_000;
    for max_spin in [Duration::ZERO, Duration::from_micros(50)] {
        // Rings so small that both ends wait, for items and for room.
        let (mut to_echo, mut at_echo) = ring::<u64>(2);
        let (mut from_echo, mut back) = ring::<u64>(1);
        let echo_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&echo_ended);
        let echo = std::thread::spawn(move || {
            let mut reactor = reactor(1, max_spin);
            let stopper = reactor.stopper();
            reactor.handle().spawn("echo", async move {
                while let Some(item) = at_echo.receive().await {
                    from_echo.send(item).await.expect("the other end listens");
                }
                ended.store(true, Ordering::Release);
                stopper.stop();
            });
            reactor.run()
        });
        let mut reactor = reactor(2, max_spin);
        let stopper = reactor.stopper();
        reactor.handle().spawn("send", async move {
            for item in 0..ITEMS {
                to_echo.send(item).await.expect("echo listens");
            }
        });
        reactor.handle().spawn("receive", async move {
            for item in 0..ITEMS {
                assert_eq!(back.receive().await, Some(item));
            }
            assert_eq!(back.receive().await, None, "the sender has ended, and so has echo");
            stopper.stop();
        });
        reactor.run().expect("ran");
        echo.join().expect("no panic").expect("ran");
        assert!(echo_ended.load(Ordering::Acquire));
    }
}
