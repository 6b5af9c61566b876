//! Faults by hand: a line of text over a socket, answered with `ok` or `error: ...`. Times are at most an hour.
//!
//! ```text
//! DEVICE latency READ_US WRITE_US FLUSH_US [BYTES_PER_S]
//! DEVICE delay ONE_IN MILLISECONDS      (ONE_IN 0: no more delays)
//! DEVICE bad LBA                        reads fail until it is written
//! DEVICE corrupt LBA
//! DEVICE lose LBA                       the next write is lost
//! DEVICE misdirect LBA TO
//! DEVICE hang COMMANDS
//! DEVICE fatal PORT
//! DEVICE remove PORT
//! DEVICE plug PORT
//! DEVICE power off|on
//! ```

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use dyad_nvme::types::{Lba, NamespaceId};

use super::{PORTS, Served};
use crate::emulator::{BadBlock, BlockFault, Delay, Latency, Subsystem};

/// Bytes of the longest line.
const LINE_MAX: usize = 256;

/// Clients that have not said their line yet; the oldest makes room for one more.
const CLIENTS_MAX: usize = 8;

/// The slowest that a device can be told to be.
const SLOWEST: Duration = Duration::from_secs(3600);

/// Whoever connects says one line, at its own pace: nobody is waited for.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    clients: VecDeque<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Why a line was not done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
enum ControlError {
    #[error("no such device")]
    NoDevice,
    #[error("no such block")]
    NoBlock,
    #[error("no such port")]
    NoPort,
    #[error("not understood")]
    NotUnderstood,
}

impl Control {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: VecDeque::new() })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Does what clients have said; returns how many lines that were. `watch` gets each new client's socket.
    pub(super) fn serve(&mut self, devices: &mut [Served], mut watch: impl FnMut(BorrowedFd<'_>)) -> usize {
        for _ in 0..CLIENTS_MAX {
            let Ok((stream, _)) = self.listener.accept() else { break };
            if stream.set_nonblocking(true).is_ok() {
                if self.clients.len() == CLIENTS_MAX {
                    self.clients.pop_front();
                }
                watch(stream.as_fd());
                self.clients.push_back(Client { stream, line: Vec::new() });
            }
        }
        let before = self.clients.len();
        self.clients.retain_mut(|client| match client.line() {
            Some(line) => {
                // A client that went away has its line done all the same.
                let _ = client.stream.write_all(answer(&line, devices).as_bytes());
                false
            }
            None => true,
        });
        before - self.clients.len()
    }
}

impl Client {
    /// The line, once it is complete, too long, or all that will come.
    fn line(&mut self) -> Option<String> {
        let mut piece = [0; LINE_MAX];
        loop {
            let room = LINE_MAX - self.line.len();
            let complete = match self.stream.read(&mut piece[..room]) {
                Ok(count) => {
                    self.line.extend_from_slice(&piece[..count]);
                    count == 0 || self.line.contains(&b'\n')
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => true,
            };
            if complete {
                let line = self.line.split(|byte| *byte == b'\n').next().unwrap_or_default();
                return Some(String::from_utf8_lossy(line).into_owned());
            }
        }
    }
}

/// What a line is answered with.
pub(super) fn answer(line: &str, devices: &mut [Served]) -> String {
    match execute(line, devices) {
        Ok(()) => "ok\n".to_owned(),
        Err(error) => format!("error: {error}\n"),
    }
}

fn execute(line: &str, devices: &mut [Served]) -> Result<(), ControlError> {
    let mut words = line.split_whitespace();
    let name = words.next().ok_or(ControlError::NotUnderstood)?;
    let device = devices.iter_mut().find(|d| d.name == name).ok_or(ControlError::NoDevice)?;
    let subsystem = &mut device.subsystem;
    let verb = words.next().ok_or(ControlError::NotUnderstood)?;
    let words: Vec<&str> = words.collect();
    let numbers: Vec<u64> = words.iter().map_while(|w| w.parse().ok()).collect();
    let block = |subsystem: &mut Subsystem, lba, fault| {
        if subsystem.inject(NamespaceId(1), Lba(lba), fault) { Ok(()) } else { Err(ControlError::NoBlock) }
    };
    let time = |time: Duration| if time <= SLOWEST { Ok(time) } else { Err(ControlError::NotUnderstood) };
    let micros = |n: u64| time(Duration::from_micros(n));
    let port = |port: u64| usize::try_from(port).ok().filter(|p| *p < PORTS).ok_or(ControlError::NoPort);
    match (verb, &numbers[..], &words[..]) {
        ("latency", [read, write, flush, rest @ ..], _) => subsystem.set_latency(Latency {
            read: micros(*read)?,
            write: micros(*write)?,
            flush: micros(*flush)?,
            jitter: Duration::ZERO,
            bytes_per_s: rest.first().copied(),
        }),
        ("delay", [0, ..], _) => subsystem.set_delay(None),
        ("delay", [one_in, by], _) => {
            subsystem.set_delay(Some(Delay { one_in: *one_in, by: time(Duration::from_millis(*by))? }));
        }
        ("bad", [lba], _) => block(subsystem, *lba, BlockFault::Bad(BadBlock::UntilWritten))?,
        ("corrupt", [lba], _) => block(subsystem, *lba, BlockFault::Corrupt)?,
        ("lose", [lba], _) => block(subsystem, *lba, BlockFault::LoseNextWrite)?,
        ("misdirect", [lba, to], _) => block(subsystem, *lba, BlockFault::MisdirectNextWrite(Lba(*to)))?,
        ("hang", [commands], _) => subsystem.hang(*commands, false),
        ("fatal", [p], _) => subsystem.fail(port(*p)?),
        ("remove", [p], _) => subsystem.remove(port(*p)?),
        ("plug", [p], _) => subsystem.plug_in(port(*p)?),
        ("power", _, ["off"]) => subsystem.power_loss(),
        ("power", _, ["on"]) => subsystem.power_on(),
        _ => return Err(ControlError::NotUnderstood),
    }
    Ok(())
}
