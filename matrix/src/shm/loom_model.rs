//! loom tries every interleaving of two ends that share a channel and a status: the ring, the sleep protocol, revocation.
//!
//! The lines under test are the production files themselves, over words that are loom's atomics instead of mapped memory.
//! `RUSTFLAGS="--cfg loom" cargo test -p dyad-matrix --release --lib loom` runs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;

use super::layout::{ENTRY_BYTES, Geometry, Side, StatusShape};
use super::ring::{Consumer, Garbage, Header, Producer, Shared};
use super::status::{OwnStatus, PeerStatus, say_quiet};
use crate::provider::{RegionHandle, ViId};

/// The words of a file that a test touches.
#[derive(Clone)]
struct Words(Arc<BTreeMap<u64, AtomicU64>>);

impl Words {
    fn new(offsets: impl IntoIterator<Item = u64>) -> Self {
        Self(Arc::new(offsets.into_iter().map(|offset| (offset, AtomicU64::new(0))).collect()))
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        self.0.get(&at).expect("the test made all words that it touches")
    }

    /// A ring of two entries with eight bytes of payload each, filled by the client.
    fn ring() -> (Self, Geometry) {
        let geometry = Geometry { entries: 2, data: 4096 };
        let ring = geometry.ring(Side::Client);
        let entries = [ring.entries, ring.entries + ENTRY_BYTES];
        (
            Self::new(
                entries
                    .into_iter()
                    .flat_map(|entry| [entry, entry + 8, entry + 16])
                    .chain([ring.consumed, Geometry::quiet(Side::Server)]),
            ),
            geometry,
        )
    }
}

impl Shared for Words {
    fn get_u32(&self, at: u64) -> u32 {
        u32::try_from(self.get_u64(at)).expect("it was put as 32 bits")
    }

    fn get_u64(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    fn put_u32(&self, at: u64, value: u32) {
        self.put_u64(at, value.into());
    }

    fn put_u64(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    fn prefetch(&self, _at: u64) {}

    fn prefetch_write(&self, _at: u64) {}

    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Runs `test` in every interleaving with at most three preemptions.
fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// A header that says the number of its message as well.
fn header(number: u64) -> Header {
    Header { len: 8, more: false, written: false, immediate: u32::try_from(number).ok() }
}

fn push(producer: &mut Producer<Words>, number: u64) {
    // Payload is copied without any order of its own.
    let fill = |words: &Words, at: u64| -> Result<(), Garbage> {
        words.word(at).store(number, Ordering::Relaxed);
        Ok(())
    };
    producer.push(header(number), 0, fill).expect("nothing to fail");
}

fn pop(consumer: &mut Consumer<Words>) -> Option<u64> {
    let arrived = consumer.peek().expect("the sender is honest")?;
    let number = consumer.memory().word(arrived.payload).load(Ordering::Relaxed);
    assert_eq!(arrived.header, header(number));
    consumer.pop(&arrived);
    Some(number)
}

#[test]
fn loom_ring_delivers_each_message_once_in_order_and_whole() {
    check(|| {
        let (words, geometry) = Words::ring();
        let ring = geometry.ring(Side::Client);
        let mut producer = Producer::new(words.clone(), ring, geometry);
        let mut consumer = Consumer::new(words, ring, geometry);
        let receiver = thread::spawn(move || {
            let mut next = 1;
            for _ in 0..3 {
                if let Some(number) = pop(&mut consumer) {
                    assert_eq!(number, next);
                    next += 1;
                    consumer.publish();
                }
                thread::yield_now();
            }
            (consumer, next)
        });
        // The third takes the place of the first.
        let mut sent = 0;
        for _ in 0..4 {
            if producer.has_room(8) && sent < 3 {
                sent += 1;
                push(&mut producer, sent);
            } else {
                producer.refresh().expect("the receiver is honest");
                thread::yield_now();
            }
        }
        let (mut consumer, mut next) = receiver.join().expect("it asserts");
        while let Some(number) = pop(&mut consumer) {
            assert_eq!(number, next);
            next += 1;
        }
        assert_eq!(next, sent + 1, "all that was sent has come");
    });
}

const SHAPE: StatusShape = StatusShape { regions: 1, vis: 1 };
const VI: ViId = ViId(0);
const REGION: RegionHandle = RegionHandle { incarnation: 0, index: 0 };

fn status() -> (OwnStatus<Words>, PeerStatus<Words>) {
    let places = [SHAPE.region(REGION), SHAPE.vi(VI)].into_iter().flatten();
    let memory = Words::new(places.chain([0]));
    let own = OwnStatus { memory: memory.clone(), shape: SHAPE, asleep: false };
    own.open_vi(VI);
    own.open_region(REGION);
    (own, PeerStatus::new(memory, SHAPE, VI).expect("the VI has a place"))
}

#[test]
fn loom_who_falls_asleep_is_woken_or_finds_the_message() {
    check(|| {
        let (words, geometry) = Words::ring();
        let ring = geometry.ring(Side::Client);
        let mut producer = Producer::new(words.clone(), ring, geometry);
        let mut consumer = Consumer::new(words, ring, geometry);
        let (mut own, peer) = status();
        let rung = Arc::new(AtomicBool::new(false));
        let doorbell = Arc::clone(&rung);
        let sender = thread::spawn(move || {
            push(&mut producer, 1);
            if peer.is_asleep() {
                doorbell.store(true, Ordering::Release);
            }
        });
        own.set_asleep(true);
        let found = pop(&mut consumer);
        sender.join().expect("nothing to fail");
        assert!(found.is_some() || rung.load(Ordering::Acquire), "it would sleep for ever");
    });
}

#[test]
fn loom_a_connection_that_grows_quiet_is_rung_or_finds_the_message() {
    check(|| {
        let (words, geometry) = Words::ring();
        let ring = geometry.ring(Side::Client);
        let quiet_at = Geometry::quiet(Side::Server);
        let mut producer = Producer::new(words.clone(), ring, geometry);
        let mut consumer = Consumer::new(words.clone(), ring, geometry);
        let (_, peer) = status();
        let sender = thread::spawn(move || {
            push(&mut producer, 1);
            // The fence is in the first, as in `Link::stir`.
            peer.is_asleep() || producer.memory().get_u32(quiet_at) != 0
        });
        say_quiet(&words, quiet_at, true);
        let found = pop(&mut consumer);
        let rings = sender.join().expect("nothing to fail");
        assert!(found.is_some() || rings, "nobody would look at it");
    });
}

#[test]
fn loom_a_write_that_succeeds_was_whole_before_revoke_returned() {
    check(|| {
        let (own, peer) = status();
        let bytes = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let target = Arc::clone(&bytes);
        let writer = thread::spawn(move || {
            peer.may_begin(REGION).ok()?;
            target.iter().for_each(|word| word.store(7, Ordering::Relaxed));
            peer.may_succeed(REGION).ok()
        });
        own.close_region(REGION);
        let landed: Vec<u64> = bytes.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let succeeded = writer.join().expect("nothing to fail").is_some();
        assert!(!succeeded || landed == [7, 7], "{landed:?}");
    });
}

#[test]
fn loom_a_write_that_lands_late_has_its_messages_in_front_of_it() {
    check(|| {
        let (words, geometry) = Words::ring();
        let ring = geometry.ring(Side::Client);
        let mut producer = Producer::new(words.clone(), ring, geometry);
        let mut consumer = Consumer::new(words, ring, geometry);
        let (own, peer) = status();
        let writer = thread::spawn(move || {
            push(&mut producer, 1);
            peer.fence();
            peer.may_begin(REGION).is_ok()
        });
        own.close_vi(VI);
        let drained = pop(&mut consumer).is_some();
        let writes = writer.join().expect("nothing to fail");
        assert!(drained || !writes, "it writes, and the message before it was missed");
    });
}
