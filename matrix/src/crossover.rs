//! Send or RDMA, chosen by size: where the one becomes cheaper than the other.
//!
//! A payload can ride in a message, through a receive buffer that was posted before, out of which it is then copied to its
//! place; or it goes straight to its place by RDMA, and a short message says so. The first costs copies, the second a
//! descriptor. Where the second becomes cheaper depends on the provider and the machine, so it is measured, once.
//! [`Endpoint::transfer`](crate::endpoint::Endpoint::transfer) goes by it.

use std::future::poll_fn;
use std::time::Duration;

use dyad_reactor::Clock;

use crate::memory::{HugePages, MapError, Memory, copy};
use crate::provider::{
    Completion, CqId, Descriptor, DescriptorError, Discriminator, Event, NetAddress, PostError, ProtectionTag,
    Provider, RegionHandle, Reliability, RemoteAccess, RemoteAddress, ResourceError, SendOperation, ViAttributes, ViId,
    WorkQueue,
};

/// How a payload goes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Way {
    /// In the message.
    Message,
    /// By RDMA, and the message behind it.
    Rdma,
}

/// The size from which RDMA is the cheaper way.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Crossover {
    bytes: u32,
}

/// Why nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The provider has no room for two more VIs.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// No memory that peers could reach.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// A descriptor was not taken.
    #[error(transparent)]
    Post(#[from] PostError),
    /// A descriptor failed.
    #[error(transparent)]
    Failed(#[from] DescriptorError),
    /// The provider does not connect to itself.
    #[error("no connection from the provider to itself: {0:?}")]
    Connection(Event),
}

/// The sizes that are tried: powers of two.
const LEAST: u32 = 64;
const MOST: u32 = 64 << 10;
/// The message that says where an RDMA went.
const NOTICE: u32 = 32;
/// Moves per sample, and samples of which the fastest counts: whatever disturbs makes them slower.
const MOVES: u32 = 64;
const SAMPLES: u32 = 5;

const TAG: ProtectionTag = ProtectionTag(u32::MAX);
const SERVICE: Discriminator = Discriminator(u32::MAX);
const TIMEOUT: Duration = Duration::from_secs(10);

impl Crossover {
    /// From `bytes` on it is RDMA.
    #[must_use]
    pub const fn at(bytes: u32) -> Self {
        Self { bytes }
    }

    /// The size itself.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.bytes
    }

    /// How a payload of `bytes` goes.
    #[must_use]
    pub const fn way(self, bytes: u32) -> Way {
        if bytes < self.bytes { Way::Message } else { Way::Rdma }
    }

    /// Measures, once, on a connection from the provider to itself (`own` is its address). To be awaited before anybody else
    /// takes the provider's events, while its reactor has nothing better to do: it takes some milliseconds. A small completion
    /// queue and a listener at the last discriminator stay behind.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub async fn measure<P: Provider>(provider: &P, own: &str, clock: &impl Clock) -> Result<Self, MeasureError> {
        let bench = Bench::new(provider)?;
        let connected = bench.connect(own).await;
        let crossover = match connected {
            Ok(()) => bench.search(clock).await,
            Err(error) => Err(error),
        };
        bench.clear();
        crossover
    }
}

/// Two VIs of one provider, connected to each other.
struct Bench<'a, P> {
    provider: &'a P,
    memory: Memory,
    region: RegionHandle,
    cq: CqId,
    from: ViId,
    to: ViId,
}

impl<'a, P: Provider> Bench<'a, P> {
    fn new(provider: &'a P) -> Result<Self, MeasureError> {
        // A message buffer, a receive buffer, and the payload's place.
        let bytes = usize::try_from(3 * MOST).expect("it is small");
        let memory = Memory::shared("dyad-crossover", bytes, HugePages::No)?;
        let access = RemoteAccess { write: true, read: false };
        let region = provider.register(&memory, TAG, access)?;
        let cq = provider.create_cq(8)?;
        let attributes = ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: TAG,
            remote_access: access,
            send_depth: 2,
            receive_depth: 1,
            send_cq: cq,
            receive_cq: cq,
        };
        let (from, to) = (provider.create_vi(&attributes)?, provider.create_vi(&attributes)?);
        Ok(Self { provider, memory, region, cq, from, to })
    }

    async fn connect(&self, own: &str) -> Result<(), MeasureError> {
        self.provider.listen(SERVICE)?;
        let address = NetAddress { host: own.to_owned(), discriminator: SERVICE };
        self.provider.connect(self.from, &address, b"", TIMEOUT)?;
        let mut established = 0;
        while established < 2 {
            match poll_fn(|cx| self.provider.poll_event(cx)).await {
                Event::Requested { request, .. } => self.provider.accept(request, self.to, b"")?,
                Event::Established { .. } => established += 1,
                other => return Err(MeasureError::Connection(other)),
            }
        }
        Ok(())
    }

    fn clear(&self) {
        // What was made is there; what was not matters no more.
        let _ = self.provider.destroy_vi(self.from);
        let _ = self.provider.destroy_vi(self.to);
        let _ = self.provider.deregister(self.region);
    }

    async fn search(&self, clock: &impl Clock) -> Result<Crossover, MeasureError> {
        let mut bytes = LEAST;
        while bytes < MOST {
            let mut best = [Duration::MAX; 2];
            for _ in 0..SAMPLES {
                for (way, best) in [Way::Message, Way::Rdma].into_iter().zip(&mut best) {
                    let start = clock.now();
                    for _ in 0..MOVES {
                        self.move_once(way, bytes).await?;
                    }
                    *best = clock.now().since(start).min(*best);
                }
            }
            if best[1] <= best[0] {
                break;
            }
            bytes *= 2;
        }
        Ok(Crossover::at(bytes))
    }

    /// Moves a payload to its place and hears that it is there.
    async fn move_once(&self, way: Way, bytes: u32) -> Result<(), MeasureError> {
        let segment = |part: u32, len| self.memory.segment(u64::from(part) * u64::from(MOST), len).expect("in range");
        self.provider.post_receive(self.to, &[segment(1, MOST)], 0)?;
        let message = if way == Way::Message {
            bytes
        } else {
            let place = RemoteAddress { region: self.region, offset: u64::from(2 * MOST) };
            self.post(SendOperation::RdmaWrite(place), bytes)?;
            NOTICE
        };
        self.post(SendOperation::Send, message)?;
        let mut completions = if way == Way::Message { 2 } else { 3 };
        while completions > 0 {
            let done: Completion = poll_fn(|cx| self.provider.poll_completion(self.cq, cx)).await;
            done.result?;
            if done.queue == WorkQueue::Receive && way == Way::Message {
                let (buffer, place) = (u64::from(MOST), u64::from(2 * MOST));
                copy(&self.memory, buffer, &self.memory, place, u64::from(bytes)).expect("in range");
            }
            completions -= 1;
        }
        Ok(())
    }

    fn post(&self, operation: SendOperation, bytes: u32) -> Result<(), PostError> {
        let segments = [self.memory.segment(0, bytes).expect("in range")];
        self.provider.post_send(self.from, &Descriptor { operation, segments: &segments, immediate: None, cookie: 0 })
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use dyad_reactor::{Executor, Fifo, Limits, VirtualTime};

    use super::*;
    use crate::sim::{Fabric, FabricConfig, LinkProfile};

    /// What a fabric without processors measures: messages as long as a second descriptor costs more than bandwidth does.
    #[test]
    fn each_provider_has_its_own_crossover() {
        let measured = |nanos_per_kib| {
            let time = VirtualTime::new(1);
            let link = LinkProfile { latency: Duration::from_micros(1), jitter: Duration::ZERO, nanos_per_kib };
            let fabric = Fabric::new(&time, FabricConfig { link, torn_one_in: 0, ..FabricConfig::default() });
            let provider = fabric.node("a", 1);
            let executor = Executor::new(Limits { tasks: 1, timers: 1 }, Rc::new(time.clone()));
            let result = Rc::new(std::cell::Cell::new(None));
            let (out, clock) = (Rc::clone(&result), time.clone());
            executor.handle().spawn("measure", async move {
                out.set(Some(Crossover::measure(&provider, "a", &clock).await.expect("it connects to itself")));
            });
            executor.seal();
            while result.get().is_none() {
                while executor.run_one(&mut Fifo) {}
                let Some(next) = time.next_event() else { break };
                time.advance_to(next);
                time.run_due();
            }
            result.get().expect("it was measured")
        };
        assert_eq!(measured(0).bytes(), LEAST, "nothing costs anything: RDMA is never slower");
        assert_eq!(measured(100).bytes(), MOST, "here the notice takes time and copies take none");
        assert_eq!((Crossover::at(128).way(127), Crossover::at(128).way(128)), (Way::Message, Way::Rdma));
    }
}
