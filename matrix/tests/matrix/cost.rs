//! What a message or an RDMA costs besides its instructions: nothing (DESIGN 8, Counting).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::memory::{HugePages, Memory, Segment};
use dyad_matrix::provider::{
    Completion, CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Provider, RegionHandle, Reliability,
    RemoteAccess, RemoteAddress, SendOperation, ViAttributes, ViId,
};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_reactor::Source;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::allocations;

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const DEPTH: u16 = 8;
const LEN: usize = 1 << 20;
const WARM_UP: u64 = 100;
const COUNTED: u64 = 2_000;

/// From now on this thread may only `pause`; any other system call ends the process with SIGSYS.
fn forbid_system_calls() {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let allowed = [(libc::SYS_pause, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

struct End {
    provider: ShmProvider,
    cq: CqId,
    vi: ViId,
    memory: Memory,
    region: RegionHandle,
}

impl End {
    fn new(path: &std::path::Path) -> Self {
        let provider = ShmProvider::new(path, 1, ShmLimits::default()).unwrap();
        let memory = Memory::shared("dyad-test", LEN, HugePages::No).unwrap();
        let region = provider.register(&memory, TAG, BOTH).unwrap();
        let cq = provider.create_cq(2 * u32::from(DEPTH)).unwrap();
        let vi = provider
            .create_vi(&ViAttributes {
                reliability: Reliability::ReliableReception,
                tag: TAG,
                remote_access: BOTH,
                send_depth: DEPTH,
                receive_depth: DEPTH,
                send_cq: cq,
                receive_cq: cq,
            })
            .unwrap();
        Self { provider, cq, vi, memory, region }
    }

    fn event(&mut self) -> Option<Event> {
        self.provider.poll();
        match self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    fn completion(&mut self) -> Option<Completion> {
        self.provider.poll();
        match self.provider.poll_completion(self.cq, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    fn post(&self, operation: SendOperation, segments: &[Segment], immediate: Option<u32>) {
        self.provider.post_send(self.vi, &Descriptor { operation, segments, immediate, cookie: 0 }).unwrap();
    }
}

fn pair(directory: &std::path::Path) -> [End; 2] {
    let (server, client) = (directory.join("server"), directory.join("client"));
    let (mut b, mut a) = (End::new(&server), End::new(&client));
    b.provider.listen(Discriminator(1)).unwrap();
    let to = NetAddress { host: server.to_str().unwrap().to_owned(), discriminator: Discriminator(1) };
    a.provider.connect(a.vi, &to, b"", Duration::from_secs(60)).unwrap();
    let mut established = 0;
    while established < 2 {
        for event in [a.event(), b.event()].into_iter().flatten() {
            match event {
                Event::Requested { request, .. } => b.provider.accept(request, b.vi, b"").unwrap(),
                Event::Established { .. } => established += 1,
                other => panic!("{other:?}"),
            }
        }
        std::thread::yield_now();
    }
    [a, b]
}

/// One of each, with buffers short, long, scattered, and more of them than the ring holds; bytes sent and bytes by RDMA.
fn everything(a: &mut End, b: &mut End, round: u64) -> (u64, u64) {
    let at = RemoteAddress { region: b.region, offset: 4096 };
    let lens: [u32; 6] = [8, 64, 200, 4096, 50_000, 130_000];
    for (n, &len) in (0..).zip(&lens) {
        b.provider.post_receive(b.vi, &[b.memory.segment(n * 140_000, 130_000).unwrap()], n).unwrap();
        a.post(SendOperation::Send, &[a.memory.segment(round % 512, len).unwrap()], Some(1));
    }
    let scattered: [Segment; 64] = std::array::from_fn(|n| a.memory.segment(n as u64 * 8192, 512).unwrap());
    a.post(SendOperation::RdmaWrite(at), &scattered, None);
    a.post(SendOperation::RdmaRead(at), &[a.memory.segment(0, 600_000).unwrap()], None);
    let (mut sent, mut received) = (0, 0);
    while sent < lens.len() + 2 || received < lens.len() {
        sent += usize::from(a.completion().map(|done| done.result.unwrap()).is_some());
        received += usize::from(b.completion().map(|done| done.result.unwrap()).is_some());
    }
    (lens.iter().map(|&len| u64::from(len)).sum(), 64 * 512 + 600_000)
}

#[test]
fn a_busy_connection_neither_allocates_nor_calls_the_kernel_and_copies_what_it_must() {
    let allocated = Arc::new(AtomicU64::new(u64::MAX));
    let report = Arc::clone(&allocated);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    // It ends in `pause`, with the process: to end by itself would take system calls.
    let thread = std::thread::spawn(move || {
        let [mut a, mut b] = pair(&path);
        for round in 0..WARM_UP {
            everything(&mut a, &mut b, round);
        }
        let copied = |end: &End| end.memory.copied_bytes() + end.provider.copied_bytes();
        let before = copied(&a) + copied(&b);
        let (sent, moved) = everything(&mut a, &mut b, 0);
        // What is sent goes into the ring and out of it; an RDMA moves once.
        assert_eq!(copied(&a) + copied(&b) - before, 2 * sent + moved);
        forbid_system_calls();
        let before = allocations::of_this_thread();
        for round in 0..COUNTED {
            everything(&mut a, &mut b, round);
        }
        report.store(allocations::of_this_thread() - before, Ordering::Release);
        nix::unistd::pause();
    });
    while allocated.load(Ordering::Acquire) == u64::MAX {
        assert!(!thread.is_finished(), "it failed while warming up");
        std::thread::yield_now();
    }
    assert_eq!(allocated.load(Ordering::Acquire), 0);
}
