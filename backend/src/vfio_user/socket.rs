//! Bytes and file descriptors over a Unix stream socket.

#![allow(unsafe_code)] // a descriptor that the kernel has just handed over becomes an `OwnedFd`, here and nowhere else

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::wire::{FDS_MAX, HEADER, Header, MESSAGE_MAX};

/// The other end is gone, too slow, or talks nonsense: the connection is over.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Closed;

/// Sends a whole message; with descriptors on its first byte. What does not go at once closes the connection: messages are far smaller than a socket's
/// buffer. Sockets here do not block.
pub(super) fn send(stream: &UnixStream, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Closed> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent =
        retry(|| sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None));
    let mut at = sent.map_err(|_| Closed)?;
    while at < message.len() {
        let rest = [IoSlice::new(&message[at..])];
        let sent = retry(|| sendmsg::<()>(stream.as_raw_fd(), &rest, &[], MsgFlags::MSG_NOSIGNAL, None));
        at += sent.map_err(|_| Closed)?;
    }
    Ok(())
}

/// Sends a short message if the socket has room now, and forgets it otherwise.
pub(super) fn send_or_drop(stream: &UnixStream, message: &[u8]) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(message)], &[], flags, None);
}

/// Puts a message together from what arrives. Never reads beyond its end, so descriptors belong to the message they came with.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A whole message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Receiver {
    /// The next message, if it is all there.
    pub(super) fn receive(&mut self, stream: &UnixStream) -> Result<Option<Message>, Closed> {
        loop {
            let header = self.bytes.first_chunk::<HEADER>().map(Header::from_bytes);
            let whole = match header {
                None => HEADER,
                Some(header) => HEADER + header.payload().ok_or(Closed)?,
            };
            if let Some(header) = header
                && self.bytes.len() == whole
            {
                let payload = self.bytes.split_off(HEADER);
                self.bytes.clear();
                return Ok(Some(Message { header, payload, fds: std::mem::take(&mut self.fds) }));
            }
            debug_assert!(whole <= MESSAGE_MAX);
            match self.more(stream, whole) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(_) => return Err(Closed),
            }
        }
    }

    fn more(&mut self, stream: &UnixStream, whole: usize) -> Result<(), Errno> {
        let have = self.bytes.len();
        self.bytes.resize(whole, 0);
        let received = receive_into(stream, &mut self.bytes[have..], &mut self.fds);
        self.bytes.truncate(have + received.unwrap_or(0));
        match received? {
            0 => Err(Errno::ECONNRESET),
            _ if self.fds.len() > FDS_MAX => Err(Errno::EMFILE),
            _ => Ok(()),
        }
    }
}

fn receive_into(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel made these descriptors for this process just now, and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(message.bytes)
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}
