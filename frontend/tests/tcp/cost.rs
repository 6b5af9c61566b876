//! What a command costs the target besides its instructions (DESIGN 8, Counting): system calls that move bytes, and no others; no
//! allocation.
//!
//! Target and host are one thread, so how commands meet in a call is always the same. The calls that are counted are the only ones
//! that the thread may make, but for the host's `sendto` and `recvfrom`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_frontend::bench::{Exchange, SingleThread};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::allocations;

const DEPTH: u16 = 32;
const WARM_UP: u64 = 50;
const TIMES: u64 = 200;

/// What 32 commands may cost together. Their headers come in one call, their answers leave in as few as pieces fit into; a write takes a
/// call for its data, which goes where it belongs, and brings the next header.
const BUDGET: [(Exchange, u64); 2] = [(Exchange::Read, 5), (Exchange::Write, 32 + 4)];

/// From now on any other system call of this thread ends the process with SIGSYS.
fn allow_only(calls: &[i64]) {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let allowed = calls.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn commands_cost_few_system_calls_and_no_allocation() {
    let found: Arc<[[AtomicU64; 2]; 2]> = Arc::new([const { [const { AtomicU64::new(u64::MAX) }; 2] }; 2]);
    let report = Arc::clone(&found);
    // It ends in `pause`, with the process: to end by itself would take system calls.
    let thread = std::thread::spawn(move || {
        let mut single = SingleThread::new(DEPTH).unwrap();
        for (exchange, _) in BUDGET {
            single.run(exchange, WARM_UP).unwrap();
        }
        let bytes = [libc::SYS_readv, libc::SYS_sendmsg, libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
        let host = [libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_write, libc::SYS_read];
        allow_only(&[&bytes[..], &host, &[libc::SYS_pause]].concat());
        for ((exchange, _), report) in BUDGET.into_iter().zip(report.iter()) {
            let (calls, allocated) = (single.counters().calls, allocations::of_this_thread());
            single.run(exchange, TIMES).unwrap();
            report[0].store(single.counters().calls - calls, Ordering::Release);
            report[1].store(allocations::of_this_thread() - allocated, Ordering::Release);
        }
        nix::unistd::pause();
    });
    while found.iter().flatten().any(|figure| figure.load(Ordering::Acquire) == u64::MAX) {
        std::thread::yield_now();
        assert!(!thread.is_finished(), "it failed");
    }
    for ((exchange, most), figures) in BUDGET.into_iter().zip(found.iter()) {
        let [calls, allocated] = [0, 1].map(|index: usize| figures[index].load(Ordering::Acquire));
        println!("{exchange:?}: {} system calls for {} commands", calls, TIMES * u64::from(DEPTH));
        assert!(calls <= most * TIMES, "{exchange:?}: {calls} system calls, at most {}", most * TIMES);
        assert_eq!(allocated, 0, "{exchange:?}");
    }
}
