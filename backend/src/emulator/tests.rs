//! A host by hand: registers, rings and pages, to see what the controller says to commands that our driver never sends.

use super::*;
use dyad_nvme::completion::CompletionEntry;
use dyad_nvme::feature::{self, event_config};
use dyad_nvme::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceDescriptors, cns};
use dyad_nvme::log::{self, ErrorEntry, SmartLog};
use dyad_nvme::register::{AdminQueueAttributes, Capabilities, ControllerStatus, Doorbell, Version, doorbell_offset};
use dyad_nvme::sgl::SglDescriptor;
use dyad_nvme::types::{BlockCount, ControllerId};
use proptest::prelude::*;

const BASE: u64 = 0x10_0000;
const PAGES: usize = 64;
const ENTRIES: u16 = 16;
/// Pages of the host's memory: rings first, then data.
const ADMIN_SQ: u64 = 0;
const ADMIN_CQ: u64 = 0x1000;
const IO_SQ: u64 = 0x2000;
const IO_CQ: u64 = 0x3000;
const DATA: u64 = 0x8000;
const NS: NamespaceId = NamespaceId(1);

struct Host {
    subsystem: Subsystem,
    memory: Memory,
    tails: [u16; 2],
    heads: [u16; 2],
    phases: [bool; 2],
}

impl Host {
    fn new() -> Self {
        let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
        for uuid in [[1; 16], [2; 16]] {
            let blocks = BlockCount(256);
            let config = NamespaceConfig { uuid, blocks, cache_blocks: Some(8), format: BlockFormat::Bare };
            let media = MemoryMedia::new(usize::try_from(config.media_bytes()).unwrap());
            subsystem.add_namespace(config, Box::new(media));
        }
        let memory = Memory::anonymous(PAGES * 4096);
        assert!(subsystem.map_dma(0, BASE, memory.len(), &memory, 0));
        let mut host = Self { subsystem, memory, tails: [0; 2], heads: [0; 2], phases: [true; 2] };
        host.enable();
        host
    }

    fn write32(&mut self, offset: u32, value: u32) {
        self.subsystem.write32(0, offset, value, Time::ZERO);
    }

    fn enable(&mut self) {
        (self.tails, self.heads, self.phases) = ([0; 2], [0; 2], [true; 2]);
        self.memory.fill_zero(0, DATA).unwrap();
        self.write32(register::AQA, AdminQueueAttributes::new(ENTRIES).0);
        for (register, address) in [(register::ASQ, ADMIN_SQ), (register::ACQ, ADMIN_CQ)] {
            let [a, b, c, d, e, f, g, h] = (BASE + address).to_le_bytes();
            self.write32(register, u32::from_le_bytes([a, b, c, d]));
            self.write32(register + 4, u32::from_le_bytes([e, f, g, h]));
        }
        self.write32(register::CC, Configuration::ENABLED.0);
        self.subsystem.step(Time::ZERO);
        assert!(self.status().ready());
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.subsystem.read32(0, register::CSTS))
    }

    /// Makes I/O queue pair 1.
    fn io_queues(&mut self) {
        let cq = SubmissionEntry::create_completion_queue(QueueId(1), ENTRIES, None).with_prp(BASE + IO_CQ, 0);
        let sq = SubmissionEntry::create_submission_queue(QueueId(1), ENTRIES, QueueId(1)).with_prp(BASE + IO_SQ, 0);
        assert_eq!((self.admin(cq), self.admin(sq)), (Ok(0), Ok(0)));
    }

    /// Sends a command and gives its completion, if there is one at once.
    fn send(&mut self, queue: usize, entry: SubmissionEntry) -> Option<CompletionEntry> {
        let ring = [ADMIN_SQ, IO_SQ][queue] + u64::from(self.tails[queue]) * 64;
        self.memory.write(ring, entry.as_bytes()).unwrap();
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
        let id = u16::try_from(queue).unwrap();
        self.write32(doorbell_offset(id, Doorbell::SubmissionTail, 0), u32::from(self.tails[queue]));
        self.subsystem.step(Time::ZERO);
        self.completion(queue)
    }

    fn completion(&mut self, queue: usize) -> Option<CompletionEntry> {
        let mut bytes = [0; 16];
        self.memory.read([ADMIN_CQ, IO_CQ][queue] + u64::from(self.heads[queue]) * 16, &mut bytes).unwrap();
        let entry = CompletionEntry::from_bytes(bytes);
        (entry.phase() == self.phases[queue]).then(|| {
            self.heads[queue] = (self.heads[queue] + 1) % ENTRIES;
            self.phases[queue] ^= self.heads[queue] == 0;
            let id = u16::try_from(queue).unwrap();
            self.write32(doorbell_offset(id, Doorbell::CompletionHead, 0), u32::from(self.heads[queue]));
            entry
        })
    }

    fn result(entry: CompletionEntry) -> Result<u64, Status> {
        if entry.status().is_success() { Ok(entry.result()) } else { Err(entry.status().code()) }
    }

    fn admin(&mut self, entry: SubmissionEntry) -> Result<u64, Status> {
        self.send(0, entry).map(Self::result).expect("a completion")
    }

    fn io(&mut self, entry: SubmissionEntry) -> Result<u64, Status> {
        self.send(1, entry).map(Self::result).expect("a completion")
    }

    /// An admin command that gives a page.
    fn page(&mut self, entry: SubmissionEntry) -> Result<Box<[u8; IDENTIFY_BYTES]>, Status> {
        self.memory.write(DATA, &[0xee; IDENTIFY_BYTES]).unwrap();
        self.admin(entry.with_prp(BASE + DATA, 0))?;
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        self.memory.read(DATA, &mut page[..]).unwrap();
        Ok(page)
    }

    fn identify(&mut self, cns: u8, namespace: NamespaceId) -> Result<Box<[u8; IDENTIFY_BYTES]>, Status> {
        self.page(SubmissionEntry::identify(cns, namespace, 0))
    }

    fn log(&mut self, log: u8, bytes: u32) -> Result<Box<[u8; IDENTIFY_BYTES]>, Status> {
        self.page(SubmissionEntry::get_log_page(log, NamespaceId::ALL, 0, bytes, false))
    }
}

#[test]
fn registers_as_a_host_finds_them() {
    let host = Host::new();
    let low = u64::from(host.subsystem.read32(0, register::CAP));
    let cap = Capabilities(low | u64::from(host.subsystem.read32(0, register::CAP + 4)) << 32);
    assert_eq!((cap.queue_entries_max(), cap.timeout_ms(), cap.doorbell_stride()), (1024, 10_000, 0));
    assert_eq!(host.subsystem.read32(0, register::VS), Version::V2_0.0);
    assert_eq!(host.subsystem.read32(1, register::CSTS), 0, "the other port is another controller");
}

/// What Linux sends at attach, word by word, is in `qtest::linux`, for this controller and QEMU's.
#[test]
fn two_namespaces_and_an_event_that_waits() {
    let mut host = Host::new();
    let none = NamespaceId::NONE;
    let controller = IdentifyController::from_bytes(&host.identify(cns::CONTROLLER, none).unwrap());
    assert_eq!((controller.namespaces, controller.controller), (2, ControllerId(1)));
    assert!(host.log(log::EFFECTS, 4096).unwrap()[1024 + 4] & 1 == 1, "Write is supported");
    let queues = SubmissionEntry::set_features(feature::NUMBER_OF_QUEUES, none, 0x0007_0007);
    assert_eq!(host.admin(queues), Ok(0x000f_000f));
    let events = SubmissionEntry::set_features(feature::ASYNC_EVENT_CONFIG, none, event_config::NAMESPACE_ATTRIBUTE);
    assert_eq!(host.admin(events), Ok(0));
    let list = host.identify(cns::ACTIVE_NAMESPACES, none).unwrap();
    assert_eq!(list[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(host.identify(cns::ACTIVE_NAMESPACES, NamespaceId(1)).unwrap()[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    for id in [NamespaceId(1), NamespaceId(2)] {
        let descriptors = NamespaceDescriptors::from_bytes(&host.identify(cns::DESCRIPTORS, id).unwrap());
        assert_eq!(descriptors.uuid, Some([u8::try_from(id.0).unwrap(); 16]));
        let namespace = IdentifyNamespace::from_bytes(&host.identify(cns::NAMESPACE, id).unwrap());
        assert_eq!((namespace.size, namespace.block_bytes()), (256, Some(4096)));
        assert!(host.identify(cns::NAMESPACE_INDEPENDENT, id).unwrap()[14] & 1 == 1, "ready");
    }
    let smart = SmartLog::from_bytes(host.log(log::SMART, 512).unwrap()[..512].try_into().unwrap());
    assert_eq!((smart.critical_warning, smart.spare_percent), (0, 100));
    assert!(host.send(0, SubmissionEntry::async_event_request()).is_none(), "it waits for an event");
}

#[test]
fn what_is_not_there_is_refused() {
    let mut host = Host::new();
    let none = NamespaceId::NONE;
    assert_eq!(host.identify(cns::NAMESPACE, NamespaceId(3)), Err(Status::INVALID_NAMESPACE));
    assert_eq!(host.identify(cns::NAMESPACE, NamespaceId::ALL), Err(Status::INVALID_NAMESPACE));
    assert_eq!(host.identify(cns::DESCRIPTORS, none), Err(Status::INVALID_NAMESPACE));
    assert_eq!(host.identify(cns::ACTIVE_NAMESPACES, NamespaceId::ALL), Err(Status::INVALID_NAMESPACE));
    assert_eq!(host.identify(0xff, none), Err(Status::INVALID_FIELD));
    assert_eq!(host.log(0xc0, 512), Err(Status::INVALID_LOG_PAGE));
    let beyond = SubmissionEntry::get_log_page(log::SMART, NamespaceId::ALL, 4096, 512, false);
    assert_eq!(host.page(beyond), Err(Status::INVALID_FIELD));
    assert_eq!(host.admin(SubmissionEntry::get_features(0xd0, none)), Err(Status::INVALID_FIELD));
    assert_eq!(host.admin(SubmissionEntry::new(0x99, none)), Err(Status::INVALID_OPCODE));
    let save = SubmissionEntry::set_features(feature::VOLATILE_WRITE_CACHE, none, 1);
    assert_eq!(host.admin(save.with_dword(10, 1 << 31 | 6)), Err(Status::FEATURE_NOT_SAVEABLE));
    let errors: Vec<_> = {
        let page = host.log(log::ERROR, 1024).unwrap();
        page[..1024].chunks_exact(64).filter_map(|e| ErrorEntry::from_bytes(e.try_into().unwrap())).collect()
    };
    assert_eq!(errors.len(), 10, "each of them is in the log, the newest first");
    assert_eq!((errors[0].count, errors[0].status.code()), (10, Status::FEATURE_NOT_SAVEABLE));
}

#[test]
fn queues_are_made_and_deleted_by_the_rules() {
    let mut host = Host::new();
    let cq =
        |id, entries| SubmissionEntry::create_completion_queue(QueueId(id), entries, None).with_prp(BASE + IO_CQ, 0);
    let sq =
        |id, cq| SubmissionEntry::create_submission_queue(QueueId(id), ENTRIES, QueueId(cq)).with_prp(BASE + IO_SQ, 0);
    assert_eq!(host.admin(sq(1, 1)), Err(Status::COMPLETION_QUEUE_INVALID));
    assert_eq!(host.admin(cq(0, ENTRIES)), Err(Status::INVALID_QUEUE_ID));
    assert_eq!(host.admin(cq(17, ENTRIES)), Err(Status::INVALID_QUEUE_ID));
    assert_eq!(host.admin(cq(1, 1)), Err(Status::INVALID_QUEUE_SIZE));
    assert_eq!(host.admin(cq(1, 2048)), Err(Status::INVALID_QUEUE_SIZE));
    assert_eq!(host.admin(cq(1, ENTRIES).with_prp(BASE + 8, 0)), Err(Status::PRP_OFFSET_INVALID));
    assert_eq!(host.admin(cq(1, ENTRIES).with_prp(0, 0)), Err(Status::INVALID_FIELD));
    assert_eq!(host.admin(cq(1, ENTRIES).with_dword(11, 0)), Err(Status::INVALID_FIELD), "not contiguous");
    assert_eq!(host.admin(cq(1, ENTRIES)), Ok(0));
    assert_eq!(host.admin(cq(1, ENTRIES)), Err(Status::INVALID_QUEUE_ID));
    assert_eq!(host.admin(sq(1, 0)), Err(Status::COMPLETION_QUEUE_INVALID));
    assert_eq!(host.admin(sq(1, 1)), Ok(0));
    assert_eq!(host.admin(SubmissionEntry::delete_completion_queue(QueueId(1))), Err(Status::INVALID_QUEUE_DELETION));
    assert_eq!(host.admin(SubmissionEntry::delete_submission_queue(QueueId(1))), Ok(0));
    assert_eq!(host.admin(SubmissionEntry::delete_submission_queue(QueueId(1))), Err(Status::INVALID_QUEUE_ID));
    assert_eq!(host.admin(SubmissionEntry::delete_completion_queue(QueueId(1))), Ok(0));
}

#[test]
fn blocks_compare_verify_and_deallocate() {
    let mut host = Host::new();
    host.io_queues();
    let (lba, one) = (Lba(9), BlockCount(1));
    let data = |entry: SubmissionEntry| entry.with_prp(BASE + DATA, 0);
    host.memory.write(DATA, &[7; 4096]).unwrap();
    assert_eq!(host.io(data(SubmissionEntry::write(NS, lba, one, false))), Ok(0));
    assert_eq!(host.io(data(SubmissionEntry::compare(NS, lba, one))), Ok(0));
    assert_eq!(host.io(SubmissionEntry::new(nvm::VERIFY, NS).with_dword(10, 9)), Ok(0));
    host.memory.write(DATA + 4095, &[8]).unwrap();
    assert_eq!(host.io(data(SubmissionEntry::compare(NS, lba, one))), Err(Status::COMPARE_FAILURE));
    let mut range = [0; 16];
    range[4] = 4;
    range[8] = 8;
    host.memory.write(DATA, &range).unwrap();
    assert_eq!(host.io(data(SubmissionEntry::deallocate(NS, 1))), Ok(0));
    assert_eq!(*host.subsystem.peek(NS, lba).unwrap(), [0; 4096]);
    range[8..].fill(0xff);
    host.memory.write(DATA, &range).unwrap();
    assert_eq!(host.io(data(SubmissionEntry::deallocate(NS, 1))), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(host.io(SubmissionEntry::flush(NamespaceId::ALL)), Ok(0));
    assert_eq!(host.io(SubmissionEntry::flush(NamespaceId(3))), Err(Status::INVALID_NAMESPACE));
    assert_eq!(host.io(data(SubmissionEntry::read(NS, Lba(255), BlockCount(2)))), Err(Status::LBA_OUT_OF_RANGE));
    let long = SubmissionEntry::read(NS, Lba(0), BlockCount(257)).with_prp(BASE, BASE);
    assert_eq!(host.io(long), Err(Status::INVALID_FIELD), "longer than MDTS");
    let nowhere = SubmissionEntry::read(NS, Lba(0), one).with_prp(0x1234_5000, 0);
    assert_eq!(host.io(nowhere), Err(Status::DATA_TRANSFER_ERROR));
    let keyed = SubmissionEntry::read(NS, Lba(0), one).with_sgl(SglDescriptor::keyed(BASE, 4096, 1));
    assert_eq!(host.io(keyed), Err(Status::SGL_TYPE_INVALID));
}

#[test]
fn a_write_cache_that_is_switched_off_loses_nothing() {
    for (wce, kept) in [(1, false), (0, true)] {
        let mut host = Host::new();
        host.io_queues();
        let cache = SubmissionEntry::set_features(feature::VOLATILE_WRITE_CACHE, NamespaceId::NONE, wce);
        assert_eq!(host.admin(cache), Ok(0));
        host.memory.write(DATA, &[5; 4096]).unwrap();
        for lba in 0..8 {
            let write = SubmissionEntry::write(NS, Lba(lba), BlockCount(1), false).with_prp(BASE + DATA, 0);
            assert_eq!(host.io(write), Ok(0));
        }
        host.subsystem.power_loss();
        let there = (0..8).filter(|lba| host.subsystem.peek(NS, Lba(*lba)).unwrap()[0] == 5).count();
        assert_eq!(there == 8, kept, "{there} of 8");
    }
}

#[test]
fn a_bad_list_tears_no_block() {
    let mut host = Host::new();
    host.io_queues();
    host.memory.write(DATA, &[5; 8192]).unwrap();
    // The second half of each block is not there.
    let write = SubmissionEntry::write(NS, Lba(0), BlockCount(1), false).with_prp(BASE + DATA + 2048, 0x7777_7000);
    assert_eq!(host.io(write), Err(Status::DATA_TRANSFER_ERROR));
    assert_eq!(*host.subsystem.peek(NS, Lba(0)).unwrap(), [0; 4096]);
}

#[test]
fn a_doorbell_outside_the_queue_is_fatal_until_reset() {
    let mut host = Host::new();
    host.write32(doorbell_offset(0, Doorbell::SubmissionTail, 0), 77);
    host.subsystem.step(Time::ZERO);
    assert!(host.status().fatal());
    host.write32(register::CC, Configuration::DISABLED.0);
    assert_eq!(host.status(), ControllerStatus(0));
    host.enable();
    assert!(host.identify(cns::CONTROLLER, NamespaceId::NONE).is_ok());
}

#[test]
fn shutdown_and_memory_taken_away() {
    let mut host = Host::new();
    host.write32(register::CC, Configuration::ENABLED.with_shutdown(ShutdownRequest::Normal).0);
    assert!(host.status().shutdown_complete());
    host.write32(register::CC, Configuration::DISABLED.0);
    host.enable();
    host.io_queues();
    assert!(host.subsystem.unmap_dma(0, BASE, host.memory.len()));
    assert!(host.status().fatal(), "its queues are gone");
    host.subsystem.step(Time::ZERO);
    host.write32(register::CC, Configuration::DISABLED.0);
    host.write32(register::CC, Configuration::ENABLED.0);
    host.subsystem.step(Time::ZERO);
    assert!(host.status().fatal(), "and cannot be had again");
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    let mut host = Host::new();
    host.io_queues();
    for round in 0..40_u16 {
        let entry = SubmissionEntry::flush(NS).with_command(CommandId(round));
        host.memory.write(IO_SQ + u64::from(round % ENTRIES) * 64, entry.as_bytes()).unwrap();
        let tail = u32::from((round + 1) % ENTRIES);
        host.write32(doorbell_offset(1, Doorbell::SubmissionTail, 0), tail);
        host.subsystem.step(Time::ZERO);
    }
    for round in 0..40 {
        let entry = host.completion(1).expect("one for each");
        assert_eq!((entry.command(), entry.status()), (CommandId(round), Status::SUCCESS));
        host.subsystem.step(Time::ZERO);
    }
    assert!(host.completion(1).is_none());
}

#[test]
fn a_host_that_takes_no_completions_is_served_no_more() {
    let mut host = Host::new();
    host.io_queues();
    let flush = SubmissionEntry::flush(NS);
    for place in 0..u64::from(ENTRIES) {
        host.memory.write(IO_SQ + place * 64, flush.as_bytes()).unwrap();
    }
    let mut moved = 0;
    for tail in 0..10_000_u32 {
        host.write32(doorbell_offset(1, Doorbell::SubmissionTail, 0), tail % u32::from(ENTRIES));
        moved += host.subsystem.step(Time::ZERO);
    }
    assert!((4096..4096 + 2 * usize::from(ENTRIES)).contains(&moved), "{moved}: a backlog has an end");
    assert!(host.status().ready());
}

#[test]
fn a_whole_device_is_given_up_at_once_and_durably() {
    let mut host = Host::new();
    host.io_queues();
    host.memory.write(DATA, &[5; 4096]).unwrap();
    let last = (249..256).map(Lba);
    for lba in last.clone() {
        assert_eq!(host.io(SubmissionEntry::write(NS, lba, BlockCount(1), true).with_prp(BASE + DATA, 0)), Ok(0));
    }
    let mut range = [0; 16];
    range[4..8].copy_from_slice(&256_u32.to_le_bytes());
    host.memory.write(DATA, &range).unwrap();
    assert_eq!(host.io(SubmissionEntry::deallocate(NS, 1).with_prp(BASE + DATA, 0)), Ok(0));
    host.subsystem.power_loss();
    for lba in last {
        assert_eq!(*host.subsystem.peek(NS, lba).unwrap(), [0; 4096], "more than the cache holds is on the media");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a host writes into its queues, the controller answers every command or keeps it, and goes on.
    #[test]
    fn any_command_gets_an_answer(commands in prop::collection::vec((0..2_usize, any::<[u8; 64]>(), 0..40_u8), 1..40)) {
        let mut host = Host::new();
        host.io_queues();
        for (queue, mut bytes, opcode) in commands {
            bytes[0] = opcode;
            // Addresses that often exist, namespaces that often do.
            bytes[4] &= 3;
            bytes[5..8].fill(0);
            bytes[26] = 0x10 | bytes[26] & 3;
            bytes[27..32].fill(0);
            let entry = SubmissionEntry::from_bytes(bytes);
            let aer = queue == 0 && entry.opcode() == admin_opcode::ASYNC_EVENT_REQUEST;
            let deletes = queue == 0 && matches!(entry.opcode(), admin_opcode::DELETE_CQ | admin_opcode::DELETE_SQ);
            if deletes {
                continue;
            }
            let answer = host.send(queue, entry);
            prop_assert!(answer.is_some() || aer, "{entry:?}");
            if !host.status().ready() {
                break; // a host may break its own controller
            }
        }
    }
}
