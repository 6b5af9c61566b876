//! What a hit and a write cost besides their instructions (DESIGN 8): copies as budgeted, no allocation, no system call.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_cache::bench::{Home, Mirror, Work};
use dyad_nvme::types::BLOCK_BYTES;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::allocations;

const WARM_UP: u64 = 3000;
const COUNTED: u64 = 2000;
/// More than the messages of an operation: commit, answer, their headers, in and out of the ring.
const MESSAGES_MAX: u64 = 1024;

/// From now on this thread may only `pause`; any other system call ends the process with SIGSYS.
fn forbid_system_calls() {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let allowed = [(libc::SYS_pause, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Works, with the block copies that each costs here and at the partner.
const BUDGETS: [(Work, u64); 3] = [(Work::MirroredWrite, 2), (Work::ReadHit, 1), (Work::UnmirroredWrite, 1)];

#[test]
fn hits_and_writes_copy_what_they_must_and_neither_allocate_nor_call_the_kernel() {
    let done = Arc::new(AtomicU64::new(u64::MAX));
    let report = Arc::clone(&done);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    // It ends in `pause`, with the process: to end by itself would take system calls.
    let thread = std::thread::spawn(move || {
        let mirror = RefCell::new(Mirror::listen(&path).unwrap());
        let turn = || {
            mirror.borrow_mut().turn();
        };
        let mut home = Home::connect_beside(&path, turn).unwrap();
        for (work, copies) in BUDGETS {
            home.perform_beside(work, 32, WARM_UP, || 0, turn);
            let copied = |home: &Home| home.copied_bytes() + mirror.borrow().copied_bytes();
            let before = copied(&home);
            home.perform_beside(work, 8, COUNTED, || 0, turn);
            let per_operation = (copied(&home) - before) / COUNTED;
            let payload = copies * BLOCK_BYTES as u64;
            assert!(
                (payload..payload + MESSAGES_MAX).contains(&per_operation),
                "{work:?} copies {per_operation} bytes"
            );
        }
        let mut allocated = 0;
        for depth in [1, 32] {
            for (work, _) in BUDGETS {
                let performed = home.perform_beside(work, depth, COUNTED, allocations::of_this_thread, turn);
                // The list of latencies is made before the count begins.
                allocated += performed.counted;
            }
        }
        assert_eq!(allocated, 0, "allocations");
        forbid_system_calls();
        for (work, _) in BUDGETS {
            home.perform_beside(work, 32, COUNTED, || 0, turn);
        }
        report.store(allocated, Ordering::Release);
        nix::unistd::pause();
    });
    while done.load(Ordering::Acquire) == u64::MAX {
        assert!(!thread.is_finished(), "it failed");
        std::thread::yield_now();
    }
    assert_eq!(done.load(Ordering::Acquire), 0);
}
