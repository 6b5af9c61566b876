//! The fake conforms, and its faults break no promise but that of an answer.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dyad_reactor::Clock;

use super::*;
use crate::registry::conformance::{World, all, conforms, key, won};

const SEEDS: u64 = 100;

struct Bench {
    time: VirtualTime,
    registry: FakeRegistry,
}

impl Bench {
    fn new(seed: u64, faults: Faults) -> Self {
        let time = VirtualTime::new(seed);
        let registry = FakeRegistry::new(time.clone(), seed);
        registry.set_faults(faults);
        Self { time, registry }
    }

    fn run_out(&self) {
        while let Some(next) = self.time.next_event() {
            self.time.advance_to(next);
            self.time.run_due();
        }
    }
}

impl World for Bench {
    type Client = FakeClient;

    fn client(&mut self) -> FakeClient {
        self.registry.client()
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            let next = self.time.next_event().expect("the future waits for something that will happen");
            self.time.advance_to(next);
            self.time.run_due();
        }
    }
}

#[test]
fn it_conforms() {
    for seed in 0..SEEDS {
        conforms(|| Bench::new(seed, Faults::default()));
    }
}

#[test]
fn changes_under_every_fault_are_all_or_nothing() {
    const CLIENTS: usize = 3;
    let (mut unknown, mut lost_to_itself, mut applied_late) = (0, 0, 0);
    for seed in 0..SEEDS {
        let faults = Faults { request_lost: 8, answer_lost: 8, duplicated: 4, late: 8 };
        let mut bench = Bench::new(seed, faults);
        let key = key("pair");
        let clients: Vec<_> = (0..CLIENTS).map(|_| bench.client()).collect();
        // Every value is unique. Whatever was won must have been the value at its revision, for ever.
        let history = Rc::new(RefCell::new(BTreeMap::<Revision, Vec<u8>>::new()));
        let note = |versioned: Versioned| {
            let value = versioned.value.clone();
            let before = history.borrow_mut().insert(versioned.revision, versioned.value);
            assert!(before.is_none_or(|before| before == value), "one revision, two values");
        };
        let directors = (0_u8..).zip(&clients).map(|(i, client)| {
            let (key, note) = (&key, &note);
            async move {
                let (mut unknown, mut lost_to_itself) = (0, 0);
                for turn in 0..10_u8 {
                    let Ok(current) = client.get(key).await else { continue };
                    current.iter().cloned().for_each(note);
                    let value = [i, turn];
                    match client.compare_and_swap(key, current.map(|c| c.revision), &value).await {
                        Ok(Cas::Won(revision)) => note(Versioned { revision, value: value.to_vec() }),
                        Ok(Cas::Lost(now)) => {
                            lost_to_itself += u32::from(now.as_ref().is_some_and(|now| now.value == value));
                            now.into_iter().for_each(note);
                        }
                        Err(RegistryError::Unknown) => unknown += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (unknown, lost_to_itself)
            }
        });
        for (u, l) in bench.run(all(directors)) {
            unknown += u;
            lost_to_itself += l;
        }
        let then = bench.registry.contents(&key);
        bench.run_out();
        applied_late += u32::from(bench.registry.contents(&key) != then);
        bench.registry.contents(&key).into_iter().for_each(note);
        let newest = history.borrow().keys().next_back().copied();
        assert_eq!(bench.registry.contents(&key).map(|c| c.revision), newest, "it never goes back");
    }
    assert!(unknown > 0 && lost_to_itself > 0 && applied_late > 0, "{unknown} {lost_to_itself} {applied_late}");
}

#[test]
fn a_cut_client_knows_nothing_and_others_go_on() {
    let mut bench = Bench::new(1, Faults::default());
    let (a, b, key) = (bench.client(), bench.client(), key("pair"));
    let first = won(bench.run(a.compare_and_swap(&key, None, b"1")));
    a.set_link(Link::RequestsLost);
    let before = bench.time.now();
    assert_eq!(bench.run(a.get(&key)), Err(RegistryError::Unknown));
    assert_eq!(bench.time.now().since(before), Timing::default().timeout, "bounded");
    assert_eq!(bench.run(a.compare_and_swap(&key, Some(first), b"2")), Err(RegistryError::Unknown));
    assert_eq!(bench.run(b.get(&key)).expect("get").expect("a value").revision, first);
    a.clone().set_link(Link::AnswersLost);
    assert_eq!(bench.run(a.compare_and_swap(&key, Some(first), b"3")), Err(RegistryError::Unknown));
    let current = bench.run(b.get(&key)).expect("get").expect("a value");
    assert_eq!(current.value, b"3", "it was made all the same");
    a.set_link(Link::Up);
    assert_eq!(bench.run(a.get(&key)), Ok(Some(current)));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut bench = Bench::new(seed, Faults { duplicated: 2, ..Faults::default() });
        let (client, key) = (bench.client(), key("pair"));
        (0..5_u8)
            .map(|i| (format!("{:?}", bench.run(client.compare_and_swap(&key, None, &[i]))), bench.time.now()))
            .collect::<Vec<_>>()
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
