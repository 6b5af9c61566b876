//! Submission and completion queues in host memory, from the controller's side (Base 3.3.1).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use dyad_nvme::types::{CommandId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};

use super::dma::Place;

/// A submission queue: where the controller reads commands.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) id: QueueId,
    pub(super) ring: Place,
    pub(super) entries: u16,
    pub(super) head: u16,
    pub(super) completion_queue: QueueId,
}

/// A completion queue: where the controller writes results.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    pub(super) ring: Place,
    pub(super) entries: u16,
    pub(super) tail: u16,
    pub(super) phase: bool,
    pub(super) interrupt: bool,
    /// Completions that found the ring full. While there are too many, nothing is fetched that would end here.
    pub(super) backlog: VecDeque<CompletionEntry>,
}

/// The host wrote a tail or head that is not in the queue (Base figure "Asynchronous Event Information - Error Status": invalid doorbell write value).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct InvalidDoorbell;

impl SubmissionQueue {
    pub(super) fn new(id: QueueId, ring: Place, entries: u16, completion_queue: QueueId) -> Self {
        Self { id, ring, entries, head: 0, completion_queue }
    }

    /// Commands between head and `tail`.
    #[inline]
    pub(super) fn waiting(&self, tail: u32) -> Result<u16, InvalidDoorbell> {
        let tail = u16::try_from(tail).ok().filter(|t| *t < self.entries).ok_or(InvalidDoorbell)?;
        Ok(if tail >= self.head { tail - self.head } else { self.entries - self.head + tail })
    }

    /// Fetches the command at the head.
    #[inline]
    pub(super) fn fetch(&mut self) -> SubmissionEntry {
        let at = self.ring.offset + u64::from(self.head) * SubmissionEntry::BYTES as u64;
        let memory = &self.ring.memory;
        let words = match memory.atomics_u64(at, SubmissionEntry::WORDS) {
            Ok(ring) => std::array::from_fn(|index| ring[index].load(Ordering::Relaxed)),
            // Memory that the host gave for reading only.
            Err(_) => std::array::from_fn(|index| memory.load_u64(at + 8 * index as u64).unwrap_or(0)),
        };
        self.head = if self.head + 1 == self.entries { 0 } else { self.head + 1 };
        SubmissionEntry::from_words(words)
    }

    /// Namespace and first block of the command at the head, if it were a read: a guess, for prefetching.
    #[inline]
    pub(super) fn peek(&self) -> Option<(u64, u64)> {
        let at = self.ring.offset + u64::from(self.head) * SubmissionEntry::BYTES as u64;
        let ring = self.ring.memory.atomics_u64(at, SubmissionEntry::WORDS).ok()?;
        Some((ring[0].load(Ordering::Relaxed) >> 32, ring[5].load(Ordering::Relaxed)))
    }

    /// The value of `EventIdx` that no doorbell of a host that keeps the rules passes: one behind the head, which the tail never reaches.
    pub(super) fn quiet_event_index(&self) -> u32 {
        u32::from(if self.head == 0 { self.entries - 1 } else { self.head - 1 })
    }
}

impl CompletionQueue {
    pub(super) fn new(ring: Place, entries: u16, interrupt: bool) -> Self {
        Self { ring, entries, tail: 0, phase: true, interrupt, backlog: VecDeque::new() }
    }

    /// Writes a completion, if the host's `head` leaves room for one.
    #[inline]
    pub(super) fn post(&mut self, head: u32, entry: CompletionEntry) -> bool {
        let next = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
        if u32::from(next) == head {
            return false;
        }
        let (low, high) = entry.with_phase(self.phase).to_words();
        let at = self.ring.offset + u64::from(self.tail) * CompletionEntry::BYTES as u64;
        // The phase is in the last word, and goes last: whoever sees it sees the rest. Memory that cannot be written is the host's own loss.
        if let Ok(ring) = self.ring.memory.atomics_u64(at, 2) {
            ring[0].store(low, Ordering::Relaxed);
            ring[1].store(high, Ordering::Release);
        }
        self.tail = next;
        self.phase ^= next == 0;
        true
    }
}

/// A completion for a command of `queue`.
#[inline]
pub(super) fn completion(queue: &SubmissionQueue, command: CommandId, status: Status, result: u64) -> CompletionEntry {
    CompletionEntry::new(queue.head, command, status).with_queue(queue.id).with_result(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_matrix::Memory;
    use dyad_nvme::types::NamespaceId;

    fn ring() -> Place {
        Place { memory: Memory::anonymous(4096), offset: 0 }
    }

    #[test]
    fn a_submission_queue_wraps_and_refuses_bad_tails() {
        let mut queue = SubmissionQueue::new(QueueId(1), ring(), 4, QueueId(1));
        assert_eq!(queue.waiting(4), Err(InvalidDoorbell));
        assert_eq!(queue.waiting(0x1_0000), Err(InvalidDoorbell));
        for index in 0..10_u16 {
            let entry = SubmissionEntry::flush(NamespaceId(1)).with_command(CommandId(index));
            queue.ring.memory.write(u64::from(index % 4) * 64, entry.as_bytes()).unwrap();
            assert_eq!(queue.waiting(u32::from((index + 1) % 4)), Ok(1));
            assert_eq!(queue.fetch(), entry);
        }
    }

    #[test]
    fn a_completion_queue_tells_new_from_old_and_stops_when_full() {
        let mut queue = CompletionQueue::new(ring(), 3, false);
        let entry = |id| CompletionEntry::new(0, CommandId(id), Status::SUCCESS);
        assert!(queue.post(0, entry(1)) && queue.post(0, entry(2)));
        assert!(!queue.post(0, entry(3)), "one place stays empty");
        assert!(queue.post(2, entry(3)));
        assert!(queue.post(2, entry(4)));
        let phases: Vec<u8> = (0..3)
            .map(|i| {
                let mut bytes = [0; 16];
                queue.ring.memory.read(i * 16, &mut bytes).unwrap();
                bytes[14] & 1
            })
            .collect();
        assert_eq!(phases, [0, 1, 1], "the fourth is in the first place with the other phase");
    }
}
