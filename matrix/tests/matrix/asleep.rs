//! Two reactors that sleep whenever they have nothing to do: no message is lost on one that falls asleep, and two that wait
//! for each other do nothing at all.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use dyad_matrix::memory::{HugePages, Memory};
use dyad_matrix::provider::{
    Completion, CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Provider, Reliability, RemoteAccess,
    SendOperation, ViAttributes, ViId,
};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_reactor::{BootClock, Clock, Limits, Options, Reactor};

const SERVICE: Discriminator = Discriminator(1);
const MESSAGES: u64 = 10_000;
const DEPTH: u16 = 4;
/// How long they are watched doing nothing.
const NOTHING: Duration = Duration::from_millis(600);

#[derive(Clone)]
struct Station {
    provider: ShmProvider,
    sends: CqId,
    receives: CqId,
    vi: ViId,
    memory: Memory,
}

impl Station {
    fn new(path: &Path) -> Self {
        let provider = ShmProvider::new(path, 1, ShmLimits::default()).unwrap();
        let memory = Memory::shared("dyad-test", 4096, HugePages::No).unwrap();
        let (tag, remote_access) = (ProtectionTag(1), RemoteAccess::default());
        provider.register(&memory, tag, remote_access).unwrap();
        let [sends, receives] = [(); 2].map(|()| provider.create_cq(u32::from(DEPTH)).unwrap());
        let vi = provider
            .create_vi(&ViAttributes {
                reliability: Reliability::ReliableReception,
                tag,
                remote_access,
                send_depth: DEPTH,
                receive_depth: DEPTH,
                send_cq: sends,
                receive_cq: receives,
            })
            .unwrap();
        Self { provider, sends, receives, vi, memory }
    }

    async fn event(&self) -> Event {
        poll_fn(|cx| self.provider.poll_event(cx)).await
    }

    async fn completion(&self, cq: CqId) -> Completion {
        let done = poll_fn(|cx| self.provider.poll_completion(cq, cx)).await;
        assert!(done.result.is_ok(), "{done:?}");
        done
    }

    fn receive(&self) {
        self.provider.post_receive(self.vi, &[self.memory.segment(0, 8).unwrap()], 0).unwrap();
    }

    fn send(&self) {
        let segments = [self.memory.segment(0, 8).unwrap()];
        let descriptor = Descriptor { operation: SendOperation::Send, segments: &segments, immediate: None, cookie: 0 };
        self.provider.post_send(self.vi, &descriptor).unwrap();
    }
}

/// A reactor that never spins, with a station.
fn reactor(path: &Path) -> (Reactor, Station) {
    let options = Options { limits: Limits { tasks: 1, timers: 1 }, max_spin: Duration::ZERO, core: None };
    let mut reactor = Reactor::new(options).unwrap();
    let station = Station::new(path);
    reactor.add_source(station.provider.clone()).unwrap();
    (reactor, station)
}

#[test]
fn sleepers_lose_no_message_and_idle_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let (server_path, client_path) = (path("server"), path("client"));
    let (tell, listening) = mpsc::channel();
    let address = NetAddress { host: server_path.to_str().unwrap().to_owned(), discriminator: SERVICE };
    let server = std::thread::spawn(move || {
        let (mut reactor, station) = reactor(&server_path);
        station.provider.listen(SERVICE).unwrap();
        tell.send((reactor.stopper(), reactor.counters())).unwrap();
        reactor.handle().spawn("echo", async move {
            let Event::Requested { request, .. } = station.event().await else { panic!("a request") };
            station.receive();
            station.provider.accept(request, station.vi, b"").unwrap();
            for _ in 0..MESSAGES {
                station.completion(station.receives).await;
                station.receive();
                station.send();
                station.completion(station.sends).await;
            }
            station.event().await;
            station.completion(station.receives).await;
        });
        reactor.run().unwrap();
    });
    let (server_stopper, server_counters) = listening.recv().unwrap();
    let (done_sender, done) = mpsc::channel();
    let client = std::thread::spawn(move || {
        let (mut reactor, station) = reactor(&client_path);
        let (stopper, counters) = (reactor.stopper(), reactor.counters());
        station.provider.connect(station.vi, &address, b"", Duration::from_secs(60)).unwrap();
        reactor.handle().spawn("ask", async move {
            assert!(matches!(station.event().await, Event::Established { .. }));
            for _ in 0..MESSAGES {
                station.receive();
                station.send();
                station.completion(station.receives).await;
                station.completion(station.sends).await;
            }
            done_sender.send((stopper, counters)).unwrap();
            station.event().await;
        });
        reactor.run().unwrap();
    });
    // A lost wake-up would end here.
    let (client_stopper, client_counters) = done.recv_timeout(Duration::from_secs(120)).expect("they are asleep");
    let reactors = [server_counters, client_counters];
    let before = reactors.each_ref().map(|counters| counters.values());
    assert!(before.iter().any(|values| values.sleeps > 100), "they did sleep: {before:?}");
    let start = BootClock.now();
    while BootClock.now().since(start) < NOTHING {
        std::thread::park_timeout(NOTHING);
    }
    let wakes = reactors.each_ref().map(|counters| counters.values().sleeps);
    for (before, wakes) in before.iter().zip(wakes) {
        // The end of the traffic may have been on its way.
        assert!(wakes - before.sleeps <= 3, "{} wake-ups without work", wakes - before.sleeps);
    }
    client_stopper.stop();
    server_stopper.stop();
    client.join().unwrap();
    server.join().unwrap();
}
