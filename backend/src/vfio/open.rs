//! Opening a function, and what may stand in the way; each says what to do about it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::address::PciAddress;
use super::kernel::{Container, Device, Group};
use super::sysfs::{Found, Machine, NVME_CLASS, VFIO_PCI};

/// Why a function cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nothing is at that address.
    #[error("{0}: no PCI device is there; `lspci -D -d ::0108` lists the NVMe controllers of this machine")]
    NotThere(PciAddress),
    /// It is something else.
    #[error("{address} is no NVMe controller (class {class:06x}, not {NVME_CLASS:06x})")]
    NotNvme {
        /// Where.
        address: PciAddress,
        /// Its class code.
        class: u32,
    },
    /// No IOMMU translates its addresses.
    #[error(
        "{0}: no IOMMU is in use, so a device could write anywhere: enable VT-d or AMD-Vi in the firmware, and start the \
         kernel with intel_iommu=on (Intel; AMD needs nothing more)"
    )]
    NoIommu(PciAddress),
    /// The kernel's VFIO is not there.
    #[error("{0} does not exist: load the kernel's VFIO with `modprobe vfio-pci`")]
    NoVfio(PathBuf),
    /// The kernel's VFIO lacks its driver for this IOMMU.
    #[error("the kernel's VFIO has no driver for this IOMMU: `modprobe vfio_iommu_type1`")]
    NoType1,
    /// Another driver has it, or none.
    #[error("{address} belongs to {}: `dyad device bind {address}` takes it for Dyad", Driver(.driver))]
    OtherDriver {
        /// Where.
        address: PciAddress,
        /// Whose it is.
        driver: Option<String>,
    },
    /// This user may not.
    #[error("no permission for {0}: run as root, or give the file to this user with `chown`")]
    NoPermission(PathBuf),
    /// Somebody has it.
    #[error(
        "{address} is in use: a process, maybe this one, has {file}; a device that was just given up is still being reset, \
         and devices of one IOMMU group are for one driver only"
    )]
    InUse {
        /// Where.
        address: PciAddress,
        /// The group's device file.
        file: PathBuf,
    },
    /// Functions that the IOMMU cannot tell from this one belong to other drivers.
    #[error("{address} shares IOMMU group {group} with {}: bind those to vfio-pci or to no driver, too", Strangers(.others))]
    NotViable {
        /// Where.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The others, with their drivers.
        others: Vec<(PciAddress, String)>,
    },
    /// The machine does not check whose interrupts they are.
    #[error(
        "the IOMMU does not remap interrupts, so a device could forge them: enable interrupt remapping (x2APIC) in the \
         firmware, or, if every device can be trusted, load vfio_iommu_type1 with allow_unsafe_interrupts=1"
    )]
    NoInterruptRemapping,
    /// It lacks what a driver in a process needs.
    #[error("{address} cannot be driven by a process: {lacks}")]
    Unsuitable {
        /// Where.
        address: PciAddress,
        /// What it lacks.
        lacks: &'static str,
    },
    /// The kernel says no for a reason of its own.
    #[error("{address}: the kernel refuses to {what}: {errno}")]
    Refused {
        /// Where.
        address: PciAddress,
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

struct Driver<'a>(&'a Option<String>);

impl fmt::Display for Driver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "the driver {name}"),
            None => write!(f, "no driver"),
        }
    }
}

struct Strangers<'a>(&'a [(PciAddress, String)]);

impl fmt::Display for Strangers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "functions of other drivers");
        }
        for (index, (address, driver)) in self.0.iter().enumerate() {
            write!(f, "{}{address} ({driver})", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What was opened, in the order in which it is closed.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) device: Device,
    pub(super) group: Group,
    pub(super) container: Container,
}

/// The group of an NVMe controller that VFIO has, from what sysfs says.
pub(super) fn group_of(address: PciAddress, found: Option<Found>) -> Result<u32, OpenError> {
    let Found { class, driver, group } = found.ok_or(OpenError::NotThere(address))?;
    if class != NVME_CLASS {
        return Err(OpenError::NotNvme { address, class });
    }
    let group = group.ok_or(OpenError::NoIommu(address))?;
    if driver.as_deref() != Some(VFIO_PCI) {
        return Err(OpenError::OtherDriver { address, driver });
    }
    Ok(group)
}

/// Opens container, group and device.
pub(super) fn open(machine: &Machine, address: PciAddress) -> Result<Opened, OpenError> {
    let number = group_of(address, machine.find(address))?;
    let refused = |what| move |errno| OpenError::Refused { address, what, errno };
    let container = Container(open_file(&machine.dev.join("vfio/vfio"), address)?);
    let file = machine.group_file(number);
    if !file.exists() && machine.dev.join(format!("vfio/noiommu-{number}")).exists() {
        return Err(OpenError::NoIommu(address));
    }
    let group = Group(open_file(&file, address)?);
    if !group.is_viable().map_err(refused("tell whether the IOMMU group can be used"))? {
        return Err(OpenError::NotViable { address, group: number, others: machine.strangers(number) });
    }
    if !container.speaks_type1() {
        return Err(OpenError::NoType1);
    }
    group.set_container(&container).map_err(refused("give the group an address space"))?;
    container.set_iommu().map_err(|errno| match errno {
        Errno::EPERM => OpenError::NoInterruptRemapping,
        errno => refused("use the IOMMU")(errno),
    })?;
    let device = group.device(address).map_err(refused("open the device"))?;
    Ok(Opened { device, group, container })
}

fn open_file(path: &Path, address: PciAddress) -> Result<File, OpenError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => OpenError::NoVfio(path.to_owned()),
            Errno::EACCES | Errno::EPERM => OpenError::NoPermission(path.to_owned()),
            Errno::EBUSY => OpenError::InUse { address, file: path.to_owned() },
            errno => OpenError::Refused { address, what: "open a file of VFIO", errno },
        }
    })
}
