//! Bytes from one end to the other in sends of 64 KiB: over the VIs of `shm` and `tcp` as they are, over streams on them, and over
//! a plain TCP socket; and short messages over `tcp`.
//!
//! Both ends are in one thread, each doing what it can in turn, and what counts is processor time: so the figures say what moving
//! a byte costs all in all, and do not depend on what else the machine does. The ways take turns all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::figures::to_f64;
use dyad_reactor::{BootClock, Clock, Source};
use futures_io::{AsyncRead, AsyncWrite};

use super::BenchError;
use super::figures::Figures;
use super::vi::cpu;
use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    CqId, Descriptor, Discriminator, Event, NetAddress, ProtectionTag, Provider, Reliability, RemoteAccess,
    SendOperation, ViAttributes, ViId,
};
use crate::shm::{ShmLimits, ShmProvider};
use crate::stream::{Stream, StreamConfig};
use crate::tcp::{Security, TcpLimits, TcpProvider};

const SERVICE: Discriminator = Discriminator(1);
const TAG: ProtectionTag = ProtectionTag(1);
/// Bytes of a send.
const MESSAGE: u32 = 64 << 10;
/// Sends under way: of 64 KiB, so few that they stay near the processor, as a socket's one buffer does; of short messages.
const DEPTH: u16 = 4;
const SHORT_DEPTH: u16 = 64;
/// Bytes that are moved each time, and before that to warm up.
const TOTAL: u64 = 256 << 20;
const WARM_UP: u64 = 32 << 20;
/// Times that each way has its turn in a round.
const TURNS: u64 = 4;
/// Short messages of one sample.
const MESSAGES: u64 = 200_000;
/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A provider that a pair is made of.
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

/// Something that moves bytes, from one end to the other of itself.
trait Way {
    /// Sends and receives what can be done now; bytes that were received.
    fn turn(&mut self) -> Result<u64, BenchError>;
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Two providers, connected by a VI of each.
struct Pair<P> {
    from: P,
    to: P,
}

impl<P: Node> Pair<P> {
    fn new(directory: &Path, name: &str) -> Result<Self, BenchError> {
        let [from, to] = ["from", "to"].map(|end| P::start(directory, &format!("{name}-{end}")));
        Ok(Self { from: from?, to: to? })
    }

    fn connect(&mut self, directory: &Path, name: &str, from: ViId, to: ViId) -> Result<(), BenchError> {
        self.to.listen(SERVICE)?;
        let host = self.to.address(directory, &format!("{name}-to"));
        self.from.connect(from, &NetAddress { host, discriminator: SERVICE }, b"", PATIENCE)?;
        let (start, mut established) = (BootClock.now(), 0);
        while established < 2 {
            self.poll();
            for node in [&self.from, &self.to] {
                match node.poll_event(&mut context()) {
                    Poll::Ready(Event::Requested { request, .. }) => node.accept(request, to, b"")?,
                    Poll::Ready(Event::Established { .. }) => established += 1,
                    Poll::Pending if BootClock.now().since(start) < PATIENCE => std::thread::yield_now(),
                    _ => return Err(BenchError::Peer("is this one, and does not accept")),
                }
            }
        }
        Ok(())
    }

    fn poll(&mut self) {
        self.from.poll();
        self.to.poll();
    }
}

/// One end of a VI as it is: a buffer for each descriptor.
struct End {
    vi: ViId,
    cq: CqId,
    memory: Memory,
}

impl End {
    fn new<P: Node>(provider: &P, depth: u16) -> Result<Self, BenchError> {
        let memory = Memory::shared("dyad-bench", usize::from(depth) * MESSAGE as usize, HugePages::IfAvailable);
        let memory = memory.map_err(crate::shm::ShmError::Memory)?;
        provider.register(&memory, TAG, RemoteAccess::default())?;
        let cq = provider.create_cq(2 * u32::from(depth))?;
        let vi = provider.create_vi(&ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: TAG,
            remote_access: RemoteAccess::default(),
            send_depth: depth,
            receive_depth: depth,
            send_cq: cq,
            receive_cq: cq,
        })?;
        Ok(Self { vi, cq, memory })
    }

    fn buffer(&self, buffer: u64, len: u32) -> Segment {
        self.memory.segment(buffer * u64::from(MESSAGE), len).expect("a buffer lies in its memory")
    }

    /// The next completion's cookie and length.
    fn done<P: Node>(&self, provider: &P) -> Result<Option<(u64, u32)>, BenchError> {
        match provider.poll_completion(self.cq, &mut context()) {
            Poll::Ready(done) => {
                let len = done.result.map_err(|_| BenchError::Peer("is this one, and broke the connection"))?;
                Ok(Some((done.cookie, len)))
            }
            Poll::Pending => Ok(None),
        }
    }
}

/// Sends and receives of a VI.
struct Raw<P> {
    pair: Pair<P>,
    from: End,
    to: End,
    free: Vec<u64>,
    len: u32,
}

impl<P: Node> Raw<P> {
    fn new(directory: &Path, name: &str, len: u32, depth: u16) -> Result<Self, BenchError> {
        let mut pair = Pair::<P>::new(directory, name)?;
        let (from, to) = (End::new(&pair.from, depth)?, End::new(&pair.to, depth)?);
        for buffer in 0..u64::from(depth) {
            pair.to.post_receive(to.vi, &[to.buffer(buffer, MESSAGE)], buffer)?;
        }
        pair.connect(directory, name, from.vi, to.vi)?;
        Ok(Self { pair, from, to, free: (0..u64::from(depth)).collect(), len })
    }
}

impl<P: Node> Way for Raw<P> {
    fn turn(&mut self) -> Result<u64, BenchError> {
        let Self { pair, from, to, free, len } = self;
        while let Some(buffer) = free.pop() {
            let segments = [from.buffer(buffer, *len)];
            let operation = SendOperation::Send;
            let descriptor = Descriptor { operation, segments: &segments, immediate: None, cookie: buffer };
            pair.from.post_send(from.vi, &descriptor)?;
        }
        pair.poll();
        let mut received = 0;
        while let Some((buffer, len)) = to.done(&pair.to)? {
            pair.to.post_receive(to.vi, &[to.buffer(buffer, MESSAGE)], buffer)?;
            received += u64::from(len);
        }
        while let Some((buffer, _)) = from.done(&pair.from)? {
            free.push(buffer);
        }
        Ok(received)
    }
}

/// A stream whose buffers are used in place, or, with bytes of its own, as software for sockets uses it.
struct OfBytes<P: Provider> {
    pair: Pair<P>,
    from: Stream<P>,
    to: Stream<P>,
    own: Option<Vec<u8>>,
}

impl<P: Node> OfBytes<P> {
    fn new(directory: &Path, name: &str, own: Option<Vec<u8>>) -> Result<Self, BenchError> {
        let mut pair = Pair::<P>::new(directory, name)?;
        let stream = |provider: &P| {
            let config = StreamConfig { tag: TAG, buffer_bytes: MESSAGE, buffers: DEPTH };
            let made = Stream::new(provider.clone(), config);
            made.map_err(|_| BenchError::Peer("is this one, and has no room for a stream"))
        };
        let (from, to) = (stream(&pair.from)?, stream(&pair.to)?);
        pair.connect(directory, name, from.vi(), to.vi())?;
        Ok(Self { pair, from, to, own })
    }
}

impl<P: Node> Way for OfBytes<P> {
    fn turn(&mut self) -> Result<u64, BenchError> {
        let Self { pair, from, to, own } = self;
        match own {
            None => {
                while let Poll::Ready(buffer) = from.poll_buffer(&mut context()) {
                    from.send(buffer?.len)?;
                }
            }
            Some(own) => while let Poll::Ready(Ok(_)) = Pin::new(&mut *from).poll_write(&mut context(), own) {},
        }
        pair.poll();
        let mut received = 0;
        match own {
            None => {
                while let Poll::Ready(here) = to.poll_fill(&mut context()) {
                    let len = here?.ok_or(BenchError::Peer("is this one, and ended the stream"))?.len;
                    to.consume(len);
                    received += u64::from(len);
                }
            }
            Some(own) => {
                while let Poll::Ready(len) = Pin::new(&mut *to).poll_read(&mut context(), own) {
                    received += len? as u64;
                }
            }
        }
        Ok(received)
    }
}

/// A plain socket.
struct Plain {
    from: TcpStream,
    to: TcpStream,
    bytes: Vec<u8>,
}

impl Plain {
    fn new() -> Result<Self, BenchError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let from = TcpStream::connect(listener.local_addr()?)?;
        let to = listener.accept()?.0;
        for end in [&from, &to] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        Ok(Self { from, to, bytes: vec![1; MESSAGE as usize] })
    }
}

impl Way for Plain {
    fn turn(&mut self) -> Result<u64, BenchError> {
        let Self { from, to, bytes } = self;
        let blocked = |error: std::io::Error| {
            if error.kind() == ErrorKind::WouldBlock { Ok(0) } else { Err(BenchError::Io(error)) }
        };
        // As many sends as the others have under way.
        for _ in 0..DEPTH {
            if from.write(bytes).or_else(blocked)? == 0 {
                break;
            }
        }
        let mut received = 0;
        loop {
            match to.read(bytes).or_else(blocked)? {
                0 => return Ok(received),
                len => received += len as u64,
            }
        }
    }
}

/// Processor time until so many bytes have arrived, when as many as that were moved to warm up.
fn time(way: &mut dyn Way, warm_up: u64, total: u64) -> Result<Duration, BenchError> {
    let mut start = cpu()?;
    let began = BootClock.now();
    for goal in [warm_up, total] {
        let mut moved = 0;
        start = cpu()?;
        while moved < goal {
            moved += way.turn()?;
            if BootClock.now().since(began) > PATIENCE {
                return Err(BenchError::Peer("is this one, and moves nothing"));
            }
        }
    }
    Ok(cpu()?.saturating_sub(start))
}

/// One round of all of them.
pub(super) fn round(directory: &Path, figures: &mut Figures) -> Result<(), BenchError> {
    let own = || Some(vec![1; MESSAGE as usize]);
    let mut ways: [(&str, Box<dyn Way>); 6] = [
        ("shm.send.65536", Box::new(Raw::<ShmProvider>::new(directory, "raw", MESSAGE, DEPTH)?)),
        ("shm_stream", Box::new(OfBytes::<ShmProvider>::new(directory, "stream", None)?)),
        ("shm_stream_copied", Box::new(OfBytes::<ShmProvider>::new(directory, "copied", own())?)),
        ("tcp_loopback", Box::new(Plain::new()?)),
        ("tcp.send.65536", Box::new(Raw::<TcpProvider>::new(directory, "", MESSAGE, DEPTH)?)),
        ("tcp_stream", Box::new(OfBytes::<TcpProvider>::new(directory, "", None)?)),
    ];
    let mut took = [Duration::ZERO; 6];
    for _ in 0..TURNS {
        for ((_, way), took) in ways.iter_mut().zip(&mut took) {
            *took += time(&mut **way, WARM_UP, TOTAL)?;
        }
    }
    let gb_s = took.map(|took| to_f64(TOTAL * TURNS) / took.as_secs_f64() / 1e9);
    for ((name, _), gb_s) in ways.iter().zip(gb_s) {
        figures.add(format!("{name}.gb_s"), "GB/s", gb_s);
    }
    let [raw, stream, copied, plain, ..] = gb_s;
    figures.add("shm_stream.share_of_raw".to_owned(), "x", stream / raw);
    figures.add("shm_stream.of_tcp_loopback".to_owned(), "x", stream / plain);
    figures.add("shm_stream_copied.of_tcp_loopback".to_owned(), "x", copied / plain);
    let mut short = Raw::<TcpProvider>::new(directory, "", 64, SHORT_DEPTH)?;
    let took = time(&mut short, 64 * MESSAGES / 10, 64 * MESSAGES)?;
    let nanos = took.as_secs_f64() * 1e9 / to_f64(MESSAGES);
    figures.add("tcp.cpu_per_message.64.ns".to_owned(), "ns", nanos);
    Ok(())
}
