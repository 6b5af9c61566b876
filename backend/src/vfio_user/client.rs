//! A PCI function behind a vfio-user socket, as a [`PciFunction`].
//!
//! Register reads and the mapping of memory are questions over the socket that are answered later (module `questions`), register writes are posted, and nothing
//! waits for the server but [`VfioUserFunction::connect`] and, for a moment, [`PciFunction::reset`]. A server that talks nonsense is gone for good; for how
//! long it may be silent is the driver's business. Doorbells, MSI-X mask and DMA are memory.
//!
//! What cannot be promised: a server *process* that was stopped (SIGSTOP) in the middle of copying to or from our
//! memory may finish that copy when it goes on, even after [`PciFunction::reset`] gave it up. A device behind an IOMMU
//! cannot do that.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::memory::HugePages;
use dyad_matrix::{Memory, MemoryId};
use dyad_nvme::register;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::questions::{Answer, Question, Questions};
use super::socket::{Closed, send_or_drop};
use super::wire::{self, Access, Dma, MAPPINGS_MAX, RegionInfo, command, flag, message, vfio};
use crate::emulator::{BAR_BYTES, DOORBELL_PAGE, MSIX_CONTROL};
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Longest wait for an answer while connecting: a slow path, before the reactor runs or beside it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for the answer to a reset, when the server answered everything before: a small part of a lease.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);

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
    questions: RefCell<Questions>,
    gone: Cell<bool>,
    /// The register read under way.
    reading: Cell<Option<Reading>>,
    /// Mappings that were asked for and not answered.
    unsettled: Cell<usize>,
    /// A mapping was refused.
    refused: Cell<Option<DmaError>>,
    /// BAR 0, shared with the server.
    bar: Memory,
    interrupt: EventFd,
    mapped: RefCell<Vec<(MemoryId, u64)>>,
    next_address: Cell<u64>,
    /// The posted write that wakes the server, ready to send.
    wake: Vec<u8>,
}

#[derive(Debug, Copy, Clone)]
struct Reading {
    offset: u32,
    len: u32,
    question: Question,
    /// What it reads as, once that is known.
    value: Option<u64>,
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
        Self::over(stream)
    }

    /// The function at the other end of a connection.
    pub(super) fn over(stream: UnixStream) -> Result<Self, ConnectError> {
        let mut questions = Questions::new(stream).map_err(|_| ConnectError::Silent)?;
        let version = told(&mut questions, |q| q.ask(command::VERSION, &wire::version(), &[]))?.0;
        if version.len() < 4 || version[..2] != [0, 0] {
            return Err(ConnectError::NotADevice("another protocol version"));
        }
        let info = told(&mut questions, |q| q.ask(command::DEVICE_GET_INFO, &wire::words(&[16, 0, 0, 0]), &[]))?.0;
        if info.len() < 8 || dyad_nvme::bytes::u32_at(&info, 4) & vfio::DEVICE_PCI == 0 {
            return Err(ConnectError::NotADevice("not a PCI device"));
        }
        let bar = map_bar(&mut questions)?;
        let interrupt = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|_| ConnectError::NotADevice("no eventfd left"))?;
        told(&mut questions, |q| q.ask_interrupt(interrupt.as_fd()))?;
        let access = Access { offset: u64::from(register::INTMS), region: vfio::BAR0, count: 4 };
        Ok(Self {
            questions: RefCell::new(questions),
            gone: Cell::new(false),
            reading: Cell::new(None),
            unsettled: Cell::new(0),
            refused: Cell::new(None),
            bar,
            interrupt,
            mapped: RefCell::new(Vec::new()),
            next_address: Cell::new(FIRST_ADDRESS),
            wake: message(0, command::REGION_WRITE, flag::NO_REPLY, 0, &access.to_bytes(&[0; 4])),
        })
    }

    /// Takes the answers that are there.
    fn hear(&self) {
        let mut questions = self.questions.borrow_mut();
        while !self.gone.get() {
            match questions.answer() {
                Ok(None) => return,
                Ok(Some(answer)) => self.take(answer),
                Err(Closed) => {
                    self.gone.set(true);
                    questions.close();
                }
            }
        }
    }

    fn take(&self, Answer { question, outcome }: Answer) {
        if let Some(reading) = self.reading.get()
            && reading.question == question
        {
            let payload = outcome.map_or_else(|_| Vec::new(), |(payload, _)| payload);
            let value = value_of(&payload, reading.len);
            self.reading.set(Some(Reading { value: Some(value), ..reading }));
        } else if question.is(command::DMA_MAP) {
            self.unsettled.set(self.unsettled.get() - 1);
            match outcome {
                Ok(_) => {}
                Err(Errno::ENOSPC) => self.refused.set(Some(DmaError::Full)),
                Err(_) => self.refused.set(Some(DmaError::Unreachable)),
            }
        }
        // Otherwise a read that nobody wants any more.
    }

    /// Starts to read a register, or looks whether it has been read.
    fn read(&self, offset: u32, len: u32) -> Poll<u64> {
        if self.reading.get().is_none_or(|r| (r.offset, r.len) != (offset, len)) && !self.gone.get() {
            let question = self.questions.borrow_mut().ask_register(offset, len);
            self.reading.set(Some(Reading { offset, len, question, value: None }));
        }
        self.hear();
        if self.gone.get() {
            return Poll::Ready(u64::MAX);
        }
        match self.reading.get().and_then(|r| r.value) {
            None => Poll::Pending,
            Some(value) => {
                self.reading.set(None);
                Poll::Ready(value)
            }
        }
    }

    fn disconnect(&self) {
        self.gone.set(true);
        self.questions.borrow_mut().close();
    }
}

/// What a register reads as, by the answer to the question; all ones if it is none.
fn value_of(payload: &[u8], len: u32) -> u64 {
    let mut bytes = [0xff; 8];
    let data = payload.get(Access::BYTES..).unwrap_or_default();
    match usize::try_from(len).ok().filter(|len| data.len() == *len).and_then(|len| bytes.get_mut(..len)) {
        Some(place) => place.copy_from_slice(data), // copy: a register
        None => return u64::MAX,
    }
    u64::from_le_bytes(bytes)
}

/// Asks and waits, while connecting.
fn told(
    questions: &mut Questions,
    ask: impl FnOnce(&mut Questions) -> Question,
) -> Result<(Vec<u8>, Vec<OwnedFd>), ConnectError> {
    let question = ask(questions);
    match questions.wait(question, CONNECT_TIMEOUT) {
        Ok(Answer { outcome: Ok(said), .. }) => Ok(said),
        Ok(Answer { outcome: Err(Errno::EBUSY), .. }) => Err(ConnectError::InUse),
        Ok(Answer { outcome: Err(_), .. }) => Err(ConnectError::NotADevice("it refuses to tell about itself")),
        Err(Closed) => Err(ConnectError::Silent),
    }
}

fn map_bar(questions: &mut Questions) -> Result<Memory, ConnectError> {
    let mut region = RegionInfo { flags: 0, index: vfio::BAR0, size: 0, offset: 0, areas: Vec::new() }.to_bytes(0);
    // Room for capabilities, without which some servers send no descriptor.
    dyad_nvme::bytes::put(&mut region, 0, &4096_u32.to_le_bytes());
    let (info, fds) = told(questions, |q| q.ask(command::DEVICE_GET_REGION_INFO, &region, &[]))?;
    let info = RegionInfo::from_bytes(&info).ok_or(ConnectError::NotADevice("BAR 0"))?;
    let fd = fds.into_iter().next().ok_or(ConnectError::NotADevice("BAR 0 cannot be mapped"))?;
    if info.size < BAR_BYTES || info.offset != 0 {
        return Err(ConnectError::NotADevice("BAR 0 is too small"));
    }
    Memory::from_fd(fd, BAR_BYTES, true).map_err(|_| ConnectError::NotADevice("BAR 0 cannot be mapped"))
}

impl PciFunction for VfioUserFunction {
    fn read32(&self, offset: u32) -> Poll<u32> {
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).expect("half of it");
        self.read(offset, 4).map(low)
    }

    fn read64(&self, offset: u32) -> Poll<u64> {
        self.read(offset, 8)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.questions.borrow_mut().post_register(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.questions.borrow_mut().post_register(offset, &value.to_le_bytes());
    }

    fn doorbell(&self, offset: u32, value: u32) {
        debug_assert!(u64::from(offset) >= DOORBELL_PAGE);
        // Outside the BAR is no doorbell: a bug of the driver that a device would ignore.
        let _ = self.bar.store_u32(u64::from(offset), value);
        // A full socket has messages that wake the server already.
        send_or_drop(self.questions.borrow().stream(), &self.wake);
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
        if self.gone.get() {
            return Err(DmaError::Gone);
        }
        if self.mapped.borrow().len() == MAPPINGS_MAX {
            return Err(DmaError::Full);
        }
        let dma = Dma { flags: vfio::DMA_READ_WRITE, offset: 0, address, size: memory.len() };
        self.questions.borrow_mut().ask(command::DMA_MAP, &dma.to_map(), &[fd]);
        self.unsettled.set(self.unsettled.get() + 1);
        self.next_address.set((address + size).next_multiple_of(ALIGNMENT));
        self.mapped.borrow_mut().push((memory.id(), address));
        Ok(BusAddress(address))
    }

    fn settled(&self) -> Poll<Result<(), DmaError>> {
        self.hear();
        match self.refused.get() {
            _ if self.gone.get() => Poll::Ready(Err(DmaError::Gone)),
            Some(error) => Poll::Ready(Err(error)),
            None if self.unsettled.get() > 0 => Poll::Pending,
            None => Poll::Ready(Ok(())),
        }
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

    /// Resets the function, and disconnects: what was mapped is the server's no more. A server that owes answers already is not waited for.
    fn reset(&self) {
        self.hear();
        if !self.gone.get() {
            let mut questions = self.questions.borrow_mut();
            let owes = !questions.quiet();
            let question = questions.ask(command::DEVICE_RESET, &[], &[]);
            if !owes {
                let _ = questions.wait(question, RESET_TIMEOUT);
            }
        }
        self.disconnect();
        self.mapped.borrow_mut().clear();
    }
}

impl Drop for VfioUserFunction {
    fn drop(&mut self) {
        self.disconnect();
    }
}
