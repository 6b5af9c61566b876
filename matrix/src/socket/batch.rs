//! Messages made of headers that are written for the call and data that is named where it lies, sent several at once.
//!
//! A call that took half a message is followed by one that begins in its middle: whoever makes the messages makes them anew,
//! and they are the same bytes again.

use super::{Gather, Moved, PIECES_MAX, Socket};
use crate::memory::{Memory, Segment};

/// Bytes of headers in one call.
const SCRATCH: usize = 4096;
/// Most messages of one call.
const MESSAGES: usize = 32;

enum Piece<'a> {
    Scratch(usize, usize),
    Memory(Segment),
    Bytes(&'a [u8]),
}

/// Lengths of messages, in order.
pub type Lengths = heapless::Vec<usize, MESSAGES>;

/// Messages for one call.
pub struct Batch<'a> {
    scratch: heapless::Vec<u8, SCRATCH>,
    pieces: heapless::Vec<Piece<'a>, PIECES_MAX>,
    lengths: Lengths,
    /// Bytes of the message that is being made.
    len: usize,
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Batch<'a> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { scratch: heapless::Vec::new(), pieces: heapless::Vec::new(), lengths: heapless::Vec::new(), len: 0 }
    }

    /// A message with so many bytes of headers, in so many pieces, still fits.
    #[must_use]
    pub fn has_room(&self, header_bytes: usize, pieces: usize) -> bool {
        self.scratch.len() + header_bytes <= SCRATCH
            && self.pieces.len() + pieces <= PIECES_MAX
            && !self.lengths.is_full()
    }

    /// Bytes of a header, to be sent next.
    ///
    /// # Panics
    /// If they do not fit: see [`Self::has_room`].
    pub fn header(&mut self, bytes: &[u8]) {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes).expect("there is room for it");
        let end = self.scratch.len();
        match self.pieces.last_mut() {
            Some(Piece::Scratch(_, last)) if *last == start => *last = end,
            _ => self.piece(Piece::Scratch(start, end)),
        }
        self.len += bytes.len();
    }

    /// The header bytes of this batch from `start` on, which is a value of [`Self::mark`].
    #[must_use]
    pub fn since(&self, start: usize) -> &[u8] {
        &self.scratch[start..]
    }

    /// How many header bytes there are.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.scratch.len()
    }

    /// Data, to be sent next.
    pub fn memory(&mut self, segment: Segment) {
        self.len += usize::try_from(segment.len).expect("32 bits fit");
        self.piece(Piece::Memory(segment));
    }

    /// Bytes that outlive the call, to be sent next.
    pub fn bytes(&mut self, bytes: &'a [u8]) {
        self.len += bytes.len();
        self.piece(Piece::Bytes(bytes));
    }

    /// The message is complete.
    ///
    /// # Panics
    /// If there was no room for it.
    pub fn end(&mut self) {
        assert!(self.lengths.push(self.len).is_ok(), "there is room for it");
        self.len = 0;
    }

    fn piece(&mut self, piece: Piece<'a>) {
        assert!(self.pieces.push(piece).is_ok(), "a message is begun only if there is room for it");
    }

    /// Sends the messages, without the first `skip` bytes of the first. What became of it, and whether all was taken.
    #[must_use]
    pub fn send(&self, socket: &Socket, memory: &Memory, skip: usize) -> (Moved, bool) {
        let mut gather = Gather::new();
        let mut skip = skip;
        for piece in &self.pieces {
            match piece {
                Piece::Scratch(from, to) => gather.bytes(&self.scratch[from + take(&mut skip, to - from)..*to]),
                Piece::Bytes(bytes) => gather.bytes(&bytes[take(&mut skip, bytes.len())..]),
                Piece::Memory(Segment { memory: id, offset, len }) => {
                    let cut = take(&mut skip, usize::try_from(*len).expect("32 bits fit"));
                    let cut = u32::try_from(cut).expect("part of 32 bits");
                    gather.memory(memory, Segment { memory: *id, offset: offset + u64::from(cut), len: len - cut });
                }
            }
        }
        let moved = socket.send(&gather);
        (moved, moved == Moved::Bytes(gather.len()))
    }

    /// Bytes of each message.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        self.lengths.clone()
    }
}

/// As much of `skip` as lies in `len` bytes.
fn take(skip: &mut usize, len: usize) -> usize {
    let cut = (*skip).min(len);
    *skip -= cut;
    cut
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_message_that_was_cut_goes_on_where_it_was_cut() {
        let memory = Memory::anonymous(8192);
        memory.write(100, b"data").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::new(listener.accept().unwrap().0).unwrap();
        let mut sent = Vec::new();
        for skip in 0..14 {
            let mut batch = Batch::new();
            batch.header(b"one ");
            batch.header(b"two ");
            batch.memory(memory.segment(100, 4).unwrap());
            batch.bytes(b"!!");
            batch.end();
            assert_eq!(batch.lengths(), [14]);
            assert_eq!(batch.send(&socket, &memory, skip), (Moved::Bytes(14 - skip), true));
            sent.extend(&b"one two data!!"[skip..]);
        }
        let mut found = vec![0; sent.len()];
        peer.read_exact(&mut found).unwrap();
        assert_eq!(found, sent);
    }
}
