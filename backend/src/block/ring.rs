//! One io_uring instance and the table of its commands.
//!
//! The kernel reads and writes memory while a command is in flight. The table holds a handle of every memory that was
//! mapped, for as long as the ring lives; a ring that is dropped with commands in flight leaves its memory mapped for
//! ever rather than let the kernel write where something else may be.

#![allow(unsafe_code)] // requests name memory by address; the table sees to it that the memory stays

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use dyad_matrix::{Memory, MemoryId, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::sync::{Pending, Replies, Ticket};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::device::{DeviceError, Io, SubmitError};

/// Memories that can be registered with the ring.
const BUFFERS: u16 = 64;

/// The kernel registers no more than this in one piece.
const BUFFER_BYTES_MAX: u64 = 1 << 30;

/// A memory that commands may name.
struct Mapped {
    memory: Memory,
    /// Its place among the registered buffers, if it has one.
    buffer: Option<u16>,
}

#[derive(Debug, Copy, Clone)]
struct Slot {
    /// Whose; `None` is free.
    ticket: Option<Ticket>,
    /// What a complete command returns.
    expected: i32,
    next_free: Option<u16>,
}

pub(super) struct Ring {
    uring: IoUring,
    file: File,
    punches: bool,
    slots: Vec<Slot>,
    free: Option<u16>,
    outstanding: u16,
    replies: Replies<Result<(), DeviceError>>,
    /// Segments of each slot's command, as the kernel wants them.
    vectors: Vec<libc::iovec>,
    segments_max: usize,
    mapped: Vec<Mapped>,
    /// Requests in the ring that the kernel has not been told of.
    unsubmitted: usize,
}

impl Ring {
    pub(super) fn new(file: File, punches: bool, depth: u16, segments_max: usize) -> io::Result<Self> {
        let uring = IoUring::new(u32::from(depth))?;
        // Without registered buffers everything works, a little slower.
        let _ = uring.submitter().register_buffers_sparse(u32::from(BUFFERS));
        let next = |i: u16| (i + 1 < depth).then_some(i + 1);
        let slots = (0..depth).map(|i| Slot { ticket: None, expected: 0, next_free: next(i) }).collect();
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ok(Self {
            uring,
            file,
            punches,
            slots,
            free: Some(0),
            outstanding: 0,
            replies: Replies::new(usize::from(depth)),
            vectors: vec![empty; usize::from(depth) * segments_max],
            segments_max,
            mapped: Vec::new(),
            unsubmitted: 0,
        })
    }

    /// A descriptor that is readable while there are completions.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring's descriptor is open as long as the ring.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }.as_fd().try_clone_to_owned()
    }

    pub(super) fn map(&mut self, memory: &Memory) {
        if self.mapped.iter().any(|m| m.memory.id() == memory.id()) {
            return;
        }
        let place = u16::try_from(self.mapped.len()).ok().filter(|p| *p < BUFFERS);
        let buffer = place.filter(|_| memory.len() <= BUFFER_BYTES_MAX && memory.writable()).filter(|place| {
            let vector = vector(memory, 0, memory.len());
            // SAFETY: `mapped` keeps the memory for as long as the ring has it.
            unsafe { self.uring.submitter().register_buffers_update(u32::from(*place), &[vector], None) }.is_ok()
        });
        self.mapped.push(Mapped { memory: memory.clone(), buffer });
    }

    pub(super) fn submit(&mut self, io: Io<'_>) -> Result<Pending<Result<(), DeviceError>>, SubmitError> {
        let slot = self.free.ok_or(SubmitError::Full)?;
        let (entry, expected) = self.entry(slot, io)?;
        let pending = self.replies.reserve().ok_or(SubmitError::Full)?;
        let entry = entry.user_data(u64::from(slot));
        // SAFETY: the memory that the request names stays: `mapped` holds the data, `vectors` never moves, and the file is open.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.map_err(|_| SubmitError::Full)?;
        let taken = &mut self.slots[usize::from(slot)];
        self.free = taken.next_free;
        *taken = Slot { ticket: Some(pending.ticket()), expected, next_free: None };
        self.outstanding += 1;
        self.unsubmitted += 1;
        Ok(pending)
    }

    /// Tells the kernel about new requests, and takes completions.
    pub(super) fn poll(&mut self) -> usize {
        if self.unsubmitted > 0 {
            // Busy (EAGAIN, EBUSY): the next turn tells it again.
            if let Ok(taken) = self.uring.submit() {
                self.unsubmitted -= taken.min(self.unsubmitted);
            }
        }
        let mut count = 0;
        for completion in self.uring.completion() {
            let Ok(index) = u16::try_from(completion.user_data()) else { continue };
            let Some(slot) = self.slots.get_mut(usize::from(index)) else { continue };
            let Some(ticket) = slot.ticket.take() else { continue };
            let outcome = outcome(completion.result(), slot.expected);
            slot.next_free = self.free;
            self.free = Some(index);
            self.outstanding -= 1;
            count += 1;
            // Nobody waits any more: the command was done all the same.
            let _ = self.replies.complete(ticket, outcome);
        }
        count
    }

    fn entry(&mut self, slot: u16, io: Io<'_>) -> Result<(Entry, i32), SubmitError> {
        let fd = types::Fd(self.file.as_raw_fd());
        Ok(match io {
            Io::Read { lba, segments } => {
                let offset = bytes(lba);
                match self.data(slot, segments)? {
                    Data::Fixed(buffer, v) => {
                        let (start, len, total) = pieces(&v);
                        (opcode::ReadFixed::new(fd, start, len, buffer).offset(offset).build(), total)
                    }
                    Data::Vectors(first, count, total) => {
                        (opcode::Readv::new(fd, first, count).offset(offset).build(), total)
                    }
                }
            }
            Io::Write { lba, segments, fua } => {
                let offset = bytes(lba);
                let flags = if fua { libc::RWF_DSYNC } else { 0 };
                match self.data(slot, segments)? {
                    Data::Fixed(buffer, v) => {
                        let (start, len, total) = pieces(&v);
                        let write = opcode::WriteFixed::new(fd, start.cast_const(), len, buffer);
                        (write.offset(offset).rw_flags(flags).build(), total)
                    }
                    Data::Vectors(first, count, total) => {
                        (opcode::Writev::new(fd, first, count).offset(offset).rw_flags(flags).build(), total)
                    }
                }
            }
            Io::Flush => (opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), 0),
            Io::WriteZeroes { lba, blocks } => {
                let mode = if self.punches {
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
                } else {
                    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
                };
                (opcode::Fallocate::new(fd, BlockCount(blocks.0).bytes()).offset(bytes(lba)).mode(mode).build(), 0)
            }
        })
    }

    /// One segment of registered memory goes as such; everything else as vectors.
    fn data(&mut self, slot: u16, segments: &[Segment]) -> Result<Data, SubmitError> {
        if segments.len() > self.segments_max {
            return Err(SubmitError::Invalid);
        }
        let first = usize::from(slot) * self.segments_max;
        let mut total = 0;
        for (index, segment) in segments.iter().enumerate() {
            let mapped = find(&self.mapped, segment.memory).ok_or(SubmitError::Invalid)?;
            let end = segment.offset.checked_add(u64::from(segment.len)).ok_or(SubmitError::Invalid)?;
            let block = BLOCK_BYTES as u64;
            let whole = segment.offset.is_multiple_of(block) && u64::from(segment.len).is_multiple_of(block);
            if end > mapped.memory.len() || !whole || segment.len == 0 {
                return Err(SubmitError::Invalid);
            }
            let vector = vector(&mapped.memory, segment.offset, u64::from(segment.len));
            if let (Some(buffer), 1) = (mapped.buffer, segments.len()) {
                return Ok(Data::Fixed(buffer, vector));
            }
            self.vectors[first + index] = vector;
            total += i32::try_from(segment.len).map_err(|_| SubmitError::Invalid)?;
        }
        let count = u32::try_from(segments.len()).expect("checked above");
        Ok(Data::Vectors(self.vectors[first..].as_ptr(), count, total))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.outstanding > 0 {
            // The kernel still has their addresses.
            std::mem::forget(std::mem::take(&mut self.mapped));
            std::mem::forget(std::mem::take(&mut self.vectors));
        }
    }
}

/// Where a command's data is.
enum Data {
    Fixed(u16, libc::iovec),
    Vectors(*const libc::iovec, u32, i32),
}

fn find(mapped: &[Mapped], id: MemoryId) -> Option<&Mapped> {
    mapped.iter().find(|m| m.memory.id() == id)
}

/// `len` bytes at `offset`, which the caller has checked.
fn vector(memory: &Memory, offset: u64, len: u64) -> libc::iovec {
    let offset = usize::try_from(offset).expect("inside the memory");
    let start = memory.as_ptr().as_ptr().wrapping_add(offset);
    libc::iovec { iov_base: start.cast(), iov_len: usize::try_from(len).expect("inside the memory") }
}

fn pieces(vector: &libc::iovec) -> (*mut u8, u32, i32) {
    let len = u32::try_from(vector.iov_len).expect("a segment's length");
    (vector.iov_base.cast(), len, i32::try_from(len).unwrap_or(i32::MAX))
}

fn bytes(lba: Lba) -> u64 {
    BlockCount(lba.0).bytes()
}

fn outcome(result: i32, expected: i32) -> Result<(), DeviceError> {
    match result {
        n if n == expected => Ok(()),
        // Less than was asked for: the file ends, or the media does.
        0.. => Err(DeviceError::Media),
        error => Err(match -error {
            libc::ENODEV | libc::ENXIO | libc::EBADF => DeviceError::Gone,
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => DeviceError::Aborted,
            libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT => DeviceError::Rejected,
            _ => DeviceError::Media,
        }),
    }
}
