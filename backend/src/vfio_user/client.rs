//! A PCI function behind a vfio-user socket, as a [`PciFunction`].
//!
//! Register accesses are questions with answers over the socket, each within a second; a server that does not answer in time, or talks nonsense, is gone for
//! good. Doorbells, MSI-X mask and DMA are memory.
//!
//! What cannot be promised: a server *process* that was stopped (SIGSTOP) in the middle of copying to or from our
//! memory may finish that copy when it goes on, even after [`PciFunction::reset`] gave it up. A device behind an IOMMU
//! cannot do that.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use dyad_matrix::memory::HugePages;
use dyad_matrix::{Memory, MemoryId};
use dyad_nvme::register;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::socket::{Closed, Message, Receiver, send, send_or_drop};
use super::wire::{self, Access, Dma, RegionInfo, command, flag, message, vfio};
use crate::emulator::{BAR_BYTES, DOORBELL_PAGE, MSIX_CONTROL};
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Longest wait for an answer while connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer afterwards: the reactor waits with us, but asks only at bring-up and when commands are overdue.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Where bus addresses begin; each memory starts at a multiple of [`ALIGNMENT`].
const FIRST_ADDRESS: u64 = 1 << 32;
const ALIGNMENT: u64 = 2 << 20;

/// Why no function could be reached.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no device listens at this path ({0}); is the shelf running?")]
    NoListener(Errno),
    /// Another driver has this port.
    #[error("the port is in use by another process")]
    InUse,
    /// No answer in time, or the connection was closed.
    #[error("the device does not answer")]
    Silent,
    /// It does not speak vfio-user 0.1, or is no device with what an NVMe controller needs.
    #[error("the process behind the path is no vfio-user NVMe device: {0}")]
    NotADevice(&'static str),
}

/// A function in another process.
pub struct VfioUserFunction {
    stream: UnixStream,
    receiver: RefCell<Receiver>,
    gone: Cell<bool>,
    next_id: Cell<u16>,
    /// BAR 0, shared with the server.
    bar: Memory,
    interrupt: EventFd,
    mapped: RefCell<Vec<(MemoryId, u64)>>,
    next_address: Cell<u64>,
    /// The posted write that wakes the server, ready to send.
    wake: Vec<u8>,
}

impl std::fmt::Debug for VfioUserFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VfioUserFunction").field("gone", &self.gone.get()).finish_non_exhaustive()
    }
}

impl VfioUserFunction {
    /// Connects to the function that listens at `path`.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(path: &Path) -> Result<Self, ConnectError> {
        let stream = UnixStream::connect(path)
            .map_err(|e| ConnectError::NoListener(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        bound(&stream, CONNECT_TIMEOUT)?;
        let mut receiver = Receiver::default();
        let mut ask = |id, command, payload: &[u8], fds: &[BorrowedFd<'_>]| {
            exchange(&stream, &mut receiver, id, command, payload, fds)
        };
        let version = ask(0, command::VERSION, &wire::version(), &[]).map_err(ConnectError::from)?;
        if version.payload.len() < 4 || version.payload[..2] != [0, 0] {
            return Err(ConnectError::NotADevice("another protocol version"));
        }
        let info = ask(1, command::DEVICE_GET_INFO, &wire::words(&[16, 0, 0, 0]), &[]).map_err(ConnectError::from)?;
        if info.payload.len() < 8 || dyad_nvme::bytes::u32_at(&info.payload, 4) & vfio::DEVICE_PCI == 0 {
            return Err(ConnectError::NotADevice("not a PCI device"));
        }
        let bar = {
            let mut region =
                RegionInfo { flags: 0, index: vfio::BAR0, size: 0, offset: 0, areas: Vec::new() }.to_bytes(0);
            // Room for capabilities, without which some servers send no descriptor.
            region[..4].copy_from_slice(&4096_u32.to_le_bytes());
            let reply = ask(2, command::DEVICE_GET_REGION_INFO, &region, &[]).map_err(ConnectError::from)?;
            let info = RegionInfo::from_bytes(&reply.payload).ok_or(ConnectError::NotADevice("BAR 0"))?;
            let fd = reply.fds.into_iter().next().ok_or(ConnectError::NotADevice("BAR 0 cannot be mapped"))?;
            if info.size < BAR_BYTES || info.offset != 0 {
                return Err(ConnectError::NotADevice("BAR 0 is too small"));
            }
            Memory::from_fd(fd, BAR_BYTES, true).map_err(|_| ConnectError::NotADevice("BAR 0 cannot be mapped"))?
        };
        let interrupt = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|_| ConnectError::NotADevice("no eventfd left"))?;
        let trigger = wire::words(&[20, vfio::SET_EVENTFD | vfio::SET_TRIGGER, vfio::IRQ_MSIX, 0, 1]);
        ask(3, command::DEVICE_SET_IRQS, &trigger, &[interrupt.as_fd()]).map_err(ConnectError::from)?;
        bound(&stream, ANSWER_TIMEOUT)?;
        let access = Access { offset: u64::from(register::INTMS), region: vfio::BAR0, count: 4 };
        Ok(Self {
            stream,
            receiver: RefCell::new(receiver),
            gone: Cell::new(false),
            next_id: Cell::new(4),
            bar,
            interrupt,
            mapped: RefCell::new(Vec::new()),
            next_address: Cell::new(FIRST_ADDRESS),
            wake: message(0, command::REGION_WRITE, flag::NO_REPLY, 0, &access.to_bytes(&[0; 4])),
        })
    }

    /// Asks and waits for the answer. A server that gives none is gone.
    fn ask(&self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message, Refused> {
        if self.gone.get() {
            return Err(Refused::Closed);
        }
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let answer = exchange(&self.stream, &mut self.receiver.borrow_mut(), id, command, payload, fds);
        if matches!(answer, Err(Refused::Closed)) {
            self.disconnect();
        }
        answer
    }

    fn disconnect(&self) {
        self.gone.set(true);
        // Already closed is closed.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn write(&self, offset: u32, data: &[u8]) {
        let count = u32::try_from(data.len()).expect("a register");
        let access = Access { offset: u64::from(offset), region: vfio::BAR0, count };
        let _ = self.ask(command::REGION_WRITE, &access.to_bytes(data), &[]);
    }

    fn read<const N: usize>(&self, offset: u32) -> [u8; N] {
        let count = u32::try_from(N).expect("a register");
        let access = Access { offset: u64::from(offset), region: vfio::BAR0, count };
        let answer = self.ask(command::REGION_READ, &access.to_bytes(&[]), &[]);
        let value = answer.ok().and_then(|m| m.payload.get(Access::BYTES..).and_then(|data| data.try_into().ok()));
        value.unwrap_or([0xff; N])
    }
}

/// No question waits longer than this.
fn bound(stream: &UnixStream, timeout: Duration) -> Result<(), ConnectError> {
    let bounded = stream.set_read_timeout(Some(timeout)).and(stream.set_write_timeout(Some(timeout)));
    bounded.map_err(|_| ConnectError::Silent)
}

/// A question without the answer that was hoped for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Refused {
    /// The server said no.
    Error(Errno),
    /// There is no server any more.
    Closed,
}

impl From<Closed> for Refused {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<Refused> for ConnectError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Error(Errno::EBUSY) => Self::InUse,
            Refused::Error(_) => Self::NotADevice("it refuses to tell about itself"),
            Refused::Closed => Self::Silent,
        }
    }
}

fn exchange(
    stream: &UnixStream,
    receiver: &mut Receiver,
    id: u16,
    command: u16,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Message, Refused> {
    // A server that hung up may have said why before.
    let sent = send(stream, &message(id, command, 0, 0, payload), fds);
    // Blocking: `None` does not happen, a time-out is `Closed`.
    let answer = receiver.receive(stream)?.ok_or(Refused::Closed)?;
    let header = answer.header;
    if header.id != id || header.command != command || header.flags & flag::REPLY == 0 {
        return Err(Refused::Closed);
    }
    if header.flags & flag::ERROR != 0 {
        return Err(Refused::Error(Errno::from_raw(i32::try_from(header.errno).unwrap_or(0))));
    }
    sent?;
    Ok(answer)
}

impl PciFunction for VfioUserFunction {
    fn read32(&self, offset: u32) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn read64(&self, offset: u32) -> u64 {
        u64::from_le_bytes(self.read(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn doorbell(&self, offset: u32, value: u32) {
        debug_assert!(u64::from(offset) >= DOORBELL_PAGE);
        // Outside the BAR is no doorbell: a bug of the driver that a device would ignore.
        let _ = self.bar.store_u32(u64::from(offset), value);
        // A full socket has messages that wake the server already.
        send_or_drop(&self.stream, &self.wake);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        Memory::shared("dyad-nvme-queues", len, HugePages::No).map_err(|_| DmaError::NoMemory)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        if let Some((_, address)) = self.mapped.borrow().iter().find(|(id, _)| *id == memory.id()) {
            return Ok(BusAddress(*address));
        }
        let fd = memory.fd().ok_or(DmaError::Unreachable)?;
        let address = self.next_address.get();
        let size = memory.len().next_multiple_of(4096);
        let dma = Dma { flags: vfio::DMA_READ_WRITE, offset: 0, address, size: memory.len() };
        match self.ask(command::DMA_MAP, &dma.to_map(), &[fd]) {
            Ok(_) => {}
            Err(Refused::Closed) => return Err(DmaError::Gone),
            Err(Refused::Error(Errno::ENOSPC)) => return Err(DmaError::Full),
            Err(Refused::Error(_)) => return Err(DmaError::Unreachable),
        }
        self.next_address.set((address + size).next_multiple_of(ALIGNMENT));
        self.mapped.borrow_mut().push((memory.id(), address));
        Ok(BusAddress(address))
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        Some(self.interrupt.as_fd())
    }

    fn mask_interrupt(&self, masked: bool) {
        // Memory of our own mapping: cannot fail.
        let _ = self.bar.store_u32(MSIX_CONTROL, u32::from(masked));
        fence(Ordering::SeqCst);
        if masked {
            // Not signalled is nothing to clear.
            let _ = nix::unistd::read(self.interrupt.as_fd(), &mut [0; 8]);
        }
    }

    /// Resets the function, and disconnects: what was mapped is the server's no more.
    fn reset(&self) {
        let _ = self.ask(command::DEVICE_RESET, &[], &[]);
        self.disconnect();
        self.mapped.borrow_mut().clear();
    }
}

impl Drop for VfioUserFunction {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl AsRawFd for VfioUserFunction {
    /// The socket, to be told when the server is gone.
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.stream.as_raw_fd()
    }
}
