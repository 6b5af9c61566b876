//! The `dyad` command: a thin door to what the rooms do.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod sim;

/// A storage array in software: mirrored directors over dual-ported NVMe devices.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the array in virtual time, with faults, and check every byte
    Sim(sim::Arguments),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Sim(arguments) => sim::run(&arguments),
    }
}
