//! Devices that are pulled out: under load, and while their reactor sleeps. And plugged in again.

use std::path::Path;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::device::{DeviceError, Io, SubmitError};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::vfio::{OpenError, VfioFunction};
use dyad_guest::inside::ask_host;
use dyad_guest::{GuestError, Qmp};
use dyad_matrix::memory::HugePages;
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::Lba;
use dyad_reactor::{Limits, Options, Reactor};
use serde_json::json;

use super::vfio::{Vfio, address, bind_all, open, pause};
use super::{Case, words};
use crate::conformance::Way;

pub(super) const CASE: Case = Case {
    name: "unplug",
    what: "devices are unplugged under load and asleep, plugged in again, and asked back",
    modules: &["vfio-pci", "vfio_iommu_type1"],
    programs: &[],
    packages: &[],
    memory_mib: 512,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments,
    asked,
    inside,
};

/// Behind a slot of their own each, as hot plug wants it.
const BUSY: &str = "0000:01:00.0";
const ASLEEP: &str = "0000:02:00.0";

fn qemu_arguments(directory: &Path) -> Result<Vec<String>, GuestError> {
    // The slots' own hot plug, as servers have it, not ACPI's.
    let first = "-device intel-iommu,aw-bits=48 -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";
    let mut arguments: Vec<String> = words(first).collect();
    for (number, name) in ["busy", "asleep"].into_iter().enumerate() {
        let slot = number + 1;
        let path = directory.join(format!("{name}.img"));
        let made = std::fs::File::create(&path).and_then(|file| file.set_len(64 << 20));
        made.map_err(|source| GuestError::Io { path: path.clone(), source })?;
        // A block device that stays when its controller goes.
        arguments.push("-blockdev".to_owned());
        arguments.push(
            json!({ "driver": "raw", "node-name": name, "file": { "driver": "file", "filename": path } }).to_string(),
        );
        arguments.extend(words(&format!("-device pcie-root-port,id=slot-{name},chassis={slot},slot={slot}")));
        arguments.push("-device".to_owned());
        arguments.push(controller(name).to_string());
    }
    Ok(arguments)
}

fn controller(name: &str) -> serde_json::Value {
    json!({
        "driver": "nvme", "id": name, "serial": name, "drive": name, "bus": format!("slot-{name}"),
        "logical_block_size": 4096, "physical_block_size": 4096,
    })
}

fn asked(words: &str, qmp: &mut Qmp) -> Result<(), GuestError> {
    match words.split_once(' ') {
        Some(("unplug", name)) => qmp.execute("device_del", &json!({ "id": name })),
        // After it was unplugged: QEMU lets it go a little later than the guest.
        Some(("plug", name)) => {
            qmp.wait_for("DEVICE_DELETED").and_then(|()| qmp.execute("device_add", &controller(name)))
        }
        _ => Err(GuestError::Qmp(format!("nobody does {words:?}"))),
    }
    .map(drop)
}

fn inside() {
    bind_all(&[BUSY, ASLEEP]);
    under_load();
    again();
    asleep();
}

fn is_there(device: &str) -> bool {
    Path::new("/sys/bus/pci/devices").join(device).exists()
}

/// Every command ends, with a clear error; then the kernel gets the device back, and it is gone.
fn under_load() {
    let vfio = Vfio::attach(BUSY, [1; 16]);
    let memory = vfio.memory(64 * 4096);
    memory.write(0, &[0x5a; 4096]).unwrap();
    let segments = [memory.segment(0, 4096).unwrap()];
    let write = |lba| vfio.driver.submit(Io::Write { lba: Lba(lba), segments: &segments, fua: false });
    vfio.run(write(0).unwrap()).unwrap();
    let mut commands = std::collections::VecDeque::new();
    let mut done = 0_u64;
    let failed = loop {
        match write(1 + done % 1000) {
            Ok(command) => commands.push_back(command),
            Err(SubmitError::Full) => {
                let oldest = commands.pop_front().expect("the queue is full of them");
                if let Err(error) = vfio.run(oldest) {
                    break error;
                }
                done += 1;
            }
            Err(SubmitError::Gone) => break DeviceError::Gone,
            Err(error) => panic!("{error}"),
        }
        if done == 500 {
            done += 1;
            ask_host("unplug busy");
        }
    };
    assert_eq!(failed, DeviceError::Gone);
    let outstanding = commands.len();
    for command in commands {
        // Some were done before.
        assert!(matches!(vfio.run(command), Ok(()) | Err(DeviceError::Gone)));
    }
    assert!(vfio.driver.failed());
    assert_eq!(write(0).err(), Some(SubmitError::Gone));
    println!("unplugged after {done} writes with {outstanding} more outstanding: {failed}");
    while is_there(BUSY) {
        pause();
    }
    assert!(matches!(VfioFunction::open(address(BUSY)), Err(OpenError::NotThere(_))));
    println!("the kernel has let it go");
}

/// The same medium in the same slot.
fn again() {
    ask_host("plug busy");
    while !is_there(BUSY) {
        pause();
    }
    // Without a reset of its own it is reset with its bus.
    std::fs::write(format!("/sys/bus/pci/devices/{BUSY}/reset_method"), "\n").unwrap();
    bind_all(&[BUSY]);
    drop(Vfio::attach(BUSY, [1; 16]));
    let vfio = Vfio::attach(BUSY, [1; 16]);
    let memory = vfio.memory(4096);
    let segments = [memory.segment(0, 4096).unwrap()];
    vfio.run(vfio.driver.submit(Io::Read { lba: Lba(0), segments: &segments }).unwrap()).unwrap();
    let mut block = [0; 4096];
    memory.read(0, &mut block).unwrap();
    assert_eq!(block, [0x5a; 4096]);
    println!("plugged in again, and its blocks are what they were");
    asked_back(&vfio, &segments);
}

/// Somebody takes the function from its driver, and waits for it.
fn asked_back(vfio: &Vfio, segments: &[Segment]) {
    let taker = std::thread::spawn(|| std::fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", BUSY));
    let read = || vfio.driver.submit(Io::Read { lba: Lba(0), segments });
    loop {
        match read().map(|command| vfio.run(command)) {
            Ok(Ok(())) => {}
            Ok(Err(DeviceError::Gone)) | Err(SubmitError::Gone) => break,
            other => panic!("{other:?}"),
        }
    }
    taker.join().unwrap().unwrap();
    println!("asked back under load, and given back");
}

/// Nothing is outstanding, nobody polls: the kernel's request wakes the reactor.
fn asleep() {
    let limits = Limits { tasks: 4, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let handle = reactor.handle();
    let driver = block_on(reactor.executor(), || 0, Driver::attach(open(ASLEEP), &handle, [1; 16])).unwrap();
    let memory = Memory::shared("guest", 4096, HugePages::No).unwrap();
    driver.map(&memory).unwrap();
    reactor.add_source(driver.clone()).unwrap();
    let stopper = reactor.stopper();
    std::thread::spawn(move || {
        ask_host("unplug asleep");
        while is_there(ASLEEP) {
            pause();
        }
        stopper.stop();
    });
    reactor.run().unwrap();
    assert!(driver.failed());
    println!("unplugged while nobody looked");
}
