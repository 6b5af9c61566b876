//! Identify (Base 5.17; namespace of the NVM command set: NVM 4.1.5.1).
//!
//! Structures have the fields that somebody here reads or sets; the rest of their bytes is zero, which everywhere means "not supported" or "not reported".

use crate::bytes;
use crate::fabrics::NQN_BYTES;
use crate::types::{ControllerId, NamespaceId};

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;
/// Namespace identifiers in a list.
pub const LIST_ENTRIES: usize = IDENTIFY_BYTES / 4;

/// Values of CNS: what is asked for (Base figure "Identify - CNS Values").
pub mod cns {
    /// Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace identifiers greater than NSID.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const DESCRIPTORS: u8 = 0x03;
    /// Namespace, of a command set.
    pub const NAMESPACE_CSI: u8 = 0x05;
    /// Controller, of a command set.
    pub const CONTROLLER_CSI: u8 = 0x06;
    /// Active namespace identifiers of a command set.
    pub const ACTIVE_NAMESPACES_CSI: u8 = 0x07;
    /// Namespace, independent of command sets.
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    /// Allocated namespace identifiers greater than NSID.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// An allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers to which a namespace is attached.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// Controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// Command sets that the controller supports.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// CNTRLTYPE.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ControllerType {
    /// 1: I/O controller.
    Io,
    /// 2: discovery controller.
    Discovery,
}

/// Identify Controller (CNS 01h; Base 5.17.2.1). Numbers in parentheses are byte offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifyController {
    /// VID (0): PCI vendor.
    pub vendor: u16,
    /// SSVID (2): PCI subsystem vendor.
    pub subsystem_vendor: u16,
    /// SN (4..24), ASCII padded with spaces.
    pub serial: [u8; 20],
    /// MN (24..64), ASCII padded with spaces.
    pub model: [u8; 40],
    /// FR (64..72), ASCII padded with spaces.
    pub firmware: [u8; 8],
    /// CMIC (76): more than one port (0), more than one controller (1), ANA (3).
    pub multipath: u8,
    /// MDTS (77): largest transfer is `1 << mdts` minimum pages; zero is no limit.
    pub mdts: u8,
    /// CNTLID (78).
    pub controller: ControllerId,
    /// VER (80).
    pub version: u32,
    /// OAES (92): optional asynchronous events ([`crate::feature::event_config`]).
    pub async_events: u32,
    /// CTRATT (96): 128-bit Host Identifier (0).
    pub attributes: u32,
    /// CNTRLTYPE (111).
    pub kind: Option<ControllerType>,
    /// OACS (256): optional admin commands.
    pub admin_commands: u16,
    /// ACL (258): Aborts outstanding, zero-based.
    pub abort_limit: u8,
    /// AERL (259): Asynchronous Event Requests outstanding, zero-based.
    pub async_event_limit: u8,
    /// FRMW (260): slot 1 read only (0), slots (3:1).
    pub firmware_updates: u8,
    /// LPA (261): effects log (1), extended data for Get Log Page (2).
    pub log_attributes: u8,
    /// ELPE (262): error log entries, zero-based.
    pub error_log_entries: u8,
    /// WCTEMP (266), kelvin.
    pub warning_temperature_k: u16,
    /// CCTEMP (268), kelvin.
    pub critical_temperature_k: u16,
    /// TNVMCAP (280): bytes of media.
    pub capacity: u128,
    /// KAS (320): keep alive granularity in 100 ms.
    pub keep_alive_100ms: u16,
    /// ANATT (342): longest ANA transition in seconds.
    pub ana_transition_s: u8,
    /// ANACAP (343): states that are reported.
    pub ana_capabilities: u8,
    /// ANAGRPMAX (344).
    pub ana_group_max: u32,
    /// NANAGRPID (348): number of ANA groups.
    pub ana_groups: u32,
    /// CQT (386): command quiesce time in milliseconds (TP 4129).
    pub quiesce_ms: u16,
    /// SQES (512): required (3:0) and maximum (7:4) entry size.
    pub sq_entry: u8,
    /// CQES (513).
    pub cq_entry: u8,
    /// MAXCMD (514): commands outstanding (fabrics).
    pub commands_max: u16,
    /// NN (516): highest namespace identifier.
    pub namespaces: u32,
    /// ONCS (520): optional I/O commands ([`oncs`]).
    pub io_commands: u16,
    /// FUSES (522): compare and write (0).
    pub fused: u16,
    /// VWC (525): volatile write cache present (0), flush with NSID FFFFFFFFh (2:1).
    pub volatile_cache: u8,
    /// AWUN (526): atomic write unit, zero-based.
    pub atomic_write: u16,
    /// AWUPF (528): the same through a power failure.
    pub atomic_write_power_fail: u16,
    /// ACWU (532): atomic compare and write unit, zero-based.
    pub atomic_compare_write: u16,
    /// SGLS (536): SGL support ([`sgls`]).
    pub sgl: u32,
    /// MNAN (540): most namespaces allowed; required where ANA is reported.
    pub namespaces_allowed: u32,
    /// SUBNQN (768..1024), zero-terminated.
    pub nqn: [u8; NQN_BYTES],
    /// IOCCSZ (1792): I/O command capsule in units of 16 bytes.
    pub command_capsule_16: u32,
    /// IORCSZ (1796): I/O response capsule in units of 16 bytes.
    pub response_capsule_16: u32,
    /// ICDOFF (1800): in-capsule data offset in units of 16 bytes.
    pub in_capsule_offset_16: u16,
    /// MSDBD (1803): SGL data block descriptors in a capsule.
    pub capsule_descriptors_max: u8,
}

/// CMIC bits.
pub mod cmic {
    /// More than one port.
    pub const PORTS: u8 = 1 << 0;
    /// More than one controller.
    pub const CONTROLLERS: u8 = 1 << 1;
    /// Asymmetric Namespace Access reporting.
    pub const ANA: u8 = 1 << 3;
}

/// OACS bits.
pub mod oacs {
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
}

/// ONCS bits.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// The Save and Select fields of features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
}

/// SGLS bits.
pub mod sgls {
    /// 1:0 = 01b: supported, no alignment needed.
    pub const SUPPORTED: u32 = 1;
    /// Keyed data block descriptor.
    pub const KEYED: u32 = 1 << 2;
    /// Bit bucket descriptor.
    pub const BIT_BUCKET: u32 = 1 << 16;
    /// An SGL may be longer than the data.
    pub const LONGER: u32 = 1 << 18;
    /// The address field of a data block may be an offset into the capsule.
    pub const OFFSET: u32 = 1 << 20;
    /// Transport SGL data block descriptor.
    pub const TRANSPORT: u32 = 1 << 21;
}

/// CTRATT: 128-bit Host Identifier.
pub const CTRATT_HOST_ID_128: u32 = 1;
/// VWC: a volatile write cache is present.
pub const VWC_PRESENT: u8 = 1;
/// VWC: Flush with NSID FFFFFFFFh flushes all namespaces.
pub const VWC_FLUSH_ALL: u8 = 3 << 1;
/// LPA: Commands Supported and Effects log.
pub const LPA_EFFECTS: u8 = 1 << 1;
/// LPA: extended data (32-bit length, offset).
pub const LPA_EXTENDED: u8 = 1 << 2;

impl Default for IdentifyController {
    fn default() -> Self {
        Self {
            vendor: 0,
            subsystem_vendor: 0,
            serial: bytes::ascii(""),
            model: bytes::ascii(""),
            firmware: bytes::ascii(""),
            multipath: 0,
            mdts: 0,
            controller: ControllerId(0),
            version: crate::register::Version::V2_0.0,
            async_events: 0,
            attributes: 0,
            kind: Some(ControllerType::Io),
            admin_commands: 0,
            abort_limit: 0,
            async_event_limit: 0,
            firmware_updates: 0,
            log_attributes: 0,
            error_log_entries: 0,
            warning_temperature_k: 0,
            critical_temperature_k: 0,
            capacity: 0,
            keep_alive_100ms: 0,
            ana_transition_s: 0,
            ana_capabilities: 0,
            ana_group_max: 0,
            ana_groups: 0,
            quiesce_ms: 0,
            sq_entry: 0x66,
            cq_entry: 0x44,
            commands_max: 0,
            namespaces: 0,
            io_commands: 0,
            fused: 0,
            volatile_cache: 0,
            atomic_write: 0,
            atomic_write_power_fail: 0,
            atomic_compare_write: 0,
            sgl: 0,
            namespaces_allowed: 0,
            nqn: [0; NQN_BYTES],
            command_capsule_16: 0,
            response_capsule_16: 0,
            in_capsule_offset_16: 0,
            capsule_descriptors_max: 0,
        }
    }
}

impl IdentifyController {
    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        let b = &mut page[..];
        bytes::put(b, 0, &self.vendor.to_le_bytes());
        bytes::put(b, 2, &self.subsystem_vendor.to_le_bytes());
        bytes::put(b, 4, &self.serial);
        bytes::put(b, 24, &self.model);
        bytes::put(b, 64, &self.firmware);
        b[76] = self.multipath;
        b[77] = self.mdts;
        bytes::put(b, 78, &self.controller.0.to_le_bytes());
        bytes::put(b, 80, &self.version.to_le_bytes());
        bytes::put(b, 92, &self.async_events.to_le_bytes());
        bytes::put(b, 96, &self.attributes.to_le_bytes());
        b[111] = match self.kind {
            None => 0,
            Some(ControllerType::Io) => 1,
            Some(ControllerType::Discovery) => 2,
        };
        bytes::put(b, 256, &self.admin_commands.to_le_bytes());
        b[258] = self.abort_limit;
        b[259] = self.async_event_limit;
        b[260] = self.firmware_updates;
        b[261] = self.log_attributes;
        b[262] = self.error_log_entries;
        bytes::put(b, 266, &self.warning_temperature_k.to_le_bytes());
        bytes::put(b, 268, &self.critical_temperature_k.to_le_bytes());
        bytes::put(b, 280, &self.capacity.to_le_bytes());
        bytes::put(b, 320, &self.keep_alive_100ms.to_le_bytes());
        b[342] = self.ana_transition_s;
        b[343] = self.ana_capabilities;
        bytes::put(b, 344, &self.ana_group_max.to_le_bytes());
        bytes::put(b, 348, &self.ana_groups.to_le_bytes());
        bytes::put(b, 386, &self.quiesce_ms.to_le_bytes());
        b[512] = self.sq_entry;
        b[513] = self.cq_entry;
        bytes::put(b, 514, &self.commands_max.to_le_bytes());
        bytes::put(b, 516, &self.namespaces.to_le_bytes());
        bytes::put(b, 520, &self.io_commands.to_le_bytes());
        bytes::put(b, 522, &self.fused.to_le_bytes());
        b[525] = self.volatile_cache;
        bytes::put(b, 526, &self.atomic_write.to_le_bytes());
        bytes::put(b, 528, &self.atomic_write_power_fail.to_le_bytes());
        bytes::put(b, 532, &self.atomic_compare_write.to_le_bytes());
        bytes::put(b, 536, &self.sgl.to_le_bytes());
        bytes::put(b, 540, &self.namespaces_allowed.to_le_bytes());
        bytes::put(b, 768, &self.nqn);
        bytes::put(b, 1792, &self.command_capsule_16.to_le_bytes());
        bytes::put(b, 1796, &self.response_capsule_16.to_le_bytes());
        bytes::put(b, 1800, &self.in_capsule_offset_16.to_le_bytes());
        b[1803] = self.capsule_descriptors_max;
        page
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(b: &[u8; IDENTIFY_BYTES]) -> Self {
        Self {
            vendor: bytes::u16_at(b, 0),
            subsystem_vendor: bytes::u16_at(b, 2),
            serial: bytes::array(b, 4),
            model: bytes::array(b, 24),
            firmware: bytes::array(b, 64),
            multipath: b[76],
            mdts: b[77],
            controller: ControllerId(bytes::u16_at(b, 78)),
            version: bytes::u32_at(b, 80),
            async_events: bytes::u32_at(b, 92),
            attributes: bytes::u32_at(b, 96),
            kind: match b[111] {
                1 => Some(ControllerType::Io),
                2 => Some(ControllerType::Discovery),
                _ => None,
            },
            admin_commands: bytes::u16_at(b, 256),
            abort_limit: b[258],
            async_event_limit: b[259],
            firmware_updates: b[260],
            log_attributes: b[261],
            error_log_entries: b[262],
            warning_temperature_k: bytes::u16_at(b, 266),
            critical_temperature_k: bytes::u16_at(b, 268),
            capacity: bytes::u128_at(b, 280),
            keep_alive_100ms: bytes::u16_at(b, 320),
            ana_transition_s: b[342],
            ana_capabilities: b[343],
            ana_group_max: bytes::u32_at(b, 344),
            ana_groups: bytes::u32_at(b, 348),
            quiesce_ms: bytes::u16_at(b, 386),
            sq_entry: b[512],
            cq_entry: b[513],
            commands_max: bytes::u16_at(b, 514),
            namespaces: bytes::u32_at(b, 516),
            io_commands: bytes::u16_at(b, 520),
            fused: bytes::u16_at(b, 522),
            volatile_cache: b[525],
            atomic_write: bytes::u16_at(b, 526),
            atomic_write_power_fail: bytes::u16_at(b, 528),
            atomic_compare_write: bytes::u16_at(b, 532),
            sgl: bytes::u32_at(b, 536),
            namespaces_allowed: bytes::u32_at(b, 540),
            nqn: bytes::array(b, 768),
            command_capsule_16: bytes::u32_at(b, 1792),
            response_capsule_16: bytes::u32_at(b, 1796),
            in_capsule_offset_16: bytes::u16_at(b, 1800),
            capsule_descriptors_max: b[1803],
        }
    }
}

/// An LBA format (NVM figure "LBA Format Data Structure"): metadata bytes (15:0), log2 of data bytes (23:16), relative performance (25:24).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct LbaFormat {
    /// MS: bytes of metadata per block.
    pub metadata: u16,
    /// LBADS: a block has `1 << data_log2` bytes; zero is an unused entry.
    pub data_log2: u8,
}

/// LBA formats of Identify Namespace that have a place of their own here (FLBAS bits 3:0).
pub const LBA_FORMATS: usize = 16;

/// Identify Namespace (CNS 00h; NVM 4.1.5.1). Numbers in parentheses are byte offsets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentifyNamespace {
    /// NSZE (0): size in blocks.
    pub size: u64,
    /// NCAP (8): blocks that may be allocated.
    pub capacity: u64,
    /// NUSE (16): blocks that are allocated.
    pub used: u64,
    /// NSFEAT (24): atomicity fields are of the namespace (1), deallocated-or-unwritten error (2), optimal I/O fields (4).
    pub features: u8,
    /// NLBAF (25): LBA formats, zero-based.
    pub formats_max: u8,
    /// FLBAS (26): format in use (3:0), metadata at the end of the data (4).
    pub format: u8,
    /// MC (27): metadata as part of an extended block (0), as a separate buffer (1).
    pub metadata_capabilities: u8,
    /// DPC (28): protection types 1 to 3 (2:0), as first (3) or last (4) bytes of metadata.
    pub protection_capabilities: u8,
    /// DPS (29): type in use (2:0), first bytes (3).
    pub protection: u8,
    /// NMIC (30): may be attached to more than one controller (0).
    pub sharing: u8,
    /// RESCAP (31): [`crate::reservation::capabilities`].
    pub reservations: u8,
    /// DLFEAT (33): deallocated blocks read as zeros (2:0 = 1), Write Zeroes may deallocate (3).
    pub deallocate: u8,
    /// NAWUN (34): atomic write unit, zero-based.
    pub atomic_write: u16,
    /// NAWUPF (36): the same through a power failure.
    pub atomic_write_power_fail: u16,
    /// NACWU (38): atomic compare and write unit, zero-based.
    pub atomic_compare_write: u16,
    /// NOIOB (46): optimal I/O boundary in blocks; zero is none.
    pub optimal_boundary: u16,
    /// NVMCAP (48): bytes of media.
    pub media: u128,
    /// NPWG (64): preferred write granularity, zero-based.
    pub write_granularity: u16,
    /// NPWA (66): preferred write alignment, zero-based.
    pub write_alignment: u16,
    /// NPDG (68): preferred deallocate granularity, zero-based.
    pub deallocate_granularity: u16,
    /// NOWS (72): optimal write size, zero-based.
    pub optimal_write: u16,
    /// ANAGRPID (92).
    pub ana_group: u32,
    /// NGUID (104).
    pub nguid: [u8; 16],
    /// EUI64 (120).
    pub eui64: [u8; 8],
    /// LBAF0 to LBAF15 (128).
    pub formats: [LbaFormat; LBA_FORMATS],
}

/// NMIC: may be attached to more than one controller.
pub const NMIC_SHARED: u8 = 1;
/// DLFEAT: deallocated blocks read as zeros, and Write Zeroes may deallocate.
pub const DLFEAT_ZEROS: u8 = 1 | 1 << 3;
/// FLBAS: metadata lies at the end of each block's data.
pub const FLBAS_EXTENDED: u8 = 1 << 4;
/// NSFEAT: NAWUN, NAWUPF and NACWU are this namespace's.
pub const NSFEAT_ATOMICITY: u8 = 1 << 1;
/// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS are set.
pub const NSFEAT_OPTIMAL: u8 = 1 << 4;

impl IdentifyNamespace {
    /// Bytes of data per block of the format in use, without metadata; `None` if the device names a format that it does not have, or one that nobody can use.
    #[must_use]
    pub fn block_bytes(&self) -> Option<u64> {
        let index = self.format & 0xf;
        let format = self.formats[usize::from(index)];
        // With more than sixteen formats, the upper bits of the one in use stand in bits 6:5; those have no place here.
        let known = index <= self.formats_max && (self.formats_max < 16 || self.format & 0x60 == 0);
        (known && (9..32).contains(&format.data_log2)).then(|| 1 << format.data_log2)
    }

    /// The format in use.
    #[must_use]
    pub fn current_format(&self) -> LbaFormat {
        self.formats[usize::from(self.format & 0xf)]
    }

    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        let b = &mut page[..];
        bytes::put(b, 0, &self.size.to_le_bytes());
        bytes::put(b, 8, &self.capacity.to_le_bytes());
        bytes::put(b, 16, &self.used.to_le_bytes());
        b[24] = self.features;
        b[25] = self.formats_max;
        b[26] = self.format;
        b[27] = self.metadata_capabilities;
        b[28] = self.protection_capabilities;
        b[29] = self.protection;
        b[30] = self.sharing;
        b[31] = self.reservations;
        b[33] = self.deallocate;
        bytes::put(b, 34, &self.atomic_write.to_le_bytes());
        bytes::put(b, 36, &self.atomic_write_power_fail.to_le_bytes());
        bytes::put(b, 38, &self.atomic_compare_write.to_le_bytes());
        bytes::put(b, 46, &self.optimal_boundary.to_le_bytes());
        bytes::put(b, 48, &self.media.to_le_bytes());
        bytes::put(b, 64, &self.write_granularity.to_le_bytes());
        bytes::put(b, 66, &self.write_alignment.to_le_bytes());
        bytes::put(b, 68, &self.deallocate_granularity.to_le_bytes());
        bytes::put(b, 72, &self.optimal_write.to_le_bytes());
        bytes::put(b, 92, &self.ana_group.to_le_bytes());
        bytes::put(b, 104, &self.nguid);
        bytes::put(b, 120, &self.eui64);
        for (index, format) in self.formats.iter().enumerate() {
            bytes::put(b, 128 + 4 * index, &format.metadata.to_le_bytes());
            b[130 + 4 * index] = format.data_log2;
        }
        page
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(b: &[u8; IDENTIFY_BYTES]) -> Self {
        Self {
            size: bytes::u64_at(b, 0),
            capacity: bytes::u64_at(b, 8),
            used: bytes::u64_at(b, 16),
            features: b[24],
            formats_max: b[25],
            format: b[26],
            metadata_capabilities: b[27],
            protection_capabilities: b[28],
            protection: b[29],
            sharing: b[30],
            reservations: b[31],
            deallocate: b[33],
            atomic_write: bytes::u16_at(b, 34),
            atomic_write_power_fail: bytes::u16_at(b, 36),
            atomic_compare_write: bytes::u16_at(b, 38),
            optimal_boundary: bytes::u16_at(b, 46),
            media: bytes::u128_at(b, 48),
            write_granularity: bytes::u16_at(b, 64),
            write_alignment: bytes::u16_at(b, 66),
            deallocate_granularity: bytes::u16_at(b, 68),
            optimal_write: bytes::u16_at(b, 72),
            ana_group: bytes::u32_at(b, 92),
            nguid: bytes::array(b, 104),
            eui64: bytes::array(b, 120),
            formats: std::array::from_fn(|i| LbaFormat {
                metadata: bytes::u16_at(b, 128 + 4 * i),
                data_log2: b[130 + 4 * i],
            }),
        }
    }
}

/// Namespace Identification Descriptors (CNS 03h; Base 5.17.2.3): type (0), length (1), zero (2..4), value; a type of zero ends the list.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct NamespaceDescriptors {
    /// Type 1h, 8 bytes.
    pub eui64: Option<[u8; 8]>,
    /// Type 2h, 16 bytes.
    pub nguid: Option<[u8; 16]>,
    /// Type 3h, 16 bytes.
    pub uuid: Option<[u8; 16]>,
    /// Type 4h, 1 byte: the command set; zero is NVM.
    pub command_set: Option<u8>,
}

impl NamespaceDescriptors {
    /// The bytes of the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        let mut at = 0;
        let mut descriptor = |kind: u8, value: &[u8]| {
            page[at] = kind;
            page[at + 1] = u8::try_from(value.len()).expect("descriptors are short");
            bytes::put(&mut page[..], at + 4, value);
            at += 4 + value.len();
        };
        if let Some(eui64) = &self.eui64 {
            descriptor(1, eui64);
        }
        if let Some(nguid) = &self.nguid {
            descriptor(2, nguid);
        }
        if let Some(uuid) = &self.uuid {
            descriptor(3, uuid);
        }
        if let Some(command_set) = self.command_set {
            descriptor(4, &[command_set]);
        }
        page
    }

    /// From the wire. Descriptors of other types, or with a length that their type does not have, are passed over.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; IDENTIFY_BYTES]) -> Self {
        let mut found = Self::default();
        let mut rest = &bytes[..];
        while let [kind, len, _, _, tail @ ..] = rest {
            let Some((value, next)) = tail.split_at_checked(usize::from(*len)) else { break };
            match kind {
                0 => break,
                1 => found.eui64 = value.try_into().ok(),
                2 => found.nguid = value.try_into().ok(),
                3 => found.uuid = value.try_into().ok(),
                4 => found.command_set = value.first().copied(),
                _ => {}
            }
            rest = next;
        }
        found
    }
}

/// A namespace list (Base 4.4.2): ascending identifiers, zero ends it. Takes the first 1024.
#[must_use]
pub fn namespace_list(ids: impl Iterator<Item = NamespaceId>) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut page = Box::new([0; IDENTIFY_BYTES]);
    for (index, id) in ids.take(LIST_ENTRIES).enumerate() {
        bytes::put(&mut page[..], 4 * index, &id.0.to_le_bytes());
    }
    page
}

/// The identifiers of a namespace list.
pub fn parse_namespace_list(page: &[u8; IDENTIFY_BYTES]) -> impl Iterator<Item = NamespaceId> + '_ {
    (0..LIST_ENTRIES).map(|i| NamespaceId(bytes::u32_at(page, 4 * i))).take_while(|id| *id != NamespaceId::NONE)
}

/// A controller list (Base 4.4.1): how many (0..2), then ascending identifiers.
#[must_use]
pub fn controller_list(ids: &[ControllerId]) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut page = Box::new([0; IDENTIFY_BYTES]);
    let ids = &ids[..ids.len().min(2047)];
    bytes::put(&mut page[..], 0, &u16::try_from(ids.len()).expect("at most 2047").to_le_bytes());
    for (index, id) in ids.iter().enumerate() {
        bytes::put(&mut page[..], 2 + 2 * index, &id.0.to_le_bytes());
    }
    page
}

/// I/O Command Set Independent Identify Namespace (CNS 08h; Base 5.17.2.8): NMIC (1), RESCAP (2), ANAGRPID (8..12), NSTAT ready (bit 0 of 14).
#[must_use]
pub fn independent_namespace(sharing: u8, reservations: u8, ana_group: u32) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut page = Box::new([0; IDENTIFY_BYTES]);
    page[1] = sharing;
    page[2] = reservations;
    bytes::put(&mut page[..], 8, &ana_group.to_le_bytes());
    page[14] = 1;
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_survives_the_wire() {
        let controller = IdentifyController {
            serial: bytes::ascii("SHELF-0001"),
            model: bytes::ascii("Dyad emulated device"),
            mdts: 5,
            namespaces: 3,
            quiesce_ms: 17,
            nqn: bytes::c_string("nqn.2026-01.org.dyad:shelf"),
            ..IdentifyController::default()
        };
        assert_eq!(IdentifyController::from_bytes(&controller.to_bytes()), controller);
    }

    #[test]
    fn namespace_survives_the_wire() {
        let mut namespace =
            IdentifyNamespace { size: 1 << 40, format: 1, formats_max: 1, ..IdentifyNamespace::default() };
        namespace.formats[1] = LbaFormat { metadata: 8, data_log2: 12 };
        assert_eq!(IdentifyNamespace::from_bytes(&namespace.to_bytes()), namespace);
        assert_eq!(namespace.block_bytes(), Some(4096));
        namespace.format = 2;
        assert_eq!(namespace.block_bytes(), None, "format 2 is not among the two");
        namespace.format = 0;
        assert_eq!(namespace.block_bytes(), None, "an unused format has no size");
    }

    #[test]
    fn descriptors_survive_the_wire_and_nonsense_is_passed_over() {
        let descriptors =
            NamespaceDescriptors { uuid: Some([9; 16]), command_set: Some(0), ..NamespaceDescriptors::default() };
        let page = descriptors.to_bytes();
        assert_eq!(NamespaceDescriptors::from_bytes(&page), descriptors);
        assert_eq!(NamespaceDescriptors::from_bytes(&[0xff; 4096]), NamespaceDescriptors::default());
    }

    #[test]
    fn lists_end_with_zero() {
        let page = namespace_list([NamespaceId(2), NamespaceId(5)].into_iter());
        assert_eq!(parse_namespace_list(&page).collect::<Vec<_>>(), [NamespaceId(2), NamespaceId(5)]);
        assert_eq!(namespace_list((1..5000).map(NamespaceId))[4092..], 1024_u32.to_le_bytes());
        assert_eq!(controller_list(&[ControllerId(1), ControllerId(2)])[..6], [2, 0, 1, 0, 2, 0]);
    }
}
