//! VFIO's system calls (`linux/vfio.h`, Documentation/driver-api/vfio.rst), and BAR 0 as mapped memory: the only unsafe
//! code of this way to a device.

#![allow(unsafe_code)] // ioctl and mmap, and registers behind a raw pointer

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

use dyad_matrix::Memory;

use super::address::PciAddress;
use super::config::{BUS_MASTER, COMMAND, CONFIG_BYTES, MEMORY_SPACE};
use super::iova::IommuInfo;

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`.
#[derive(Debug, Copy, Clone)]
struct Request(u32);

const GET_API_VERSION: Request = Request(0);
const CHECK_EXTENSION: Request = Request(1);
const SET_IOMMU: Request = Request(2);
const GROUP_GET_STATUS: Request = Request(3);
const GROUP_SET_CONTAINER: Request = Request(4);
const GROUP_GET_DEVICE_FD: Request = Request(6);
const DEVICE_GET_INFO: Request = Request(7);
const DEVICE_GET_REGION_INFO: Request = Request(8);
const DEVICE_GET_IRQ_INFO: Request = Request(9);
const DEVICE_SET_IRQS: Request = Request(10);
const DEVICE_RESET: Request = Request(11);
const DEVICE_PCI_HOT_RESET: Request = Request(13);
const IOMMU_GET_INFO: Request = Request(12);
const IOMMU_MAP_DMA: Request = Request(13);
const IOMMU_UNMAP_DMA: Request = Request(14);

/// Bytes, as every structure of VFIO says first.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small structure")
}

/// An ioctl with a number for its argument, or none.
fn call(fd: impl AsFd, request: Request, argument: u64) -> Result<i32, Errno> {
    let number = u64::from(VFIO_TYPE) << 8 | u64::from(VFIO_BASE + request.0);
    // SAFETY: the callers are below; each passes what the request takes, and nothing that the kernel writes to.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, argument) })
}

/// An ioctl with a structure, which the kernel reads, and writes at most where the structure says that it has room.
fn call_with<T>(fd: impl AsFd, request: Request, argument: &mut T) -> Result<i32, Errno> {
    let number = u64::from(VFIO_TYPE) << 8 | u64::from(VFIO_BASE + request.0);
    // SAFETY: the callers are below; each passes the structure that the request takes, whose `argsz` says its size, and
    // it is borrowed exclusively.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, std::ptr::from_mut(argument)) })
}

/// An address space of an IOMMU.
#[derive(Debug)]
pub(super) struct Container(pub(super) File);

impl Container {
    /// The kernel speaks the one version of this interface that there is, and has the IOMMU driver for it.
    pub(super) fn speaks_type1(&self) -> bool {
        call(&self.0, GET_API_VERSION, 0) == Ok(0)
            && call(&self.0, CHECK_EXTENSION, u64::from(VFIO_TYPE1v2_IOMMU)).is_ok_and(|has| has > 0)
    }

    /// From now on it has an IOMMU; a group must be in it.
    pub(super) fn set_iommu(&self) -> Result<(), Errno> {
        call(&self.0, SET_IOMMU, u64::from(VFIO_TYPE1v2_IOMMU)).map(drop)
    }

    pub(super) fn info(&self) -> Result<IommuInfo, Errno> {
        // `vfio_iommu_type1_info` with room for its capabilities; aligned as that structure is.
        let mut words = [0_u64; 512];
        words[0] = u64::from(size::<[u64; 512]>());
        call_with(&self.0, IOMMU_GET_INFO, &mut words)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(IommuInfo::parse(&bytes))
    }

    /// The devices of this container reach all of `memory`, whole pages, at `iova`. Its pages stay where they are until then.
    pub(super) fn map(&self, memory: &Memory, iova: u64) -> Result<(), Errno> {
        let write = if memory.writable() { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | write,
            vaddr: memory.as_ptr().as_ptr().addr() as u64,
            iova,
            size: whole_pages(memory),
        };
        // A memory is mapped in whole pages, and nobody has a reference to its bytes: a device is one more that changes them.
        call_with(&self.0, IOMMU_MAP_DMA, &mut map).map(drop)
    }

    /// The opposite.
    pub(super) fn unmap(&self, memory: &Memory, iova: u64) -> Result<(), Errno> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size::<vfio_iommu_type1_dma_unmap>(),
            iova,
            size: whole_pages(memory),
            ..Default::default()
        };
        call_with(&self.0, IOMMU_UNMAP_DMA, &mut unmap).map(drop)
    }
}

/// Bytes of the pages that a memory is mapped with.
pub(super) fn whole_pages(memory: &Memory) -> u64 {
    memory.len().next_multiple_of(4096)
}

/// Functions that the IOMMU cannot tell apart.
#[derive(Debug)]
pub(super) struct Group(pub(super) File);

impl Group {
    /// All its functions are either VFIO's or nobody's.
    pub(super) fn is_viable(&self) -> Result<bool, Errno> {
        let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
        call_with(&self.0, GROUP_GET_STATUS, &mut status)?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    pub(super) fn set_container(&self, container: &Container) -> Result<(), Errno> {
        call_with(&self.0, GROUP_SET_CONTAINER, &mut container.0.as_raw_fd()).map(drop)
    }

    /// Opens the function of that name. The kernel resets it first, if it can.
    pub(super) fn device(&self, address: PciAddress) -> Result<Device, Errno> {
        let mut name = [0_u8; 32];
        dyad_nvme::bytes::put(&mut name, 0, address.to_string().as_bytes());
        let fd = call_with(&self.0, GROUP_GET_DEVICE_FD, &mut name)?;
        // SAFETY: the kernel made this descriptor for us just now, and nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut info = vfio_device_info { argsz: size::<vfio_device_info>(), ..Default::default() };
        call_with(&file, DEVICE_GET_INFO, &mut info)?;
        let mut device = Device { file, resets: info.flags & VFIO_DEVICE_FLAGS_RESET != 0, config: 0 };
        device.config = device.region(VFIO_PCI_CONFIG_REGION_INDEX)?.offset;
        Ok(device)
    }
}

/// A function.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// It can be reset alone.
    resets: bool,
    /// Where its configuration space is in `file`.
    config: u64,
}

/// `vfio_irq_set` with one eventfd behind it.
#[repr(C)]
struct OneEventfd {
    head: vfio_irq_set,
    fd: i32,
}

const _: () = assert!(size_of::<OneEventfd>() == 24 && size_of::<vfio_irq_set>() == 20);

/// `vfio_pci_hot_reset` with one group behind it.
#[repr(C)]
struct HotReset {
    argsz: u32,
    flags: u32,
    count: u32,
    group: i32,
}

impl Device {
    fn region(&self, index: u32) -> Result<vfio_region_info, Errno> {
        let mut info = vfio_region_info { argsz: size::<vfio_region_info>(), index, ..Default::default() };
        call_with(&self.file, DEVICE_GET_REGION_INFO, &mut info)?;
        Ok(info)
    }

    /// Maps the whole of a BAR; `None` if it has none, or the kernel lets nobody map it.
    pub(super) fn bar(&self, index: u32) -> Result<Option<Bar>, Errno> {
        let info = self.region(index)?;
        let (Ok(size), true) = (usize::try_from(info.size), info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0) else {
            return Ok(None);
        };
        let Some(size) = NonZeroUsize::new(size) else { return Ok(None) };
        let offset = i64::try_from(info.offset).map_err(|_| Errno::EOVERFLOW)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping, at a place that the kernel chooses, aliases nothing.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &self.file, offset) }?;
        Ok(Some(Bar { start: start.cast(), size }))
    }

    /// Interrupts of that kind.
    pub(super) fn interrupts(&self, index: u32) -> u32 {
        let mut info = vfio_irq_info { argsz: size::<vfio_irq_info>(), index, ..Default::default() };
        // A kernel that does not know the kind has none.
        call_with(&self.file, DEVICE_GET_IRQ_INFO, &mut info).map_or(0, |_| info.count)
    }

    /// The first interrupt of that kind signals this eventfd.
    pub(super) fn signal(&self, index: u32, eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
        let head = vfio_irq_set {
            argsz: size::<OneEventfd>(),
            flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            index,
            count: 1,
            ..Default::default()
        };
        call_with(&self.file, DEVICE_SET_IRQS, &mut OneEventfd { head, fd: eventfd.as_raw_fd() }).map(drop)
    }

    pub(super) fn config(&self) -> Result<[u8; CONFIG_BYTES], Errno> {
        let mut bytes = [0; CONFIG_BYTES];
        self.file.read_exact_at(&mut bytes, self.config).map_err(errno)?;
        Ok(bytes)
    }

    /// Lets the function reach memory, or not. Its registers can be reached in both cases.
    pub(super) fn set_bus_master(&self, on: bool) -> Result<(), Errno> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, self.config + COMMAND).map_err(errno)?;
        let others = u16::from_le_bytes(bytes) & !BUS_MASTER | MEMORY_SPACE;
        let command = if on { others | BUS_MASTER } else { others };
        self.file.write_all_at(&command.to_le_bytes(), self.config + COMMAND).map_err(errno)
    }

    /// Function level reset if it has one, else a reset of its bus, which the kernel allows if nobody else is on it.
    /// May take seconds with a device that does not come back.
    pub(super) fn reset(&self, group: &Group) -> Result<(), Errno> {
        if self.resets && call(&self.file, DEVICE_RESET, 0).is_ok() {
            return Ok(());
        }
        let mut reset = HotReset { argsz: size::<HotReset>(), flags: 0, count: 1, group: group.0.as_raw_fd() };
        call_with(&self.file, DEVICE_PCI_HOT_RESET, &mut reset).map(drop)
    }
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The registers of a BAR. Accesses outside it read as all ones, and are dropped.
#[derive(Debug)]
pub(super) struct Bar {
    start: NonNull<u8>,
    size: NonZeroUsize,
}

impl Bar {
    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.size.get()
    }

    #[inline]
    fn register(&self, offset: u32) -> Option<NonNull<u32>> {
        let offset = usize::try_from(offset).ok()?;
        let inside = offset.is_multiple_of(4) && offset.checked_add(4)? <= self.size.get();
        // SAFETY: the register lies in the mapping.
        inside.then(|| unsafe { self.start.add(offset) }.cast())
    }

    #[inline]
    pub(super) fn read(&self, offset: u32) -> u32 {
        // SAFETY: a register of the mapping, aligned; devices may be read at any time, each time.
        self.register(offset).map_or(u32::MAX, |register| unsafe { register.read_volatile() })
    }

    #[inline]
    pub(super) fn write(&self, offset: u32, value: u32) {
        if let Some(register) = self.register(offset) {
            // SAFETY: as in `read`; what the device does to memory then, the driver asked for.
            unsafe { register.write_volatile(value) };
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: what mmap returned, and no pointer into it leaves this room. It fails only for what was never mapped.
        let _ = unsafe { munmap(self.start.cast(), self.size.get()) };
    }
}
