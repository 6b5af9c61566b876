//! One process's end of the measurements: a VI with registered memory, polled in a loop.

use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Source};

use super::BenchError;
use super::figures::SPAN;
use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    Completion, CqId, Descriptor, Event, ProtectionTag, Provider, RegionHandle, Reliability, RemoteAccess,
    SendOperation, ViAttributes, ViId,
};
use crate::shm::{ShmLimits, ShmProvider};

/// Descriptors of each queue.
pub(super) const DEPTH: u16 = 64;
/// Bytes of each message buffer.
pub(super) const BUFFER: u32 = 64 << 10;

const TAG: ProtectionTag = ProtectionTag(1);
const ACCESS: RemoteAccess = RemoteAccess { write: true, read: true };
/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Station {
    pub(super) provider: ShmProvider,
    pub(super) sends: CqId,
    pub(super) receives: CqId,
    pub(super) vi: ViId,
    /// What the peer may reach by RDMA.
    pub(super) open: Memory,
    pub(super) region: RegionHandle,
    /// Message buffers: a send buffer, then one for each receive.
    pub(super) buffers: Memory,
}

impl Station {
    pub(super) fn new(path: &Path) -> Result<Self, BenchError> {
        let provider = ShmProvider::new(path, 1, ShmLimits::default())?;
        let memory = |bytes: u32, huge_pages| {
            Memory::shared("dyad-bench", bytes as usize, huge_pages).map_err(crate::shm::ShmError::Memory)
        };
        let open = memory(SPAN, HugePages::No)?;
        let buffers = memory(BUFFER * (1 + u32::from(DEPTH)), HugePages::IfAvailable)?;
        let region = provider.register(&open, TAG, ACCESS)?;
        provider.register(&buffers, TAG, RemoteAccess::default())?;
        let (sends, receives) = (provider.create_cq(u32::from(DEPTH))?, provider.create_cq(u32::from(DEPTH))?);
        let vi = provider.create_vi(&ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: TAG,
            remote_access: ACCESS,
            send_depth: DEPTH,
            receive_depth: DEPTH,
            send_cq: sends,
            receive_cq: receives,
        })?;
        let station = Self { provider, sends, receives, vi, open, region, buffers };
        for buffer in 1..=u64::from(DEPTH) {
            station.receive(buffer)?;
        }
        Ok(station)
    }

    pub(super) fn buffer(&self, buffer: u64, len: u32) -> Segment {
        self.buffers.segment(buffer * u64::from(BUFFER), len).expect("a buffer lies in its memory")
    }

    pub(super) fn receive(&self, buffer: u64) -> Result<(), BenchError> {
        Ok(self.provider.post_receive(self.vi, &[self.buffer(buffer, BUFFER)], buffer)?)
    }

    pub(super) fn post(&self, operation: SendOperation, segment: Segment, cookie: u64) -> Result<(), BenchError> {
        let segments = [segment];
        let descriptor = Descriptor { operation, segments: &segments, immediate: None, cookie };
        Ok(self.provider.post_send(self.vi, &descriptor)?)
    }

    /// The next completion, if there is one.
    pub(super) fn done(&self, cq: CqId) -> Result<Option<Completion>, BenchError> {
        match self.provider.poll_completion(cq, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) if done.result.is_err() => Err(BenchError::Peer("broke the connection")),
            Poll::Ready(done) => Ok(Some(done)),
            Poll::Pending => Ok(None),
        }
    }

    /// Polls until a completion comes.
    pub(super) fn completion(&mut self, cq: CqId) -> Result<Completion, BenchError> {
        for _ in 0..2_000_000_000_u64 {
            if let Some(done) = self.done(cq)? {
                return Ok(done);
            }
            if self.provider.poll() == 0 {
                std::hint::spin_loop();
            }
        }
        Err(BenchError::Peer("does not answer"))
    }

    /// Polls until an event comes.
    pub(super) fn event(&mut self) -> Result<Event, BenchError> {
        let start = BootClock.now();
        while BootClock.now().since(start) < PATIENCE {
            self.provider.poll();
            if let Poll::Ready(event) = self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
                return Ok(event);
            }
            std::thread::yield_now();
        }
        Err(BenchError::Peer("does not answer"))
    }
}
