//! `dyad device`: looks at one device, whatever the way to it, and measures it. Nothing is written to it.
//!
//! An address is a path: a socket is a vfio-user device (a port of a shelf), a file or block device is reached through io_uring.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use dyad_backend::bench::Load;
use dyad_backend::block::BlockDevice;
use dyad_backend::device::{Device, DeviceInfo};
use dyad_backend::driver::{Driver, block_on};
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
    /// Say what the device is
    Probe {
        /// A shelf's port (socket), a file or a block device
        addr: PathBuf,
    },
    /// Measure 4 KiB random reads; nothing is written
    Bench {
        /// A shelf's port (socket), a file or a block device
        addr: PathBuf,
        /// Reads outstanding at once in the second measurement
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
        depth: u32,
        /// Reads in each measurement
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
        reads: u64,
    },
}

/// Does it.
pub(crate) fn run(command: &DeviceCommand) -> ExitCode {
    let done = match command {
        DeviceCommand::Probe { addr } => with_device(addr, probe, probe_block),
        DeviceCommand::Bench { addr, depth, reads } => with_device(
            addr,
            |executor, driver| measure(executor, driver, || driver.poll(), *depth, *reads),
            |executor, device| measure(executor, device, || device.poll(), *depth, *reads),
        ),
    };
    done.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

/// Reaches the device the way that its path says.
fn with_device(
    addr: &Path,
    nvme: impl FnOnce(&Executor, &Driver<VfioUserFunction>) -> Result<(), String>,
    block: impl FnOnce(&Executor, &BlockDevice) -> Result<(), String>,
) -> Result<(), String> {
    let kind = std::fs::metadata(addr).map_err(|error| format!("{}: {error}", addr.display()))?.file_type();
    let executor = Executor::new(Limits { tasks: 256, timers: 1024 }, std::rc::Rc::new(BootClock));
    if !kind.is_socket() {
        let device = BlockDevice::open(addr).map_err(|error| error.to_string())?;
        return block(&executor, &device);
    }
    let function = VfioUserFunction::connect(addr).map_err(|error| format!("{}: {error}", addr.display()))?;
    // A Host Identifier of its own: a director's registration at this port is not touched.
    let handle = executor.handle();
    let attached = Driver::attach(function, &handle, *b"dyad device tool");
    let driver = block_on(&executor, || 0, attached).map_err(|error| format!("{}: {error}", addr.display()))?;
    nvme(&executor, &driver)
}

fn probe(executor: &Executor, driver: &Driver<VfioUserFunction>) -> Result<(), String> {
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

fn probe_block(_executor: &Executor, device: &BlockDevice) -> Result<(), String> {
    print_info(&device.info());
    println!("in a pair        no: it cannot be fenced");
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
