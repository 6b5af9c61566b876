//! What the kernel tells about PCI functions in its file systems, below directories that tests make themselves.

use std::fs;
use std::path::{Path, PathBuf};

use super::address::PciAddress;

/// Class code of NVMe controllers: mass storage, non-volatile memory, NVMe (PCI Code and ID Assignment 1.11).
pub(super) const NVME_CLASS: u32 = 0x01_08_02;

/// The driver that lends functions to processes.
pub(super) const VFIO_PCI: &str = "vfio-pci";

/// Where the kernel's file systems are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub(super) sys: PathBuf,
    pub(super) proc: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Machine {
    /// `/sys`, `/proc` and `/dev`.
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

/// A function as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) class: u32,
    pub(super) driver: Option<String>,
    pub(super) group: Option<u32>,
}

impl Machine {
    /// The same directories below another: for tests.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
    }

    /// The directory of a function.
    pub(super) fn function(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// What is at that address; `None` if nothing is.
    pub(super) fn find(&self, address: PciAddress) -> Option<Found> {
        let directory = self.function(address);
        let class = fs::read_to_string(directory.join("class")).ok()?;
        let class = u32::from_str_radix(class.trim().trim_start_matches("0x"), 16).ok()?;
        let group = link_name(&directory.join("iommu_group")).and_then(|name| name.parse().ok());
        Some(Found { class, driver: link_name(&directory.join("driver")), group })
    }

    /// The functions of an IOMMU group whose drivers keep it from being used: neither VFIO's, nor a bridge's.
    pub(super) fn strangers(&self, group: u32) -> Vec<(PciAddress, String)> {
        let directory = self.sys.join("kernel/iommu_groups").join(group.to_string()).join("devices");
        let names = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut strangers: Vec<_> = names
            .filter_map(|name| {
                let address = name.parse().ok()?;
                let driver = self.find(address)?.driver?;
                (driver != VFIO_PCI && driver != "pcieport").then_some((address, driver))
            })
            .collect();
        strangers.sort();
        strangers
    }

    /// The device file of an IOMMU group.
    pub(super) fn group_file(&self, group: u32) -> PathBuf {
        self.dev.join("vfio").join(group.to_string())
    }
}

/// The last part of what a link points to.
fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}
