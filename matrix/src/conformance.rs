//! What every provider must do, as a suite that runs over any of them: order, completion points, protection, credits,
//! connections, revocation; and what is built on it must do over every provider. A provider brings a [`Bed`]; [`cases`] are the
//! tests.
//!
//! Faults (death, pause, cut) are made differently for each provider and are tested beside it.

/// Test functions over a bed `B`, each with its name.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        vec![$((stringify!($case), $case::<B> as fn(&mut B))),*]
    };
}

mod connections;
mod exchange;
mod protection;
pub mod streams;
mod transfers;

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::descriptor::offered;
use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    BrokenReason, Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PostError,
    ProtectionTag, Provider, RegionHandle, Reliability, RemoteAccess, RemoteAddress, RequestId, SendOperation,
    ViAttributes, ViId, WorkQueue,
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
    let rooms = [transfers::cases(), protection::cases(), connections::cases(), exchange::cases(), streams::cases()];
    rooms.into_iter().flatten().collect()
}

const TAG: ProtectionTag = ProtectionTag(11);
const OTHER_TAG: ProtectionTag = ProtectionTag(12);
const BOTH: RemoteAccess = RemoteAccess { write: true, read: true };
const NONE: RemoteAccess = RemoteAccess { write: false, read: false };
const SERVICE: Discriminator = Discriminator(5);
const DEPTH: u16 = 16;
const LEN: u32 = 128 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);
const RELIABLE: Reliability = Reliability::ReliableReception;

/// The levels that the provider offers; all of them have Reliable Reception.
fn levels(provider: &impl Provider) -> Vec<Reliability> {
    let levels = [Reliability::UnreliableDelivery, Reliability::ReliableDelivery, Reliability::ReliableReception];
    levels.into_iter().filter(|&level| offered(&provider.capabilities(), level).is_ok()).collect()
}

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
