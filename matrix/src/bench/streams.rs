//! Bytes from one thread to another in sends of 64 KiB: over the VIs of `shm` and `tcp` as they are, over streams on them, and over
//! a plain TCP socket; and round trips over `tcp`. They take turns, so that what disturbs disturbs them all.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::figures::to_f64;
use dyad_reactor::{BootClock, Clock, Source};
use futures_io::{AsyncRead, AsyncWrite};

use super::BenchError;
use super::figures::Figures;
use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    Completion, CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Provider, Reliability, RemoteAccess,
    SendOperation, ViAttributes, ViId,
};
use crate::shm::{ShmLimits, ShmProvider};
use crate::stream::{Stream, StreamConfig};
use crate::tcp::{Security, TcpLimits, TcpProvider};

const SERVICE: Discriminator = Discriminator(1);
const TAG: ProtectionTag = ProtectionTag(1);
/// Bytes of a send.
const MESSAGE: u32 = 64 << 10;
/// Sends under way.
const DEPTH: u16 = 16;
/// Bytes that are moved each time.
const TOTAL: u64 = 256 << 20;
/// Times that each way has its turn in a round.
const TURNS: u64 = 2;
const ROUND_TRIPS: usize = 20_000;
const WARM_UP: usize = 2_000;
/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A provider, as a thread makes one for itself.
trait Node: Provider + Source {
    fn start(directory: &Path, name: &str) -> Result<Self, BenchError>;
    fn address(&self, directory: &Path, name: &str) -> String;
}

impl Node for ShmProvider {
    fn start(directory: &Path, name: &str) -> Result<Self, BenchError> {
        Ok(Self::new(&directory.join(name), 1, ShmLimits::default())?)
    }

    fn address(&self, directory: &Path, name: &str) -> String {
        directory.join(name).to_string_lossy().into_owned()
    }
}

impl Node for TcpProvider {
    fn start(_: &Path, _: &str) -> Result<Self, BenchError> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(Self::new(any, 1, &Security::Loopback, TcpLimits::default())?)
    }

    fn address(&self, _: &Path, _: &str) -> String {
        self.local_address().to_string()
    }
}

/// How bytes go.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Way {
    /// Sends and receives of the VI.
    Raw,
    /// A stream whose buffers are used in place.
    Stream,
    /// A stream as software for sockets uses it.
    Copied,
}

/// Waits for something that the provider's turns bring.
fn drive<P: Node, T>(provider: &P, mut what: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Result<T, BenchError> {
    let (start, mut provider) = (BootClock.now(), provider.clone());
    let mut idle = 0_u32;
    loop {
        if let Poll::Ready(value) = what(&mut Context::from_waker(Waker::noop())) {
            return Ok(value);
        }
        if provider.poll() > 0 {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle.is_multiple_of(256) {
            std::thread::yield_now();
            if BootClock.now().since(start) > PATIENCE {
                return Err(BenchError::Peer("is a thread of this one, and does not answer"));
            }
        }
    }
}

/// One end of a VI, with a buffer for each descriptor: those to send from, then those to receive into.
struct Pipe<P> {
    provider: P,
    sends: CqId,
    receives: CqId,
    vi: ViId,
    memory: Memory,
}

impl<P: Node> Pipe<P> {
    fn new(provider: P) -> Result<Self, BenchError> {
        let bytes = 2 * usize::from(DEPTH) * MESSAGE as usize;
        let memory = Memory::shared("dyad-bench", bytes, HugePages::IfAvailable);
        let memory = memory.map_err(crate::shm::ShmError::Memory)?;
        provider.register(&memory, TAG, RemoteAccess::default())?;
        let (sends, receives) = (provider.create_cq(u32::from(DEPTH))?, provider.create_cq(u32::from(DEPTH))?);
        let vi = provider.create_vi(&ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: TAG,
            remote_access: RemoteAccess::default(),
            send_depth: DEPTH,
            receive_depth: DEPTH,
            send_cq: sends,
            receive_cq: receives,
        })?;
        let pipe = Self { provider, sends, receives, vi, memory };
        (0..u64::from(DEPTH)).try_for_each(|buffer| pipe.receive(buffer))?;
        Ok(pipe)
    }

    fn buffer(&self, buffer: u64, len: u32) -> Segment {
        self.memory.segment(buffer * u64::from(MESSAGE), len).expect("a buffer lies in its memory")
    }

    fn receive(&self, buffer: u64) -> Result<(), BenchError> {
        let segments = [self.buffer(u64::from(DEPTH) + buffer, MESSAGE)];
        Ok(self.provider.post_receive(self.vi, &segments, buffer)?)
    }

    fn send(&self, buffer: u64, len: u32) -> Result<(), BenchError> {
        let segments = [self.buffer(buffer, len)];
        let descriptor =
            Descriptor { operation: SendOperation::Send, segments: &segments, immediate: None, cookie: buffer };
        Ok(self.provider.post_send(self.vi, &descriptor)?)
    }

    fn done(&self, cq: CqId) -> Result<Completion, BenchError> {
        let done = drive(&self.provider, |cx| self.provider.poll_completion(cq, cx))?;
        if done.result.is_err() { Err(BenchError::Peer("broke the connection")) } else { Ok(done) }
    }
}

fn connect<P: Node>(provider: &P, vi: ViId, host: String) -> Result<(), BenchError> {
    provider.connect(vi, &NetAddress { host, discriminator: SERVICE }, b"", PATIENCE)?;
    match drive(provider, |cx| provider.poll_event(cx))? {
        Event::Established { .. } => Ok(()),
        _ => Err(BenchError::Peer("did not accept")),
    }
}

fn accept<P: Node>(provider: &P, vi: ViId) -> Result<(), BenchError> {
    loop {
        match drive(provider, |cx| provider.poll_event(cx))? {
            Event::Requested { request, .. } => provider.accept(request, vi, b"")?,
            Event::Established { .. } => return Ok(()),
            _ => return Err(BenchError::Peer("did not connect")),
        }
    }
}

fn stream<P: Node>(provider: &P) -> Result<Stream<P>, BenchError> {
    let config = StreamConfig { tag: TAG, buffer_bytes: MESSAGE, buffers: DEPTH };
    Stream::new(provider.clone(), config).map_err(|_| BenchError::Peer("is this one, and has no room for a stream"))
}

/// Takes what comes, and stays until the other thread has its figure.
fn take<P: Node>(directory: &Path, way: Way, tell: &Sender<String>, finished: &Receiver<()>) -> Result<(), BenchError> {
    let provider = P::start(directory, "to")?;
    provider.listen(SERVICE)?;
    let said = |()| tell.send(provider.address(directory, "to")).map_err(|_| BenchError::Peer("is gone"));
    let mut left = TOTAL;
    let mut keep = None;
    match way {
        Way::Raw => {
            let pipe = Pipe::new(provider.clone())?;
            said(())?;
            accept(&provider, pipe.vi)?;
            while left > 0 {
                let done = pipe.done(pipe.receives)?;
                left -= u64::from(done.result.unwrap_or(0));
                pipe.receive(done.cookie)?;
            }
        }
        Way::Stream | Way::Copied => {
            let mut stream = stream(&provider)?;
            said(())?;
            accept(&provider, stream.vi())?;
            let mut bytes = vec![0; MESSAGE as usize];
            while left > 0 && way == Way::Stream {
                let segment = drive(&provider, |cx| stream.poll_fill(cx))??;
                let len = segment.map_or(0, |segment| segment.len);
                stream.consume(len);
                left -= u64::from(len);
            }
            while left > 0 {
                left -= drive(&provider, |cx| Pin::new(&mut stream).poll_read(cx, &mut bytes))?? as u64;
            }
            keep = Some(stream);
        }
    }
    // What was taken is to be told.
    poll_until(&provider, finished);
    drop(keep);
    Ok(())
}

/// Polls until the other thread has its figure.
fn poll_until<P: Node>(provider: &P, finished: &Receiver<()>) {
    while finished.try_recv() == Err(TryRecvError::Empty) {
        provider.clone().poll();
        std::thread::yield_now();
    }
}

/// Sends all, and returns how long it took until the other side had it.
fn give<P: Node>(directory: &Path, way: Way, host: String) -> Result<Duration, BenchError> {
    let provider = P::start(directory, "from")?;
    let mut left = TOTAL / u64::from(MESSAGE);
    match way {
        Way::Raw => {
            let pipe = Pipe::new(provider.clone())?;
            connect(&provider, pipe.vi, host)?;
            let start = BootClock.now();
            for buffer in 0..u64::from(DEPTH) {
                pipe.send(buffer, MESSAGE)?;
            }
            left -= u64::from(DEPTH);
            for _ in 0..TOTAL / u64::from(MESSAGE) {
                let done = pipe.done(pipe.sends)?;
                if left > 0 {
                    pipe.send(done.cookie, MESSAGE)?;
                    left -= 1;
                }
            }
            Ok(BootClock.now().since(start))
        }
        Way::Stream | Way::Copied => {
            let mut stream = stream(&provider)?;
            connect(&provider, stream.vi(), host)?;
            let bytes = vec![1; MESSAGE as usize];
            let start = BootClock.now();
            for _ in 0..left {
                if way == Way::Stream {
                    drive(&provider, |cx| stream.poll_buffer(cx))??;
                    stream.send(MESSAGE)?;
                } else {
                    drive(&provider, |cx| Pin::new(&mut stream).poll_write(cx, &bytes))??;
                }
            }
            drive(&provider, |cx| Pin::new(&mut stream).poll_close(cx))??;
            Ok(BootClock.now().since(start))
        }
    }
}

/// Two threads, of which the second has the figure.
fn between<T>(
    taker: impl FnOnce(&Sender<String>, &Receiver<()>) -> Result<(), BenchError> + Send,
    giver: impl FnOnce(String) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let ((tell, told), (finish, finished)) = (channel(), channel());
    std::thread::scope(|scope| {
        let taken = scope.spawn(move || taker(&tell, &finished));
        let given = match told.recv() {
            Ok(host) => giver(host),
            Err(_) => Err(BenchError::Peer("is a thread of this one, and did not start")),
        };
        drop(finish);
        let taken = taken.join().unwrap_or(Err(BenchError::Peer("is a thread of this one, and panicked")));
        given.and_then(|given| taken.map(|()| given))
    })
}

fn moved<P: Node>(directory: &Path, way: Way) -> Result<Duration, BenchError> {
    between(|tell, finished| take::<P>(directory, way, tell, finished), |host| give::<P>(directory, way, host))
}

/// The same over a plain socket.
fn socket() -> Result<Duration, BenchError> {
    let taker = |tell: &Sender<String>, _: &Receiver<()>| -> Result<(), BenchError> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let _ = tell.send(listener.local_addr()?.to_string());
        let (mut stream, mut bytes, mut left) = (listener.accept()?.0, vec![0; MESSAGE as usize], TOTAL);
        while left > 0 {
            match stream.read(&mut bytes)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                len => left -= len as u64,
            }
        }
        stream.write_all(&[1])?;
        Ok(())
    };
    between(taker, |host| {
        let (mut stream, bytes) = (TcpStream::connect(host)?, vec![1; MESSAGE as usize]);
        let start = BootClock.now();
        for _ in 0..TOTAL / u64::from(MESSAGE) {
            stream.write_all(&bytes)?;
        }
        stream.read_exact(&mut [0])?;
        Ok(BootClock.now().since(start))
    })
}

/// Messages there and back over `tcp`.
fn round_trips(directory: &Path, bytes: u32) -> Result<Vec<u64>, BenchError> {
    let taker = |tell: &Sender<String>, finished: &Receiver<()>| -> Result<(), BenchError> {
        let provider = TcpProvider::start(directory, "to")?;
        provider.listen(SERVICE)?;
        let pipe = Pipe::new(provider.clone())?;
        let _ = tell.send(provider.address(directory, "to"));
        accept(&provider, pipe.vi)?;
        for number in 0..WARM_UP + ROUND_TRIPS {
            let question = pipe.done(pipe.receives)?;
            if number > 0 {
                // With the question it was said that the answer before it had landed.
                pipe.done(pipe.sends)?;
            }
            pipe.receive(question.cookie)?;
            pipe.send(0, bytes)?;
        }
        poll_until(&provider, finished);
        Ok(())
    };
    between(taker, |host| {
        let provider = TcpProvider::start(directory, "from")?;
        let pipe = Pipe::new(provider.clone())?;
        connect(&provider, pipe.vi, host)?;
        let mut nanos = Vec::with_capacity(WARM_UP + ROUND_TRIPS);
        for _ in 0..WARM_UP + ROUND_TRIPS {
            let before = BootClock.now();
            pipe.send(0, bytes)?;
            let answer = pipe.done(pipe.receives)?;
            nanos.push(u64::try_from(BootClock.now().since(before).as_nanos()).unwrap_or(u64::MAX));
            pipe.receive(answer.cookie)?;
            // With the answer it was said that the question had landed.
            pipe.done(pipe.sends)?;
        }
        Ok(nanos.split_off(WARM_UP))
    })
}

/// One round of all of them.
pub(super) fn round(directory: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let mut took = [Duration::ZERO; 6];
    for _ in 0..TURNS {
        let turns = [
            moved::<ShmProvider>(directory, Way::Raw)?,
            moved::<ShmProvider>(directory, Way::Stream)?,
            socket()?,
            moved::<ShmProvider>(directory, Way::Copied)?,
            moved::<TcpProvider>(directory, Way::Raw)?,
            moved::<TcpProvider>(directory, Way::Stream)?,
        ];
        took.iter_mut().zip(turns).for_each(|(sum, turn)| *sum += turn);
    }
    let gb_s = took.map(|took| to_f64(TOTAL * TURNS) / took.as_secs_f64() / 1e9);
    let names = ["shm.send.65536", "shm_stream", "tcp_loopback", "shm_stream_copied", "tcp.send.65536", "tcp_stream"];
    for (name, gb_s) in names.into_iter().zip(gb_s) {
        figures.add(format!("{name}.gb_s"), "GB/s", gb_s);
    }
    let [raw, stream, socket, copied, ..] = gb_s;
    figures.add("shm_stream.share_of_raw".to_owned(), "x", stream / raw);
    figures.add("shm_stream.of_tcp_loopback".to_owned(), "x", stream / socket);
    figures.add("shm_stream_copied.of_tcp_loopback".to_owned(), "x", copied / socket);
    for bytes in [64, 4096] {
        figures.add_round_trips("tcp", bytes, round_trips(directory, bytes)?);
    }
    Ok(())
}
