//! Devices that somebody asks back: the driver gives them up, whether it is busy or nobody looks.

use super::*;
use crate::pci::BusAddress;
use dyad_reactor::Source;

/// The emulated controller, lent by somebody.
struct Lent {
    inner: EmulatedFunction,
    asked_back: Rc<Cell<bool>>,
    given_back: Rc<Cell<bool>>,
}

impl PciFunction for Lent {
    fn read32(&self, offset: u32) -> Poll<u32> {
        self.inner.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.inner.write32(offset, value);
    }

    fn doorbell(&self, offset: u32, value: u32) {
        self.inner.doorbell(offset, value);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        self.inner.allocate(len)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        self.inner.map_dma(memory)
    }

    fn is_leaving(&self) -> bool {
        self.asked_back.get()
    }

    fn reset(&self) {
        self.inner.reset();
        self.given_back.set(true);
    }
}

struct Scene {
    rig: Rig,
    driver: Driver<Lent>,
    asked_back: Rc<Cell<bool>>,
    given_back: Rc<Cell<bool>>,
}

impl Scene {
    fn new() -> Self {
        let rig = rig();
        let (asked_back, given_back) = (Rc::default(), Rc::default());
        let function =
            Lent { inner: rig.function(0), asked_back: Rc::clone(&asked_back), given_back: Rc::clone(&given_back) };
        let handle = rig.executor.handle();
        let driver = rig.run(Driver::attach(function, &handle, A)).expect("attached");
        Self { rig, driver, asked_back, given_back }
    }
}

#[test]
fn a_device_that_nobody_uses_is_given_back_when_the_reactor_was_woken() {
    let Scene { rig, mut driver, asked_back, given_back } = Scene::new();
    while rig.turn() + driver.poll() > 0 {}
    driver.arm();
    asked_back.set(true);
    rig.turn();
    assert!(!driver.failed(), "everybody is asleep");
    driver.disarm();
    rig.turn();
    assert!(driver.failed() && given_back.get());
}

#[test]
fn a_device_under_load_is_given_back_and_every_command_ends() {
    let Scene { rig, driver, asked_back, given_back } = Scene::new();
    let memory = Memory::anonymous(4096);
    driver.map(&memory).expect("mapped");
    let segments = [segment(&memory, 0, 1)];
    // Nobody polls the driver: the command stays outstanding, and only time goes by.
    let command = driver.submit(Io::Read { lba: Lba(0), segments: &segments }).expect("taken");
    asked_back.set(true);
    assert_eq!(rig.run(command), Err(DeviceError::Gone));
    assert!(driver.failed() && given_back.get());
    assert_eq!(driver.submit(Io::Flush).err(), Some(SubmitError::Gone));
}
