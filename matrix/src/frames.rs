//! Frames: 4 KiB pieces of registered memory, in which data rests and through which it moves.
//!
//! A frame is free, or it is held: by whatever it belongs to (a cache slot, a caller's buffer), and by every transfer
//! that is using it ([`Pinned`]). It returns to the free list when nobody holds it any more, so a transfer that outlives
//! its initiator keeps its memory.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_reactor::sync::Signal;

use crate::memory::{Memory, Segment};

/// Bytes of a frame.
pub const FRAME_BYTES: usize = 4096;

/// Most frames of one run: a track of 64 KiB.
pub const RUN_FRAMES_MAX: usize = 16;

const FRAME_LEN: u32 = 4096;

/// One frame of a [`FramePool`].
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FrameIndex(u32);

struct Inner {
    memory: Memory,
    free: RefCell<Vec<FrameIndex>>,
    holders: RefCell<Vec<u16>>,
    freed: Signal,
}

/// All frames of one memory. Clones are the same pool.
#[derive(Clone)]
pub struct FramePool {
    inner: Rc<Inner>,
}

/// A run of frames, held for as long as this lives.
pub struct Pinned {
    pool: FramePool,
    frames: heapless::Vec<FrameIndex, RUN_FRAMES_MAX>,
}

/// The data segments of one run.
pub type Segments = heapless::Vec<Segment, RUN_FRAMES_MAX>;

impl FramePool {
    /// Divides `memory` into frames.
    ///
    /// # Panics
    /// If the memory holds more than 2^32 frames.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        let last = u32::try_from(memory.len() / u64::from(FRAME_LEN)).expect("a pool has at most 2^32 frames");
        let count = usize::try_from(last).expect("32 bits fit");
        Self {
            inner: Rc::new(Inner {
                memory,
                free: RefCell::new((0..last).rev().map(FrameIndex).collect()),
                holders: RefCell::new(vec![0; count]),
                freed: Signal::new(),
            }),
        }
    }

    /// The memory, to be registered and mapped.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// Frames that nobody holds.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.inner.free.borrow().len()
    }

    /// Fires when frames become free.
    #[must_use]
    pub fn freed(&self) -> &Signal {
        &self.inner.freed
    }

    /// Takes `count` free frames, if there are so many.
    #[must_use]
    pub fn try_take(&self, count: usize) -> Option<Pinned> {
        let mut free = self.inner.free.borrow_mut();
        if free.len() < count {
            return None;
        }
        let mut frames = heapless::Vec::new();
        for _ in 0..count {
            let frame = free.pop().expect("the free list was long enough");
            let held = frames.push(frame);
            assert!(held.is_ok(), "a run has at most {RUN_FRAMES_MAX} frames");
            self.inner.holders.borrow_mut()[frame.place()] = 1;
        }
        Some(Pinned { pool: self.clone(), frames })
    }

    /// The frame as a data segment.
    #[must_use]
    pub fn segment(&self, frame: FrameIndex) -> Segment {
        self.inner.memory.segment(frame.offset(), FRAME_LEN).expect("frames lie in their memory")
    }

    /// CRC-32C of the frame's bytes.
    #[must_use]
    pub fn crc(&self, frame: FrameIndex) -> u32 {
        self.inner.memory.crc32c(frame.offset(), u64::from(FRAME_LEN)).expect("frames lie in their memory")
    }

    /// One more holder of a frame that is held.
    pub fn hold(&self, frame: FrameIndex) {
        let holders = &mut self.inner.holders.borrow_mut()[frame.place()];
        assert!(*holders > 0, "only a held frame can be held again");
        *holders += 1;
    }

    /// One holder less; the last one frees the frame.
    pub fn let_go(&self, frame: FrameIndex) {
        let holders = &mut self.inner.holders.borrow_mut()[frame.place()];
        assert!(*holders > 0, "a free frame was let go");
        *holders -= 1;
        if *holders == 0 {
            self.inner.free.borrow_mut().push(frame);
            self.inner.freed.notify_all();
        }
    }

    /// Holds `frames` for a transfer.
    ///
    /// # Panics
    /// If there are more than [`RUN_FRAMES_MAX`].
    pub fn pin(&self, frames: impl Iterator<Item = FrameIndex>) -> Pinned {
        let mut pinned = Pinned { pool: self.clone(), frames: heapless::Vec::new() };
        for frame in frames {
            self.hold(frame);
            let held = pinned.frames.push(frame);
            assert!(held.is_ok(), "a run has at most {RUN_FRAMES_MAX} frames");
        }
        pinned
    }
}

impl FrameIndex {
    fn place(self) -> usize {
        usize::try_from(self.0).expect("32 bits fit")
    }

    /// Bytes from the start of the pool's memory.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) * u64::from(FRAME_LEN)
    }
}

impl Pinned {
    /// The frames, in block order.
    #[must_use]
    pub fn frames(&self) -> &[FrameIndex] {
        &self.frames
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Puts `bytes` at the start of the frame at `index`.
    ///
    /// # Panics
    /// If there is no such frame, or the bytes are longer than it.
    pub fn write(&self, index: usize, bytes: &[u8]) {
        assert!(bytes.len() <= FRAME_BYTES, "{} bytes for a frame", bytes.len());
        self.pool.inner.memory.write(self.frames[index].offset(), bytes).expect("frames lie in their memory");
    }

    /// Fills `bytes` from the start of the frame at `index`.
    ///
    /// # Panics
    /// If there is no such frame, or the bytes are longer than it.
    pub fn read(&self, index: usize, bytes: &mut [u8]) {
        assert!(bytes.len() <= FRAME_BYTES, "{} bytes of a frame", bytes.len());
        self.pool.inner.memory.read(self.frames[index].offset(), bytes).expect("frames lie in their memory");
    }

    /// The same frames, held once more.
    #[must_use]
    pub fn again(&self) -> Self {
        self.pool.pin(self.frames.iter().copied())
    }

    /// The pool that they are of.
    #[must_use]
    pub fn pool(&self) -> &FramePool {
        &self.pool
    }

    /// The frames as data segments, in block order, adjacent ones joined.
    #[must_use]
    pub fn segments(&self) -> Segments {
        joined(self.frames.iter().map(|frame| self.pool.segment(*frame)))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for frame in &self.frames {
            self.pool.let_go(*frame);
        }
    }
}

/// Joins segments that continue one another.
///
/// # Panics
/// If there are more than [`RUN_FRAMES_MAX`].
#[must_use]
pub fn joined(pieces: impl Iterator<Item = Segment>) -> Segments {
    let mut segments = Segments::new();
    for piece in pieces {
        match segments.last_mut() {
            Some(last) if last.memory == piece.memory && last.offset + u64::from(last.len) == piece.offset => {
                last.len += piece.len
            }
            _ => assert!(segments.push(piece).is_ok(), "a run has at most {RUN_FRAMES_MAX} frames"),
        }
    }
    segments
}
