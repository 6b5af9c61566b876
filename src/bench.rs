//! `dyad bench`: figures for humans, or one JSON object for scripts; everything else goes to standard error.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};
use dyad_director::trial::meeting::Matrix;
use dyad_reactor::figures::{Figures, Row};
use serde_json::{Value, json};

use crate::fail;

mod peers;

/// What to measure, and how to say it.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// The matrix between two processes, beside TCP loopback, a Unix socket and memcpy
    Matrix,
    /// The NVMe driver, the emulated controller, and the shelf over vfio-user
    Nvme,
    /// The caches of two directors over shared memory: hits, mirrored and unmirrored writes, destage
    Cache,
    /// NVMe/TCP over loopback: our initiator, our target with a volume in memory, a pair of directors; beside them a bare socket, and nbdkit
    /// where it is installed
    Frontend,
    /// The database's storage engine: scans, what they use of a volume, transactions; beside SQLite and redb with the feature `peers`
    Engine,
    /// Parity beside memcpy, commands per write, a group beside the sum of its devices, a rebuild beside hosts
    Raid,
    /// Directors are killed, stopped and started again under load: how long until it goes on, and what was lost
    Takeover {
        /// How often each fault happens
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// How directors and host meet
        #[arg(long, value_enum, default_value_t = MatrixName::Shm)]
        matrix: MatrixName,
    },
    /// The other process of a measurement
    #[command(hide = true)]
    Peer {
        /// Which
        name: PeerName,
        /// Where to meet
        directory: PathBuf,
    },
}

#[derive(Debug, Copy, Clone, clap::ValueEnum)]
enum MatrixName {
    /// In shared memory
    Shm,
    /// Over TCP on loopback
    Tcp,
    /// Over TCP between network namespaces, whose links are cut too; needs root
    Network,
}

#[derive(Copy, Clone, clap::ValueEnum)]
enum PeerName {
    Matrix,
    Nvme,
    Cache,
}

/// Measures.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let (name, figures) = match &arguments.what {
        What::Matrix => ("matrix", measure("matrix", matrix)),
        What::Nvme => ("nvme", measure("nvme", nvme)),
        What::Cache => ("cache", measure("cache", cache)),
        What::Frontend => ("frontend", frontend()),
        What::Engine => ("engine", engine()),
        What::Raid => ("raid", dyad_backend::bench::raid::run_raid(progress).map_err(|error| error.to_string())),
        What::Takeover { rounds, matrix } => ("takeover", takeover(*rounds, *matrix)),
        What::Peer { name, directory } => {
            crate::end_with_parent();
            let served = match name {
                PeerName::Matrix => dyad_matrix::bench::serve(directory).map_err(|error| error.to_string()),
                PeerName::Nvme => dyad_backend::bench::serve(directory).map_err(|error| error.to_string()),
                PeerName::Cache => dyad_cache::bench::serve(directory).map_err(|error| error.to_string()),
            };
            return served.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
        }
    };
    match figures {
        Ok(figures) if arguments.json => println!("{}", object(name, &figures)),
        Ok(figures) => print_table(&figures),
        Err(error) => return fail(&format!("bench {name}: {error}")),
    }
    ExitCode::SUCCESS
}

fn frontend() -> Result<Vec<Row>, String> {
    let directory = directory()?;
    let mut rows = dyad_frontend::bench::run(progress).map_err(|error| error.to_string())?;
    progress("a pair of directors");
    rows.extend(dyad_director::bench::nvme_tcp(directory.path(), progress)?);
    let mut figures = Figures::default();
    peers::nbdkit(directory.path(), &mut figures, progress)?;
    rows.extend(figures.rows());
    Ok(rows)
}

fn takeover(rounds: u32, matrix: MatrixName) -> Result<Vec<Row>, String> {
    let directory = directory()?;
    let matrix = match matrix {
        MatrixName::Shm => Matrix::Shm,
        MatrixName::Tcp => Matrix::Tcp,
        MatrixName::Network => Matrix::Network,
    };
    let figures = dyad_director::takeover::run(directory.path(), rounds, matrix, progress)?;
    let lost = figures.iter().find(|row| row.name == "takeover.lost_writes");
    if lost.is_none_or(|row| row.value > 0.0) {
        print_table(&figures);
        return Err("acknowledged writes were lost".to_owned());
    }
    Ok(figures)
}

fn engine() -> Result<Vec<Row>, String> {
    let directory = directory()?;
    dyad_storage::bench::run(directory.path(), progress).map_err(|error| error.to_string())
}

fn directory() -> Result<tempfile::TempDir, String> {
    let made = tempfile::Builder::new().prefix("dyad-bench-").tempdir();
    made.map_err(|error| format!("cannot make a directory: {error}"))
}

fn measure(
    peer: &str,
    bench: impl FnOnce(&mut Command, PathBuf) -> Result<Vec<Row>, String>,
) -> Result<Vec<Row>, String> {
    let directory = directory()?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut other = Command::new(program);
    other.args(["bench", "peer", peer]).arg(directory.path());
    bench(&mut other, directory.path().to_owned())
}

fn matrix(peer: &mut Command, directory: PathBuf) -> Result<Vec<Row>, String> {
    dyad_matrix::bench::run(peer, &directory, progress).map_err(|error| error.to_string())
}

fn nvme(peer: &mut Command, directory: PathBuf) -> Result<Vec<Row>, String> {
    dyad_backend::bench::run(peer, &directory, progress).map_err(|error| error.to_string())
}

fn cache(peer: &mut Command, directory: PathBuf) -> Result<Vec<Row>, String> {
    dyad_cache::bench::run(peer, &directory, progress).map_err(|error| error.to_string())
}

fn progress(line: &str) {
    eprintln!("{line}");
}

fn print_table(figures: &[Row]) {
    for figure in figures {
        println!(
            "{:44} {:>14.3} {:6} ({:.3} to {:.3})",
            figure.name, figure.value, figure.unit, figure.min, figure.max
        );
    }
}

fn object(bench: &str, figures: &[Row]) -> Value {
    let results: Vec<_> = figures
        .iter()
        .map(|figure| json!({ "name": figure.name, "value": figure.value, "unit": figure.unit, "min": figure.min, "max": figure.max }))
        .collect();
    json!({ "bench": bench, "machine": machine(), "commit": commit(), "results": results })
}

fn machine() -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({ "cpu": model, "cores": cores, "kernel": kernel.trim() })
}

fn commit() -> String {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
