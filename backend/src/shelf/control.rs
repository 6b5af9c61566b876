//! Faults by hand: lines of text over a socket, each answered with `ok` or `error: ...`.
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

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use dyad_nvme::types::{Lba, NamespaceId};

use super::{PORTS, Served};
use crate::emulator::{BadBlock, BlockFault, Delay, Latency};

/// How long a client may take for its line: it is a person's tool, and the shelf waits for nobody.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
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
        Ok(Self { listener })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Does what each client that has connected says in its one line.
    pub(super) fn serve(&mut self, devices: &mut [Served]) -> usize {
        let mut served = 0;
        while let Ok((stream, _)) = self.listener.accept() {
            served += 1;
            // A client that went away has its line done or not.
            let _ = Self::one(&stream, devices);
        }
        served
    }

    fn one(stream: &UnixStream, devices: &mut [Served]) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer = match execute(&line, devices) {
            Ok(()) => "ok\n".to_owned(),
            Err(error) => format!("error: {error}\n"),
        };
        (&*stream).write_all(answer.as_bytes())
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
    let block = |subsystem: &mut crate::emulator::Subsystem, lba, fault| {
        if subsystem.inject(NamespaceId(1), Lba(lba), fault) { Ok(()) } else { Err(ControlError::NoBlock) }
    };
    let port = |port: u64| usize::try_from(port).ok().filter(|p| *p < PORTS).ok_or(ControlError::NoPort);
    match (verb, &numbers[..], &words[..]) {
        ("latency", [read, write, flush, rest @ ..], _) => subsystem.set_latency(Latency {
            read: Duration::from_micros(*read),
            write: Duration::from_micros(*write),
            flush: Duration::from_micros(*flush),
            jitter: Duration::ZERO,
            bytes_per_s: rest.first().copied(),
        }),
        ("delay", [0, ..], _) => subsystem.set_delay(None),
        ("delay", [one_in, by], _) => {
            subsystem.set_delay(Some(Delay { one_in: *one_in, by: Duration::from_millis(*by) }));
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
