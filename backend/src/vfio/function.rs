//! A function that the kernel lends us, as a [`PciFunction`].

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::task::Poll;

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};

use super::address::PciAddress;
use super::config::vector_control;
use super::iova::Addresses;
use super::kernel::{Bar, whole_pages};
use super::limits::lockable_bytes;
use super::open::{OpenError, Opened, open};
use super::sysfs::Machine;
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Registers and the doorbells of two queue pairs, at the largest stride that anybody makes.
const BAR_BYTES_MIN: usize = 0x1000 + 4 * 16;

/// A function of a real device, or of one that a virtual machine believes to be real.
#[derive(Debug)]
pub struct VfioFunction {
    address: PciAddress,
    width: u32,
    /// `None`: it was given back.
    lent: RefCell<Option<Lent>>,
    signals: Option<Signals>,
    leaving: Cell<bool>,
}

/// What is ours until it is given back.
#[derive(Debug)]
struct Lent {
    bar: Bar,
    opened: Opened,
    addresses: Addresses,
    /// The function may reach them, so they are kept.
    mapped: Vec<(Memory, u64)>,
    /// Where vector 0 is masked.
    vector_control: Option<u32>,
}

/// How the function calls us.
#[derive(Debug)]
struct Signals {
    /// Readable when one of the others is.
    any: Epoll,
    vector: EventFd,
    request: EventFd,
}

impl VfioFunction {
    /// Borrows the function at `address` from the kernel. It belongs to `vfio-pci` already ([`super::bind`]).
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(address: PciAddress) -> Result<Self, OpenError> {
        Self::open_on(&Machine::default(), address)
    }

    /// The same, on a machine whose files are elsewhere.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_on(machine: &Machine, address: PciAddress) -> Result<Self, OpenError> {
        let refused = |what| move |errno| OpenError::Refused { address, what, errno };
        let unsuitable = |lacks| OpenError::Unsuitable { address, lacks };
        let opened = open(machine, address)?;
        let bar = opened.device.bar(VFIO_PCI_BAR0_REGION_INDEX).map_err(refused("map BAR 0"))?;
        let bar = bar.filter(|bar| bar.len() >= BAR_BYTES_MIN);
        let bar =
            bar.ok_or_else(|| unsuitable("its BAR 0 cannot be mapped (kernels before 4.16 map none with MSI-X)"))?;
        let info = opened.container.info().map_err(refused("tell about the IOMMU"))?;
        if !info.small_pages {
            return Err(unsuitable("its IOMMU has no pages of 4 KiB"));
        }
        let signals = Signals::new(&opened).map_err(refused("set up its interrupt"))?;
        let config = opened.device.config().map_err(refused("read its configuration space"))?;
        opened.device.set_bus_master(true).map_err(refused("let it reach memory"))?;
        let addresses = Addresses::new(&info);
        let lent = Lent { bar, opened, addresses, mapped: Vec::new(), vector_control: vector_control(&config) };
        let lent = RefCell::new(Some(lent));
        let function = Self { address, width: info.width(), lent, signals, leaving: Cell::new(false) };
        function.mask_interrupt(true);
        Ok(function)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Bits of the addresses that its IOMMU translates.
    #[must_use]
    pub fn address_width(&self) -> u32 {
        self.width
    }
}

impl Signals {
    /// `None` if the function has no MSI-X: it must be polled, and can be unplugged only while commands are outstanding.
    fn new(opened: &Opened) -> Result<Option<Self>, Errno> {
        if opened.device.interrupts(VFIO_PCI_MSIX_IRQ_INDEX) == 0 {
            return Ok(None);
        }
        let any = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let eventfd = |index| {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            any.add(&eventfd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            if opened.device.interrupts(index) > 0 {
                opened.device.signal(index, eventfd.as_fd())?;
            }
            Ok::<_, Errno>(eventfd)
        };
        let (vector, request) = (eventfd(VFIO_PCI_MSIX_IRQ_INDEX)?, eventfd(VFIO_PCI_REQ_IRQ_INDEX)?);
        Ok(Some(Self { any, vector, request }))
    }
}

/// Clears an eventfd; whether it was signalled.
fn take(eventfd: &EventFd) -> bool {
    nix::unistd::read(eventfd.as_fd(), &mut [0; 8]).is_ok()
}

impl PciFunction for VfioFunction {
    fn read32(&self, offset: u32) -> Poll<u32> {
        Poll::Ready(self.lent.borrow().as_ref().map_or(u32::MAX, |lent| lent.bar.read(offset)))
    }

    fn write32(&self, offset: u32, value: u32) {
        if let Some(lent) = &*self.lent.borrow() {
            // What was written to memory before is there when the device looks.
            fence(Ordering::Release);
            lent.bar.write(offset, value);
        }
    }

    #[inline]
    fn doorbell(&self, offset: u32, value: u32) {
        self.write32(offset, value);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        Memory::shared("dyad-nvme-queues", len, HugePages::No).map_err(|_| DmaError::NoMemory)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        let mut lent = self.lent.borrow_mut();
        let lent = lent.as_mut().ok_or(DmaError::Gone)?;
        if let Some((_, address)) = lent.mapped.iter().find(|(mapped, _)| mapped.id() == memory.id()) {
            return Ok(BusAddress(*address));
        }
        let bytes = whole_pages(memory);
        let address = lent.addresses.find(bytes).ok_or(DmaError::Full)?;
        lent.opened.container.map(memory, address).map_err(|errno| match (errno, lockable_bytes()) {
            (Errno::ENOMEM, Some(left)) => DmaError::LockLimit { needed: bytes, left },
            (Errno::ENOMEM, None) => DmaError::NoMemory,
            (Errno::ENOSPC, _) => DmaError::Full,
            _ => DmaError::Unreachable,
        })?;
        lent.addresses.use_up(address, bytes);
        lent.mapped.push((memory.clone(), address));
        Ok(BusAddress(address))
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        self.signals.as_ref().map(|signals| signals.any.0.as_fd())
    }

    fn mask_interrupt(&self, masked: bool) {
        if let Some(lent) = &*self.lent.borrow()
            && let Some(at) = lent.vector_control
        {
            lent.bar.write(at, u32::from(masked));
            // A posted write: reading it back waits until it is done.
            lent.bar.read(at);
        }
        fence(Ordering::SeqCst);
        if masked && let Some(signals) = &self.signals {
            take(&signals.vector);
        }
    }

    fn is_leaving(&self) -> bool {
        if self.signals.as_ref().is_some_and(|signals| take(&signals.request)) {
            self.leaving.set(true);
        }
        self.leaving.get()
    }

    /// The function reaches no memory when this returns; it is reset, and given back, soon after.
    fn reset(&self) {
        let Some(Lent { bar, opened, mapped, .. }) = self.lent.take() else { return };
        drop(bar);
        // A function that is unplugged refuses; the mappings are what counts, and they are ours.
        let _ = opened.device.set_bus_master(false);
        for (memory, address) in &mapped {
            let _ = opened.container.unmap(memory, *address);
        }
        let leaving = self.leaving.get();
        let end = move || {
            if !leaving {
                // The kernel tries again when the function is closed.
                let _ = opened.device.reset(&opened.group);
            }
            drop(opened);
            drop(mapped);
        };
        // Without a thread the closure is dropped, and with it all is closed here. A process that ends gives back all it has.
        let _ = std::thread::Builder::new().name("vfio reset".to_owned()).spawn(end);
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        self.reset();
    }
}
