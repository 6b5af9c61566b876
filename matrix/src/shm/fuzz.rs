//! What a peer can do to us, from bytes that anybody made up: nothing of it may panic, hang, or lead outside what it may
//! reach. proptest runs these in every test; `fuzz/` has a target for each.

use super::agent::Wire;
use super::connection::{Link, Progress, ReceiveItem, SendItem};
use super::control::Control;
use super::layout::{ENTRY_BYTES, ENTRY_STAMP, ENTRY_WORDS, Geometry, STATUS_ASLEEP, Side, StatusShape, open_word};
use super::socket;
use super::state::Vi;
use crate::completion::CompletionQueue;
use crate::memory::{Memory, Segment};
use crate::provider::{
    BrokenReason, CqId, ProtectionTag, RegionHandle, Reliability, RemoteAccess, RemoteAddress, SendOperation,
    ViAttributes, ViId, WorkQueue,
};
use crate::regions::{Region, Regions};
use crate::slots::Slots;
use crate::vi_state::ViState;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// Reads `bytes` as a packet for the agent.
///
/// # Panics
/// If the reader has a fault.
pub fn control(bytes: &[u8]) {
    if let Ok(control) = Control::parse(bytes) {
        assert_eq!(Control::parse(&control.encode()), Ok(control), "what is understood can be said");
    }
}

/// Plays `bytes` as a story: what we do with a connection, and what its peer writes into ring and status meanwhile.
///
/// # Panics
/// If we have a fault.
pub fn ring(bytes: &[u8]) {
    let mut story = Story(bytes);
    let reliability = match story.byte() % 3 {
        0 => Reliability::UnreliableDelivery,
        1 => Reliability::ReliableDelivery,
        _ => Reliability::ReliableReception,
    };
    let mut victim = Victim::new(reliability);
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

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }
}

const GEOMETRY: Geometry = Geometry { entries: 8, data: 4096 };
const SHAPE: StatusShape = StatusShape { regions: 2, vis: 1 };
const TAG: ProtectionTag = ProtectionTag(1);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const VI: ViId = ViId(0);
const DEPTH: u16 = 4;
/// Each receive has so many bytes to itself, of which it names a part: the rest stays zero.
const PLACE: u64 = 8192;
const PLACES: usize = DEPTH as usize;

/// One end of a connection, polled as a reactor does; the other end is the story's.
struct Victim {
    vi: Vi,
    cqs: Slots<CompletionQueue>,
    regions: Regions,
    memory: Memory,
    channel: Memory,
    peer_status: Memory,
    peer_memory: Memory,
    /// Entries that the peer has stamped as the next.
    entries: u32,
    /// Cookies of what was posted and has not completed.
    sends: VecDeque<u64>,
    receives: VecDeque<u64>,
    posted: u64,
    /// The most that was named of each receive's place.
    named: [u64; PLACES],
}

impl Victim {
    fn new(reliability: Reliability) -> Self {
        let private = |len: u64| Memory::anonymous(usize::try_from(len).expect("it is small"));
        let (channel, peer_status) = (private(GEOMETRY.channel_bytes()), private(SHAPE.bytes()));
        let (doorbell, _) = socket::doorbell().expect("two descriptors");
        let mut cqs = Slots::new(1);
        let cq = CqId(cqs.insert(CompletionQueue::new(2 * u32::from(DEPTH))).expect("there is room"));
        let attributes = ViAttributes {
            reliability,
            tag: TAG,
            remote_access: BOTH,
            send_depth: DEPTH,
            receive_depth: DEPTH,
            send_cq: cq,
            receive_cq: cq,
        };
        let wire = Wire {
            side: Side::Server,
            geometry: GEOMETRY,
            channel: channel.clone(),
            peer_status: peer_status.clone(),
            peer_shape: SHAPE,
            peer_vi: VI,
            doorbell,
        };
        let mut vi = Vi::new(&attributes);
        vi.state = ViState::Connected;
        vi.link = Link::new(wire, reliability, TAG).map(Box::new);
        let mut regions = Regions::new(1, 1);
        let memory = private(PLACES as u64 * PLACE);
        regions.register(Region { memory: memory.clone(), tag: TAG, access: BOTH }).expect("there is room");
        let peer_memory = private(4096);
        let (sends, receives) = (VecDeque::new(), VecDeque::new());
        let named = [0; PLACES];
        let (entries, posted) = (0, 0);
        Self { vi, cqs, regions, memory, channel, peer_status, peer_memory, entries, sends, receives, posted, named }
    }

    /// The next thing that happens.
    fn suffer(&mut self, story: &mut Story<'_>) -> Result<(), BrokenReason> {
        let link = self.vi.link.as_mut().expect("it has one");
        match story.byte() % 10 {
            // What the peer writes: any word, an entry with the right stamp, how far it is, what it announced, its status.
            0 => {
                let words = u16::try_from(GEOMETRY.channel_bytes() / 8).expect("it is small");
                put(&self.channel, 8 * u64::from(story.u16() % words), story.u64());
            }
            1 => {
                let (len, flags, consumed) = (story.u16(), story.byte(), story.byte());
                let slot = u64::from(self.entries % GEOMETRY.entries);
                let at = GEOMETRY.ring(Side::Client).entries + ENTRY_BYTES * slot;
                self.entries = self.entries.wrapping_add(1);
                put(&self.channel, at + ENTRY_WORDS, u64::from(consumed) << 32 | 7);
                let first = u64::from(flags) << 56 | u64::from(len) << 32 | u64::from(self.entries);
                put(&self.channel, at + ENTRY_STAMP, first);
            }
            2 => {
                let at = GEOMETRY.ring(Side::Server).consumed;
                self.channel.store_u32(at, u32::from(story.byte())).expect("in range");
            }
            3 => self.channel.store_u32(Geometry::announced(Side::Client), story.u32()).expect("in range"),
            4 => {
                let word = if story.byte().is_multiple_of(2) { 0 } else { open_word(u32::from(story.byte())) };
                let region = RegionHandle { incarnation: 1, index: u32::from(story.byte()) };
                let at = SHAPE.region(region).or(SHAPE.vi(VI)).unwrap_or(STATUS_ASLEEP);
                put(&self.peer_status, at, word);
            }
            5 => {
                let region = RegionHandle { incarnation: 1, index: story.u32() };
                let access =
                    RemoteAccess { write: story.byte().is_multiple_of(2), read: story.byte().is_multiple_of(2) };
                if !link.add_region(region, self.peer_memory.clone(), access) {
                    return Err(BrokenReason::Protocol);
                }
            }
            // What we do.
            6 => self.receive(story),
            7 => self.send(story),
            _ => self.turn()?,
        }
        Ok(())
    }

    fn receive(&mut self, story: &mut Story<'_>) {
        if self.vi.receives.is_full() {
            return;
        }
        let (place, len) = (self.posted % PLACES as u64, story.u16() % 5000);
        let named = &mut self.named[usize::try_from(place).expect("it is small")];
        *named = (*named).max(u64::from(len));
        // In two pieces.
        let (first, start) = (u32::from(len / 3), place * PLACE);
        let rest = Segment { memory: self.memory.id(), offset: start + u64::from(first), len: u32::from(len) - first };
        let segments = [Segment { memory: self.memory.id(), offset: start, len: first }, rest];
        self.vi.receives.push(ReceiveItem { cookie: self.posted }, &segments);
        self.receives.push_back(self.posted);
        self.posted += 1;
    }

    fn send(&mut self, story: &mut Story<'_>) {
        if self.vi.sends.is_full() {
            return;
        }
        let (how, len) = (story.byte(), u32::from(story.u16() % 5000));
        let at = RemoteAddress {
            region: RegionHandle { incarnation: 1, index: u32::from(story.byte()) },
            offset: u64::from(story.u16()),
        };
        let operation = match how % 3 {
            0 => SendOperation::RdmaWrite(at),
            // Into the second half of a place, which no receive names.
            1 => SendOperation::RdmaRead(at),
            _ => SendOperation::Send,
        };
        let half = [Segment { memory: self.memory.id(), offset: 5000, len: len.min(3000) }];
        let (len, immediate) = (half[0].len, (how > 127).then_some(9));
        let progress = Progress::Begun(0);
        self.vi.sends.push(SendItem { cookie: self.posted, operation, immediate, len, progress }, &half);
        self.sends.push_back(self.posted);
        self.posted += 1;
    }

    fn turn(&mut self) -> Result<(), BrokenReason> {
        let Self { vi, cqs, regions, .. } = self;
        if let Some(link) = &mut vi.link {
            link.stir(false);
        }
        let sent = vi.send(VI, cqs, regions, true);
        let received = vi.receive(VI, cqs, regions, 64);
        let cq = vi.attributes.send_cq.0;
        while let Poll::Ready(done) =
            cqs.get_mut(cq).expect("it is there").poll(&mut Context::from_waker(Waker::noop()))
        {
            let (queue, posted) = match done.queue {
                WorkQueue::Send => (&mut vi.sends.used, &mut self.sends),
                WorkQueue::Receive => (&mut vi.receives.used, &mut self.receives),
            };
            *queue -= 1;
            assert_eq!(posted.pop_front(), Some(done.cookie), "each completes once, in order");
            assert!(done.result.is_ok_and(|len| len <= 5000) || done.result.is_err());
        }
        sent.and(received).map(drop)
    }

    /// Nothing landed where no descriptor pointed.
    fn check_memory(&self) {
        let mut bytes = vec![0; usize::try_from(PLACE).expect("it is small")];
        for (place, &named) in (0..).zip(&self.named) {
            self.memory.look(place * PLACE, &mut bytes).expect("in range");
            let named = usize::try_from(named).expect("it is small");
            // Reads fill a part of the first place.
            let stray = bytes[named..].iter().zip(named..).find(|(byte, at)| **byte != 0 && (place > 0 || *at < 5000));
            assert_eq!(stray, None, "a stray byte in place {place}, of which {named} bytes were named");
        }
    }
}

fn put(memory: &Memory, at: u64, word: u64) {
    memory.store_u64(at, word).expect("in range");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::num::u8::ANY;

    proptest::proptest! {
        #[test]
        fn any_packet_is_read_safely(bytes in vec(ANY, 0..140)) {
            super::control(&bytes);
        }

        #[test]
        fn whatever_a_peer_writes_stays_its_own(bytes in vec(ANY, 0..300)) {
            super::ring(&bytes);
        }

        /// Mostly good entries: the stories that go on for long.
        #[test]
        fn almost_honest_peers_are_survived(level in 0_u8..3, steps in vec((0_u8..5, 0_u16..600, 0_u8..8, 0_u8..12), 0..80)) {
            let mut story = vec![level];
            for (step, len, flags, consumed) in steps {
                let [l0, l1] = len.to_le_bytes();
                match step {
                    0 => story.extend([1, l0, l1, flags, consumed]),
                    1 => story.extend([2, consumed]),
                    2 => story.extend([6, l0, l1]),
                    3 => story.extend([7, flags * 32, l0, l1, 0, 0, 0]),
                    _ => story.push(9),
                }
            }
            super::ring(&story);
        }
    }
}
