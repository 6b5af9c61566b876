//! The `dyad` command: a thin door to what the rooms do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use dyad_director::demo;
use dyad_director::layout::ArrayDir;
use dyad_director::membership::{DirectorId, Timing};
use dyad_director::node::port::PortConfig;
use dyad_director::process::{Ended, ProcessConfig, run_director};
use dyad_director::trial::{load::REACTORS, processes::EXIT_FRESH};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

mod bench;
mod device;
mod shelf;
mod sim;

/// A storage array in software: mirrored directors over dual-ported NVMe devices
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what the array can do, on this machine, in under a minute
    Demo,
    /// Run the array in virtual time, with faults, and check every byte
    Sim(sim::Arguments),
    /// Measure, beside what it is to be compared with, in one run
    Bench(bench::Arguments),
    /// A director of the demo's array
    #[command(hide = true)]
    Director {
        /// The array's directory
        #[arg(long)]
        dir: PathBuf,
        /// Listen here for NVMe/TCP
        #[arg(long)]
        nvme_tcp: Option<SocketAddr>,
        /// Where hosts find that port, if not there
        #[arg(long, requires = "nvme_tcp")]
        advertise: Option<SocketAddr>,
        /// Which director
        id: Id,
    },
    /// Look at a device, or measure it
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Serve emulated dual-ported NVMe devices over vfio-user
    Shelf(shelf::Arguments),
}

#[derive(Copy, Clone, ValueEnum)]
enum Id {
    A,
    B,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo => run_demo(),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Director { dir, nvme_tcp, advertise, id } => {
            director(&dir, id, nvme_tcp.map(|listen| PortConfig { listen, advertise }))
        }
        Command::Device(command) => device::run(&command),
        Command::Shelf(arguments) => shelf::run(&arguments),
    }
}

fn run_demo() -> ExitCode {
    let dir = match tempfile::Builder::new().prefix("dyad-demo-").tempdir() {
        Ok(dir) => dir,
        Err(error) => return fail(&format!("cannot make a directory for the demo: {error}")),
    };
    match demo::run(dir.path()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("the demo failed: {error}")),
    }
}

fn director(dir: &std::path::Path, id: Id, nvme_tcp: Option<PortConfig>) -> ExitCode {
    end_with_parent();
    let me = match id {
        Id::A => DirectorId::A,
        Id::B => DirectorId::B,
    };
    let config =
        ProcessConfig { array: ArrayDir::new(dir), me, timing: Timing::default(), reactors: REACTORS, nvme_tcp };
    match run_director(&config) {
        Ok(Ended::Fresh) => ExitCode::from(EXIT_FRESH),
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("director {me:?}: {error}")),
    }
}

/// Whoever started this process supervises it: it does not outlive that one.
fn end_with_parent() {
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        eprintln!("warning: this process may outlive the one that started it: {error}");
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("dyad: {why}");
    ExitCode::FAILURE
}
