//! What every provider must do, as a suite that runs over any of them: order, completion points, protection, credits,
//! connections, revocation. A provider brings a [`Bed`]; [`CASES`](cases) are the tests.
//!
//! Faults (death, pause, cut) are made differently for each provider and are tested beside it.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PostError,
    ProtectionTag, Provider, RefusedReason, RegionHandle, Reliability, RemoteAccess, RemoteAddress, RequestId,
    ResourceError, Revocable, SEGMENTS_MAX, SendOperation, ViAttributes, ViId, WorkQueue,
};

/// Where a provider is tested.
pub trait Bed {
    /// What is tested.
    type Provider: Provider;

    /// Starts a process called `name`.
    fn node(&mut self, name: &str) -> Self::Provider;

    /// How others reach it ([`NetAddress::host`]).
    fn host(&self, name: &str) -> String;

    /// Lets time pass and all nodes work; false when nothing will happen any more, or has not for too long.
    fn step(&mut self) -> bool;
}

/// One test.
pub type Case<B> = (&'static str, fn(&mut B));

/// All tests; each wants a fresh bed.
#[must_use]
pub fn cases<B: Bed>() -> Vec<Case<B>> {
    vec![
        ("messages_arrive_once_in_order_and_whole", messages_arrive_once_in_order_and_whole),
        ("a_message_waits_for_a_receive", a_message_waits_for_a_receive),
        ("a_completion_waits_for_no_receive", a_completion_waits_for_no_receive),
        ("early_levels_complete_before_the_peer_took_the_message", early_levels_complete_early),
        ("an_unreliable_message_without_a_receive_is_lost", an_unreliable_message_without_a_receive_is_lost),
        ("credits_are_bounded_by_the_queue", credits_are_bounded_by_the_queue),
        ("rdma_moves_scattered_bytes_both_ways", rdma_moves_scattered_bytes_both_ways),
        ("a_message_behind_a_write_comes_after_it", a_message_behind_a_write_comes_after_it),
        ("immediate_data_arrives", immediate_data_arrives),
        ("remote_protection_moves_no_byte", remote_protection_moves_no_byte),
        ("local_protection_moves_no_byte", local_protection_moves_no_byte),
        ("a_vi_without_the_bit_refuses", a_vi_without_the_bit_refuses),
        ("malformed_descriptors_are_not_taken", malformed_descriptors_are_not_taken),
        ("a_message_longer_than_its_receive_is_an_error", a_message_longer_than_its_receive_is_an_error),
        ("a_transfer_longer_than_the_most_is_an_error", a_transfer_longer_than_the_most_is_an_error),
        ("regions_registered_later_are_reached", regions_registered_later_are_reached),
        ("nobody_listens", nobody_listens),
        ("a_server_rejects", a_server_rejects),
        ("a_server_does_not_answer", a_server_does_not_answer),
        ("levels_must_match", levels_must_match),
        ("a_connection_ends_at_both_ends", a_connection_ends_at_both_ends),
        ("a_client_gives_up", a_client_gives_up),
        ("a_revoked_region_is_left_alone", a_revoked_region_is_left_alone),
        ("a_revoked_vi_is_broken_at_both_ends", a_revoked_vi_is_broken_at_both_ends),
        ("vis_are_independent", vis_are_independent),
        ("completion_queues_cannot_overflow", completion_queues_cannot_overflow),
        ("names_of_what_is_gone_name_nothing", names_of_what_is_gone_name_nothing),
    ]
}

const TAG: ProtectionTag = ProtectionTag(11);
const OTHER_TAG: ProtectionTag = ProtectionTag(12);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const NONE: RemoteAccess = RemoteAccess { write: false, read: false };
const SERVICE: Discriminator = Discriminator(5);
const DEPTH: u16 = 16;
const LEN: u32 = 128 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);
const LEVELS: [Reliability; 3] =
    [Reliability::UnreliableDelivery, Reliability::ReliableDelivery, Reliability::ReliableReception];
const RELIABLE: Reliability = Reliability::ReliableReception;

/// Nonzero bytes that differ along the way.
fn pattern(len: u32, seed: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31).wrapping_add(seed)).to_le_bytes()[0] | 1).collect()
}

fn memory() -> Memory {
    Memory::shared("dyad-conformance", usize::try_from(LEN).expect("it is small"), HugePages::No)
        .expect("a little memory")
}

fn bytes(memory: &Memory, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("it is small")];
    memory.read(offset, &mut bytes).expect("in range");
    bytes
}

/// One end of a connection, with its memory.
struct End<P> {
    provider: P,
    cq: CqId,
    vi: ViId,
    memory: Memory,
    region: RegionHandle,
}

impl<P: Provider> End<P> {
    fn new(provider: P, reliability: Reliability, access: RemoteAccess) -> Self {
        let memory = memory();
        let region = provider.register(&memory, TAG, access).expect("room for a region");
        let cq = provider.create_cq(4 * u32::from(DEPTH)).expect("room for a queue");
        let vi = provider.create_vi(&attributes(cq, reliability, access)).expect("room for a VI");
        Self { provider, cq, vi, memory, region }
    }

    fn segment(&self, offset: u64, len: u32) -> Segment {
        self.memory.segment(offset, len).expect("in range")
    }

    fn post(&self, operation: SendOperation, segments: &[Segment], cookie: u64) -> Result<(), PostError> {
        self.provider.post_send(self.vi, &Descriptor { operation, segments, immediate: None, cookie })
    }

    fn send(&self, len: u32, cookie: u64) -> Result<(), PostError> {
        self.post(SendOperation::Send, &[self.segment(0, len)], cookie)
    }

    fn write(&self, segments: &[Segment], to: RemoteAddress, cookie: u64) -> Result<(), PostError> {
        self.post(SendOperation::RdmaWrite(to), segments, cookie)
    }

    fn receive(&self, offset: u64, len: u32, cookie: u64) {
        self.provider.post_receive(self.vi, &[self.segment(offset, len)], cookie).expect("room for a receive");
    }

    fn at(&self, offset: u64) -> RemoteAddress {
        RemoteAddress { region: self.region, offset }
    }

    fn try_completion(&self) -> Option<Completion> {
        match self.provider.poll_completion(self.cq, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(completion) => Some(completion),
            Poll::Pending => None,
        }
    }

    fn try_event(&self) -> Option<Event> {
        try_event(&self.provider)
    }

    /// The next completion; it must be of this VI.
    fn completion(&self, bed: &mut impl Bed) -> (WorkQueue, u64, Result<u32, DescriptorError>) {
        let completion = wait(bed, || self.try_completion());
        assert_eq!(completion.vi, self.vi);
        (completion.queue, completion.cookie, completion.result)
    }

    fn expect_broken(&self, bed: &mut impl Bed, why: BrokenReason) {
        assert_eq!(wait(bed, || self.try_event()), Event::Broken { vi: self.vi, why });
    }
}

fn attributes(cq: CqId, reliability: Reliability, remote_access: RemoteAccess) -> ViAttributes {
    ViAttributes {
        reliability,
        tag: TAG,
        remote_access,
        send_depth: DEPTH,
        receive_depth: DEPTH,
        send_cq: cq,
        receive_cq: cq,
    }
}

fn try_event(provider: &impl Provider) -> Option<Event> {
    match provider.poll_event(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => Some(event),
        Poll::Pending => None,
    }
}

fn wait<T>(bed: &mut impl Bed, mut what: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(bed.step(), "nothing happens any more");
    }
}

/// Lets whatever is under way happen.
fn settle(bed: &mut impl Bed) {
    for _ in 0..1000 {
        if !bed.step() {
            return;
        }
    }
}

fn requested(bed: &mut impl Bed, server: &impl Provider, said: &[u8]) -> RequestId {
    match wait(bed, || try_event(server)) {
        Event::Requested { request, discriminator: SERVICE, private_data } => {
            assert_eq!(private_data, said);
            request
        }
        other => panic!("{other:?}"),
    }
}

fn call<B: Bed>(bed: &B, client: &End<B::Provider>, server: &str, timeout: Duration, said: &[u8]) {
    let to = NetAddress { host: bed.host(server), discriminator: SERVICE };
    client.provider.connect(client.vi, &to, said, timeout).expect("an idle VI connects");
}

fn join<B: Bed>(bed: &mut B, a: &End<B::Provider>, b: &End<B::Provider>) {
    call(bed, a, "b", TIMEOUT, b"hello");
    let request = requested(bed, &b.provider, b"hello");
    b.provider.accept(request, b.vi, b"welcome").expect("an idle VI accepts");
    match wait(bed, || a.try_event()) {
        Event::Established { vi, private_data } => assert_eq!((vi, &private_data[..]), (a.vi, &b"welcome"[..])),
        other => panic!("{other:?}"),
    }
    match wait(bed, || b.try_event()) {
        Event::Established { vi, private_data } => assert_eq!((vi, &private_data[..]), (b.vi, &b""[..])),
        other => panic!("{other:?}"),
    }
}

type Two<B> = (End<<B as Bed>::Provider>, End<<B as Bed>::Provider>);

fn pair_of<B: Bed>(bed: &mut B, reliability: Reliability, access: RemoteAccess) -> Two<B> {
    let (a, b) = (bed.node("a"), bed.node("b"));
    b.listen(SERVICE).expect("nobody listens yet");
    let (a, b) = (End::new(a, reliability, access), End::new(b, reliability, access));
    join(bed, &a, &b);
    (a, b)
}

fn pair<B: Bed>(bed: &mut B) -> Two<B> {
    pair_of(bed, RELIABLE, BOTH)
}

/// A second pair of ends on the same nodes.
fn sibling<B: Bed>(bed: &mut B, (a, b): &Two<B>, reliability: Reliability, access: RemoteAccess) -> Two<B> {
    let ends = (End::new(a.provider.clone(), reliability, access), End::new(b.provider.clone(), reliability, access));
    join(bed, &ends.0, &ends.1);
    ends
}

fn messages_arrive_once_in_order_and_whole<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for level in LEVELS {
        let (a, b) = sibling(bed, &first, level, BOTH);
        let lens = [0, 1, 63, 64, 111, 112, 113, 128, 4096, 5000, 20_000, 65_536, 99_999, 7, 112, 300];
        for round in 0..3_u32 {
            for (cookie, &len) in (0..).zip(&lens) {
                b.receive(0, LEN, cookie);
                a.memory.write(0, &pattern(len, round)).expect("in range");
                a.send(len, cookie).expect("room in the queue");
                let mut ends = [false; 2];
                while ends != [true; 2] {
                    if let Some(done) = a.try_completion() {
                        assert_eq!((done.queue, done.cookie, done.result), (WorkQueue::Send, cookie, Ok(len)));
                        ends[0] = true;
                    } else if let Some(done) = b.try_completion() {
                        assert_eq!((done.queue, done.cookie, done.result), (WorkQueue::Receive, cookie, Ok(len)));
                        assert!(bytes(&b.memory, 0, len) == pattern(len, round), "{len} bytes came wrong");
                        ends[1] = true;
                    } else {
                        assert!(bed.step(), "a message of {len} bytes does not arrive");
                    }
                }
            }
        }
        // Many at once.
        for cookie in 0..u64::from(DEPTH) {
            b.receive(cookie * 64, 64, cookie);
            let len = u32::try_from(cookie).expect("small");
            a.post(SendOperation::Send, &[a.segment(cookie, len)], 100 + cookie).expect("room in the queue");
        }
        for cookie in 0..u64::from(DEPTH) {
            let len = u32::try_from(cookie).expect("small");
            assert_eq!(b.completion(bed), (WorkQueue::Receive, cookie, Ok(len)));
            assert_eq!(a.completion(bed), (WorkQueue::Send, 100 + cookie, Ok(len)));
            assert_eq!(bytes(&b.memory, cookie * 64, len), bytes(&a.memory, cookie, len));
        }
    }
}

fn a_message_waits_for_a_receive<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, b"patience").expect("in range");
    a.send(8, 1).expect("room in the queue");
    settle(bed);
    assert_eq!((a.try_completion(), b.try_completion()), (None, None));
    b.receive(0, 64, 2);
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 2, Ok(8)));
    assert_eq!(bytes(&b.memory, 0, 8), b"patience");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(8)));
}

fn a_completion_waits_for_no_receive<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.send(1, 1).expect("room in the queue");
    a.receive(0, 8, 2);
    b.send(3, 3).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Receive, 2, Ok(3)));
    // What goes back to b now is behind a message that b has no receive for.
    a.send(1, 4).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Send, 3, Ok(3)));
}

fn early_levels_complete_early<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for level in [Reliability::UnreliableDelivery, Reliability::ReliableDelivery] {
        let (a, b) = sibling(bed, &first, level, BOTH);
        a.memory.write(0, b"once").expect("in range");
        a.send(4, 1).expect("room in the queue");
        assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(4)), "{level:?}");
        // The memory is ours again.
        a.memory.write(0, b"over").expect("in range");
        if level == Reliability::ReliableDelivery {
            settle(bed);
            b.receive(0, 64, 2);
            assert_eq!(b.completion(bed), (WorkQueue::Receive, 2, Ok(4)));
            assert_eq!(bytes(&b.memory, 0, 4), b"once");
        }
    }
}

fn an_unreliable_message_without_a_receive_is_lost<B: Bed>(bed: &mut B) {
    let (a, b) = pair_of(bed, Reliability::UnreliableDelivery, BOTH);
    // A long one, a short one; then one that is too long for its receive.
    a.send(50_000, 1).expect("room in the queue");
    a.send(3, 2).expect("room in the queue");
    for cookie in 1..=2 {
        assert!(matches!(a.completion(bed), (WorkQueue::Send, done, Ok(_)) if done == cookie));
    }
    settle(bed);
    b.receive(0, 64, 3);
    a.send(50_000, 4).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 3, Err(DescriptorError::Length)));
    assert_eq!(a.completion(bed), (WorkQueue::Send, 4, Ok(50_000)));
    settle(bed);
    b.receive(0, 64, 5);
    a.memory.write(0, b"found").expect("in range");
    a.send(5, 6).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 5, Ok(5)));
    assert_eq!(bytes(&b.memory, 0, 5), b"found");
    assert_eq!((a.try_event(), b.try_event()), (None, None), "the connection is still there");
}

fn credits_are_bounded_by_the_queue<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for cookie in 0..u64::from(DEPTH) {
        a.send(30_000, cookie).expect("room in the queue");
    }
    assert_eq!(a.send(1, 99), Err(PostError::Full));
    settle(bed);
    assert_eq!(a.send(1, 99), Err(PostError::Full));
    for cookie in 0..u64::from(DEPTH) {
        b.receive(0, LEN, cookie);
    }
    let receive = b.provider.post_receive(b.vi, &[b.segment(0, 1)], 99);
    assert_eq!(receive, Err(PostError::Full));
    for cookie in 0..u64::from(DEPTH) {
        assert_eq!(b.completion(bed), (WorkQueue::Receive, cookie, Ok(30_000)));
    }
    settle(bed);
    assert_eq!(a.send(1, 99), Err(PostError::Full), "a completion that nobody took still fills the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 0, Ok(30_000)));
    b.receive(0, 1, 100);
    a.send(1, 99).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 100, Ok(1)));
}

fn rdma_moves_scattered_bytes_both_ways<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, &pattern(LEN, 3)).expect("in range");
    let scattered: Vec<Segment> = (0..64_u32).map(|i| a.segment(u64::from(63 - i) * 1024, 1 + i * 16 % 1000)).collect();
    let total: u32 = scattered.iter().map(|segment| segment.len).sum();
    a.write(&scattered, b.at(77), 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(total)));
    let flat: Vec<u8> = scattered.iter().flat_map(|segment| bytes(&a.memory, segment.offset, segment.len)).collect();
    assert_eq!(bytes(&b.memory, 77, total), flat);
    let landed = bytes(&b.memory, 0, LEN).iter().filter(|&&byte| byte != 0).count();
    assert_eq!(landed, flat.len(), "nothing else was touched");

    b.memory.write(0, &pattern(LEN, 4)).expect("in range");
    a.post(SendOperation::RdmaRead(b.at(5)), &scattered, 2).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 2, Ok(total)));
    let flat: Vec<u8> = scattered.iter().flat_map(|segment| bytes(&a.memory, segment.offset, segment.len)).collect();
    assert_eq!(bytes(&b.memory, 5, total), flat);
    assert_eq!(b.try_completion(), None, "the target of an RDMA hears nothing");
}

fn a_message_behind_a_write_comes_after_it<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for round in 1..=20 {
        b.receive(0, 8, round);
        a.memory.write(0, &pattern(LEN, u32::try_from(round).expect("small"))).expect("in range");
        a.write(&[a.segment(64, LEN - 64)], b.at(64), round).expect("room in the queue");
        a.send(8, 100 + round).expect("room in the queue");
        assert_eq!(b.completion(bed), (WorkQueue::Receive, round, Ok(8)));
        assert!(bytes(&b.memory, 64, LEN - 64) == bytes(&a.memory, 64, LEN - 64), "round {round}");
        assert_eq!(a.completion(bed), (WorkQueue::Send, round, Ok(LEN - 64)));
        assert_eq!(a.completion(bed), (WorkQueue::Send, 100 + round, Ok(8)));
    }
}

fn immediate_data_arrives<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let operations = [
        (SendOperation::Send, 3, Some(0)),
        (SendOperation::RdmaWrite(b.at(9)), 0, Some(u32::MAX)),
        (SendOperation::Send, 3, None),
    ];
    for (operation, len, immediate) in operations {
        b.receive(0, 8, 1);
        let segments = [a.segment(0, 3)];
        let descriptor = Descriptor { operation, segments: &segments, immediate, cookie: 2 };
        a.provider.post_send(a.vi, &descriptor).expect("room in the queue");
        let received = wait(bed, || b.try_completion());
        assert_eq!((received.cookie, received.result, received.immediate), (1, Ok(len), immediate));
        let sent = wait(bed, || a.try_completion());
        assert_eq!((sent.cookie, sent.result, sent.immediate), (2, Ok(3), None));
    }
}

fn remote_protection_moves_no_byte<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let b = &first.1;
    let register = |tag, access| b.provider.register(&memory(), tag, access).expect("room for a region");
    let gone = register(TAG, BOTH);
    b.provider.deregister(gone).expect("it is there");
    let wrong: [(&str, RegionHandle, u64, bool); 9] = [
        ("outside", b.region, u64::from(LEN) - 9, true),
        ("outside, to read", b.region, u64::from(LEN) - 9, false),
        ("outside and around", b.region, u64::MAX - 3, true),
        ("another tag", register(OTHER_TAG, BOTH), 0, true),
        ("only to be read", register(TAG, RemoteAccess { write: false, read: true }), 0, true),
        ("only to be written", register(TAG, RemoteAccess { write: true, read: false }), 0, false),
        ("deregistered", gone, 0, true),
        ("of another incarnation", RegionHandle { incarnation: b.region.incarnation + 1, ..b.region }, 0, true),
        ("never there", RegionHandle { index: 0x1234, ..b.region }, 0, true),
    ];
    for (what, region, offset, write) in wrong {
        let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
        x.memory.write(0, &pattern(LEN, 1)).expect("in range");
        let at = RemoteAddress { region, offset };
        let operation = if write { SendOperation::RdmaWrite(at) } else { SendOperation::RdmaRead(at) };
        x.post(operation, &[x.segment(0, 10)], 1).expect("room in the queue");
        let behind = x.post(SendOperation::Send, &[x.segment(0, 10)], 2);
        let failed = (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection));
        assert_eq!(x.completion(bed), failed, "{what}");
        // The failure may have ended the connection before the next was posted.
        match behind {
            Ok(()) => {
                assert_eq!(x.completion(bed), (WorkQueue::Send, 2, Err(DescriptorError::Flushed)), "{what}");
            }
            Err(error) => assert_eq!(error, PostError::NotConnected, "{what}"),
        }
        x.expect_broken(bed, BrokenReason::Protocol);
        y.expect_broken(bed, BrokenReason::Protocol);
        assert_eq!(bytes(&x.memory, 0, LEN), pattern(LEN, 1), "{what}");
        for end in [&x, &y] {
            end.provider.destroy_vi(end.vi).expect("it is there");
        }
    }
    assert!(bytes(&b.memory, 0, LEN).iter().all(|&byte| byte == 0), "a byte moved");
}

fn local_protection_moves_no_byte<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let a = &first.0;
    let (private, foreign) = (Memory::anonymous(4096), Memory::anonymous(4096));
    a.provider.register(&foreign, OTHER_TAG, NONE).expect("room for a region");
    let gone = Memory::anonymous(4096);
    let handle = a.provider.register(&gone, TAG, NONE).expect("room for a region");
    a.provider.deregister(handle).expect("it is there");
    let wrong = [
        ("not registered", private.segment(0, 8).expect("in range")),
        ("another tag", foreign.segment(0, 8).expect("in range")),
        ("deregistered", gone.segment(0, 8).expect("in range")),
        ("outside", Segment { len: LEN + 1, ..a.segment(0, 8) }),
        ("outside and around", Segment { offset: u64::MAX, ..a.segment(0, 8) }),
    ];
    for (what, segment) in wrong {
        let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
        let operations = [SendOperation::Send, SendOperation::RdmaWrite(y.at(0)), SendOperation::RdmaRead(y.at(0))];
        // A good segment in front of it does not move either.
        x.memory.write(0, b"good").expect("in range");
        y.receive(0, 64, 9);
        let operation = operations[what.len() % 3];
        x.post(operation, &[x.segment(0, 4), segment], 1).expect("room in the queue");
        assert_eq!(x.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::LocalProtection)), "{what}");
        x.expect_broken(bed, BrokenReason::Protocol);
        y.expect_broken(bed, BrokenReason::Protocol);
        assert_eq!(y.completion(bed), (WorkQueue::Receive, 9, Err(DescriptorError::Flushed)), "{what}");
        assert!(bytes(&y.memory, 0, LEN).iter().all(|&byte| byte == 0), "{what}: a byte moved");
        assert_eq!(bytes(&x.memory, 0, 4), b"good");
    }
}

fn a_vi_without_the_bit_refuses<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for (enabled, write) in
        [(RemoteAccess { write: false, read: true }, true), (RemoteAccess { write: true, read: false }, false)]
    {
        let (x, y) = sibling(bed, &first, RELIABLE, enabled);
        // The region of the first pair enables both; the VI does not.
        let at = first.1.at(0);
        let operation = if write { SendOperation::RdmaWrite(at) } else { SendOperation::RdmaRead(at) };
        x.post(operation, &[x.segment(0, 10)], 1).expect("room in the queue");
        assert_eq!(x.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection)));
        y.expect_broken(bed, BrokenReason::Protocol);
        x.expect_broken(bed, BrokenReason::Protocol);
    }
}

fn malformed_descriptors_are_not_taken<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let many = vec![a.segment(0, 1); SEGMENTS_MAX + 1];
    assert_eq!(a.post(SendOperation::Send, &many, 1), Err(PostError::TooManySegments));
    assert_eq!(a.provider.post_receive(a.vi, &many, 1), Err(PostError::TooManySegments));
    assert_eq!(a.write(&[], b.at(0), 1), Err(PostError::Empty));
    assert_eq!(a.write(&[a.segment(5, 0)], b.at(0), 1), Err(PostError::Empty));
    assert_eq!(a.post(SendOperation::RdmaRead(b.at(0)), &[], 1), Err(PostError::Empty));
    let idle = a.provider.create_vi(&attributes(a.cq, RELIABLE, BOTH)).expect("room for a VI");
    let descriptor = Descriptor { operation: SendOperation::Send, segments: &[], immediate: None, cookie: 1 };
    assert_eq!(a.provider.post_send(idle, &descriptor), Err(PostError::NotConnected));
    a.provider.destroy_vi(idle).expect("it is there");
    assert_eq!(a.provider.post_send(idle, &descriptor), Err(PostError::NoSuchVi));
    assert_eq!(a.provider.post_receive(idle, &[], 1), Err(PostError::NoSuchVi));
    let (x, y) = sibling(bed, &(a, b), Reliability::UnreliableDelivery, BOTH);
    assert_eq!(x.post(SendOperation::RdmaRead(y.at(0)), &[x.segment(0, 1)], 1), Err(PostError::Unsupported));
    settle(bed);
    assert_eq!((x.try_completion(), x.try_event()), (None, None), "nothing was taken");
}

fn a_message_longer_than_its_receive_is_an_error<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    b.receive(0, 10, 1);
    a.send(11, 2).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 1, Err(DescriptorError::Length)));
    let (_, cookie, result) = a.completion(bed);
    // Whether the sender learns the reason or just that the connection ended is the provider's.
    assert!(cookie == 2 && matches!(result, Err(DescriptorError::Length | DescriptorError::Flushed)), "{result:?}");
    a.expect_broken(bed, BrokenReason::Protocol);
    b.expect_broken(bed, BrokenReason::Protocol);
}

fn a_transfer_longer_than_the_most_is_an_error<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let big = Memory::anonymous(1 << 20);
    a.provider.register(&big, TAG, NONE).expect("room for a region");
    let segments = [big.segment(0, 1 << 20).expect("in range"); SEGMENTS_MAX];
    assert!(a.provider.capabilities().transfer_bytes_max < 64 << 20, "the test's descriptor is longer");
    a.post(SendOperation::Send, &segments, 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::Length)));
    b.expect_broken(bed, BrokenReason::Protocol);
}

fn regions_registered_later_are_reached<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for round in 1..=20_u64 {
        // No step between registering and writing: the handle may be faster than the memory.
        let later = memory();
        let region = b.provider.register(&later, TAG, BOTH).expect("room for a region");
        a.memory.write(0, &round.to_le_bytes()).expect("in range");
        a.write(&[a.segment(0, 8)], RemoteAddress { region, offset: 16 }, round).expect("room in the queue");
        assert_eq!(a.completion(bed), (WorkQueue::Send, round, Ok(8)));
        assert_eq!(bytes(&later, 16, 8), round.to_le_bytes());
        b.provider.deregister(region).expect("it is there");
    }
}

fn nobody_listens<B: Bed>(bed: &mut B) {
    let a = End::new(bed.node("a"), RELIABLE, BOTH);
    let refused = |bed: &mut B, server: &str| {
        call(bed, &a, server, TIMEOUT, b"");
        match wait(bed, || a.try_event()) {
            Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::NoListener)),
            other => panic!("{other:?}"),
        }
    };
    refused(bed, "nobody");
    let b = End::new(bed.node("b"), RELIABLE, BOTH);
    b.provider.listen(Discriminator(77)).expect("nobody listens yet");
    refused(bed, "b");
    // It can be connected again.
    b.provider.listen(SERVICE).expect("nobody listens yet");
    assert!(matches!(b.provider.listen(SERVICE), Err(ResourceError::State(_))));
    join(bed, &a, &b);
}

fn a_server_rejects<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), bed.node("b"));
    b.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"please");
    let request = requested(bed, &b, b"please");
    b.reject(request, b"no").expect("the request is there");
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, private_data } => {
            assert_eq!((vi, why, &private_data[..]), (a.vi, RefusedReason::Rejected, &b"no"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(b.reject(request, b""), Err(ResourceError::Unknown("request")));
    let too_long =
        a.provider.connect(a.vi, &NetAddress { host: bed.host("b"), discriminator: SERVICE }, &[0; 57], TIMEOUT);
    assert!(matches!(too_long, Err(ResourceError::State(_))));
}

fn a_server_does_not_answer<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), End::new(bed.node("b"), RELIABLE, BOTH));
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", Duration::from_millis(100), b"");
    let request = requested(bed, &b.provider, b"");
    assert_eq!(a.provider.accept(request, a.vi, b""), Err(ResourceError::Unknown("request")));
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::TimedOut)),
        other => panic!("{other:?}"),
    }
    // By and by the server notices as well: the request is gone, or what it accepts comes to nothing.
    settle(bed);
    if b.provider.accept(request, b.vi, b"").is_ok() {
        assert!(matches!(wait(bed, || b.try_event()), Event::Broken { .. }));
    }
    let c = End::new(b.provider.clone(), RELIABLE, BOTH);
    join(bed, &a, &c);
}

fn levels_must_match<B: Bed>(bed: &mut B) {
    let a = End::new(bed.node("a"), Reliability::ReliableDelivery, BOTH);
    let b = End::new(bed.node("b"), RELIABLE, BOTH);
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"");
    let request = requested(bed, &b.provider, b"");
    assert!(matches!(b.provider.accept(request, b.vi, b""), Err(ResourceError::State(_))));
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::Mismatch)),
        other => panic!("{other:?}"),
    }
    // The server's VI is still idle.
    let c = End::new(a.provider.clone(), RELIABLE, BOTH);
    join(bed, &c, &b);
}

fn a_connection_ends_at_both_ends<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    b.receive(0, 8, 1);
    a.receive(0, 8, 2);
    for cookie in 3..6 {
        a.post(SendOperation::Send, &[a.segment(0, 50_000)], cookie).expect("room in the queue");
    }
    b.provider.disconnect(b.vi).expect("it is there");
    let events = (wait(bed, || a.try_event()), wait(bed, || b.try_event()));
    // The first message is too long for its receive; it may have met it before b went.
    let why = if events.1 == (Event::Broken { vi: b.vi, why: BrokenReason::Protocol }) {
        BrokenReason::Protocol
    } else {
        BrokenReason::Disconnected
    };
    assert_eq!(events, (Event::Broken { vi: a.vi, why }, Event::Broken { vi: b.vi, why }));
    assert!(matches!(b.completion(bed), (WorkQueue::Receive, 1, Err(_))));
    let mut seen = [0; 4];
    for slot in &mut seen {
        let (_, cookie, result) = a.completion(bed);
        assert!(result.is_err(), "{cookie}");
        *slot = cookie;
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 3, 4, 5], "each completes once");
    assert_eq!(a.send(1, 9), Err(PostError::NotConnected));
    assert_eq!(b.provider.post_receive(b.vi, &[], 9), Err(PostError::NotConnected));
    assert_eq!(a.provider.disconnect(a.vi), Ok(()), "again is nothing new");
    settle(bed);
    let nothing = (a.try_event(), b.try_event(), a.try_completion(), b.try_completion());
    assert_eq!(nothing, (None, None, None, None));
}

fn a_client_gives_up<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), End::new(bed.node("b"), RELIABLE, BOTH));
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"");
    let request = requested(bed, &b.provider, b"");
    a.provider.disconnect(a.vi).expect("it is there");
    a.expect_broken(bed, BrokenReason::Disconnected);
    if b.provider.accept(request, b.vi, b"").is_ok() {
        assert!(matches!(wait(bed, || b.try_event()), Event::Broken { .. }));
    }
    assert_eq!(a.try_event(), None, "a connect ends once");
}

fn a_revoked_region_is_left_alone<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    assert!(b.provider.is_reachable(&b.memory));
    a.memory.write(0, &pattern(LEN, 1)).expect("in range");
    b.provider.revoke(Revocable::Region(b.region)).expect("it is there");
    assert_eq!(b.provider.revoke(Revocable::Region(b.region)), Err(ResourceError::Unknown("region")));
    a.write(&[a.segment(0, LEN)], b.at(0), 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection)));
    a.expect_broken(bed, BrokenReason::Protocol);
    b.expect_broken(bed, BrokenReason::Protocol);
    assert!(bytes(&b.memory, 0, LEN).iter().all(|&byte| byte == 0));
    wait(bed, || (!b.provider.is_reachable(&b.memory)).then_some(()));
    // It can be registered anew; the old handle does not name the new region.
    let again = b.provider.register(&b.memory, TAG, BOTH).expect("room for a region");
    assert_ne!(again, b.region);
}

fn a_revoked_vi_is_broken_at_both_ends<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, &pattern(LEN, 1)).expect("in range");
    b.provider.revoke(Revocable::Vi(b.vi)).expect("it is there");
    let before = bytes(&b.memory, 0, LEN);
    // a may not know yet.
    if a.write(&[a.segment(0, LEN)], b.at(0), 1).is_ok() {
        assert!(matches!(a.completion(bed), (WorkQueue::Send, 1, Err(_))));
    }
    b.expect_broken(bed, BrokenReason::Revoked);
    assert!(matches!(wait(bed, || a.try_event()), Event::Broken { .. }));
    assert_eq!(bytes(&b.memory, 0, LEN), before);
    wait(bed, || (!b.provider.is_reachable(&b.memory)).then_some(()));
}

fn vis_are_independent<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
    // One waits for a receive; the other goes on.
    first.0.send(5, 1).expect("room in the queue");
    for round in 0..10 {
        y.receive(0, 8, round);
        x.send(5, round).expect("room in the queue");
        assert_eq!(y.completion(bed), (WorkQueue::Receive, round, Ok(5)));
        assert_eq!(x.completion(bed), (WorkQueue::Send, round, Ok(5)));
    }
    x.provider.destroy_vi(x.vi).expect("it is there");
    y.expect_broken(bed, BrokenReason::Disconnected);
    assert_eq!(x.try_event(), None, "who destroys needs no telling");
    first.1.receive(0, 8, 2);
    assert_eq!(first.1.completion(bed), (WorkQueue::Receive, 2, Ok(5)));
}

fn completion_queues_cannot_overflow<B: Bed>(bed: &mut B) {
    let a = bed.node("a");
    let cq = a.create_cq(2 * u32::from(DEPTH)).expect("room for a queue");
    let vi = a.create_vi(&attributes(cq, RELIABLE, BOTH)).expect("room on the queue");
    assert!(matches!(a.create_vi(&attributes(cq, RELIABLE, BOTH)), Err(ResourceError::Exhausted(_))));
    assert_eq!(a.create_vi(&attributes(CqId(0xffff), RELIABLE, BOTH)), Err(ResourceError::Unknown("completion queue")));
    a.destroy_vi(vi).expect("it is there");
    a.create_vi(&attributes(cq, RELIABLE, BOTH)).expect("room on the queue again");
}

fn names_of_what_is_gone_name_nothing<B: Bed>(bed: &mut B) {
    let a = End::new(bed.node("a"), RELIABLE, BOTH);
    a.provider.deregister(a.region).expect("it is there");
    assert_eq!(a.provider.deregister(a.region), Err(ResourceError::Unknown("region")));
    a.provider.destroy_vi(a.vi).expect("it is there");
    let unknown = ResourceError::Unknown("VI");
    assert_eq!(a.provider.destroy_vi(a.vi), Err(unknown.clone()));
    assert_eq!(a.provider.disconnect(a.vi), Err(unknown.clone()));
    assert_eq!(a.provider.revoke(Revocable::Vi(a.vi)), Err(unknown.clone()));
    let to = NetAddress { host: bed.host("b"), discriminator: SERVICE };
    assert_eq!(a.provider.connect(a.vi, &to, b"", TIMEOUT), Err(unknown));
    assert_eq!(a.provider.reject(RequestId(3), b""), Err(ResourceError::Unknown("request")));
    if !a.provider.capabilities().unreliable_delivery {
        let attributes = attributes(a.cq, Reliability::UnreliableDelivery, BOTH);
        assert!(matches!(a.provider.create_vi(&attributes), Err(ResourceError::State(_))));
    }
}
