//! Sockets of the Kernel Agents: packets with file descriptors, doorbells, and handles on peers' processes.

#![allow(unsafe_code)] // received file descriptors become owned here

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, recv, recvmsg, send, sendmsg, socket, socketpair,
};
use nix::sys::stat::Mode;

use super::control::{FDS_MAX, PACKET_BYTES, Packet};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Listens at `path`. A socket file that an earlier run left there is replaced.
pub(super) fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    let address = UnixAddr::new(path)?;
    let make = || socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None);
    let listener = make()?;
    if let Err(error) = bind(listener.as_raw_fd(), &address) {
        let left_over =
            error == Errno::EADDRINUSE && connect(make()?.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED);
        if !left_over {
            return Err(error);
        }
        nix::unistd::unlink(path)?;
        bind(listener.as_raw_fd(), &address)?;
    }
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Takes the next connection, if one waits.
pub(super) fn accept_from(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let fd = accept4(listener.as_raw_fd(), FLAGS)?;
    // SAFETY: accept4 just made it, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to who listens at `path`. `EAGAIN`: its backlog is full.
pub(super) fn connect_to(path: &str) -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Two ends of a doorbell.
pub(super) fn doorbell() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, FLAGS)
}

/// Rings. A doorbell that is full has been rung already, one whose other end is gone wakes nobody; it never waits,
/// whatever the peer has made of it.
pub(super) fn ring(doorbell: &OwnedFd) {
    let _ = send(doorbell.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

/// Empties a doorbell; false if it will never ring again.
pub(super) fn quieten(doorbell: &OwnedFd) -> bool {
    let mut bytes = [0; 64];
    loop {
        match recv(doorbell.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return error == Errno::EAGAIN,
        }
    }
}

/// Sends a packet with `fds`.
pub(super) fn send_packet(socket: &OwnedFd, packet: &Packet, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], rights, flags, None).map(drop)
}

/// One packet as it came.
pub(super) struct Received {
    /// Its first bytes; more than a packet has if it was longer.
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Takes the next packet. No bytes: the other end is closed.
pub(super) fn receive_packet(socket: &OwnedFd) -> Result<Received, Errno> {
    let mut bytes = vec![0; PACKET_BYTES + 1];
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    // Rights that did not fit were closed by the kernel; then their number is wrong, and so is the packet.
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel installed them for this call, nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = message.bytes;
    bytes.truncate(len);
    Ok(Received { bytes, fds })
}

/// The same file, to be mapped for reading only.
pub(super) fn read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// A handle on the process at the other end: readable once it is dead.
pub(super) fn peer_process(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    match getsockopt(socket, PeerPidfd) {
        Ok(pidfd) => Ok(pidfd),
        // Linux before 6.5. Its number cannot be used again unnoticed: the socket is open, so the process is there.
        Err(_) => {
            let pid = getsockopt(socket, PeerCredentials)?.pid();
            // SAFETY: pidfd_open(2) takes two integers and touches no memory.
            let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
            let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
            // SAFETY: pidfd_open just made it, nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
    }
}

/// Whether the process has ended.
pub(super) fn is_dead(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}
