//! `dyad demo`: what the array can do, shown on this machine with real processes, and checked while it is shown.
//!
//! It fails if anything that it says does not hold.

pub mod load;
pub mod processes;

use std::io;
use std::path::Path;

use crate::layout::ArrayDir;
use crate::membership::DirectorId;
use load::{Host, Order, Report, Summary, WORKERS};
use processes::{PATIENCE, Processes};

/// Runs the demo in the empty directory `path`.
///
/// # Errors
/// What did not hold, in words.
pub fn run(path: &Path) -> Result<(), String> {
    let array = ArrayDir::new(path);
    let mut processes = Processes::new(array.clone()).map_err(|error| error.to_string())?;
    say("An array on this machine: a shelf with two dual-ported NVMe devices, two directors, one host.");
    processes
        .start_shelf()
        .and_then(|()| processes.start(DirectorId::A))
        .and_then(|()| processes.start(DirectorId::B))
        .map_err(text)?;
    wait_for_pair(&mut processes)?;
    let (a, b) = (processes.pid(DirectorId::A), processes.pid(DirectorId::B));
    say(&format!(
        "Directors A (process {}) and B (process {}) are a pair: each write is in both memories before the host hears of it.",
        pid(a),
        pid(b)
    ));

    let mut host = Host::start(array);
    let Report::Attached { bytes } = next(&host)? else { return Err("the host did not attach".into()) };
    say(&format!("The host sees a volume of {} MiB, RAID 1 over both devices.", bytes >> 20));
    host.order(Order::Measure);
    let Report::Measured { p50_us, p99_us } = next(&host)? else { return Err("no measurement".into()) };
    say(&format!(
        "4 KiB writes, one at a time: {p50_us:.0} us median, {p99_us:.0} us at the 99th percentile ({} processes on {} cores).",
        load::REACTORS,
        cores()
    ));

    lose(&mut processes, &mut host, DirectorId::A)?;
    lose(&mut processes, &mut host, DirectorId::B)?;
    say("Nothing was lost, nothing was read that was not written. That is the array so far.");
    Ok(())
}

/// Kills the home under load, sees the partner take over, reads everything back, and lets the lost one return.
fn lose(processes: &mut Processes, host: &mut Host, home: DirectorId) -> Result<(), String> {
    let partner = home.partner();
    let serves = processes.status(home).is_some_and(|status| status.serves);
    if !serves {
        return Err(format!("director {home:?} should be the home now"));
    }
    host.order(Order::Load);
    progress(host, 5)?;
    processes.kill(home).map_err(text)?;
    say(&format!("\n{WORKERS} workers write and read; kill -9 of director {home:?}, the home, in the middle of it."));
    processes
        .wait_until("takeover", |processes| {
            processes.status(partner).is_some_and(|status| status.serves && status.state.starts_with("solo"))
        })
        .map_err(text)?;
    let status = processes.status(partner).cloned().unwrap_or_default();
    say(&format!(
        "Director {partner:?} waited out the lease, won epoch {}, fenced the devices, adopted {} mirrored blocks and serves alone.",
        status.epoch, status.adopted
    ));
    progress(host, 3)?;
    let summary = verify(host)?;
    say(&format!(
        "{} acknowledged writes and {} checked reads; the longest pause was {:.2} s; {} commands were sent again.",
        summary.writes, summary.reads, summary.longest_gap_s, summary.retries
    ));
    say(&format!("All {} blocks hold exactly their last acknowledged write.", summary.verified_blocks));

    processes.start(home).map_err(text)?;
    wait_for_pair(processes)?;
    say(&format!(
        "Director {home:?} came back as a fresh incarnation (process {}); the pair is whole again.",
        pid(processes.pid(home))
    ));
    host.order(Order::Load);
    progress(host, 3)?;
    let summary = verify(host)?;
    say(&format!("{:.0} operations per second with both, all read back.", summary.per_second));
    Ok(())
}

fn wait_for_pair(processes: &mut Processes) -> Result<(), String> {
    let is = |processes: &Processes, me, state: &str| processes.status(me).is_some_and(|status| status.state == state);
    let whole = |processes: &Processes| {
        let serving = [DirectorId::A, DirectorId::B]
            .into_iter()
            .any(|me| processes.status(me).is_some_and(|status| status.serves));
        is(processes, DirectorId::A, "both") && is(processes, DirectorId::B, "both") && serving
    };
    processes.wait_until("the pair becomes whole", whole).map_err(text)
}

fn verify(host: &mut Host) -> Result<Summary, String> {
    host.order(Order::Verify);
    loop {
        match next(host)? {
            Report::Verified(summary) => return Ok(summary),
            Report::Progress => {}
            other => return Err(format!("unexpected: {other:?}")),
        }
    }
}

fn progress(host: &Host, reports: u32) -> Result<(), String> {
    for _ in 0..reports {
        let report = next(host)?;
        if report != Report::Progress {
            return Err(format!("unexpected: {report:?}"));
        }
    }
    Ok(())
}

fn next(host: &Host) -> Result<Report, String> {
    match host.reports.recv_timeout(PATIENCE) {
        Ok(Report::Failed(why)) => Err(why),
        Ok(report) => Ok(report),
        Err(_) => Err(format!("the host is stuck: nothing for {} s", PATIENCE.as_secs())),
    }
}

fn say(line: &str) {
    println!("{line}");
}

fn text(error: io::Error) -> String {
    error.to_string()
}

fn pid(pid: Option<u32>) -> String {
    pid.map_or("gone".to_owned(), |pid| pid.to_string())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
