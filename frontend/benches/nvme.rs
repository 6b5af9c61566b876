//! `cargo bench -p dyad-frontend --bench nvme`: the figures of `dyad bench frontend`, without the command.
//!
//! With the argument `instructions`: how many instructions a command costs the NVMe/TCP target under callgrind, the kernel's not among
//! them, against the budget in `nvme.budget`.

use std::path::Path;
use std::process::{Command, ExitCode};

use dyad_frontend::bench::{self, Exchange, SingleThread};

/// How this program was built, as the budget calls it.
const PROFILE: &str = if cfg!(debug_assertions) { "ci" } else { "release" };

/// Commands outstanding at once.
const DEPTH: u16 = 32;

const COUNTED: [(&str, Exchange); 2] =
    [("nvme_tcp.read.4096.qd32", Exchange::Read), ("nvme_tcp.write.4096.qd32", Exchange::Write)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["count", name, times] => {
            let (_, exchange) = COUNTED.into_iter().find(|(known, _)| *known == name).expect("a known name");
            let mut single = SingleThread::new(DEPTH).expect("a target");
            single.run(exchange, times.parse().expect("a number")).expect("commands");
            ExitCode::SUCCESS
        }
        ["instructions", ..] => instructions(),
        _ => {
            for row in bench::run(|line| eprintln!("{line}")).expect("figures") {
                println!("{:44} {:>14.3} {:5} ({:.3} to {:.3})", row.name, row.value, row.unit, row.min, row.max);
            }
            ExitCode::SUCCESS
        }
    }
}

/// Counts instructions per command, without what comes before and after: the difference of two runs.
fn instructions() -> ExitCode {
    const FEW: u64 = 100;
    const MANY: u64 = 1100;
    let program = std::env::current_exe().expect("this program has a name");
    let mut held = true;
    for (name, _) in COUNTED {
        let (Some(few), Some(many)) = (count(&program, name, FEW), count(&program, name, MANY)) else {
            eprintln!("valgrind is not there, or did not count: install it to check the budget");
            return ExitCode::FAILURE;
        };
        let per_command = (many - few) / ((MANY - FEW) * u64::from(DEPTH));
        let budget = budget(name).expect("a budget for this profile");
        println!("{name}: {per_command} instructions per command ({PROFILE}), at most {budget}");
        held &= per_command <= budget;
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn count(program: &Path, name: &str, times: u64) -> Option<u64> {
    let valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["count", name, &times.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8(valgrind.stderr).ok()?;
    let collected = text.lines().find_map(|line| line.split_once("Collected :"))?.1;
    collected.trim().parse().ok()
}

fn budget(name: &str) -> Option<u64> {
    let lines = include_str!("nvme.budget").lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words.starts_with(&[PROFILE, name])).find_map(|words| words.get(2)?.parse().ok())
}
