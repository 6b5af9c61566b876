//! A byte stream over a VI, with the semantics of a socket: bytes in order, back-pressure, half-close, and an error when the
//! other end is gone. Software that was written for sockets gets [`AsyncRead`] and [`AsyncWrite`] (those of `futures-io`, which
//! is nothing but the traits); software that knows about registered memory fills and empties the buffers where they lie, which
//! costs no copy beyond the provider's own.
//!
//! A write is one message of at most a buffer, posted at once: nothing waits for a flush, and nothing is combined. A message of
//! no bytes is the end of its direction. Each end has as many receives posted as it has buffers that are empty, and the
//! provider sends no message without one: whoever does not read stops whoever writes, and what is under way is at most the
//! buffers of both ends.
//!
//! | writing side | what happens | next |
//! |---|---|---|
//! | Open | closed by its owner | Closing: the end is posted |
//! | Closing | all that was posted has arrived | Closed |
//! | Open, Closing | a send fails | Broken |
//!
//! | reading side | what happens | next |
//! |---|---|---|
//! | Open | a message of no bytes | Ended |
//! | Open | a receive fails | Broken |
//!
//! What had arrived before an end or a break is read first. A stream that is dropped ends its connection; who wants the peer to
//! have everything closes it and waits for that.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};

use crate::memory::{HugePages, MapError, Memory, Segment};
use crate::provider::{
    CqId, Descriptor, PostError, ProtectionTag, Provider, RegionHandle, Reliability, RemoteAccess, ResourceError,
    SendOperation, ViAttributes, ViId,
};

/// Sizes of a stream, fixed for its life. The peer's buffers must be at least as long.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// The protection tag of its buffers; no memory of others should have it.
    pub tag: ProtectionTag,
    /// Bytes of a buffer: the longest message.
    pub buffer_bytes: u32,
    /// Buffers of each direction.
    pub buffers: u16,
}

/// Why a stream could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A stream of no buffers, or of buffers of no bytes.
    #[error("a stream needs buffers")]
    NoBuffers,
    /// The provider has no room.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// No memory for the buffers.
    #[error(transparent)]
    Memory(#[from] MapError),
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Writing {
    Open,
    Closing,
    Closed,
    Broken,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Reading {
    Open,
    Ended,
    Broken,
}

/// A message that has arrived: its buffer, and what of it was not read yet.
#[derive(Debug, Copy, Clone)]
struct Arrived {
    buffer: u16,
    from: u32,
    to: u32,
}

struct Inner<P: Provider> {
    provider: P,
    config: StreamConfig,
    vi: ViId,
    sends: CqId,
    receives: CqId,
    /// Buffers to send from, then buffers to receive into.
    memory: Memory,
    region: RegionHandle,
    writing: Writing,
    reading: Reading,
    free: Vec<u16>,
    /// Sends posted and not complete, the end among them.
    outstanding: u16,
    arrived: VecDeque<Arrived>,
}

/// One end of a stream. Clones are the same end, so one task can read while another one writes; one task of each kind waits.
pub struct Stream<P: Provider>(Rc<RefCell<Inner<P>>>);

impl<P: Provider> Clone for Stream<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Provider> Drop for Inner<P> {
    fn drop(&mut self) {
        // The provider may have forgotten them already.
        let _ = self.provider.destroy_vi(self.vi);
        let _ = self.provider.deregister(self.region);
    }
}

/// The cookie of the end; others are buffers.
const END: u64 = u64::MAX;

impl<P: Provider> Stream<P> {
    /// A stream whose [`vi`](Self::vi) is to be connected, or accepted with, by whoever takes the provider's events. Two completion
    /// queues of the provider belong to it and stay behind.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn new(provider: P, config: StreamConfig) -> Result<Self, StreamError> {
        let bytes = 2 * u64::from(config.buffers) * u64::from(config.buffer_bytes);
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or(StreamError::NoBuffers)?;
        let memory = Memory::shared("dyad-stream", bytes, HugePages::IfAvailable)?;
        let sends = provider.create_cq(u32::from(config.buffers) + 1)?;
        let receives = provider.create_cq(u32::from(config.buffers))?;
        let region = provider.register(&memory, config.tag, RemoteAccess::default())?;
        let made = provider.create_vi(&ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: config.tag,
            remote_access: RemoteAccess::default(),
            send_depth: config.buffers.saturating_add(1),
            receive_depth: config.buffers,
            send_cq: sends,
            receive_cq: receives,
        });
        let vi = made.inspect_err(|_| drop(provider.deregister(region)))?;
        let arrived = VecDeque::with_capacity(usize::from(config.buffers));
        let (writing, reading, free) = (Writing::Open, Reading::Open, (0..config.buffers).rev().collect());
        let outstanding = 0;
        let mut inner = Inner {
            provider,
            config,
            vi,
            sends,
            receives,
            memory,
            region,
            writing,
            reading,
            free,
            outstanding,
            arrived,
        };
        (0..config.buffers).for_each(|buffer| inner.post_receive(buffer));
        Ok(Self(Rc::new(RefCell::new(inner))))
    }

    /// The VI below.
    #[must_use]
    pub fn vi(&self) -> ViId {
        self.0.borrow().vi
    }

    /// The memory that its buffers lie in.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.0.borrow().memory.clone()
    }

    /// Waits for a free buffer to be filled in place. It is the same one until [`send`](Self::send) took it. Before the VI is
    /// connected nothing can be sent.
    ///
    /// # Errors
    /// `BrokenPipe`: closed, or the other end is gone.
    pub fn poll_buffer(&self, cx: &mut Context<'_>) -> Poll<io::Result<Segment>> {
        self.0.borrow_mut().poll_buffer(cx)
    }

    /// Sends the first `len` bytes of the buffer that [`poll_buffer`](Self::poll_buffer) gave.
    ///
    /// # Errors
    /// `BrokenPipe`: the other end is gone. `NotConnected`: it is not there yet.
    ///
    /// # Panics
    /// If there is no such buffer, it is shorter, or `len` is zero.
    pub fn send(&self, len: u32) -> io::Result<()> {
        self.0.borrow_mut().send(len)
    }

    /// Waits for bytes, and says where they lie; `None` at the end.
    ///
    /// # Errors
    /// `ConnectionReset`: the other end is gone without a word.
    pub fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Segment>>> {
        self.0.borrow_mut().poll_fill(cx)
    }

    /// So many bytes of what [`poll_fill`](Self::poll_fill) gave are dealt with.
    ///
    /// # Panics
    /// If they were not there.
    pub fn consume(&self, len: u32) {
        self.0.borrow_mut().consume(len);
    }
}

impl<P: Provider> Inner<P> {
    fn buffer(&self, buffer: u16, from: u32, len: u32) -> Segment {
        let start = u64::from(buffer) * u64::from(self.config.buffer_bytes) + u64::from(from);
        self.memory.segment(start, len).expect("buffers lie in their memory")
    }

    fn receive_buffer(&self, buffer: u16, from: u32, len: u32) -> Segment {
        let segment = self.buffer(buffer, from, len);
        let first = u64::from(self.config.buffers) * u64::from(self.config.buffer_bytes);
        Segment { offset: first + segment.offset, ..segment }
    }

    fn post_receive(&mut self, buffer: u16) {
        let segment = self.receive_buffer(buffer, 0, self.config.buffer_bytes);
        // A connection that has ended takes none; then nothing more will come.
        let _ = self.provider.post_receive(self.vi, &[segment], u64::from(buffer));
    }

    /// Takes what has been sent off the list; pending when nothing more has.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = ready!(self.provider.poll_completion(self.sends, cx));
        self.outstanding -= 1;
        if let Ok(buffer) = u16::try_from(done.cookie) {
            self.free.push(buffer);
        }
        if done.result.is_err() {
            self.writing = Writing::Broken;
        } else if self.writing == Writing::Closing && self.outstanding == 0 {
            self.writing = Writing::Closed;
        }
        Poll::Ready(())
    }

    fn poll_buffer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Segment>> {
        loop {
            match (self.writing, self.free.last()) {
                (Writing::Open, Some(&buffer)) => {
                    return Poll::Ready(Ok(self.buffer(buffer, 0, self.config.buffer_bytes)));
                }
                (Writing::Open, None) => ready!(self.poll_sent(cx)),
                (Writing::Closing | Writing::Closed | Writing::Broken, _) => {
                    return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
                }
            }
        }
    }

    fn post(&mut self, segments: &[Segment], cookie: u64) -> io::Result<()> {
        let descriptor = Descriptor { operation: SendOperation::Send, segments, immediate: None, cookie };
        match self.provider.post_send(self.vi, &descriptor) {
            Ok(()) => {
                self.outstanding += 1;
                Ok(())
            }
            // Either not yet, or no more: then what is posted has failed, or will in a moment.
            Err(PostError::NotConnected) if self.outstanding == 0 && self.reading == Reading::Open => {
                Err(ErrorKind::NotConnected.into())
            }
            Err(_) => {
                self.writing = Writing::Broken;
                Err(ErrorKind::BrokenPipe.into())
            }
        }
    }

    fn send(&mut self, len: u32) -> io::Result<()> {
        assert!(len > 0 && len <= self.config.buffer_bytes, "a message of {len} bytes");
        let buffer = *self.free.last().expect("a buffer was given out");
        let segment = self.buffer(buffer, 0, len);
        self.post(&[segment], u64::from(buffer))?;
        self.free.pop();
        Ok(())
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writing == Writing::Open {
            if let Err(error) = self.post(&[], END) {
                return Poll::Ready(Err(error));
            }
            self.writing = Writing::Closing;
        }
        loop {
            match self.writing {
                Writing::Closed => return Poll::Ready(Ok(())),
                Writing::Broken => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
                Writing::Open | Writing::Closing => ready!(self.poll_sent(cx)),
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Segment>>> {
        loop {
            if let Some(&Arrived { buffer, from, to }) = self.arrived.front() {
                return Poll::Ready(Ok(Some(self.receive_buffer(buffer, from, to - from))));
            }
            match self.reading {
                Reading::Ended => return Poll::Ready(Ok(None)),
                Reading::Broken => return Poll::Ready(Err(ErrorKind::ConnectionReset.into())),
                Reading::Open => {}
            }
            let done = ready!(self.provider.poll_completion(self.receives, cx));
            let buffer = u16::try_from(done.cookie).expect("cookies of receives are buffers");
            match done.result {
                Ok(0) => self.reading = Reading::Ended,
                Ok(to) => self.arrived.push_back(Arrived { buffer, from: 0, to }),
                Err(_) => self.reading = Reading::Broken,
            }
        }
    }

    fn consume(&mut self, len: u32) {
        let front = self.arrived.front_mut().expect("bytes were there");
        assert!(len <= front.to - front.from, "more bytes than were there");
        front.from += len;
        if front.from == front.to {
            let buffer = front.buffer;
            self.arrived.pop_front();
            self.post_receive(buffer);
        }
    }
}

/// A length as slices and segments have it in common.
fn shorter(segment: &Segment, bytes: usize) -> (u32, usize) {
    let len = u32::try_from(bytes).map_or(segment.len, |bytes| bytes.min(segment.len));
    (len, usize::try_from(len).expect("32 bits fit"))
}

impl<P: Provider> AsyncRead for Stream<P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let inner = &mut *self.0.borrow_mut();
        let Some(segment) = ready!(inner.poll_fill(cx))? else { return Poll::Ready(Ok(0)) };
        let (len, place) = shorter(&segment, bytes.len());
        inner.memory.read(segment.offset, &mut bytes[..place]).expect("buffers lie in their memory");
        inner.consume(len);
        Poll::Ready(Ok(place))
    }
}

impl<P: Provider> AsyncWrite for Stream<P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let inner = &mut *self.0.borrow_mut();
        let segment = ready!(inner.poll_buffer(cx))?;
        let (len, place) = shorter(&segment, bytes.len());
        inner.memory.write(segment.offset, &bytes[..place]).expect("buffers lie in their memory");
        Poll::Ready(inner.send(len).map(|()| place))
    }

    /// Everything was posted when it was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction, and waits until the peer has everything. The other direction goes on.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_closed(cx)
    }
}
