//! `dyad sim`: seeds of the simulator, one with its story or many with their sum.

use std::process::ExitCode;

use clap::Args;
use dyad_sim::faults::FaultKinds;
use dyad_sim::{Outcome, SimOptions};

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The first (or only) seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds; one seed prints its timeline when it fails
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Host operations per seed
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
    /// Faults that may happen: all, none, or a list of crash, pause, cut
    #[arg(long, default_value = "all", value_parser = parse_faults)]
    faults: FaultKinds,
}

fn parse_faults(text: &str) -> Result<FaultKinds, String> {
    let mut kinds = FaultKinds::NONE;
    for word in text.split(',') {
        match word {
            "all" => kinds = FaultKinds::ALL,
            "none" => {}
            "crash" => kinds.crash = true,
            "pause" => kinds.pause = true,
            "cut" => kinds.cut = true,
            other => return Err(format!("'{other}' is no fault: all, none, or a list of crash, pause, cut")),
        }
    }
    Ok(kinds)
}

/// Runs them; fails if one seed fails.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let options =
        |seed, timeline| SimOptions { seed, operations: arguments.operations, faults: arguments.faults, timeline };
    let (mut operations, mut faults, mut seconds) = (0, 0, 0.0);
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let outcome = dyad_sim::run(options(seed, false));
        if let Some(failure) = &outcome.failure {
            print_story(&dyad_sim::run(options(seed, true)));
            println!("seed {seed} FAILED: {failure}");
            println!("again: dyad sim --seed {seed} --operations {}", arguments.operations);
            return ExitCode::FAILURE;
        }
        operations += outcome.operations;
        faults += outcome.faults;
        seconds += outcome.elapsed.as_secs_f64();
        if arguments.seeds == 1 {
            println!("seed {seed}: trace {:016x}", outcome.trace_hash);
        }
    }
    println!(
        "{} seed(s) held: {operations} host operations, {faults} faults, {seconds:.0} s of virtual time",
        arguments.seeds
    );
    ExitCode::SUCCESS
}

fn print_story(outcome: &Outcome) {
    for line in &outcome.timeline {
        println!("{line}");
    }
}
