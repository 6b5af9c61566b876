//! Completion queues: where finished descriptors of several VIs wait for the one task that polls.
//!
//! A queue cannot overflow: a VI takes the room for all descriptors that it may ever have outstanding when it is made,
//! and a descriptor stays outstanding until its completion is polled.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use crate::provider::{Completion, ResourceError, ViAttributes, ViId};
use crate::slots::Slots;

#[derive(Debug)]
pub(crate) struct CompletionQueue {
    ready: VecDeque<Completion>,
    depth: u32,
    /// Room taken by VIs that are there.
    taken: u32,
    waiter: Option<Waker>,
}

impl CompletionQueue {
    pub(crate) fn new(depth: u32) -> Self {
        let capacity = usize::try_from(depth).expect("depths fit the address space");
        Self { ready: VecDeque::with_capacity(capacity), depth, taken: 0, waiter: None }
    }

    /// Takes room for a VI's work queue of `depth` descriptors. `alive` says which VIs are there: what others left in the
    /// queue takes room as well.
    fn take_room(&mut self, depth: u16, alive: impl Fn(ViId) -> bool) -> Result<(), ResourceError> {
        let left_over = self.ready.iter().filter(|completion| !alive(completion.vi)).count();
        let left_over = u32::try_from(left_over).unwrap_or(u32::MAX);
        if self.depth - self.taken < left_over.saturating_add(u32::from(depth)) {
            return Err(ResourceError::Exhausted("VI on the completion queue"));
        }
        self.taken += u32::from(depth);
        Ok(())
    }

    /// Gives the room of a VI back.
    fn give_room(&mut self, depth: u16) {
        self.taken -= u32::from(depth);
    }

    pub(crate) fn push(&mut self, completion: Completion) {
        assert!(self.ready.len() < self.ready.capacity(), "VIs took the room for all that they complete");
        self.ready.push_back(completion);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Completion> {
        match self.ready.pop_front() {
            Some(completion) => Poll::Ready(completion),
            None => {
                remember(&mut self.waiter, cx);
                Poll::Pending
            }
        }
    }

    /// Nobody waits any more (the process of the waiter died).
    pub(crate) fn forget_waiter(&mut self) {
        self.waiter = None;
    }
}

/// Takes room for all descriptors of a VI; if there is none, nothing is taken.
pub(crate) fn take_room(
    cqs: &mut Slots<CompletionQueue>,
    attributes: &ViAttributes,
    alive: impl Fn(ViId) -> bool + Copy,
) -> Result<(), ResourceError> {
    let unknown = ResourceError::Unknown("completion queue");
    if cqs.get(attributes.receive_cq.0).is_none() {
        return Err(unknown);
    }
    cqs.get_mut(attributes.send_cq.0).ok_or(unknown)?.take_room(attributes.send_depth, alive)?;
    let receive_cq = cqs.get_mut(attributes.receive_cq.0).expect("it was just there");
    receive_cq.take_room(attributes.receive_depth, alive).inspect_err(|_| {
        cqs.get_mut(attributes.send_cq.0).expect("it was just there").give_room(attributes.send_depth);
    })
}

/// Gives the room of a VI back.
pub(crate) fn give_room(cqs: &mut Slots<CompletionQueue>, attributes: &ViAttributes) {
    cqs.get_mut(attributes.send_cq.0).expect("queues outlive VIs").give_room(attributes.send_depth);
    cqs.get_mut(attributes.receive_cq.0).expect("queues outlive VIs").give_room(attributes.receive_depth);
}

/// Keeps the waker of the one task that waits.
pub(crate) fn remember(waiter: &mut Option<Waker>, cx: &Context<'_>) {
    match waiter {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waiter = Some(cx.waker().clone()),
    }
}
