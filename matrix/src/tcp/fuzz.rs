//! What a peer can do to us, from bytes that anybody made up: nothing of it may panic, hang, or lead outside what it may
//! reach. proptest runs these in every test; `fuzz/` has a target for each.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::task::{Context, Poll, Waker};

use super::flow::{Around, Flow, Progress, ReceiveItem, SendItem, Stop};
use super::frame::{End, HEAD_BYTES, Head, Kind, PACKET_BYTES, Packet};
use super::incoming::Pulled;
use super::wire::Wire;
use crate::completion::CompletionQueue;
use crate::memory::{Memory, Segment};
use crate::provider::{
    CqId, ProtectionTag, RegionHandle, Reliability, RemoteAccess, RemoteAddress, SendOperation, ViAttributes, ViId,
    WorkQueue,
};
use crate::regions::{Region, Regions};
use crate::slots::Slots;
use crate::socket::Socket;
use crate::work_items::WorkItems;

/// Reads `bytes` as a packet and as the head of a frame.
///
/// # Panics
/// If the reader has a fault.
pub fn wire(bytes: &[u8]) {
    if let Some(packet) = bytes.first_chunk::<PACKET_BYTES>()
        && let Ok(understood) = Packet::parse(packet)
    {
        assert_eq!(&understood.encode(), packet, "what is understood can be said");
    }
    if let Some(head) = bytes.first_chunk::<HEAD_BYTES>()
        && let Ok(understood) = Head::parse(head)
    {
        assert_eq!(&understood.encode(), head, "what is understood can be said");
    }
}

/// Plays `bytes` as a story: what we do with a connection, and what its peer sends meanwhile.
///
/// # Panics
/// If we have a fault.
pub fn connection(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut victim = Victim::new();
    while !story.0.is_empty() && victim.suffer(&mut story).is_ok() {}
    victim.check_memory();
}

/// What is left of the bytes; zeros behind their end.
struct Story<'a>(&'a [u8]);

impl Story<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const VI: ViId = ViId(0);
const DEPTH: u16 = 4;
/// Each receive has so many bytes to itself, of which it names a part: the rest stays zero.
const PLACE: u64 = 8192;
const PLACES: usize = DEPTH as usize;
/// Bytes of the region that the peer may reach, of which it may not reach the memory behind.
const OPEN: u64 = 4096;

/// One end of a connection, driven as the provider does; the other end is the story's.
struct Victim {
    flow: Flow,
    attributes: ViAttributes,
    sends: WorkItems<SendItem>,
    receives: WorkItems<ReceiveItem>,
    cqs: Slots<CompletionQueue>,
    regions: Regions,
    memory: Memory,
    /// Registered, for nobody else.
    closed: Memory,
    open: RegionHandle,
    wire: Wire,
    peer: TcpStream,
    copied: u64,
    /// Cookies of what was posted and has not completed.
    posted_sends: VecDeque<u64>,
    posted_receives: VecDeque<u64>,
    posted: u64,
    /// The most that was named of each receive's place.
    named: [u64; PLACES],
}

impl Victim {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let socket = Socket::new(listener.accept().expect("it connected").0).expect("a fresh socket");
        let wire = Wire::new(socket, None);
        peer.set_nonblocking(true).expect("a fresh socket");
        let mut cqs = Slots::new(1);
        let cq = CqId(cqs.insert(CompletionQueue::new(2 * u32::from(DEPTH))).expect("there is room"));
        let attributes = ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: TAG,
            remote_access: BOTH,
            send_depth: DEPTH,
            receive_depth: DEPTH,
            send_cq: cq,
            receive_cq: cq,
        };
        let mut regions = Regions::new(1, 3);
        let private = |len: u64| Memory::anonymous(usize::try_from(len).expect("it is small"));
        let (memory, closed, open) = (private(PLACES as u64 * PLACE), private(OPEN), private(OPEN));
        let mut register = |memory: &Memory, access| {
            regions.register(Region { memory: memory.clone(), tag: TAG, access }).expect("there is room")
        };
        register(&memory, RemoteAccess::default());
        register(&closed, RemoteAccess::default());
        let open = register(&open, BOTH);
        Self {
            flow: Flow::new(0),
            attributes,
            sends: WorkItems::new(DEPTH),
            receives: WorkItems::new(DEPTH),
            cqs,
            regions,
            memory,
            closed,
            open,
            wire,
            peer,
            copied: 0,
            posted_sends: VecDeque::new(),
            posted_receives: VecDeque::new(),
            posted: 0,
            named: [0; PLACES],
        }
    }

    /// The next thing that happens.
    fn suffer(&mut self, story: &mut Story<'_>) -> Result<(), Stop> {
        match story.byte() % 6 {
            0 => {
                let len = usize::from(story.byte());
                let bytes: Vec<u8> = (0..len).map(|_| story.byte()).collect();
                self.send_to_us(&bytes);
            }
            1 | 2 => self.frame(story),
            3 => self.receive(story),
            4 => self.send(story),
            _ => {}
        }
        self.turn()
    }

    fn send_to_us(&mut self, bytes: &[u8]) {
        // If it does not all fit, less was sent.
        let _ = self.peer.write(bytes);
    }

    /// A frame whose head can be read.
    fn frame(&mut self, story: &mut Story<'_>) {
        let (kind, len, flags) = (story.byte(), u32::from(story.u16() % 9000), story.byte());
        let region =
            if flags & 4 == 0 { self.open } else { RegionHandle { index: u32::from(story.byte()), ..self.open } };
        let at = RemoteAddress { region, offset: u64::from(story.u16()) };
        let kind = match kind % 6 {
            0 => Kind::Message,
            1 => Kind::Write { to: at, rest: len + u32::from(story.byte()) },
            2 => Kind::Read { from: at },
            3 => Kind::Answer,
            4 => Kind::Tell,
            _ => Kind::End(End::Length),
        };
        let more = match kind {
            Kind::Write { rest, .. } => len < rest,
            _ => flags & 1 != 0,
        };
        let payload = vec![0xaa; usize::try_from(len).expect("it is small")];
        let head = Head {
            kind,
            len: if matches!(kind, Kind::Tell | Kind::End(_)) { 0 } else { len },
            more,
            immediate: (flags & 2 != 0).then_some(5),
            crc: if flags & 8 != 0 { 1 } else { crc32c::crc32c(&payload) },
            landed: u32::from(story.byte() % 4),
            granted: u32::from(story.byte() % 8),
        };
        let payload = if head.payload() > 0 { &payload[..] } else { &[] };
        self.send_to_us(&[&head.encode()[..], payload].concat());
    }

    fn receive(&mut self, story: &mut Story<'_>) {
        if self.receives.is_full() {
            return;
        }
        let (place, len) = (self.posted % PLACES as u64, story.u16() % 5000);
        let named = &mut self.named[usize::try_from(place).expect("it is small")];
        *named = (*named).max(u64::from(len));
        let (first, start) = (u32::from(len / 3), place * PLACE);
        let rest = Segment { memory: self.memory.id(), offset: start + u64::from(first), len: u32::from(len) - first };
        let segments = [Segment { memory: self.memory.id(), offset: start, len: first }, rest];
        self.receives.push(ReceiveItem { cookie: self.posted }, &segments);
        self.flow.receiving.grant();
        self.posted_receives.push_back(self.posted);
        self.posted += 1;
    }

    fn send(&mut self, story: &mut Story<'_>) {
        if self.sends.is_full() {
            return;
        }
        let (how, len) = (story.byte(), u32::from(story.u16() % 3000) + 1);
        let at = RemoteAddress { region: RegionHandle { incarnation: 1, index: 0 }, offset: 0 };
        let operation = match how % 3 {
            0 => SendOperation::RdmaWrite(at),
            // Into the second half of the first place, which no receive names.
            1 => SendOperation::RdmaRead(at),
            _ => SendOperation::Send,
        };
        let segments = [Segment { memory: self.memory.id(), offset: 5000, len }];
        let immediate = (how > 127 && how % 3 != 1).then_some(9);
        let item = SendItem { cookie: self.posted, operation, immediate, len, progress: Progress::Framed(0) };
        self.sends.push(item, &segments);
        self.posted_sends.push_back(self.posted);
        self.posted += 1;
    }

    fn turn(&mut self) -> Result<(), Stop> {
        let Self { flow, attributes, sends, receives, regions, cqs, copied, wire, .. } = self;
        let mut around = Around { vi: VI, attributes, sends, receives, regions, cqs, copied };
        let mut exchange = || -> Result<(), Stop> {
            while matches!(flow.pull(wire, &mut around)?, Pulled::All | Pulled::Some) {
                flow.digest(&mut around)?;
            }
            flow.complete(&mut around)?;
            flow.pack(&mut around, true)?;
            if !flow.is_flushed() {
                flow.transmit(wire, &mut around)?;
            }
            Ok(())
        };
        let exchanged = exchange();
        let cq = self.attributes.send_cq.0;
        let polled = |cqs: &mut Slots<CompletionQueue>| {
            cqs.get_mut(cq).expect("it is there").poll(&mut Context::from_waker(Waker::noop()))
        };
        while let Poll::Ready(done) = polled(&mut self.cqs) {
            let (used, posted) = match done.queue {
                WorkQueue::Send => (&mut self.sends.used, &mut self.posted_sends),
                WorkQueue::Receive => (&mut self.receives.used, &mut self.posted_receives),
            };
            *used -= 1;
            assert_eq!(posted.pop_front(), Some(done.cookie), "each completes once, in order");
            assert!(done.result.is_err() || done.result.is_ok_and(|len| len <= 5000));
        }
        // What we sent is of no interest.
        let mut bytes = [0; 1 << 16];
        while self.peer.read(&mut bytes).is_ok_and(|len| len > 0) {}
        exchanged
    }

    /// Nothing landed where no descriptor pointed.
    fn check_memory(&self) {
        let mut bytes = vec![0; usize::try_from(PLACE).expect("it is small")];
        for (place, &named) in (0..).zip(&self.named) {
            self.memory.look(place * PLACE, &mut bytes).expect("in range");
            let named = usize::try_from(named).expect("it is small");
            let stray = bytes[named..].iter().zip(named..).find(|(byte, at)| **byte != 0 && (place > 0 || *at < 5000));
            assert_eq!(stray, None, "a stray byte in place {place}, of which {named} bytes were named");
        }
        let mut bytes = vec![0; usize::try_from(OPEN).expect("it is small")];
        self.closed.look(0, &mut bytes).expect("in range");
        assert!(bytes.iter().all(|&byte| byte == 0), "a byte in memory that is nobody's but ours");
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::num::u8::ANY;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_safely(bytes in vec(ANY, 0..140)) {
            super::wire(&bytes);
        }

        #[test]
        fn whatever_a_peer_sends_harms_only_itself(bytes in vec(ANY, 0..300)) {
            super::connection(&bytes);
        }

        /// Mostly good frames: the stories that go on for long.
        #[test]
        fn almost_honest_peers_are_survived(steps in vec((0_u8..9, 0_u16..3000, 0_u8..4, 0_u8..6), 0..60)) {
            let (mut story, mut sent, mut receives) = (Vec::new(), 0_u8, 0_u8);
            for (step, len, flags, extra) in steps {
                let [l0, l1] = len.to_le_bytes();
                let frame = |kind: u8, flags: u8| [1, kind, l0, l1, flags, 0, 0];
                match step {
                    0 => story.extend([3, l0, l1]),
                    1 => {
                        story.extend([4, extra, l0, l1]);
                        sent += 1;
                    }
                    2 | 3 => story.extend([&frame(0, flags)[..], &[sent.min(3), receives]].concat()),
                    4 | 5 => story.extend([&frame(1, 0)[..], &[extra, sent.min(3), receives]].concat()),
                    6 => story.extend([&frame(2, 8)[..], &[sent.min(3), receives]].concat()),
                    7 => story.extend([&frame(3, 0)[..], &[sent.min(3), receives]].concat()),
                    _ => story.push(5),
                }
                receives = (receives + 1).min(7);
            }
            super::connection(&story);
        }
    }
}
