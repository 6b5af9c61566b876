//! Identify (Base 5.17; NVM 4.1.5). What is absent answers Invalid Field.

use dyad_nvme::identify::{
    self, ControllerType, DLFEAT_ZEROS, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, LbaFormat, NMIC_SHARED,
    NSFEAT_ATOMICITY, NSFEAT_OPTIMAL, NamespaceDescriptors, cmic, cns, oncs, sgls,
};
use dyad_nvme::register::Version;
use dyad_nvme::types::{BLOCK_BYTES, ControllerId, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry, bytes};

use super::admin::INVALID_FIELD;
use super::array::NamespaceView;
use super::command::visible;
use super::controller::{Controller, ERROR_LOG_ENTRIES, Kind};
use super::event::REQUESTS_MAX;
use super::{ControllerKey, KEEP_ALIVE_GRANULARITY_MS, NAMESPACES_MAX, Subsystem, feature};

/// Model number.
const MODEL: &str = "Dyad array";
/// ANACAP (Base figure "Identify Controller"): all five states are reported, and a namespace keeps its group while attached.
const ANA_CAPABILITIES: u8 = 0x1f | 1 << 6;
/// NOIOB: a command within one track of the cache is one piece of work.
const TRACK_BLOCKS: u16 = 16;

impl Subsystem {
    /// The page that an Identify command asks for.
    pub(super) fn identify(&self, key: ControllerKey, entry: &SubmissionEntry) -> Result<Vec<u8>, Status> {
        let controller = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let [selector, _, wanted_low, wanted_high] = entry.dword(10).to_le_bytes();
        let command_set = entry.dword(11) >> 24;
        let id = entry.namespace();
        if controller.kind == Kind::Discovery && selector != cns::CONTROLLER {
            return Err(INVALID_FIELD);
        }
        let page: Box<[u8; IDENTIFY_BYTES]> = match selector {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => {
                self.active_or_not(controller, id)?.map_or(empty(), |namespace| namespace_page(namespace).to_bytes())
            }
            cns::CONTROLLER => self.controller_page(controller).to_bytes(),
            cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => self.list_after(controller, id)?,
            cns::ACTIVE_NAMESPACES_CSI if command_set == 0 => self.list_after(controller, id)?,
            cns::DESCRIPTORS => {
                let namespace = visible(id, &self.array, &controller.access)?;
                let (nguid, uuid) = (Some(namespace.uuid), Some(namespace.uuid));
                NamespaceDescriptors { eui64: None, nguid, uuid, command_set: Some(0) }.to_bytes()
            }
            // The NVM command set adds nothing that volumes have: no storage tags, no formats with them.
            cns::NAMESPACE_CSI if command_set == 0 => {
                visible(id, &self.array, &controller.access)?;
                empty()
            }
            // No limits of size for Verify, Write Zeroes and Dataset Management (NVM 4.1.5.4).
            cns::CONTROLLER_CSI if command_set == 0 => empty(),
            cns::NAMESPACE_INDEPENDENT => {
                let namespace = visible(id, &self.array, &controller.access)?;
                identify::independent_namespace(NMIC_SHARED, 0, namespace.group.0)
            }
            cns::ATTACHED_CONTROLLERS => {
                visible(id, &self.array, &controller.access)?;
                self.controllers_from(u16::from_le_bytes([wanted_low, wanted_high]), Some(id))
            }
            cns::CONTROLLERS => self.controllers_from(u16::from_le_bytes([wanted_low, wanted_high]), None),
            // One combination of command sets: NVM (bit 0).
            cns::COMMAND_SETS => {
                let mut page = empty();
                page[0] = 1;
                page
            }
            _ => return Err(INVALID_FIELD),
        };
        Ok(page.to_vec())
    }

    /// The namespace, if it is active; a valid identifier of none gets zeros (Base 5.17.2.1 and NVM 4.1.5.1).
    fn active_or_not(&self, controller: &Controller, id: NamespaceId) -> Result<Option<&NamespaceView>, Status> {
        if !(1..=NAMESPACES_MAX).contains(&id.0) {
            return Err(Status::INVALID_NAMESPACE.with_do_not_retry());
        }
        Ok(visible(id, &self.array, &controller.access).ok())
    }

    fn list_after(&self, controller: &Controller, after: NamespaceId) -> Result<Box<[u8; IDENTIFY_BYTES]>, Status> {
        if after.0 >= 0xffff_fffe {
            return Err(Status::INVALID_NAMESPACE.with_do_not_retry());
        }
        let ids = self.array.namespaces().iter().map(|namespace| namespace.id);
        Ok(identify::namespace_list(ids.filter(|id| *id > after && controller.access.allows(*id))))
    }

    /// Controllers of this director from an identifier on; those of others are made there and known there.
    fn controllers_from(&self, from: u16, seeing: Option<NamespaceId>) -> Box<[u8; IDENTIFY_BYTES]> {
        let sees = |controller: &&Controller| seeing.is_none_or(|id| controller.access.allows(id));
        let live = self
            .controllers
            .iter()
            .flatten()
            .filter(|controller| controller.kind == Kind::Io && !controller.ended && controller.id.0 >= from);
        let mut ids: Vec<ControllerId> = live.filter(sees).map(|controller| controller.id).collect();
        ids.sort_unstable();
        identify::controller_list(&ids)
    }

    fn controller_page(&self, controller: &Controller) -> IdentifyController {
        let config = &self.config;
        let common = IdentifyController {
            serial: bytes::ascii(&config.serial),
            model: bytes::ascii(MODEL),
            firmware: bytes::ascii(env!("CARGO_PKG_VERSION")),
            mdts: config.transfer_log2,
            controller: controller.id,
            version: Version::V2_0.0,
            async_events: feature::events(controller.kind),
            attributes: identify::CTRATT_HOST_ID_128,
            async_event_limit: u8::try_from(REQUESTS_MAX - 1).expect("few"),
            log_attributes: identify::LPA_EXTENDED,
            error_log_entries: u8::try_from(ERROR_LOG_ENTRIES - 1).expect("few"),
            keep_alive_100ms: u16::try_from(KEEP_ALIVE_GRANULARITY_MS / 100).expect("few"),
            commands_max: self.io_queue_entries(&controller.access),
            sgl: sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT,
            command_capsule_16: (64 + config.in_capsule_bytes) / 16,
            response_capsule_16: 1,
            capsule_descriptors_max: 1,
            ..IdentifyController::default()
        };
        match controller.kind {
            Kind::Discovery => IdentifyController {
                kind: Some(ControllerType::Discovery),
                nqn: bytes::c_string(dyad_nvme::fabrics::DISCOVERY_NQN),
                sq_entry: 0,
                cq_entry: 0,
                ..common
            },
            Kind::Io => IdentifyController {
                multipath: cmic::PORTS | cmic::CONTROLLERS | cmic::ANA,
                kind: Some(ControllerType::Io),
                abort_limit: 3,
                log_attributes: common.log_attributes | identify::LPA_EFFECTS,
                firmware_updates: 1 | 1 << 1,
                warning_temperature_k: 343,
                critical_temperature_k: 353,
                ana_transition_s: u8::try_from(config.ana_transition.as_secs()).unwrap_or(u8::MAX).max(1),
                ana_capabilities: ANA_CAPABILITIES,
                ana_group_max: NAMESPACES_MAX,
                ana_groups: u32::try_from(self.array.groups().len()).expect("fewer than 2^32 groups").max(1),
                quiesce_ms: u16::try_from(config.quiesce.as_millis()).unwrap_or(u16::MAX),
                namespaces: NAMESPACES_MAX,
                namespaces_allowed: NAMESPACES_MAX,
                io_commands: oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES | oncs::VERIFY,
                volatile_cache: identify::VWC_FLUSH_ALL | u8::from(self.volatile_cache()),
                // One block, zero-based (PROTOCOLS 12.2).
                atomic_write: 0,
                atomic_write_power_fail: 0,
                atomic_compare_write: 0,
                nqn: bytes::c_string(&config.nqn),
                ..common
            },
        }
    }
}

fn empty() -> Box<[u8; IDENTIFY_BYTES]> {
    Box::new([0; IDENTIFY_BYTES])
}

fn namespace_page(namespace: &NamespaceView) -> IdentifyNamespace {
    let blocks = namespace.blocks.0;
    let mut page = IdentifyNamespace {
        size: blocks,
        capacity: blocks,
        used: blocks,
        features: NSFEAT_ATOMICITY | NSFEAT_OPTIMAL,
        sharing: NMIC_SHARED,
        deallocate: if namespace.deallocated_zeros { DLFEAT_ZEROS } else { 0 },
        // One block, zero-based (PROTOCOLS 12.2).
        atomic_write: 0,
        atomic_write_power_fail: 0,
        atomic_compare_write: 0,
        optimal_boundary: TRACK_BLOCKS,
        media: u128::from(namespace.blocks.bytes()),
        write_granularity: 0,
        write_alignment: 0,
        deallocate_granularity: TRACK_BLOCKS - 1,
        optimal_write: u16::try_from(namespace.optimal_write.0.saturating_sub(1)).unwrap_or(u16::MAX),
        ana_group: namespace.group.0,
        nguid: namespace.uuid,
        ..IdentifyNamespace::default()
    };
    page.formats[0] = LbaFormat { metadata: 0, data_log2: BLOCK_BYTES.ilog2().to_le_bytes()[0] };
    page
}
