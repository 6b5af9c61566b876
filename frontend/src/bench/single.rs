//! A target and a host that costs next to nothing, in one thread: what is counted there is the target's.
//!
//! The host's commands are made beforehand, as many as a queue holds; one call sends them, and what comes back is thrown away.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;

use dyad_nvme::fabrics::{ConnectData, PropertySize};
use dyad_nvme::register::{self, Configuration};
use dyad_nvme::tcp::{COMMAND_BYTES, CommonHeader, IC_BYTES, IcReq, SHORT_BYTES, kind};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, CommandId, ControllerId, HostId, Lba, QueueId};
use dyad_nvme::{SglDescriptor, SubmissionEntry, bytes};
use dyad_reactor::{BootClock, Executor, Fifo, Source};

use super::target::{self, HOST_NQN, NQN, TargetError, VOLUME};
use crate::subsystem::memory::MemoryBacking;
use crate::tcp::{TcpCounters, TcpPort, TcpSource};

/// Entries of the queue.
const ENTRIES: u16 = 128;
const BLOCKS: BlockCount = BlockCount(1024);

/// What the host does over and over.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// Reads of one block.
    Read,
    /// Writes of one block, its data in the capsule.
    Write,
}

/// The target, and its host.
pub struct SingleThread {
    executor: Executor,
    port: TcpPort<MemoryBacking>,
    source: TcpSource<MemoryBacking>,
    /// The I/O queue; the controller lives as long as its admin queue.
    host: TcpStream,
    _admin: TcpStream,
    /// The commands of each exchange, and the bytes that come back.
    batches: [(Vec<u8>, usize); 2],
    answers: Vec<u8>,
}

/// A command with its data in the capsule, if there is any.
fn capsule(entry: SubmissionEntry, id: u16, data: &[u8], reads: usize) -> Vec<u8> {
    let len = |bytes: usize| u32::try_from(bytes).expect("short");
    let sgl = if data.is_empty() {
        SglDescriptor::transport(len(reads))
    } else {
        SglDescriptor::in_capsule(0, len(data.len()))
    };
    let header = CommonHeader {
        kind: kind::COMMAND,
        flags: 0,
        header_len: u8::try_from(COMMAND_BYTES).expect("72"),
        data_at: if data.is_empty() { 0 } else { u8::try_from(COMMAND_BYTES).expect("72") },
        len: len(COMMAND_BYTES + data.len()),
    };
    [&header.to_bytes()[..], entry.with_command(CommandId(id)).with_sgl(sgl).as_bytes(), data].concat()
}

impl SingleThread {
    /// A host with so many commands outstanding, 1 to 127.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn new(depth: u16) -> Result<Self, TargetError> {
        let executor = Executor::new(target::limits(), Rc::new(BootClock));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = target::open(&executor.handle(), any, BLOCKS, target::volume_memory(BLOCKS)?)?;
        let address = port.address()?;
        let connect = || -> std::io::Result<TcpStream> {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let (source, mut admin, host) = (port.source(), connect()?, connect()?);
        let zeros = [0; BLOCK_BYTES];
        let batch = |make: &dyn Fn(u16) -> Vec<u8>| (0..depth).flat_map(make).collect::<Vec<u8>>();
        let lba = |id: u16| Lba(u64::from(id) * 7 % BLOCKS.0);
        let read = |id| capsule(SubmissionEntry::read(VOLUME, lba(id), BlockCount(1)), id, &[], BLOCK_BYTES);
        let write = |id| capsule(SubmissionEntry::write(VOLUME, lba(id), BlockCount(1), false), id, &zeros, 0);
        let count = usize::from(depth);
        let batches = [(batch(&read), count * (SHORT_BYTES + BLOCK_BYTES)), (batch(&write), count * SHORT_BYTES)];
        let mut single = Self {
            executor,
            port,
            source,
            answers: vec![0; batches.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)],
            host,
            _admin: admin.try_clone()?,
            batches,
        };
        let controller = single.attach(&mut admin, QueueId::ADMIN, ControllerId::DYNAMIC)?;
        let enable = u64::from(Configuration::ENABLED.0);
        let enable = SubmissionEntry::property_set(register::CC, PropertySize::Four, enable);
        single.exchange(&mut admin, &capsule(enable, 1, &[], 0), SHORT_BYTES)?;
        let mut host = single.host.try_clone()?;
        single.attach(&mut host, QueueId(1), controller)?;
        // No block is missing.
        single.run(Exchange::Write, 1)?;
        Ok(single)
    }

    /// What the target has seen.
    #[must_use]
    pub fn counters(&self) -> TcpCounters {
        self.port.counters()
    }

    /// As many commands as are outstanding at once, `times` over: all are sent in one call, and answered before the next are sent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&mut self, exchange: Exchange, times: u64) -> std::io::Result<()> {
        let index = usize::from(exchange == Exchange::Write);
        for _ in 0..times {
            let (mut sent, mut left) = (0, self.batches[index].1);
            while left > 0 {
                let commands = &self.batches[index].0;
                if sent < commands.len() {
                    sent += would_block(self.host.write(&commands[sent..]))?;
                }
                self.source.poll();
                self.executor.run_until_idle(&mut Fifo);
                left -= would_block(self.host.read(&mut self.answers[..left]))?;
            }
        }
        Ok(())
    }

    /// Has these bytes answered with that many.
    fn exchange(&mut self, stream: &mut TcpStream, said: &[u8], len: usize) -> std::io::Result<Vec<u8>> {
        stream.write_all(said)?;
        let (mut answer, mut got) = (vec![0; len], 0);
        while got < len {
            self.source.poll();
            self.executor.run_until_idle(&mut Fifo);
            got += would_block(stream.read(&mut answer[got..]))?;
        }
        Ok(answer)
    }

    fn attach(&mut self, stream: &mut TcpStream, queue: QueueId, id: ControllerId) -> std::io::Result<ControllerId> {
        let request = IcReq { version: 0, alignment: 0, header_digest: false, data_digest: false, r2t_max: 0 };
        self.exchange(stream, &request.to_bytes(), IC_BYTES)?;
        let data = ConnectData::new(HostId([1; 16]), id, NQN, HOST_NQN).to_bytes();
        let entries = if queue == QueueId::ADMIN { 32 } else { ENTRIES };
        let connect = SubmissionEntry::connect(queue, entries, 0);
        // No submission queue heads: reads are answered by their data alone.
        let connect = connect.with_dword(11, connect.dword(11) | 1 << 18);
        let answer = self.exchange(stream, &capsule(connect, 0, &data, 0), SHORT_BYTES)?;
        let refused = bytes::u16_at(&answer, SHORT_BYTES - 2) >> 1;
        if refused != 0 {
            return Err(std::io::Error::other(format!("Connect was refused with status {refused:x}")));
        }
        Ok(ControllerId(bytes::u16_at(&answer, CommonHeader::BYTES)))
    }
}

/// Bytes that were moved; none if the kernel has none, or no room, now.
fn would_block(moved: std::io::Result<usize>) -> std::io::Result<usize> {
    match moved {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
