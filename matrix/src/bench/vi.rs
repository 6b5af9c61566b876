//! Round trips, rates and RDMA over a VI.

use std::path::Path;
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};
use nix::time::{ClockId, clock_gettime};

use super::BenchError;
use super::figures::{Figures, SPAN, TURNS, WALKS, Yardstick};
use super::station::{BUFFER, Station};
use crate::provider::{
    Discriminator, Event, NetAddress, Provider, RefusedReason, RegionHandle, RemoteAddress, SendOperation,
};

const SERVICE: Discriminator = Discriminator(1);
const ROUND_TRIPS: usize = 100_000;
const WARM_UP: usize = 10_000;
const MESSAGES: u64 = 2_000_000;

/// What the server does with a message: its first byte.
const ECHO: u8 = 1;
const SWALLOW: u8 = 2;
/// Answered with the server's processor time so far, in nanoseconds.
const CPU: u8 = 3;

fn path(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(name)
}

/// Processor time of this process so far.
pub(super) fn cpu() -> Result<Duration, BenchError> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}

pub(super) struct Client {
    station: Station,
    region: RegionHandle,
    yardstick: Yardstick,
}

impl Client {
    /// Connects to the server, which may still be starting.
    pub(super) fn connect(directory: &Path) -> Result<Self, BenchError> {
        let mut station = Station::new(&path(directory, "client"))?;
        let host = path(directory, "server").to_string_lossy().into_owned();
        let to = NetAddress { host, discriminator: SERVICE };
        let start = BootClock.now();
        loop {
            station.provider.connect(station.vi, &to, b"", Duration::from_secs(5))?;
            match station.event()? {
                Event::Established { private_data, .. } => {
                    let key = private_data[..].try_into().map_err(|_| BenchError::Peer("said no region"))?;
                    let region = RegionHandle::from_key(u64::from_le_bytes(key));
                    return Ok(Self { station, region, yardstick: Yardstick::new() });
                }
                Event::Refused { why: RefusedReason::NoListener, .. }
                    if BootClock.now().since(start) < Duration::from_secs(10) =>
                {
                    std::thread::yield_now();
                }
                _ => return Err(BenchError::Peer("did not accept")),
            }
        }
    }

    fn say(&mut self, what: u8, len: u32) -> Result<(), BenchError> {
        let segment = self.station.buffer(0, len);
        self.station.buffers.write(segment.offset, &[what]).expect("a buffer lies in its memory");
        self.station.post(SendOperation::Send, segment, 0)
    }

    /// Sends a message and waits for its answer and its completion; the answer's first bytes.
    fn ask(&mut self, what: u8, len: u32) -> Result<[u8; 8], BenchError> {
        self.say(what, len)?;
        let answer = self.station.completion(self.station.receives)?;
        let mut bytes = [0; 8];
        self.station.buffers.read(self.station.buffer(answer.cookie, 8).offset, &mut bytes).expect("in range");
        self.station.receive(answer.cookie)?;
        self.station.completion(self.station.sends)?;
        Ok(bytes)
    }

    pub(super) fn round_trips(&mut self, bytes: u32, figures: &mut Figures) -> Result<(), BenchError> {
        let mut nanos = Vec::with_capacity(ROUND_TRIPS);
        let segment = self.station.buffer(0, bytes);
        self.station.buffers.write(segment.offset, &[ECHO]).expect("in range");
        let mut before = BootClock.now();
        for _ in 0..WARM_UP + ROUND_TRIPS {
            self.station.post(SendOperation::Send, segment, 0)?;
            let answer = self.station.completion(self.station.receives)?;
            self.station.receive(answer.cookie)?;
            while self.station.done(self.station.sends)?.is_some() {}
            // From one to the next: all that an application has to do is in it.
            let now = BootClock.now();
            nanos.push(u64::try_from(now.since(before).as_nanos()).unwrap_or(u64::MAX));
            before = now;
        }
        // The last message's completion must not be taken for a later one's.
        self.station.completion(self.station.sends)?;
        figures.add_round_trips("shm", bytes, nanos.split_off(WARM_UP));
        Ok(())
    }

    pub(super) fn rate(&mut self, bytes: u32, figures: &mut Figures) -> Result<(), BenchError> {
        let cpu_before = cpu()? + Duration::from_nanos(u64::from_le_bytes(self.ask(CPU, 8)?));
        let segment = self.station.buffer(0, bytes);
        self.station.buffers.write(segment.offset, &[SWALLOW]).expect("in range");
        let start = BootClock.now();
        let (mut posted, mut done) = (0, 0);
        while done < MESSAGES {
            while posted < MESSAGES && posted - done < u64::from(super::station::DEPTH) {
                self.station.post(SendOperation::Send, segment, 0)?;
                posted += 1;
            }
            self.station.completion(self.station.sends)?;
            done += 1;
            while self.station.done(self.station.sends)?.is_some() {
                done += 1;
            }
        }
        let took = BootClock.now().since(start);
        let cpu_after = cpu()? + Duration::from_nanos(u64::from_le_bytes(self.ask(CPU, 8)?));
        figures.add_rate("shm", bytes, MESSAGES, took, cpu_after.saturating_sub(cpu_before));
        Ok(())
    }

    fn rdma_once(&mut self, bytes: u32, at: u32, read: bool) -> Result<(), BenchError> {
        let remote = RemoteAddress { region: self.region, offset: u64::from(at) };
        let operation = if read { SendOperation::RdmaRead(remote) } else { SendOperation::RdmaWrite(remote) };
        let segment = self.station.open.segment(u64::from(at), bytes).expect("in range");
        self.station.post(operation, segment, 0)?;
        self.station.completion(self.station.sends)?;
        Ok(())
    }

    /// Moves all of the open memory, in pieces of `bytes`.
    fn rdma_walk(&mut self, bytes: u32, read: bool) -> Result<(), BenchError> {
        for piece in 0..SPAN / bytes {
            self.rdma_once(bytes, piece * bytes, read)?;
        }
        Ok(())
    }

    pub(super) fn rdma(&mut self, bytes: u32, figures: &mut Figures) -> Result<(), BenchError> {
        // The first one waits until the region is mapped.
        self.rdma_once(bytes, 0, false)?;
        let mut took = [Duration::ZERO; 3];
        for _ in 0..TURNS {
            for (way, took) in took.iter_mut().enumerate() {
                for walk in 0..2 * WALKS {
                    let start = cpu()?;
                    match way {
                        0 => self.yardstick.memcpy(bytes),
                        1 => self.rdma_walk(bytes, false)?,
                        _ => self.rdma_walk(bytes, true)?,
                    }
                    // The first walks bring the memory as near as the processor is willing to.
                    *took += if walk < WALKS { Duration::ZERO } else { cpu()? - start };
                }
            }
        }
        figures.add_bandwidth(bytes, took);
        Ok(())
    }

    /// The least size at which an RDMA write with a notice behind it is faster than a message of that size.
    pub(super) fn crossover(&mut self, figures: &mut Figures) -> Result<(), BenchError> {
        const ROUNDS: u32 = 4000;
        let mut bytes = 128;
        while bytes < BUFFER {
            let mut times = [Duration::ZERO; 2];
            for _ in 0..2 {
                for (way, time) in times.iter_mut().enumerate() {
                    let start = BootClock.now();
                    for _ in 0..ROUNDS {
                        if way == 0 {
                            self.ask(SWALLOW + 2, bytes)?;
                        } else {
                            self.rdma_once(bytes, 0, false)?;
                            self.ask(SWALLOW + 2, 16)?;
                        }
                    }
                    *time += BootClock.now().since(start);
                }
            }
            if times[1] < times[0] {
                break;
            }
            bytes *= 2;
        }
        figures.add("shm.crossover.bytes".to_owned(), "B", f64::from(bytes));
        Ok(())
    }
}

/// Answers until it is killed.
pub(super) fn serve(directory: &Path) -> Result<(), BenchError> {
    let mut station = Station::new(&path(directory, "server"))?;
    station.provider.listen(SERVICE)?;
    let Event::Requested { request, .. } = station.event()? else { return Err(BenchError::Peer("did not ask")) };
    station.provider.accept(request, station.vi, &station.region.to_key().to_le_bytes())?;
    let Event::Established { .. } = station.event()? else { return Err(BenchError::Peer("did not connect")) };
    loop {
        let message = station.completion(station.receives)?;
        let len = message.result.expect("errors were handled");
        let segment = station.buffer(message.cookie, len);
        let mut what = [0];
        station.buffers.read(segment.offset, &mut what).expect("in range");
        let answer = match what[0] {
            ECHO => Some(segment),
            CPU => {
                let nanos = u64::try_from(cpu()?.as_nanos()).unwrap_or(0);
                station.buffers.write(segment.offset, &nanos.to_le_bytes()).expect("in range");
                Some(station.buffer(message.cookie, 8))
            }
            SWALLOW => None,
            _ => Some(station.buffer(message.cookie, 8)),
        };
        match answer {
            Some(answer) => station.post(SendOperation::Send, answer, message.cookie)?,
            None => station.receive(message.cookie)?,
        }
        // A buffer receives again when its answer has gone.
        while let Some(sent) = station.done(station.sends)? {
            station.receive(sent.cookie)?;
        }
    }
}
