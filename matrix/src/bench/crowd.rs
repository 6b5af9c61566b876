//! What a turn costs when a provider has many VIs and nothing happens on them.

use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_reactor::figures::to_f64;
use dyad_reactor::{BootClock, Clock, Source};

use super::BenchError;
use super::figures::Figures;
use crate::provider::{
    CqId, Discriminator, Event, NetAddress, ProtectionTag, Provider, Reliability, RemoteAccess, ViAttributes,
};
use crate::shm::{ShmLimits, ShmProvider};

const SERVICE: Discriminator = Discriminator(1);
/// Turns before those that count: so many that whoever is quiet is known to be.
const WARM_UP: u32 = 20_000;
const TURNS: u32 = 100_000;

/// A provider that is connected to itself.
pub(super) struct Crowd {
    provider: ShmProvider,
    vis: u16,
}

impl Crowd {
    /// With `vis` VIs, an even number.
    pub(super) fn gather(directory: &Path, vis: u16) -> Result<Self, BenchError> {
        let path = directory.join(format!("crowd-{vis}"));
        let limits = ShmLimits { ring_entries: 8, ring_data_bytes: 4096, ..ShmLimits::default() };
        let mut crowd = Self { provider: ShmProvider::new(&path, 1, limits)?, vis };
        crowd.provider.listen(SERVICE)?;
        let cq = crowd.provider.create_cq(2 * u32::from(vis))?;
        let to = NetAddress { host: path.to_string_lossy().into_owned(), discriminator: SERVICE };
        for _ in 0..vis / 2 {
            crowd.pair(&to, cq)?;
        }
        Ok(crowd)
    }

    fn pair(&mut self, to: &NetAddress, cq: CqId) -> Result<(), BenchError> {
        let attributes = ViAttributes {
            reliability: Reliability::ReliableReception,
            tag: ProtectionTag(1),
            remote_access: RemoteAccess::default(),
            send_depth: 1,
            receive_depth: 1,
            send_cq: cq,
            receive_cq: cq,
        };
        let (from, other) = (self.provider.create_vi(&attributes)?, self.provider.create_vi(&attributes)?);
        self.provider.connect(from, to, b"", Duration::from_secs(5))?;
        let (start, mut established) = (BootClock.now(), 0);
        while established < 2 {
            self.provider.poll();
            match self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Event::Requested { request, .. }) => self.provider.accept(request, other, b"")?,
                Poll::Ready(Event::Established { .. }) => established += 1,
                Poll::Pending if BootClock.now().since(start) < Duration::from_secs(10) => std::thread::yield_now(),
                _ => return Err(BenchError::Peer("is this one, and does not accept")),
            }
        }
        Ok(())
    }

    pub(super) fn turns(&self, figures: &mut Figures) {
        let mut provider = self.provider.clone();
        let mut turns = |count| (0..count).map(|_| provider.poll()).sum::<usize>();
        let mut work = turns(WARM_UP);
        let start = BootClock.now();
        work += turns(TURNS);
        let nanos = u64::try_from(BootClock.now().since(start).as_nanos()).unwrap_or(u64::MAX);
        assert_eq!(work, 0, "nobody sends anything");
        figures.add(format!("shm.turn.{}_idle_vis.ns", self.vis), "ns", to_f64(nanos) / f64::from(TURNS));
    }
}
