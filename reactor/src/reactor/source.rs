//! What a reactor polls besides its tasks: queues of devices, rings of peers, sockets.

use std::os::fd::BorrowedFd;

/// Something that is polled for work.
///
/// Implementations promise:
/// - [`poll`](Self::poll) waits for nothing, allocates nothing once warm, and does a bounded amount of work;
/// - between [`arm`](Self::arm) and [`disarm`](Self::disarm) whatever would give `poll` work makes the
///   [`fd`](Self::fd) readable, or wakes a task. The reactor polls once more after arming, so only work that was published
///   later needs to. Producers publish, make a full fence, and signal only who is armed (DESIGN 2);
/// - the fd is readable only as long as `poll` has work or until `disarm`; one that stays readable keeps the reactor awake.
///   A source with several fds puts them into an epoll instance of its own and gives that one's.
pub trait Source {
    /// Does the work there is; returns how much it was, 0 for none.
    fn poll(&mut self) -> usize;

    /// The reactor is about to sleep: from now on the fd tells about work.
    fn arm(&mut self);

    /// The reactor is awake again and polls.
    fn disarm(&mut self);

    /// What to wait for while asleep; asked once, when the source is added. `None` if work comes only with wakers.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
