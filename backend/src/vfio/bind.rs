//! Which driver has a function: the kernel's own, or `vfio-pci`, which lends it to a process
//! (Documentation/ABI/testing/sysfs-bus-pci: `driver_override`, `drivers_probe`, `unbind`).
//!
//! A function whose blocks are in use (mounted, swapped to, part of another device, or opened exclusively) is not taken
//! away. While it changes hands its block devices are held open exclusively, so that nobody begins to use them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::address::PciAddress;
use super::sysfs::{Found, Machine, NVME_CLASS, VFIO_PCI};

/// Whose a function was, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The driver before.
    pub from: Option<String>,
    /// The driver now.
    pub to: Option<String>,
}

/// Why a function stays with its driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
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
        "{0}: no IOMMU is in use, so no process could drive it: enable VT-d or AMD-Vi in the firmware, and start the kernel \
         with intel_iommu=on (Intel; AMD needs nothing more)"
    )]
    NoIommu(PciAddress),
    /// The kernel's VFIO is not there.
    #[error("the driver {VFIO_PCI} is not loaded: `modprobe {VFIO_PCI}`")]
    NoVfio,
    /// Its blocks are in use.
    #[error("{address} is in use: {device} {by}; nothing was changed")]
    InUse {
        /// Where.
        address: PciAddress,
        /// The block device.
        device: String,
        /// What it is used for.
        by: Use,
    },
    /// A process drives it.
    #[error("{0} is in use by a process, maybe a director: stop that first; nothing was changed")]
    Driven(PciAddress),
    /// It is not VFIO's, so there is nothing to undo.
    #[error("{0} does not belong to {VFIO_PCI}: there is nothing to undo")]
    NotBound(PciAddress),
    /// This user may not.
    #[error("no permission to write {0}: run as root")]
    NoPermission(PathBuf),
    /// The kernel gave it to no driver, or to another one; its own driver was asked to take it again.
    #[error("{VFIO_PCI} did not take {address}; the kernel's log (`dmesg`) says why")]
    NotTaken {
        /// Where.
        address: PciAddress,
    },
    /// The kernel refused.
    #[error("cannot write {path}: {errno}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
}

/// What a block device is used for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Use {
    /// A file system.
    #[error("is mounted at {0}: `umount` it")]
    Mounted(String),
    /// Swap space.
    #[error("is swapped to: `swapoff` it")]
    Swap,
    /// Part of another block device, as of LVM, dm-crypt or MD.
    #[error("is part of {0}: take that apart first")]
    PartOf(String),
    /// Opened exclusively; whoever it is does not show here.
    #[error("is opened by another program, or mounted in another namespace")]
    Opened,
}

/// Takes the NVMe controller at `address` from its driver, for processes to drive it. If it is there already, nothing happens.
///
/// # Errors
/// [`BindError`].
pub fn bind(machine: &Machine, address: PciAddress) -> Result<Bound, BindError> {
    let Found { class, driver, group } = machine.find(address).ok_or(BindError::NotThere(address))?;
    if class != NVME_CLASS {
        return Err(BindError::NotNvme { address, class });
    }
    if driver.as_deref() == Some(VFIO_PCI) {
        return Ok(Bound { from: driver.clone(), to: driver });
    }
    if group.is_none() {
        return Err(BindError::NoIommu(address));
    }
    if !machine.sys.join("bus/pci/drivers").join(VFIO_PCI).exists() {
        return Err(BindError::NoVfio);
    }
    let held = hold_blocks(machine, address)?;
    write(&machine.function(address).join("driver_override"), VFIO_PCI)?;
    let moved = hand_over(machine, address, driver.is_some());
    drop(held);
    let to = machine.find(address).and_then(|found| found.driver);
    if moved.is_ok() && to.as_deref() == Some(VFIO_PCI) {
        return Ok(Bound { from: driver, to });
    }
    // As it was. What cannot be undone either is told by the first refusal.
    let _ = write(&machine.function(address).join("driver_override"), "\n");
    let _ = hand_over(machine, address, false);
    Err(moved.err().unwrap_or(BindError::NotTaken { address }))
}

/// Gives the controller at `address` back to the kernel's own driver, if that is loaded.
///
/// # Errors
/// [`BindError`].
pub fn unbind(machine: &Machine, address: PciAddress) -> Result<Bound, BindError> {
    let Found { driver, group, .. } = machine.find(address).ok_or(BindError::NotThere(address))?;
    if driver.as_deref() != Some(VFIO_PCI) {
        return Err(BindError::NotBound(address));
    }
    // A group is opened by one process at a time; the kernel would wait for it for ever.
    if let Some(group) = group
        && let Err(error) = File::open(machine.group_file(group))
        && error.raw_os_error() == Some(libc::EBUSY)
    {
        return Err(BindError::Driven(address));
    }
    write(&machine.function(address).join("driver_override"), "\n")?;
    hand_over(machine, address, true)?;
    Ok(Bound { from: driver, to: machine.find(address).and_then(|found| found.driver) })
}

/// From the driver that has it, if one has, to the one that the kernel finds for it.
fn hand_over(machine: &Machine, address: PciAddress, bound: bool) -> Result<(), BindError> {
    let name = address.to_string();
    if bound {
        write(&machine.function(address).join("driver/unbind"), &name)?;
    }
    write(&machine.sys.join("bus/pci/drivers_probe"), &name)
}

fn write(path: &Path, text: &str) -> Result<(), BindError> {
    fs::write(path, text).map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EACCES | Errno::EPERM => BindError::NoPermission(path.to_owned()),
        errno => BindError::Refused { path: path.to_owned(), errno },
    })
}

/// Opens all block devices of the controller, so that nobody else can begin to use them; an error if somebody does.
fn hold_blocks(machine: &Machine, address: PciAddress) -> Result<Vec<File>, BindError> {
    let mut held = Vec::new();
    for name in namespaces(&machine.function(address)) {
        let in_use = |(device, by)| BindError::InUse { address, device, by };
        for device in with_partitions(machine, &name) {
            if let Some(by) = used_for(machine, &device) {
                return Err(in_use((device, by)));
            }
        }
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(machine.dev.join(&name)) {
            Ok(file) => held.push(file),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(in_use((name, Use::Opened))),
            // No device file, or no medium behind it: nobody uses it through this one.
            Err(_) => {}
        }
    }
    Ok(held)
}

/// Block devices of the controllers of a function: `nvme0n1`, also where sysfs has one path to it, `nvme0c1n1`.
fn namespaces(function: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for controller in names(&function.join("nvme")) {
        for name in names(&function.join("nvme").join(controller)) {
            if let Some(device) = block_device(&name) {
                found.push(device);
            }
        }
    }
    found
}

/// The device that `nvme<subsystem>[c<controller>]n<namespace>` is or is a path to.
fn block_device(name: &str) -> Option<String> {
    let (subsystem, namespace) = name.strip_prefix("nvme")?.split_once('n')?;
    let subsystem = subsystem.split_once('c').map_or(subsystem, |(subsystem, _)| subsystem);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number(subsystem) && number(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

fn with_partitions(machine: &Machine, name: &str) -> Vec<String> {
    let directory = machine.sys.join("class/block").join(name);
    let mut devices = vec![name.to_owned()];
    devices.extend(names(&directory).into_iter().filter(|part| directory.join(part).join("partition").exists()));
    devices
}

fn used_for(machine: &Machine, name: &str) -> Option<Use> {
    let directory = machine.sys.join("class/block").join(name);
    if let Some(holder) = names(&directory.join("holders")).into_iter().next() {
        return Some(Use::PartOf(holder));
    }
    let file = Path::new("/dev").join(name);
    let is_file = |word: Option<&str>| word.is_some_and(|word| Path::new(word) == file);
    let swaps = fs::read_to_string(machine.proc.join("swaps")).unwrap_or_default();
    if swaps.lines().any(|line| is_file(line.split_whitespace().next())) {
        return Some(Use::Swap);
    }
    let number = fs::read_to_string(directory.join("dev")).unwrap_or_default();
    let mounts = fs::read_to_string(machine.proc.join("self/mountinfo")).unwrap_or_default();
    // proc_pid_mountinfo(5): the third word is the device, the fifth where it is mounted; after a hyphen type and source.
    let mounted = mounts.lines().find(|line| {
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
        line.split(' ').nth(2) == Some(number.trim()) || is_file(source)
    })?;
    Some(Use::Mounted(mounted.split(' ').nth(4).unwrap_or("?").to_owned()))
}

/// The names in a directory, in order; none if there is no such directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_are_told_from_everything_else_below_a_controller() {
        assert_eq!(block_device("nvme0n1"), Some("nvme0n1".to_owned()));
        assert_eq!(block_device("nvme12c3n45"), Some("nvme12n45".to_owned()));
        for other in ["nvme0", "hwmon1", "ng0n1", "nvme0n1p1", "nvmen1", "nvme0n", "power", "nvmecn1"] {
            assert_eq!(block_device(other), None, "{other}");
        }
    }
}
