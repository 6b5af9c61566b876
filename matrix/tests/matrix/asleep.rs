//! Reactors that sleep whenever they have nothing to do: no message is lost on one that falls asleep, and two processes that
//! wait for each other do nothing at all.

use std::future::poll_fn;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use dyad_matrix::memory::{HugePages, Memory};
use dyad_matrix::provider::{
    Completion, CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Reliability, RemoteAccess,
    SendOperation, ViAttributes, ViId,
};
use dyad_matrix::shm::ShmProvider;
use dyad_matrix::tcp::TcpProvider;
use dyad_reactor::reactor::MAX_SPIN;
use dyad_reactor::{BootClock, Clock, Limits, Options, Reactor};
use nix::sys::resource::{UsageWho, getrusage};

use crate::kind::Kind;

const SERVICE: Discriminator = Discriminator(1);
const MESSAGES: u64 = 10_000;
const DEPTH: u16 = 4;

/// The environment of an idle process: which provider, where the other is found, and whether it connects (else it listens).
const KIND: &str = "DYAD_MATRIX_IDLE_KIND";
const DIRECTORY: &str = "DYAD_MATRIX_IDLE_DIRECTORY";
const CONNECTS: &str = "DYAD_MATRIX_IDLE_CONNECTS";
/// How long they are watched doing nothing, and the most wake-ups in that time: one per 100 ms.
const NOTHING: Duration = Duration::from_secs(3);
const WAKE_UPS: i64 = 30;

#[derive(Clone)]
struct Station<P> {
    provider: P,
    sends: CqId,
    receives: CqId,
    vi: ViId,
    memory: Memory,
}

impl<P: Kind> Station<P> {
    fn new(directory: &Path, name: &str) -> Self {
        let provider = P::start(directory, name);
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
fn reactor<P: Kind>(directory: &Path, name: &str) -> (Reactor, Station<P>) {
    let options = Options { limits: Limits { tasks: 1, timers: 1 }, max_spin: Duration::ZERO, core: None };
    let mut reactor = Reactor::new(options).unwrap();
    let station = Station::<P>::new(directory, name);
    reactor.add_source(station.provider.clone()).unwrap();
    (reactor, station)
}

#[test]
fn sleepers_lose_no_message_shm() {
    sleepers_lose_no_message::<ShmProvider>();
}

#[test]
fn sleepers_lose_no_message_tcp() {
    sleepers_lose_no_message::<TcpProvider>();
}

fn sleepers_lose_no_message<P: Kind>() {
    let directory = tempfile::tempdir().unwrap();
    let (for_server, for_client) = (directory.path().to_owned(), directory.path().to_owned());
    let (tell, listening) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let (mut reactor, station) = reactor::<P>(&for_server, "server");
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
        let (mut reactor, station) = reactor::<P>(&for_client, "client");
        let (stopper, counters) = (reactor.stopper(), reactor.counters());
        let address = NetAddress { host: P::address(&for_client, "server"), discriminator: SERVICE };
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
    for counters in [server_counters, client_counters] {
        assert!(counters.values().sleeps > 100, "they did sleep: {:?}", counters.values());
    }
    client_stopper.stop();
    server_stopper.stop();
    client.join().unwrap();
    server.join().unwrap();
}

/// How often the threads of this process waited, and the processor time they used, so far.
fn used() -> (i64, Duration) {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    let micros = u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap();
    (usage.voluntary_context_switches(), Duration::from_micros(micros))
}

/// One of two processes: connects, exchanges some messages, and then says at each line that it is given what it used so far.
#[test]
fn an_idle_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    match std::env::var(KIND).as_deref() {
        Ok(ShmProvider::NAME) => idle::<ShmProvider>(directory.into()),
        _ => idle::<TcpProvider>(directory.into()),
    }
}

fn idle<P: Kind>(directory: PathBuf) {
    let connects = std::env::var(CONNECTS).is_ok();
    let (connected, is_connected) = mpsc::channel();
    std::thread::spawn(move || {
        let options = Options { limits: Limits { tasks: 1, timers: 1 }, max_spin: MAX_SPIN, core: None };
        let mut reactor = Reactor::new(options).unwrap();
        let station = Station::<P>::new(&directory, if connects { "client" } else { "server" });
        let address = NetAddress { host: P::address(&directory, "server"), discriminator: SERVICE };
        reactor.add_source(station.provider.clone()).unwrap();
        if !connects {
            station.provider.listen(SERVICE).unwrap();
            println!("listening");
        }
        reactor.handle().spawn("idle", async move {
            station.receive();
            if connects {
                station.provider.connect(station.vi, &address, b"", Duration::from_secs(60)).unwrap();
            } else {
                let Event::Requested { request, .. } = station.event().await else { panic!("a request") };
                station.provider.accept(request, station.vi, b"").unwrap();
            }
            assert!(matches!(station.event().await, Event::Established { .. }));
            for _ in 0..100 {
                if connects {
                    station.send();
                }
                station.completion(station.receives).await;
                station.receive();
                if !connects {
                    station.send();
                }
                station.completion(station.sends).await;
            }
            connected.send(()).unwrap();
            station.event().await;
        });
        reactor.run().unwrap();
    });
    is_connected.recv().unwrap();
    println!("connected");
    for line in std::io::stdin().lines() {
        line.unwrap();
        let (waits, time) = used();
        println!("used {waits} {}", time.as_micros());
    }
}

struct Idle(Child, BufReader<std::process::ChildStdout>);

impl Idle {
    fn start<P: Kind>(directory: &Path, connects: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["asleep::an_idle_process", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(KIND, P::NAME).env(DIRECTORY, directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        if connects {
            command.env(CONNECTS, "yes");
        }
        let mut process = command.spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self(process, output)
    }

    /// What follows `word` in the next line that has it.
    fn hear(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "it ended without `{word}`");
            if let Some((_, said)) = line.split_once(word) {
                return said.trim().to_owned();
            }
        }
    }

    fn used(&mut self) -> (i64, u64) {
        writeln!(self.0.stdin.as_mut().unwrap(), "how much").unwrap();
        let said = self.hear("used ");
        let (waits, micros) = said.split_once(' ').unwrap();
        (waits.parse().unwrap(), micros.parse().unwrap())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_idle_processes_sleep_shm() {
    two_idle_processes_sleep::<ShmProvider>();
}

#[test]
fn two_idle_processes_sleep_tcp() {
    two_idle_processes_sleep::<TcpProvider>();
}

fn two_idle_processes_sleep<P: Kind>() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Idle::start::<P>(directory.path(), false);
    server.hear("listening");
    let client = Idle::start::<P>(directory.path(), true);
    let mut both = [server, client];
    // The client first: if it fails, the server waits for it for ever.
    both.iter_mut().rev().for_each(|process| drop(process.hear("connected")));
    // The first question warms up what answers it.
    let _ = both.each_mut().map(Idle::used);
    let before = both.each_mut().map(Idle::used);
    let start = BootClock.now();
    while BootClock.now().since(start) < NOTHING {
        std::thread::park_timeout(NOTHING);
    }
    let after = both.each_mut().map(Idle::used);
    for ((waits, time), (waits_before, time_before)) in after.into_iter().zip(before) {
        let (waits, time) = (waits - waits_before, Duration::from_micros(time - time_before));
        println!("{waits} wake-ups and {time:?} of processor time in {NOTHING:?}");
        assert!(waits <= WAKE_UPS, "{waits} wake-ups without work");
        assert!(time < NOTHING / 200, "{time:?} of processor time without work");
    }
}
