//! Two processes on shared memory or TCP, of which one is killed or stopped at a random instruction, 200 times each.
//!
//! The writer fills a region of the keeper with the number of its turn, by RDMA, says so in a message, and waits for the
//! answer. Meanwhile the keeper writes to and reads from the writer's memory. Whoever survives must see a broken connection
//! within its time-out, and never a fault, a hang or a wrong byte.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::memory::{HugePages, Memory, copy};
use dyad_matrix::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PostError,
    ProtectionTag, RegionHandle, Reliability, RemoteAccess, RemoteAddress, Revocable, SendOperation, ViAttributes,
    ViId, WorkQueue,
};
use dyad_matrix::shm::ShmProvider;
use dyad_matrix::tcp::TcpProvider;
use dyad_reactor::{BootClock, Clock, Rng, SeededRng};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::kind::Kind;

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const SERVICE: Discriminator = Discriminator(1);
const DEPTH: u16 = 8;
/// So long that a signal usually meets its copying.
const LEN: usize = 1 << 20;
const LEN_U32: u32 = 1 << 20;
/// One number in so many bytes is looked at.
const STRIDE: u64 = 1024;
/// Ten times what an idle machine needs, and more.
const PATIENCE: Duration = Duration::from_secs(30);

/// The environment of the other process: which provider, where it finds the keeper, and whether it connects (else it listens).
const KIND: &str = "DYAD_MATRIX_TEST_KIND";
const DIRECTORY: &str = "DYAD_MATRIX_TEST_DIRECTORY";
const CONNECTS: &str = "DYAD_MATRIX_TEST_CONNECTS";

struct Station<P> {
    provider: P,
    cq: CqId,
    vi: ViId,
    /// Message buffers: one to send from, one to receive into.
    messages: Memory,
    /// What the peer reaches.
    open: Memory,
    region: RegionHandle,
    /// What RDMA writes come from and reads go to.
    local: Memory,
}

impl<P: Kind> Station<P> {
    fn new(directory: &Path, name: &str) -> Self {
        let provider = P::start(directory, name);
        let memory = |bytes| Memory::shared("dyad-test", bytes, HugePages::No).unwrap();
        let (messages, open, local) = (memory(4096), memory(LEN), memory(LEN));
        let region = provider.register(&open, TAG, BOTH).unwrap();
        provider.register(&messages, TAG, RemoteAccess::default()).unwrap();
        provider.register(&local, TAG, RemoteAccess::default()).unwrap();
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
        let station = Self { provider, cq, vi, messages, open, region, local };
        station.receive();
        station
    }

    fn receive(&self) {
        let posted = self.provider.post_receive(self.vi, &[self.messages.segment(64, 16).unwrap()], 0);
        // What had arrived before the connection broke is delivered after it.
        assert!(matches!(posted, Ok(()) | Err(PostError::NotConnected)), "{posted:?}");
    }

    fn send(&self, number: u64) -> Result<(), PostError> {
        self.messages.write(0, &number.to_le_bytes()).unwrap();
        let segments = [self.messages.segment(0, 8).unwrap()];
        let descriptor =
            Descriptor { operation: SendOperation::Send, segments: &segments, immediate: None, cookie: number };
        self.provider.post_send(self.vi, &descriptor)
    }

    fn received(&self) -> u64 {
        let mut number = [0; 8];
        self.messages.read(64, &mut number).unwrap();
        u64::from_le_bytes(number)
    }

    fn rdma(&self, region: RegionHandle, write: bool, cookie: u64) -> Result<(), PostError> {
        let at = RemoteAddress { region, offset: 0 };
        let operation = if write { SendOperation::RdmaWrite(at) } else { SendOperation::RdmaRead(at) };
        let segments = [self.local.segment(0, LEN_U32).unwrap()];
        self.provider.post_send(self.vi, &Descriptor { operation, segments: &segments, immediate: None, cookie })
    }

    fn completion(&mut self) -> Option<Completion> {
        self.provider.poll();
        match self.provider.poll_completion(self.cq, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    fn event(&mut self) -> Option<Event> {
        self.provider.poll();
        match self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    /// Asks for a connection; who is refused because the other is not there yet asks again.
    fn connect(&self, directory: &Path, to: &str) {
        let to = NetAddress { host: P::address(directory, to), discriminator: SERVICE };
        self.provider.connect(self.vi, &to, &self.region.to_key().to_le_bytes(), Duration::from_secs(10)).unwrap();
    }
}

/// Polls until there is an answer; panics after [`PATIENCE`].
fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = BootClock.now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(BootClock.now().since(start) < PATIENCE, "{what} takes too long");
        std::thread::yield_now();
    }
}

fn fill(memory: &Memory, number: u64) {
    memory.write(0, &number.to_le_bytes()).unwrap();
    let mut done = 8;
    while done < LEN as u64 {
        copy(memory, 0, memory, done, done).unwrap();
        done *= 2;
    }
}

/// The numbers that stand in a memory: the least and the greatest.
fn numbers(memory: &Memory) -> (u64, u64) {
    let words = (0..LEN as u64 / STRIDE).map(|at| memory.load_u64(at * STRIDE).unwrap());
    words.fold((u64::MAX, 0), |(least, most), word| (least.min(word), most.max(word)))
}

/// The other process: writes until something ends it or its connection, then prints its last success.
#[test]
fn the_other_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    match std::env::var(KIND).as_deref() {
        Ok(ShmProvider::NAME) => write::<ShmProvider>(Path::new(&directory)),
        _ => write::<TcpProvider>(Path::new(&directory)),
    }
}

fn write<P: Kind>(directory: &Path) {
    let mut station = Station::<P>::new(directory, "writer");
    let mut key = None;
    if std::env::var(CONNECTS).is_ok() {
        station.connect(directory, "keeper");
    } else {
        station.provider.listen(SERVICE).unwrap();
    }
    let region = wait("connecting", || match station.event()? {
        Event::Requested { request, private_data, .. } => {
            key = Some(private_data);
            // The keeper may have given up.
            let _ = station.provider.accept(request, station.vi, &station.region.to_key().to_le_bytes());
            None
        }
        Event::Established { private_data, .. } => {
            let key = key.take().unwrap_or(private_data);
            Some(RegionHandle::from_key(u64::from_le_bytes(key[..].try_into().unwrap())))
        }
        Event::Refused { .. } => {
            std::thread::yield_now();
            station.connect(directory, "keeper");
            None
        }
        // The keeper gave up; the round was over before it began.
        Event::Broken { .. } => std::process::exit(0),
    });
    let mut succeeded = 0;
    let mut alive = true;
    let mut number = 0;
    while alive {
        number += 1;
        fill(&station.local, number);
        alive = station.rdma(region, true, number).and_then(|()| station.send(number)).is_ok();
        let mut answered = !alive;
        while !answered {
            let done = wait("the answer", || station.completion());
            match (done.queue, done.result) {
                (WorkQueue::Receive, Ok(_)) => {
                    station.receive();
                    answered = true;
                }
                (WorkQueue::Send, Ok(LEN_U32)) => succeeded = done.cookie,
                (_, Ok(_)) => {}
                (_, Err(_)) => (alive, answered) = (false, true),
            }
        }
    }
    // A success that was reported but not looked at yet counts as well.
    while let Some(done) = station.completion() {
        if done.result == Ok(LEN_U32) {
            succeeded = done.cookie;
        }
    }
    println!("last success {succeeded}");
}

struct Writer {
    process: Child,
    directory: tempfile::TempDir,
}

impl Writer {
    fn start<P: Kind>(connects: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["processes::the_other_process", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(KIND, P::NAME).env(DIRECTORY, directory.path()).stdout(Stdio::piped());
        if connects {
            command.env(CONNECTS, "yes");
        }
        Self { process: command.spawn().unwrap(), directory }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap())
    }

    /// The number of its last write that completed with success, once it has ended.
    fn last_success(mut self) -> u64 {
        let mut said = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.process.wait().unwrap().success(), "the writer failed: {said}");
        let number = said.lines().find_map(|line| line.split_once("last success ")).map(|(_, number)| number);
        number.unwrap_or_else(|| panic!("no number in {said:?}")).trim().parse().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The keeper's side of one round.
struct Keeper<P> {
    station: Station<P>,
    directory: PathBuf,
    /// The writer's region, while connected.
    region: Option<RegionHandle>,
    /// Turns of the writer that arrived.
    turns: u64,
    /// Our RDMA to the writer that is under way.
    busy: bool,
    broken: Option<BrokenReason>,
}

impl<P: Kind> Keeper<P> {
    fn new(writer: &Writer, connects: bool) -> Self {
        let directory = writer.directory.path().to_owned();
        let station = Station::<P>::new(&directory, "keeper");
        station.provider.listen(SERVICE).unwrap();
        if !connects {
            station.connect(&directory, "writer");
        }
        Self { station, directory, region: None, turns: 0, busy: false, broken: None }
    }

    /// Does what there is to do, and checks every byte.
    fn step(&mut self) {
        match self.station.event() {
            Some(Event::Requested { request, private_data, .. }) => {
                let key = self.station.region.to_key().to_le_bytes();
                self.region = Some(RegionHandle::from_key(u64::from_le_bytes(private_data[..].try_into().unwrap())));
                // The writer may be dead already.
                let _ = self.station.provider.accept(request, self.station.vi, &key);
            }
            Some(Event::Established { private_data, .. }) => {
                if let Ok(key) = private_data[..].try_into() {
                    self.region = Some(RegionHandle::from_key(u64::from_le_bytes(key)));
                }
            }
            Some(Event::Broken { vi, why }) => {
                assert!(vi == self.station.vi && self.broken.is_none());
                self.broken = Some(why);
            }
            Some(Event::Refused { .. }) => self.station.connect(&self.directory, "writer"),
            None => {}
        }
        while let Some(done) = self.station.completion() {
            match (done.queue, done.result) {
                (WorkQueue::Receive, Ok(len)) => {
                    self.turns += 1;
                    assert_eq!((len, self.station.received()), (8, self.turns), "messages come in order");
                    let turn = self.turns;
                    assert_eq!(numbers(&self.station.open), (turn, turn), "the write is whole when its message comes");
                    self.station.receive();
                    let _ = self.station.send(self.turns);
                }
                (WorkQueue::Send, Ok(LEN_U32)) => self.busy = false,
                (WorkQueue::Send, Ok(_)) => {}
                (_, Err(error)) => {
                    // Our region was revoked, or the writer has gone.
                    let fitting = [DescriptorError::Flushed, DescriptorError::RemoteProtection];
                    assert!(fitting.contains(&error), "{error}");
                }
            }
        }
        if let (Some(region), false, true) = (self.region, self.busy, self.turns > 0) {
            self.busy = self.station.rdma(region, self.turns.is_multiple_of(2), 0).is_ok();
        }
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        wait(what, || {
            self.step();
            done(self).then_some(())
        });
    }
}

/// Runs a round up to a random moment.
fn run_to_a_random_moment<P: Kind>(round: u64) -> (Writer, Keeper<P>) {
    let connects = round.is_multiple_of(2);
    let writer = Writer::start::<P>(connects);
    let mut keeper = Keeper::<P>::new(&writer, connects);
    let mut rng = SeededRng::new(round);
    // In one round of eight it is while they connect.
    let turns = if rng.one_in(8) { 0 } else { 1 + rng.below(60) };
    keeper.run_until("the traffic", |keeper| keeper.turns >= turns);
    // The writer has its answer and goes on with the next turn.
    if turns > 0 && rng.one_in(2) {
        // In every other round it is in the middle of its write, where a random piece has just begun to land.
        let at = rng.below(8) * (LEN as u64 / 8);
        wait("the write", || {
            // The answer may be waiting behind an RDMA of ours.
            keeper.station.provider.poll();
            (keeper.station.open.load_u64(at) == Ok(keeper.turns + 1)).then_some(())
        });
    } else {
        let (start, moment) = (BootClock.now(), Duration::from_micros(rng.below(600)));
        while BootClock.now().since(start) < moment {
            keeper.station.provider.poll();
        }
    }
    (writer, keeper)
}

const ROUNDS: u64 = 100;

fn a_writer_is_killed<P: Kind>() {
    for round in 0..ROUNDS {
        let (writer, mut keeper) = run_to_a_random_moment::<P>(round);
        kill(writer.pid(), Signal::SIGKILL).unwrap();
        // The rest of its messages may still come; nothing else.
        let connected = keeper.region.is_some();
        if connected {
            keeper.run_until("the end of the connection", |keeper| keeper.broken.is_some());
            assert_eq!(keeper.broken, Some(P::DEATH), "round {round}");
            let (least, most) = numbers(&keeper.station.open);
            let turns = keeper.turns;
            assert!((turns..=turns + 1).contains(&least) && most <= turns + 1, "round {round}: {least} {most} {turns}");
            keeper.run_until("letting go", |keeper| !keeper.station.provider.is_reachable(&keeper.station.open));
        }
    }
}

fn a_writer_is_stopped<P: Kind>() {
    let mut torn = 0;
    for round in 0..ROUNDS {
        let (mut writer, mut keeper) = run_to_a_random_moment::<P>(1000 + round);
        if keeper.turns == 0 {
            continue;
        }
        kill(writer.pid(), Signal::SIGSTOP).unwrap();
        let stopped = waitpid(writer.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(writer.pid(), Signal::SIGSTOP));
        let what =
            if round % 3 == 0 { Revocable::Region(keeper.station.region) } else { Revocable::Vi(keeper.station.vi) };
        keeper.station.provider.revoke(what).unwrap();
        let (least, most) = numbers(&keeper.station.open);
        torn += u64::from(least != most);
        let reachable = keeper.station.provider.is_reachable(&keeper.station.open);
        assert_eq!(reachable, P::WRITES_LATE, "a stopped writer that has the pages still has them");
        if round % 4 == 0 {
            kill(writer.pid(), Signal::SIGKILL).unwrap();
            keeper.run_until("letting go", |keeper| !keeper.station.provider.is_reachable(&keeper.station.open));
            continue;
        }
        kill(writer.pid(), Signal::SIGCONT).unwrap();
        keeper.run_until("letting go", |keeper| !keeper.station.provider.is_reachable(&keeper.station.open));
        let after = numbers(&keeper.station.open);
        assert!(P::WRITES_LATE || after == (least, most), "round {round}: a byte landed in what was revoked");
        // It may be waiting for an answer still.
        keeper.run_until("the writer's end", |_| writer.process.try_wait().unwrap().is_some());
        let success = writer.last_success();
        assert!(success <= least, "round {round}: {success} succeeded, but {least} was there when it was revoked");
        assert_eq!(numbers(&keeper.station.open), after, "who let go cannot write any more");
    }
    assert!(torn > 0, "never stopped in the middle of a write: this tested nothing");
}

#[test]
fn a_writer_is_killed_and_the_keeper_lives_on_shm() {
    a_writer_is_killed::<ShmProvider>();
}

#[test]
fn a_writer_is_killed_and_the_keeper_lives_on_tcp() {
    a_writer_is_killed::<TcpProvider>();
}

#[test]
fn a_writer_is_stopped_and_what_it_does_afterwards_is_no_success_shm() {
    a_writer_is_stopped::<ShmProvider>();
}

#[test]
fn a_writer_is_stopped_and_what_it_does_afterwards_is_no_success_tcp() {
    a_writer_is_stopped::<TcpProvider>();
}
