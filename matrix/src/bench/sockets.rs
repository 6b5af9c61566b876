//! The same round trips and rates over TCP loopback and a Unix socket: blocking sockets, one thread at each end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};

use super::BenchError;
use super::figures::Figures;
use super::vi::cpu;

const ROUND_TRIPS: usize = 20_000;
const WARM_UP: usize = 2_000;
const MESSAGES: u32 = 200_000;

/// A message is a length, an action and as many bytes. The actions:
const ECHO: u8 = 1;
const SWALLOW: u8 = 2;
/// Answered with the server's processor time so far, in nanoseconds.
const CPU: u8 = 3;
const HEADER: usize = 8;

trait Stream: Read + Write + Send + 'static {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

pub(super) struct Client {
    streams: [(&'static str, Box<dyn Stream>); 2],
}

/// Serves both kinds, each in a thread.
pub(super) fn serve(directory: &Path) -> Result<(), BenchError> {
    let unix = UnixListener::bind(directory.join("unix"))?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let address = tcp.local_addr()?;
    std::fs::write(directory.join("tcp.new"), address.to_string())?;
    std::fs::rename(directory.join("tcp.new"), directory.join("tcp"))?;
    let start = |serve: Box<dyn FnOnce() + Send>| std::thread::Builder::new().spawn(serve).map(drop);
    start(Box::new(move || {
        let _ = tcp.accept().and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            answer(stream)
        });
    }))?;
    start(Box::new(move || {
        let _ = unix.accept().and_then(|(stream, _)| answer(stream));
    }))?;
    Ok(())
}

fn answer(mut stream: impl Stream) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        stream.read_exact(&mut bytes[..HEADER])?;
        let len = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let action = bytes[2];
        stream.read_exact(&mut bytes[HEADER..len])?;
        match action {
            ECHO => stream.write_all(&bytes[..len])?,
            CPU => {
                let nanos = cpu().map_or(0, |cpu| u64::try_from(cpu.as_nanos()).unwrap_or(0));
                stream.write_all(&nanos.to_le_bytes())?;
            }
            _ => {}
        }
    }
}

fn message(action: u8, len: u32) -> Vec<u8> {
    let mut message = vec![0; len as usize];
    let [l0, l1, ..] = len.to_le_bytes();
    (message[0], message[1], message[2]) = (l0, l1, action);
    message
}

impl Client {
    /// Connects to the server, which is up when `tcp` is there.
    pub(super) fn connect(directory: &Path) -> Result<Self, BenchError> {
        let address = std::fs::read_to_string(directory.join("tcp"))?;
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        let unix = UnixStream::connect(directory.join("unix"))?;
        Ok(Self { streams: [("tcp_loopback", Box::new(tcp)), ("unix", Box::new(unix))] })
    }

    pub(super) fn round_trips(&mut self, bytes: u32, figures: &mut Figures) -> Result<(), BenchError> {
        for (name, stream) in &mut self.streams {
            let (question, mut answer) = (message(ECHO, bytes), vec![0; bytes as usize]);
            let mut nanos = Vec::with_capacity(WARM_UP + ROUND_TRIPS);
            for _ in 0..WARM_UP + ROUND_TRIPS {
                let before = BootClock.now();
                stream.write_all(&question)?;
                stream.read_exact(&mut answer)?;
                nanos.push(u64::try_from(BootClock.now().since(before).as_nanos()).unwrap_or(u64::MAX));
            }
            figures.add_round_trips(name, bytes, nanos.split_off(WARM_UP));
        }
        Ok(())
    }

    pub(super) fn rate(&mut self, bytes: u32, figures: &mut Figures) -> Result<(), BenchError> {
        for (name, stream) in &mut self.streams {
            let mut cpu_now = || -> Result<Duration, BenchError> {
                let mut theirs = [0; 8];
                stream.write_all(&message(CPU, 8))?;
                stream.read_exact(&mut theirs)?;
                Ok(cpu()? + Duration::from_nanos(u64::from_le_bytes(theirs)))
            };
            let before = cpu_now()?;
            let (start, swallow) = (BootClock.now(), message(SWALLOW, bytes));
            for _ in 0..MESSAGES {
                stream.write_all(&swallow)?;
            }
            stream.write_all(&message(ECHO, 8))?;
            stream.read_exact(&mut [0; 8])?;
            let took = BootClock.now().since(start);
            let mut theirs = [0; 8];
            stream.write_all(&message(CPU, 8))?;
            stream.read_exact(&mut theirs)?;
            let after = cpu()? + Duration::from_nanos(u64::from_le_bytes(theirs));
            figures.add_rate(name, bytes, u64::from(MESSAGES), took, after.saturating_sub(before));
        }
        Ok(())
    }
}
