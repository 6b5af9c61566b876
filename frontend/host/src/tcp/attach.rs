//! Attaching to a controller, step by step, on a thread that may wait: an admin queue and an I/O queue come of it.

use std::os::fd::AsFd;

use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::fabrics::{ConnectData, PropertySize};
use dyad_nvme::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, cns};
use dyad_nvme::register::{self, Configuration, ControllerStatus};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, ControllerId, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry, feature};
use dyad_reactor::{BootClock, Clock, Time};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::SocketAddr;

use super::initiator::TcpInitiatorConfig;
use super::queue::{Queue, Style, Way};

/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;

/// Why there is no volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::ErrorKind),
    /// The controller answered with this status.
    #[error("the controller answered {step} with: {status}")]
    Status {
        /// What it was asked.
        step: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The controller did not answer, or is not ready, in time.
    #[error("the controller does not answer {0}")]
    TimedOut(&'static str),
    /// The namespace has blocks of another size.
    #[error("the namespace has no blocks of 4 KiB")]
    BlockSize,
    /// There are no frames to learn in.
    #[error("no free frame")]
    Frames,
    /// The kernel refused something.
    #[error("the kernel: {0}")]
    Os(Errno),
}

/// A controller, ready for I/O.
pub(super) struct Attached {
    pub(super) admin: Queue,
    pub(super) io: Queue,
    /// Size of the namespace.
    pub(super) blocks: BlockCount,
    /// Longest transfer in blocks.
    pub(super) transfer_max: u64,
}

/// Attaches to the controller at `address`. Each step takes as long as the configuration says at most.
pub(super) fn attach(config: &TcpInitiatorConfig, address: SocketAddr) -> Result<Attached, AttachError> {
    let pool = FramePool::new(Memory::anonymous(2 * FRAME_BYTES));
    let setup = Setup { config, address, pool: &pool };
    let mut admin = setup.open(ADMIN_ENTRIES)?;
    let keep_alive_ms = u32::try_from(config.keep_alive.as_millis()).unwrap_or(u32::MAX);
    let connect = SubmissionEntry::connect(QueueId::ADMIN, ADMIN_ENTRIES, keep_alive_ms);
    let answer = setup.connect(&mut admin, connect, ControllerId::DYNAMIC)?;
    let controller = ControllerId(u16::try_from(answer.result_low() & 0xffff).expect("16 bits"));
    setup.enable(&mut admin)?;
    let page = setup.page(&mut admin, "Identify Controller", cns::CONTROLLER, NamespaceId::NONE)?;
    let about = IdentifyController::from_bytes(&page);
    let page = setup.page(&mut admin, "Identify Namespace", cns::NAMESPACE, config.namespace)?;
    let namespace = IdentifyNamespace::from_bytes(&page);
    if namespace.block_bytes() != Some(BLOCK_BYTES as u64) {
        return Err(AttachError::BlockSize);
    }
    let queues = SubmissionEntry::set_features(feature::NUMBER_OF_QUEUES, NamespaceId::NONE, 0);
    setup.ask(&mut admin, "Set Features", queues)?;
    // One entry more than commands: a full queue has one that is empty (Base 3.3.1.4).
    let entries = config.depth + 1;
    let mut io = setup.open(entries)?;
    // We do not look at submission queue heads (CATTR bit 2).
    let connect = SubmissionEntry::connect(QueueId(1), entries, 0);
    let connect = connect.with_dword(11, connect.dword(11) | 1 << 18);
    setup.connect(&mut io, connect, controller)?;
    io.in_capsule_max = (about.command_capsule_16 * 16).saturating_sub(64);
    let transfer_max = if about.mdts == 0 { u64::MAX } else { 1 << about.mdts.min(16) };
    Ok(Attached { admin, io, blocks: BlockCount(namespace.size), transfer_max })
}

/// The steps.
struct Setup<'a> {
    config: &'a TcpInitiatorConfig,
    address: SocketAddr,
    pool: &'a FramePool,
}

impl Setup<'_> {
    fn open(&self, entries: u16) -> Result<Queue, AttachError> {
        let TcpInitiatorConfig { header_digest, data_digest, connect_timeout, .. } = *self.config;
        let style = Style { header_digest, data_digest };
        Queue::open(self.address, style, entries, connect_timeout).map_err(|error| AttachError::Connect(error.kind()))
    }

    /// Has one command done and waits for it.
    fn command(
        &self,
        queue: &mut Queue,
        step: &'static str,
        entry: SubmissionEntry,
        way: Way,
        frames: &Pinned,
        len: u32,
    ) -> Result<CompletionEntry, AttachError> {
        let deadline = BootClock.now() + self.config.connect_timeout;
        let mut segments = frames.segments();
        if let Some(segment) = segments.first_mut() {
            segment.len = len;
        }
        let slot = queue.submit(entry, way, segments).ok_or(AttachError::TimedOut(step))?;
        loop {
            queue.notice(true, true);
            queue.poll(self.pool.memory());
            if let Some(completion) = queue.completion(slot, std::task::Waker::noop()) {
                let status = completion.status();
                return if status.is_success() { Ok(completion) } else { Err(AttachError::Status { step, status }) };
            }
            let left = left_ms(deadline).ok_or(AttachError::TimedOut(step))?;
            let mut fds = [PollFd::new(queue.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(AttachError::Os(errno)),
            }
        }
    }

    fn ask(
        &self,
        queue: &mut Queue,
        step: &'static str,
        entry: SubmissionEntry,
    ) -> Result<CompletionEntry, AttachError> {
        self.command(queue, step, entry, Way::FromHost, &self.pool.pin(std::iter::empty()), 0)
    }

    fn connect(
        &self,
        queue: &mut Queue,
        entry: SubmissionEntry,
        controller: ControllerId,
    ) -> Result<CompletionEntry, AttachError> {
        let TcpInitiatorConfig { host, subsystem_nqn, host_nqn, .. } = self.config;
        let data = ConnectData::new(*host, controller, subsystem_nqn, host_nqn);
        let frame = self.pool.try_take(1).ok_or(AttachError::Frames)?;
        frame.write(0, &data.to_bytes());
        let len = u32::try_from(ConnectData::BYTES).expect("1024");
        self.command(queue, "Connect", entry, Way::FromHost, &frame, len)
    }

    /// Enables the controller and waits until it is ready (Base 3.5.1).
    fn enable(&self, queue: &mut Queue) -> Result<(), AttachError> {
        let enable = u64::from(Configuration::ENABLED.0);
        self.ask(queue, "Property Set", SubmissionEntry::property_set(register::CC, PropertySize::Four, enable))?;
        let deadline = BootClock.now() + self.config.connect_timeout;
        loop {
            let get = SubmissionEntry::property_get(register::CSTS, PropertySize::Four);
            let status = ControllerStatus(self.ask(queue, "Property Get", get)?.result_low());
            if status.ready() {
                return Ok(());
            }
            if status.fatal() || left_ms(deadline).is_none() {
                return Err(AttachError::TimedOut("to become ready"));
            }
        }
    }

    fn page(
        &self,
        queue: &mut Queue,
        step: &'static str,
        cns: u8,
        namespace: NamespaceId,
    ) -> Result<Box<[u8; IDENTIFY_BYTES]>, AttachError> {
        let frame = self.pool.try_take(1).ok_or(AttachError::Frames)?;
        let entry = SubmissionEntry::identify(cns, namespace, 0);
        let len = u32::try_from(IDENTIFY_BYTES).expect("4096");
        self.command(queue, step, entry, Way::ToHost, &frame, len)?;
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        frame.read(0, &mut page[..]);
        Ok(page)
    }
}

/// Milliseconds to a deadline, rounded up; `None` once it has passed.
fn left_ms(deadline: Time) -> Option<PollTimeout> {
    let left = deadline.since(BootClock.now());
    (!left.is_zero()).then(|| PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX))
}
