//! Everything that can stand in the way to a function, on a machine made of plain files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::bind::Use;
use super::open::group_of;
use super::*;

const ADDRESS: &str = "0000:01:00.0";

/// A directory with a machine in it.
struct Fake {
    root: tempfile::TempDir,
    machine: Machine,
    address: PciAddress,
}

impl Fake {
    /// One NVMe controller with its kernel driver, alone in IOMMU group 7, and VFIO loaded.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::below(root.path());
        let fake = Self { root, machine, address: ADDRESS.parse().unwrap() };
        fake.function(ADDRESS, "0x010802", Some("nvme"), Some(7));
        fake.write("sys/bus/pci/drivers/vfio-pci/unbind", "");
        fake.write("sys/bus/pci/drivers_probe", "");
        fake.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
        fake.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        fake.write("dev/vfio/vfio", "");
        fake.write("dev/vfio/7", "");
        fake
    }

    fn function(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
        let directory = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{directory}/class"), &format!("{class}\n"));
        self.write(&format!("{directory}/driver_override"), "(null)\n");
        let directory = self.path(&directory);
        if let Some(driver) = driver {
            self.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), directory.join("driver")).unwrap();
        }
        if let Some(group) = group {
            self.write(&format!("sys/kernel/iommu_groups/{group}/devices/{address}/here"), "");
            symlink(self.path(&format!("sys/kernel/iommu_groups/{group}")), directory.join("iommu_group")).unwrap();
        }
    }

    fn namespace(&self) {
        self.write(&format!("sys/bus/pci/devices/{ADDRESS}/nvme/nvme0/nvme0c0n1/size"), "");
        self.write("sys/class/block/nvme0n1/dev", "259:0\n");
        self.write("sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n");
        self.write("sys/class/block/nvme0n1p1/dev", "259:1\n");
        self.write("dev/nvme0n1", "");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn set_driver(&self, driver: Option<&str>) {
        let link = self.path(&format!("sys/bus/pci/devices/{ADDRESS}/driver"));
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
        }
    }

    fn open(&self) -> OpenError {
        VfioFunction::open_on(&self.machine, self.address).unwrap_err()
    }

    fn bind(&self) -> Result<Bound, BindError> {
        bind(&self.machine, self.address)
    }
}

/// Every error says what to do.
fn says(error: &dyn std::error::Error, what: &str) {
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn what_is_wrong_before_vfio_is_asked() {
    let fake = Fake::new();
    let nobody: PciAddress = "0000:02:00.0".parse().unwrap();
    assert_eq!(VfioFunction::open_on(&fake.machine, nobody).unwrap_err(), OpenError::NotThere(nobody));
    fake.function("0000:00:1f.0", "0x060100", None, None);
    let bridge = "0000:00:1f.0".parse().unwrap();
    let error = VfioFunction::open_on(&fake.machine, bridge).unwrap_err();
    assert_eq!(error, OpenError::NotNvme { address: bridge, class: 0x0006_0100 });
    fake.function("0000:03:00.0", "0x010802", Some("nvme"), None);
    let bare = "0000:03:00.0".parse().unwrap();
    let error = VfioFunction::open_on(&fake.machine, bare).unwrap_err();
    assert_eq!(error, OpenError::NoIommu(bare));
    says(&error, "intel_iommu=on");
}

#[test]
fn a_function_of_another_driver_says_how_to_get_it() {
    let fake = Fake::new();
    says(&fake.open(), "belongs to the driver nvme: `dyad device bind 0000:01:00.0`");
    fake.set_driver(None);
    says(&fake.open(), "belongs to no driver: `dyad device bind");
}

#[test]
fn missing_files_of_vfio_are_named() {
    let fake = Fake::new();
    fake.set_driver(Some("vfio-pci"));
    // Plain files answer no ioctl.
    let refused = |error| matches!(error, OpenError::Refused { address, .. } if address == fake.address);
    assert!(refused(fake.open()));
    fs::remove_file(fake.path("dev/vfio/7")).unwrap();
    says(&fake.open(), "dev/vfio/7 does not exist: load the kernel's VFIO with `modprobe vfio-pci`");
    fake.write("dev/vfio/noiommu-7", "");
    assert_eq!(fake.open(), OpenError::NoIommu(fake.address));
    fs::remove_file(fake.path("dev/vfio/vfio")).unwrap();
    says(&fake.open(), "dev/vfio/vfio does not exist");
}

#[test]
fn who_else_is_in_the_group_is_named() {
    let fake = Fake::new();
    fake.function("0000:01:00.1", "0x020000", Some("e1000e"), Some(7));
    fake.function("0000:01:00.2", "0x010802", Some("vfio-pci"), Some(7));
    fake.function("0000:00:01.0", "0x060400", Some("pcieport"), Some(7));
    fake.function("0000:01:00.3", "0x010802", None, Some(7));
    fake.set_driver(Some("vfio-pci"));
    let others = fake.machine.strangers(7);
    let error = OpenError::NotViable { address: fake.address, group: 7, others };
    says(&error, "shares IOMMU group 7 with 0000:01:00.1 (e1000e): bind");
    assert_eq!(group_of(fake.address, fake.machine.find(fake.address)), Ok(7));
}

#[test]
fn binding_writes_what_the_kernel_wants_and_undoes_it_when_refused() {
    let fake = Fake::new();
    fake.namespace();
    // Nobody reads these files, so the driver stays.
    assert_eq!(fake.bind(), Err(BindError::NotTaken { address: fake.address }));
    assert_eq!(fake.read("sys/bus/pci/drivers/nvme/unbind"), ADDRESS);
    assert_eq!(fake.read("sys/bus/pci/drivers_probe"), ADDRESS);
    assert_eq!(fake.read(&format!("sys/bus/pci/devices/{ADDRESS}/driver_override")), "\n");
    fake.set_driver(Some("vfio-pci"));
    let vfio = Some("vfio-pci".to_owned());
    assert_eq!(fake.bind(), Ok(Bound { from: vfio.clone(), to: vfio }), "it is there already");
}

#[test]
fn a_device_in_use_stays_with_its_driver() {
    let cases: [(&str, &str, &str, Use); 5] = [
        (
            "proc/self/mountinfo",
            "30 22 259:1 / /srv rw - ext4 /dev/root rw\n",
            "nvme0n1p1",
            Use::Mounted("/srv".into()),
        ),
        (
            "proc/self/mountinfo",
            "30 22 0:44 / /srv rw shared:1 - btrfs /dev/nvme0n1 rw\n",
            "nvme0n1",
            Use::Mounted("/srv".into()),
        ),
        ("proc/swaps", "Filename\n/dev/nvme0n1p1 partition 9 0 -2\n", "nvme0n1p1", Use::Swap),
        ("sys/class/block/nvme0n1/holders/dm-0/x", "", "nvme0n1", Use::PartOf("dm-0".into())),
        ("sys/class/block/nvme0n1p1/holders/md127/x", "", "nvme0n1p1", Use::PartOf("md127".into())),
    ];
    for (file, text, device, by) in cases {
        let fake = Fake::new();
        fake.namespace();
        fake.write(file, text);
        assert_eq!(
            fake.bind(),
            Err(BindError::InUse { address: fake.address, device: device.into(), by }),
            "{file}: {text}"
        );
        assert_eq!(fake.read("sys/bus/pci/drivers/nvme/unbind"), "", "nothing was changed");
        assert_eq!(fake.read(&format!("sys/bus/pci/devices/{ADDRESS}/driver_override")), "(null)\n");
    }
}

#[test]
fn binding_needs_an_nvme_controller_an_iommu_and_vfio() {
    let fake = Fake::new();
    fs::remove_dir_all(fake.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    assert_eq!(fake.bind(), Err(BindError::NoVfio));
    fs::remove_file(fake.path(&format!("sys/bus/pci/devices/{ADDRESS}/iommu_group"))).unwrap();
    assert_eq!(fake.bind(), Err(BindError::NoIommu(fake.address)));
    fake.write(&format!("sys/bus/pci/devices/{ADDRESS}/class"), "0x010601\n");
    assert_eq!(fake.bind(), Err(BindError::NotNvme { address: fake.address, class: 0x0001_0601 }));
    fs::remove_dir_all(fake.path("sys/bus/pci/devices")).unwrap();
    assert_eq!(fake.bind(), Err(BindError::NotThere(fake.address)));
}

#[test]
fn giving_back_clears_the_override() {
    let fake = Fake::new();
    assert_eq!(unbind(&fake.machine, fake.address), Err(BindError::NotBound(fake.address)));
    fake.set_driver(Some("vfio-pci"));
    let bound = unbind(&fake.machine, fake.address).unwrap();
    assert_eq!(bound.from.as_deref(), Some("vfio-pci"));
    assert_eq!(fake.read("sys/bus/pci/drivers/vfio-pci/unbind"), ADDRESS);
    assert_eq!(fake.read(&format!("sys/bus/pci/devices/{ADDRESS}/driver_override")), "\n");
    assert!(Path::new(&fake.path("sys/bus/pci/drivers_probe")).exists());
}
