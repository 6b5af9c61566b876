//! QEMU's NVMe controllers over VFIO: who may have them, and what every device must do.

use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::device::Io;
use dyad_backend::driver::{AttachError, Driver, block_on};
use dyad_backend::pci::DmaError;
use dyad_backend::vfio::{BindError, Machine, OpenError, VfioFunction, bind, unbind};
use dyad_guest::GuestError;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::Lba;
use dyad_reactor::{Limits, Options, Reactor};
use nix::sys::resource::{Resource, setrlimit};

use super::vfio::{Vfio, address, bind_all, executor, given_back, open, pause};
use super::{BLOCKS, Case, image, nothing, words};
use crate::conformance;

pub(super) const CASE: Case = Case {
    name: "devices",
    what: "conformance over VFIO: plain, dual-ported, with protection information; who may have a device",
    modules: &["nvme", "vfio-pci", "vfio_iommu_type1"],
    programs: &["dyad"],
    packages: &[],
    memory_mib: 1024,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments,
    asked: nothing,
    inside,
};

/// In a process of its own, without privileges: whatever it is asked, it says how opening and attaching end.
pub(super) const UNPRIVILEGED: (&str, fn()) = ("unprivileged", unprivileged);

const PLAIN: &str = "0000:00:04.0";
const PORTS: [&str; 2] = ["0000:00:05.0", "0000:00:06.0"];
const PROTECTED: &str = "0000:00:07.0";
/// Slow enough for its reactor to sleep meanwhile, on any machine.
const SLOW: &str = "0000:00:09.0";
/// Two functions of one device, which the IOMMU cannot tell apart.
const NEIGHBOURS: [&str; 2] = ["0000:00:08.0", "0000:00:08.1"];

/// A user and a group without privileges.
const NOBODY: u32 = 65534;

fn qemu_arguments(directory: &Path) -> Result<Vec<String>, GuestError> {
    let mut arguments: Vec<String> = words("-device intel-iommu,aw-bits=48").collect();
    for name in ["plain", "shared", "protected"] {
        arguments.extend(["-drive".to_owned(), image(directory, name, 64 << 20)?]);
    }
    arguments.push("-drive".to_owned());
    arguments.push(image(directory, "slow", 64 << 20)? + ",throttling.iops-total=100");
    arguments.extend(words(&format!(
        "-device nvme,serial=plain,drive=plain,addr=04.0,{BLOCKS} \
         -device nvme-subsys,id=subsystem,nqn=dual \
         -device nvme,id=left,serial=dual,subsys=subsystem,addr=05.0 \
         -device nvme,id=right,serial=dual,subsys=subsystem,addr=06.0 \
         -device nvme-ns,drive=shared,bus=left,nsid=1,shared=on,{BLOCKS} \
         -device nvme,id=protecting,serial=protected,addr=07.0 \
         -device nvme-ns,drive=protected,bus=protecting,nsid=1,ms=8,pi=1,{BLOCKS} \
         -device nvme,serial=slow,drive=slow,addr=09.0,{BLOCKS} \
         -device nvme,serial=first,addr=08.0,multifunction=on \
         -device nvme,serial=second,addr=08.1"
    )));
    Ok(arguments)
}

fn inside() {
    changing_hands();
    bind_all(&[PLAIN, PORTS[0], PORTS[1], PROTECTED, SLOW]);
    permissions();
    neighbours();
    let vfio = Vfio::attach(PLAIN, [1; 16]);
    println!("plain: {:?}", vfio.driver.info());
    assert_eq!(vfio.driver.function().address_width(), 48);
    conformance::blocks(&vfio);
    println!("a plain namespace conforms");
    drop(vfio);
    sleeping();
    let [left, right] = PORTS.map(|port| Vfio::attach(port, [2; 16]));
    println!("dual-ported: {:?}", left.driver.info());
    assert_eq!(left.driver.info(), right.driver.info());
    assert_ne!(left.driver.controller().controller, right.driver.controller().controller);
    conformance::blocks(&left);
    conformance::blocks(&right);
    println!("both ports of a shared namespace conform");
    if left.driver.info().reservations {
        conformance::reservations(&left, &right, [[2; 16]; 2]);
    }
    let vfio = Vfio::attach(PROTECTED, [3; 16]);
    println!("protected: {:?}", vfio.driver.info());
    conformance::blocks(&vfio);
    println!("a namespace with protection information conforms");
}

/// From the kernel's driver to VFIO and back, but never away from somebody who uses it.
fn changing_hands() {
    let machine = Machine::default();
    let plain = address(PLAIN);
    let error = VfioFunction::open(plain).unwrap_err();
    assert!(matches!(&error, OpenError::OtherDriver { driver: Some(driver), .. } if driver == "nvme"), "{error}");
    assert_eq!(unbind(&machine, plain), Err(BindError::NotBound(plain)));
    let disk =
        std::fs::read_dir(format!("/sys/bus/pci/devices/{PLAIN}/nvme/nvme0")).expect("the kernel's driver has it");
    let mut names = disk.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let disk = names.find(|name| name.starts_with("nvme0")).expect("a namespace").replace("c0", "");
    let exclusively =
        std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(format!("/dev/{disk}")).unwrap();
    let error = bind(&machine, plain).unwrap_err();
    assert!(matches!(&error, BindError::InUse { device, .. } if *device == disk), "{error}");
    drop(exclusively);
    // The command does the rest.
    assert!(dyad(&["device", "bind", PLAIN]).contains("nvme -> vfio-pci"));
    let function = open(PLAIN);
    assert!(matches!(VfioFunction::open(plain), Err(OpenError::InUse { .. })));
    assert_eq!(unbind(&machine, plain), Err(BindError::Driven(plain)));
    drop(function);
    given_back(PLAIN);
    let probed = dyad(&["device", "probe", "00:04.0"]);
    assert!(probed.contains("serial           plain") && probed.contains("DMA addresses    48 bits"), "{probed}");
    let measured = dyad(&["device", "bench", PLAIN, "--reads", "200"]);
    assert!(measured.contains("4 KiB reads, 32 at a time"), "{measured}");
    assert!(dyad(&["device", "unbind", PLAIN]).contains("vfio-pci -> nvme"));
    // The kernel's driver brings it up in its own time.
    while !Path::new("/dev").join(&disk).exists() {
        pause();
    }
}

/// What the command says; it ends well.
fn dyad(arguments: &[&str]) -> String {
    let output = Command::new("/bin/dyad").args(arguments).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("dyad {}\n{text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    text
}

/// Who may not, and who may but may lock no memory.
fn permissions() {
    let user = || Command::new("/init").args(["inside", UNPRIVILEGED.0]).uid(NOBODY).gid(NOBODY).output().unwrap();
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let denied = said(&user());
    println!("{denied}");
    assert!(denied.contains("no permission for /dev/vfio/"), "{denied}");
    for entry in std::fs::read_dir("/dev/vfio").unwrap() {
        chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let limited = said(&user());
    println!("{limited}");
    assert!(limited.contains("raise it with LimitMEMLOCK="), "{limited}");
}

/// One IOMMU group is for one driver.
fn neighbours() {
    let [first, second] = NEIGHBOURS.map(address);
    bind_all(&NEIGHBOURS[..1]);
    let error = VfioFunction::open(first).unwrap_err();
    println!("{error}");
    assert!(
        matches!(&error, OpenError::NotViable { others, .. } if *others == [(second, "nvme".to_owned())]),
        "{error:?}"
    );
    bind_all(&NEIGHBOURS[1..]);
    let function = open(NEIGHBOURS[0]);
    assert!(matches!(VfioFunction::open(second), Err(OpenError::InUse { .. })));
    drop(function);
}

fn unprivileged() {
    setrlimit(Resource::RLIMIT_MEMLOCK, 65536, 65536).unwrap();
    let function = match VfioFunction::open(address(PLAIN)) {
        Ok(function) => function,
        Err(error) => return println!("{error}"),
    };
    let executor = executor();
    let error = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), [9; 16])).unwrap_err();
    assert!(
        matches!(error, AttachError::Dma(DmaError::LockLimit { needed, left: 65536 }) if needed > 65536),
        "{error:?}"
    );
    println!("{error}");
}

/// A reactor sleeps while the device works, and vector 0 wakes it.
fn sleeping() {
    const COMMANDS: u64 = 50;
    let limits = Limits { tasks: 4, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let handle = reactor.handle();
    let driver = block_on(reactor.executor(), || 0, Driver::attach(open(SLOW), &handle, [1; 16])).unwrap();
    let memory = Memory::shared("guest", 4096, HugePages::No).unwrap();
    driver.map(&memory).unwrap();
    reactor.add_source(driver.clone()).unwrap();
    let (stopper, counters) = (reactor.stopper(), reactor.counters());
    let reader = driver.clone();
    handle.spawn("reader", async move {
        let segments = [memory.segment(0, 4096).unwrap()];
        for lba in 0..COMMANDS {
            reader.submit(Io::Read { lba: Lba(lba), segments: &segments }).unwrap().await.unwrap();
        }
        stopper.stop();
    });
    let start = handle.now();
    reactor.run().unwrap();
    // Without the interrupt the driver's watch would wake it, half a second later each time.
    let took = handle.now().since(start);
    assert!(took < Duration::from_secs(15), "{took:?}");
    println!("{COMMANDS} reads, {} sleeps, {took:?}", counters.values().sleeps);
    assert!(counters.values().sleeps >= COMMANDS / 5);
}
