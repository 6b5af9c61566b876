//! `dyad device`: looks at one device, whatever the way to it, and measures it; nothing is written to it. And takes NVMe
//! controllers from the kernel, or gives them back.
//!
//! An address is a PCI address, reached through VFIO, or a path: a socket is a vfio-user device (a port of a shelf), a file
//! or block device is reached through io_uring.

use std::convert::Infallible;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Subcommand;
use dyad_backend::bench::Load;
use dyad_backend::block::BlockDevice;
use dyad_backend::device::{Device, DeviceInfo};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::pci::PciFunction;
use dyad_backend::vfio::{self, Bound, Machine, PciAddress, VfioFunction};
use dyad_backend::vfio_user::VfioUserFunction;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::BLOCK_BYTES;
use dyad_reactor::executor::{Executor, Limits};
use dyad_reactor::{BootClock, Fifo};

use crate::fail;

/// What to do with a device.
#[derive(Subcommand)]
pub(crate) enum DeviceCommand {
    /// List the devices that the directors of an array reach
    List(crate::array::Shown),
    /// Say what the device is
    Probe {
        /// A PCI address (01:00.0), a shelf's port (socket), a file or a block device
        addr: Address,
    },
    /// Measure 4 KiB random reads; nothing is written
    Bench {
        /// A PCI address (01:00.0), a shelf's port (socket), a file or a block device
        addr: Address,
        /// Reads outstanding at once in the second measurement
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
        depth: u32,
        /// Reads in each measurement
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
        reads: u64,
    },
    /// Take an NVMe controller from the kernel's driver, for Dyad to drive it
    ///
    /// The controller goes to the driver vfio-pci until `dyad device unbind` or the next start of the machine. One whose
    /// blocks are in use (mounted, swapped to, part of another device) is left alone. Needs root.
    Bind {
        /// Its PCI address, like 0000:01:00.0
        addr: PciAddress,
    },
    /// Give an NVMe controller back to the kernel's driver
    ///
    /// One that a process drives is left alone. Needs root.
    Unbind {
        /// Its PCI address, like 0000:01:00.0
        addr: PciAddress,
    },
}

/// Which device. A file whose name is like a PCI address is given with its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Pci(PciAddress),
    Path(PathBuf),
}

impl FromStr for Address {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::Path(text.into()), Self::Pci))
    }
}

/// Does it.
pub(crate) fn run(command: &DeviceCommand) -> ExitCode {
    let done = match command {
        DeviceCommand::List(shown) => return crate::array::devices(shown),
        DeviceCommand::Probe { addr } => with_device(addr, &Probe),
        DeviceCommand::Bench { addr, depth, reads } => with_device(addr, &Bench { depth: *depth, reads: *reads }),
        DeviceCommand::Bind { addr } => vfio::bind(&Machine::default(), *addr).map(bound).map_err(|e| e.to_string()),
        DeviceCommand::Unbind { addr } => {
            vfio::unbind(&Machine::default(), *addr).map(bound).map_err(|e| e.to_string())
        }
    };
    done.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn bound(Bound { from, to }: Bound) {
    let name = |driver: Option<String>| driver.unwrap_or_else(|| "no driver".to_owned());
    if to.is_none() {
        eprintln!("dyad: no driver has it now; `modprobe nvme` gives it to the kernel's");
    }
    println!("{} -> {}", name(from), name(to));
}

/// What is done with a device, whatever the way to it.
trait Visit {
    fn nvme<F: PciFunction>(&self, executor: &Executor, driver: &Driver<F>) -> Result<(), String>;
    fn block(&self, executor: &Executor, device: &BlockDevice) -> Result<(), String>;
}

struct Probe;

struct Bench {
    depth: u32,
    reads: u64,
}

impl Visit for Probe {
    fn nvme<F: PciFunction>(&self, executor: &Executor, driver: &Driver<F>) -> Result<(), String> {
        probe(executor, driver)
    }

    fn block(&self, _executor: &Executor, device: &BlockDevice) -> Result<(), String> {
        print_info(&device.info());
        println!("in a pair        no: it cannot be fenced");
        Ok(())
    }
}

impl Visit for Bench {
    fn nvme<F: PciFunction>(&self, executor: &Executor, driver: &Driver<F>) -> Result<(), String> {
        measure(executor, driver, || driver.poll(), self.depth, self.reads)
    }

    fn block(&self, executor: &Executor, device: &BlockDevice) -> Result<(), String> {
        measure(executor, device, || device.poll(), self.depth, self.reads)
    }
}

/// Reaches the device the way that its address says.
fn with_device(addr: &Address, visit: &impl Visit) -> Result<(), String> {
    let executor = Executor::new(Limits { tasks: 256, timers: 1024 }, std::rc::Rc::new(BootClock));
    match addr {
        Address::Pci(addr) => {
            let function = VfioFunction::open(*addr).map_err(|error| error.to_string())?;
            let width = function.address_width();
            attached(&executor, function, &addr.to_string(), |executor, driver| {
                println!("DMA addresses    {width} bits");
                visit.nvme(executor, driver)
            })
        }
        Address::Path(path) => {
            let shown = path.display().to_string();
            let kind = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.file_type();
            if kind.is_socket() {
                let function = VfioUserFunction::connect(path).map_err(|error| format!("{shown}: {error}"))?;
                return attached(&executor, function, &shown, |executor, driver| visit.nvme(executor, driver));
            }
            let device = BlockDevice::open(path).map_err(|error| error.to_string())?;
            visit.block(&executor, &device)
        }
    }
}

fn attached<F: PciFunction>(
    executor: &Executor,
    function: F,
    addr: &str,
    visit: impl FnOnce(&Executor, &Driver<F>) -> Result<(), String>,
) -> Result<(), String> {
    let handle = executor.handle();
    // A Host Identifier of its own: a director's registration at this port is not touched.
    let attached = Driver::attach(function, &handle, *b"dyad device tool");
    let driver = block_on(executor, || 0, attached).map_err(|error| format!("{addr}: {error}"))?;
    visit(executor, &driver)
}

fn probe<F: PciFunction>(executor: &Executor, driver: &Driver<F>) -> Result<(), String> {
    let controller = driver.controller();
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim().to_owned();
    println!("model            {}", text(&controller.model));
    println!("serial           {}", text(&controller.serial));
    println!("firmware         {}", text(&controller.firmware));
    println!("controller       {}", controller.controller.0);
    print_info(&driver.info());
    let smart = block_on(executor, || driver.poll(), driver.smart_log()).map_err(|error| error.to_string())?;
    println!("critical warning {:#04x}", smart.critical_warning);
    println!("media errors     {}", smart.media_errors);
    let report = block_on(executor, || driver.poll(), driver.reservation_report());
    match report {
        Ok(report) if report.registrants.is_empty() => println!("registrants      none"),
        Ok(report) => {
            for registrant in &report.registrants {
                let holder = if registrant.holder { ", holder" } else { "" };
                println!("registrant       key {:#018x}{holder}", registrant.key.0);
            }
        }
        Err(error) => println!("reservation      {error}"),
    }
    Ok(())
}

fn print_info(info: &DeviceInfo) {
    let id: String = info.id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("medium           {id}");
    println!("namespace        {}", info.namespace.0);
    println!("size             {} blocks of 4 KiB, {} MiB", info.blocks.0, info.blocks.bytes() >> 20);
    println!("longest transfer {} KiB", info.transfer_blocks_max.bytes() >> 10);
    println!("queue depth      {}", info.queue_depth);
    println!("volatile cache   {}", if info.volatile_cache { "yes" } else { "no" });
    println!("reservations     {}", if info.reservations { "yes" } else { "no" });
}

fn measure<D: Device>(
    executor: &Executor,
    device: &D,
    poll: impl Fn() -> usize,
    depth: u32,
    reads: u64,
) -> Result<(), String> {
    let bytes = usize::try_from(depth + 1).expect("a small depth") * BLOCK_BYTES;
    let memory = Memory::shared("dyad-device", bytes, HugePages::No).map_err(|error| error.to_string())?;
    let failed = |error: dyad_backend::bench::BenchError| error.to_string();
    let turn = || {
        let work = poll() + executor.run_until_idle(&mut Fifo) + executor.fire_timers();
        if work == 0 {
            std::thread::yield_now();
        }
    };
    let one = Load::new(&executor.handle(), device, &memory, 1).map_err(failed)?;
    let mut nanos = one.latencies(executor, reads, turn).map_err(failed)?;
    nanos.sort_unstable();
    let micros =
        |percent: usize| std::time::Duration::from_nanos(nanos[(nanos.len() - 1) * percent / 100]).as_secs_f64() * 1e6;
    println!("4 KiB reads, one at a time: {:.1} us median, {:.1} us at the 99th percentile", micros(50), micros(99));
    let many = Load::new(&executor.handle(), device, &memory, depth).map_err(failed)?;
    let outcome = many.run(executor, reads, turn).map_err(failed)?;
    println!("4 KiB reads, {depth} at a time: {:.0} per second", outcome.per_second());
    Ok(())
}
