//! `dyad up`: an array on this machine until Ctrl-C.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use clap::{Args, ValueEnum};
use dyad_director::up::{Directory, Plan, Progress, StopRequests, run as run_array};
use nix::sys::signal::{SigSet, Signal};

use crate::fail;

/// Which array.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The array's configuration; without it there is one in the directory, or one is made there
    #[arg(long)]
    config: Option<PathBuf>,
    /// The array's directory: what it keeps is there
    #[arg(long, default_value = "dyad-array")]
    dir: PathBuf,
    /// For a new directory: how many directors; a pair mirrors each other's cache and serves volumes of its own
    #[arg(long, value_parser = parse_directors, conflicts_with = "config")]
    directors: Option<u8>,
    /// For a new directory: where the first director's control plane listens; the others on the ports after it
    #[arg(long, default_value = "127.0.0.1:7600", conflicts_with = "config")]
    control: SocketAddr,
    /// For a new directory: what directors meet over
    #[arg(long, value_enum, default_value_t = Matrix::Shm, conflicts_with = "config")]
    matrix: Matrix,
}

#[derive(Debug, Copy, Clone, ValueEnum)]
enum Matrix {
    Shm,
    Tcp,
}

/// Where the first director of a new array meets the others over TCP.
const MATRIX_PORT: u16 = 7700;

fn parse_directors(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(directors @ (2 | 4 | 8)) => Ok(directors),
        _ => Err("2, 4 or 8".to_owned()),
    }
}

/// How often SIGINT or SIGTERM came.
struct Signals(Arc<AtomicU32>);

impl StopRequests for Signals {
    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Signals {
    /// From now on they are counted, and nothing else. Before any other thread is started.
    fn count_them() -> Result<Self, nix::Error> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            while signals.wait().is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self(count))
    }
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let directory = match &arguments.config {
        Some(configuration) => Directory::open(&arguments.dir, configuration),
        None => {
            let matrix_port = match arguments.matrix {
                Matrix::Shm => None,
                Matrix::Tcp => Some(MATRIX_PORT),
            };
            let plan = Plan { matrix_port, ..Plan::new(arguments.directors.unwrap_or(2), arguments.control) };
            Directory::open_or_make(&arguments.dir, &plan, arguments.directors)
        }
    };
    let directory = match directory {
        Ok(directory) => directory,
        Err(error) => return fail(&error.to_string()),
    };
    let (program, signals) = match (std::env::current_exe(), Signals::count_them()) {
        (Ok(program), Ok(signals)) => (program, signals),
        (Err(error), _) => return fail(&format!("cannot find the command itself: {error}")),
        (_, Err(error)) => return fail(&format!("cannot wait for signals: {error}")),
    };
    let say = |progress: &Progress| {
        println!("{progress}");
        if *progress == Progress::Whole {
            println!("`dyad status --watch` shows it, Ctrl-C stops it");
        }
    };
    println!("{} in {}", directory.configuration().display(), arguments.dir.display());
    match run_array(&program, directory.configuration(), directory.config(), &signals, say) {
        Ok(()) => {
            println!("stopped; everything is on media");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error.to_string()),
    }
}
