//! What a message or an RDMA costs besides its instructions: nothing (DESIGN 8, Counting).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::class::{Class, PerClass};
use dyad_matrix::crossover::Crossover;
use dyad_matrix::exchange::{Exchange, ExchangeConfig, Payload, Peer};
use dyad_matrix::memory::{HugePages, Memory, Segment};
use dyad_matrix::provider::{
    Completion, CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Provider, RegionHandle, Reliability,
    RemoteAccess, RemoteAddress, SendOperation, ViAttributes, ViId,
};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_matrix::tcp::TcpProvider;
use dyad_reactor::sync::Inbox;
use dyad_reactor::{BootClock, Executor, Fifo, Limits, Source};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::allocations;
use crate::kind::Kind;

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

struct End<P> {
    provider: P,
    cq: CqId,
    vi: ViId,
    memory: Memory,
    region: RegionHandle,
}

impl<P: Kind> End<P> {
    fn new(directory: &std::path::Path, name: &str) -> Self {
        let provider = P::start(directory, name);
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

fn pair<P: Kind>(directory: &std::path::Path) -> [End<P>; 2] {
    let (mut b, mut a) = (End::<P>::new(directory, "server"), End::<P>::new(directory, "client"));
    b.provider.listen(Discriminator(1)).unwrap();
    let to = NetAddress { host: P::address(directory, "server"), discriminator: Discriminator(1) };
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
fn everything<P: Kind>(a: &mut End<P>, b: &mut End<P>, round: u64) -> (u64, u64) {
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
        let [mut a, mut b] = pair::<ShmProvider>(&path);
        for round in 0..WARM_UP {
            everything(&mut a, &mut b, round);
        }
        let copied = |end: &End<ShmProvider>| end.memory.copied_bytes() + end.provider.copied_bytes();
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

/// Over TCP the kernel must be called: how often, and what is copied besides, is bounded.
#[test]
fn a_busy_tcp_connection_allocates_nothing_and_calls_the_kernel_a_few_times_per_turn() {
    let directory = tempfile::tempdir().unwrap();
    let [mut a, mut b] = pair::<TcpProvider>(directory.path());
    for round in 0..WARM_UP {
        everything(&mut a, &mut b, round);
    }
    let counted = |a: &End<TcpProvider>, b: &End<TcpProvider>| {
        let both = [a.provider.counters(), b.provider.counters()];
        both.map(|c| [c.waits, c.sends + c.receives, c.copied_bytes])
            .into_iter()
            .reduce(|a, b| [0, 1, 2].map(|i| a[i] + b[i]))
    };
    let (calls, before) = (counted(&a, &b).unwrap(), allocations::of_this_thread());
    let rounds = COUNTED / 20;
    let mut read = 0;
    for round in 0..rounds {
        everything(&mut a, &mut b, round);
        read += 600_000;
    }
    assert_eq!(allocations::of_this_thread() - before, 0);
    let [waits, moves, copied] = counted(&a, &b).unwrap();
    let per_round = |count: u64| count / rounds;
    println!("{} waits, {} sends and receives, per round", per_round(waits - calls[0]), per_round(moves - calls[1]));
    // Eight operations of 0.8 MB in all. A read's answer goes out in pieces of 64 KiB, and comes in pieces as the kernel likes.
    assert!(per_round(moves - calls[1]) < 160, "{} sends and receives", per_round(moves - calls[1]));
    // Answers to reads, messages that are short, and what of others came along with a head.
    assert!(copied - calls[2] < read + rounds * 80_000, "{} bytes", copied - calls[2]);
}

/// Two nodes that exchange requests, in one thread.
struct Talk {
    executor: Executor,
    providers: [ShmProvider; 2],
    /// Requests to be made, and how many were answered.
    wanted: Rc<Inbox<()>>,
    answered: Rc<Cell<u64>>,
}

impl Talk {
    fn new(directory: &std::path::Path) -> Self {
        let executor = Executor::new(Limits { tasks: 64, timers: 16 }, Rc::new(BootClock));
        let handle = executor.handle();
        let providers =
            ["a", "b"].map(|name| ShmProvider::new(&directory.join(name), 1, ShmLimits::default()).unwrap());
        let config = ExchangeConfig { peers: 1, outstanding: PerClass::new(|_| 2), tag: TAG, remote_access: BOTH };
        let [a, b] = providers.each_ref().map(|provider| Exchange::new(&handle, provider, config).unwrap());
        b.listen(Discriminator(1)).unwrap();
        let [ours, theirs] = [&a, &b].map(|exchange| {
            let memory = Memory::shared("dyad-test", 8192, HugePages::No).unwrap();
            let region = exchange.export(&memory, BOTH).unwrap();
            (memory, region)
        });
        a.choose_by(Crossover::at(200));
        let (server, joined) = (b.clone(), Rc::new(RefCell::new(Vec::<Peer<ShmProvider>>::new())));
        let out = Rc::clone(&joined);
        handle.spawn("accept", async move {
            let mut vis = Vec::new();
            loop {
                let event = poll_fn(|cx| server.provider().poll_event(cx)).await;
                if let Event::Requested { request, discriminator, .. } = event {
                    let class = Class::at(Discriminator(1), discriminator).unwrap();
                    vis.push(server.accept(request, class, b"").await.unwrap());
                    if vis.len() == Class::ALL.len() {
                        out.borrow_mut().push(server.join(PerClass::of(&vis)).unwrap());
                    }
                }
            }
        });
        for class in Class::ALL {
            let server = b.clone();
            handle.spawn("serve", async move {
                loop {
                    let asked = server.next(class).await;
                    let body = asked.body.clone();
                    asked.answer(&body).await.unwrap();
                }
            });
        }
        let (events, wanted, answered) = (Rc::new(Inbox::new(16)), Rc::new(Inbox::new(64)), Rc::new(Cell::new(0)));
        let (heard, client) = (Rc::clone(&events), a.clone());
        handle.spawn("events", async move {
            loop {
                heard.push(poll_fn(|cx| client.provider().poll_event(cx)).await).await;
            }
        });
        let (host, timers) = (directory.join("b").to_str().unwrap().to_owned(), handle.clone());
        let (orders, count) = (Rc::clone(&wanted), Rc::clone(&answered));
        handle.spawn("ask", async move {
            let timeout = Duration::from_secs(60);
            let (peer, _) = a.connect(&timers, &events, &host, Discriminator(1), b"", timeout).await.unwrap();
            for round in 0_usize.. {
                orders.next().await;
                // In the message, by RDMA, and none.
                let len = [64, 4096, 0][round % 3];
                let from = [ours.0.segment(0, len).unwrap()];
                let to = RemoteAddress { region: theirs.1, offset: 100 };
                let payload = (len > 0).then_some(Payload { from: &from, to });
                peer.request(Class::ALL[round % 6], payload, b"question").await.unwrap();
                count.set(count.get() + 1);
            }
        });
        executor.seal();
        Self { executor, providers, wanted, answered }
    }

    fn talk(&mut self, count: u64) {
        let end = self.answered.get() + count;
        for _ in 0..count {
            assert!(self.wanted.try_push(()).is_ok());
        }
        while self.answered.get() < end {
            self.executor.run_until_idle(&mut Fifo);
            let work: usize = self.providers.iter_mut().map(Source::poll).sum();
            if work == 0 && self.answered.get() == 0 {
                // They are being connected.
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn requests_and_answers_neither_allocate_nor_call_the_kernel() {
    let allocated = Arc::new(AtomicU64::new(u64::MAX));
    let report = Arc::clone(&allocated);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let thread = std::thread::spawn(move || {
        let mut talk = Talk::new(&path);
        (0..WARM_UP).for_each(|_| talk.talk(12));
        forbid_system_calls();
        let before = allocations::of_this_thread();
        (0..COUNTED / 12).for_each(|_| talk.talk(12));
        report.store(allocations::of_this_thread() - before, Ordering::Release);
        nix::unistd::pause();
    });
    while allocated.load(Ordering::Acquire) == u64::MAX {
        assert!(!thread.is_finished(), "it failed while warming up");
        std::thread::yield_now();
    }
    assert_eq!(allocated.load(Ordering::Acquire), 0);
}
