//! Peers that lie, each in one way: what they say ends their own connection and nothing else; and what a peer gets to see.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Source};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::control::{Control, PACKET_BYTES, Packet, Request};
use super::layout::{ENTRY_STAMP, ENTRY_WORDS, Geometry, Side, StatusShape, open_word};
use super::{ShmError, ShmLimits, ShmProvider, attention, socket};
use crate::memory::{HugePages, MapError, Memory};
use crate::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PrivateData,
    ProtectionTag, Provider, RefusedReason, RegionHandle, Reliability, RemoteAccess, RemoteAddress, ResourceError,
    SendOperation, ViAttributes, ViId,
};

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const READ: RemoteAccess = RemoteAccess { write: false, read: true };
const SERVICE: Discriminator = Discriminator(9);
const GEOMETRY: Geometry = Geometry { entries: 8, data: 4096 };
const SHAPE: StatusShape = StatusShape { regions: 4, vis: 1 };
const PATIENCE: Duration = Duration::from_secs(60);

/// An honest server, with an honest client beside the liar.
struct Server {
    directory: tempfile::TempDir,
    provider: ShmProvider,
    cq: CqId,
    memory: Memory,
}

impl Server {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let provider = ShmProvider::new(&directory.path().join("server"), 1, ShmLimits::default()).unwrap();
        provider.listen(SERVICE).unwrap();
        let cq = provider.create_cq(64).unwrap();
        let memory = Memory::shared("dyad-test", 8192, HugePages::No).unwrap();
        provider.register(&memory, TAG, BOTH).unwrap();
        Self { directory, provider, cq, memory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn vi(&self) -> ViId {
        self.provider.create_vi(&attributes(self.cq)).unwrap()
    }

    fn event(&mut self) -> Event {
        let provider = &mut self.provider;
        wait(|| {
            provider.poll();
            match provider.poll_event(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(event) => Some(event),
                Poll::Pending => None,
            }
        })
    }

    fn completion(&mut self) -> Completion {
        let (provider, cq) = (&mut self.provider, self.cq);
        wait(|| {
            provider.poll();
            match provider.poll_completion(cq, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            }
        })
    }

    fn accept(&mut self) -> ViId {
        let Event::Requested { request, .. } = self.event() else { panic!("a request") };
        let vi = self.vi();
        self.provider.accept(request, vi, b"").unwrap();
        vi
    }

    /// An honest client connects and sends a message.
    fn still_serves(&mut self) {
        let mut client = ShmProvider::new(&self.path("client"), 1, ShmLimits::default()).unwrap();
        let cq = client.create_cq(64).unwrap();
        let vi = client.create_vi(&attributes(cq)).unwrap();
        let to = NetAddress { host: self.path("server").to_str().unwrap().to_owned(), discriminator: SERVICE };
        client.connect(vi, &to, b"", Duration::from_secs(30)).unwrap();
        let ours = self.accept();
        self.provider.post_receive(ours, &[self.memory.segment(0, 64).unwrap()], 5).unwrap();
        assert!(matches!(self.event(), Event::Established { vi, .. } if vi == ours));
        wait(|| {
            client.poll();
            let event = client.poll_event(&mut Context::from_waker(Waker::noop()));
            matches!(event, Poll::Ready(Event::Established { .. })).then_some(())
        });
        let nothing = Descriptor { operation: SendOperation::Send, segments: &[], immediate: Some(7), cookie: 1 };
        client.post_send(vi, &nothing).unwrap();
        let done = self.completion();
        assert_eq!((done.vi, done.cookie, done.result, done.immediate), (ours, 5, Ok(0), Some(7)));
        self.provider.destroy_vi(ours).unwrap();
    }
}

fn attributes(cq: CqId) -> ViAttributes {
    ViAttributes {
        reliability: Reliability::ReliableReception,
        tag: TAG,
        remote_access: BOTH,
        send_depth: 4,
        receive_depth: 4,
        send_cq: cq,
        receive_cq: cq,
    }
}

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let start = BootClock.now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(BootClock.now().since(start) < PATIENCE, "nothing happens any more");
        std::thread::yield_now();
    }
}

/// A client that speaks the protocol by hand.
struct Liar {
    socket: OwnedFd,
    channel: Memory,
    status: Memory,
    /// The other end of the doorbell.
    _doorbell: OwnedFd,
}

/// What a liar sends in its request, right unless a test changes it.
struct Offer {
    packet: Packet,
    fds: Vec<OwnedFd>,
}

fn file(memory: &Memory) -> OwnedFd {
    memory.fd().unwrap().try_clone_to_owned().unwrap()
}

fn unsealed(bytes: u64) -> OwnedFd {
    let fd = memfd_create("dyad-test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, i64::try_from(bytes).unwrap()).unwrap();
    fd
}

fn bytes(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

impl Liar {
    fn new(server: &Server) -> (Self, Offer) {
        let socket = socket::connect_to(server.path("server").to_str().unwrap()).unwrap();
        let memory = |len| Memory::shared("dyad-liar", bytes(len), HugePages::No).unwrap();
        let (channel, status) = (memory(GEOMETRY.channel_bytes()), memory(SHAPE.bytes()));
        let (ours, theirs) = socket::doorbell().unwrap();
        let request = Request {
            discriminator: SERVICE,
            timeout_ms: 60_000,
            vi: ViId(0),
            shape: SHAPE,
            geometry: GEOMETRY,
            reliability: Reliability::ReliableReception,
            private_data: PrivateData::new(),
        };
        status.store_u64(SHAPE.vi(ViId(0)).unwrap(), open_word(0)).unwrap();
        let offer =
            Offer { packet: Control::Request(request).encode(), fds: vec![file(&channel), file(&status), theirs] };
        (Self { socket, channel, status, _doorbell: ours }, offer)
    }

    fn say(&self, packet: &Packet, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        socket::send_packet(&self.socket, packet, &fds).unwrap();
    }

    /// What the server says next; `None` if it hung up.
    fn hear(&self, server: &mut Server) -> Option<(Control, Vec<OwnedFd>)> {
        let received = wait(|| {
            server.provider.poll();
            match socket::receive_packet(&self.socket) {
                Ok(received) => Some(Some(received)),
                Err(Errno::EAGAIN) => None,
                Err(_) => Some(None),
            }
        })?;
        if received.bytes.is_empty() { None } else { Some((Control::parse(&received.bytes).unwrap(), received.fds)) }
    }

    /// Connects honestly; everything after it may be a lie.
    fn connected(server: &mut Server) -> (Self, ViId, Vec<OwnedFd>) {
        let (liar, offer) = Self::new(server);
        liar.say(&offer.packet, &offer.fds);
        let vi = server.accept();
        let Some((Control::Accept { .. }, fds)) = liar.hear(server) else { panic!("it accepts") };
        liar.say(&Control::Confirm.encode(), &[]);
        assert!(matches!(server.event(), Event::Established { vi: established, .. } if established == vi));
        (liar, vi, fds)
    }

    /// Writes an entry into its ring: number, length, flags, and how far it claims to be with the server's ring.
    fn entry(&self, number: u32, len: u32, flags: u8, consumed: u32) {
        let at = GEOMETRY.ring(Side::Client).entries + 128 * u64::from(number);
        self.channel.store_u64(at + ENTRY_WORDS, u64::from(consumed) << 32).unwrap();
        let first = u64::from(flags) << 56 | u64::from(len) << 32 | u64::from(number + 1);
        self.channel.store_u64(at + ENTRY_STAMP, first).unwrap();
    }
}

#[test]
fn an_address_has_one_owner_and_outlives_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server");
    let first = ShmProvider::new(&path, 1, ShmLimits::default()).unwrap();
    let second = ShmProvider::new(&path, 2, ShmLimits::default()).unwrap_err();
    assert_eq!(second, ShmError::Agent(Errno::EADDRINUSE));
    drop(first);
    // What a killed process leaves behind: a socket that nobody listens at.
    drop(socket::listen_at(&path).unwrap());
    assert!(path.exists());
    drop(ShmProvider::new(&path, 3, ShmLimits::default()).unwrap());
    assert!(!path.exists());
    let odd = ShmLimits { ring_entries: 100, ..ShmLimits::default() };
    assert_eq!(ShmProvider::new(&path, 4, odd).unwrap_err(), ShmError::Geometry);
}

#[test]
fn garbage_instead_of_a_request_is_dropped() {
    let mut server = Server::new();
    let (_, offer) = Liar::new(&server);
    let mut wrong_version = offer.packet;
    wrong_version[4] = 2;
    let mut wrong_geometry = offer.packet;
    wrong_geometry[24] = 7;
    let mut wrong_level = offer.packet;
    wrong_level[49] = 9;
    let confirm = Control::Confirm.encode();
    for packet in [[0; PACKET_BYTES], [0xff; PACKET_BYTES], wrong_version, wrong_geometry, wrong_level, confirm] {
        let (liar, offer) = Liar::new(&server);
        liar.say(&packet, &offer.fds);
        assert!(liar.hear(&mut server).is_none());
    }
    let (liar, offer) = Liar::new(&server);
    liar.say(&offer.packet, &offer.fds[..2]);
    assert!(liar.hear(&mut server).is_none(), "a descriptor is missing");
    server.still_serves();
}

#[test]
fn files_that_could_fault_are_refused() {
    let mut server = Server::new();
    let lies: [(&str, usize, OwnedFd); 5] = [
        ("a channel that is not sealed", 0, unsealed(GEOMETRY.channel_bytes())),
        ("a channel that is too short", 0, file(&Memory::shared("short", 4096, HugePages::No).unwrap())),
        ("a status that is not sealed", 1, unsealed(SHAPE.bytes())),
        ("a status that is too short", 1, file(&Memory::shared("short", 4096, HugePages::No).unwrap())),
        ("a status that is no memory", 1, std::fs::File::open("/dev/zero").unwrap().into()),
    ];
    for (what, place, fd) in lies {
        let (liar, mut offer) = Liar::new(&server);
        offer.fds[place] = fd;
        liar.say(&offer.packet, &offer.fds);
        let answer = liar.hear(&mut server).map(|(control, _)| control);
        let refused = Control::Refuse { why: RefusedReason::Mismatch, private_data: PrivateData::new() };
        assert_eq!(answer, Some(refused), "{what}");
    }
    server.still_serves();
}

#[test]
fn huge_pages_go_to_nobody_and_come_from_nobody() {
    let mut server = Server::new();
    let huge = Memory::shared("dyad-test", 2 << 20, HugePages::IfAvailable).unwrap();
    if !huge.huge_pages() {
        return; // this machine has none
    }
    assert!(matches!(server.provider.register(&huge, TAG, READ), Err(ResourceError::State(_))));
    server.provider.register(&huge, TAG, RemoteAccess::default()).unwrap();
    let (liar, vi, _) = Liar::connected(&mut server);
    let region = RegionHandle { incarnation: 1, index: 0 };
    liar.say(&Control::Export { region, len: 2 << 20, access: BOTH }.encode(), &[file(&huge)]);
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    server.still_serves();
}

#[test]
fn a_vi_outside_its_own_table_is_refused() {
    let mut server = Server::new();
    let (liar, mut offer) = Liar::new(&server);
    offer.packet[16] = 1;
    liar.say(&offer.packet, &offer.fds);
    assert!(matches!(liar.hear(&mut server), Some((Control::Refuse { why: RefusedReason::Mismatch, .. }, _))));
    server.still_serves();
}

#[test]
fn a_lie_in_the_ring_ends_the_connection() {
    type Lie = (&'static str, fn(&Liar));
    let lies: [Lie; 7] = [
        ("an unknown flag", |liar| liar.entry(0, 8, 0x80, 0)),
        ("more payload than fits", |liar| liar.entry(0, GEOMETRY.payload_max() + 1, 0, 0)),
        ("a part of nothing", |liar| liar.entry(0, 0, 1, 0)),
        ("a part with immediate data", |liar| liar.entry(0, 8, 3, 0)),
        ("a notice with payload", |liar| liar.entry(0, 8, 6, 0)),
        ("more consumed than was sent", |liar| liar.entry(0, 0, 0, 1)),
        ("a notice in the middle of a message", |liar| {
            liar.entry(0, 8, 1, 0);
            liar.entry(1, 0, 6, 0);
        }),
    ];
    let mut server = Server::new();
    for (what, lie) in lies {
        let (liar, vi, _) = Liar::connected(&mut server);
        server.provider.post_receive(vi, &[server.memory.segment(0, 64).unwrap()], 1).unwrap();
        lie(&liar);
        assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol }, "{what}");
        assert_eq!(server.completion().result, Err(DescriptorError::Flushed), "{what}");
        server.provider.destroy_vi(vi).unwrap();
    }
    // The same in the word that stands for itself.
    let (liar, vi, _) = Liar::connected(&mut server);
    let nothing = Descriptor { operation: SendOperation::Send, segments: &[], immediate: None, cookie: 1 };
    server.provider.post_send(vi, &nothing).unwrap();
    liar.channel.store_u32(GEOMETRY.ring(Side::Server).consumed, 2).unwrap();
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    assert_eq!(server.completion().result, Err(DescriptorError::Flushed));
    server.still_serves();
}

#[test]
fn a_lie_to_the_agent_ends_the_connection() {
    let region = RegionHandle { incarnation: 1, index: 0 };
    let export = |region, len| Control::Export { region, len, access: BOTH }.encode();
    let good = || vec![file(&Memory::shared("region", 4096, HugePages::No).unwrap())];
    let lies: [(&str, Packet, Vec<OwnedFd>); 6] = [
        ("garbage", [0x11; PACKET_BYTES], vec![]),
        ("a region that is not sealed", export(region, 4096), vec![unsealed(4096)]),
        ("a region larger than its file", export(region, 4097), good()),
        ("a region without a file", export(region, 4096), vec![]),
        ("a region outside its own table", export(RegionHandle { index: 4, ..region }, 4096), good()),
        ("a second confirm", Control::Confirm.encode(), vec![]),
    ];
    let mut server = Server::new();
    for (what, packet, fds) in lies {
        let (liar, vi, _) = Liar::connected(&mut server);
        liar.say(&packet, &fds);
        assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol }, "{what}");
        assert!(server.provider.is_reachable(&server.memory), "{what}: it did not let go");
        server.provider.destroy_vi(vi).unwrap();
    }
    let (liar, vi, _) = Liar::connected(&mut server);
    for index in 0..=u32::from(SHAPE.regions) {
        liar.say(&export(RegionHandle { index, ..region }, 4096), &good());
    }
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol }, "more regions than it has");
    server.still_serves();
}

#[test]
fn a_region_that_is_announced_and_never_comes_is_waited_for_so_long_and_no_longer() {
    let mut server = Server::new();
    let (liar, vi, _) = Liar::connected(&mut server);
    liar.channel.store_u32(Geometry::announced(Side::Client), 1 + 1).unwrap();
    let at = RemoteAddress { region: RegionHandle { incarnation: 1, index: 0 }, offset: 0 };
    let segments = [server.memory.segment(0, 8).unwrap()];
    let operation = SendOperation::RdmaWrite(at);
    server.provider.post_send(vi, &Descriptor { operation, segments: &segments, immediate: None, cookie: 1 }).unwrap();
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    assert_eq!(server.completion().result, Err(DescriptorError::Flushed));
}

#[test]
fn a_liar_that_says_it_is_closed_only_fails_itself() {
    let mut server = Server::new();
    let (liar, vi, _) = Liar::connected(&mut server);
    let region = RegionHandle { incarnation: 1, index: 0 };
    let memory = Memory::shared("region", 4096, HugePages::No).unwrap();
    liar.say(&Control::Export { region, len: 4096, access: BOTH }.encode(), &[file(&memory)]);
    liar.channel.store_u32(Geometry::announced(Side::Client), 1 + 1).unwrap();
    let segments = [server.memory.segment(0, 8).unwrap()];
    let operation = SendOperation::RdmaWrite(RemoteAddress { region, offset: 0 });
    let post = |cookie| Descriptor { operation, segments: &segments, immediate: None, cookie };
    liar.status.store_u64(SHAPE.region(region).unwrap(), open_word(region.index)).unwrap();
    server.provider.post_send(vi, &post(1)).unwrap();
    assert_eq!(server.completion().result, Ok(8));
    liar.status.store_u64(SHAPE.region(region).unwrap(), 0).unwrap();
    server.provider.post_send(vi, &post(2)).unwrap();
    assert_eq!(server.completion().result, Err(DescriptorError::RemoteProtection));
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    server.still_serves();
}

#[test]
fn a_peer_receives_nothing_that_is_not_its_own() {
    let mut server = Server::new();
    let secret = |text: &[u8]| {
        let memory = Memory::shared("dyad-test", 4096, HugePages::No).unwrap();
        memory.write(100, text).unwrap();
        memory
    };
    let (private, foreign, readable) = (secret(b"SECRET private"), secret(b"SECRET foreign"), secret(b"to be read"));
    server.memory.write(100, b"to be written").unwrap();
    server.provider.register(&private, TAG, RemoteAccess::default()).unwrap();
    server.provider.register(&foreign, ProtectionTag(2), BOTH).unwrap();
    server.provider.register(&readable, TAG, READ).unwrap();
    let (liar, vi, mut files) = Liar::connected(&mut server);
    let mut writable = vec![false; files.len()];
    for _ in 0..2 {
        let Some((Control::Export { access, .. }, fds)) = liar.hear(&mut server) else { panic!("a region") };
        writable.extend(fds.iter().map(|_| access.write));
        files.extend(fds);
    }
    server.provider.destroy_vi(vi).unwrap();
    assert!(matches!(liar.hear(&mut server), Some((Control::Bye { .. }, fds)) if fds.is_empty()), "and no more files");
    // The status goes to all peers: nobody can make a writable mapping of it, whoever he is.
    let mut anyhow = std::fs::OpenOptions::new();
    let again =
        anyhow.read(true).write(true).open(format!("/proc/self/fd/{}", files[0].as_raw_fd())).map(OwnedFd::from);
    assert!(again.is_err() || Memory::from_fd(again.unwrap(), 4096, true).is_err());
    let mut texts = Vec::new();
    for (fd, writable) in files.into_iter().zip(writable) {
        let len = u64::try_from(nix::sys::stat::fstat(&fd).unwrap().st_size).unwrap();
        let as_writer = Memory::from_fd(fd.try_clone().unwrap(), len, true);
        assert_eq!(as_writer.is_ok(), writable);
        assert!(writable || as_writer.unwrap_err() == MapError::Os(Errno::EACCES));
        let memory = Memory::from_fd(fd, len, false).unwrap();
        let mut all = vec![0; bytes(len)];
        memory.read(0, &mut all).unwrap();
        assert!(!all.windows(6).any(|window| window == b"SECRET"), "something that is not its own");
        texts.push(String::from_utf8_lossy(&all[100..113]).into_owned());
    }
    assert_eq!(texts[1..], ["to be written".to_owned(), "to be read\0\0\0".to_owned()], "the status, then its regions");
}

/// A client with so many VIs, all connected to the server.
fn crowd(server: &mut Server, count: usize) -> (ShmProvider, CqId, Vec<(ViId, ViId)>) {
    let mut client = ShmProvider::new(&server.path("client"), 1, ShmLimits::default()).unwrap();
    let cq = client.create_cq(1024).unwrap();
    server.cq = server.provider.create_cq(1024).unwrap();
    let to = NetAddress { host: server.path("server").to_str().unwrap().to_owned(), discriminator: SERVICE };
    let vis = (0..count).map(|_| {
        let vi = client.create_vi(&attributes(cq)).unwrap();
        client.connect(vi, &to, b"", Duration::from_secs(30)).unwrap();
        let ours = server.accept();
        assert!(matches!(server.event(), Event::Established { vi, .. } if vi == ours));
        wait(|| {
            client.poll();
            let event = client.poll_event(&mut Context::from_waker(Waker::noop()));
            matches!(event, Poll::Ready(Event::Established { .. })).then_some(())
        });
        (vi, ours)
    });
    let vis = vis.collect();
    (client, cq, vis)
}

fn lively(provider: &ShmProvider) -> usize {
    let state = provider.0.state.borrow();
    (0..).map_while(|at| state.linked.lively(at)).count()
}

/// Polls until nothing changes any more.
fn grow_quiet(provider: &mut ShmProvider) {
    for _ in 0..2 * u32::from(attention::PATIENCE) {
        provider.poll();
    }
}

const NOTHING: Descriptor<'_> =
    Descriptor { operation: SendOperation::Send, segments: &[], immediate: Some(7), cookie: 1 };

#[test]
fn what_a_turn_looks_at_does_not_grow_with_idle_vis_and_no_message_is_missed() {
    const VIS: usize = 3 * attention::FEW;
    let mut server = Server::new();
    // Those that were connected first may be quiet already: how long the others took, only the machine knows.
    let (client, _, vis) = crowd(&mut server, VIS);
    grow_quiet(&mut server.provider);
    assert_eq!(lively(&server.provider), attention::FEW);
    // Awake it finds a message on any of them within a round of glances.
    for &(_, to) in &vis {
        server.provider.post_receive(to, &[], 5).unwrap();
    }
    assert_eq!(lively(&server.provider), VIS, "who posts a receive looks");
    grow_quiet(&mut server.provider);
    assert_eq!(lively(&server.provider), attention::FEW);
    for &(from, to) in &vis {
        client.post_send(from, &NOTHING).unwrap();
        (0..VIS.div_ceil(attention::GLANCES)).for_each(|_| assert!(server.provider.poll() < 2));
        let done = server.provider.poll_completion(server.cq, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(done, Poll::Ready(done) if done.vi == to && done.immediate == Some(7)), "{done:?}");
    }
}

#[test]
fn a_sleeper_is_rung_for_a_quiet_vi() {
    const VIS: usize = attention::FEW + 3 * attention::GLANCES;
    let mut server = Server::new();
    let (mut client, _, vis) = crowd(&mut server, VIS);
    for &(_, to) in &vis {
        server.provider.post_receive(to, &[], 5).unwrap();
    }
    let mut unseen = 0;
    for (round, &(from, to)) in vis.iter().enumerate() {
        grow_quiet(&mut server.provider);
        let mut send = || {
            client.post_send(from, &NOTHING).unwrap();
            client.poll();
        };
        // As a reactor does: it looks once more, and at few. The message comes before it says so, or after it looked.
        let early = round % 2 == 0;
        if early {
            send();
        }
        server.provider.arm();
        let found = server.provider.poll() > 0;
        if !early {
            send();
        }
        unseen += usize::from(early && !found);
        let rung = |provider: &ShmProvider| {
            let fd = provider.fd().unwrap();
            let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() > 0
        };
        assert!(found || rung(&server.provider), "it would sleep for ever");
        server.provider.disarm();
        assert!(!rung(&server.provider), "and then it would never sleep again");
        server.provider.poll();
        let done = server.provider.poll_completion(server.cq, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(done, Poll::Ready(done) if done.vi == to), "{done:?}");
    }
    assert!(unseen > 0, "each was looked at before the sleep: this tested nothing");
}
