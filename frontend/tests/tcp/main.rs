//! NVMe/TCP over a loopback socket: the flows of the specification, and hosts that do not keep to them.

#![expect(clippy::disallowed_macros, reason = "allocations are counted per thread, and an allocator is handed nothing")]

#[path = "../../../reactor/tests/allocations/mod.rs"]
mod allocations;
mod client;
mod cost;
mod hostile;
mod initiator;

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use client::{Client, HOST, NQN, Style, VOLUME};
use dyad_frontend::subsystem::array::{AccessRow, PortView, Volumes};
use dyad_frontend::subsystem::memory::MemoryBacking;
use dyad_frontend::subsystem::{
    AccessTable, AnaGroupId, AnaGroupView, Array, DirectorIndex, NamespaceView, PortId, Subsystem, SubsystemConfig,
};
use dyad_frontend::tcp::{TcpConfig, TcpPort};
use dyad_matrix::Memory;
use dyad_nvme::discovery::{AddressFamily, DiscoveryEntry, Transport};
use dyad_nvme::fabrics::{ConnectData, DISCOVERY_NQN};
use dyad_nvme::identify::{IdentifyController, IdentifyNamespace, cns};
use dyad_nvme::log::{self, AnaState};
use dyad_nvme::types::{BlockCount, ControllerId, Lba, NamespaceId, QueueId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::Options;
use dyad_reactor::{Reactor, Stopper};

const BLOCKS: u64 = 1024;

/// A target on a thread of its own, until it is dropped.
struct Target {
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut TcpConfig) + Send + 'static) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), change)
    }

    fn at(address: SocketAddr, change: impl FnOnce(&mut TcpConfig) + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut config = TcpConfig {
                port: PortId(1),
                connections: 8,
                lanes: 16,
                alignment: 0,
                data_max: 65536,
                setup_timeout: Duration::from_secs(60),
                patience: Duration::from_secs(60),
                command_deadline: Duration::from_secs(60),
            };
            change(&mut config);
            let limits = Limits { tasks: TcpPort::<MemoryBacking>::tasks(&config), timers: 64 };
            let options = Options { limits, max_spin: Duration::ZERO, core: None };
            let mut reactor = Reactor::new(options).unwrap();
            let handle = reactor.handle();
            let memory = Memory::anonymous(2048 * 4096);
            let backing = MemoryBacking::new(&handle, memory, &[(VOLUME, BlockCount(BLOCKS))]);
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let subsystem = Rc::new(RefCell::new(subsystem(address)));
            let port = TcpPort::new(&handle, config, subsystem, backing, listener).unwrap();
            reactor.add_source(port.source()).unwrap();
            // There is a lane for every command that is served at once (DESIGN 2).
            let sizes = reactor.executor().task_sizes();
            assert!(sizes.iter().all(|(_, size)| *size <= 4096), "{sizes:?}");
            tell.send((address, reactor.stopper())).unwrap();
            reactor.run().unwrap();
        });
        let (address, stopper) = told.recv().unwrap();
        Self { address, stopper, thread: Some(thread) }
    }

    /// An admin queue and an I/O queue.
    fn session(&self, style: Style) -> (Client, Client) {
        let (admin, controller) = Client::admin(self.address, style, 0);
        (admin, Client::io(self.address, style, controller, 1))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the target panicked");
    }
}

fn subsystem(address: SocketAddr) -> Subsystem {
    let namespace = NamespaceView {
        id: VOLUME,
        uuid: [9; 16],
        blocks: BlockCount(BLOCKS),
        group: AnaGroupId(1),
        volatile_cache: false,
        deallocated_zeros: true,
        optimal_write: BlockCount(16),
    };
    let group = AnaGroupView { id: AnaGroupId(1), state: AnaState::Optimized };
    let port = PortView {
        id: PortId(1),
        transport: Transport::Tcp,
        family: AddressFamily::Ipv4,
        address: address.ip().to_string(),
        service: address.port().to_string(),
    };
    let array = Array::new(vec![namespace], vec![group], vec![port]).unwrap();
    let row = AccessRow { port: None, host: Some(HOST.into()), volumes: Volumes::All, credits: 64 };
    let config = SubsystemConfig {
        nqn: NQN.into(),
        serial: "DYAD0001".into(),
        director: DirectorIndex(0),
        controllers: 4,
        io_queues: 4,
        queue_entries: 64,
        transfer_log2: 6,
        in_capsule_bytes: 8192,
        ana_transition: Duration::from_secs(10),
        quiesce: Duration::from_secs(1),
    };
    Subsystem::new(config, array, AccessTable::new(vec![row]))
}

/// Blocks that tell where they belong.
fn pattern(lba: u64, blocks: u64, salt: u8) -> Vec<u8> {
    let byte = |at: u64| u8::try_from((lba * 131 + at / 7 + u64::from(salt)) % 251).unwrap();
    (0..blocks * 4096).map(byte).collect()
}

fn write(lba: u64, blocks: u64) -> SubmissionEntry {
    SubmissionEntry::write(VOLUME, Lba(lba), BlockCount(blocks), false)
}

fn read(client: &mut Client, lba: u64, blocks: u64) -> Vec<u8> {
    let entry = SubmissionEntry::read(VOLUME, Lba(lba), BlockCount(blocks));
    let (completion, data) = client.ask(entry, &[], u32::try_from(blocks * 4096).unwrap());
    assert!(completion.status().is_success(), "{:?}", completion.status());
    data
}

fn write_and_read(client: &mut Client, salt: u8) {
    // In the capsule, over one R2T, over several, and unaligned to anything.
    for (lba, blocks) in [(0, 1), (8, 2), (100, 16), (200, 64), (301, 33)] {
        let data = pattern(lba, blocks, salt);
        let in_capsule = blocks <= 2;
        client.style.no_in_capsule |= !in_capsule;
        assert_eq!(client.status(write(lba, blocks), &data, 0), Status::SUCCESS, "{blocks} blocks at {lba}");
        assert!(read(client, lba, blocks) == data, "{blocks} blocks at {lba}");
    }
}

#[test]
fn data_survives_every_digest_alignment_and_way_of_transfer() {
    for alignment in [0, 31] {
        let target = Target::with(move |config| config.alignment = alignment);
        for (index, (header_digest, data_digest, host_alignment, no_in_capsule, no_flow_control)) in (1..).zip([
            (false, false, 0, false, false),
            (true, false, 31, false, true),
            (false, true, 5, true, false),
            (true, true, 0, false, true),
            (true, true, 31, true, false),
        ]) {
            let style = Style { header_digest, data_digest, alignment: host_alignment, no_in_capsule, no_flow_control };
            let (_admin, mut io) = target.session(style);
            write_and_read(&mut io, index);
        }
    }
}

#[test]
fn a_host_finds_the_array_and_what_it_has() {
    let target = Target::new();
    let mut discovery = Client::open(target.address, Style::default());
    let data = ConnectData::new(client::HOST_ID, ControllerId::DYNAMIC, DISCOVERY_NQN, HOST).to_bytes();
    let connect = SubmissionEntry::connect(QueueId::ADMIN, 32, 0);
    assert_eq!(discovery.status(connect, &data, 0), Status::SUCCESS);
    let enable = SubmissionEntry::property_set(0x14, dyad_nvme::fabrics::PropertySize::Four, 0x0046_0001);
    assert_eq!(discovery.status(enable, &[], 0), Status::SUCCESS);
    let log = SubmissionEntry::get_log_page(log::DISCOVERY, NamespaceId::NONE, 1024, 1024, false);
    let (_, page) = discovery.ask(log, &[], 1024);
    let record = DiscoveryEntry::from_bytes(&page.try_into().unwrap()).unwrap();
    assert_eq!((record.nqn.as_str(), record.service), (NQN, target.address.port().to_string()));

    let (mut admin, mut io) = target.session(Style::default());
    let (_, page) = admin.ask(SubmissionEntry::identify(cns::CONTROLLER, NamespaceId::NONE, 0), &[], 4096);
    let controller = IdentifyController::from_bytes(&page.try_into().unwrap());
    assert_eq!(controller.command_capsule_16, (64 + 8192) / 16);
    let (_, page) = admin.ask(SubmissionEntry::identify(cns::NAMESPACE, VOLUME, 0), &[], 4096);
    assert_eq!(IdentifyNamespace::from_bytes(&page.try_into().unwrap()).size, BLOCKS);
    assert_eq!(io.status(SubmissionEntry::flush(NamespaceId::ALL), &[], 0), Status::SUCCESS);
    assert_eq!(io.status(SubmissionEntry::disconnect(), &[], 0), Status::SUCCESS);
    io.is_over();
    assert_eq!(admin.status(SubmissionEntry::keep_alive(), &[], 0), Status::SUCCESS, "its controller goes on");
}

#[test]
fn compare_zeroes_verify_and_deallocate_do_what_they_say() {
    let target = Target::new();
    let (_admin, mut io) = target.session(Style::default());
    let data = pattern(40, 2, 1);
    assert_eq!(io.status(write(40, 2), &data, 0), Status::SUCCESS);
    let compare = SubmissionEntry::compare(VOLUME, Lba(40), BlockCount(2));
    assert_eq!(io.status(compare, &data, 0), Status::SUCCESS);
    let mut other = data.clone();
    other[8191] ^= 1;
    assert_eq!(io.status(compare, &other, 0), Status::COMPARE_FAILURE);
    let verify = SubmissionEntry::new(dyad_nvme::opcode::nvm::VERIFY, VOLUME).with_dword(10, 40).with_dword(12, 1);
    assert_eq!(io.status(verify, &[], 0), Status::SUCCESS);
    assert_eq!(io.status(SubmissionEntry::write_zeroes(VOLUME, Lba(41), BlockCount(1)), &[], 0), Status::SUCCESS);
    assert!(read(&mut io, 40, 2) == [&data[..4096], &[0; 4096]].concat());
    let range = |lba: u64, blocks: u32| [&[0; 4], &blocks.to_le_bytes()[..], &lba.to_le_bytes()].concat();
    let ranges = [range(40, 1), range(BLOCKS - 1, 2)].concat();
    let beyond = io.status(SubmissionEntry::deallocate(VOLUME, 2), &ranges, 0);
    assert_eq!(beyond.code(), Status::LBA_OUT_OF_RANGE);
    assert!(read(&mut io, 40, 1) == data[..4096], "nothing of it was done");
    assert_eq!(io.status(SubmissionEntry::deallocate(VOLUME, 1), &range(40, 1), 0), Status::SUCCESS);
    assert!(read(&mut io, 40, 1) == [0; 4096]);
}

#[test]
fn a_list_of_ranges_may_come_with_room_for_all_of_them() {
    let target = Target::new();
    for (data_digest, no_in_capsule) in [(false, false), (true, false), (false, true), (true, true)] {
        let (_admin, mut io) = target.session(Style { data_digest, no_in_capsule, ..Style::default() });
        assert_eq!(io.status(write(40, 2), &pattern(40, 2, 1), 0), Status::SUCCESS);
        let mut list = [&[0; 4], &1_u32.to_le_bytes()[..], &40_u64.to_le_bytes()].concat();
        // What is behind the ranges says nothing.
        list.resize(4096, 0xff);
        assert_eq!(io.status(SubmissionEntry::deallocate(VOLUME, 1), &list, 0), Status::SUCCESS);
        assert!(read(&mut io, 40, 2) == [&[0; 4096], &pattern(40, 2, 1)[4096..]].concat());
        list.resize(4112, 0xff);
        let long = io.status(SubmissionEntry::deallocate(VOLUME, 1), &list, 0);
        assert_eq!(long.code(), Status::SGL_LENGTH_INVALID);
        let short = io.status(SubmissionEntry::deallocate(VOLUME, 2), &list[..16], 0);
        assert_eq!(short.code(), Status::SGL_LENGTH_INVALID);
    }
}

#[test]
fn many_commands_at_once_are_all_answered_with_their_own_data() {
    let target = Target::new();
    let (_admin, mut io) = target.session(Style::default());
    for lba in 0..31 {
        assert_eq!(io.status(write(lba, 1), &pattern(lba, 1, 3), 0), Status::SUCCESS);
    }
    let mut waiting = Vec::new();
    for lba in 0..31 {
        let entry = SubmissionEntry::read(VOLUME, Lba(lba), BlockCount(1));
        waiting.push((io.send(entry, &[], 4096), lba));
    }
    let mut found = 0;
    while found < 62 {
        let pdu = io.receive();
        found += 1;
        if pdu.common.kind == dyad_nvme::tcp::kind::C2H_DATA {
            let command = dyad_nvme::bytes::u16_at(&pdu.header, 8);
            let lba = waiting.iter().find(|(id, _)| id.0 == command).unwrap().1;
            assert!(pdu.data == pattern(lba, 1, 3), "block {lba}");
        }
    }
}
