//! What the cases about VFIO share, in the guest.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::vfio::{Bound, Machine, OpenError, PciAddress, VfioFunction, bind};
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_reactor::{BootClock, Executor, Limits};

use crate::conformance::Way;

/// A controller over VFIO, polled.
pub(super) struct Vfio {
    pub(super) executor: Executor,
    pub(super) driver: Driver<VfioFunction>,
}

impl Vfio {
    pub(super) fn attach(address: &str, host: [u8; 16]) -> Self {
        let executor = executor();
        let handle = executor.handle();
        let driver = block_on(&executor, || 0, Driver::attach(open(address), &handle, host)).expect("attached");
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

pub(super) fn executor() -> Executor {
    Executor::new(Limits { tasks: 8, timers: 64 }, Rc::new(BootClock))
}

pub(super) fn address(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// Takes functions for ourselves; whose they were does not matter.
pub(super) fn bind_all(addresses: &[&str]) {
    for text in addresses {
        let Bound { to, .. } = bind(&Machine::default(), address(text)).expect("bound");
        assert_eq!(to.as_deref(), Some("vfio-pci"));
    }
}

/// Opens a function, as soon as whoever had it before has given it back.
pub(super) fn open(text: &str) -> VfioFunction {
    loop {
        match VfioFunction::open(address(text)) {
            Ok(function) => return function,
            Err(OpenError::InUse { .. }) => pause(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until nobody has a function any more: giving back goes on after it was dropped.
pub(super) fn given_back(text: &str) {
    let group = std::fs::read_link(format!("/sys/bus/pci/devices/{text}/iommu_group")).expect("it has a group");
    let file = Path::new("/dev/vfio").join(group.file_name().expect("a number"));
    while std::fs::File::open(&file).is_err() {
        pause();
    }
}

/// Leaves the processor to others for a moment.
pub(super) fn pause() {
    let (_nobody, inbox) = mpsc::channel::<()>();
    let _ = inbox.recv_timeout(Duration::from_millis(10));
}
