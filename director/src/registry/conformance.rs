//! What every implementation of [`Registry`] is tested for: the promises of the trait, through any number of clients.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::{Cas, Key, Registry, RegistryError, Revision, VALUE_BYTES_MAX, Versioned};

/// An implementation under test: clients of one store, and what drives their futures.
pub(super) trait World {
    type Client: Registry;

    /// Another client, like another director's.
    fn client(&mut self) -> Self::Client;

    fn run<F: Future>(&mut self, future: F) -> F::Output;
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for what another thread does.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

/// The whole suite, each test with a fresh world.
pub(super) fn conforms<W: World>(mut fresh: impl FnMut() -> W) {
    a_value_is_made_once(&mut fresh());
    a_change_needs_the_newest_revision(&mut fresh());
    keys_are_independent(&mut fresh());
    values_have_bounds(&mut fresh());
    all_clients_see_one_store(&mut fresh());
    one_of_many_wins(&mut fresh());
    no_change_is_lost_under_contention(&mut fresh());
    abandoned_changes_happen_or_not(&mut fresh());
}

fn a_value_is_made_once<W: World>(world: &mut W) {
    let (client, key) = (world.client(), key("pair"));
    assert_eq!(world.run(client.get(&key)), Ok(None));
    let unmade = Revision::new(7);
    assert_eq!(world.run(client.compare_and_swap(&key, unmade, b"x")), Ok(Cas::Lost(None)));
    let revision = won(world.run(client.compare_and_swap(&key, None, b"first")));
    let first = Versioned { revision, value: b"first".to_vec() };
    assert_eq!(world.run(client.get(&key)), Ok(Some(first.clone())));
    assert_eq!(world.run(client.compare_and_swap(&key, None, b"second")), Ok(Cas::Lost(Some(first.clone()))));
    assert_eq!(world.run(client.get(&key)), Ok(Some(first)));
}

fn a_change_needs_the_newest_revision<W: World>(world: &mut W) {
    let (client, key) = (world.client(), key("pair"));
    let mut revisions = vec![won(world.run(client.compare_and_swap(&key, None, b"0")))];
    for i in 1..10_u8 {
        let newest = revisions.last().copied();
        let revision = won(world.run(client.compare_and_swap(&key, newest, &[i])));
        assert!(Some(revision) > newest, "revisions grow");
        revisions.push(revision);
    }
    let newest = Versioned { revision: revisions.pop().expect("ten"), value: vec![9] };
    for old in revisions.into_iter().map(Some).chain([None, Revision::new(newest.revision.number() + 1)]) {
        let lost = world.run(client.compare_and_swap(&key, old, b"late"));
        assert_eq!(lost, Ok(Cas::Lost(Some(newest.clone()))), "expected {old:?}");
    }
    assert_eq!(world.run(client.get(&key)), Ok(Some(newest)));
}

fn keys_are_independent<W: World>(world: &mut W) {
    let client = world.client();
    let longest = "k".repeat(super::KEY_BYTES_MAX);
    let names = ["a", "a-", "a.b", "0_", "tmp-1-1", "00000000000000000001", &longest];
    for name in names {
        won(world.run(client.compare_and_swap(&key(name), None, name.as_bytes())));
    }
    for name in names {
        let value = world.run(client.get(&key(name))).expect("get").expect("it was made").value;
        assert_eq!(value, name.as_bytes());
    }
}

fn values_have_bounds<W: World>(world: &mut W) {
    let (client, key) = (world.client(), key("pair"));
    let revision = won(world.run(client.compare_and_swap(&key, None, b"")));
    assert_eq!(world.run(client.get(&key)), Ok(Some(Versioned { revision, value: vec![] })));
    let too_large = vec![1; VALUE_BYTES_MAX + 1];
    let refused = world.run(client.compare_and_swap(&key, Some(revision), &too_large));
    assert_eq!(refused, Err(RegistryError::TooLarge));
    let largest = vec![2; VALUE_BYTES_MAX];
    let revision = won(world.run(client.compare_and_swap(&key, Some(revision), &largest)));
    assert_eq!(world.run(client.get(&key)), Ok(Some(Versioned { revision, value: largest })));
}

fn all_clients_see_one_store<W: World>(world: &mut W) {
    let (a, b, key) = (world.client(), world.client(), key("pair"));
    let first = won(world.run(a.compare_and_swap(&key, None, b"a")));
    assert_eq!(world.run(b.get(&key)), Ok(Some(Versioned { revision: first, value: b"a".to_vec() })));
    let second = won(world.run(b.compare_and_swap(&key, Some(first), b"b")));
    let newest = Versioned { revision: second, value: b"b".to_vec() };
    assert_eq!(world.run(a.compare_and_swap(&key, Some(first), b"late")), Ok(Cas::Lost(Some(newest.clone()))));
    let late = world.client();
    assert_eq!(world.run(late.get(&key)), Ok(Some(newest)));
}

fn one_of_many_wins<W: World>(world: &mut W) {
    let (clients, key) = ([world.client(), world.client(), world.client(), world.client()], key("pair"));
    let mut newest = None;
    for round in 0..10_u8 {
        let attempts = (0_u8..).zip(&clients).map(|(i, client)| {
            let key = &key;
            async move { client.compare_and_swap(key, newest, &[round, i]).await }
        });
        let outcomes = world.run(all(attempts));
        let current = world.run(clients[0].get(&key)).expect("get").expect("somebody won");
        let winners = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Cas::Won(_)))).count();
        let unknown = outcomes.iter().filter(|outcome| **outcome == Err(RegistryError::Unknown)).count();
        assert!(winners == 1 || (winners == 0 && unknown > 0), "round {round}: {outcomes:?}");
        for (i, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(Cas::Won(revision)) => {
                    assert_eq!((usize::from(current.value[1]), current.revision), (i, revision));
                }
                Ok(Cas::Lost(instead)) => assert_eq!(instead.as_ref(), Some(&current)),
                Err(RegistryError::Unknown) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(current.value[0], round);
        newest = Some(current.revision);
    }
}

/// Each client adds one, many times. Its own wins are in the value, so that even an unknown outcome is found out by reading.
fn no_change_is_lost_under_contention<W: World>(world: &mut W) {
    const CLIENTS: usize = 3;
    const EACH: u8 = 20;
    let clients: Vec<_> = (0..CLIENTS).map(|_| world.client()).collect();
    let key = key("counters");
    let adders = clients.iter().enumerate().map(|(i, client)| {
        let key = &key;
        async move {
            let mut mine = 0;
            while mine < EACH {
                let current = match client.get(key).await {
                    Ok(current) => current,
                    Err(RegistryError::Unknown | RegistryError::Busy) => continue,
                    Err(other) => panic!("{other}"),
                };
                let mut counters = current.as_ref().map_or(vec![0; CLIENTS], |c| c.value.clone());
                assert!(counters[i] == mine || counters[i] == mine + 1, "a change that was won is gone");
                mine = counters[i];
                counters[i] += 1;
                if let Ok(Cas::Won(_)) = client.compare_and_swap(key, current.map(|c| c.revision), &counters).await {
                    mine += 1;
                }
            }
        }
    });
    world.run(all(adders));
    let settled = world.run(clients[0].get(&key)).expect("get").expect("somebody won").value;
    assert!(settled.iter().all(|count| *count >= EACH), "{settled:?}");
}

fn abandoned_changes_happen_or_not<W: World>(world: &mut W) {
    let (client, key) = (world.client(), key("pair"));
    let mut newest = won(world.run(client.compare_and_swap(&key, None, &[0])));
    for i in 1..20 {
        let value = [i];
        let mut abandoned = Box::pin(client.compare_and_swap(&key, Some(newest), &value));
        let polled = world.run(poll_fn(|cx| Poll::Ready(abandoned.as_mut().poll(cx))));
        assert!(polled.is_pending());
        drop(abandoned);
        newest = match world.run(client.compare_and_swap(&key, Some(newest), &[100])) {
            Ok(Cas::Won(revision)) => revision,
            Ok(Cas::Lost(Some(current))) => {
                assert_eq!(current.value, value);
                current.revision
            }
            other => panic!("{other:?}"),
        };
    }
}

pub(super) fn won(outcome: Result<Cas, RegistryError>) -> Revision {
    match outcome {
        Ok(Cas::Won(revision)) => revision,
        other => panic!("not won: {other:?}"),
    }
}

/// Runs all of them at once to their ends.
pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[test]
fn keys_are_plain_names() {
    for good in ["a", "0", "pair.1", "group-a_b", &"x".repeat(64)] {
        assert_eq!(Key::new(good).expect("a key").as_str(), good);
    }
    for bad in ["", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
        assert_eq!(Key::new(bad), None, "{bad:?}");
    }
}
