//! The steps of `cargo xtask test`: one table, run in order, stopped at the first failure.
//!
//! Everything is built under the profile `ci`, so what one step compiled the next one reuses. Only loom's step is a world
//! of its own, because `--cfg loom` changes every crate: the profile that compiles fastest will do, and cargo keeps
//! what other flags built apart.

use crate::tidy;
use crate::tools::{self, Tool};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a step does.
enum Work {
    /// The house rules, in this process.
    Tidy,
    /// Cargo with these arguments and these additions to the environment.
    Cargo { arguments: &'static [&'static str], environment: &'static [(&'static str, &'static str)] },
    /// A program as the step `build` left it. Not `cargo run`: for one package alone cargo picks other features of its
    /// dependencies than for the whole workspace, and would build most of it again.
    Program { name: &'static str, arguments: &'static [&'static str] },
}

struct Step {
    name: &'static str,
    work: Work,
    /// Without these it is skipped.
    needs: &'static [Tool],
    /// Without these it checks less.
    uses: &'static [Tool],
    /// Its failure is the whole's. Otherwise it is told, loudly, and that is all.
    decides: bool,
}

impl Step {
    const fn new(name: &'static str, work: Work) -> Self {
        Self { name, work, needs: &[], uses: &[], decides: true }
    }

    const fn needs(self, needs: &'static [Tool]) -> Self {
        Self { needs, ..self }
    }

    const fn uses(self, uses: &'static [Tool]) -> Self {
        Self { uses, ..self }
    }

    const fn does_not_decide(self) -> Self {
        Self { decides: false, ..self }
    }
}

const fn cargo(name: &'static str, arguments: &'static [&'static str]) -> Step {
    Step::new(name, Work::Cargo { arguments, environment: &[] })
}

const fn dyad(arguments: &'static [&'static str]) -> Work {
    Work::Program { name: "dyad", arguments }
}

const STEPS: &[Step] = &[
    Step::new("tidy", Work::Tidy),
    cargo("fmt", &["fmt", "--all", "--check"]),
    cargo("clippy", &["clippy", "--workspace", "--all-targets", "--profile", "ci", "--", "-D", "warnings"]),
    cargo("build", &["build", "--workspace", "--bins", "--tests", "--profile", "ci"]),
    cargo("test", &["test", "--workspace", "--tests", "--profile", "ci"]).uses(&[tools::QEMU, tools::ETCD]),
    cargo("doctest", &["test", "--workspace", "--doc", "--profile", "ci"]),
    // What an I/O costs, against the budget. For the whole workspace, as above, so that nothing is built twice.
    cargo("count", &["bench", "--workspace", "--bench", "nvme", "--profile", "ci", "--", "instructions"])
        .needs(&[tools::VALGRIND]),
    Step::new(
        "loom",
        Work::Cargo {
            arguments: &["test", "--package", "dyad-reactor", "--package", "dyad-matrix", "--lib", "loom"],
            environment: &[("RUSTFLAGS", "--cfg loom")],
        },
    ),
    // Other seeds than the tests', and always the same: what lands must not hang on luck.
    Step::new("sim", dyad(&["sim", "--seed", "1000", "--seeds", "100"])),
    // Seeds that nobody has run before, for a fixed time. One that fails shows what was wrong before, or has just become so: its
    // story and the command that repeats it are printed, and it becomes a named test. What lands is decided above.
    Step::new("fresh", dyad(&["sim", "--seconds", "60", "--directors", "4"])).does_not_decide(),
    Step::new("demo", dyad(&["demo"])),
    Step::new("takeover", dyad(&["bench", "takeover", "--rounds", "1"])),
    // Real kernels and QEMU's devices judge, in virtual machines.
    Step::new("guest", Work::Program { name: "dyad-guest", arguments: &[] }).needs(&[tools::QEMU]),
    // What a newcomer types first, with the profile that it has: compilers must come to an end with that one, too.
    cargo("release", &["run", "--release", "--", "demo"]),
    // Last, because every crate is built once more, with rules that can be broken.
    cargo(
        "mutations",
        &["test", "--package", "dyad-sim", "--features", "mutations", "--test", "sim", "--profile", "ci"],
    ),
];

impl fmt::Display for Work {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Tidy => write!(f, "cargo xtask tidy"),
            Work::Cargo { arguments, environment } => {
                for (name, value) in *environment {
                    write!(f, "{name}='{value}' ")?;
                }
                write!(f, "cargo {}", arguments.join(" "))
            }
            Work::Program { name, arguments } => {
                write!(f, "cargo run --profile ci --bin {name} -- {}", arguments.join(" "))
            }
        }
    }
}

impl Work {
    /// What it prints goes straight to the terminal.
    fn run(&self, root: &Path) -> Verdict {
        let mut command = match self {
            Work::Tidy => return if tidy::check(root) { Verdict::Held } else { Verdict::Broken },
            Work::Cargo { arguments, environment } => {
                // The cargo that runs us, so that `cargo +toolchain xtask test` means that toolchain throughout.
                let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                command.args(*arguments).envs(environment.iter().copied());
                command
            }
            Work::Program { name, arguments } => {
                let mut command = Command::new(target_directory().join("ci").join(name));
                command.args(*arguments);
                command
            }
        };
        match command.current_dir(root).stdin(Stdio::null()).status() {
            Ok(status) if status.success() => Verdict::Held,
            Ok(status) if status.code() == Some(EXIT_SKIPPED) => Verdict::NotJudged,
            Ok(_) => Verdict::Broken,
            Err(error) => {
                println!("cannot start {}: {error}", command.get_program().display());
                Verdict::Broken
            }
        }
    }
}

/// What came of a step's work.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Verdict {
    Held,
    Broken,
    /// It ended with [`EXIT_SKIPPED`].
    NotJudged,
}

/// A program found that this machine lacks what it needs, and has said what (automake's convention for tests).
const EXIT_SKIPPED: i32 = 77;

/// Where cargo builds, however it was told: this program lies there, in its profile's directory.
fn target_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().and_then(Path::parent).map_or_else(|| "target".into(), Path::to_path_buf)
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Outcome {
    Passed(Duration),
    /// Without a tool, so that not everything was checked.
    PassedWithout(Duration, Tool),
    Failed(Duration),
    /// It failed, and does not decide.
    Told(Duration),
    /// An earlier step failed, so this one was not run.
    Skipped,
    /// This machine has not what it takes.
    Missing(Tool),
    /// The same, and the step itself has said what.
    NotJudged,
}

/// Runs every step; false if one failed.
pub(crate) fn run_all(root: &Path) -> bool {
    let mut number = 0;
    let outcomes = run_until_failure(STEPS, |step| {
        number += 1;
        println!("==> {number}/{} {}: {}", STEPS.len(), step.name, step.work);
        if let Some(tool) = step.needs.iter().find(|tool| !tool.available()) {
            println!("<== {} SKIPPED: {} is missing; {}", step.name, tool.program, tool.advice());
            return Outcome::Missing(*tool);
        }
        let without = step.uses.iter().find(|tool| !tool.available());
        let (verdict, taken) = timed(|| step.work.run(root));
        let (said, outcome) = match (verdict, without) {
            (Verdict::Broken, _) if !step.decides => ("FAILED", Outcome::Told(taken)),
            (Verdict::Broken, _) => ("FAILED", Outcome::Failed(taken)),
            (Verdict::NotJudged, _) => ("SKIPPED", Outcome::NotJudged),
            (Verdict::Held, None) => ("passed", Outcome::Passed(taken)),
            (Verdict::Held, Some(tool)) => ("passed", Outcome::PassedWithout(taken, *tool)),
        };
        println!("<== {} {said} in {:.1} s", step.name, taken.as_secs_f64());
        outcome
    });
    println!("\n{}", summary(STEPS, &outcomes));
    !outcomes.iter().any(|o| matches!(o, Outcome::Failed(_)))
}

fn run_until_failure(steps: &[Step], mut run: impl FnMut(&Step) -> Outcome) -> Vec<Outcome> {
    let mut failed = false;
    let mut outcomes = Vec::new();
    for step in steps {
        let outcome = if failed { Outcome::Skipped } else { run(step) };
        failed |= matches!(outcome, Outcome::Failed(_));
        outcomes.push(outcome);
    }
    outcomes
}

/// A line per step, and last the counts, which scripts read: `N passed, N failed, N skipped`. A failure that does not decide is in none.
fn summary(steps: &[Step], outcomes: &[Outcome]) -> String {
    let (mut text, mut passed, mut failed, mut skipped) = (String::new(), 0, 0, 0);
    for (Step { name, work, .. }, outcome) in steps.iter().zip(outcomes) {
        text += &match outcome {
            Outcome::Passed(taken) => {
                passed += 1;
                format!("{name:<9} passed {:>7.1} s\n", taken.as_secs_f64())
            }
            Outcome::PassedWithout(taken, tool) => {
                passed += 1;
                let (seconds, program, advice) = (taken.as_secs_f64(), tool.program, tool.advice());
                format!("{name:<9} passed {seconds:>7.1} s   WITHOUT {program}, which it uses: {advice}\n")
            }
            Outcome::Missing(tool) => {
                skipped += 1;
                format!("{name:<9} SKIPPED, because {} is missing: {}\n", tool.program, tool.advice())
            }
            Outcome::NotJudged => {
                skipped += 1;
                format!("{name:<9} SKIPPED, because this machine lacks what it named above\n")
            }
            Outcome::Failed(taken) => {
                failed += 1;
                format!("{name:<9} FAILED {:>7.1} s   alone: {work}\n", taken.as_secs_f64())
            }
            Outcome::Told(taken) => {
                let seconds = taken.as_secs_f64();
                format!("{name:<9} FAILED {seconds:>7.1} s   LOOK ABOVE, though it does not decide; alone: {work}\n")
            }
            Outcome::Skipped => {
                skipped += 1;
                format!("{name:<9} SKIPPED, because a step before it failed\n")
            }
        };
    }
    text + &format!("{passed} passed, {failed} failed, {skipped} skipped")
}

#[expect(clippy::disallowed_types, reason = "how long a step took on this machine")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let result = work();
    (result, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &[Step] = &[cargo("one", &["a"]), cargo("two", &["b", "c"]), cargo("three", &["d"])];

    fn outcomes(failing: &str) -> (Vec<Outcome>, Vec<&'static str>) {
        let mut ran = Vec::new();
        let outcomes = run_until_failure(THREE, |step| {
            ran.push(step.name);
            let taken = Duration::from_millis(1500);
            if step.name == failing { Outcome::Failed(taken) } else { Outcome::Passed(taken) }
        });
        (outcomes, ran)
    }

    #[test]
    fn nothing_runs_after_a_failure_and_the_summary_says_so() {
        let (outcomes, ran) = outcomes("two");
        assert_eq!(ran, ["one", "two"]);
        let text = summary(THREE, &outcomes);
        assert_eq!(text.lines().last(), Some("1 passed, 1 failed, 1 skipped"));
        assert!(text.contains("alone: cargo b c"), "{text}");
        assert!(text.contains("three     SKIPPED"), "{text}");
    }

    #[test]
    fn when_all_hold_the_counts_say_so() {
        let (outcomes, ran) = outcomes("none");
        assert_eq!(ran, ["one", "two", "three"]);
        assert_eq!(summary(THREE, &outcomes).lines().last(), Some("3 passed, 0 failed, 0 skipped"));
    }

    #[test]
    fn what_does_not_decide_is_told_and_not_counted() {
        let taken = Duration::from_millis(1500);
        let text = summary(THREE, &[Outcome::Passed(taken), Outcome::Told(taken), Outcome::Passed(taken)]);
        assert!(text.contains("two       FAILED") && text.contains("cargo b c"), "{text}");
        assert_eq!(text.lines().last(), Some("2 passed, 0 failed, 0 skipped"));
        assert_eq!(STEPS.iter().filter(|step| !step.decides).count(), 1, "new seeds alone");
    }

    #[test]
    fn what_this_machine_lacks_is_said_loudly_and_is_no_failure() {
        let taken = Duration::from_millis(1500);
        let without = Outcome::PassedWithout(taken, tools::QEMU);
        let text = summary(THREE, &[Outcome::Missing(tools::VALGRIND), without, Outcome::Passed(taken)]);
        assert!(text.contains("one       SKIPPED, because valgrind is missing: apt-get install valgrind"), "{text}");
        assert!(text.contains("WITHOUT qemu-system-x86_64"), "{text}");
        assert_eq!(text.lines().last(), Some("2 passed, 0 failed, 1 skipped"));
    }
}
