//! The `dyad` command: a thin door to what the rooms do.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dyad_director::demo;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

mod array;
mod bank;
mod bench;
mod connection;
mod device;
mod director;
mod doctor;
mod shelf;
mod sim;
mod status;
mod up;

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
    /// Run an array on this machine: devices, registry and directors, until Ctrl-C
    Up(up::Arguments),
    /// Run one director of an array
    Director(director::Arguments),
    /// Check whether this machine is ready for an array, and say how to mend what is not
    Doctor(doctor::Arguments),
    /// Show the array, once or every second
    Status(status::Arguments),
    /// Show the RAID groups
    #[command(subcommand)]
    Group(array::GroupCommand),
    /// Show the ports that hosts connect to
    #[command(subcommand)]
    Port(array::PortCommand),
    /// Show the pairs of directors
    #[command(subcommand)]
    Pair(array::PairCommand),
    /// Show what happened at the directors since they were started
    Events(array::Shown),
    /// List the array's devices, look at one, or measure it
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Serve emulated dual-ported NVMe devices over vfio-user
    Shelf(shelf::Arguments),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo => run_demo(),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Up(arguments) => up::run(&arguments),
        Command::Director(arguments) => director::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Port(command) => array::port(&command),
        Command::Group(command) => array::group(&command),
        Command::Pair(command) => array::pair(&command),
        Command::Events(shown) => array::events(&shown),
        Command::Device(command) => device::run(&command),
        Command::Shelf(arguments) => shelf::run(&arguments),
    }
}

fn run_demo() -> ExitCode {
    let dir = match tempfile::Builder::new().prefix("dyad-demo-").tempdir() {
        Ok(dir) => dir,
        Err(error) => return fail(&format!("cannot make a directory for the demo: {error}")),
    };
    let array = dir.path().join("bank");
    let both = demo::run(dir.path()).and_then(|()| {
        std::fs::create_dir(&array).map_err(|error| error.to_string())?;
        bank::run(&array)
    });
    match both {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("the demo failed: {error}")),
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
