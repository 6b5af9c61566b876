//! Peers that lie, and addresses that are refused.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Source};

use super::frame::{End, HEAD_BYTES, Head, Kind, PACKET_BYTES, PAYLOAD_MAX, Packet, PacketBytes, READS_MAX};
use super::{Key, Security, TcpCounters, TcpError, TcpLimits, TcpProvider};
use crate::memory::Memory;
use crate::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PrivateData,
    ProtectionTag, Provider, RefusedReason, RegionHandle, Reliability, RemoteAccess, RemoteAddress, ResourceError,
    SendOperation, ViAttributes, ViId,
};

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const SERVICE: Discriminator = Discriminator(3);
const PATIENCE: Duration = Duration::from_secs(60);
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

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

struct Server {
    provider: TcpProvider,
    cq: CqId,
    memory: Memory,
    region: RegionHandle,
}

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let start = BootClock.now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(BootClock.now().since(start) < PATIENCE, "it takes too long");
        std::thread::yield_now();
    }
}

impl Server {
    fn new() -> Self {
        let provider = TcpProvider::new(LOCAL, 1, &Security::Loopback, TcpLimits::default()).unwrap();
        provider.listen(SERVICE).unwrap();
        let cq = provider.create_cq(64).unwrap();
        let memory = Memory::anonymous(4096);
        let region = provider.register(&memory, TAG, BOTH).unwrap();
        Self { provider, cq, memory, region }
    }

    fn event(&mut self) -> Event {
        wait(|| {
            self.provider.poll();
            match self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(event) => Some(event),
                Poll::Pending => None,
            }
        })
    }

    fn completion(&mut self) -> Completion {
        wait(|| {
            self.provider.poll();
            match self.provider.poll_completion(self.cq, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            }
        })
    }

    fn vi(&self) -> ViId {
        self.provider.create_vi(&attributes(self.cq)).unwrap()
    }

    /// Whatever somebody else did: an honest peer is served.
    fn still_serves(&mut self) {
        let (mut honest, vi) = Liar::connected(self);
        self.provider.post_receive(vi, &[self.memory.segment(0, 64).unwrap()], 77).unwrap();
        let head = Head { len: 2, crc: crc32c::crc32c(b"hi"), ..Head::bare(Kind::Message) };
        honest.send(&[&head.encode()[..], b"hi"].concat());
        let done = self.completion();
        assert_eq!((done.vi, done.cookie, done.result), (vi, 77, Ok(2)));
        self.provider.destroy_vi(vi).unwrap();
    }
}

/// The other end, byte by byte.
struct Liar(TcpStream);

impl Liar {
    fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.provider.local_address()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// So many bytes of the server, which is polled; `None` when it hangs up.
    fn hear<const N: usize>(&mut self, server: &mut Server) -> Option<[u8; N]> {
        let (mut bytes, mut have) = ([0; N], 0);
        wait(|| {
            server.provider.poll();
            match self.0.read(&mut bytes[have..]) {
                Ok(0) => return Some(None),
                Ok(len) => have += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Some(None),
            }
            (have == N).then_some(Some(bytes))
        })
    }

    fn hear_packet(&mut self, server: &mut Server) -> Option<Packet> {
        self.hear::<PACKET_BYTES>(server).map(|bytes| Packet::parse(&bytes).unwrap())
    }

    /// The next frame that is more than a tell.
    fn hear_head(&mut self, server: &mut Server) -> Option<Head> {
        loop {
            let head = Head::parse(&self.hear::<HEAD_BYTES>(server)?).unwrap();
            if head.kind != Kind::Tell {
                return Some(head);
            }
        }
    }

    fn connected(server: &mut Server) -> (Self, ViId) {
        let mut liar = Self::new(server);
        liar.send(&request().encode());
        let Event::Requested { request, .. } = server.event() else { panic!("a request") };
        let vi = server.vi();
        server.provider.accept(request, vi, b"welcome").unwrap();
        let welcome = PrivateData::from_slice(b"welcome").unwrap();
        assert_eq!(liar.hear_packet(server), Some(Packet::Accept { private_data: welcome }));
        liar.send(&Packet::Confirm.encode());
        assert_eq!(server.event(), Event::Established { vi, private_data: PrivateData::new() });
        (liar, vi)
    }
}

fn request() -> Packet {
    Packet::Request {
        discriminator: SERVICE,
        timeout_ms: 60_000,
        reliability: Reliability::ReliableReception,
        private_data: PrivateData::new(),
    }
}

/// With its CRC made right again.
fn changed(packet: &Packet, at: usize, byte: u8) -> PacketBytes {
    let mut bytes = packet.encode();
    bytes[at] = byte;
    let crc = crc32c::crc32c(&bytes[..PACKET_BYTES - 4]);
    bytes[PACKET_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn beyond_this_host_nothing_goes_unencrypted_unless_somebody_says_so() {
    let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let limits = TcpLimits::default();
    assert_eq!(TcpProvider::new(anywhere, 1, &Security::Loopback, limits).unwrap_err(), TcpError::NeedsKey(anywhere));
    TcpProvider::new(anywhere, 1, &Security::TrustedNetwork, limits).unwrap();
    let server = Server::new();
    let vi = server.vi();
    let to = NetAddress { host: "192.0.2.1:9".to_owned(), discriminator: SERVICE };
    let refused = server.provider.connect(vi, &to, b"", PATIENCE);
    assert!(matches!(refused, Err(ResourceError::State(why)) if why.contains("key")), "{refused:?}");
    let again = TcpProvider::new(server.provider.local_address(), 1, &Security::Loopback, limits).unwrap_err();
    assert!(matches!(again, TcpError::Listen(_, nix::errno::Errno::EADDRINUSE)), "{again}");
    let silence = Duration::from_secs(1);
    assert_eq!(
        TcpProvider::new(LOCAL, 1, &Security::Loopback, TcpLimits { silence, ..limits }).unwrap_err(),
        TcpError::Silence
    );
}

#[test]
fn a_name_is_not_an_address() {
    let mut server = Server::new();
    let vi = server.vi();
    let to = NetAddress { host: "localhost:9".to_owned(), discriminator: SERVICE };
    server.provider.connect(vi, &to, b"", PATIENCE).unwrap();
    assert!(matches!(server.event(), Event::Refused { why: RefusedReason::NoListener, .. }));
}

#[test]
fn garbage_instead_of_a_request_is_dropped_and_counted() {
    let mut server = Server::new();
    let mut cut = [0; PACKET_BYTES];
    cut[..64].copy_from_slice(&request().encode()[..64]);
    let accept = Packet::Accept { private_data: PrivateData::new() }.encode();
    let wrong =
        [[0; PACKET_BYTES], [0xff; PACKET_BYTES], cut, accept, changed(&request(), 7, 9), changed(&request(), 100, 1)];
    for (count, bytes) in (1..).zip(wrong) {
        let mut liar = Liar::new(&server);
        liar.send(&bytes);
        assert_eq!(liar.hear_packet(&mut server), None);
        assert_eq!(server.provider.counters().strangers, count);
    }
    // And one that hangs up in the middle.
    let mut liar = Liar::new(&server);
    liar.send(&request().encode()[..100]);
    drop(liar);
    wait(|| {
        server.provider.poll();
        (server.provider.counters().strangers == 7).then_some(())
    });
    server.still_serves();
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let mut server = Server::new();
    let refused = |why| Some(Packet::Refuse { why, private_data: PrivateData::new() });
    for (bytes, why) in [
        (changed(&request(), 4, 2), RefusedReason::Mismatch),
        (changed(&request(), 7, 1), RefusedReason::Mismatch),
        (changed(&request(), 8, 4), RefusedReason::NoListener),
    ] {
        let mut liar = Liar::new(&server);
        liar.send(&bytes);
        assert_eq!(liar.hear_packet(&mut server), refused(why));
        assert_eq!(liar.hear_packet(&mut server), None, "and it hangs up");
    }
    let counters = server.provider.counters();
    assert_eq!((counters.other_versions, counters.strangers, counters.garbage), (1, 0, 0));
    server.still_serves();
}

#[test]
fn a_server_that_answers_nonsense_is_no_server() {
    let mut client = Server::new();
    let listener = TcpListener::bind(LOCAL).unwrap();
    let to = NetAddress { host: listener.local_addr().unwrap().to_string(), discriminator: SERVICE };
    let other_version = changed(&Packet::Confirm, 4, 9);
    for answer in [Some([7; PACKET_BYTES]), Some(other_version), Some(request().encode()), None] {
        let vi = client.vi();
        client.provider.connect(vi, &to, b"", PATIENCE).unwrap();
        let mut stream = listener.accept().unwrap().0;
        if let Some(answer) = answer {
            stream.write_all(&answer).unwrap();
        } else {
            drop(stream);
        }
        let why = if answer.is_some() { RefusedReason::Mismatch } else { RefusedReason::NoListener };
        assert_eq!(client.event(), Event::Refused { vi, why, private_data: PrivateData::new() });
        client.provider.destroy_vi(vi).unwrap();
    }
    let counters = client.provider.counters();
    assert_eq!((counters.other_versions, counters.strangers), (1, 2));
}

#[test]
fn who_connects_and_says_nothing_is_dropped() {
    let mut server = Server::new();
    let mut liar = Liar::new(&server);
    assert_eq!(liar.hear_packet(&mut server), None);
    assert_eq!(server.provider.counters().strangers, 1);
}

#[test]
fn a_lie_ends_the_connection_and_nothing_else() {
    let mut server = Server::new();
    let at = RemoteAddress { region: server.region, offset: 0 };
    let with_crc = |mut bytes: [u8; HEAD_BYTES]| {
        let crc = crc32c::crc32c(&bytes[..HEAD_BYTES - 4]);
        bytes[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes.to_vec()
    };
    let part = Head { len: 1, more: true, crc: crc32c::crc32c(b"x"), ..Head::bare(Kind::Message) }.encode();
    let write = Head { len: 1, crc: crc32c::crc32c(b"x"), ..Head::bare(Kind::Write { to: at, rest: 1 }) };
    let read = Head { len: 8, ..Head::bare(Kind::Read { from: at }) }.encode();
    let mut zero_kind = Head::bare(Kind::Tell).encode();
    zero_kind[0] = 0;
    let oversized = Head { len: PAYLOAD_MAX + 1, ..Head::bare(Kind::Message) }.encode();
    let lies: [(&str, Vec<u8>); 11] = [
        ("garbage", vec![0x5a; 1000]),
        ("an unknown kind", with_crc(zero_kind)),
        ("a head with a wrong CRC", part[..44].iter().copied().chain([0; 4]).collect()),
        ("more payload than fits", oversized.to_vec()),
        ("a wrong CRC", [&Head { crc: 1, ..write }.encode()[..], b"x"].concat()),
        ("more landed than was sent", Head { landed: 1, ..Head::bare(Kind::Tell) }.encode().to_vec()),
        ("receives taken back", Head { granted: u32::MAX, ..Head::bare(Kind::Tell) }.encode().to_vec()),
        ("an answer to nothing", [&Head { kind: Kind::Answer, ..write }.encode()[..], b"x"].concat()),
        ("a write within a message", [&part[..], b"x", &write.encode(), b"x"].concat()),
        (
            "a second message for one receive",
            [&part[..], b"x"].concat().repeat(1).into_iter().chain(two_messages()).collect(),
        ),
        ("a packet", Packet::Confirm.encode().to_vec()),
    ];
    let count = u64::try_from(lies.len()).unwrap();
    for (what, bytes) in lies {
        let (mut liar, vi) = Liar::connected(&mut server);
        server.provider.post_receive(vi, &[server.memory.segment(0, 64).unwrap()], 1).unwrap();
        liar.send(&bytes);
        assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol }, "{what}");
        let end = liar.hear_head(&mut server).map(|head| head.kind);
        assert_eq!(end, Some(Kind::End(End::Fault)), "{what}");
        server.completion();
        server.provider.destroy_vi(vi).unwrap();
    }
    let TcpCounters { garbage, strangers, .. } = server.provider.counters();
    assert_eq!((garbage, strangers), (count, 0));
    // More reads than may be outstanding: the peer takes no answer, so they pile up.
    let (mut liar, vi) = Liar::connected(&mut server);
    liar.send(&read.repeat(READS_MAX + 2));
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    server.still_serves();
}

/// The rest of a message, and a whole one behind it.
fn two_messages() -> Vec<u8> {
    let last = Head { len: 1, crc: crc32c::crc32c(b"x"), ..Head::bare(Kind::Message) }.encode();
    [&last[..], b"x", &last, b"x"].concat()
}

#[test]
fn an_end_in_the_middle_of_a_frame_is_noticed() {
    let mut server = Server::new();
    let (mut liar, vi) = Liar::connected(&mut server);
    server.provider.post_receive(vi, &[server.memory.segment(0, 64).unwrap()], 1).unwrap();
    let head = Head { len: 10, ..Head::bare(Kind::Message) };
    liar.send(&[&head.encode()[..], b"half"].concat());
    drop(liar);
    assert_eq!(server.completion().result, Err(DescriptorError::Flushed));
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
    server.still_serves();
}

/// A provider with a key, and what it counted when it called, or was called by, one with another.
fn keyed(security: &Security) -> Server {
    let mut server = Server::new();
    server.provider = TcpProvider::new(LOCAL, 1, security, TcpLimits::default()).unwrap();
    server.provider.listen(SERVICE).unwrap();
    server.cq = server.provider.create_cq(64).unwrap();
    server.region = server.provider.register(&server.memory, TAG, BOTH).unwrap();
    server
}

/// The first event of the caller, while both are polled.
fn call(from: &mut Server, to: &mut Server) -> Event {
    let vi = from.vi();
    let address = NetAddress { host: to.provider.local_address().to_string(), discriminator: SERVICE };
    from.provider.connect(vi, &address, b"", PATIENCE).unwrap();
    wait(|| {
        from.provider.poll();
        to.provider.poll();
        if let Poll::Ready(Event::Requested { request, .. }) =
            to.provider.poll_event(&mut Context::from_waker(Waker::noop()))
        {
            to.provider.accept(request, to.vi(), b"").unwrap();
        }
        match from.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    })
}

#[test]
fn who_has_another_key_or_none_is_refused_and_counted() {
    let key = |byte| Security::Key(Key::from_secret(&[byte; 32]).unwrap());
    let mut server = keyed(&key(1));
    let (mut friend, mut stranger, mut plain) = (keyed(&key(1)), keyed(&key(2)), keyed(&Security::TrustedNetwork));
    assert!(matches!(call(&mut friend, &mut server), Event::Established { .. }));
    let mismatch = |event: &Event| matches!(event, Event::Refused { why: RefusedReason::Mismatch, .. });
    let event = call(&mut stranger, &mut server);
    assert!(mismatch(&event), "{event:?}");
    // It was the stranger that did not know the server, and told it.
    wait(|| {
        server.provider.poll();
        (server.provider.counters().wrong_keys == 1).then_some(())
    });
    assert_eq!(stranger.provider.counters().wrong_keys, 1);
    let event = call(&mut plain, &mut server);
    assert!(matches!(event, Event::Refused { .. }), "{event:?}");
    assert_eq!(server.provider.counters().wrong_keys, 2, "this one does not speak TLS");
    let event = call(&mut server, &mut plain);
    assert!(matches!(event, Event::Refused { .. }), "{event:?}");
    assert_eq!(plain.provider.counters().strangers, 1);
    assert!(matches!(call(&mut server, &mut friend), Event::Established { .. }));
    assert!(matches!(call(&mut friend, &mut server), Event::Established { .. }));
}

/// What landed before an end is complete, what stood behind it is not, and the one that failed says why.
#[test]
fn an_end_says_which_operation_failed() {
    let mut server = Server::new();
    let (mut liar, vi) = Liar::connected(&mut server);
    let to = RemoteAddress { region: RegionHandle { incarnation: 9, index: 9 }, offset: 0 };
    let segments = [server.memory.segment(0, 8).unwrap()];
    for cookie in 1..=3 {
        let operation = SendOperation::RdmaWrite(to);
        let descriptor = Descriptor { operation, segments: &segments, immediate: None, cookie };
        server.provider.post_send(vi, &descriptor).unwrap();
    }
    for _ in 0..3 {
        let head = liar.hear_head(&mut server).unwrap();
        assert_eq!((head.kind, head.len), (Kind::Write { to, rest: 8 }, 8));
        liar.hear::<8>(&mut server).unwrap();
    }
    liar.send(&Head { landed: 1, ..Head::bare(Kind::End(End::RemoteProtection)) }.encode());
    let results = [(); 3].map(|()| server.completion().result);
    assert_eq!(results, [Ok(8), Err(DescriptorError::RemoteProtection), Err(DescriptorError::Flushed)]);
    assert_eq!(server.event(), Event::Broken { vi, why: BrokenReason::Protocol });
}
