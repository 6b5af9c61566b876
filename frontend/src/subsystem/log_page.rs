//! Get Log Page (Base 5.16).

use dyad_nvme::discovery::{DiscoveryEntry, DiscoveryHeader, EFLAGS_PERSISTENT, SubsystemType, TREQ_NO_FLOW_CONTROL};
use dyad_nvme::geometry::GEOMETRY;
use dyad_nvme::log::{self, AnaGroup, AnaHeader, ErrorEntry, SmartLog};
use dyad_nvme::opcode::{admin, nvm};
use dyad_nvme::types::{ControllerId, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry};

use super::admin::INVALID_FIELD;
use super::command::visible;
use super::controller::{Controller, ERROR_LOG_ENTRIES, Kind};
use super::{ControllerKey, Subsystem};

const INVALID_LOG_PAGE: Status = Status::INVALID_LOG_PAGE.with_do_not_retry();

/// Pages of a controller for namespaces.
const IO_PAGES: [u8; 8] =
    [log::SUPPORTED, log::ERROR, log::SMART, log::FIRMWARE, log::CHANGED_NAMESPACES, log::EFFECTS, log::ANA, GEOMETRY];
/// Pages of a discovery controller.
const DISCOVERY_PAGES: [u8; 3] = [log::SUPPORTED, log::ERROR, log::DISCOVERY];

/// Commands that the effects log names.
const ADMIN_EFFECTS: [(u8, u32); 7] = [
    (admin::GET_LOG_PAGE, log::EFFECT_SUPPORTED),
    (admin::IDENTIFY, log::EFFECT_SUPPORTED),
    (admin::ABORT, log::EFFECT_SUPPORTED),
    (admin::SET_FEATURES, log::EFFECT_SUPPORTED),
    (admin::GET_FEATURES, log::EFFECT_SUPPORTED),
    (admin::ASYNC_EVENT_REQUEST, log::EFFECT_SUPPORTED),
    (admin::KEEP_ALIVE, log::EFFECT_SUPPORTED),
];
const IO_EFFECTS: [(u8, u32); 7] = [
    (nvm::FLUSH, log::EFFECT_SUPPORTED),
    (nvm::WRITE, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::READ, log::EFFECT_SUPPORTED),
    (nvm::COMPARE, log::EFFECT_SUPPORTED),
    (nvm::WRITE_ZEROES, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::DATASET_MANAGEMENT, log::EFFECT_SUPPORTED | log::EFFECT_CONTENT),
    (nvm::VERIFY, log::EFFECT_SUPPORTED),
];

impl Subsystem {
    /// The part of a page that a Get Log Page command asks for, zeros behind its end.
    pub(super) fn log_page(&mut self, key: ControllerKey, entry: &SubmissionEntry) -> Result<Vec<u8>, Status> {
        let [page_id, flags, ..] = entry.dword(10).to_le_bytes();
        // Log Specific Parameter (bits 14:8) and Retain Asynchronous Event (bit 15).
        let (specific, retain) = (flags & 0x7f, flags & 0x80 != 0);
        let offset = entry.qword(12);
        // Offset Type (dword 14 bit 23): index offsets are not offered.
        if !offset.is_multiple_of(4) || entry.dword(14) & 1 << 23 != 0 {
            return Err(INVALID_FIELD);
        }
        // Before a page of that length is made: whoever carries the command has looked, and might not have.
        self.admin_direction(entry)?;
        let kind = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?.kind;
        let page = match (page_id, kind) {
            (log::SUPPORTED, Kind::Io) => supported(&IO_PAGES),
            (log::SUPPORTED, Kind::Discovery) => supported(&DISCOVERY_PAGES),
            (log::ERROR, _) => error_page(self.controller(key).expect("it was just there")),
            (log::SMART, Kind::Io) => self.smart_page(key, entry.namespace())?,
            (log::FIRMWARE, Kind::Io) => log::firmware_log(env!("CARGO_PKG_VERSION")).to_vec(),
            (log::CHANGED_NAMESPACES, Kind::Io) => {
                self.controller_mut(key).expect("it was just there").changed_list(retain)
            }
            (log::EFFECTS, Kind::Io) => log::effects_log(&ADMIN_EFFECTS, &IO_EFFECTS).to_vec(),
            (log::ANA, Kind::Io) => self.ana_page(key, specific & 1 != 0),
            (GEOMETRY, Kind::Io) => self.geometry_page(key, entry.namespace())?,
            (log::DISCOVERY, Kind::Discovery) => self.discovery_page(key),
            _ => return Err(INVALID_LOG_PAGE),
        };
        let wanted = usize::try_from(entry.log_bytes()).map_err(|_| INVALID_FIELD)?;
        let from = usize::try_from(offset).map_err(|_| INVALID_FIELD)?;
        let mut part = page.get(from..).ok_or(INVALID_FIELD)?.to_vec();
        part.resize(wanted, 0);
        if !retain {
            self.controller_mut(key).expect("it was just there").events.read(page_id);
        }
        Ok(part)
    }

    /// What lies behind a volume; from now on the host hears when that changes.
    fn geometry_page(&mut self, key: ControllerKey, namespace: NamespaceId) -> Result<Vec<u8>, Status> {
        let controller = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let id = visible(namespace, &self.array, &controller.access)?.id;
        let known = self.array.geometries().iter().find(|geometry| geometry.namespace == id);
        let page = known.ok_or(INVALID_FIELD)?.to_bytes();
        self.controller_mut(key).expect("it was just there").events.geometry = true;
        Ok(page)
    }

    /// SMART / Health Information (Base 5.16.1.3), of the controller: volumes have none of their own.
    fn smart_page(&self, key: ControllerKey, namespace: NamespaceId) -> Result<Vec<u8>, Status> {
        if !matches!(namespace, NamespaceId::NONE | NamespaceId::ALL) {
            return Err(INVALID_FIELD);
        }
        let controller = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let statistics = controller.statistics;
        // Data units are thousands of 512 bytes, rounded up (Base figure "SMART / Health Information Log").
        let units = |blocks: u64| u128::from(blocks * 8).div_ceil(1000);
        let smart = SmartLog {
            temperature_k: 300,
            spare_percent: 100,
            spare_threshold_percent: 10,
            data_units_read: units(statistics.blocks_read),
            data_units_written: units(statistics.blocks_written),
            host_reads: u128::from(statistics.reads),
            host_writes: u128::from(statistics.writes),
            media_errors: u128::from(statistics.media_errors),
            error_entries: u128::from(controller.error_count),
            ..SmartLog::default()
        };
        Ok(smart.to_bytes().to_vec())
    }

    /// Asymmetric Namespace Access (Base 5.16.1.13); `groups_only` is RGO: without namespaces.
    fn ana_page(&self, key: ControllerKey, groups_only: bool) -> Vec<u8> {
        let access = &self.controller(key).expect("it was just there").access;
        let groups = u16::try_from(self.array.groups().len()).unwrap_or(u16::MAX);
        let changes = self.groups_changed.iter().map(|(_, count)| *count).sum();
        let mut page = AnaHeader { changes, groups }.to_bytes().to_vec();
        for group in &self.array.groups()[..usize::from(groups)] {
            let of_group = |id: &NamespaceId| {
                !groups_only && self.array.namespace(*id).is_some_and(|namespace| namespace.group == group.id)
            };
            let ids = self.array.namespaces().iter().map(|namespace| namespace.id);
            let ids: Vec<NamespaceId> = ids.filter(of_group).filter(|id| access.allows(*id)).collect();
            let changes = self.groups_changed.iter().find(|(id, _)| *id == group.id).map_or(0, |(_, count)| *count);
            let head = AnaGroup {
                group: group.id.0,
                namespaces: u32::try_from(ids.len()).expect("at most 1024"),
                changes,
                state: group.state,
            };
            page.extend(head.to_bytes());
            page.extend(ids.iter().flat_map(|id| id.0.to_le_bytes()));
        }
        page
    }

    /// The discovery log: all ports of all directors, if the host may use any volume there (NVMe over Fabrics 1.1, 5.3).
    fn discovery_page(&self, key: ControllerKey) -> Vec<u8> {
        let controller = self.controller(key).expect("it was just there");
        let known = |port: &&super::array::PortView| self.access.find(port.id, &controller.host_nqn).is_some();
        let records: Vec<DiscoveryEntry> = self
            .array
            .ports()
            .iter()
            .filter(known)
            .map(|port| DiscoveryEntry {
                transport: port.transport,
                family: port.family,
                subsystem: SubsystemType::Nvm,
                requirements: TREQ_NO_FLOW_CONTROL,
                port: port.id.0,
                controller: ControllerId::DYNAMIC,
                admin_queue_entries: self.config.queue_entries,
                flags: EFLAGS_PERSISTENT,
                service: port.service.clone(),
                nqn: self.config.nqn.clone(),
                address: port.address.clone(),
            })
            .collect();
        let header = DiscoveryHeader { generation: self.ports_changed, records: records.len() as u64 };
        let mut page = header.to_bytes().to_vec();
        page.extend(records.iter().flat_map(|record| record.to_bytes()));
        page
    }
}

fn error_page(controller: &Controller) -> Vec<u8> {
    let mut page: Vec<u8> = controller.errors.iter().flat_map(ErrorEntry::to_bytes).collect();
    page.resize(ERROR_LOG_ENTRIES * ErrorEntry::BYTES, 0);
    page
}

/// Supported Log Pages (Base 5.16.1.1): one dword per page, bit 0 says that it is there.
fn supported(pages: &[u8]) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for id in pages {
        page[usize::from(*id) * 4] = 1;
    }
    page
}
