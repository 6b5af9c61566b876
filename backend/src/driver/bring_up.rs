//! Bringing a controller up (Base 3.5.1, PCIe 3.5), for the first time and after a reset.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dyad_nvme::feature::{self, event_config};
use dyad_nvme::identify::{
    self, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceDescriptors, cns, oacs, oncs,
};
use dyad_nvme::register::{self, AdminQueueAttributes, Capabilities, Configuration, ControllerStatus};
use dyad_nvme::reservation::capabilities;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, HostId, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::Handle;
use dyad_reactor::sync::{Inbox, Signal};

use super::channel::{BLOCKS_MAX, Channel, Ended, Layout, PAGE};
use super::mapping::Mappings;
use super::slow::{ANSWER_INTERVAL, Which};
use super::{Core, EVENTS_MAX, Listening, Options, Protection, Shared, State, UNKNOWN, Verdict};
use crate::device::{DeviceId, DeviceInfo};
use crate::pci::{DmaError, PciFunction};

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 32;

/// How long between two looks at CSTS.
const STATUS_INTERVAL: Duration = Duration::from_millis(1);

/// How long a register read, or the mapping of memory, may go without an answer. Devices answer in microseconds; a process behind a socket may
/// have to wait for a core.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a controller could not be attached.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Registers read as all ones: there is no device, or its process is gone.
    #[error("the device does not answer: is it plugged in, or its process running?")]
    Gone,
    /// It lacks what this driver needs.
    #[error("the device lacks {0}")]
    Unsupported(&'static str),
    /// CSTS.CFS.
    #[error("the controller reports a fatal error and does not start")]
    Fatal,
    /// CSTS.RDY did not change within CAP.TO.
    #[error("the controller did not become ready within the {0:?} that it asks for")]
    NotReady(Duration),
    /// An admin command got no answer.
    #[error("an admin command (opcode {0:#04x}) got no answer")]
    Silent(u8),
    /// An admin command failed.
    #[error("an admin command (opcode {opcode:#04x}) failed: {status}")]
    Command {
        /// Which.
        opcode: u8,
        /// How.
        status: Status,
    },
    /// It says things about itself that cannot be.
    #[error("the device says nonsense about its {0}")]
    Nonsense(&'static str),
    /// The controller has no such namespace.
    #[error("the controller has no namespace {0:?}")]
    NoNamespace(Option<NamespaceId>),
    /// The namespace is formatted in a way that Dyad does not use.
    #[error(
        "the namespace has blocks of {data:?} bytes with {metadata} of metadata; format it to 4096 with 0, or 8 of protection information"
    )]
    Format {
        /// Bytes of data, if the device says.
        data: Option<u64>,
        /// Bytes of metadata.
        metadata: u16,
    },
    /// After a reset the namespace was another one.
    #[error("another namespace came back after the reset")]
    Changed,
    /// The device's memory.
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// Where things lie in the queue memory, each at a page: admin rings and pages, I/O rings and pages, shadow doorbells, event indices.
struct QueueMemory {
    admin: Layout,
    io: Layout,
    shadow: u64,
    event_index: u64,
    len: usize,
}

impl QueueMemory {
    fn new(depth: u16) -> Self {
        let mut at = 0;
        let mut take = |bytes: u64| {
            let start = at;
            at += bytes.next_multiple_of(PAGE);
            start
        };
        let mut channel = |queue: QueueId, entries: u16| Layout {
            queue,
            entries,
            sq: take(u64::from(entries) * SubmissionEntry::BYTES as u64),
            cq: take(u64::from(entries) * CompletionEntry::BYTES as u64),
            pages: take(u64::from(entries - 1) * PAGE),
        };
        let admin = channel(QueueId::ADMIN, ADMIN_ENTRIES);
        let io = channel(QueueId(1), depth + 1);
        let (shadow, event_index) = (take(PAGE), take(PAGE));
        Self { admin, io, shadow, event_index, len: usize::try_from(at).expect("a few megabytes") }
    }
}

/// A name for a namespace that has none of its own, as QEMU's simplest has none: it is the only one of that number in the subsystem of that
/// vendor, serial number and model (Base 2.0, 4.5.1).
fn private_name(controller: &IdentifyController, namespace: NamespaceId) -> Result<[u8; 16], AttachError> {
    if controller.serial.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Err(AttachError::Unsupported(
            "a name: its namespace has no UUID, NGUID or EUI64, and it has no serial number",
        ));
    }
    let (vendor, number) = (controller.vendor.to_le_bytes(), namespace.0.to_le_bytes());
    let parts = [&vendor[..], &controller.serial, &controller.model, &number];
    Ok(fnv1a(parts.into_iter().flatten()).to_be_bytes())
}

/// 128-bit FNV-1a (draft-eastlake-fnv).
fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u128 {
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// Asks until there is an answer, leaving the reactor to others meanwhile; none is none in time.
async fn answered<T>(handle: &Handle, mut ask: impl FnMut() -> Poll<T>) -> Option<T> {
    let deadline = handle.now() + ANSWER_TIMEOUT;
    loop {
        if let Poll::Ready(answer) = ask() {
            return Some(answer);
        }
        if handle.now() >= deadline {
            return None;
        }
        handle.sleep(ANSWER_INTERVAL).await;
    }
}

impl<F: PciFunction> Shared<F> {
    /// Looks whether the device is one for this driver, and gives it its queue memory.
    pub(super) async fn new(
        function: F,
        handle: &Handle,
        host: [u8; 16],
        options: Options,
    ) -> Result<Rc<Self>, AttachError> {
        assert!((2..=4095).contains(&options.queue_depth), "a queue depth of 2 to 4095");
        let capabilities = answered(handle, || function.read64(register::CAP)).await.ok_or(AttachError::Gone)?;
        let capabilities = Capabilities(capabilities);
        if capabilities.0 == u64::MAX {
            return Err(AttachError::Gone);
        }
        if !capabilities.nvm_command_set() {
            return Err(AttachError::Unsupported("the NVM command set"));
        }
        if capabilities.page_size_min() != 0 {
            return Err(AttachError::Unsupported("memory pages of 4 KiB"));
        }
        if capabilities.queue_entries_max() < 3 {
            return Err(AttachError::Unsupported("queues of three entries"));
        }
        let longest = u16::try_from(capabilities.queue_entries_max() - 1).unwrap_or(u16::MAX);
        let layout = QueueMemory::new(options.queue_depth.min(longest));
        let memory = function.allocate(layout.len)?;
        let base = function.map_dma(&memory)?.0;
        answered(handle, || function.settled()).await.ok_or(AttachError::Gone)??;
        let stride = capabilities.doorbell_stride();
        let core = Core {
            state: State::Starting,
            info: UNKNOWN,
            admin: Channel::new(layout.admin, memory.clone(), base, stride),
            io: Channel::new(layout.io, memory, base, stride),
            mappings: Mappings::default(),
            sgl: false,
            protection: Protection::None,
            tick: 0,
            ticking: false,
            verdict: None,
            listening: Listening::No,
            settled: true,
        };
        Ok(Rc::new(Self {
            function,
            ready_within: Duration::from_millis(capabilities.timeout_ms()).max(STATUS_INTERVAL),
            handle: handle.clone(),
            options,
            host: HostId(host),
            core: RefCell::new(core),
            controller: RefCell::new(IdentifyController::default()),
            alarm: Signal::new(),
            events: Inbox::new(EVENTS_MAX),
            resets: Cell::new(0),
        }))
    }

    /// Reads a register; all ones if there is no answer.
    pub(super) async fn register(&self, offset: u32) -> u32 {
        answered(&self.handle, || self.function.read32(offset)).await.unwrap_or(register::GONE)
    }

    /// From whatever state the controller is in to one that serves I/O. Commands of before have ended when this returns, with or without success.
    pub(super) async fn bring_up(&self) -> Result<DeviceInfo, AttachError> {
        let status = ControllerStatus(self.register(register::CSTS).await);
        if status.gone() {
            return Err(AttachError::Gone);
        }
        if Configuration(self.register(register::CC).await).enabled() && !status.ready() && !status.fatal() {
            // Somebody has just enabled it, and must not disable it before it is ready (Base 3.1.3.5). Whether it ever is shows below.
            let _ = self.wait_ready(true).await;
        }
        self.function.write32(register::CC, Configuration::DISABLED.0);
        self.wait_ready(false).await?;
        {
            // Not ready: the controller has forgotten its queues and touches no memory.
            let mut core = self.core.borrow_mut();
            core.admin.restart(Ended::Reset);
            core.io.restart(Ended::Reset);
            core.listening = Listening::No;
            core.verdict = None;
            let (sq, cq) = core.admin.rings();
            self.function.write32(register::AQA, AdminQueueAttributes::new(core.admin.entries()).0);
            self.function.write64(register::ASQ, sq);
            self.function.write64(register::ACQ, cq);
        }
        self.function.write32(register::CC, Configuration::ENABLED.0);
        self.wait_ready(true).await?;
        self.configure().await
    }

    async fn wait_ready(&self, ready: bool) -> Result<(), AttachError> {
        let deadline = self.handle.now() + self.ready_within;
        loop {
            let status = ControllerStatus(self.register(register::CSTS).await);
            if status.gone() {
                return Err(AttachError::Gone);
            }
            if ready && status.fatal() {
                return Err(AttachError::Fatal);
            }
            if status.ready() == ready {
                return Ok(());
            }
            if self.handle.now() >= deadline {
                return Err(AttachError::NotReady(self.ready_within));
            }
            self.handle.sleep(STATUS_INTERVAL).await;
        }
    }

    async fn configure(&self) -> Result<DeviceInfo, AttachError> {
        let controller = IdentifyController::from_bytes(&*self.identify(cns::CONTROLLER, NamespaceId::NONE).await?);
        if controller.sq_entry & 0xf != 6 || controller.cq_entry & 0xf != 4 {
            return Err(AttachError::Nonsense("queue entry sizes"));
        }
        let identified = self.set_host_identifier(&controller).await?;
        let (namespace, described, id) = self.identify_namespace(&controller).await?;
        let format = namespace.current_format();
        let unusable = AttachError::Format { data: namespace.block_bytes(), metadata: format.metadata };
        let protection = match (namespace.block_bytes(), format.metadata, namespace.protection & 7) {
            (Some(data), _, _) if data != BLOCK_BYTES as u64 => return Err(unusable),
            (None, _, _) => return Err(unusable),
            (_, 0, _) => Protection::None,
            (_, 8, kind @ 1..=3) => Protection::Controller { reference: kind != 3 },
            _ => return Err(unusable),
        };
        if namespace.size == 0 || namespace.size > u64::MAX / BLOCK_BYTES as u64 {
            return Err(AttachError::Nonsense("size"));
        }
        self.use_shadow_doorbells(&controller).await?;
        self.create_queues().await?;
        self.listen(&controller).await?;
        let needed = capabilities::PERSIST
            | capabilities::WRITE_EXCLUSIVE
            | capabilities::WRITE_EXCLUSIVE_ALL_REGISTRANTS
            | capabilities::IEKEY_1_3;
        let reservations =
            identified && controller.io_commands & oncs::RESERVATIONS != 0 && namespace.reservations & needed == needed;
        let limit = match controller.mdts {
            0 => BLOCKS_MAX,
            log2 => 1_u64.checked_shl(u32::from(log2)).unwrap_or(BLOCKS_MAX).min(BLOCKS_MAX),
        };
        let mut core = self.core.borrow_mut();
        core.sgl = matches!(controller.sgl & 3, 1 | 2);
        core.protection = protection;
        let queue_depth = core.io.entries() - 1;
        let info = DeviceInfo {
            id: described,
            namespace: id,
            blocks: BlockCount(namespace.size),
            transfer_blocks_max: BlockCount(limit),
            queue_depth,
            volatile_cache: controller.volatile_cache & identify::VWC_PRESENT != 0,
            reservations,
        };
        let before = core.info;
        if before != UNKNOWN && (before.id, before.namespace, before.blocks) != (info.id, info.namespace, info.blocks) {
            return Err(AttachError::Changed);
        }
        drop(core);
        self.controller.replace(controller);
        Ok(info)
    }

    async fn identify(&self, cns: u8, namespace: NamespaceId) -> Result<Box<[u8; IDENTIFY_BYTES]>, AttachError> {
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        self.admin(SubmissionEntry::identify(cns, namespace, 0), &[], &mut page[..]).await?;
        Ok(page)
    }

    /// The Host Identifier is gone with every controller reset (PROTOCOLS 5.1). False if the controller does not take one, and so cannot be fenced.
    async fn set_host_identifier(&self, controller: &IdentifyController) -> Result<bool, AttachError> {
        if controller.io_commands & oncs::RESERVATIONS == 0 || controller.attributes & identify::CTRATT_HOST_ID_128 == 0
        {
            return Ok(false);
        }
        let command = SubmissionEntry::set_features(feature::HOST_IDENTIFIER, NamespaceId::NONE, 1);
        match self.admin(command, &self.host.0, &mut []).await {
            Ok(_) => Ok(true),
            Err(AttachError::Command { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn identify_namespace(
        &self,
        controller: &IdentifyController,
    ) -> Result<(IdentifyNamespace, DeviceId, NamespaceId), AttachError> {
        let active = self.identify(cns::ACTIVE_NAMESPACES, NamespaceId::NONE).await?;
        let mut active = identify::parse_namespace_list(&active);
        let wanted = self.options.namespace;
        let id = match wanted {
            None => active.next(),
            Some(id) => active.find(|a| *a == id),
        }
        .ok_or(AttachError::NoNamespace(wanted))?;
        let namespace = IdentifyNamespace::from_bytes(&*self.identify(cns::NAMESPACE, id).await?);
        let descriptors = match self.identify(cns::DESCRIPTORS, id).await {
            Ok(page) => NamespaceDescriptors::from_bytes(&page),
            // Before NVMe 1.3 there were none.
            Err(AttachError::Command { .. }) => NamespaceDescriptors::default(),
            Err(error) => return Err(error),
        };
        let name = [descriptors.uuid, descriptors.nguid, Some(namespace.nguid)];
        let name = name.into_iter().flatten().find(|name| *name != [0; 16]);
        let name = match name {
            Some(name) => name,
            None if namespace.eui64 != [0; 8] => {
                let mut name = [0; 16];
                name[8..].copy_from_slice(&namespace.eui64); // copy: a name, off the I/O path
                name
            }
            None => private_name(controller, id)?,
        };
        Ok((namespace, DeviceId(name), id))
    }

    async fn use_shadow_doorbells(&self, controller: &IdentifyController) -> Result<(), AttachError> {
        if controller.admin_commands & oacs::DOORBELL_BUFFER == 0 || !self.core.borrow().io.doorbells_fit_in_a_page() {
            return Ok(());
        }
        let (shadow, event_index, command) = {
            let core = self.core.borrow();
            let QueueMemory { shadow, event_index, .. } = QueueMemory::new(core.io.entries() - 1);
            core.io.clear_pages(shadow, event_index);
            let base = core.io.base();
            (shadow, event_index, SubmissionEntry::doorbell_buffer_config(base + shadow, base + event_index))
        };
        match self.admin(command, &[], &mut []).await {
            Ok(_) => self.core.borrow_mut().io.set_shadow(shadow, event_index),
            Err(AttachError::Command { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn create_queues(&self) -> Result<(), AttachError> {
        let one_pair = SubmissionEntry::set_features(feature::NUMBER_OF_QUEUES, NamespaceId::NONE, 0);
        self.admin(one_pair, &[], &mut []).await?;
        let (queue, entries, (sq, cq)) = {
            let core = self.core.borrow();
            (core.io.queue(), core.io.entries(), core.io.rings())
        };
        let vector = self.function.interrupt().map(|_| 0);
        let create = SubmissionEntry::create_completion_queue(queue, entries, vector).with_prp(cq, 0);
        self.admin(create, &[], &mut []).await?;
        let create = SubmissionEntry::create_submission_queue(queue, entries, queue).with_prp(sq, 0);
        self.admin(create, &[], &mut []).await?;
        Ok(())
    }

    async fn listen(&self, controller: &IdentifyController) -> Result<(), AttachError> {
        let events = event_config::SMART_WARNINGS | controller.async_events & event_config::NAMESPACE_ATTRIBUTE;
        let configure = SubmissionEntry::set_features(feature::ASYNC_EVENT_CONFIG, NamespaceId::NONE, events);
        self.admin(configure, &[], &mut []).await?;
        self.request_event();
        Ok(())
    }

    /// Sends the next Asynchronous Event Request.
    pub(super) fn request_event(&self) {
        let mut core = self.core.borrow_mut();
        // Full: the watch tries again.
        if let Ok((command, _answer)) = core.admin.submit_kept(SubmissionEntry::async_event_request(), &[], 0) {
            core.admin.release(command);
            core.listening = Listening::Asked(command);
        }
    }

    /// An admin command with `data` to the device, or with data from it into `back`.
    pub(super) async fn admin(
        &self,
        command: SubmissionEntry,
        data: &[u8],
        back: &mut [u8],
    ) -> Result<CompletionEntry, AttachError> {
        let opcode = command.opcode();
        let deadline = self.handle.now() + self.options.admin_timeout;
        match self.exchange(Which::Admin, command, data, back, deadline).await {
            Ok(entry) if entry.status().is_success() => Ok(entry),
            Ok(entry) => Err(AttachError::Command { opcode, status: entry.status() }),
            Err(Some(Ended::Gone)) => Err(AttachError::Gone),
            Err(Some(Ended::Reset)) => Err(AttachError::Silent(opcode)),
            Err(None) => {
                let mut core = self.core.borrow_mut();
                if core.state == State::Running {
                    core.verdict = Some(Verdict::Reset);
                    self.alarm.notify_all();
                }
                Err(AttachError::Silent(opcode))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_without_a_name_are_told_apart_and_nobody_is_taken_for_another() {
        let mut controller = IdentifyController { serial: *b"A                   ", ..IdentifyController::default() };
        let name = |controller: &IdentifyController, number| private_name(controller, NamespaceId(number));
        let first = name(&controller, 1).unwrap();
        assert_eq!(name(&controller, 1), Ok(first));
        assert_ne!(name(&controller, 2), Ok(first));
        controller.serial[0] = b'B';
        assert_ne!(name(&controller, 1), Ok(first));
        controller.serial = [b' '; 20];
        assert!(matches!(name(&controller, 1), Err(AttachError::Unsupported(_))));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b"a".iter()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
