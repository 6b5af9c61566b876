//! `cargo xtask`: the one command that checks everything main promises. [`steps`] is the table of what it runs;
//! [`tidy`] are the house rules.
//!
//! Exit status: 0 all held, 1 something did not, 2 the command line was wrong.

mod steps;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <COMMAND>

Commands:
  test    every check in order, stopping at the first that fails; ends with how many passed
  tidy    the house rules alone: names, sizes, floors, rooms for unsafe code, copies on the I/O path

Options:
  -h, --help    this text";

enum Command {
    Test,
    Tidy,
    Help,
}

fn parse(arguments: &[String]) -> Result<Command, String> {
    let (first, rest) = arguments.split_first().ok_or("a command is missing")?;
    let command = match first.as_str() {
        "test" => Command::Test,
        "tidy" => Command::Tidy,
        "-h" | "--help" | "help" => Command::Help,
        other => return Err(format!("there is no command `{other}`")),
    };
    match rest.first() {
        None => Ok(command),
        Some(option) if option == "-h" || option == "--help" => Ok(Command::Help),
        Some(extra) => Err(format!("`{first}` takes no argument, but got `{extra}`")),
    }
}

/// The workspace's root: cargo tells where this package is, which lies right below.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or(here.clone(), Path::to_path_buf)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let held = match parse(&arguments) {
        Ok(Command::Test) => steps::run_all(&root()),
        Ok(Command::Tidy) => tidy::check(&root()),
        Ok(Command::Help) => {
            println!("{HELP}");
            true
        }
        Err(reason) => {
            eprintln!("error: {reason}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn commands_and_help_parse() {
        assert!(matches!(parsed("test"), Ok(Command::Test)));
        assert!(matches!(parsed("tidy"), Ok(Command::Tidy)));
        assert!(matches!(parsed("--help"), Ok(Command::Help)));
        assert!(matches!(parsed("test --help"), Ok(Command::Help)));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        assert!(parsed("").is_err());
        assert!(parsed("tset").is_err_and(|e| e.contains("`tset`")));
        assert!(parsed("test --seeds").is_err_and(|e| e.contains("`--seeds`")));
    }
}
