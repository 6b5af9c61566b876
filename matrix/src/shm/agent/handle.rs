//! What goes between the reactor and its agent: commands one way, notices the other, each through a bounded channel with an
//! alarm for whoever sleeps.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::super::layout::{Geometry, Side, StatusShape};
use crate::memory::Memory;
use crate::provider::{
    BrokenReason, Discriminator, NetAddress, PrivateData, RefusedReason, RegionHandle, Reliability, RemoteAccess, ViId,
};

/// Names a connection of this provider; never used again.
pub(in crate::shm) type ConnectionName = u32;

/// What the two ends of a connection share, as one of them holds it.
#[derive(Debug)]
pub(in crate::shm) struct Wire {
    pub(in crate::shm) side: Side,
    pub(in crate::shm) geometry: Geometry,
    pub(in crate::shm) channel: Memory,
    pub(in crate::shm) peer_status: Memory,
    pub(in crate::shm) peer_shape: StatusShape,
    pub(in crate::shm) peer_vi: ViId,
    pub(in crate::shm) doorbell: OwnedFd,
}

/// What the reactor asks for.
pub(in crate::shm) enum Command {
    Connect {
        vi: ViId,
        to: NetAddress,
        private_data: PrivateData,
        timeout: Duration,
        reliability: Reliability,
    },
    /// The VI that connects, or accepts, is gone.
    Abandon {
        vi: ViId,
    },
    Accept {
        connection: ConnectionName,
        vi: ViId,
        private_data: PrivateData,
    },
    Refuse {
        connection: ConnectionName,
        why: RefusedReason,
        private_data: PrivateData,
    },
    Export {
        connection: ConnectionName,
        region: RegionHandle,
        memory: Memory,
        access: RemoteAccess,
    },
    Unexport {
        connection: ConnectionName,
        region: RegionHandle,
    },
    /// A region of the peer is waited for that it said to have announced.
    Expect {
        connection: ConnectionName,
    },
    /// The peer wants its region back, and here it is, to be unmapped.
    Release {
        connection: ConnectionName,
        region: RegionHandle,
        memory: Option<Memory>,
    },
    /// Our VI has ended; here are the peer's regions, to be unmapped.
    Close {
        connection: ConnectionName,
        why: BrokenReason,
        memories: Vec<Memory>,
    },
}

/// What the agent tells the reactor.
pub(in crate::shm) enum Notice {
    Requested {
        connection: ConnectionName,
        discriminator: Discriminator,
        reliability: Reliability,
        private_data: PrivateData,
    },
    RequestGone {
        connection: ConnectionName,
    },
    Ready {
        connection: ConnectionName,
        vi: ViId,
        wire: Box<Wire>,
        private_data: PrivateData,
    },
    Refused {
        vi: ViId,
        why: RefusedReason,
        private_data: PrivateData,
    },
    Exported {
        vi: ViId,
        region: RegionHandle,
        memory: Memory,
        access: RemoteAccess,
    },
    Unexported {
        vi: ViId,
        region: RegionHandle,
    },
    /// The peer has given the region back.
    Released {
        connection: ConnectionName,
        region: RegionHandle,
    },
    /// The peer's end is closed; ours is to be broken and closed.
    Ended {
        vi: ViId,
        why: BrokenReason,
    },
    /// The peer can touch nothing of ours any more.
    Quiet {
        connection: ConnectionName,
    },
}

/// The reactor's end of the agent.
pub(in crate::shm) struct AgentHandle {
    /// `None` once the agent is to stop.
    pub(super) commands: Option<SyncSender<Command>>,
    pub(super) notices: Receiver<Notice>,
    /// Notices may wait.
    pub(super) told: Arc<AtomicBool>,
    pub(super) alarm: Arc<EventFd>,
    /// Readable when notices wait.
    pub(in crate::shm) notice_alarm: Arc<EventFd>,
    pub(super) thread: Option<JoinHandle<()>>,
    pub(super) path: PathBuf,
}

impl AgentHandle {
    /// Gives it a command, or gives the command back if too many wait.
    pub(in crate::shm) fn command(&self, command: Command) -> Result<(), Command> {
        let commands = self.commands.as_ref().expect("only dropping stops the agent");
        commands.try_send(command).map_err(|error| match error {
            std::sync::mpsc::TrySendError::Full(command) | std::sync::mpsc::TrySendError::Disconnected(command) => {
                command
            }
        })?;
        // It fails only when it was raised 2^64 times and not seen.
        let _ = self.alarm.write(1);
        Ok(())
    }

    pub(in crate::shm) fn next_notice(&self) -> Option<Notice> {
        // To look into an empty channel costs a full fence, to look at this nothing.
        if !self.told.load(Ordering::Acquire) {
            return None;
        }
        let notice = self.notices.try_recv().ok();
        if notice.is_none() {
            self.told.store(false, Ordering::SeqCst);
            return self.notices.try_recv().ok().inspect(|_| self.told.store(true, Ordering::Release));
        }
        notice
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.alarm.write(1);
        let _ = std::fs::remove_file(&self.path);
        // It may be waiting for room for notices; nobody takes them any more.
        let (_, nobody) = sync_channel(0);
        self.notices = nobody;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where notices go. Waits for room: a reactor that does not poll gets no more of them.
pub(super) struct Notices {
    pub(super) sender: SyncSender<Notice>,
    pub(super) told: Arc<AtomicBool>,
    pub(super) alarm: Arc<EventFd>,
}

impl Notices {
    pub(super) fn tell(&self, notice: Notice) {
        // Fails only when the reactor's end is gone; then the agent is about to stop.
        if self.sender.send(notice).is_ok() {
            self.told.store(true, Ordering::SeqCst);
            let _ = self.alarm.write(1);
        }
    }
}
