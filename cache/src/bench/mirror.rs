//! The partner: it has a mirror, and answers.

use std::path::Path;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use dyad_matrix::Memory;
use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::memory::HugePages;
use dyad_matrix::provider::{Discriminator, Event, ProtectionTag, Provider, RegionHandle, RemoteAccess};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_nvme::types::BLOCK_BYTES;
use dyad_reactor::executor::{Executor, Fifo, Limits};
use dyad_reactor::{BootClock, Source};

use super::BenchError;
use crate::address::Epoch;
use crate::mirror::MirrorArea;
use crate::outcomes::OutcomeTable;
use crate::record::Record;

pub(super) const SERVICE: Discriminator = Discriminator(1);
pub(super) const TAG: ProtectionTag = ProtectionTag(1);
/// The epoch of everything here.
pub(super) const EPOCH: Epoch = Epoch(1);
/// Frames of the mirror.
pub(super) const FRAMES: u32 = 8192;
/// Command parts that each host may have outstanding.
pub(super) const OUTCOMES: usize = 256;
/// Sends and receives of the VI.
pub(super) const DEPTH: u16 = 160;

/// The partner's side, turned by hand.
pub struct Mirror {
    executor: Executor,
    provider: ShmProvider,
    endpoint: Endpoint<ShmProvider>,
    region: RegionHandle,
    memory: Memory,
}

impl Mirror {
    /// A mirror that waits for its home in `directory`.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn listen(directory: &Path) -> Result<Self, BenchError> {
        let provider = ShmProvider::new(&directory.join("mirror"), 1, ShmLimits::default())?;
        let bytes = usize::try_from(FRAMES).expect("32 bits fit") * BLOCK_BYTES;
        let memory = Memory::shared("dyad-bench", bytes, HugePages::IfAvailable)?;
        memory.fill_zero(0, memory.len()).expect("inside");
        let remote_access = RemoteAccess { write: true, read: false };
        let region = provider.register(&memory, TAG, remote_access)?;
        let endpoint =
            Endpoint::new(provider.clone(), EndpointConfig { vis_max: 2, depth: DEPTH, tag: TAG, remote_access })?;
        provider.listen(SERVICE)?;
        let executor = Executor::new(Limits { tasks: 2, timers: 4 }, Rc::new(BootClock));
        executor.handle().spawn("completions", endpoint.clone().run());
        executor.handle().spawn("receive", answer(endpoint.clone(), MirrorArea::new(memory.clone())));
        executor.seal();
        Ok(Self { executor, provider, endpoint, region, memory })
    }

    /// Does what there is to do; how much that was.
    pub fn turn(&mut self) -> usize {
        let mut work = self.provider.poll();
        if let Poll::Ready(event) = self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
            if let Event::Requested { request, .. } = event
                && let Ok(vi) = self.endpoint.open()
            {
                // A home that is gone asks again.
                let _ = self.provider.accept(request, vi, &self.region.to_key().to_le_bytes());
            }
            work += 1;
        }
        work + self.executor.run_until_idle(&mut Fifo)
    }

    /// Bytes that this process copied into the mirror or to its peer.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.memory.copied_bytes() + self.provider.copied_bytes()
    }
}

async fn answer(endpoint: Endpoint<ShmProvider>, mut area: MirrorArea) {
    let outcomes = OutcomeTable::new(2, OUTCOMES);
    loop {
        let (vi, message) = endpoint.receive().await;
        let Ok((record, tag)) = Record::decode(&message) else { continue };
        if let Some(answer) = area.serve(&record, EPOCH, &outcomes) {
            // A home that takes no answers is gone.
            let _ = endpoint.try_send(vi, &Record::Answer(answer).encode(tag));
        }
    }
}
