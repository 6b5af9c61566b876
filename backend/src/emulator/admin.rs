//! Admin commands (Base 5), except those that reach beyond one controller: Abort, Delete I/O Submission Queue and Format NVM are the subsystem's.

use dyad_nvme::feature::{self, Select, event_config};
use dyad_nvme::identify::{
    self, ControllerType, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, cmic, cns, oacs, oncs, sgls,
};
use dyad_nvme::log;
use dyad_nvme::opcode::{admin, nvm};
use dyad_nvme::register::Version;
use dyad_nvme::types::{ControllerId, HostId, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry, bytes};

use super::controller::{Controller, ERROR_LOG_ENTRIES, Features};
use super::event::REQUESTS_MAX;
use super::namespace::Namespace;
use super::{SubsystemConfig, TRANSFER_LOG2};

/// What admin commands of one controller see of the rest.
pub(super) struct Surroundings<'a> {
    pub(super) config: &'a SubsystemConfig,
    pub(super) controllers: u16,
    pub(super) namespaces: &'a mut [Namespace],
}

/// What became of an admin command.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// It is complete, with dword 0.
    Done(u32),
    /// It waits (Asynchronous Event Request).
    Held,
}

/// Executes one admin command.
pub(super) fn execute(
    controller: &mut Controller,
    around: &mut Surroundings<'_>,
    entry: &SubmissionEntry,
) -> Result<Reply, Status> {
    match entry.opcode() {
        admin::IDENTIFY => identify(controller, around, entry).map(|()| Reply::Done(0)),
        admin::GET_LOG_PAGE => get_log_page(controller, around, entry).map(|()| Reply::Done(0)),
        admin::SET_FEATURES => set_features(controller, around, entry).map(Reply::Done),
        admin::GET_FEATURES => get_features(controller, around, entry).map(Reply::Done),
        admin::CREATE_CQ => controller.create_cq(entry).map(|()| Reply::Done(0)),
        admin::CREATE_SQ => controller.create_sq(entry).map(|()| Reply::Done(0)),
        admin::DELETE_CQ => controller.delete_cq(entry).map(|()| Reply::Done(0)),
        admin::DOORBELL_BUFFER_CONFIG => controller.set_shadow(entry).map(|()| Reply::Done(0)),
        admin::KEEP_ALIVE => Ok(Reply::Done(0)),
        admin::ASYNC_EVENT_REQUEST => match controller.events.request(entry.command()) {
            Ok(()) => Ok(Reply::Held),
            Err(_) => Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED),
        },
        _ => Err(Status::INVALID_OPCODE.with_do_not_retry()),
    }
}

fn namespace<'a>(around: &'a mut Surroundings<'_>, id: NamespaceId) -> Option<&'a mut Namespace> {
    around.namespaces.iter_mut().find(|n| n.id == id)
}

fn identify(controller: &mut Controller, around: &mut Surroundings<'_>, entry: &SubmissionEntry) -> Result<(), Status> {
    let id = entry.namespace();
    let [selector, _, wanted_low, wanted_high] = entry.dword(10).to_le_bytes();
    let command_set = entry.dword(11) >> 24;
    let invalid = Err(Status::INVALID_NAMESPACE.with_do_not_retry());
    let existing = |around: &mut Surroundings<'_>| match id {
        NamespaceId::NONE | NamespaceId::ALL => Err(Status::INVALID_NAMESPACE.with_do_not_retry()),
        id if id.0 > u32::try_from(around.namespaces.len()).expect("few") => {
            Err(Status::INVALID_NAMESPACE.with_do_not_retry())
        }
        id => Ok(namespace(around, id).map(|n| (n.identify(), n.descriptors()))),
    };
    let page: Box<[u8; IDENTIFY_BYTES]> = match selector {
        cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => match existing(around)? {
            Some((namespace, _)) => namespace.to_bytes(),
            None => Box::new([0; IDENTIFY_BYTES]),
        },
        cns::CONTROLLER => identify_controller(controller, around).to_bytes(),
        cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => namespace_list(around, id)?,
        cns::ACTIVE_NAMESPACES_CSI if command_set == 0 => namespace_list(around, id)?,
        cns::DESCRIPTORS => match existing(around)? {
            Some((_, descriptors)) => descriptors.to_bytes(),
            None => return invalid,
        },
        // The NVM command set adds nothing that these devices have: no storage tags, no limits on sizes.
        cns::NAMESPACE_CSI if command_set == 0 => match existing(around)? {
            Some(_) => Box::new([0; IDENTIFY_BYTES]),
            None => return invalid,
        },
        cns::CONTROLLER_CSI if command_set == 0 => Box::new([0; IDENTIFY_BYTES]),
        cns::NAMESPACE_INDEPENDENT => match existing(around)? {
            Some((IdentifyNamespace { sharing, reservations, .. }, _)) => {
                identify::independent_namespace(sharing, reservations, 0)
            }
            None => return invalid,
        },
        cns::ATTACHED_CONTROLLERS | cns::CONTROLLERS => {
            if selector == cns::ATTACHED_CONTROLLERS {
                existing(around)?;
            }
            let from = u16::from_le_bytes([wanted_low, wanted_high]);
            let ids: Vec<_> = (from.max(1)..=around.controllers).map(ControllerId).collect();
            identify::controller_list(&ids)
        }
        // One combination of command sets: NVM (bit 0).
        cns::COMMAND_SETS => {
            let mut page = Box::new([0; IDENTIFY_BYTES]);
            page[0] = 1;
            page
        }
        _ => return Err(Status::INVALID_FIELD.with_do_not_retry()),
    };
    controller.dma.write(entry, &page[..])
}

fn namespace_list(around: &Surroundings<'_>, after: NamespaceId) -> Result<Box<[u8; IDENTIFY_BYTES]>, Status> {
    if after.0 >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE.with_do_not_retry());
    }
    Ok(identify::namespace_list(around.namespaces.iter().map(|n| n.id).filter(|id| *id > after)))
}

fn identify_controller(controller: &Controller, around: &Surroundings<'_>) -> IdentifyController {
    let port = u16::try_from(controller.port).expect("few ports");
    let capacity = around.namespaces.iter().map(|n| u128::from(n.blocks().bytes())).sum();
    let namespaces = u32::try_from(around.namespaces.len()).expect("few");
    IdentifyController {
        vendor: VENDOR,
        subsystem_vendor: VENDOR,
        serial: bytes::ascii(&around.config.serial),
        model: bytes::ascii("Dyad emulated device"),
        firmware: bytes::ascii(FIRMWARE),
        multipath: cmic::PORTS | cmic::CONTROLLERS,
        mdts: TRANSFER_LOG2,
        controller: ControllerId(port + 1),
        version: Version::V2_0.0,
        async_events: event_config::NAMESPACE_ATTRIBUTE,
        attributes: identify::CTRATT_HOST_ID_128,
        kind: Some(ControllerType::Io),
        admin_commands: oacs::FORMAT | oacs::DOORBELL_BUFFER,
        abort_limit: 3,
        async_event_limit: u8::try_from(REQUESTS_MAX - 1).expect("few"),
        firmware_updates: 1 | 1 << 1,
        log_attributes: identify::LPA_EFFECTS | identify::LPA_EXTENDED,
        error_log_entries: u8::try_from(ERROR_LOG_ENTRIES - 1).expect("few"),
        warning_temperature_k: 343,
        critical_temperature_k: 353,
        capacity,
        namespaces,
        io_commands: oncs::COMPARE
            | oncs::DATASET_MANAGEMENT
            | oncs::WRITE_ZEROES
            | oncs::SAVE_SELECT
            | oncs::RESERVATIONS
            | oncs::TIMESTAMP
            | oncs::VERIFY,
        volatile_cache: identify::VWC_FLUSH_ALL
            | if around.namespaces.iter().any(Namespace::volatile_cache) { identify::VWC_PRESENT } else { 0 },
        sgl: sgls::SUPPORTED | sgls::LONGER,
        namespaces_allowed: namespaces,
        nqn: bytes::c_string(&around.config.nqn),
        ..IdentifyController::default()
    }
}

/// PCI vendor of devices that are nobody's: Red Hat's id with QEMU's convention for virtual NVMe (1b36:0010).
pub(super) const VENDOR: u16 = 0x1b36;
const FIRMWARE: &str = "1.0";

/// Commands that the effects log names.
const ADMIN_EFFECTS: &[(u8, u32)] = &[
    (admin::DELETE_SQ, log::EFFECT_SUPPORTED),
    (admin::CREATE_SQ, log::EFFECT_SUPPORTED),
    (admin::GET_LOG_PAGE, log::EFFECT_SUPPORTED),
    (admin::DELETE_CQ, log::EFFECT_SUPPORTED),
    (admin::CREATE_CQ, log::EFFECT_SUPPORTED),
    (admin::IDENTIFY, log::EFFECT_SUPPORTED),
    (admin::ABORT, log::EFFECT_SUPPORTED),
    (admin::SET_FEATURES, log::EFFECT_SUPPORTED),
    (admin::GET_FEATURES, log::EFFECT_SUPPORTED),
    (admin::ASYNC_EVENT_REQUEST, log::EFFECT_SUPPORTED),
    (admin::KEEP_ALIVE, log::EFFECT_SUPPORTED),
    (admin::DOORBELL_BUFFER_CONFIG, log::EFFECT_SUPPORTED),
    (admin::FORMAT_NVM, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT | log::EFFECT_NAMESPACE),
];
const IO_EFFECTS: &[(u8, u32)] = &[
    (nvm::FLUSH, log::EFFECT_SUPPORTED),
    (nvm::WRITE, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::READ, log::EFFECT_SUPPORTED),
    (nvm::COMPARE, log::EFFECT_SUPPORTED),
    (nvm::WRITE_ZEROES, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::DATASET_MANAGEMENT, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::VERIFY, log::EFFECT_SUPPORTED),
    (nvm::RESERVATION_REGISTER, log::EFFECT_SUPPORTED),
    (nvm::RESERVATION_REPORT, log::EFFECT_SUPPORTED),
    (nvm::RESERVATION_ACQUIRE, log::EFFECT_SUPPORTED),
    (nvm::RESERVATION_RELEASE, log::EFFECT_SUPPORTED),
];

fn get_log_page(
    controller: &mut Controller,
    around: &mut Surroundings<'_>,
    entry: &SubmissionEntry,
) -> Result<(), Status> {
    let [page_id, flags, ..] = entry.dword(10).to_le_bytes();
    let retain = flags & 0x80 != 0;
    let (offset, len) = (entry.qword(12), entry.log_bytes());
    if len > 4096 << TRANSFER_LOG2 || !offset.is_multiple_of(4) {
        return Err(Status::INVALID_FIELD.with_do_not_retry());
    }
    let page: Vec<u8> = match page_id {
        log::SUPPORTED => supported_logs(),
        log::ERROR => {
            let mut page: Vec<u8> = controller.errors().flat_map(log::ErrorEntry::to_bytes).collect();
            page.resize(ERROR_LOG_ENTRIES * log::ErrorEntry::BYTES, 0);
            page
        }
        log::SMART if matches!(entry.namespace(), NamespaceId::NONE | NamespaceId::ALL) => {
            controller.smart().to_bytes().to_vec()
        }
        log::SMART => return Err(Status::INVALID_FIELD.with_do_not_retry()),
        log::FIRMWARE => log::firmware_log(FIRMWARE).to_vec(),
        log::CHANGED_NAMESPACES => {
            let changed = if retain {
                controller.changed_namespaces.clone()
            } else {
                std::mem::take(&mut controller.changed_namespaces)
            };
            identify::namespace_list(changed.into_iter()).to_vec()
        }
        log::EFFECTS => log::effects_log(ADMIN_EFFECTS, IO_EFFECTS).to_vec(),
        log::RESERVATION_NOTIFICATION => controller.take_notification().to_bytes().to_vec(),
        _ => return Err(Status::INVALID_LOG_PAGE.with_do_not_retry()),
    };
    let _ = around;
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let Some(rest) = page.get(start..) else { return Err(Status::INVALID_FIELD.with_do_not_retry()) };
    let mut wanted = rest.to_vec();
    wanted.resize(usize::try_from(len).expect("at most one transfer"), 0);
    controller.dma.write(entry, &wanted)?;
    if !retain {
        controller.events.read(page_id);
    }
    Ok(())
}

/// Supported Log Pages (Base 5.16.1.1): one dword per page, bit 0 says that it is there.
fn supported_logs() -> Vec<u8> {
    let mut page = vec![0; 1024];
    for id in [
        log::SUPPORTED,
        log::ERROR,
        log::SMART,
        log::FIRMWARE,
        log::CHANGED_NAMESPACES,
        log::EFFECTS,
        log::RESERVATION_NOTIFICATION,
    ] {
        page[usize::from(id) * 4] = 1;
    }
    page
}

fn set_features(
    controller: &mut Controller,
    around: &mut Surroundings<'_>,
    entry: &SubmissionEntry,
) -> Result<u32, Status> {
    let [id, ..] = entry.dword(10).to_le_bytes();
    let value = entry.dword(11);
    if entry.dword(10) & 1 << 31 != 0 {
        return Err(Status::FEATURE_NOT_SAVEABLE);
    }
    let cached = around.namespaces.iter().any(Namespace::volatile_cache);
    let features = &mut controller.features;
    match id {
        feature::ARBITRATION => features.arbitration = value,
        feature::POWER_MANAGEMENT if value & 0x1f == 0 => features.power_management = value,
        feature::TEMPERATURE_THRESHOLD => features.temperature_thresholds[threshold(value)?] = value & 0xffff,
        feature::ERROR_RECOVERY => features.error_recovery = value & 0xffff,
        feature::VOLATILE_WRITE_CACHE if cached => {
            features.write_cache = value & 1;
            if value & 1 == 0 {
                around.namespaces.iter_mut().try_for_each(Namespace::flush)?;
            }
        }
        feature::NUMBER_OF_QUEUES => {
            if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                return Err(Status::INVALID_FIELD);
            }
            return Ok(queue_counts(controller));
        }
        feature::INTERRUPT_COALESCING => features.interrupt_coalescing = value & 0xffff,
        feature::INTERRUPT_VECTOR if value & 0xffff == 0 => {}
        feature::WRITE_ATOMICITY => features.write_atomicity = value & 1,
        feature::ASYNC_EVENT_CONFIG => controller.events.config = value,
        feature::TIMESTAMP => {
            let mut data = [0; 8];
            controller.dma.read(entry, &mut data)?;
            controller.features.timestamp = u64::from_le_bytes(data) & 0xffff_ffff_ffff;
        }
        feature::KEEP_ALIVE_TIMER => features.keep_alive_ms = value,
        feature::HOST_BEHAVIOR => {
            let mut data = [0; 512];
            controller.dma.read(entry, &mut data)?;
            controller.features.host_behavior = data;
        }
        feature::HOST_IDENTIFIER => {
            // Two controllers of one subsystem cannot have identifiers of different widths (Base 5.27.1.25); these take the wide one only.
            if value & 1 == 0 {
                return Err(Status::HOST_ID_INCONSISTENT);
            }
            let mut id = [0; 16];
            controller.dma.read(entry, &mut id)?;
            if controller.host_id != HostId::NONE && controller.host_id.0 != id {
                return Err(Status::COMMAND_SEQUENCE);
            }
            controller.host_id = HostId(id);
        }
        feature::RESERVATION_MASK => controller.features.reservation_mask = value & 0xe,
        feature::RESERVATION_PERSISTENCE => {
            for namespace in selected(around, entry.namespace())? {
                namespace.reservations.set_persistent(value & 1 != 0);
                namespace.keep_reservations()?;
            }
        }
        _ => return Err(Status::INVALID_FIELD.with_do_not_retry()),
    }
    Ok(0)
}

/// Which threshold dword 11 of Temperature Threshold means (Base 5.27.1.3): THSEL (21:20) over or under, TMPSEL (19:16) of which only
/// zero, the composite temperature, is there.
fn threshold(value: u32) -> Result<usize, Status> {
    match value >> 16 & 0x3f {
        0 => Ok(0),
        0x10 => Ok(1),
        _ => Err(Status::INVALID_FIELD.with_do_not_retry()),
    }
}

fn selected<'a>(
    around: &'a mut Surroundings<'_>,
    id: NamespaceId,
) -> Result<impl Iterator<Item = &'a mut Namespace>, Status> {
    if id != NamespaceId::ALL && !around.namespaces.iter().any(|n| n.id == id) {
        return Err(Status::INVALID_NAMESPACE.with_do_not_retry());
    }
    Ok(around.namespaces.iter_mut().filter(move |n| id == NamespaceId::ALL || n.id == id))
}

fn queue_counts(controller: &Controller) -> u32 {
    let count = u32::from(controller.io_queues_max()) - 1;
    count << 16 | count
}

fn get_features(
    controller: &mut Controller,
    around: &mut Surroundings<'_>,
    entry: &SubmissionEntry,
) -> Result<u32, Status> {
    /// Feature capabilities: changeable (2), namespace specific (1).
    const CHANGEABLE: u32 = 1 << 2;
    const OF_NAMESPACE: u32 = 1 << 1;
    let [id, select, ..] = entry.dword(10).to_le_bytes();
    let select = Select::from_bits(select & 7).ok_or(Status::INVALID_FIELD)?;
    let default = Features::new();
    let cached = around.namespaces.iter().any(Namespace::volatile_cache);
    let (features, config) = match select {
        Select::Current => (controller.features, controller.events.config),
        Select::Default | Select::Saved | Select::Capabilities => (default, 0),
    };
    let value = match id {
        feature::ARBITRATION => features.arbitration,
        feature::POWER_MANAGEMENT => features.power_management,
        feature::TEMPERATURE_THRESHOLD => features.temperature_thresholds[threshold(entry.dword(11))?],
        feature::ERROR_RECOVERY => features.error_recovery,
        feature::VOLATILE_WRITE_CACHE if cached => features.write_cache,
        feature::NUMBER_OF_QUEUES => queue_counts(controller),
        feature::INTERRUPT_COALESCING => features.interrupt_coalescing,
        feature::INTERRUPT_VECTOR => entry.dword(11) & 0xffff,
        feature::WRITE_ATOMICITY => features.write_atomicity,
        feature::ASYNC_EVENT_CONFIG => config,
        feature::TIMESTAMP => {
            if select == Select::Current {
                controller.dma.write(entry, &features.timestamp.to_le_bytes())?;
            }
            0
        }
        feature::KEEP_ALIVE_TIMER => features.keep_alive_ms,
        feature::HOST_BEHAVIOR => {
            if select == Select::Current {
                controller.dma.write(entry, &features.host_behavior)?;
            }
            0
        }
        feature::HOST_IDENTIFIER => {
            if entry.dword(11) & 1 == 0 {
                return Err(Status::HOST_ID_INCONSISTENT);
            }
            if select == Select::Current {
                controller.dma.write(entry, &controller.host_id.0)?;
            }
            1
        }
        feature::RESERVATION_MASK => features.reservation_mask,
        feature::RESERVATION_PERSISTENCE => {
            if select == Select::Capabilities {
                return Ok(CHANGEABLE | OF_NAMESPACE);
            }
            let namespace = namespace(around, entry.namespace()).ok_or(Status::INVALID_NAMESPACE)?;
            u32::from(namespace.reservations.persistent())
        }
        _ => return Err(Status::INVALID_FIELD.with_do_not_retry()),
    };
    Ok(if select == Select::Capabilities { CHANGEABLE } else { value })
}
