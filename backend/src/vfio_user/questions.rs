//! Questions to a server: sent without waiting, answered in order, as many under way as the socket takes.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::socket::{Closed, Receiver, send};
use super::wire::{Access, flag, message, vfio};
use super::wire::{command as commands, words};

/// What an answer is to.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Question {
    id: u16,
    command: u16,
}

impl Question {
    /// It is one of this command.
    pub(super) fn is(self, command: u16) -> bool {
        self.command == command
    }
}

/// An answer: what the server said, and the descriptors that came with it, or why it said no.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) outcome: Result<(Vec<u8>, Vec<std::os::fd::OwnedFd>), Errno>,
}

/// A connection, as the client has it.
#[derive(Debug)]
pub(super) struct Questions {
    stream: UnixStream,
    receiver: Receiver,
    next_id: u16,
    under_way: VecDeque<Question>,
    /// Something could not be sent: after what the server said before, nothing more will come.
    cut: bool,
}

impl Questions {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, receiver: Receiver::default(), next_id: 0, under_way: VecDeque::new(), cut: false })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Nothing is under way.
    pub(super) fn quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Sends a question. One that cannot be sent ends the connection; [`Self::answer`] says so.
    pub(super) fn ask(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Question {
        let question = Question { id: self.next_id, command };
        self.next_id = self.next_id.wrapping_add(1);
        self.under_way.push_back(question);
        self.send(&message(question.id, command, 0, 0, payload), fds);
        question
    }

    /// Asks for a register of BAR 0.
    pub(super) fn ask_register(&mut self, offset: u32, len: u32) -> Question {
        let access = Access { offset: u64::from(offset), region: vfio::BAR0, count: len };
        self.ask(commands::REGION_READ, &access.to_bytes(&[]), &[])
    }

    /// Writes a register of BAR 0; nobody answers.
    pub(super) fn post_register(&mut self, offset: u32, data: &[u8]) {
        let count = u32::try_from(data.len()).expect("a register");
        let access = Access { offset: u64::from(offset), region: vfio::BAR0, count };
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.send(&message(id, commands::REGION_WRITE, flag::NO_REPLY, 0, &access.to_bytes(data)), &[]);
    }

    /// Asks that vector 0 of MSI-X signal an eventfd.
    pub(super) fn ask_interrupt(&mut self, eventfd: BorrowedFd<'_>) -> Question {
        let trigger = words(&[20, vfio::SET_EVENTFD | vfio::SET_TRIGGER, vfio::IRQ_MSIX, 0, 1]);
        self.ask(commands::DEVICE_SET_IRQS, &trigger, &[eventfd])
    }

    /// A server that lets its socket fill up is as good as gone.
    fn send(&mut self, message: &[u8], fds: &[BorrowedFd<'_>]) {
        self.cut = self.cut || send(&self.stream, message, fds).is_err();
    }

    /// The next answer, if it is there.
    pub(super) fn answer(&mut self) -> Result<Option<Answer>, Closed> {
        let Some(question) = self.under_way.front().copied() else { return Ok(None) };
        let Some(message) = self.receiver.receive(&self.stream)? else {
            return if self.cut { Err(Closed) } else { Ok(None) };
        };
        let header = message.header;
        if header.id != question.id || header.command != question.command || header.flags & flag::REPLY == 0 {
            return Err(Closed);
        }
        self.under_way.pop_front();
        let refused = header.flags & flag::ERROR != 0;
        let errno = || Errno::from_raw(i32::try_from(header.errno).unwrap_or(0));
        let outcome = if refused { Err(errno()) } else { Ok((message.payload, message.fds)) };
        Ok(Some(Answer { question, outcome }))
    }

    /// Waits for the answer to one question; those to earlier ones are passed over.
    pub(super) fn wait(&mut self, question: Question, patience: Duration) -> Result<Answer, Closed> {
        let deadline = BootClock.now() + patience;
        loop {
            match self.answer()? {
                Some(answer) if answer.question == question => return Ok(answer),
                Some(_) => continue,
                None => {}
            }
            let left = deadline.since(BootClock.now());
            if left.is_zero() {
                return Err(Closed);
            }
            let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            // Rounded up, or the last millisecond would be spun away.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Err(Closed),
            }
        }
    }

    /// The end.
    pub(super) fn close(&mut self) {
        self.cut = true;
        // Already closed is closed.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
