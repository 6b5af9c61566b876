//! Volumes in a director's cache as namespaces: what the `vi` port does for hosts with our library, for standard hosts.
//!
//! Standard hosts give their commands no numbers that last, so the port gives them its own: each piece of a write is a command
//! of one origin, the port in this run of the director. A host that sends a command again sends another one; that it does not
//! land after what came later is the core's to see to (it does not let a host back in while its commands are admitted).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_cache::address::TRACK_BLOCKS;
use dyad_cache::home::Transfer;
use dyad_cache::record::CommandId;
use dyad_cache::{Cache, CacheError, Store, TrackRange, VolumeId, WriteCommand};
use dyad_matrix::frames::{FramePool, Pinned};
use dyad_matrix::{Memory, Provider, Segment};
use dyad_nvme::types::{BlockCount, NamespaceId};
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::Signal;

use super::backing::{Backing, HostData, Part};
use super::command::Run;

/// Volumes in a cache. Clones are the same.
pub struct CacheBacking<S: Store, P> {
    inner: Rc<Inner<S, P>>,
}

struct Inner<S: Store, P> {
    handle: Handle,
    cache: Cache<S, P>,
    volumes: Vec<(NamespaceId, VolumeId)>,
    numbers: Numbers,
}

impl<S: Store, P> Clone for CacheBacking<S, P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

/// The numbers of writes: what is remembered about them is bounded, so none is taken that is too far from the oldest outstanding.
struct Numbers {
    origin: [u8; 16],
    window: u64,
    last: Cell<u64>,
    outstanding: RefCell<Vec<u64>>,
    returned: Signal,
}

/// A number, outstanding as long as this lives.
struct Number<'a>(u64, &'a Numbers);

impl Numbers {
    fn oldest(&self) -> u64 {
        self.outstanding.borrow().iter().copied().min().unwrap_or(self.last.get() + 1)
    }

    async fn take(&self, handle: &Handle, deadline: Time) -> Result<Number<'_>, CacheError> {
        loop {
            let seen = self.returned.generation();
            let number = self.last.get() + 1;
            if number - self.oldest() < self.window {
                self.last.set(number);
                self.outstanding.borrow_mut().push(number);
                return Ok(Number(number, self));
            }
            handle.timeout_at(deadline, self.returned.changed_since(seen)).await.map_err(|_| CacheError::Undecided)?;
        }
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.1.outstanding.borrow_mut().retain(|number| *number != self.0);
        self.1.returned.notify_all();
    }
}

impl<S: Store, P: Provider> CacheBacking<S, P> {
    /// These volumes of a cache. `origin` was never used before; `window` is what the cache remembers per origin.
    #[must_use]
    pub fn new(
        handle: &Handle,
        cache: Cache<S, P>,
        volumes: &[(NamespaceId, VolumeId)],
        origin: [u8; 16],
        window: usize,
    ) -> Self {
        let numbers = Numbers {
            origin,
            window: window as u64,
            last: Cell::new(0),
            outstanding: RefCell::new(Vec::with_capacity(window)),
            returned: Signal::new(),
        };
        Self { inner: Rc::new(Inner { handle: handle.clone(), cache, volumes: volumes.to_vec(), numbers }) }
    }

    fn volume(&self, namespace: NamespaceId) -> Result<VolumeId, CacheError> {
        let found = self.inner.volumes.iter().find(|(id, _)| *id == namespace);
        found.map(|(_, volume)| *volume).ok_or(CacheError::OutOfRange)
    }

    /// Writes one piece; its bytes come from `host`.
    async fn write_piece(
        &self,
        range: TrackRange,
        fua: bool,
        deadline: Time,
        host: &impl Transfer,
    ) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let number = inner.numbers.take(&inner.handle, deadline).await?;
        let command = CommandId { origin: inner.numbers.origin, sequence: number.0, part: 0 };
        let write = WriteCommand { range, command, oldest: inner.numbers.oldest(), fua };
        inner.cache.write(write, deadline, host).await
    }
}

/// Nothing but zeros.
struct Zeros<'a>(&'a Memory);

impl Transfer for Zeros<'_> {
    async fn fetch(&self, segments: &[Segment]) -> Result<(), CacheError> {
        for segment in segments {
            self.0.fill_zero(segment.offset, u64::from(segment.len)).expect("segments lie in their memory");
        }
        Ok(())
    }

    async fn deliver(&self, _: &[Segment]) -> Result<(), CacheError> {
        Err(CacheError::Host)
    }
}

/// The pieces of a run, one per track, with the byte at which each begins.
fn pieces(volume: VolumeId, run: Run) -> impl Iterator<Item = (u64, TrackRange)> {
    let mut at = 0;
    TrackRange::split(volume, run.lba, run.blocks.0).map(move |range| {
        let from = at;
        at += BlockCount(range.count() as u64).bytes();
        (from, range)
    })
}

impl<S: Store, P: Provider + 'static> Backing for CacheBacking<S, P> {
    fn pool(&self) -> &FramePool {
        self.inner.cache.pool()
    }

    fn frames_for(&self, run: Run) -> Option<Pinned> {
        let tracks = TRACK_BLOCKS as u64;
        let one_track = run.blocks.0 > 0 && run.lba.0 / tracks == (run.lba.0 + run.blocks.0 - 1) / tracks;
        let count = usize::try_from(run.blocks.0).ok().filter(|_| one_track)?;
        self.inner.cache.try_take(count)
    }

    async fn read(
        &self,
        namespace: NamespaceId,
        run: Run,
        deadline: Time,
        host: &impl HostData,
    ) -> Result<(), CacheError> {
        for (at, range) in pieces(self.volume(namespace)?, run) {
            self.inner.cache.read(range, deadline, &Part { host, at }).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        namespace: NamespaceId,
        run: Run,
        fua: bool,
        deadline: Time,
        host: &impl HostData,
    ) -> Result<(), CacheError> {
        for (at, range) in pieces(self.volume(namespace)?, run) {
            self.write_piece(range, fua, deadline, &Part { host, at }).await?;
        }
        Ok(())
    }

    async fn zero(
        &self,
        namespace: NamespaceId,
        run: Run,
        _: bool,
        fua: bool,
        deadline: Time,
    ) -> Result<(), CacheError> {
        for (_, range) in pieces(self.volume(namespace)?, run) {
            self.write_piece(range, fua, deadline, &Zeros(self.pool().memory())).await?;
        }
        Ok(())
    }

    /// The volumes of a cache have no holes yet: what is not needed stays.
    async fn discard(&self, namespace: NamespaceId, _: Run, _: Time) -> Result<(), CacheError> {
        self.volume(namespace).map(|_| ())
    }

    async fn flush(&self, namespace: NamespaceId, deadline: Time) -> Result<(), CacheError> {
        for (id, volume) in &self.inner.volumes {
            if namespace == NamespaceId::ALL || namespace == *id {
                self.inner.cache.flush(*volume, deadline).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use dyad_backend::device::{Device, DeviceId, DeviceInfo};
    use dyad_backend::fake::{FakeDevice, FakeMedium};
    use dyad_backend::raid::Raid1;
    use dyad_cache::{Authority, CacheConfig, Epoch, Policy, Regime, VolumePlace};
    use dyad_matrix::sim::SimProvider;
    use dyad_nvme::types::Lba;
    use dyad_reactor::executor::Limits;
    use dyad_reactor::{Clock, Executor, Fifo, VirtualTime};

    use super::*;
    use crate::subsystem::command::{IoCommand, Operation};
    use crate::subsystem::execute::execute;

    const VOLUME: VolumeId = VolumeId { uuid: [3; 16], generation: 1 };
    const ID: NamespaceId = NamespaceId(5);
    const SIZE: BlockCount = BlockCount(64);

    /// A host's buffer.
    struct Buffer {
        memory: Memory,
        bytes: RefCell<Vec<u8>>,
    }

    impl HostData for Buffer {
        async fn fetch(&self, at: u64, segments: &[Segment]) -> Result<(), CacheError> {
            let mut at = usize::try_from(at).unwrap();
            for segment in segments {
                let len = usize::try_from(segment.len).unwrap();
                self.memory.write(segment.offset, &self.bytes.borrow()[at..at + len]).unwrap();
                at += len;
            }
            Ok(())
        }

        async fn deliver(&self, at: u64, segments: &[Segment]) -> Result<(), CacheError> {
            let mut at = usize::try_from(at).unwrap();
            for segment in segments {
                let len = usize::try_from(segment.len).unwrap();
                self.memory.read(segment.offset, &mut self.bytes.borrow_mut()[at..at + len]).unwrap();
                at += len;
            }
            Ok(())
        }
    }

    struct World {
        time: VirtualTime,
        executor: Executor,
        authority: Authority,
        backing: CacheBacking<Raid1<FakeDevice>, SimProvider>,
    }

    impl World {
        fn new() -> Self {
            let time = VirtualTime::new(1);
            let executor = Executor::new(Limits { tasks: 4, timers: 64 }, Rc::new(time.clone()));
            let handle = executor.handle();
            let info = DeviceInfo {
                id: DeviceId([1; 16]),
                namespace: NamespaceId(1),
                blocks: BlockCount(256),
                transfer_blocks_max: BlockCount(32),
                queue_depth: 64,
                volatile_cache: true,
                reservations: true,
            };
            let port = FakeMedium::new(info, time.clone(), 1).port([1; 16]);
            let memory = Memory::anonymous(256 * 4096);
            port.map(&memory).unwrap();
            let group = Raid1::new(handle.clone(), vec![port], &[]).unwrap();
            let config = CacheConfig {
                takeover_frames: 16,
                destage_above: 8,
                write_pending_limit: 16,
                stripe_tracks: 1,
                nvcache: false,
                commands: 4,
                hosts: 2,
                outcomes_per_host: 4,
            };
            let authority = Authority::default();
            let place = VolumePlace { id: VOLUME, base: Lba(0), blocks: SIZE.0, policy: Policy::Through };
            let cache = Cache::new(handle.clone(), config, authority.clone(), memory, group, &[place]);
            let backing = CacheBacking::new(&handle, cache, &[(ID, VOLUME)], [9; 16], 4);
            executor.seal();
            Self { time, executor, authority, backing }
        }

        /// Has a command done with these bytes; its outcome and the bytes afterwards.
        fn run(&self, operation: Operation, bytes: Vec<u8>) -> (Result<(), Option<dyad_nvme::Status>>, Vec<u8>) {
            let host = Buffer { memory: self.backing.pool().memory().clone(), bytes: RefCell::new(bytes) };
            let command = IoCommand { id: dyad_nvme::types::CommandId(1), namespace: ID, operation };
            let deadline = self.time.now() + Duration::from_secs(1);
            let handle = self.executor.handle();
            let mut done = pin!(execute(&handle, &self.backing, &command, SIZE, deadline, &host));
            loop {
                self.executor.run_until_idle(&mut Fifo);
                if let Poll::Ready(done) = done.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    return (done, host.bytes.borrow().clone());
                }
                let next = self.executor.next_deadline().into_iter().chain(self.time.next_event()).min();
                self.time.advance_to(next.expect("something will happen").max(self.time.now()));
                self.time.run_due();
                self.executor.fire_timers();
            }
        }
    }

    fn run_of(lba: u64, blocks: u64) -> Run {
        Run { lba: Lba(lba), blocks: BlockCount(blocks) }
    }

    #[test]
    fn commands_of_standard_hosts_go_through_the_cache_track_by_track() {
        let world = World::new();
        let data: Vec<u8> = (0..40 * 4096_u32).map(|at| (at / 4096 * 7 + at % 13).to_le_bytes()[0]).collect();
        let write = Operation::Write { run: run_of(10, 40), fua: true };
        assert_eq!(world.run(write, data.clone()).0, Err(Some(dyad_nvme::Status::ANA_INACCESSIBLE)), "not the home");
        world.authority.set_lease(Time::FAR_FUTURE);
        world.authority.set_regime(Regime::Solo(Epoch(1)));
        // More pieces than are remembered: numbers are taken as others are answered.
        for _ in 0..3 {
            assert_eq!(world.run(write, data.clone()).0, Ok(()));
        }
        let (done, found) = world.run(Operation::Read(run_of(10, 40)), vec![0; data.len()]);
        assert!(done.is_ok() && found == data);
        assert_eq!(world.run(Operation::Compare(run_of(10, 40)), data.clone()).0, Ok(()));
        let zeroes = Operation::WriteZeroes { run: run_of(15, 2), deallocate: false, fua: false };
        assert_eq!(world.run(zeroes, Vec::new()).0, Ok(()));
        assert_eq!(
            world.run(Operation::Compare(run_of(10, 40)), data.clone()).0,
            Err(Some(dyad_nvme::Status::COMPARE_FAILURE))
        );
        let (_, found) = world.run(Operation::Read(run_of(14, 4)), vec![1; 4 * 4096]);
        assert!(found == [&data[4 * 4096..5 * 4096], &[0; 8192], &data[7 * 4096..8 * 4096]].concat());
        assert_eq!(world.run(Operation::Flush, Vec::new()).0, Ok(()));
        assert_eq!(world.run(Operation::Verify(run_of(0, 64)), Vec::new()).0, Ok(()));
        let range = [&[0; 4], &8_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat();
        let discard = Operation::DatasetManagement { ranges: 1, deallocate: true };
        assert_eq!(world.run(discard, range).0, Ok(()));
    }
}
