//! `dyad bench takeover`: real directors are killed, stopped and started again under load, over and over. Every block carries the number of its write, so what
//! was lost shows; and the load notes the longest time in which nothing was acknowledged.

use std::path::Path;

use dyad_reactor::figures::{Row, to_f64};

use crate::membership::DirectorId;
use crate::trial::Trial;
use crate::trial::load::Summary;
use crate::trial::meeting::Matrix;

/// What happens to the directors in one round.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Fault {
    /// SIGKILL of the home; it is started again when its partner serves.
    KillHome,
    /// SIGKILL of the partner; it is started again when the home serves alone.
    KillPartner,
    /// SIGKILL of the home, which is started again at once, before anybody can have missed it.
    RestartHome,
    /// SIGSTOP of the home until its partner serves, and goes on; then SIGCONT.
    StopHome,
    /// SIGSTOP of the partner until the home serves alone; then SIGCONT.
    StopPartner,
    /// The home's link goes down until one of the two serves alone, and comes back. Only over a network. Which one that is is a
    /// race: both still have registry and devices.
    CutHome,
    /// The same with the partner's link.
    CutPartner,
    /// FLUSH, then SIGKILL of both at once, then both are started again (PROTOCOLS 4.6, 6.1).
    KillBoth,
}

impl Fault {
    const ANYWHERE: [Self; 6] =
        [Self::KillHome, Self::StopHome, Self::RestartHome, Self::KillPartner, Self::StopPartner, Self::KillBoth];
    const OF_NETWORKS: [Self; 2] = [Self::CutHome, Self::CutPartner];

    /// As in the figures' names.
    const fn name(self) -> &'static str {
        match self {
            Self::KillHome => "kill_home",
            Self::KillPartner => "kill_partner",
            Self::RestartHome => "restart_home",
            Self::StopHome => "stop_home",
            Self::StopPartner => "stop_partner",
            Self::CutHome => "cut_home",
            Self::CutPartner => "cut_partner",
            Self::KillBoth => "kill_both",
        }
    }
}

/// What the rounds of one fault came to.
#[derive(Debug, Clone, Default)]
struct Rounds {
    /// Seconds without an acknowledgement, one figure a round.
    pauses: Vec<f64>,
    lost: u64,
    writes: u64,
}

/// Each fault `rounds` times, in the empty directory `path`, to processes that meet as `matrix` says; `progress` hears of each.
///
/// # Errors
/// What did not hold, in words: something was read that was not written, or somebody did not come back.
pub fn run(path: &Path, rounds: u32, matrix: Matrix, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, String> {
    let mut trial = Trial::start_over(path, matrix)?;
    let of_networks = if matrix == Matrix::Network { &Fault::OF_NETWORKS[..] } else { &[] };
    let faults = Fault::ANYWHERE.iter().chain(of_networks);
    let mut results: Vec<_> = faults.map(|&fault| (fault, Rounds::default())).collect();
    for round in 1..=rounds {
        for (fault, sum) in &mut results {
            let summary =
                suffer(&mut trial, *fault).map_err(|error| format!("{}, round {round}: {error}", fault.name()))?;
            progress(&format!(
                "round {round} of {rounds}, {}: {:.2} s, {} writes, {} lost",
                fault.name(),
                summary.longest_gap_s,
                summary.writes,
                summary.lost_blocks
            ));
            sum.pauses.push(summary.longest_gap_s);
            sum.lost += summary.lost_blocks;
            sum.writes += summary.writes;
        }
    }
    Ok(rows(results))
}

fn rows(results: Vec<(Fault, Rounds)>) -> Vec<Row> {
    let mut all = Rounds::default();
    let mut rows = Vec::new();
    for (fault, sum) in results {
        all.lost += sum.lost;
        all.writes += sum.writes;
        // When both are killed there is nobody to take over: the load pauses until they are back, however long that takes.
        if fault != Fault::KillBoth {
            all.pauses.extend(&sum.pauses);
            rows.push(spread(format!("takeover.{}.resume_s", fault.name()), "s", sum.pauses));
        }
    }
    rows.push(spread("takeover.resume_s".to_owned(), "s", all.pauses));
    rows.push(spread("takeover.lost_writes".to_owned(), "writes", vec![to_f64(all.lost)]));
    rows.push(spread("takeover.acknowledged_writes".to_owned(), "writes", vec![to_f64(all.writes)]));
    rows
}

fn spread(name: String, unit: &'static str, mut values: Vec<f64>) -> Row {
    values.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    Row { name, unit, value: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
}

/// One round: load, fault, load, everything read back, and the pair whole again.
fn suffer(trial: &mut Trial, fault: Fault) -> Result<Summary, String> {
    let text = |error: std::io::Error| error.to_string();
    let home = trial.home().ok_or("nobody is the home")?;
    let partner = home.partner();
    trial.load();
    trial.progress(2)?;
    match fault {
        Fault::KillHome | Fault::KillPartner => {
            let lost = if fault == Fault::KillHome { home } else { partner };
            trial.processes.kill(lost).map_err(text)?;
            trial.wait_for_solo(lost.partner())?;
            trial.progress(1)?;
            trial.processes.start(lost).map_err(text)?;
        }
        Fault::RestartHome => {
            trial.processes.kill(home).map_err(text)?;
            trial.processes.start(home).map_err(text)?;
        }
        Fault::StopHome | Fault::StopPartner => {
            let stopped = if fault == Fault::StopHome { home } else { partner };
            trial.processes.pause(stopped, true).map_err(text)?;
            trial.wait_for_solo(stopped.partner())?;
            trial.progress(1)?;
            trial.processes.pause(stopped, false).map_err(text)?;
        }
        Fault::CutHome | Fault::CutPartner => {
            let cut = if fault == Fault::CutHome { home } else { partner };
            trial.meeting.cut(cut, true).map_err(text)?;
            let alone = trial.wait_for_any_solo()?;
            if alone != cut {
                trial.progress(1)?;
            }
            trial.meeting.cut(cut, false).map_err(text)?;
        }
        Fault::KillBoth => {
            let before = trial.flush()?;
            for lost in [home, partner] {
                trial.processes.kill(lost).map_err(text)?;
            }
            for back in [DirectorId::A, DirectorId::B] {
                trial.processes.start(back).map_err(text)?;
            }
            trial.wait_for_pair()?;
            // What was flushed is read back before anything new is written.
            let lost = trial.verify()?.lost_blocks;
            if lost > 0 {
                return Ok(Summary { lost_blocks: lost, ..before });
            }
            trial.load();
        }
    }
    trial.progress(1)?;
    trial.wait_for_pair()?;
    trial.progress(1)?;
    trial.verify()
}
