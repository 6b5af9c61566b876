//! Get and Set Features (Base 5.15, 5.27). Nothing is saveable; what a host set goes with its controller.

use dyad_nvme::feature::{self, Select, event_config};
use dyad_nvme::types::NamespaceId;
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::Time;

use super::admin::{INVALID_FIELD, Reply};
use super::command::Direction;
use super::connect::round_up;
use super::controller::{Features, Kind};
use super::event::DISCOVERY_CHANGE;
use super::{ControllerKey, Subsystem};

/// Feature capabilities (Base figure "Completion Queue Entry Dword 0 when Select is set to 11b"): changeable.
const CHANGEABLE: u32 = 1 << 2;

const HOST_ID_BYTES: u32 = 16;
const HOST_BEHAVIOR_BYTES: u32 = 512;

/// What comes with Set Features.
pub(super) fn set_direction(entry: &SubmissionEntry) -> Direction {
    match entry.dword(10).to_le_bytes()[0] {
        feature::HOST_BEHAVIOR => Direction::FromHost(HOST_BEHAVIOR_BYTES),
        feature::HOST_IDENTIFIER => Direction::FromHost(HOST_ID_BYTES),
        _ => Direction::None,
    }
}

/// What Get Features returns beside the completion.
pub(super) fn get_direction(entry: &SubmissionEntry) -> Direction {
    let [id, select, ..] = entry.dword(10).to_le_bytes();
    match (id, Select::from_bits(select & 7)) {
        (_, None | Some(Select::Capabilities)) => Direction::None,
        (feature::HOST_BEHAVIOR, _) => Direction::ToHost(HOST_BEHAVIOR_BYTES),
        (feature::HOST_IDENTIFIER, _) => Direction::ToHost(HOST_ID_BYTES),
        _ => Direction::None,
    }
}

/// Events that a controller of this kind can report.
pub(super) const fn events(kind: Kind) -> u32 {
    match kind {
        Kind::Io => event_config::NAMESPACE_ATTRIBUTE | event_config::ANA_CHANGE,
        Kind::Discovery => DISCOVERY_CHANGE,
    }
}

impl Subsystem {
    pub(super) fn set_features(
        &mut self,
        now: Time,
        key: ControllerKey,
        entry: &SubmissionEntry,
        data: &[u8],
    ) -> Result<u32, Status> {
        let [id, ..] = entry.dword(10).to_le_bytes();
        let value = entry.dword(11);
        let queues_max = self.config.io_queues;
        let controller = self.controller_mut(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let kind = controller.kind;
        if !offered(id, kind) {
            return Err(INVALID_FIELD);
        }
        if entry.dword(10) & 1 << 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_do_not_retry());
        }
        if !matches!(entry.namespace(), NamespaceId::NONE | NamespaceId::ALL) {
            return Err(Status::FEATURE_NOT_NAMESPACE.with_do_not_retry());
        }
        let features = &mut controller.features;
        match id {
            feature::ARBITRATION => features.arbitration = value,
            // One power state.
            feature::POWER_MANAGEMENT if value & 0x1f == 0 => features.power_management = value,
            feature::TEMPERATURE_THRESHOLD => features.temperature_threshold = value & 0x003f_ffff,
            // DULBE needs a namespace that reports deallocated blocks as errors: none does.
            feature::ERROR_RECOVERY if value & 1 << 16 == 0 => features.error_recovery = value & 0xffff,
            feature::WRITE_ATOMICITY => features.write_atomicity = value & 1,
            feature::NUMBER_OF_QUEUES => {
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(INVALID_FIELD);
                }
                // Queues that exist cannot be counted anew (Base 5.27.1.5).
                if controller.queues != 0 {
                    return Err(Status::COMMAND_SEQUENCE.with_do_not_retry());
                }
                features.queues = queues_max;
                return Ok(queue_counts(queues_max));
            }
            feature::ASYNC_EVENT_CONFIG => controller.events.config = value & (events(kind) | 0xff),
            feature::KEEP_ALIVE_TIMER => {
                features.keep_alive_ms = round_up(value);
                controller.last_keep_alive = now;
            }
            feature::HOST_BEHAVIOR => {
                features.host_behavior = data.try_into().map_err(|_| Status::SGL_LENGTH_INVALID.with_do_not_retry())?;
            }
            // On fabrics Connect says who the host is (Base 5.27.1.25).
            feature::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE.with_do_not_retry()),
            // The array's cache is not the host's to switch off: reads of the feature say so.
            feature::VOLATILE_WRITE_CACHE => return Err(Status::FEATURE_NOT_CHANGEABLE.with_do_not_retry()),
            _ => return Err(INVALID_FIELD),
        }
        Ok(0)
    }

    pub(super) fn get_features(&self, key: ControllerKey, entry: &SubmissionEntry) -> Result<Reply, Status> {
        let [id, select, ..] = entry.dword(10).to_le_bytes();
        let controller = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let select = Select::from_bits(select & 7).ok_or(INVALID_FIELD)?;
        if !offered(id, controller.kind) {
            return Err(INVALID_FIELD);
        }
        if select == Select::Capabilities {
            let fixed = matches!(id, feature::VOLATILE_WRITE_CACHE | feature::HOST_IDENTIFIER);
            return Ok(Reply::result(if fixed { 0 } else { CHANGEABLE }));
        }
        let (features, config) = match select {
            Select::Current => (controller.features, controller.events.config),
            Select::Default | Select::Saved | Select::Capabilities => {
                (Features::new(controller.features.keep_alive_ms), 0)
            }
        };
        let value = match id {
            feature::ARBITRATION => features.arbitration,
            feature::POWER_MANAGEMENT => features.power_management,
            feature::TEMPERATURE_THRESHOLD => features.temperature_threshold,
            feature::ERROR_RECOVERY => features.error_recovery,
            feature::VOLATILE_WRITE_CACHE => u32::from(self.volatile_cache()),
            feature::NUMBER_OF_QUEUES => queue_counts(self.config.io_queues),
            feature::WRITE_ATOMICITY => features.write_atomicity,
            feature::ASYNC_EVENT_CONFIG => config,
            feature::KEEP_ALIVE_TIMER => features.keep_alive_ms,
            feature::HOST_BEHAVIOR => return Ok(Reply::data(features.host_behavior.to_vec())),
            feature::HOST_IDENTIFIER => {
                // Only the 128-bit form is there on fabrics.
                if entry.dword(11) & 1 == 0 {
                    return Err(INVALID_FIELD);
                }
                return Ok(Reply { result: 1, data: controller.host.0.to_vec() });
            }
            _ => return Err(INVALID_FIELD),
        };
        Ok(Reply::result(value))
    }

    pub(super) fn volatile_cache(&self) -> bool {
        self.array.namespaces().iter().any(|namespace| namespace.volatile_cache)
    }
}

/// Features that a controller of this kind has.
fn offered(id: u8, kind: Kind) -> bool {
    match kind {
        Kind::Discovery => matches!(id, feature::ASYNC_EVENT_CONFIG | feature::KEEP_ALIVE_TIMER),
        Kind::Io => matches!(
            id,
            feature::ARBITRATION
                | feature::POWER_MANAGEMENT
                | feature::TEMPERATURE_THRESHOLD
                | feature::ERROR_RECOVERY
                | feature::VOLATILE_WRITE_CACHE
                | feature::NUMBER_OF_QUEUES
                | feature::WRITE_ATOMICITY
                | feature::ASYNC_EVENT_CONFIG
                | feature::KEEP_ALIVE_TIMER
                | feature::HOST_BEHAVIOR
                | feature::HOST_IDENTIFIER
        ),
    }
}

/// Both numbers of queues, zero-based.
fn queue_counts(queues: u16) -> u32 {
    let count = u32::from(queues) - 1;
    count << 16 | count
}
