//! A fixed table of questions that were sent and await their answers.
//!
//! A ticket goes out with the question and comes back with the answer. It names an entry and the entry's generation, so an
//! answer that comes late, twice or from nowhere finds nothing (the generation repeats after 2^32 uses of one entry).

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Names a question: the entry's index in the low, its generation in the high 32 bits.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

impl Ticket {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(index) | u64::from(generation) << 32)
    }

    fn split(self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    /// The ticket in a message.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The ticket out of a message. Any number is a ticket; most name nothing.
    #[must_use]
    pub const fn from_u64(word: u64) -> Self {
        Self(word)
    }
}

#[derive(Debug)]
enum Place<T> {
    /// On the free list; then the next free entry.
    Free(Option<u32>),
    /// No answer yet.
    Waiting(Option<Waker>),
    /// The answer is here, its receiver has not polled yet.
    Answered(T),
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    place: Place<T>,
}

#[derive(Debug)]
struct State<T> {
    entries: Box<[Entry<T>]>,
    free: Option<u32>,
}

/// The table. Clones are the same.
pub struct Replies<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> Replies<T> {
    /// A table for at most `capacity` questions at one time.
    ///
    /// # Panics
    /// If `capacity` is 2^32 or more.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let count = u32::try_from(capacity).expect("fewer than 2^32 entries");
        let next_free = |index: u32| (index + 1 < count).then_some(index + 1);
        let entries = (0..count).map(|index| Entry { generation: 0, place: Place::Free(next_free(index)) }).collect();
        Self { state: Rc::new(RefCell::new(State { entries, free: (count > 0).then_some(0) })) }
    }

    /// Takes an entry for a question; `None` if all are in use.
    #[must_use]
    pub fn reserve(&self) -> Option<Pending<T>> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let index = state.free?;
        let entry = &mut state.entries[index as usize];
        let Place::Free(next) = std::mem::replace(&mut entry.place, Place::Waiting(None)) else {
            unreachable!("only free entries stand on the free list");
        };
        state.free = next;
        let ticket = Ticket::new(index, entry.generation);
        Some(Pending { replies: self.clone(), ticket, ended: false })
    }

    /// Gives the answer to the question of `ticket`; false if nobody waits for it (any more).
    #[must_use = "an answer nobody waits for is worth counting"]
    pub fn complete(&self, ticket: Ticket, answer: T) -> bool {
        let (index, generation) = ticket.split();
        let mut state = self.state.borrow_mut();
        match state.entries.get_mut(index as usize) {
            Some(entry) if entry.generation == generation => entry.answer(|| answer),
            _ => false,
        }
    }

    /// Answers every question that waits; returns how many.
    pub fn fail_all(&self, mut answer: impl FnMut() -> T) -> usize {
        self.state.borrow_mut().entries.iter_mut().filter_map(|entry| entry.answer(&mut answer).then_some(())).count()
    }
}

impl<T> Entry<T> {
    /// Puts the answer in, if one is waited for.
    fn answer(&mut self, answer: impl FnOnce() -> T) -> bool {
        let Place::Waiting(waker) = &mut self.place else { return false };
        let waker = waker.take();
        self.place = Place::Answered(answer());
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl<T> State<T> {
    /// Frees an entry; its tickets name nothing any more.
    fn free(&mut self, index: u32) -> Place<T> {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let place = std::mem::replace(&mut entry.place, Place::Free(self.free));
        self.free = Some(index);
        place
    }
}

impl<T> Clone for Replies<T> {
    fn clone(&self) -> Self {
        Self { state: Rc::clone(&self.state) }
    }
}

impl<T> fmt::Debug for Replies<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        let in_use = state.entries.iter().filter(|entry| !matches!(entry.place, Place::Free(_))).count();
        f.debug_struct("Replies").field("in_use", &in_use).field("capacity", &state.entries.len()).finish()
    }
}

/// A question that awaits its answer. Dropping it frees the entry; the answer, if it comes, finds nobody.
#[must_use = "dropping it abandons the answer"]
#[derive(Debug)]
pub struct Pending<T> {
    replies: Replies<T>,
    ticket: Ticket,
    ended: bool,
}

impl<T> Pending<T> {
    /// The ticket to send with the question.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        assert!(!this.ended, "polled after it completed");
        let (index, _) = this.ticket.split();
        let mut state = this.replies.state.borrow_mut();
        match &mut state.entries[index as usize].place {
            Place::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            Place::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Place::Answered(_) => {
                this.ended = true;
                let Place::Answered(answer) = state.free(index) else { unreachable!("it was answered just now") };
                Poll::Ready(answer)
            }
            Place::Free(_) => unreachable!("the entry is this future's own"),
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.ended {
            let (index, _) = self.ticket.split();
            let place = self.replies.state.borrow_mut().free(index);
            // Outside the borrow: an answer may do anything when it is dropped.
            drop(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::poll;
    use super::*;
    use std::pin::pin;

    #[test]
    fn an_answer_finds_its_question_once() {
        let replies = Replies::new(1);
        let pending = replies.reserve().expect("one entry");
        let ticket = pending.ticket();
        assert!(replies.reserve().is_none());
        let mut pending = pin!(pending);
        assert!(poll(pending.as_mut()).is_pending());
        assert!(replies.complete(Ticket::from_u64(ticket.to_u64()), 5));
        assert!(!replies.complete(ticket, 6), "a second answer");
        assert_eq!(poll(pending.as_mut()), Poll::Ready(5));
        assert!(!replies.complete(ticket, 7), "a late answer");
        let next = replies.reserve().expect("free again");
        assert!(!replies.complete(ticket, 8), "an answer to the entry's last question");
        assert!(!replies.complete(Ticket::from_u64(u64::MAX), 9), "no such entry");
        assert!(replies.complete(next.ticket(), 10));
    }

    #[test]
    fn dropping_a_question_frees_its_entry() {
        let replies = Replies::new(1);
        for _ in 0..3 {
            let pending = replies.reserve().expect("free");
            let ticket = pending.ticket();
            assert!(replies.complete(ticket, 1));
            drop(pending);
            assert!(!replies.complete(ticket, 1));
        }
    }

    #[test]
    fn fail_all_answers_what_waits_and_nothing_else() {
        let replies = Replies::new(3);
        let (answered, waiting) = (replies.reserve().expect("free"), replies.reserve().expect("free"));
        assert!(replies.complete(answered.ticket(), 1));
        assert_eq!(replies.fail_all(|| -1), 1);
        assert_eq!(poll(pin!(answered)), Poll::Ready(1));
        assert_eq!(poll(pin!(waiting)), Poll::Ready(-1));
    }
}
