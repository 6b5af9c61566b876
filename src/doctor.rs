//! `dyad doctor`: whether this machine is ready for an array, and what to do where it is not.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use dyad_director::config::Config;
use dyad_director::doctor::{Verdict, examine};

use crate::fail;

/// What to look at.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The array's configuration; without it only the machine is looked at
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks; fails if something is bad.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let config = match arguments.config.as_deref().map(Config::read).transpose() {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string()),
    };
    let findings = examine(config.as_ref());
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (bad, warnings) = (count(Verdict::Bad), count(Verdict::Warning));
    if arguments.json {
        println!("{}", serde_json::json!({ "ready": bad == 0, "findings": findings }));
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
        println!("\n{bad} bad, {warnings} warnings: {}", if bad == 0 { "ready" } else { "not ready" });
    }
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
