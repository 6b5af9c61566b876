//! What Linux sends when it attaches a controller and when it lets go of it, word by word, to our controller and to QEMU's.
//!
//! The list follows Linux 6.1, `drivers/nvme/host`: `pci.c` (registers, queues, doorbell buffers, shutdown), `core.c` (identify, features,
//! log pages, events, namespaces), `hwmon.c` (temperatures), `multipath.c` (reservations by `pr.c` are other tests' business). Commands that
//! depend on what the controller says of itself are sent whatever it says; what it does not have is refused as the specification wants.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::feature::{self, event_config};
use dyad_nvme::identify::{
    CTRATT_HOST_ID_128, IdentifyController, IdentifyNamespace, NamespaceDescriptors, cns, oacs, oncs,
};
use dyad_nvme::opcode::{admin, nvm};
use dyad_nvme::register::{
    self, AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, Doorbell, ShutdownRequest, Version,
    doorbell_offset,
};
use dyad_nvme::types::{BlockCount, CommandId, Lba, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry, log};
use dyad_reactor::{BootClock, Clock, SeededRng};

use super::{Machine, PATIENCE, QtestError};
use crate::emulator::{BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use crate::pci::PciFunction;

const NONE: NamespaceId = NamespaceId::NONE;
const NS: NamespaceId = NamespaceId(1);
const ENTRIES: u16 = 64;

/// Pages of the host's memory: rings, shadow doorbells, data.
const ADMIN_SQ: u64 = 0;
const ADMIN_CQ: u64 = 0x1000;
const IO_SQ: u64 = 0x2000;
const IO_CQ: u64 = 0x3000;
const SHADOW: u64 = 0x4000;
const EVENT_INDEX: u64 = 0x5000;
const DATA: u64 = 0x8000;
const BYTES: usize = 0x10000;

/// What a command is to be answered with.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Answer {
    /// Success, with any result.
    Done,
    /// Success, with this in dword 0.
    Says(u32),
    /// This status.
    Refused(Status),
    /// Nothing for now.
    Held,
}

use Answer::{Done, Held, Refused, Says};

/// A command, what it is answered with here, and at QEMU.
struct Step {
    what: &'static str,
    queue: u16,
    entry: SubmissionEntry,
    data: &'static [u8],
    here: Answer,
    qemu: Answer,
}

fn step(what: &'static str, entry: SubmissionEntry, answer: Answer) -> Step {
    Step { what, queue: 0, entry, data: &[], here: answer, qemu: answer }
}

impl Step {
    fn io(self) -> Self {
        Self { queue: 1, ..self }
    }

    fn with(self, data: &'static [u8]) -> Self {
        Self { data, ..self }
    }

    /// QEMU answers otherwise.
    fn but_qemu(self, qemu: Answer) -> Self {
        Self { qemu, ..self }
    }
}

/// Get Log Page as `nvme_get_log` does it: a command set in dword 14.
fn log_page(page: u8, namespace: NamespaceId, bytes: u32) -> SubmissionEntry {
    SubmissionEntry::get_log_page(page, namespace, 0, bytes, false).with_dword(14, 0)
}

fn attach(base: u64) -> Vec<Step> {
    let identify = |cns, namespace| SubmissionEntry::identify(cns, namespace, 0);
    let set = |id, value| SubmissionEntry::set_features(id, NONE, value);
    let get = |id, value| SubmissionEntry::get_features(id, NONE).with_dword(11, value);
    let create_cq = SubmissionEntry::create_completion_queue(QueueId(1), ENTRIES, Some(0)).with_prp(base + IO_CQ, 0);
    let create_sq = SubmissionEntry::create_submission_queue(QueueId(1), ENTRIES, QueueId(1)).with_prp(base + IO_SQ, 0);
    vec![
        step("Identify Controller", identify(cns::CONTROLLER, NONE), Done),
        step("effects log", log_page(log::EFFECTS, NONE, 4096), Done),
        step("Identify Controller, NVM command set", identify(cns::CONTROLLER_CSI, NONE), Done),
        step("timestamp", set(feature::TIMESTAMP, 0), Done).with(&[1, 2, 3, 4, 5, 6, 0, 0]),
        step("host behaviour", set(feature::HOST_BEHAVIOR, 0), Done).with(&[0; 512]),
        step("power state transitions: there are none", get(APST, 0), Refused(Status::INVALID_FIELD)),
        step("host memory buffer: none is wanted", set(HOST_MEMORY, 0), Refused(Status::INVALID_FIELD)),
        step("SMART", log_page(log::SMART, NamespaceId::ALL, 512), Done),
        step("temperature above which to warn", get(feature::TEMPERATURE_THRESHOLD, 0), Says(343)),
        step("temperature below which to warn", get(feature::TEMPERATURE_THRESHOLD, 1 << 20), Says(0)),
        step("doorbell buffers", SubmissionEntry::doorbell_buffer_config(base + SHADOW, base + EVENT_INDEX), Done),
        step("queues", set(feature::NUMBER_OF_QUEUES, 0x0001_0001), Done),
        step("completion queue 1", create_cq, Done),
        step("submission queue 1", create_sq, Done),
        step("events", set(feature::ASYNC_EVENT_CONFIG, event_config::NAMESPACE_ATTRIBUTE), Done),
        step("the next event", SubmissionEntry::async_event_request(), Held),
        step("namespaces", identify(cns::ACTIVE_NAMESPACES, NONE), Done),
        step("no more namespaces", identify(cns::ACTIVE_NAMESPACES, NS), Done),
        step("descriptors", identify(cns::DESCRIPTORS, NS), Done),
        step("namespace", identify(cns::NAMESPACE, NS), Done),
        step("namespace, NVM command set", identify(cns::NAMESPACE_CSI, NS), Done),
        step("namespace, independent of command sets", identify(cns::NAMESPACE_INDEPENDENT, NS), Done)
            .but_qemu(Refused(Status::INVALID_FIELD)),
        step("one that is not there", identify(cns::NAMESPACE, NamespaceId(5000)), Refused(Status::INVALID_NAMESPACE)),
        step("the partition table", SubmissionEntry::read(NS, Lba(0), BlockCount(1)), Done).io(),
        step("flush", SubmissionEntry::flush(NS), Done).io(),
        step("write zeroes", SubmissionEntry::write_zeroes(NS, Lba(8), BlockCount(8)), Done).io(),
        step("discard", SubmissionEntry::deallocate(NS, 1), Done)
            .io()
            .with(&[0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]),
        step(
            "beyond the end",
            SubmissionEntry::read(NS, Lba(1 << 40), BlockCount(1)),
            Refused(Status::LBA_OUT_OF_RANGE),
        )
        .io(),
        step("changed namespaces", log_page(log::CHANGED_NAMESPACES, NamespaceId::ALL, 4096), Done),
        step("firmware slots", log_page(log::FIRMWARE, NamespaceId::ALL, 512), Done),
        step("errors", log_page(log::ERROR, NamespaceId::ALL, 64), Done),
        step("power state", get(feature::POWER_MANAGEMENT, 0), Says(0)),
        step("write cache", get(feature::VOLATILE_WRITE_CACHE, 0), Says(1)),
        step("a log page that is not there", log_page(0xc5, NamespaceId::ALL, 512), Refused(Status::INVALID_LOG_PAGE))
            .but_qemu(Refused(Status::INVALID_FIELD)),
        step("a command that is not there", SubmissionEntry::new(0xe5, NONE), Refused(Status::INVALID_OPCODE)),
        step("an I/O command that is not there", SubmissionEntry::new(0x7d, NS), Refused(Status::INVALID_OPCODE)).io(),
        step("abort of nothing", SubmissionEntry::abort(QueueId(1), CommandId(77)), Says(1)),
    ]
}

fn detach() -> Vec<Step> {
    vec![
        step("delete submission queue 1", SubmissionEntry::delete_submission_queue(QueueId(1)), Done),
        step("delete completion queue 1", SubmissionEntry::delete_completion_queue(QueueId(1)), Done),
    ]
}

/// Autonomous Power State Transition, and Host Memory Buffer: features that neither has.
const APST: u8 = 0x0c;
const HOST_MEMORY: u8 = 0x0d;

/// A host by hand.
struct Host<F> {
    function: F,
    /// Lets the device work.
    pump: Box<dyn Fn()>,
    memory: Memory,
    base: u64,
    tails: [u16; 2],
    heads: [u16; 2],
}

impl<F: PciFunction> Host<F> {
    fn new(function: F, pump: Box<dyn Fn()>) -> Self {
        let memory = function.allocate(BYTES).unwrap();
        let base = function.map_dma(&memory).unwrap().0;
        Self { function, pump, memory, base, tails: [0; 2], heads: [0; 2] }
    }

    fn register(&self, offset: u32) -> u32 {
        let Poll::Ready(value) = self.function.read32(offset) else { panic!("registers are at hand") };
        value
    }

    fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = BootClock.now() + PATIENCE;
        while BootClock.now() < deadline {
            (self.pump)();
            if let Some(found) = look() {
                return Some(found);
            }
        }
        None
    }

    fn enable(&self) {
        let Poll::Ready(cap) = self.function.read64(register::CAP) else { panic!("registers are at hand") };
        assert!(Capabilities(cap).nvm_command_set() && Capabilities(cap).queue_entries_max() >= u32::from(ENTRIES));
        assert!(Version(self.register(register::VS)) >= Version::V1_4);
        self.function.write32(register::CC, 0);
        self.until(|| (!ControllerStatus(self.register(register::CSTS)).ready()).then_some(())).expect("disabled");
        self.function.write32(register::AQA, AdminQueueAttributes::new(ENTRIES).0);
        self.function.write64(register::ASQ, self.base + ADMIN_SQ);
        self.function.write64(register::ACQ, self.base + ADMIN_CQ);
        self.function.write32(register::CC, Configuration::ENABLED.0);
        self.until(|| ControllerStatus(self.register(register::CSTS)).ready().then_some(())).expect("enabled");
    }

    fn enable_anew(&mut self) {
        self.memory.fill_zero(0, DATA).unwrap();
        (self.tails, self.heads) = ([0; 2], [0; 2]);
        self.enable();
    }

    /// Sends a command, and gives its completion; none if there is none within a short time.
    fn send(&mut self, queue: u16, entry: SubmissionEntry, patience: Duration) -> Option<CompletionEntry> {
        let index = usize::from(queue);
        let command = CommandId(0x100 + self.tails[index]);
        let entry = entry.with_command(command);
        let [sq, cq] = [[ADMIN_SQ, ADMIN_CQ], [IO_SQ, IO_CQ]][index];
        self.memory.write(sq + u64::from(self.tails[index]) * 64, entry.as_bytes()).unwrap();
        self.tails[index] += 1;
        assert!(self.tails[index] < ENTRIES, "the list fits into one round of the ring");
        if queue > 0 {
            // The shadow first, the doorbell whatever EventIdx says.
            let at = u64::from(doorbell_offset(queue, Doorbell::SubmissionTail, 0) - register::DOORBELLS);
            self.memory.store_u32(SHADOW + at, u32::from(self.tails[index])).unwrap();
        }
        self.function.doorbell(doorbell_offset(queue, Doorbell::SubmissionTail, 0), u32::from(self.tails[index]));
        let at = cq + u64::from(self.heads[index]) * 16;
        let deadline = BootClock.now() + patience;
        let entry = self.until(|| {
            let mut bytes = [0; 16];
            self.memory.read(at, &mut bytes).unwrap();
            let entry = CompletionEntry::from_bytes(bytes);
            if entry.phase() { Some(Some(entry)) } else { (BootClock.now() > deadline).then_some(None) }
        })??;
        self.heads[index] += 1;
        assert_eq!((entry.command(), entry.queue()), (command, QueueId(queue)));
        Some(entry)
    }

    /// Plays the steps; `pick` says whose answers are expected. Gives the page that each of them left.
    fn play(&mut self, steps: Vec<Step>, pick: impl Fn(&Step) -> Answer) -> Vec<(&'static str, Vec<u8>)> {
        let mut pages = Vec::new();
        for step in steps {
            let mut page = vec![0; 4096];
            page[..step.data.len()].copy_from_slice(step.data);
            self.memory.write(DATA, &page).unwrap();
            let entry = if step.entry.prp1() == 0 { step.entry.with_prp(self.base + DATA, 0) } else { step.entry };
            let expected = pick(&step);
            let patience = if expected == Held { Duration::from_millis(100) } else { PATIENCE };
            let answer = match self.send(step.queue, entry, patience) {
                None => Held,
                Some(entry) if !entry.status().is_success() => Refused(entry.status().code()),
                Some(entry) if expected == Done => {
                    let _ = entry;
                    Done
                }
                Some(entry) => Says(entry.result_low()),
            };
            assert_eq!(answer, expected, "{}", step.what);
            self.memory.read(DATA, &mut page).unwrap();
            pages.push((step.what, page));
        }
        pages
    }

    fn shut_down(&self) {
        self.function.write32(register::CC, Configuration::ENABLED.with_shutdown(ShutdownRequest::Normal).0);
        let complete = || ControllerStatus(self.register(register::CSTS)).shutdown_complete().then_some(());
        self.until(complete).expect("shut down");
        self.function.write32(register::CC, 0);
        self.until(|| (!ControllerStatus(self.register(register::CSTS)).ready()).then_some(())).expect("disabled");
    }

    /// All of it, twice, as after `rmmod` and `modprobe`.
    fn come_and_go(&mut self, pick: impl Fn(&Step) -> Answer) {
        for _ in 0..2 {
            self.enable_anew();
            let pages = self.play(attach(self.base), &pick);
            says_what_linux_wants_to_know(&pages);
            self.play(detach(), &pick);
            self.shut_down();
        }
    }
}

fn says_what_linux_wants_to_know(pages: &[(&str, Vec<u8>)]) {
    let page = |what: &str| -> &[u8; 4096] {
        pages.iter().find(|(name, _)| *name == what).expect("in the list").1.as_slice().try_into().expect("a page")
    };
    let controller = IdentifyController::from_bytes(page("Identify Controller"));
    assert_eq!((controller.sq_entry & 15, controller.cq_entry & 15), (6, 4));
    assert!(controller.nqn.starts_with(b"nqn."), "since 1.2.1 there is a name");
    assert_eq!(page("Identify Controller")[272..280], [0; 8], "no host memory buffer");
    assert_eq!(page("Identify Controller")[265], 0, "no power state transitions");
    assert_ne!(controller.io_commands & (oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES), 0);
    assert_ne!(controller.admin_commands & oacs::DOORBELL_BUFFER, 0);
    let effects = page("effects log");
    let supported = |at: usize, opcode: u8| effects[at + usize::from(opcode) * 4] & 1 == 1;
    assert!(supported(0, admin::IDENTIFY) && supported(1024, nvm::READ) && !supported(1024, 0x7d));
    assert_eq!(page("namespaces")[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page("no more namespaces")[..4], [0; 4]);
    let namespace = IdentifyNamespace::from_bytes(page("namespace"));
    assert_eq!((namespace.size, namespace.block_bytes()), (1024, Some(4096)));
    let descriptors = NamespaceDescriptors::from_bytes(page("descriptors"));
    assert_eq!(descriptors.command_set, Some(0));
    assert_ne!(page("SMART")[1..3], [0; 2], "it has a temperature");
    assert_eq!(page("changed namespaces")[..4], [0; 4]);
    assert_eq!(page("firmware slots")[0] & 7, 1);
}

#[test]
fn our_controller() {
    let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
    let blocks = BlockCount(1024);
    let config = NamespaceConfig { uuid: [7; 16], blocks, cache_blocks: Some(64), format: BlockFormat::Bare };
    let media = MemoryMedia::new(usize::try_from(config.media_bytes()).unwrap());
    subsystem.add_namespace(config, Box::new(media));
    let subsystem = Rc::new(RefCell::new(subsystem));
    let function = EmulatedFunction::new(&subsystem, 0, Rc::new(BootClock));
    let pump = move || {
        subsystem.borrow_mut().step(BootClock.now());
    };
    Host::new(function, Box::new(pump)).come_and_go(|step| step.here);
}

#[test]
fn the_controller_of_qemu() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1024 * 4096).unwrap();
    let drive = format!("if=none,id=disk,format=raw,file={}", file.path().display());
    let device = "nvme,serial=disk,addr=04.0,drive=disk,logical_block_size=4096,physical_block_size=4096";
    let machine = match Machine::start(&["-drive", &drive, "-device", device]) {
        Err(QtestError::Start(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return eprintln!("NOT TESTED: qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)");
        }
        other => other.unwrap(),
    };
    let function = machine.function(4).unwrap();
    let mut host = Host::new(function, Box::new(std::thread::yield_now));
    host.come_and_go(|step| step.qemu);
    // What the table in the module's documentation says of it.
    host.enable_anew();
    let pages = host.play(attach(host.base), |step| step.qemu);
    let page = |at: usize| pages[at].1.as_slice().try_into().expect("a page");
    let controller = IdentifyController::from_bytes(page(0));
    let namespace = IdentifyNamespace::from_bytes(page(pages.iter().position(|p| p.0 == "namespace").unwrap()));
    assert_eq!((controller.io_commands & oncs::RESERVATIONS, namespace.reservations), (0, 0));
    assert_eq!((controller.attributes & CTRATT_HOST_ID_128, controller.io_commands & oncs::VERIFY), (0, 0));
    assert_eq!(controller.namespaces, 256);
    assert_eq!((namespace.nguid, namespace.eui64), ([0; 16], [0; 8]));
}
