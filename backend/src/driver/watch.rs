//! The watch over one controller: the time-out ladder, and asynchronous events.
//!
//! Time is counted in ticks of an eighth of the command time-out, and only while commands are outstanding; submitting
//! reads no clock. A command that is outstanding for more than eight ticks is aborted. If it has not ended two ticks
//! later the controller is reset, and if that fails the device has failed. A command that is a whole tick old is reason
//! enough to look whether the device is still there: a register that reads as all ones, or is not answered, says that it
//! is not. Looking leaves the reactor to others, whatever the device does.

use std::rc::Weak;

use dyad_nvme::SubmissionEntry;
use dyad_nvme::log;
use dyad_nvme::register::{self, ControllerStatus};
use dyad_nvme::types::{CommandId, NamespaceId};

use super::{Listening, Shared, State, Verdict};
use crate::pci::PciFunction;

/// Ticks in a command time-out.
const TICKS: u32 = 8;

/// Ticks that an aborted command has to end.
const ABORT_TICKS: u32 = 2;

/// What the watch does next.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing is outstanding: wait until something is submitted.
    Rest,
    /// All is well: wait a tick.
    Tick,
    /// A command is late.
    Abort(CommandId),
    /// Aborting did not help, or the controller is broken.
    Reset,
    /// The device is not there any more.
    Fail,
    /// It is over.
    End,
}

/// Runs until the device has failed or nobody has it any more.
pub(super) async fn watch<F: PciFunction>(driver: Weak<Shared<F>>) {
    loop {
        let Some(shared) = driver.upgrade() else { return };
        shared.hear_events().await;
        match shared.next_step().await {
            Step::Rest => {
                let alarm = shared.alarm.clone();
                let seen = alarm.generation();
                // Submitted between the step and here: `ticking` says so.
                if shared.core.borrow().ticking || shared.core.borrow().verdict.is_some() {
                    continue;
                }
                drop(shared);
                alarm.changed_since(seen).await;
            }
            Step::Tick => {
                let handle = shared.handle.clone();
                let tick = shared.options.command_timeout / TICKS;
                drop(shared);
                handle.sleep(tick).await;
                if let Some(shared) = driver.upgrade() {
                    let mut core = shared.core.borrow_mut();
                    core.tick = core.tick.wrapping_add(1);
                }
            }
            Step::Abort(command) => shared.abort(command).await,
            Step::Reset => shared.reset().await,
            Step::Fail => shared.fail(),
            Step::End => return,
        }
    }
}

impl<F: PciFunction> Shared<F> {
    async fn next_step(&self) -> Step {
        let (command, age, aborting) = {
            let mut core = self.core.borrow_mut();
            if core.state == State::Failed {
                return Step::End;
            }
            if self.function.is_leaving() {
                return Step::Fail;
            }
            match core.verdict {
                Some(Verdict::Reset) => return Step::Reset,
                Some(Verdict::Fail) => return Step::Fail,
                None => {}
            }
            let Some(oldest) = core.io.oldest(core.tick) else {
                core.ticking = false;
                return Step::Rest;
            };
            oldest
        };
        if age == 0 {
            return Step::Tick;
        }
        let status = ControllerStatus(self.register(register::CSTS).await);
        match (aborting, age) {
            _ if status.gone() => Step::Fail,
            _ if status.fatal() || !status.ready() => Step::Reset,
            (true, ABORT_TICKS..) => Step::Reset,
            (false, age) if age > TICKS => Step::Abort(command),
            _ => Step::Tick,
        }
    }

    /// First rung.
    async fn abort(&self, command: CommandId) {
        let queue = {
            let mut core = self.core.borrow_mut();
            let tick = core.tick;
            core.io.mark_aborting(command, tick);
            core.io.queue()
        };
        // Whether it worked shows in the command's own completion; an Abort without an answer is the next rung's business.
        let _ = self.admin(SubmissionEntry::abort(queue, command), &[], &mut []).await;
    }

    /// Second rung, and third.
    async fn reset(&self) {
        self.core.borrow_mut().state = State::Resetting;
        self.resets.set(self.resets.get() + 1);
        match self.bring_up().await {
            Ok(info) => self.run(info),
            Err(_) => self.fail(),
        }
    }

    /// Reads the log page of an event that was reported, which lets the controller report the next, and asks for it.
    async fn hear_events(&self) {
        let (state, listening) = {
            let core = self.core.borrow();
            (core.state, core.listening)
        };
        match listening {
            _ if state != State::Running => return,
            Listening::Asked(_) | Listening::Refused => return,
            Listening::Heard(
                page @ (log::ERROR | log::SMART | log::CHANGED_NAMESPACES | log::RESERVATION_NOTIFICATION),
            ) => {
                let mut head = [0; 64];
                let command = SubmissionEntry::get_log_page(page, NamespaceId::ALL, 0, 64, false);
                // A page that cannot be read is one that nothing more is heard about.
                let _ = self.admin(command, &[], &mut head).await;
            }
            Listening::Heard(_) | Listening::No => {}
        }
        self.request_event();
    }
}
