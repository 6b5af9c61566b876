//! Connect (NVMe over Fabrics 1.1, 3.3; Base 6.3): an admin queue makes a controller, I/O queues join it. Each bad field gets the
//! status, and the place of the field, that the specification names.

use dyad_nvme::fabrics::{ConnectData, DISCOVERY_NQN, invalid_parameter};
use dyad_nvme::opcode::fabrics;
use dyad_nvme::types::{ControllerId, HostId, QueueId};
use dyad_nvme::{Status, SubmissionEntry, bytes};
use dyad_reactor::Time;

use super::array::PortId;
use super::controller::{Association, Controller, Kind, Run};
use super::{Access, ControllerKey, KEEP_ALIVE_GRANULARITY_MS, Queue, Subsystem};

/// Offsets of fields in the command.
const QID_AT: u16 = 42;
const SQSIZE_AT: u16 = 44;

/// The codes that Connect shares with other commands.
const INCOMPATIBLE_FORMAT: Status = Status::CONFLICTING_ATTRIBUTES.with_do_not_retry();
const CONTROLLER_BUSY: Status = Status::INVALID_PROTECTION;

/// CATTR bit 2: the host does not look at submission queue heads.
const NO_FLOW_CONTROL: u32 = 1 << 18;

/// A queue that came to be.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Which.
    pub queue: Queue,
    /// Its entries: the host has one command less outstanding at most.
    pub entries: u16,
    /// Completions carry the submission queue head.
    pub flow_control: bool,
    /// The controller's identifier, for the completion.
    pub controller: ControllerId,
}

/// Why a queue did not come to be.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: Status,
    /// The result: where the invalid parameter is, if it is one.
    pub result: u64,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

fn invalid(offset: u16, in_data: bool) -> Refused {
    let status = Status::CONNECT_INVALID_PARAMETERS.with_do_not_retry();
    Refused { status, result: invalid_parameter(offset, in_data) }
}

/// What a Connect says, with its fields checked one by one.
struct Request {
    queue: QueueId,
    entries: u16,
    flow_control: bool,
    keep_alive_ms: u32,
    host: HostId,
    controller: ControllerId,
    subsystem: String,
    host_nqn: String,
}

impl Request {
    fn parse(entry: &SubmissionEntry, data: &[u8]) -> Result<Self, Refused> {
        // Nothing but Connect may come first on a queue (NVMe over Fabrics 1.1, 3.3).
        if entry.opcode() != fabrics::OPCODE || entry.fabrics_type() != fabrics::CONNECT {
            return Err(Status::COMMAND_SEQUENCE.with_do_not_retry().into());
        }
        if entry.dword(10) & 0xffff != 0 {
            return Err(INCOMPATIBLE_FORMAT.into());
        }
        let data: &[u8; ConnectData::BYTES] =
            data.try_into().map_err(|_| Status::SGL_LENGTH_INVALID.with_do_not_retry())?;
        let data = ConnectData::from_bytes(data);
        let (queue, size) = (bytes::u16_at(entry.as_bytes(), 42), bytes::u16_at(entry.as_bytes(), 44));
        let entries = size.checked_add(1).filter(|_| size > 0).ok_or(invalid(SQSIZE_AT, false))?;
        let name = |field: &[u8; 256], at| {
            let terminated = field.contains(&0);
            let name = bytes::text(field).filter(|name| terminated && name.starts_with("nqn."));
            name.map(str::to_owned).ok_or(invalid(at, true))
        };
        let subsystem = name(&data.subsystem_nqn, ConnectData::SUBSYSTEM_NQN_AT)?;
        let host_nqn = name(&data.host_nqn, ConnectData::HOST_NQN_AT)?;
        if data.host == HostId::NONE {
            return Err(invalid(ConnectData::HOST_AT, true));
        }
        Ok(Self {
            queue: QueueId(queue),
            entries,
            flow_control: entry.dword(11) & NO_FLOW_CONTROL == 0,
            keep_alive_ms: entry.dword(12),
            host: data.host,
            controller: data.controller,
            subsystem,
            host_nqn,
        })
    }
}

impl Subsystem {
    /// The first command on a connection that came in at `port`, with its data.
    ///
    /// # Errors
    /// [`Refused`]: what to answer. The connection may try again.
    pub fn connect(
        &mut self,
        now: Time,
        port: PortId,
        entry: &SubmissionEntry,
        data: &[u8],
    ) -> Result<Connected, Refused> {
        let request = Request::parse(entry, data)?;
        let kind = match request.subsystem.as_str() {
            DISCOVERY_NQN => Kind::Discovery,
            name if name == self.config.nqn => Kind::Io,
            _ => return Err(invalid(ConnectData::SUBSYSTEM_NQN_AT, true)),
        };
        if request.queue == QueueId::ADMIN {
            self.connect_admin(now, port, kind, request)
        } else {
            self.connect_io(kind, &request)
        }
    }

    fn connect_admin(&mut self, now: Time, port: PortId, kind: Kind, request: Request) -> Result<Connected, Refused> {
        // Controllers are made as hosts come (dynamic model): none can be named.
        if request.controller != ControllerId::DYNAMIC {
            return Err(invalid(ConnectData::CONTROLLER_AT, true));
        }
        if request.entries > self.config.queue_entries {
            return Err(invalid(SQSIZE_AT, false));
        }
        let access = match (self.access.find(port, &request.host_nqn), kind) {
            (Some(access), _) => access,
            // Everybody may ask; strangers find nothing.
            (None, Kind::Discovery) => Access::nothing(),
            (None, Kind::Io) => return Err(Status::CONNECT_INVALID_HOST.with_do_not_retry().into()),
        };
        if kind == Kind::Io && self.drains(request.host) {
            return Err(CONTROLLER_BUSY.into());
        }
        let slot = self.controllers.iter().position(Option::is_none).ok_or(CONTROLLER_BUSY)?;
        self.generation += 1;
        let key = ControllerKey { slot: u16::try_from(slot).expect("fewer than 4080"), generation: self.generation };
        let id = self.take_id();
        let keep_alive_ms = round_up(request.keep_alive_ms);
        let Request { host_nqn, host, entries, flow_control, .. } = request;
        let association = Association { id, kind, port, host_nqn, host, access, keep_alive_ms };
        self.controllers[slot] = Some(Controller::new(key.generation, now, association));
        let queue = Queue { controller: key, id: QueueId::ADMIN };
        Ok(Connected { queue, entries, flow_control, controller: id })
    }

    fn connect_io(&mut self, kind: Kind, request: &Request) -> Result<Connected, Refused> {
        if kind == Kind::Discovery || request.queue.0 > self.config.io_queues {
            return Err(invalid(QID_AT, false));
        }
        let key = self.keys().find(|key| {
            self.controller(*key).is_some_and(|controller| {
                controller.id == request.controller && controller.kind == Kind::Io && !controller.ended
            })
        });
        let key = key.ok_or(invalid(ConnectData::CONTROLLER_AT, true))?;
        let entries_max = self.controller(key).map_or(2, |controller| self.io_queue_entries(&controller.access));
        let controller = self.controller_mut(key).expect("it was just found");
        if controller.host_nqn != request.host_nqn {
            return Err(invalid(ConnectData::HOST_NQN_AT, true));
        }
        if controller.host != request.host {
            return Err(invalid(ConnectData::HOST_AT, true));
        }
        if request.entries > entries_max {
            return Err(invalid(SQSIZE_AT, false));
        }
        let bit = 1 << (request.queue.0 - 1);
        if controller.run != Run::Ready || controller.queues & bit != 0 {
            return Err(Status::COMMAND_SEQUENCE.with_do_not_retry().into());
        }
        controller.queues |= bit;
        let (entries, flow_control) = (request.entries, request.flow_control);
        let queue = Queue { controller: key, id: request.queue };
        Ok(Connected { queue, entries, flow_control, controller: controller.id })
    }
}

/// A keep alive time-out as it is kept: a multiple of the granularity (Base 5.27.1.12).
pub(super) fn round_up(ms: u32) -> u32 {
    ms.checked_next_multiple_of(KEEP_ALIVE_GRANULARITY_MS).unwrap_or(u32::MAX)
}
