//! The waiting places against plain models, over random histories.
//!
//! A model keeps who waits as plain lists in order of arrival, and says after each step who must have been given what. Checked
//! after every step: exactly those were woken, and exactly those complete when polled.

use super::testing::Waiting;
use super::{Acquire, Inbox, KeyGuard, KeyedLocks, Lock, Next, Permit, Permits, Push};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::task::Poll;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

/// The futures that wait, and those among them that the model says were given something.
struct Waiters<F> {
    futures: Vec<Waiting<F>>,
    given: BTreeSet<usize>,
    arrived: usize,
}

impl<F: Future> Waiters<F> {
    fn new() -> Self {
        Self { futures: Vec::new(), given: BTreeSet::new(), arrived: 0 }
    }

    /// Polls a new future once: what it completed with, or its number if it waits.
    fn arrive(&mut self, future: F) -> Result<F::Output, usize> {
        let number = self.arrived;
        self.arrived += 1;
        let mut waiting = Waiting::new(number, future);
        match waiting.poll() {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => {
                self.futures.push(waiting);
                Err(number)
            }
        }
    }

    /// Polls one that waits: its number, and what it completed with; it must complete if and only if it was given something.
    fn poll(&mut self, which: Index) -> Option<(usize, F::Output)> {
        let place = (!self.futures.is_empty()).then(|| which.index(self.futures.len()))?;
        let number = self.futures[place].number;
        match self.futures[place].poll() {
            Poll::Ready(output) => {
                assert!(self.given.remove(&number), "{number} completed and was given nothing");
                self.futures.swap_remove(place);
                Some((number, output))
            }
            Poll::Pending => {
                assert!(!self.given.contains(&number), "{number} was given something and does not complete");
                None
            }
        }
    }

    /// Drops one that waits: its number, and whether it had been given something.
    fn leave(&mut self, which: Index) -> Option<(usize, bool)> {
        let place = (!self.futures.is_empty()).then(|| which.index(self.futures.len()))?;
        let number = self.futures.swap_remove(place).number;
        Some((number, self.given.remove(&number)))
    }

    /// Exactly those were woken that the model says were given something.
    fn check(&self) {
        for waiting in &self.futures {
            assert_eq!(waiting.is_woken(), self.given.contains(&waiting.number), "waiter {}", waiting.number);
        }
    }
}

#[derive(Debug, Clone)]
enum InboxStep {
    TryPush,
    TryNext,
    Push,
    Next,
    PollPush(Index),
    PollNext(Index),
    LeavePush(Index),
    LeaveNext(Index),
}

fn inbox_step() -> impl Strategy<Value = InboxStep> {
    use InboxStep::{LeaveNext, LeavePush, PollNext, PollPush};
    let index = any::<Index>;
    prop_oneof![
        2 => Just(InboxStep::TryPush),
        1 => Just(InboxStep::TryNext),
        2 => Just(InboxStep::Push),
        3 => Just(InboxStep::Next),
        2 => index().prop_map(PollPush),
        2 => index().prop_map(PollNext),
        1 => index().prop_map(LeavePush),
        1 => index().prop_map(LeaveNext),
    ]
}

/// Items and who waits, in order.
#[derive(Default)]
struct InboxModel {
    capacity: usize,
    items: VecDeque<usize>,
    receivers: VecDeque<usize>,
    pushers: VecDeque<usize>,
}

impl InboxModel {
    /// Gives away what can be given; the rest must be as the queue says.
    fn settle(&mut self, next: &mut BTreeSet<usize>, push: &mut BTreeSet<usize>) {
        while self.items.len() > next.len() && !self.receivers.is_empty() {
            next.extend(self.receivers.pop_front());
        }
        while self.items.len() + push.len() < self.capacity && !self.pushers.is_empty() {
            push.extend(self.pushers.pop_front());
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_inbox_does_what_its_model_does(
        capacity in 1..4_usize,
        steps in prop::collection::vec(inbox_step(), 0..60),
    ) {
        let inbox = Inbox::new(capacity);
        let mut model = InboxModel { capacity, ..InboxModel::default() };
        let mut nexts = Waiters::<Next<'_, usize>>::new();
        let mut pushes = Waiters::<Push<'_, usize>>::new();
        // What each waiting push will put in.
        let mut pushed = BTreeMap::new();
        for (item, step) in steps.into_iter().enumerate() {
            let has_room = model.items.len() + pushes.given.len() < capacity;
            let has_item = model.items.len() > nexts.given.len();
            match step {
                InboxStep::TryPush => {
                    prop_assert_eq!(inbox.try_push(item).is_ok(), has_room);
                    model.items.extend(has_room.then_some(item));
                }
                InboxStep::TryNext => {
                    let expected = if has_item { model.items.pop_front() } else { None };
                    prop_assert_eq!(inbox.try_next(), expected);
                }
                InboxStep::Push => match pushes.arrive(inbox.push(item)) {
                    Ok(()) => {
                        prop_assert!(has_room);
                        model.items.push_back(item);
                    }
                    Err(number) => {
                        prop_assert!(!has_room);
                        model.pushers.push_back(number);
                        pushed.insert(number, item);
                    }
                },
                InboxStep::Next => match nexts.arrive(inbox.next()) {
                    Ok(item) => {
                        prop_assert!(has_item);
                        prop_assert_eq!(model.items.pop_front(), Some(item));
                    }
                    Err(number) => {
                        prop_assert!(!has_item);
                        model.receivers.push_back(number);
                    }
                },
                InboxStep::PollPush(which) => {
                    if let Some((number, ())) = pushes.poll(which) {
                        model.items.push_back(pushed[&number]);
                    }
                }
                InboxStep::PollNext(which) => {
                    if let Some((_, item)) = nexts.poll(which) {
                        prop_assert_eq!(model.items.pop_front(), Some(item));
                    }
                }
                InboxStep::LeavePush(which) => {
                    if let Some((number, _)) = pushes.leave(which) {
                        model.pushers.retain(|waiting| *waiting != number);
                    }
                }
                InboxStep::LeaveNext(which) => {
                    if let Some((number, _)) = nexts.leave(which) {
                        model.receivers.retain(|waiting| *waiting != number);
                    }
                }
            }
            model.settle(&mut nexts.given, &mut pushes.given);
            nexts.check();
            pushes.check();
            prop_assert_eq!(inbox.len(), model.items.len());
        }
    }
}

#[derive(Debug, Clone)]
enum PermitsStep {
    TryAcquire(usize),
    Acquire(usize),
    Poll(Index),
    Leave(Index),
    Return(Index),
    Add(usize),
}

fn permits_step() -> impl Strategy<Value = PermitsStep> {
    prop_oneof![
        1 => (0..4_usize).prop_map(PermitsStep::TryAcquire),
        4 => (0..4_usize).prop_map(PermitsStep::Acquire),
        2 => any::<Index>().prop_map(PermitsStep::Poll),
        1 => any::<Index>().prop_map(PermitsStep::Leave),
        3 => any::<Index>().prop_map(PermitsStep::Return),
        1 => (0..2_usize).prop_map(PermitsStep::Add),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn permits_do_what_their_model_does(
        count in 0..5_usize,
        steps in prop::collection::vec(permits_step(), 0..60),
    ) {
        let permits = Permits::new(count);
        let mut available = count;
        // Who waits, and for how many, in order.
        let mut queue = VecDeque::<(usize, usize)>::new();
        let mut wanted = BTreeMap::new();
        let mut waiters = Waiters::<Acquire<'_>>::new();
        let mut held = Vec::<Permit>::new();
        for step in steps {
            let free = |count| queue.is_empty() && count <= available;
            match step {
                PermitsStep::TryAcquire(count) => {
                    let permit = permits.try_acquire(count);
                    prop_assert_eq!(permit.is_some(), free(count));
                    available -= permit.as_ref().map_or(0, Permit::count);
                    held.extend(permit);
                }
                PermitsStep::Acquire(count) => match waiters.arrive(permits.acquire(count)) {
                    Ok(permit) => {
                        prop_assert!(free(count));
                        available -= count;
                        held.push(permit);
                    }
                    Err(number) => {
                        prop_assert!(!free(count));
                        queue.push_back((number, count));
                        wanted.insert(number, count);
                    }
                },
                PermitsStep::Poll(which) => {
                    if let Some((number, permit)) = waiters.poll(which) {
                        prop_assert_eq!(permit.count(), wanted[&number]);
                        held.push(permit);
                    }
                }
                PermitsStep::Leave(which) => {
                    if let Some((number, given)) = waiters.leave(which) {
                        queue.retain(|(waiting, _)| *waiting != number);
                        available += if given { wanted[&number] } else { 0 };
                    }
                }
                PermitsStep::Return(which) if !held.is_empty() => {
                    available += held.swap_remove(which.index(held.len())).count();
                }
                PermitsStep::Return(_) => {}
                PermitsStep::Add(count) => {
                    permits.add(count);
                    available += count;
                }
            }
            while let Some(&(number, count)) = queue.front().filter(|(_, count)| *count <= available) {
                available -= count;
                queue.pop_front();
                waiters.given.insert(number);
            }
            waiters.check();
            prop_assert_eq!(permits.available(), available);
        }
    }
}

#[derive(Debug, Clone)]
enum LocksStep {
    TryLock(u8),
    Lock(u8),
    Poll(Index),
    Leave(Index),
    Unlock(Index),
}

fn locks_step() -> impl Strategy<Value = LocksStep> {
    prop_oneof![
        1 => (0..5_u8).prop_map(LocksStep::TryLock),
        4 => (0..5_u8).prop_map(LocksStep::Lock),
        3 => any::<Index>().prop_map(LocksStep::Poll),
        1 => any::<Index>().prop_map(LocksStep::Leave),
        3 => any::<Index>().prop_map(LocksStep::Unlock),
    ]
}

/// Who waits at the gate and at each locked key, in order.
#[derive(Default)]
struct LocksModel {
    gate: VecDeque<(usize, u8)>,
    locked: BTreeMap<u8, VecDeque<usize>>,
}

impl LocksModel {
    fn unlock(&mut self, key: u8, given: &mut BTreeSet<usize>) {
        let queue = self.locked.get_mut(&key).expect("locked");
        match queue.pop_front() {
            Some(next) => {
                given.insert(next);
            }
            None => {
                self.locked.remove(&key);
            }
        }
    }

    fn settle(&mut self, capacity: usize, given: &mut BTreeSet<usize>) {
        while let Some(&(number, key)) = self.gate.front() {
            let room = self.locked.len() < capacity;
            match self.locked.get_mut(&key) {
                Some(queue) => queue.push_back(number),
                None if room => {
                    self.locked.insert(key, VecDeque::new());
                    given.insert(number);
                }
                None => return,
            }
            self.gate.pop_front();
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn keyed_locks_do_what_their_model_does(
        capacity in 1..4_usize,
        steps in prop::collection::vec(locks_step(), 0..60),
    ) {
        let locks = KeyedLocks::new(capacity);
        let mut model = LocksModel::default();
        let mut waiters = Waiters::<Lock<'_, u8>>::new();
        let mut keys = BTreeMap::new();
        let mut held = Vec::<KeyGuard<u8>>::new();
        for step in steps {
            let free = |key: u8| {
                model.gate.is_empty() && model.locked.len() < capacity && !model.locked.contains_key(&key)
            };
            match step {
                LocksStep::TryLock(key) => {
                    let guard = locks.try_lock(key);
                    prop_assert_eq!(guard.is_some(), free(key));
                    if let Some(guard) = guard {
                        model.locked.insert(key, VecDeque::new());
                        held.push(guard);
                    }
                }
                LocksStep::Lock(key) => match waiters.arrive(locks.lock(key)) {
                    Ok(guard) => {
                        prop_assert!(free(key));
                        model.locked.insert(key, VecDeque::new());
                        held.push(guard);
                    }
                    Err(number) => {
                        prop_assert!(!free(key));
                        model.gate.push_back((number, key));
                        keys.insert(number, key);
                    }
                },
                LocksStep::Poll(which) => {
                    if let Some((number, guard)) = waiters.poll(which) {
                        prop_assert_eq!(guard.key(), keys[&number]);
                        prop_assert!(held.iter().all(|other| other.key() != guard.key()), "two have one key");
                        held.push(guard);
                    }
                }
                LocksStep::Leave(which) => {
                    if let Some((number, given)) = waiters.leave(which) {
                        model.gate.retain(|(waiting, _)| *waiting != number);
                        model.locked.values_mut().for_each(|queue| queue.retain(|waiting| *waiting != number));
                        if given {
                            model.unlock(keys[&number], &mut waiters.given);
                        }
                    }
                }
                LocksStep::Unlock(which) if !held.is_empty() => {
                    let guard = held.swap_remove(which.index(held.len()));
                    model.unlock(guard.key(), &mut waiters.given);
                }
                LocksStep::Unlock(_) => {}
            }
            model.settle(capacity, &mut waiters.given);
            waiters.check();
            prop_assert_eq!(locks.locked(), model.locked.len());
        }
    }
}
