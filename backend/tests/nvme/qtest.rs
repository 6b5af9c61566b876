//! The suite over QEMU's own controller. Without QEMU nothing is tested, and `cargo xtask test` says so.

use std::path::Path;
use std::rc::Rc;

use dyad_backend::device::{Device, DeviceError, Io, ReservationKey, ReservationOp};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::pci::PciFunction;
use dyad_backend::qtest::{Machine, QtestError, QtestFunction};
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::register;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::Executor;

use crate::conformance::{self, Way};
use crate::process::{BLOCKS, executor};

const A: [u8; 16] = [0xa; 16];
const B: [u8; 16] = [0xb; 16];

/// Two controllers of one subsystem in slots 4 and 5 of bus 0, and one namespace that both have.
const DUAL_PORTED: &[&str] = &[
    "-device",
    "nvme-subsys,id=shelf,nqn=shelf",
    "-device",
    "nvme,id=port0,serial=shelf,subsys=shelf,addr=04.0",
    "-device",
    "nvme,id=port1,serial=shelf,subsys=shelf,addr=05.0",
];

/// Starts a machine with `blocks` in a file as drive `disk`; none without QEMU.
fn machine(directory: &Path, arguments: &[&str]) -> Option<Rc<Machine>> {
    let file = directory.join("disk.blocks");
    std::fs::File::create(&file).unwrap().set_len(BLOCKS * 4096 * 2).unwrap();
    let blocks = format!("driver=file,node-name=disk,discard=unmap,filename={}", file.display());
    let arguments = [&["-blockdev", &blocks], arguments].concat();
    match Machine::start(&arguments) {
        Ok(machine) => Some(machine),
        Err(QtestError::Start(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("NOT TESTED: qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

struct Qemu {
    executor: Executor,
    driver: Driver<QtestFunction>,
}

impl Qemu {
    fn new(function: QtestFunction, host: [u8; 16]) -> Self {
        let executor = executor();
        let driver = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), host)).unwrap();
        Self { executor, driver }
    }

    fn write(&self, memory: &Memory, lba: u64, byte: u8) -> Result<(), DeviceError> {
        memory.write(0, &[byte; 4096]).unwrap();
        let segments = [memory.segment(0, 4096).unwrap()];
        self.run(self.driver.submit(Io::Write { lba: Lba(lba), segments: &segments, fua: true }).unwrap())
    }

    fn read(&self, memory: &Memory, lba: u64) -> Result<u8, DeviceError> {
        let segments = [memory.segment(4096, 4096).unwrap()];
        self.run(self.driver.submit(Io::Read { lba: Lba(lba), segments: &segments }).unwrap())?;
        let mut block = [0; 4096];
        memory.read(4096, &mut block).unwrap();
        assert!(block.iter().all(|b| *b == block[0]), "a torn block");
        Ok(block[0])
    }
}

impl Way for Qemu {
    type Device = Driver<QtestFunction>;

    fn device(&self) -> &Self::Device {
        &self.driver
    }

    fn memory(&self, bytes: usize) -> Memory {
        let memory = Memory::shared("test", bytes, HugePages::No).unwrap();
        self.driver.map(&memory).unwrap();
        memory
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.executor, || self.driver.poll(), future)
    }
}

#[test]
fn two_controllers_of_one_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = "nvme-ns,drive=disk,bus=port0,nsid=1,logical_block_size=4096,physical_block_size=4096,shared=on,uuid=07070707-0707-0707-0707-070707070707";
    let Some(machine) = machine(directory.path(), &[DUAL_PORTED, &["-device", namespace]].concat()) else { return };
    let [a, b] = [(4, A), (5, B)].map(|(slot, host)| Qemu::new(machine.function(slot).unwrap(), host));
    assert_eq!(a.driver.info(), b.driver.info(), "two ways to one medium");
    assert_eq!(a.driver.info().id.0, [7; 16]);
    conformance::blocks(&a);
    conformance::blocks(&b);
    let memory = a.memory(8192);
    b.driver.map(&memory).unwrap();
    a.write(&memory, 5, 0x55).unwrap();
    assert_eq!(b.read(&memory, 5), Ok(0x55));
    assert_eq!(a.run(a.driver.compare(Lba(5), &[memory.segment(0, 4096).unwrap()])), Ok(true));
    a.run(a.driver.deallocate(&[(Lba(5), BlockCount(1))])).unwrap();
    assert_eq!(b.read(&memory, 5), Ok(0), "given up");
    assert_eq!(a.run(a.driver.compare(Lba(5), &[memory.segment(0, 4096).unwrap()])), Ok(false));
    // Somebody disables the controller behind the driver's back: it is reset, and goes on; the other one has not noticed.
    a.driver.function().write32(register::CC, 0);
    assert_eq!(a.write(&memory, 6, 0x66), Err(DeviceError::Aborted));
    assert_eq!((a.driver.resets(), b.driver.resets()), (1, 0));
    assert_eq!((a.write(&memory, 6, 0x66), b.read(&memory, 6)), (Ok(()), Ok(0x66)));
    conformance::blocks(&a);
    if a.driver.info().reservations {
        conformance::reservations(&a, &b, [A, B]);
    } else {
        // As in QEMU 7.2: a device that cannot be fenced is in no pair, and says so.
        let register = ReservationOp::Register { key: ReservationKey(1) };
        assert_eq!(a.run(a.driver.reserve(register)), Err(DeviceError::Rejected));
    }
}

#[test]
fn protection_information() {
    for place in [0, 1] {
        let directory = tempfile::tempdir().unwrap();
        let namespace = format!(
            "nvme-ns,drive=disk,bus=port0,nsid=1,logical_block_size=4096,physical_block_size=4096,ms=8,pi=1,pil={place}"
        );
        let Some(machine) = machine(directory.path(), &[DUAL_PORTED, &["-device", &namespace]].concat()) else {
            return;
        };
        let way = Qemu::new(machine.function(4).unwrap(), A);
        conformance::blocks(&way);
    }
}

#[test]
fn a_controller_that_is_pulled_out_and_plugged_in() {
    const PORT: u8 = 6;
    let directory = tempfile::tempdir().unwrap();
    let devices = ["-device", "pcie-root-port,id=root,addr=06.0,chassis=1,slot=1"];
    let controller = |id: &str| {
        format!(
            r#"{{"driver": "nvme", "id": "{id}", "serial": "disk", "bus": "root", "drive": "disk",
                "logical_block_size": 4096, "physical_block_size": 4096}}"#
        )
    };
    let Some(machine) = machine(directory.path(), &devices) else { return };
    machine.plug(&controller("first")).unwrap();
    let a = Qemu::new(machine.function_behind(PORT).unwrap(), A);
    let memory = a.memory(8192);
    a.write(&memory, 5, 0x55).unwrap();
    machine.unplug("first", PORT).unwrap();
    assert_eq!(a.write(&memory, 5, 0x66), Err(DeviceError::Gone));
    assert!(a.driver.failed());
    assert!(matches!(machine.function_behind(PORT), Err(QtestError::NoDevice { .. })));
    machine.plug(&controller("second")).unwrap();
    let again = Qemu::new(machine.function_behind(PORT).unwrap(), A);
    assert_eq!(again.driver.info(), a.driver.info(), "the same medium");
    again.driver.map(&memory).unwrap();
    assert_eq!(again.read(&memory, 5), Ok(0x55));
}
