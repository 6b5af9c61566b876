//! `dyad group`, `dyad pair`, `dyad events`: what the directors know of their parts, through their control planes.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use dyad_director::control::Event;
use dyad_director::control::client::{Client, ClientError};
use dyad_director::control::view::{Device, Group, Port, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Connection;
use crate::fail;

/// Whom to ask, and how to show it.
#[derive(Args)]
pub(crate) struct Shown {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// RAID groups.
#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// The groups of all pairs, with their members
    List(Shown),
}

/// Ports for hosts.
#[derive(Subcommand)]
pub(crate) enum PortCommand {
    /// The ports of all directors, and what they have done
    List(Shown),
}

/// Pairs of directors.
#[derive(Subcommand)]
pub(crate) enum PairCommand {
    /// The pairs, who serves in each, and in which epoch
    List(Shown),
}

/// Asks every director, and puts the lists one behind the other.
fn collect<T: DeserializeOwned>(shown: &Shown, path: &str) -> Result<Vec<(Client, Vec<T>)>, String> {
    let mut found = Vec::new();
    let mut failed = None;
    for client in shown.connection.all()? {
        match client.get(path) {
            Ok(list) => found.push((client, list)),
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Refused { status: 503, .. })) => {
                eprintln!("warning: {error}");
                failed = Some(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    match failed {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn print<T: Serialize>(shown: &Shown, list: &[T], line: impl Fn(&T) -> String) -> ExitCode {
    if shown.json {
        println!("{}", serde_json::json!(list));
    } else {
        list.iter().for_each(|item| println!("{}", line(item)));
    }
    ExitCode::SUCCESS
}

/// Shows the groups.
pub(crate) fn group(GroupCommand::List(shown): &GroupCommand) -> ExitCode {
    let line = |group: &Group| {
        let members: Vec<_> =
            group.members.iter().map(|member| format!("\n  {} {}", member.device, member.state)).collect();
        format!("pair {}  {}  {}  {} MiB{}", group.pair, group.level, group.state, group.blocks >> 8, members.concat())
    };
    match collect::<Group>(shown, "/v1/groups") {
        Ok(found) => {
            let groups: Vec<Group> = found.into_iter().flat_map(|(_, groups)| groups).collect();
            if groups.is_empty() && !shown.json {
                println!("no director is the home of a group now");
            }
            print(shown, &groups, line)
        }
        Err(error) => fail(&error),
    }
}

/// A pair, put together from its directors.
#[derive(Serialize)]
struct Pair {
    pair: u8,
    epoch: u64,
    home: Option<u8>,
    directors: Vec<(u8, String)>,
}

/// Shows the pairs.
pub(crate) fn pair(PairCommand::List(shown): &PairCommand) -> ExitCode {
    let clients = match shown.connection.all() {
        Ok(clients) => clients,
        Err(error) => return fail(&error),
    };
    let mut pairs: Vec<Pair> = Vec::new();
    for client in clients {
        let status: Status = match client.get("/v1/status") {
            Ok(status) => status,
            Err(error) => {
                eprintln!("warning: {error}");
                continue;
            }
        };
        let at = pairs.iter().position(|pair| pair.pair == status.pair).unwrap_or_else(|| {
            pairs.push(Pair { pair: status.pair, epoch: 0, home: None, directors: Vec::new() });
            pairs.len() - 1
        });
        let pair = &mut pairs[at];
        pair.epoch = pair.epoch.max(status.epoch);
        pair.home = pair.home.or(Some(status.director).filter(|_| status.serves));
        pair.directors.push((status.director, status.state));
    }
    if pairs.is_empty() {
        return fail("no director answers: is the array running?");
    }
    pairs.sort_by_key(|pair| pair.pair);
    print(shown, &pairs, |pair| {
        let home = pair.home.map_or("nobody serves".to_owned(), |home| format!("director {home} serves"));
        let directors: Vec<_> = pair.directors.iter().map(|(id, state)| format!("\n  director {id} {state}")).collect();
        format!("pair {}  epoch {}  {home}{}", pair.pair, pair.epoch, directors.concat())
    })
}

/// Shows the ports.
pub(crate) fn port(PortCommand::List(shown): &PortCommand) -> ExitCode {
    match collect::<Port>(shown, "/v1/ports") {
        Ok(found) => {
            let ports: Vec<Port> = found.into_iter().flat_map(|(_, ports)| ports).collect();
            print(shown, &ports, |port| {
                let Port { director, kind, address, connections, commands, ended } = port;
                format!(
                    "director {director}  {kind:8}  {address}  {connections} connections, {commands} commands, {ended} turned away or ended"
                )
            })
        }
        Err(error) => fail(&error),
    }
}

/// Shows the devices.
pub(crate) fn devices(shown: &Shown) -> ExitCode {
    let found = match collect::<Device>(shown, "/v1/devices") {
        Ok(found) => found,
        Err(error) => return fail(&error),
    };
    // Both directors of a pair reach each: the home knows more about it.
    let mut devices: Vec<Device> = Vec::new();
    for device in found.into_iter().flat_map(|(_, devices)| devices) {
        match devices.iter_mut().find(|known| known.device == device.device) {
            Some(known) => known.member = known.member.take().or(device.member),
            None => devices.push(device),
        }
    }
    print(shown, &devices, |device| {
        let member = device.member.as_deref().unwrap_or("no member of an open group");
        format!("{}  {} MiB  depth {}  {member}", device.device, device.blocks >> 8, device.queue_depth)
    })
}

/// Shows what happened.
pub(crate) fn events(shown: &Shown) -> ExitCode {
    let found = match collect::<Event>(shown, "/v1/events") {
        Ok(found) => found,
        Err(error) => return fail(&error),
    };
    let mut events: Vec<(String, Event)> = found
        .into_iter()
        .flat_map(|(client, events)| events.into_iter().map(move |event| (client.address().to_owned(), event)))
        .collect();
    events.sort_by_key(|(_, event)| event.unix_ms);
    print(shown, &events, |(address, event)| {
        let of_day = event.unix_ms / 1000 % 86400;
        format!(
            "{:02}:{:02}:{:02}.{:03} UTC  {address}  {}",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            event.unix_ms % 1000,
            event.what
        )
    })
}
