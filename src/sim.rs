//! `dyad sim`: seeds of the simulator, one with its story or many with their sum.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use dyad_reactor::{BootClock, Clock};
use dyad_sim::faults::{Fault, FaultKinds};
use dyad_sim::timeline::Detail;
use dyad_sim::{Outcome, SimOptions};

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The first (or only) seed; one seed prints its story when it fails
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Seeds that nobody has run before, for so many seconds, instead
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    seconds: Option<u64>,
    /// Directors: 2 to 16, in pairs. There is no routing between pairs yet
    #[arg(long, default_value_t = 2, value_parser = parse_directors)]
    directors: usize,
    /// Host operations per seed and pair
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
    /// Faults that may happen: all, none, or a list
    #[arg(long, default_value = "all", value_parser = parse_faults)]
    faults: FaultKinds,
    /// Print the story, with every message of the matrix
    #[arg(long)]
    verbose: bool,
}

fn parse_directors(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(directors) if directors % 2 == 0 && (2..=16).contains(&directors) => Ok(directors),
        _ => Err("2, 4, 6, and so on up to 16".to_owned()),
    }
}

fn parse_faults(text: &str) -> Result<FaultKinds, String> {
    FaultKinds::parse(text).map_err(|word| {
        let names: Vec<_> = Fault::ALL.map(Fault::name).to_vec();
        format!("'{word}' is no fault: all, none, or a list of {}", names.join(", "))
    })
}

/// Runs them; fails if one seed fails.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let started = BootClock.now();
    let (first, seeds) = match arguments.seconds {
        Some(_) => (new_seed(), u64::MAX),
        None => (arguments.seed, arguments.seeds),
    };
    let mut sum = Sum::default();
    for seed in first..first.saturating_add(seeds) {
        let detail = if arguments.verbose { Detail::Everything } else { Detail::None };
        let outcome = dyad_sim::run(options(arguments, seed, detail));
        if outcome.failure.is_some() {
            return report_failure(arguments, seed);
        }
        print_lines(&outcome);
        if seeds == 1 {
            println!("seed {seed}: trace {:016x}", outcome.trace_hash);
        }
        sum.add(&outcome);
        if arguments.seconds.is_some_and(|seconds| BootClock.now().since(started) >= Duration::from_secs(seconds)) {
            break;
        }
    }
    println!(
        "{} seed(s) from {first} held: {} host operations, {} faults, {:.0} s of virtual time, in {:.1} s",
        sum.seeds,
        sum.operations,
        sum.faults,
        sum.virtual_time.as_secs_f64(),
        BootClock.now().since(started).as_secs_f64()
    );
    ExitCode::SUCCESS
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    operations: u64,
    faults: u64,
    virtual_time: Duration,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.operations += outcome.operations;
        self.faults += outcome.faults;
        self.virtual_time += outcome.elapsed;
    }
}

fn options(arguments: &Arguments, seed: u64, detail: Detail) -> SimOptions {
    let Arguments { directors, operations, faults, .. } = *arguments;
    SimOptions { seed, pairs: directors / 2, operations, faults, detail }
}

/// Larger than all that were new before.
#[expect(clippy::disallowed_types, reason = "only which seeds are tried hangs on it, and they are printed")]
fn new_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

/// Runs the seed once more for its story, and says how to run it again.
fn report_failure(arguments: &Arguments, seed: u64) -> ExitCode {
    let detail = if arguments.verbose { Detail::Everything } else { Detail::Story };
    let outcome = dyad_sim::run(options(arguments, seed, detail));
    print_lines(&outcome);
    if let Some(failure) = &outcome.failure {
        println!("seed {seed} FAILED: {failure}");
    }
    let Arguments { directors, operations, faults, .. } = arguments;
    println!("again: dyad sim --seed {seed} --directors {directors} --operations {operations} --faults {faults}");
    ExitCode::FAILURE
}

fn print_lines(outcome: &Outcome) {
    for line in &outcome.timeline {
        println!("{line}");
    }
}
