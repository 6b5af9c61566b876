//! A work queue of fixed depth, with room for the segments of each descriptor in it: nothing is allocated once it is made.

use std::collections::VecDeque;

use crate::memory::{MemoryId, Segment};
use crate::provider::SEGMENTS_MAX;

#[derive(Debug)]
pub(crate) struct WorkItems<T> {
    items: VecDeque<(T, Span)>,
    segments: Box<[Segment]>,
    depth: usize,
    /// Descriptors so far, modulo depth: where the next one's segments go.
    next: usize,
    /// Descriptors whose completion was not polled yet. They fill the queue too, so that completion queues cannot overflow.
    pub(crate) used: usize,
}

/// Where the segments of a descriptor are kept.
#[derive(Debug, Copy, Clone)]
struct Span {
    start: usize,
    len: usize,
}

impl<T> WorkItems<T> {
    pub(crate) fn new(depth: u16) -> Self {
        let depth = usize::from(depth);
        let nothing = Segment { memory: MemoryId(0), offset: 0, len: 0 };
        Self {
            items: VecDeque::with_capacity(depth),
            segments: vec![nothing; depth * SEGMENTS_MAX].into_boxed_slice(),
            depth,
            next: 0,
            used: 0,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used == self.depth
    }

    /// Puts a descriptor in.
    pub(crate) fn push(&mut self, item: T, segments: &[Segment]) {
        assert!(!self.is_full() && segments.len() <= SEGMENTS_MAX, "asked before");
        let start = self.next * SEGMENTS_MAX;
        // copy: the list of segments, not what is in them
        self.segments[start..start + segments.len()].copy_from_slice(segments);
        self.items.push_back((item, Span { start, len: segments.len() }));
        self.next = (self.next + 1) % self.depth;
        self.used += 1;
    }

    /// The descriptor at `index` from the front, and its segments.
    pub(crate) fn get(&self, index: usize) -> Option<(&T, &[Segment])> {
        let (item, span) = self.items.get(index)?;
        Some((item, &self.segments[span.start..span.start + span.len]))
    }

    /// As [`Self::get`], to be changed.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<(&mut T, &[Segment])> {
        let (item, span) = self.items.get_mut(index)?;
        Some((item, &self.segments[span.start..span.start + span.len]))
    }

    /// Descriptors that were not taken out.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.items.front().map(|(item, _)| item)
    }

    /// Takes the first descriptor out; it stays counted until [`Self::used`] is lowered.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop_front().map(|(item, _)| item)
    }
}
