//! QEMU's NVMe controllers over VFIO: who may have them, and what every device must do.

use std::path::Path;

use dyad_backend::Device;
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::vfio::{BindError, Machine, OpenError, PciAddress, VfioFunction, bind, unbind};
use dyad_guest::GuestError;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_reactor::{BootClock, Executor, Limits};

use super::{Case, image, nothing, words};
use crate::conformance::{self, Way};

pub(super) const CASE: Case = Case {
    name: "devices",
    what: "conformance over VFIO: plain, dual-ported, with protection information",
    modules: &["nvme", "vfio-pci", "vfio_iommu_type1"],
    memory_mib: 1024,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments,
    asked: nothing,
    inside,
};

const PLAIN: &str = "0000:00:04.0";
const PORTS: [&str; 2] = ["0000:00:05.0", "0000:00:06.0"];
const PROTECTED: &str = "0000:00:07.0";

/// Blocks of 4 KiB, as Dyad wants them.
const BLOCKS: &str = "logical_block_size=4096,physical_block_size=4096";

fn qemu_arguments(directory: &Path) -> Result<Vec<String>, GuestError> {
    let mut arguments: Vec<String> = words("-device intel-iommu,aw-bits=48").collect();
    for name in ["plain", "shared", "protected"] {
        arguments.extend(["-drive".to_owned(), image(directory, name, 64 << 20)?]);
    }
    arguments.extend(words(&format!(
        "-device nvme,serial=plain,drive=plain,addr=04.0,{BLOCKS} \
         -device nvme-subsys,id=subsystem,nqn=dual \
         -device nvme,id=left,serial=dual,subsys=subsystem,addr=05.0 \
         -device nvme,id=right,serial=dual,subsys=subsystem,addr=06.0 \
         -device nvme-ns,drive=shared,bus=left,nsid=1,shared=on,{BLOCKS} \
         -device nvme,id=protecting,serial=protected,addr=07.0 \
         -device nvme-ns,drive=protected,bus=protecting,nsid=1,ms=8,pi=1,{BLOCKS}"
    )));
    Ok(arguments)
}

struct Vfio {
    executor: Executor,
    driver: Driver<VfioFunction>,
}

impl Vfio {
    fn attach(address: &str, host: [u8; 16]) -> Self {
        let executor = executor();
        let function = open(address);
        let driver = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), host)).expect("attached");
        Self { executor, driver }
    }
}

impl Way for Vfio {
    type Device = Driver<VfioFunction>;

    fn device(&self) -> &Self::Device {
        &self.driver
    }

    fn memory(&self, bytes: usize) -> Memory {
        let memory = Memory::shared("guest", bytes, HugePages::No).expect("memory");
        self.driver.map(&memory).expect("mapped");
        memory
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.executor, || self.driver.poll(), future)
    }
}

fn executor() -> Executor {
    Executor::new(Limits { tasks: 8, timers: 64 }, std::rc::Rc::new(BootClock))
}

fn address(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// Opens a function, as soon as whoever had it before has given it back.
fn open(text: &str) -> VfioFunction {
    loop {
        match VfioFunction::open(address(text)) {
            Ok(function) => return function,
            Err(OpenError::InUse { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn inside() {
    let machine = Machine::default();
    let plain = address(PLAIN);
    let error = VfioFunction::open(plain).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, OpenError::OtherDriver { driver: Some(driver), .. } if driver == "nvme"), "{error:?}");
    assert!(matches!(unbind(&machine, plain), Err(BindError::NotBound(_))));
    for text in [PLAIN, PORTS[0], PORTS[1], PROTECTED] {
        println!("{text}: {:?}", bind(&machine, address(text)).expect("bound"));
    }
    let vfio = Vfio::attach(PLAIN, [1; 16]);
    println!("plain: {:?}, {} bits", vfio.driver.info(), vfio.driver.function().address_width());
    conformance::blocks(&vfio);
    println!("conformance of a plain namespace holds");
    drop(vfio);
    let [left, right] = PORTS.map(|port| Vfio::attach(port, [2; 16]));
    assert_eq!(left.driver.info(), right.driver.info());
    println!("dual: {:?}", left.driver.info());
    conformance::blocks(&left);
    conformance::blocks(&right);
    println!("conformance of both ports holds");
    if left.driver.info().reservations {
        conformance::reservations(&left, &right, [[2; 16]; 2]);
    }
    let vfio = Vfio::attach(PROTECTED, [3; 16]);
    println!("protected: {:?}", vfio.driver.info());
    conformance::blocks(&vfio);
    println!("conformance with protection information holds");
}
