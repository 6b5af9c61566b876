//! The suite over each way to a device.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_backend::Device;
use dyad_backend::block::{BlockDevice, OpenError};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use dyad_backend::vfio_user::VfioUserFunction;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock, Executor, SeededRng};

use crate::conformance::{self, Way};
use crate::process::{BLOCKS, Role, attach, executor};

const A: [u8; 16] = [0xa; 16];
const B: [u8; 16] = [0xb; 16];

struct InProcess {
    executor: Executor,
    subsystem: Rc<RefCell<Subsystem>>,
    driver: Driver<EmulatedFunction>,
}

fn subsystem(format: BlockFormat) -> Rc<RefCell<Subsystem>> {
    let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
    let config = NamespaceConfig { uuid: [7; 16], blocks: BlockCount(BLOCKS), cache_blocks: Some(64), format };
    let media = MemoryMedia::new(usize::try_from(config.media_bytes()).unwrap());
    subsystem.add_namespace(config, Box::new(media));
    Rc::new(RefCell::new(subsystem))
}

impl InProcess {
    fn new(subsystem: &Rc<RefCell<Subsystem>>, port: usize, host: [u8; 16]) -> Self {
        let executor = executor();
        let function = EmulatedFunction::new(subsystem, port, Rc::new(BootClock));
        let pump = || subsystem.borrow_mut().step(BootClock.now());
        let driver = block_on(&executor, pump, Driver::attach(function, &executor.handle(), host)).unwrap();
        Self { executor, subsystem: Rc::clone(subsystem), driver }
    }
}

impl Way for InProcess {
    type Device = Driver<EmulatedFunction>;

    const EMULATED_HERE: bool = true;

    fn device(&self) -> &Self::Device {
        &self.driver
    }

    fn memory(&self, bytes: usize) -> Memory {
        let memory = Memory::anonymous(bytes);
        self.driver.map(&memory).unwrap();
        memory
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let pump = || self.driver.poll() + self.subsystem.borrow_mut().step(BootClock.now());
        block_on(&self.executor, pump, future)
    }
}

struct Remote {
    executor: Executor,
    driver: Driver<VfioUserFunction>,
}

impl Way for Remote {
    type Device = Driver<VfioUserFunction>;

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

struct File {
    executor: Executor,
    device: BlockDevice,
}

impl Way for File {
    type Device = BlockDevice;

    fn device(&self) -> &BlockDevice {
        &self.device
    }

    fn memory(&self, bytes: usize) -> Memory {
        let memory = Memory::anonymous(bytes);
        self.device.map(&memory).unwrap();
        memory
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.executor, || self.device.poll(), future)
    }
}

#[test]
fn in_process() {
    for format in [BlockFormat::Bare, BlockFormat::Protected] {
        let subsystem = subsystem(format);
        let (a, b) = (InProcess::new(&subsystem, 0, A), InProcess::new(&subsystem, 1, B));
        conformance::blocks(&a);
        conformance::blocks(&b);
        conformance::reservations(&a, &b, [A, B]);
    }
}

#[test]
fn over_vfio_user() {
    for media in ["shelf", "file shelf"] {
        let directory = tempfile::tempdir().unwrap();
        let _shelf = Role::start(media, directory.path());
        let [a, b] = [(0, A), (1, B)].map(|(port, host)| {
            let executor = executor();
            let driver = attach(&executor, directory.path(), port, host);
            Remote { executor, driver }
        });
        conformance::blocks(&a);
        conformance::blocks(&b);
        conformance::reservations(&a, &b, [A, B]);
    }
}

#[test]
fn through_io_uring() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blocks");
    std::fs::File::create(&path).unwrap().set_len(BLOCKS * 4096).unwrap();
    let device = BlockDevice::open(&path).unwrap();
    let way = File { executor: executor(), device };
    conformance::blocks(&way);
    assert!(matches!(BlockDevice::open(&path), Err(OpenError::InUse(_))));
    let small = directory.path().join("small");
    std::fs::File::create(&small).unwrap().set_len(4095).unwrap();
    assert!(matches!(BlockDevice::open(&small), Err(OpenError::TooSmall { bytes: 4095, .. })));
    assert!(matches!(BlockDevice::open(directory.path()), Err(OpenError::NotBlocks(_))));
    assert!(matches!(BlockDevice::open(&directory.path().join("none")), Err(OpenError::Open { .. })));
    assert!(!way.device().info().reservations);
}
