//! `dyad demo`: what the array can do, shown on this machine with real processes, and checked while it is shown.
//!
//! It fails if anything that it says does not hold.

use std::path::Path;

use crate::membership::DirectorId;
use crate::trial::Trial;
use crate::trial::load::{REACTORS, WORKERS};

/// Runs the demo in the empty directory `path`.
///
/// # Errors
/// What did not hold, in words.
pub fn run(path: &Path) -> Result<(), String> {
    say("An array on this machine: a shelf with two dual-ported NVMe devices, two directors, one host.");
    let mut trial = Trial::start(path)?;
    let [a, b] = [DirectorId::A, DirectorId::B].map(|me| pid(trial.processes.pid(me)));
    say(&format!(
        "Directors A (process {a}) and B (process {b}) are a pair: each write is in both memories before the host hears of it."
    ));
    say(&format!("The host sees a volume of {} MiB, RAID 1 over both devices.", trial.volume_bytes() >> 20));
    let (p50_us, p99_us) = trial.measure()?;
    say(&format!(
        "4 KiB writes, one at a time: {p50_us:.0} us median, {p99_us:.0} us at the 99th percentile ({REACTORS} processes on {} cores).",
        cores()
    ));

    lose(&mut trial, DirectorId::A)?;
    lose(&mut trial, DirectorId::B)?;
    say("Nothing was lost, nothing was read that was not written. That is the array so far.");
    Ok(())
}

/// Kills the home under load, sees the partner take over, reads everything back, and lets the lost one return.
fn lose(trial: &mut Trial, home: DirectorId) -> Result<(), String> {
    let partner = home.partner();
    if trial.home() != Some(home) {
        return Err(format!("director {home:?} should be the home now"));
    }
    trial.load();
    trial.progress(5)?;
    trial.processes.kill(home).map_err(|error| error.to_string())?;
    say(&format!("\n{WORKERS} workers write and read; kill -9 of director {home:?}, the home, in the middle of it."));
    trial.wait_for_solo(partner)?;
    let status = trial.processes.status(partner).cloned().unwrap_or_default();
    say(&format!(
        "Director {partner:?} waited out the lease, won epoch {}, fenced the devices, adopted {} mirrored blocks and serves alone.",
        status.epoch, status.adopted
    ));
    trial.progress(3)?;
    let summary = trial.verify()?;
    say(&format!(
        "{} acknowledged writes and {} checked reads; the longest pause was {:.2} s; {} commands were sent again.",
        summary.writes, summary.reads, summary.longest_gap_s, summary.retries
    ));
    if summary.lost_blocks > 0 {
        return Err(format!("{} blocks do not hold their last acknowledged write", summary.lost_blocks));
    }
    say(&format!("All {} blocks hold exactly their last acknowledged write.", summary.verified_blocks));

    trial.processes.start(home).map_err(|error| error.to_string())?;
    trial.wait_for_pair()?;
    say(&format!(
        "Director {home:?} came back as a fresh incarnation (process {}); the pair is whole again.",
        pid(trial.processes.pid(home))
    ));
    trial.load();
    trial.progress(3)?;
    let summary = trial.verify()?;
    if summary.lost_blocks > 0 {
        return Err(format!("{} blocks do not hold their last acknowledged write", summary.lost_blocks));
    }
    say(&format!("{:.0} operations per second with both, all read back.", summary.per_second));
    Ok(())
}

fn say(line: &str) {
    println!("{line}");
}

fn pid(pid: Option<u32>) -> String {
    pid.map_or("gone".to_owned(), |pid| pid.to_string())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
