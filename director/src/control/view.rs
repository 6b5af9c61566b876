//! What the control plane says, as JSON. The same types are read by the commands.

use std::collections::BTreeMap;

use dyad_backend::raid::GroupState;
use dyad_backend::raid::geometry::Level;
use dyad_cache::counters::Histogram;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::counters::{self, Counter};
use super::events::{hex, member_state};
use super::snapshot::{GroupSnapshot, PortNumbers, Snapshot};

/// Numbers by their names.
pub type Numbers = BTreeMap<String, u64>;

pub(super) fn numbers(counters: Vec<Counter>) -> Numbers {
    counters.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect()
}

/// A director's own view of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The array's name.
    pub array: String,
    /// This director's number.
    pub director: u8,
    /// Its pair's number.
    pub pair: u8,
    /// The machine that it runs on, as configured.
    pub host: String,
    /// Version of Dyad.
    pub version: String,
    /// Process number.
    pub process: u32,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// Its reactor answered; otherwise what follows is the last that it said.
    pub responding: bool,
    /// What membership is doing: `joining`, `both`, `solo, settling`, ...
    pub state: String,
    /// It serves the pair's volumes now.
    pub serves: bool,
    /// Number of the pair's current ownership.
    pub epoch: u64,
    /// Everything that was acknowledged here is on media.
    pub settled: bool,
    /// Commands of hosts answered.
    pub commands: u64,
    /// Blocks of 4 KiB that media does not have yet.
    pub write_pending_blocks: u64,
    /// Above this many, hosts wait for destage.
    pub write_pending_limit_blocks: u64,
    /// Blocks in the cache.
    pub cached_blocks: u64,
    /// Frames that are free.
    pub free_frames: u64,
    /// Frames in all.
    pub frames: u64,
    /// Blocks held for the partner.
    pub mirrored_blocks: u64,
    /// What the cache has done.
    pub cache: Numbers,
    /// What the reactor has done.
    pub reactor: Numbers,
    /// Nanoseconds from the first byte of a mirrored write to the partner's answer.
    pub mirror_latency_ns: Distribution,
    /// The state of the pair's group, at its home.
    pub group: Option<Group>,
}

/// How a quantity is distributed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Distribution {
    /// How many there are.
    pub count: u64,
    /// Half of them are not above.
    pub p50: u64,
    /// 99 of 100 are not above.
    pub p99: u64,
}

impl From<&Histogram> for Distribution {
    fn from(histogram: &Histogram) -> Self {
        Self { count: histogram.count(), p50: histogram.percentile(50), p99: histogram.percentile(99) }
    }
}

/// A RAID group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its pair's number.
    pub pair: u8,
    /// Its RAID level.
    pub level: String,
    /// `optimal`, `degraded` or `lost`.
    pub state: String,
    /// Its size in blocks of 4 KiB.
    pub blocks: u64,
    /// Its members.
    pub members: Vec<Member>,
    /// What it has done.
    pub counters: Numbers,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The device's identity.
    pub device: String,
    /// `live`, `failing`, `out`, `preparing` or `rebuilding`.
    pub state: String,
}

/// A device, as this director reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Its identity.
    pub device: String,
    /// Size in blocks of 4 KiB.
    pub blocks: u64,
    /// Commands outstanding at most.
    pub queue_depth: u32,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// It can be fenced.
    pub reservations: bool,
    /// Its state in the group, where this director is the home.
    pub member: Option<String>,
}

/// A director's port for hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The director's number.
    pub director: u8,
    /// `vi` or `nvme-tcp`.
    pub kind: String,
    /// Where hosts find it.
    pub address: String,
    /// Connections of hosts that are open.
    pub connections: u64,
    /// I/O commands answered.
    pub commands: u64,
    /// Connections turned away, or ended for what the host sent or did not take.
    pub ended: u64,
}

/// A director of the array, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Director {
    /// Its number.
    pub director: u8,
    /// Its pair's number.
    pub pair: u8,
    /// The machine that it runs on.
    pub host: String,
    /// Where its control plane listens.
    pub control: String,
    /// Its end of the matrix.
    pub matrix: String,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// In words, with what to do about it.
    pub error: String,
}

pub(super) fn group_of(pair: u8, group: &GroupSnapshot) -> Group {
    let members = group
        .members
        .iter()
        .map(|(device, state)| Member { device: hex(device), state: member_state(*state).to_owned() });
    Group {
        pair,
        level: level(group.level).to_owned(),
        state: group_state(group.state).to_owned(),
        blocks: group.blocks.0,
        members: members.collect(),
        counters: numbers(counters::group(&group.counters)),
    }
}

pub(super) fn ports_of(director: u8, snapshot: &Snapshot) -> Vec<Port> {
    let port = |port: &PortNumbers| Port {
        director,
        kind: port.kind.to_owned(),
        address: port.address.clone(),
        connections: port.connections as u64,
        commands: port.commands,
        ended: port.ended,
    };
    snapshot.ports.iter().map(port).collect()
}

pub(super) fn devices_of(snapshot: &Snapshot) -> Vec<Device> {
    let member = |id| {
        let group = snapshot.group.as_ref()?;
        let (_, state) = group.members.iter().find(|(device, _)| *device == id)?;
        Some(member_state(*state).to_owned())
    };
    let device = |info: &dyad_backend::device::DeviceInfo| Device {
        device: hex(&info.id),
        blocks: info.blocks.0,
        queue_depth: u32::from(info.queue_depth),
        volatile_cache: info.volatile_cache,
        reservations: info.reservations,
        member: member(info.id),
    };
    snapshot.devices.iter().map(device).collect()
}

pub(super) const fn level(level: Level) -> &'static str {
    match level {
        Level::Raid0 => "RAID 0",
        Level::Raid1 => "RAID 1",
        Level::Raid10 => "RAID 10",
        Level::Raid5 => "RAID 5",
        Level::Raid6 => "RAID 6",
    }
}

pub(super) const fn group_state(state: GroupState) -> &'static str {
    match state {
        GroupState::Optimal => "optimal",
        GroupState::Degraded => "degraded",
        GroupState::Lost => "lost",
    }
}
