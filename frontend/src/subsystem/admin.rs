//! The admin queue after Connect: Fabrics commands (Base 6) and admin commands (Base 5).

use dyad_nvme::command::DataPointer;
use dyad_nvme::fabrics::PropertySize;
use dyad_nvme::opcode::{admin, fabrics};
use dyad_nvme::register::{self, Configuration, Version};
use dyad_nvme::types::QueueId;
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::Time;

use super::command::Direction;
use super::controller::{Kind, Run};
use super::{Action, Answer, ControllerKey, Subsystem, feature};

/// Disconnect names an I/O queue (Base 6.4: Invalid Queue Type, 187h).
const INVALID_QUEUE_TYPE: Status = Status::from_bits(0x187).with_do_not_retry();

/// Bytes of every Identify page.
const PAGE_LEN: u32 = 4096;

pub(super) const INVALID_FIELD: Status = Status::INVALID_FIELD.with_do_not_retry();
pub(super) const INVALID_OPCODE: Status = Status::INVALID_OPCODE.with_do_not_retry();

/// What an admin command is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// Data to the host, exactly as long as [`Subsystem::admin_direction`] said; empty if there is none.
    pub data: Vec<u8>,
}

impl Reply {
    pub(super) fn result(result: u32) -> Self {
        Self { result: u64::from(result), data: Vec::new() }
    }

    pub(super) fn data(data: Vec<u8>) -> Self {
        Self { result: 0, data }
    }
}

impl Subsystem {
    /// Which way the data of an admin or Fabrics command goes, and how much it is.
    ///
    /// # Errors
    /// The status to answer with, if it wants more than one transfer holds.
    pub fn admin_direction(&self, entry: &SubmissionEntry) -> Result<Direction, Status> {
        Ok(match entry.opcode() {
            fabrics::OPCODE if entry.fabrics_type() == fabrics::CONNECT => Direction::FromHost(1024),
            admin::IDENTIFY => Direction::ToHost(PAGE_LEN),
            admin::GET_LOG_PAGE => {
                let bytes = u32::try_from(entry.log_bytes()).ok();
                let bytes = bytes.filter(|bytes| *bytes <= 4096 << self.config.transfer_log2);
                Direction::ToHost(bytes.ok_or(INVALID_FIELD)?)
            }
            admin::SET_FEATURES => feature::set_direction(entry),
            admin::GET_FEATURES => feature::get_direction(entry),
            _ => Direction::None,
        })
    }

    /// A command of the controller's admin queue, with its data.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn admin(
        &mut self,
        now: Time,
        key: ControllerKey,
        entry: &SubmissionEntry,
        data: &[u8],
    ) -> Result<Answer, Status> {
        let answer = self.admin_command(now, key, entry, data);
        if let Err(status) = answer
            && let Some(controller) = self.controller_mut(key)
        {
            let lba = dyad_nvme::types::Lba(0);
            controller.note_error(QueueId::ADMIN, entry.command(), status, lba, entry.namespace());
        }
        self.report_events();
        answer
    }

    fn admin_command(
        &mut self,
        now: Time,
        key: ControllerKey,
        entry: &SubmissionEntry,
        data: &[u8],
    ) -> Result<Answer, Status> {
        let controller = self.controller_mut(key).ok_or(Status::COMMAND_SEQUENCE)?;
        if entry.fuse() != Some(dyad_nvme::command::Fuse::Normal) {
            return Err(INVALID_FIELD);
        }
        if entry.opcode() == fabrics::OPCODE {
            return self.fabrics_command(key, entry).map(Answer::Done);
        }
        // Whoever speaks is alive; a controller that is not ready answers nothing else (Base 3.1.3.6).
        if controller.run != Run::Ready {
            return Err(Status::COMMAND_SEQUENCE.with_do_not_retry());
        }
        if !matches!(entry.data_pointer(), Some(DataPointer::Sgl)) {
            return Err(INVALID_FIELD);
        }
        let kind = controller.kind;
        Ok(Answer::Done(match (entry.opcode(), kind) {
            (admin::KEEP_ALIVE, _) => {
                controller.last_keep_alive = now;
                Reply::default()
            }
            (admin::ASYNC_EVENT_REQUEST, _) => {
                if !controller.events.request(entry.command()) {
                    return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_do_not_retry());
                }
                return Ok(Answer::Held);
            }
            (admin::IDENTIFY, _) => Reply::data(self.identify(key, entry)?),
            (admin::GET_LOG_PAGE, _) => Reply::data(self.log_page(key, entry)?),
            (admin::SET_FEATURES, _) => Reply::result(self.set_features(now, key, entry, data)?),
            (admin::GET_FEATURES, _) => self.get_features(key, entry)?,
            (admin::ABORT, Kind::Io) => {
                // Only requests for events wait long enough to be aborted; bit 0 says that the command was not (Base 5.1).
                let [queue_low, queue_high, command_low, command_high] = entry.dword(10).to_le_bytes();
                let command = dyad_nvme::types::CommandId(u16::from_le_bytes([command_low, command_high]));
                let admin = QueueId(u16::from_le_bytes([queue_low, queue_high])) == QueueId::ADMIN;
                let aborted = admin && controller.events.abort(command);
                if aborted {
                    let completion = dyad_nvme::CompletionEntry::new(0, command, Status::ABORT_REQUESTED);
                    self.actions.push_back(Action::Complete(key, completion));
                }
                Reply::result(u32::from(!aborted))
            }
            _ => return Err(INVALID_OPCODE),
        }))
    }

    fn fabrics_command(&mut self, key: ControllerKey, entry: &SubmissionEntry) -> Result<Reply, Status> {
        match entry.fabrics_type() {
            fabrics::PROPERTY_GET => self.property_get(key, entry),
            fabrics::PROPERTY_SET => self.property_set(key, entry).map(|()| Reply::default()),
            // The queue exists already.
            fabrics::CONNECT => Err(Status::COMMAND_SEQUENCE.with_do_not_retry()),
            fabrics::DISCONNECT => Err(INVALID_QUEUE_TYPE),
            _ => Err(INVALID_OPCODE),
        }
    }

    /// Property Get (Base 6.5).
    fn property_get(&self, key: ControllerKey, entry: &SubmissionEntry) -> Result<Reply, Status> {
        let controller = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?;
        let size = PropertySize::from_bits(entry.dword(10)).ok_or(INVALID_FIELD)?;
        let (value, has) = match entry.dword(11) {
            register::CAP => (self.capabilities(&controller.access).0, PropertySize::Eight),
            register::VS => (u64::from(Version::V2_0.0), PropertySize::Four),
            register::CC => (u64::from(controller.configuration.0), PropertySize::Four),
            register::CSTS => (u64::from(controller.status().0), PropertySize::Four),
            // Reads as zero where there is no subsystem reset (Base 3.1.3.7).
            register::NSSR => (0, PropertySize::Four),
            _ => return Err(INVALID_FIELD),
        };
        if size != has {
            return Err(INVALID_FIELD);
        }
        Ok(Reply { result: value, data: Vec::new() })
    }

    /// Property Set (Base 6.6). There is no subsystem reset (CAP.NSSRS = 0): it would reach beyond this director.
    fn property_set(&mut self, key: ControllerKey, entry: &SubmissionEntry) -> Result<(), Status> {
        let size = PropertySize::from_bits(entry.dword(10)).ok_or(INVALID_FIELD)?;
        if (entry.dword(11), size) != (register::CC, PropertySize::Four) {
            return Err(INVALID_FIELD);
        }
        let access = self.controller(key).ok_or(Status::COMMAND_SEQUENCE)?.access.clone();
        let capabilities = self.capabilities(&access);
        let controller = self.controller_mut(key).ok_or(Status::COMMAND_SEQUENCE)?;
        if controller.configure(Configuration(entry.dword(12)), capabilities) {
            controller.queues = 0;
            self.actions.push_back(Action::CloseIoQueues(key));
        }
        Ok(())
    }

    /// A Fabrics command on an I/O queue: only Disconnect belongs there (Base 6).
    ///
    /// # Errors
    /// The status to answer with.
    pub fn fabrics_on_io_queue(&self, entry: &SubmissionEntry) -> Result<(), Status> {
        match entry.fabrics_type() {
            fabrics::DISCONNECT if entry.dword(10) & 0xffff != 0 => Err(Status::CONFLICTING_ATTRIBUTES),
            fabrics::DISCONNECT => Ok(()),
            fabrics::CONNECT => Err(Status::COMMAND_SEQUENCE.with_do_not_retry()),
            _ => Err(INVALID_OPCODE),
        }
    }
}
