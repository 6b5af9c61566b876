//! The bytes of a connection as the kernel moves them, or, with a key, encrypted in between.
//!
//! Without a key the kernel takes bytes from where they lie and puts them where they belong. With a key they pass through TLS: they
//! are copied, in pieces of at most [`PIECE`], and TLS allocates for its records. What waits in it is bounded: nothing more is
//! taken while the kernel has not taken what was encrypted before.

use std::io::{self, ErrorKind, Read, Write};

use rustls::Connection;

use crate::socket::{Gather, Moved, Scatter, Socket};

/// Bytes that are encrypted, or handed on decrypted, at once.
const PIECE: usize = 64 << 10;

pub(super) struct Wire {
    pub(super) socket: Socket,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: Connection,
    piece: Box<[u8]>,
    /// The other end is none of us, or its bytes were changed.
    failed: bool,
}

impl Wire {
    pub(super) fn new(socket: Socket, session: Option<Connection>) -> Self {
        let piece = || vec![0; PIECE].into_boxed_slice();
        let tls = session.map(|session| Box::new(Tls { session, piece: piece(), failed: false }));
        Self { socket, tls }
    }

    /// Whether bytes are encrypted, and copied for it.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the other end could not show that it is one of us.
    pub(super) fn has_failed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.failed)
    }

    /// Sends as much as is taken.
    pub(super) fn send(&mut self, pieces: &Gather<'_>) -> Moved {
        let Some(tls) = &mut self.tls else { return self.socket.send(pieces) };
        match tls.flush(&self.socket) {
            Moved::Bytes(_) => {}
            other => return other,
        }
        let len = pieces.copy_to(&mut tls.piece);
        let Ok(taken) = tls.session.writer().write(&tls.piece[..len]) else { return Moved::Gone };
        match tls.flush(&self.socket) {
            Moved::Gone => Moved::Gone,
            // What was encrypted and not taken goes first the next time.
            Moved::Bytes(_) | Moved::Blocked if taken > 0 => Moved::Bytes(taken),
            _ => Moved::Blocked,
        }
    }

    /// Receives what there is, in the order of the pieces.
    pub(super) fn receive(&mut self, pieces: &mut Scatter<'_>) -> Moved {
        let Some(tls) = &mut self.tls else { return self.socket.receive(pieces) };
        let wanted = pieces.len().min(PIECE);
        loop {
            match tls.session.reader().read(&mut tls.piece[..wanted]) {
                Ok(0) => return Moved::Gone,
                Ok(len) => {
                    pieces.fill(&tls.piece[..len]);
                    return Moved::Bytes(len);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Moved::Gone,
            }
            match tls.session.read_tls(&mut Raw(&self.socket)) {
                Ok(0) => return Moved::Gone,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Moved::Blocked,
                Err(_) => return Moved::Gone,
            }
            tls.failed |= tls.session.process_new_packets().is_err();
            // An answer of the handshake, or the alert that says what was wrong.
            if tls.flush(&self.socket) == Moved::Gone || tls.failed {
                return Moved::Gone;
            }
        }
    }

    /// Hands on what was encrypted before; whether all of it is gone.
    pub(super) fn flush(&mut self) -> bool {
        self.tls.as_mut().is_none_or(|tls| matches!(tls.flush(&self.socket), Moved::Bytes(_)))
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.session.send_close_notify();
            tls.flush(&self.socket);
        }
        self.socket.finish();
    }
}

impl Tls {
    /// `Bytes` if nothing is left.
    fn flush(&mut self, socket: &Socket) -> Moved {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Raw(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Moved::Blocked,
                Err(_) => return Moved::Gone,
            }
        }
        Moved::Bytes(0)
    }
}

/// A socket as TLS wants it.
struct Raw<'a>(&'a Socket);

fn result(moved: Moved) -> io::Result<usize> {
    match moved {
        Moved::Bytes(bytes) => Ok(bytes),
        Moved::Blocked => Err(ErrorKind::WouldBlock.into()),
        Moved::Gone => Err(ErrorKind::ConnectionReset.into()),
    }
}

impl Read for Raw<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut scatter = Scatter::new();
        scatter.bytes(bytes);
        result(self.0.receive(&mut scatter))
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut gather = Gather::new();
        gather.bytes(bytes);
        result(self.0.send(&gather))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
