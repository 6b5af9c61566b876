//! One port of a subsystem behind a vfio-user socket: accepts one client at a time and answers its messages, never waiting for it.
//!
//! A client is not trusted. What it sends is bounded and checked; nonsense gets an error, or the connection is closed; and when the connection ends, however it
//! ends, the port is reset and the client's memory is let go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::bytes::{put, u32_at};
use dyad_reactor::Time;
use nix::errno::Errno;

use super::socket::{Closed, Message, Receiver, send};
use super::wire::{self, Access, Dma, MAPPINGS_MAX, RegionInfo, command, flag, message, vfio};
use crate::emulator::{BAR_BYTES, DOORBELL_PAGE, MSIX_PAGE, Subsystem};

/// Messages, and connections, that one look takes: nobody keeps the shelf from its other ports.
const ONE_LOOK: usize = 64;

/// Bytes of configuration space.
const CONFIG_BYTES: usize = 256;

/// One port.
#[derive(Debug)]
pub(crate) struct Port {
    index: usize,
    listener: UnixListener,
    bar: Memory,
    client: Option<Client>,
}

/// Whoever has the port.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    receiver: Receiver,
    interrupt: Option<OwnedFd>,
    config: [u8; CONFIG_BYTES],
}

impl Port {
    /// Serves port `index` of `subsystem` to whoever connects to `listener`.
    pub(crate) fn new(subsystem: &mut Subsystem, index: usize, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let len = usize::try_from(BAR_BYTES).expect("a few pages");
        let bar = Memory::shared("dyad-nvme-bar", len, HugePages::No).map_err(io::Error::other)?;
        subsystem.share_bar(index, bar.clone());
        Ok(Self { index, listener, bar, client: None })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The client's socket, if there is one.
    pub(crate) fn client(&self) -> Option<BorrowedFd<'_>> {
        self.client.as_ref().map(|c| c.stream.as_fd())
    }

    /// Takes whoever wants to connect. A second client is told that the port is in use. True if there is a new client.
    pub(crate) fn accept(&mut self) -> bool {
        let mut new = false;
        for _ in 0..ONE_LOOK {
            let Ok((stream, _)) = self.listener.accept() else { break };
            if self.client.is_some() {
                let busy = message(0, command::VERSION, flag::REPLY | flag::ERROR, errno(Errno::EBUSY), &[]);
                let _ = send(&stream, &busy, &[]);
            } else if stream.set_nonblocking(true).is_ok() {
                self.client = Some(Client::new(stream));
                new = true;
            }
        }
        new
    }

    /// Answers what has arrived. Closes the connection, and resets the port, when the client is gone or talks nonsense.
    pub(crate) fn serve(&mut self, subsystem: &mut Subsystem, now: Time) -> usize {
        let mut served = 0;
        while served < ONE_LOOK
            && let Some(client) = &mut self.client
        {
            match client.next(self.index, &self.bar, subsystem, now) {
                Ok(false) => break,
                Ok(true) => served += 1,
                Err(Closed) => self.hang_up(subsystem),
            }
        }
        served
    }

    /// Signals vector 0.
    pub(crate) fn signal(&self) {
        if let Some(fd) = self.client.as_ref().and_then(|c| c.interrupt.as_ref()) {
            // Full is signalled already; a client may hand in any descriptor, and it is its own loss.
            let _ = nix::unistd::write(fd, &1_u64.to_ne_bytes());
        }
    }

    fn hang_up(&mut self, subsystem: &mut Subsystem) {
        self.client = None;
        subsystem.disconnect(self.index);
    }
}

fn errno(errno: Errno) -> u32 {
    u32::try_from(errno as i32).expect("errno is positive")
}

impl Client {
    /// A client at the other end of a socket that does not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, receiver: Receiver::default(), interrupt: None, config: configuration_space() }
    }

    /// Answers the next message, if there is one.
    pub(super) fn next(
        &mut self,
        port: usize,
        bar: &Memory,
        subsystem: &mut Subsystem,
        now: Time,
    ) -> Result<bool, Closed> {
        match self.receiver.receive(&self.stream)? {
            None => Ok(false),
            Some(message) => self.answer(port, bar, subsystem, message, now).map(|()| true),
        }
    }

    fn answer(
        &mut self,
        port: usize,
        bar: &Memory,
        subsystem: &mut Subsystem,
        mut message: Message,
        now: Time,
    ) -> Result<(), Closed> {
        let header = message.header;
        if header.flags & flag::REPLY != 0 {
            return Err(Closed);
        }
        let fds = std::mem::take(&mut message.fds);
        let mut fd = None;
        let result = match header.command {
            command::DEVICE_GET_REGION_INFO => region_info(&message.payload).inspect(|_| {
                fd = (region_of(&message.payload) == Some(vfio::BAR0)).then(|| bar.fd()).flatten();
            }),
            _ => self.execute(port, subsystem, header.command, &message.payload, fds, now),
        };
        if header.flags & flag::NO_REPLY != 0 {
            return Ok(());
        }
        let fds: Vec<_> = fd.into_iter().collect();
        let reply = match &result {
            Ok(payload) => wire::message(header.id, header.command, flag::REPLY, 0, payload),
            Err(error) => wire::message(header.id, header.command, flag::REPLY | flag::ERROR, errno(*error), &[]),
        };
        send(&self.stream, &reply, if result.is_ok() { &fds } else { &[] })
    }

    fn execute(
        &mut self,
        port: usize,
        subsystem: &mut Subsystem,
        command: u16,
        payload: &[u8],
        mut fds: Vec<OwnedFd>,
        now: Time,
    ) -> Result<Vec<u8>, Errno> {
        match command {
            command::VERSION => {
                let major = payload.get(..2).ok_or(Errno::EINVAL)?;
                if major == [0, 0] { Ok(wire::version()) } else { Err(Errno::EINVAL) }
            }
            command::DMA_MAP => {
                let dma = Dma::from_map(payload).ok_or(Errno::EINVAL)?;
                let fd = fds.pop().filter(|_| fds.is_empty()).ok_or(Errno::EINVAL)?;
                self.map(port, subsystem, dma, fd).map(|()| Vec::new())
            }
            command::DMA_UNMAP => {
                let dma = Dma::from_unmap(payload).ok_or(Errno::EINVAL)?;
                let (address, size) =
                    if dma.flags & vfio::UNMAP_ALL != 0 { (0, u64::MAX) } else { (dma.address, dma.size) };
                if !subsystem.unmap_dma(port, address, size) && dma.flags & vfio::UNMAP_ALL == 0 {
                    return Err(Errno::ENOENT);
                }
                Ok(payload[..24].to_vec())
            }
            command::DEVICE_GET_INFO => Ok(wire::device_info()),
            command::DEVICE_GET_IRQ_INFO => {
                let index = Some(payload).filter(|p| p.len() >= 16).map(|p| u32_at(p, 8)).ok_or(Errno::EINVAL)?;
                match index {
                    vfio::IRQ_MSIX => Ok(wire::words(&[16, vfio::IRQ_EVENTFD | vfio::IRQ_NORESIZE, index, 1])),
                    0..vfio::IRQS => Ok(wire::words(&[16, 0, index, 0])),
                    _ => Err(Errno::EINVAL),
                }
            }
            command::DEVICE_SET_IRQS => self.set_interrupts(payload, fds).map(|()| Vec::new()),
            command::REGION_READ => {
                let (access, _) = Access::from_bytes(payload).ok_or(Errno::EINVAL)?;
                self.read(port, subsystem, access)
            }
            command::REGION_WRITE => {
                let (access, data) = Access::from_bytes(payload).ok_or(Errno::EINVAL)?;
                self.write(port, subsystem, access, data, now).map(|()| access.to_bytes(&[]))
            }
            command::DEVICE_RESET => {
                subsystem.reset(port);
                Ok(Vec::new())
            }
            _ => Err(Errno::ENOTSUP),
        }
    }

    fn map(&mut self, port: usize, subsystem: &mut Subsystem, dma: Dma, fd: OwnedFd) -> Result<(), Errno> {
        if subsystem.mappings(port) >= MAPPINGS_MAX {
            return Err(Errno::ENOSPC);
        }
        let writable = dma.flags & vfio::DMA_READ_WRITE == vfio::DMA_READ_WRITE;
        let len = dma.offset.checked_add(dma.size).ok_or(Errno::EINVAL)?;
        // The file must not be able to shrink under us: `Memory` sees to that.
        let memory = Memory::from_fd(fd, len, writable).map_err(|_| Errno::EINVAL)?;
        if !subsystem.map_dma(port, dma.address, dma.size, &memory, dma.offset) {
            return Err(Errno::EEXIST);
        }
        Ok(())
    }

    /// SET_IRQS: argsz (0..4), flags (4..8), index (8..12), start (12..16), count (16..20). Only the eventfd of vector 0 can be set, or taken away.
    fn set_interrupts(&mut self, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<(), Errno> {
        if payload.len() < 20 {
            return Err(Errno::EINVAL);
        }
        let [flags, index, start, count] = [4, 8, 12, 16].map(|at| u32_at(payload, at));
        if index != vfio::IRQ_MSIX || flags & vfio::SET_TRIGGER == 0 {
            return Ok(()); // the other kinds have no vectors: nothing to set
        }
        if flags & vfio::SET_NONE != 0 && count == 0 {
            self.interrupt = None;
            return Ok(());
        }
        if flags & vfio::SET_EVENTFD == 0 || start != 0 || count > 1 {
            return Err(Errno::EINVAL);
        }
        self.interrupt = fds.pop();
        if let Some(fd) = &self.interrupt {
            use nix::fcntl::{FcntlArg, OFlag, fcntl};
            // A client must not be able to make the shelf wait.
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    fn read(&self, port: usize, subsystem: &Subsystem, access: Access) -> Result<Vec<u8>, Errno> {
        let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
        let mut data = vec![0; count.min(wire::MESSAGE_MAX)];
        match access.region {
            vfio::BAR0 => {
                let words = aligned(access, BAR_BYTES, count)?;
                for (index, offset) in words.enumerate() {
                    let value = if u64::from(offset) < DOORBELL_PAGE {
                        subsystem.read32(port, offset)
                    } else {
                        subsystem.bar(port).load_u32(u64::from(offset)).map_err(|_| Errno::EINVAL)?
                    };
                    put(&mut data, index * 4, &value.to_le_bytes());
                }
            }
            vfio::CONFIG => {
                let start = usize::try_from(access.offset).map_err(|_| Errno::EINVAL)?;
                let end = start.checked_add(count).filter(|end| *end <= CONFIG_BYTES).ok_or(Errno::EINVAL)?;
                data.copy_from_slice(&self.config[start..end]);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(access.to_bytes(&data))
    }

    fn write(
        &mut self,
        port: usize,
        subsystem: &mut Subsystem,
        access: Access,
        data: &[u8],
        now: Time,
    ) -> Result<(), Errno> {
        if usize::try_from(access.count) != Ok(data.len()) {
            return Err(Errno::EINVAL);
        }
        match access.region {
            vfio::BAR0 => {
                let words = aligned(access, BAR_BYTES, data.len())?;
                for (index, offset) in words.enumerate() {
                    subsystem.write32(port, offset, u32_at(data, index * 4), now);
                }
            }
            vfio::CONFIG => {
                let start = usize::try_from(access.offset).map_err(|_| Errno::EINVAL)?;
                let target = start.checked_add(data.len()).and_then(|end| self.config.get_mut(start..end));
                target.ok_or(Errno::EINVAL)?.copy_from_slice(data);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// Offsets of the 4-byte registers of an access of one or two.
fn aligned(access: Access, size: u64, count: usize) -> Result<impl Iterator<Item = u32>, Errno> {
    let end = access.offset.checked_add(u64::from(access.count));
    let fits = matches!(count, 4 | 8) && access.offset.is_multiple_of(4) && end.is_some_and(|end| end <= size);
    let start = u32::try_from(access.offset).map_err(|_| Errno::EINVAL)?;
    if fits { Ok((start..start + access.count).step_by(4)) } else { Err(Errno::EINVAL) }
}

fn region_of(payload: &[u8]) -> Option<u32> {
    (payload.len() >= wire::REGION_INFO).then(|| u32_at(payload, 8))
}

fn region_info(payload: &[u8]) -> Result<Vec<u8>, Errno> {
    let index = region_of(payload).ok_or(Errno::EINVAL)?;
    let argsz = usize::try_from(u32_at(payload, 0)).unwrap_or(0);
    let access = vfio::REGION_READ | vfio::REGION_WRITE;
    let (flags, size, areas) = match index {
        vfio::BAR0 => {
            (access | vfio::REGION_MMAP, BAR_BYTES, vec![(DOORBELL_PAGE, MSIX_PAGE - DOORBELL_PAGE), (MSIX_PAGE, 4096)])
        }
        vfio::CONFIG => (access, CONFIG_BYTES as u64, vec![]),
        other if other < vfio::REGIONS => (0, 0, vec![]),
        _ => return Err(Errno::EINVAL),
    };
    Ok(RegionInfo { flags, index, size, offset: 0, areas }.to_bytes(argsz))
}

/// A type 0 header (PCI 3.0, 6.1) with MSI-X and PCI Express capabilities: vendor and device (0..4), class 01 08 02 (9..12), 64-bit BAR 0 (10h),
/// capabilities from 40h on: MSI-X with one vector, its table at 2000h and its pending bits at 3000h of BAR 0; PCI Express endpoint at 60h.
fn configuration_space() -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    put(&mut space, 0x00, &[0x36, 0x1b, 0x10, 0x00]);
    put(&mut space, 0x06, &[0x10, 0x00]);
    put(&mut space, 0x08, &[0x01, 0x02, 0x08, 0x01]);
    put(&mut space, 0x10, &[0x04]);
    put(&mut space, 0x2c, &[0x36, 0x1b, 0x10, 0x00]);
    put(&mut space, 0x34, &[0x40]);
    put(&mut space, 0x40, &[0x11, 0x60, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00]);
    put(&mut space, 0x60, &[0x10, 0x00, 0x02, 0x00]);
    space
}

#[cfg(test)]
mod tests {
    use super::super::wire::HEADER;
    use super::*;
    use crate::emulator::SubsystemConfig;
    use dyad_nvme::register;
    use dyad_reactor::SeededRng;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::path::PathBuf;
    use std::time::Duration;

    struct Rig {
        _directory: tempfile::TempDir,
        path: PathBuf,
        subsystem: Subsystem,
        port: Port,
    }

    impl Rig {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("socket");
            let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
            let listener = UnixListener::bind(&path).expect("a socket");
            let port = Port::new(&mut subsystem, 0, listener).expect("a port");
            Self { _directory: directory, path, subsystem, port }
        }

        fn connect(&mut self) -> UnixStream {
            let client = UnixStream::connect(&self.path).expect("connected");
            client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
            assert!(self.port.accept(), "there is room");
            client
        }

        fn serve(&mut self) -> usize {
            self.port.serve(&mut self.subsystem, Time::ZERO)
        }

        /// Asks one question with descriptors; the errno of the answer, zero for none.
        fn ask(&mut self, client: &mut UnixStream, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u32 {
            send(client, &message(9, command, 0, 0, payload), fds).expect("sent");
            assert_eq!(self.serve(), 1);
            let mut header = [0; HEADER];
            client.read_exact(&mut header).expect("an answer");
            let header = wire::Header::from_bytes(&header);
            assert_eq!((header.id, header.flags & flag::REPLY), (9, flag::REPLY));
            let mut rest = vec![0; header.payload().expect("a size")];
            client.read_exact(&mut rest).expect("all of it");
            header.errno
        }
    }

    #[test]
    fn memory_that_could_fault_or_is_not_there_is_refused() {
        let mut rig = Rig::new();
        let mut client = rig.connect();
        let map = |size| Dma { flags: 3, offset: 0, address: 0x1000, size }.to_map();
        let memory = Memory::shared("test", 8192, HugePages::No).expect("memory");
        let sealed = memory.fd().expect("a file");
        let unsealed = tempfile::tempfile().expect("a file");
        unsealed.set_len(8192).expect("8 KiB");
        let (invalid, exists) = (errno(Errno::EINVAL), errno(Errno::EEXIST));
        let mut dma_map = |payload: &[u8], fds: &[BorrowedFd<'_>]| rig.ask(&mut client, command::DMA_MAP, payload, fds);
        assert_eq!(dma_map(&map(8192), &[]), invalid, "no descriptor");
        assert_eq!(dma_map(&map(8192), &[sealed, sealed]), invalid, "two descriptors");
        assert_eq!(dma_map(&map(8192), &[unsealed.as_fd()]), invalid, "a file that could shrink");
        assert_eq!(dma_map(&map(8193), &[sealed]), invalid, "longer than the file");
        assert_eq!(dma_map(&map(0), &[sealed]), invalid, "nothing");
        assert_eq!(dma_map(&map(u64::MAX), &[sealed]), invalid);
        assert_eq!(dma_map(&map(8192)[..31], &[sealed]), invalid, "cut short");
        assert_eq!(dma_map(&map(8192), &[sealed]), 0);
        assert_eq!(dma_map(&map(4096), &[sealed]), exists, "mapped already");
        let access = |offset, count| Access { offset, region: vfio::BAR0, count }.to_bytes(&[]);
        let mut read = |offset, count| rig.ask(&mut client, command::REGION_READ, &access(offset, count), &[]);
        assert_eq!(read(u64::from(register::CAP), 8), 0);
        assert_eq!(
            [read(2, 4), read(0, 3), read(BAR_BYTES - 4, 8), read(u64::MAX, 4), read(0, u32::MAX)],
            [invalid; 5]
        );
        assert_eq!(rig.ask(&mut client, 77, &[], &[]), errno(Errno::ENOTSUP));
    }

    #[test]
    fn one_client_at_a_time() {
        let mut rig = Rig::new();
        let first = rig.connect();
        let mut second = UnixStream::connect(&rig.path).expect("connected");
        assert!(!rig.port.accept(), "the port is taken");
        let mut header = [0; HEADER];
        second.read_exact(&mut header).expect("it is told so");
        assert_eq!(wire::Header::from_bytes(&header).errno, errno(Errno::EBUSY));
        drop(first);
        rig.serve();
        assert!(rig.port.client().is_none());
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_the_next_one_is_served(
            messages in prop::collection::vec(
                (0..16_u16, 0..64_u32, prop::collection::vec(any::<u8>(), 0..80), 0..4_u32),
                1..20,
            ),
        ) {
            let mut rig = Rig::new();
            let mut client = rig.connect();
            client.set_nonblocking(true).expect("so that nobody waits");
            for (command, flags, payload, lie) in messages {
                let mut bytes = message(1, command, flags, 0, &payload);
                // Sometimes a header that lies about the size.
                if lie == 0 {
                    put(&mut bytes, 4, &payload.first().map_or(u32::MAX, |b| u32::from(*b)).to_le_bytes());
                }
                let _ = client.write(&bytes);
                rig.serve();
                let _ = client.read(&mut [0; 4096]);
            }
            drop(client);
            rig.serve();
            let mut client = rig.connect();
            prop_assert_eq!(rig.ask(&mut client, command::VERSION, &wire::version(), &[]), 0);
        }
    }
}
