//! `dyad status`: the array at a glance, once or every second.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use dyad_director::control::client::Client;
use dyad_director::control::view::Status;
use dyad_reactor::{BootClock, Clock, Time};

use crate::connection::Connection;
use crate::fail;

/// How to show it.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Show it again every second, with rates, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Cells of a bar.
const BAR: u64 = 24;

/// Whether a terminal is there for colours.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Paint(bool);

impl Paint {
    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    /// How full something is: green, yellow, red.
    fn bar(self, value: u64, of: u64) -> String {
        let code = match value.saturating_mul(100) / of.max(1) {
            0..50 => "32",
            50..85 => "33",
            _ => "31",
        };
        self.with(code, &bar(value, of))
    }
}

/// One director, as it answered or did not.
struct Seen {
    address: String,
    answer: Result<Status, String>,
}

/// All of them, at one moment.
struct Look {
    at: Time,
    directors: Vec<Seen>,
}

impl Look {
    fn take(clients: &[Client]) -> Self {
        let ask = |client: &Client| Seen {
            address: client.address().to_owned(),
            answer: client.get::<Status>("/v1/status").map_err(|error| error.to_string()),
        };
        let mut directors: Vec<_> = clients.iter().map(ask).collect();
        directors.sort_by_key(|seen| seen.answer.as_ref().map_or(u8::MAX, |status| status.director));
        Self { at: BootClock.now(), directors }
    }

    fn answers(&self) -> impl Iterator<Item = &Status> {
        self.directors.iter().filter_map(|seen| seen.answer.as_ref().ok())
    }

    /// Every pair that answers has a director that serves, everybody answers, and no group has lost a member.
    fn is_well(&self) -> bool {
        let served = |pair: u8| self.answers().any(|status| status.pair == pair && status.serves && status.responding);
        let whole = |status: &Status| status.group.as_ref().is_none_or(|group| group.state == "optimal");
        self.directors.iter().all(|seen| seen.answer.is_ok())
            && self.answers().all(|status| served(status.pair) && whole(status))
    }
}

/// Shows it; fails if a director does not answer, or a pair is not served, or a group is not whole.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let clients = match arguments.connection.all() {
        Ok(clients) => clients,
        Err(error) => return fail(&error),
    };
    let mut before: Option<Look> = None;
    loop {
        let look = Look::take(&clients);
        if !arguments.watch && look.answers().next().is_none() {
            let why = look.directors.first().and_then(|seen| seen.answer.as_ref().err());
            return fail(why.map_or("no control plane is named", String::as_str));
        }
        if arguments.json {
            println!("{}", json(&look));
        } else {
            let paint = Paint(std::io::stdout().is_terminal());
            show(&screen(&look, before.as_ref(), paint), arguments.watch);
        }
        if !arguments.watch {
            return if look.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        before = Some(look);
        wait(PERIOD);
    }
}

/// Nothing is to be heard meanwhile.
#[expect(clippy::disallowed_methods, reason = "a person looks at a screen")]
fn wait(period: Duration) {
    std::thread::sleep(period);
}

/// The whole screen at once, so that it does not flicker.
fn show(text: &str, again: bool) {
    let terminal = again && std::io::stdout().is_terminal();
    let text = if terminal { format!("\x1b[H\x1b[2J{text}") } else { text.to_owned() };
    // Nobody may be reading any more: then there is nobody to tell.
    let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
}

fn json(look: &Look) -> serde_json::Value {
    let director = |seen: &Seen| match &seen.answer {
        Ok(status) => serde_json::json!({ "control": seen.address, "status": status }),
        Err(error) => serde_json::json!({ "control": seen.address, "error": error }),
    };
    serde_json::json!({ "well": look.is_well(), "directors": look.directors.iter().map(director).collect::<Vec<_>>() })
}

fn screen(look: &Look, before: Option<&Look>, paint: Paint) -> String {
    let mut text = String::new();
    let array = look.answers().next().map_or("?", |status| &status.array);
    let well = if look.is_well() { paint.good("well") } else { paint.bad("NOT WELL") };
    let _ = writeln!(text, "{}: {well}", paint.strong(&format!("array {array}")));
    let mut pairs: Vec<u8> = look.answers().map(|status| status.pair).collect();
    pairs.sort_unstable();
    pairs.dedup();
    for pair in pairs {
        let of_pair = || look.answers().filter(|status| status.pair == pair);
        let epoch = of_pair().map(|status| status.epoch).max().unwrap_or(0);
        let home = of_pair().find(|status| status.serves);
        let served =
            home.map_or_else(|| paint.bad("nobody serves"), |home| format!("director {} serves", home.director));
        let _ = writeln!(text, "\n{}: {served}, epoch {epoch}", paint.strong(&format!("pair {pair}")));
        if let Some(group) = home.and_then(|home| home.group.as_ref()) {
            let live = group.members.iter().filter(|member| member.state == "live").count();
            let (members, size) = (group.members.len(), group.blocks >> 8);
            let _ = writeln!(
                text,
                "  group       {} over {members} devices, {live} live, {}; {size} MiB",
                group.level, group.state
            );
            for member in group.members.iter().filter(|member| member.state != "live") {
                let _ = writeln!(text, "              {} is {}", member.device, paint.bad(&member.state));
            }
        }
        for status in of_pair() {
            let address =
                look.directors.iter().find(|seen| seen.answer.as_ref() == Ok(status)).map_or("", |seen| &seen.address);
            director(&mut text, paint, status, address, before.map(|before| (before, look.at.since(before.at))));
        }
    }
    for seen in look.directors.iter() {
        if let Err(error) = &seen.answer {
            let _ = writeln!(text, "\n{}: {}", seen.address, paint.bad(error));
        }
    }
    text
}

fn director(text: &mut String, paint: Paint, status: &Status, address: &str, before: Option<(&Look, Duration)>) {
    let silent = if status.responding { String::new() } else { paint.bad(", ITS REACTOR DOES NOT ANSWER") };
    let serves = if status.serves { "serves" } else { "" };
    let _ = writeln!(
        text,
        "  director {:<3}{:<16} {serves:<7} up {:<9} process {:<8} {address}{silent}",
        status.director,
        status.state,
        uptime(status.uptime_s),
        status.process
    );
    let (pending, limit) = (status.write_pending_blocks, status.write_pending_limit_blocks.max(1));
    let used = status.frames.saturating_sub(status.free_frames);
    let _ = writeln!(
        text,
        "    write pending  {} {pending} of {limit} blocks{}",
        paint.bar(pending, limit),
        if status.settled { ", settled" } else { "" }
    );
    let _ = writeln!(text, "    cache          {} {used} of {} frames", paint.bar(used, status.frames), status.frames);
    let _ = writeln!(
        text,
        "    for partner    {} {} blocks",
        paint.bar(status.mirrored_blocks, limit),
        status.mirrored_blocks
    );
    let was = before.and_then(|(look, time)| {
        let was = look.answers().find(|was| was.director == status.director && was.process == status.process)?;
        Some((was, time))
    });
    let hits = share(status.cache.get("read_hits"), status.cache.get("read_misses"));
    let commands = match was {
        Some((was, time)) => {
            format!("{:.0} per second", per_second(status.commands.saturating_sub(was.commands), time))
        }
        None => status.commands.to_string(),
    };
    let _ = write!(text, "    commands       {commands}, {hits} read hits");
    let latency = &status.mirror_latency_ns;
    if latency.count > 0 {
        let _ =
            write!(text, "; mirror {} us median, {} us at the 99th percentile", latency.p50 / 1000, latency.p99 / 1000);
    }
    text.push('\n');
    if let Some((was, time)) = was {
        let busy = |status: &Status| status.reactor.get("busy_ns").copied().unwrap_or(0);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        let percent = busy(status).saturating_sub(busy(was)).saturating_mul(100) / nanos;
        let _ = writeln!(text, "    reactor        {} {percent} % busy", paint.bar(percent, 100));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-3)
}

fn share(part: Option<&u64>, rest: Option<&u64>) -> String {
    let (part, rest) = (part.copied().unwrap_or(0), rest.copied().unwrap_or(0));
    match part.saturating_add(rest) {
        0 => "no".to_owned(),
        all => format!("{} %", part.saturating_mul(100) / all),
    }
}

fn bar(value: u64, of: u64) -> String {
    let full = (value.min(of).saturating_mul(BAR)).div_ceil(of.max(1));
    (0..BAR).map(|cell| if cell < full { '█' } else { '░' }).collect()
}

fn uptime(seconds: u64) -> String {
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_a_little_of_anything_and_never_too_much() {
        assert_eq!(bar(0, 10).matches('█').count(), 0);
        assert_eq!(bar(1, 1_000_000).matches('█').count(), 1);
        assert_eq!(bar(20, 10).chars().filter(|cell| *cell == '█').count(), 24);
        assert_eq!(bar(5, 0).chars().count(), 24);
    }

    #[test]
    fn times_are_short() {
        assert_eq!([59, 61, 3_600, 90_000].map(uptime), ["59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]);
    }
}
