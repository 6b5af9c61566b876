//! Machines whose IOMMU is narrow or does half of its work, or that have none in use.

use std::path::Path;

use dyad_backend::vfio::{BindError, Machine, OpenError, VfioFunction, bind};
use dyad_guest::GuestError;

use super::vfio::{Vfio, address, bind_all};
use super::{BLOCKS, Case, image, nothing, words};
use crate::conformance;

pub(super) const NARROW: Case = Case {
    name: "narrow",
    what: "an IOMMU of 39 bits",
    modules: &["vfio-pci", "vfio_iommu_type1"],
    programs: &[],
    packages: &[],
    memory_mib: 512,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments: |directory| one_device(directory, "-device intel-iommu,aw-bits=39"),
    asked: nothing,
    inside: || {
        bind_all(&[DEVICE]);
        let vfio = Vfio::attach(DEVICE, [1; 16]);
        assert_eq!(vfio.driver.function().address_width(), 39);
        conformance::blocks(&vfio);
    },
};

pub(super) const NO_REMAPPING: Case = Case {
    name: "no-remap",
    what: "an IOMMU that does not remap interrupts",
    modules: &["vfio-pci", "vfio_iommu_type1"],
    programs: &[],
    packages: &[],
    memory_mib: 512,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments: |directory| one_device(directory, "-device intel-iommu,aw-bits=48,intremap=off"),
    asked: nothing,
    inside: || {
        bind_all(&[DEVICE]);
        let error = VfioFunction::open(address(DEVICE)).unwrap_err();
        println!("{error}");
        assert_eq!(error, OpenError::NoInterruptRemapping);
    },
};

pub(super) const NONE: Case = Case {
    name: "no-iommu",
    what: "an IOMMU that the kernel was not told to use",
    modules: &["vfio-pci"],
    programs: &[],
    packages: &[],
    memory_mib: 512,
    kernel_arguments: "intel_iommu=off",
    qemu_arguments: |directory| one_device(directory, "-device intel-iommu,aw-bits=48"),
    asked: nothing,
    inside: || {
        let error = bind(&Machine::default(), address(DEVICE)).unwrap_err();
        println!("{error}");
        assert_eq!(error, BindError::NoIommu(address(DEVICE)));
    },
};

const DEVICE: &str = "0000:00:04.0";

fn one_device(directory: &Path, iommu: &str) -> Result<Vec<String>, GuestError> {
    let mut arguments: Vec<String> = words(iommu).collect();
    arguments.extend(["-drive".to_owned(), image(directory, "disk", 64 << 20)?]);
    arguments.extend(words(&format!("-device nvme,serial=disk,drive=disk,addr=04.0,{BLOCKS}")));
    Ok(arguments)
}
