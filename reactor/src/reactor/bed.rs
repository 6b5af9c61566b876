//! Where a reactor sleeps: one `epoll_wait` for the sources' fds, the alarm of other threads and the next timer.
//!
//! The timer is a timerfd on the clock of the reactor, because `epoll_wait` counts in milliseconds and not through suspend. It
//! is set only when the next deadline is another than last time. It and the alarm are edge-triggered: what they told once
//! needs no reading.

use crate::Time;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Events taken from the kernel at once; they only wake, so what remains wakes again.
const EVENTS: usize = 16;

#[derive(Debug)]
pub(super) struct Bed {
    epoll: Epoll,
    timer: TimerFd,
    /// What the timer is set to.
    timer_at: Option<Time>,
}

impl Bed {
    pub(super) fn new(alarm: &EventFd) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(alarm, edge)?;
        epoll.add(&timer, edge)?;
        Ok(Self { epoll, timer, timer_at: None })
    }

    /// From now on a sleep ends also when `fd` is readable.
    pub(super) fn add(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
    }

    /// Sleeps until an fd is readable, the alarm was raised, or `until`; now and then it wakes for nothing.
    pub(super) fn sleep(&mut self, until: Option<Time>) -> Result<(), Errno> {
        if let Some(until) = until
            && self.timer_at != Some(until)
        {
            let at = TimeSpec::from_duration(Duration::from_nanos(until.as_nanos().max(1)));
            self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.timer_at = Some(until);
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
