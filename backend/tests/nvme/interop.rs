//! Our ends of vfio-user against somebody else's: the crate `vfio_user`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use dyad_backend::device::{Device, Io};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{
    BAR_BYTES, BlockFormat, DOORBELL_PAGE, MSIX_PAGE, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig,
};
use dyad_backend::shelf::socket_path;
use dyad_backend::vfio_user::VfioUserFunction;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::register::{self, Capabilities, Configuration, ControllerStatus, Version};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{BootClock, Clock, SeededRng};
use vfio_bindings::bindings::vfio;
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea};

use crate::process::{DEVICE, Role, executor};

#[test]
fn their_client_finds_our_device() {
    let directory = tempfile::tempdir().unwrap();
    let _shelf = Role::start("shelf", directory.path());
    let mut client = Client::new(&socket_path(directory.path(), DEVICE, 0)).expect("a device");
    let bar = client.region(vfio::VFIO_PCI_BAR0_REGION_INDEX).expect("BAR 0");
    assert_eq!(bar.size, BAR_BYTES);
    assert!(bar.file_offset.is_some(), "it can be mapped");
    let areas: Vec<_> = bar.sparse_areas.iter().map(|a| (a.offset, a.size)).collect();
    assert_eq!(areas, [(DOORBELL_PAGE, 4096), (MSIX_PAGE, 4096)]);
    let mut class = [0; 4];
    client.region_read(vfio::VFIO_PCI_CONFIG_REGION_INDEX, 8, &mut class).unwrap();
    assert_eq!(class[1..], [0x02, 0x08, 0x01], "NVMe");
    assert_eq!(client.get_irq_info(vfio::VFIO_PCI_MSIX_IRQ_INDEX).unwrap().count, 1);
    let mut cap = [0; 8];
    client.region_read(0, u64::from(register::CAP), &mut cap).unwrap();
    assert!(Capabilities(u64::from_le_bytes(cap)).nvm_command_set());
    let mut word = [0; 4];
    client.region_read(0, u64::from(register::VS), &mut word).unwrap();
    assert_eq!(u32::from_le_bytes(word), Version::V2_0.0);
    // Enabled with admin queues in memory that was mapped, it becomes ready; with queues in memory that was not, fatal.
    let memory = Memory::shared("queues", 8192, HugePages::No).unwrap();
    client.dma_map(0, 0x10_0000, 8192, memory.fd().unwrap().as_raw_fd()).unwrap();
    for (asq, expected) in [(0x10_0000_u64, ControllerStatus::READY), (0x20_0000, ControllerStatus::FATAL)] {
        client.region_write(0, u64::from(register::CC), &[0; 4]).unwrap();
        client.region_write(0, u64::from(register::AQA), &0x001f_001f_u32.to_le_bytes()).unwrap();
        client.region_write(0, u64::from(register::ASQ), &asq.to_le_bytes()).unwrap();
        client.region_write(0, u64::from(register::ACQ), &(asq + 4096).to_le_bytes()).unwrap();
        client.region_write(0, u64::from(register::CC), &Configuration::ENABLED.0.to_le_bytes()).unwrap();
        let mut status = [0; 4];
        while status == [0; 4] {
            client.region_read(0, u64::from(register::CSTS), &mut status).unwrap();
        }
        assert_eq!(u32::from_le_bytes(status), expected);
    }
    client.shutdown().unwrap();
}

/// Their server with our device behind it.
struct Backend {
    subsystem: Subsystem,
    mapped: Vec<(u64, u64)>,
    interrupt: Option<std::fs::File>,
}

impl Backend {
    fn new(bar: Memory) -> Self {
        let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
        let blocks = BlockCount(1024);
        let config = NamespaceConfig { uuid: [3; 16], blocks, cache_blocks: None, format: BlockFormat::Bare };
        let media = MemoryMedia::new(usize::try_from(config.media_bytes()).unwrap());
        subsystem.add_namespace(config, Box::new(media));
        subsystem.share_bar(0, bar);
        Self { subsystem, mapped: Vec::new(), interrupt: None }
    }

    /// This server has no loop of its own: it works when it hears something, and always asks to hear more.
    fn work(&mut self) {
        while self.subsystem.step(BootClock.now()) > 0 {
            self.subsystem.ask_for_doorbells();
        }
        if self.subsystem.take_interrupt(0)
            && let Some(interrupt) = &self.interrupt
        {
            nix::unistd::write(interrupt, &1_u64.to_ne_bytes()).unwrap();
        }
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, _: u32, offset: u64, data: &mut [u8]) -> std::io::Result<()> {
        for (index, word) in data.chunks_exact_mut(4).enumerate() {
            let offset = u32::try_from(offset).unwrap() + 4 * u32::try_from(index).unwrap();
            word.copy_from_slice(&self.subsystem.read32(0, offset).to_le_bytes());
        }
        Ok(())
    }

    fn region_write(&mut self, _: u32, offset: u64, data: &[u8]) -> std::io::Result<()> {
        for (index, word) in data.chunks_exact(4).enumerate() {
            let offset = u32::try_from(offset).unwrap() + 4 * u32::try_from(index).unwrap();
            self.subsystem.write32(0, offset, u32::from_le_bytes(word.try_into().unwrap()), BootClock.now());
        }
        self.work();
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<std::fs::File>,
    ) -> std::io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let fd: OwnedFd = fd.expect("memory comes with a descriptor").into();
        let memory = Memory::from_fd(fd, offset + size, true).map_err(std::io::Error::other)?;
        assert!(self.subsystem.map_dma(0, address, size, &memory, offset));
        self.mapped.push((address, size));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> std::io::Result<()> {
        assert!(self.subsystem.unmap_dma(0, address, size));
        Ok(())
    }

    fn reset(&mut self) -> std::io::Result<()> {
        self.subsystem.reset(0);
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, mut fds: Vec<std::fs::File>) -> std::io::Result<()> {
        self.interrupt = fds.pop();
        Ok(())
    }
}

fn serve(path: &Path, ready: &std::sync::mpsc::Sender<()>) {
    let bar = Memory::shared("bar", usize::try_from(BAR_BYTES).unwrap(), HugePages::No).unwrap();
    let info = |index, size, flags| vfio::vfio_region_info { index, size, flags, ..Default::default() };
    let access = vfio::VFIO_REGION_INFO_FLAG_READ | vfio::VFIO_REGION_INFO_FLAG_WRITE;
    let regions = (0..vfio::VFIO_PCI_NUM_REGIONS).map(|index| match index {
        vfio::VFIO_PCI_BAR0_REGION_INDEX => ServerRegion {
            region_info: info(index, BAR_BYTES, access | vfio::VFIO_REGION_INFO_FLAG_MMAP),
            sparse_areas: vec![SparseArea {
                area: vfio::vfio_region_sparse_mmap_area { offset: 0x1000, size: 0x2000 },
            }],
            mmap_fd: bar.fd().map(|fd| fd.as_raw_fd()),
        },
        _ => ServerRegion { region_info: info(index, 0, 0), sparse_areas: vec![], mmap_fd: None },
    });
    let irqs = (0..vfio::VFIO_PCI_NUM_IRQS).map(|index| IrqInfo { index, flags: 1, count: 1 }).collect();
    let server = Server::new(path, true, irqs, regions.collect()).unwrap();
    ready.send(()).unwrap();
    server.run(&mut Backend::new(bar.clone())).unwrap();
}

#[test]
fn our_driver_works_through_their_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("theirs.sock");
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = std::thread::spawn({
        let path = path.clone();
        move || serve(&path, &ready)
    });
    is_ready.recv_timeout(Duration::from_secs(30)).unwrap();
    let executor = executor();
    let function = VfioUserFunction::connect(&path).unwrap();
    let driver = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), [1; 16])).unwrap();
    let memory = Memory::shared("payload", 8192, HugePages::No).unwrap();
    driver.map(&memory).unwrap();
    for round in 0..100_u8 {
        memory.write(0, &[round; 4096]).unwrap();
        let lba = Lba(u64::from(round));
        let from = [memory.segment(0, 4096).unwrap()];
        let to = [memory.segment(4096, 4096).unwrap()];
        let write = driver.submit(Io::Write { lba, segments: &from, fua: false }).unwrap();
        block_on(&executor, || driver.poll(), write).unwrap();
        let read = driver.submit(Io::Read { lba, segments: &to }).unwrap();
        block_on(&executor, || driver.poll(), read).unwrap();
        let mut block = [0; 4096];
        memory.read(4096, &mut block).unwrap();
        assert_eq!(block, [round; 4096]);
    }
    // The completion's interrupt, while vector 0 is unmasked.
    use dyad_backend::pci::PciFunction;
    driver.function().mask_interrupt(false);
    let flush = driver.submit(Io::Flush).unwrap();
    driver.poll();
    let fd = driver.function().interrupt().unwrap();
    let mut fds = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 30_000_u16), Ok(1), "vector 0 was signalled");
    block_on(&executor, || driver.poll(), flush).unwrap();
    driver.function().mask_interrupt(true);
    drop(driver);
    drop(executor);
    server.join().unwrap();
}
