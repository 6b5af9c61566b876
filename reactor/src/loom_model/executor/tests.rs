//! No wake-up is lost, and no late waker harms the slot's next owner.

use super::super::check;
use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::slot::Slot;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A slot as the table has it, with a counter in place of the eventfd.
struct Entry {
    slot: Slot<1>,
    alarm: Mutex<u32>,
    raised: Condvar,
}

impl Entry {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slot: Slot { generation: AtomicU64::new(0), asleep: AtomicBool::new(false), ready: [AtomicU64::new(0)] },
            alarm: Mutex::new(0),
            raised: Condvar::new(),
        })
    }

    fn wake(&self, generation: u64, task: usize) {
        if self.slot.wake(generation, task) {
            *self.alarm.lock().unwrap() += 1;
            self.raised.notify_one();
        }
    }

    /// The reactor's turns until all of `wanted` was found ready, asleep in between; returns how often it slept.
    fn run_until(&self, wanted: u64) -> u32 {
        let mut found = 0;
        let mut sleeps = 0;
        loop {
            found |= self.slot.take(0);
            if found == wanted {
                return sleeps;
            }
            self.slot.fall_asleep();
            if !self.slot.any_ready(1) {
                sleeps += 1;
                let mut alarm = self.alarm.lock().unwrap();
                while *alarm == 0 {
                    alarm = self.raised.wait(alarm).unwrap();
                }
                *alarm = 0;
            }
            self.slot.wake_up();
        }
    }
}

#[test]
fn no_wake_up_is_lost_on_the_way_to_sleep() {
    check(|| {
        let entry = Entry::new();
        let generation = entry.slot.claim().unwrap();
        let message = Arc::new(AtomicU64::new(0));
        let (other_entry, other_message) = (Arc::clone(&entry), Arc::clone(&message));
        let other = thread::spawn(move || {
            other_message.store(7, Ordering::Relaxed);
            other_entry.wake(generation, 3);
        });
        entry.run_until(1 << 3);
        assert_eq!(message.load(Ordering::Relaxed), 7, "the waker's writes come with the wake-up");
        other.join().unwrap();
    });
}

#[test]
fn two_wakers_are_both_heard() {
    check(|| {
        let entry = Entry::new();
        let generation = entry.slot.claim().unwrap();
        let others = [1, 2].map(|task| {
            let entry = Arc::clone(&entry);
            thread::spawn(move || entry.wake(generation, task))
        });
        let sleeps = entry.run_until(0b110);
        assert!(sleeps <= 3, "two alarms and one left over: {sleeps}");
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn a_late_waker_costs_the_next_owner_at_most_a_spurious_poll() {
    check(|| {
        let entry = Entry::new();
        let first = entry.slot.claim().unwrap();
        let late = Arc::clone(&entry);
        let other = thread::spawn(move || late.wake(first, 0));
        entry.slot.release(first);
        let second = entry.slot.claim().unwrap();
        assert!(second > first);
        entry.wake(second, 5);
        let found = entry.slot.take(0);
        assert_eq!(found & !1, 1 << 5, "the owner's own wake-up is there whatever the late one does");
        other.join().unwrap();
        entry.wake(first, 6);
        assert_eq!(entry.slot.take(0) & !1, 0, "a waker that knows only the old generation does nothing");
    });
}

#[test]
fn a_slot_has_one_owner() {
    check(|| {
        let entry = Entry::new();
        let rival = Arc::clone(&entry);
        let other = thread::spawn(move || rival.slot.claim().is_some());
        let mine = entry.slot.claim().is_some();
        assert!(mine ^ other.join().unwrap());
    });
}
