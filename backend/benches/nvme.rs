//! `cargo bench -p dyad-backend --bench nvme`: the figures of `dyad bench nvme`, without the command.
//!
//! With the argument `instructions`: how many instructions a command costs under callgrind, against the budget in `nvme.budget`.

use std::path::Path;
use std::process::{Command, ExitCode};

use dyad_backend::bench;

/// How this program was built, as the budget calls it.
const PROFILE: &str = if cfg!(debug_assertions) { "ci" } else { "release" };

const COUNTED: &str = "emulator.null.read.4096";

fn main() -> ExitCode {
    let program = std::env::current_exe().expect("this program has a name");
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => {
            let directory = arguments.next().expect("the directory of the sockets");
            bench::serve(directory.as_ref()).expect("the shelf serves");
        }
        Some("count") => {
            let commands = arguments.next().and_then(|n| n.parse().ok()).expect("a number of commands");
            bench::Emulated::null().and_then(|mut null| null.run(commands)).expect("commands");
        }
        Some("instructions") => return instructions(&program),
        _ => figures(&program),
    }
    ExitCode::SUCCESS
}

fn figures(program: &Path) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut shelf = Command::new(program);
    shelf.arg("serve").arg(directory.path());
    let rows = bench::run(&mut shelf, directory.path(), |line| eprintln!("{line}")).expect("figures");
    for row in rows {
        println!("{:44} {:>14.3} {:5} ({:.3} to {:.3})", row.name, row.value, row.unit, row.min, row.max);
    }
}

/// Counts instructions per command, without what comes before and after: the difference of two runs.
fn instructions(program: &Path) -> ExitCode {
    const FEW: u64 = 10_000;
    const MANY: u64 = 60_000;
    let (Some(few), Some(many)) = (count(program, FEW), count(program, MANY)) else {
        eprintln!("valgrind is not there, or did not count: install it to check the budget");
        return ExitCode::FAILURE;
    };
    let per_command = (many - few) / (MANY - FEW);
    let budget = budget().expect("a budget for this profile");
    println!("{COUNTED}: {per_command} instructions per command ({PROFILE}), at most {budget}");
    if per_command <= budget { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn count(program: &Path, commands: u64) -> Option<u64> {
    let valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["count", &commands.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8(valgrind.stderr).ok()?;
    let collected = text.lines().find_map(|line| line.split_once("Collected :"))?.1;
    collected.trim().parse().ok()
}

fn budget() -> Option<u64> {
    let lines = include_str!("nvme.budget").lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words.starts_with(&[PROFILE, COUNTED])).find_map(|words| words.get(2)?.parse().ok())
}
