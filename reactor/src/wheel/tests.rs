//! The wheel against a sorted map.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;

/// Runs the wheel to `now`; what expired, in the order in which it did.
fn expired(wheel: &mut Wheel<u64>, now: u64) -> Vec<u64> {
    let mut values = Vec::new();
    wheel.expire(Time::from_nanos(now), |value| values.push(value));
    values
}

#[test]
fn deadlines_at_every_level_expire_on_the_nanosecond() {
    let mut wheel = Wheel::new(Time::from_nanos(12_345), 100);
    let mut deadlines: Vec<u64> = (0..64).map(|bit| 12_345 + (1 << bit)).chain([u64::MAX]).collect();
    deadlines.sort_unstable();
    let keys: Vec<_> =
        deadlines.iter().rev().map(|&at| wheel.insert(Time::from_nanos(at), at).expect("room")).collect();
    for at in deadlines {
        assert_eq!(wheel.next_deadline(), Some(Time::from_nanos(at)));
        assert_eq!(expired(&mut wheel, at - 1), []);
        assert_eq!(expired(&mut wheel, at), [at]);
    }
    assert_eq!(wheel.next_deadline(), None);
    keys.into_iter().for_each(|key| wheel.free(key));
}

#[test]
fn a_full_wheel_says_so_and_a_freed_timer_makes_room() {
    let mut wheel = Wheel::new(Time::ZERO, 1);
    let key = wheel.insert(Time::from_nanos(5), 5).expect("room");
    assert!(wheel.insert(Time::from_nanos(6), 6).is_none());
    wheel.free(key);
    assert_eq!(wheel.next_deadline(), None);
    let key = wheel.insert(Time::from_nanos(7), 7).expect("room");
    assert_eq!(expired(&mut wheel, 100), [7]);
    assert!(wheel.insert(Time::from_nanos(108), 8).is_none(), "an expired timer is its owner's until freed");
    wheel.free(key);
}

#[derive(Debug, Clone)]
enum Step {
    /// Starts a timer so many nanoseconds after the position.
    Insert(u64),
    /// Frees one of the timers in use.
    Free(prop::sample::Index),
    /// Moves the position by so many nanoseconds.
    Expire(u64),
    /// Moves the position to the next deadline, or just before it.
    ExpireNext { early: bool },
}

/// Distances of every order of magnitude.
fn distance() -> impl Strategy<Value = u64> {
    (0..64_u32, any::<u64>()).prop_map(|(bits, noise)| 1 + (noise >> bits).min(u64::MAX - 1))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => distance().prop_map(Step::Insert),
        2 => any::<prop::sample::Index>().prop_map(Step::Free),
        2 => distance().prop_map(|by| Step::Expire(by >> 8)),
        2 => any::<bool>().prop_map(|early| Step::ExpireNext { early }),
    ]
}

const CAPACITY: usize = 20;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default()
    })]

    #[test]
    fn it_does_what_a_sorted_map_does(
        start in 0..=u64::MAX / 2,
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut wheel = Wheel::new(Time::from_nanos(start), CAPACITY);
        let mut position = start;
        // What waits, by deadline and number; and every timer in use, expired ones too.
        let mut waiting = BTreeMap::new();
        let mut keys: Vec<(TimerKey, u64, u64)> = Vec::new();
        let expire = |wheel: &mut Wheel<u64>, waiting: &mut BTreeMap<_, _>, to: u64| {
            let mut found = expired(wheel, to);
            found.sort_unstable();
            let later = waiting.split_off(&(to.saturating_add(1), 0));
            let due = if to == u64::MAX { std::mem::take(waiting) } else { std::mem::replace(waiting, later) };
            let mut due: Vec<u64> = due.into_keys().map(|(_, number)| number).collect();
            due.sort_unstable();
            assert_eq!(found, due, "expired at {to}");
        };
        for (number, step) in (0_u64..).zip(steps) {
            match step {
                Step::Insert(by) => {
                    let Some(deadline) = position.checked_add(by) else { continue };
                    let key = wheel.insert(Time::from_nanos(deadline), number);
                    prop_assert_eq!(key.is_some(), keys.len() < CAPACITY);
                    if let Some(key) = key {
                        waiting.insert((deadline, number), ());
                        keys.push((key, deadline, number));
                    }
                }
                Step::Free(which) if !keys.is_empty() => {
                    let (key, deadline, number) = keys.swap_remove(which.index(keys.len()));
                    wheel.free(key);
                    waiting.remove(&(deadline, number));
                }
                Step::Free(_) => {}
                Step::Expire(by) => {
                    position = position.saturating_add(by);
                    expire(&mut wheel, &mut waiting, position);
                }
                Step::ExpireNext { early } => {
                    if let Some(next) = wheel.next_deadline() {
                        position = next.as_nanos() - u64::from(early);
                        expire(&mut wheel, &mut waiting, position);
                    }
                }
            }
            prop_assert_eq!(wheel.position(), Time::from_nanos(position));
            let next = waiting.first_key_value().map(|((deadline, _), ())| Time::from_nanos(*deadline));
            prop_assert_eq!(wheel.next_deadline(), next);
        }
    }
}
