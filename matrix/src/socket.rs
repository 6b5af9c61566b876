//! Sockets whose bytes go straight from and to the memory that they belong to: the kernel copies, nobody else. For protocols
//! that move payload over TCP; what they have in common is here: [`Batch`] for what is sent, [`Window`] for what is received.
//!
//! This room is `unsafe` because memory that devices and peers reach has no references ([`crate::memory`]), and the kernel
//! wants pointers to it. Invariant: every pointer handed to the kernel is to bytes that were checked to lie in a mapping that is
//! alive during the call, or to a slice that is borrowed for it.

#![allow(unsafe_code)] // scatter/gather system calls on memory that is shared with devices and peers

use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::memory::{Memory, Segment, copy_bytes};

mod batch;
mod window;

pub use batch::{Batch, Lengths};
pub use window::Window;

/// Most pieces of one call.
pub const PIECES_MAX: usize = 64;

/// How long a silent peer is trusted before the kernel asks whether it is still there.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// A list of places for one call; `'a` is how long they are borrowed.
struct Pieces<'a> {
    list: heapless::Vec<libc::iovec, PIECES_MAX>,
    len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

/// Places that bytes are sent from.
pub struct Gather<'a>(Pieces<'a>);

impl Default for Gather<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Places that bytes are received into.
pub struct Scatter<'a>(Pieces<'a>);

impl Default for Scatter<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Pieces<'a> {
    const fn new() -> Self {
        Self { list: heapless::Vec::new(), len: 0, borrowed: PhantomData }
    }

    fn push(&mut self, start: *mut u8, len: usize) {
        if len > 0 {
            let pushed = self.list.push(libc::iovec { iov_base: start.cast(), iov_len: len });
            assert!(pushed.is_ok(), "at most {PIECES_MAX} pieces");
            self.len += len;
        }
    }

    fn push_memory(&mut self, memory: &'a Memory, segment: Segment) {
        assert_eq!(segment.memory, memory.id(), "a segment of another memory");
        let checked = memory.segment(segment.offset, segment.len).expect("segments lie in their memory");
        let offset = usize::try_from(checked.offset).expect("it lies in the address space");
        // SAFETY: the segment was just checked to lie in the mapping, which lives as long as `memory` is borrowed.
        let start = unsafe { memory.as_ptr().add(offset) };
        self.push(start.as_ptr(), usize::try_from(checked.len).expect("32 bits fit"));
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.list.len()).expect("few")
    }
}

impl<'a> Gather<'a> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Pieces::new())
    }

    /// Bytes.
    ///
    /// # Panics
    /// If there are [`PIECES_MAX`] pieces already.
    pub fn bytes(&mut self, bytes: &'a [u8]) {
        // The kernel only reads what it sends.
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// A segment.
    ///
    /// # Panics
    /// If there are [`PIECES_MAX`] pieces already, or it does not lie in `memory`.
    pub fn memory(&mut self, memory: &'a Memory, segment: Segment) {
        self.0.push_memory(memory, segment);
    }

    /// There are [`PIECES_MAX`] pieces.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.list.is_full()
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// There are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

impl Gather<'_> {
    /// Copies as many of the bytes as fit; how many.
    pub(crate) fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut at = 0;
        for piece in &self.0.list {
            let len = piece.iov_len.min(to.len() - at);
            // SAFETY: the piece is borrowed by `self` (module documentation), and `to` has room for as many bytes.
            unsafe { copy_bytes(piece.iov_base.cast(), to[at..].as_mut_ptr(), len) };
            at += len;
        }
        at
    }
}

impl Scatter<'_> {
    /// Copies bytes to the places, which are enough for them.
    pub(crate) fn fill(&mut self, from: &[u8]) {
        let mut left = from;
        for piece in &self.0.list {
            let (now, later) = left.split_at(piece.iov_len.min(left.len()));
            // SAFETY: the piece is borrowed exclusively by `self`, or is shared memory (module documentation).
            unsafe { copy_bytes(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            left = later;
        }
        assert!(left.is_empty(), "more bytes than places");
    }
}

impl<'a> Scatter<'a> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Pieces::new())
    }

    /// Bytes.
    ///
    /// # Panics
    /// If there are [`PIECES_MAX`] pieces already.
    pub fn bytes(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// A segment.
    ///
    /// # Panics
    /// If there are [`PIECES_MAX`] pieces already, or it does not lie in `memory`.
    pub fn memory(&mut self, memory: &'a Memory, segment: Segment) {
        assert!(memory.writable(), "received into memory that is read-only here");
        self.0.push_memory(memory, segment);
    }

    /// There are [`PIECES_MAX`] pieces.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.list.is_full()
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// There are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

/// What became of a call.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// None now.
    Blocked,
    /// The connection is at its end.
    Gone,
}

/// A non-blocking connection.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Takes over a connection.
    ///
    /// # Errors
    /// The kernel refused an option.
    pub fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // For hosts that asked not to be watched by Keep Alive: a machine that is gone is noticed all the same.
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &u32::try_from(PROBE_AFTER.as_secs()).expect("few seconds"))?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &5)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &6)?;
        Ok(Self { stream })
    }

    /// From now on a peer that is silent for so long while something is expected of it is taken for gone. In whole seconds.
    ///
    /// # Errors
    /// The kernel refused an option.
    pub fn bound_silence(&self, bound: Duration) -> std::io::Result<()> {
        let seconds = u32::try_from(bound.as_secs()).unwrap_or(u32::MAX).max(2);
        // Nothing is on its way: asked after a second, and each further second.
        setsockopt(&self.stream, sockopt::TcpKeepIdle, &1)?;
        setsockopt(&self.stream, sockopt::TcpKeepInterval, &1)?;
        setsockopt(&self.stream, sockopt::TcpKeepCount, &(seconds - 1).min(127))?;
        // Something is (tcp(7), TCP_USER_TIMEOUT).
        setsockopt(&self.stream, sockopt::TcpUserTimeout, &seconds.saturating_mul(1000))?;
        Ok(())
    }

    /// What became of the connection since this was last asked, if something did.
    pub fn error(&self) -> Option<Errno> {
        let error = self.stream.take_error().ok().flatten()?;
        Some(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
    }

    /// Sends as much as the kernel takes.
    pub fn send(&self, pieces: &Gather<'_>) -> Moved {
        let list = &pieces.0.list;
        // SAFETY: all zeros is a valid msghdr without address, pieces and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_ptr().cast_mut();
        message.msg_iovlen = list.len() as _;
        moved(|| {
            // SAFETY: the list and what it points to are borrowed by `pieces` (module documentation); the kernel only reads.
            unsafe { libc::sendmsg(self.stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
        })
    }

    /// Receives what there is, in the order of the pieces.
    pub fn receive(&self, pieces: &mut Scatter<'_>) -> Moved {
        let pieces = &mut pieces.0;
        let received = || {
            // SAFETY: the list and what it points to are borrowed exclusively by `pieces`, or are shared memory, whose bytes
            // anybody may change at any time (module documentation).
            unsafe { libc::readv(self.stream.as_raw_fd(), pieces.list.as_ptr(), pieces.count()) }
        };
        match moved(received) {
            Moved::Bytes(0) => Moved::Gone,
            other => other,
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        // The peer may be gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn moved(call: impl Fn() -> libc::ssize_t) -> Moved {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Moved::Bytes(bytes),
            Err(_) => match Errno::last() {
                Errno::EINTR => {}
                Errno::EAGAIN => return Moved::Blocked,
                _ => return Moved::Gone,
            },
        }
    }
}
