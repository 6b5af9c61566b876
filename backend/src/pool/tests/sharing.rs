//! Many tasks at once on one executor, in random order, and all of them die together: owners that write, deallocate, cut and grow their volumes, readers that
//! look on with maps that may be old, and the recycler, over a few slices. Nobody ever sees what is somebody else's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{Executor, Limits, Rng, SeededRng, Shuffled, VirtualTime};

use super::super::*;
use super::array::{Array, thin};
use super::ground::{FakeGround, Pace};

/// Blocks of a slice: four extents of a track.
const SLICE: u64 = 64;
/// Slices of the group, and of every volume that is not cut.
const SLICES: u64 = 8;
const OWNERS: u8 = 4;

/// A volume, and what its owner knows of it.
struct Owned {
    name: u8,
    description: RefCell<Description>,
    /// What a block of each slice may hold.
    has: RefCell<[BTreeSet<u8>; 8]>,
    pool: RefCell<Pool<FakeGround>>,
    memory: Memory,
    full: Cell<u64>,
    stale: Cell<u64>,
}

impl Owned {
    fn way(&self) -> Result<Volume<FakeGround>, PoolError> {
        let mut way = Volume::new(&self.description.borrow(), std::slice::from_ref(&*self.pool.borrow()))?;
        way.map(&self.memory);
        Ok(way)
    }

    fn mark(&self) -> u8 {
        self.name * 16
    }

    fn get(&self, place: Segment) -> u8 {
        let mut found = [0];
        self.memory.read(place.offset, &mut found).expect("in memory");
        found[0]
    }

    /// A few commands, each known to be over before the next one. Ends early if the director dies.
    async fn use_it(&self, mut rng: SeededRng) -> Result<(), PoolError> {
        let place = crate::testing::segment(&self.memory, u64::from(self.name), 1);
        for _ in 0..25 {
            let way = self.way().expect("only its owner changes it");
            let slices = way.blocks().0 / SLICE;
            let slice = rng.below(slices);
            let at = usize::try_from(slice).expect("small");
            let outcome = match rng.below(9) {
                0 | 1 => {
                    self.has.borrow_mut()[at].insert(0);
                    let outcome = way.deallocate(Lba(slice * SLICE), BlockCount(SLICE)).await;
                    if outcome.is_ok() {
                        self.has.borrow_mut()[at] = BTreeSet::from([0]);
                    }
                    outcome.map(drop)
                }
                2..=4 => {
                    self.memory.write(place.offset, &[self.mark()]).expect("in memory");
                    let before = self.has.borrow()[at].clone();
                    self.has.borrow_mut()[at].insert(self.mark());
                    match way.write(Lba(slice * SLICE + 33), &[place]).await {
                        Ok(()) => {
                            self.has.borrow_mut()[at] = BTreeSet::from([self.mark()]);
                            Ok(())
                        }
                        Err(VolumeError::Pool(PoolError::Full)) => {
                            self.has.borrow_mut()[at] = before;
                            self.full.set(self.full.get() + 1);
                            Ok(())
                        }
                        Err(error) => Err(error),
                    }
                }
                5 if slices > 1 => self.cut(rng.below(slices - 1) + 1).await.map_err(VolumeError::from),
                5 => Ok(()),
                6 => self.grow().await.map_err(VolumeError::from),
                _ => {
                    let read = way.read(Lba(slice * SLICE + 33), &[place]).await;
                    if read.is_ok() {
                        let found = self.get(place);
                        let has = &mut self.has.borrow_mut()[at];
                        assert!(
                            has.contains(&found),
                            "volume {} slice {slice} is {found}, not one of {has:?}",
                            self.name
                        );
                        *has = BTreeSet::from([found]);
                    }
                    read
                }
            };
            match outcome {
                Ok(()) => {}
                Err(VolumeError::Pool(error @ PoolError::Group(_))) => return Err(error),
                Err(error) => panic!("{error:?}"),
            }
        }
        Ok(())
    }

    async fn cut(&self, slices: u64) -> Result<(), PoolError> {
        let shorter = self.description.borrow().shrunk(slices * 4).expect("shorter");
        self.description.replace(shorter.clone());
        for has in &mut self.has.borrow_mut()[usize::try_from(slices).expect("small")..] {
            *has = BTreeSet::from([0]);
        }
        let pool = self.pool.borrow().clone();
        pool.cut(shorter.share(pool.facts().group).expect("a share")).await?;
        self.description.replace(shorter.settled().expect("it was shrinking"));
        Ok(())
    }

    async fn grow(&self) -> Result<(), PoolError> {
        let longer = self.description.borrow().grown(SLICES * 4);
        let Ok(longer) = longer else { return Ok(()) };
        self.description.replace(longer.clone());
        let pool = self.pool.borrow().clone();
        pool.ensure(longer.share(pool.facts().group).expect("a share")).await.map(drop)
    }

    /// Reads with a map that is renewed only when it is refused.
    async fn look_on(&self, mut rng: SeededRng) -> Result<(), PoolError> {
        let place = crate::testing::segment(&self.memory, u64::from(self.name + 16), 1);
        let mut way = None;
        for _ in 0..40 {
            let current = match way.take().map_or_else(|| self.way(), Ok) {
                Ok(current) => current,
                // The registry says so, and the home has not been told yet.
                Err(PoolError::UnknownGeneration(_)) => {
                    pause().await;
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            };
            match current.read(Lba(rng.below(SLICES) * SLICE + 33), &[place]).await {
                Ok(()) => assert!([0, self.mark()].contains(&self.get(place)), "volume {}", self.name),
                // Beyond the end, or beyond what the home has been told of yet.
                Err(VolumeError::OutOfRange | VolumeError::Pool(PoolError::OutOfRange(_))) => {}
                Err(VolumeError::Pool(PoolError::OldGeneration(_))) => {
                    self.stale.set(self.stale.get() + 1);
                    continue;
                }
                Err(VolumeError::Pool(error @ PoolError::Group(_))) => return Err(error),
                Err(error) => panic!("{error:?}"),
            }
            way = Some(current);
        }
        Ok(())
    }
}

/// Lets others go first.
async fn pause() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        match std::mem::replace(&mut waited, true) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}

#[derive(Debug, Default)]
struct Seen {
    full: u64,
    stale: u64,
    died: u64,
}

fn one_seed(seed: u64, seen: &mut Seen) {
    let mut array = Array::new(1, 2 * SLICES, 8, 2, seed);
    let mut rng = SeededRng::new(seed);
    let owned: Vec<_> = (1..=OWNERS)
        .map(|name| {
            let volume = thin(&mut array, name, SLICES * 4);
            let description = RefCell::new(array.registry[&volume].clone());
            let (pool, memory) = (RefCell::new(array.pools[0].clone()), array.grounds[0].memory().clone());
            let has = RefCell::new(std::array::from_fn(|_| BTreeSet::from([0])));
            Rc::new(Owned { name, description, has, pool, memory, full: Cell::new(0), stale: Cell::new(0) })
        })
        .collect();
    for _ in 0..4 {
        array.grounds[0].0.pace.set(Pace::Random);
        if rng.one_in(2) {
            array.grounds[0].die_after(1 + rng.below(60));
        }
        let executor = Executor::new(Limits { tasks: 64, timers: 8 }, Rc::new(VirtualTime::new(seed)));
        let mut order = Shuffled(rng.fork());
        let running = Rc::new(Cell::new(0));
        for one in &owned {
            running.set(running.get() + 2);
            let (left, user, lot) = (Rc::clone(&running), Rc::clone(one), rng.fork());
            executor.handle().spawn("owner", async move {
                let _ = user.use_it(lot).await;
                left.set(left.get() - 1);
            });
            let (left, user, lot) = (Rc::clone(&running), Rc::clone(one), rng.fork());
            executor.handle().spawn("reader", async move {
                let _ = user.look_on(lot).await;
                left.set(left.get() - 1);
            });
        }
        let pool = array.pools[0].clone();
        executor.handle().spawn("recycler", async move { drop(pool.serve().await.to_string()) });
        for steps in 0.. {
            if running.get() == 0 {
                break;
            }
            assert!(executor.run_one(&mut order), "seed {seed}: everybody waits");
            assert!(steps < 1_000_000, "seed {seed}: it never ends");
        }
        seen.died += u64::from(array.grounds[0].dead());
        drop(executor);
        // The next director; the owners know what they know.
        array.grounds[0].0.pace.set(Pace::AtOnce);
        for one in &owned {
            let description = one.description.borrow().clone();
            array.model.remove(&description.uuid());
            array.registry.insert(description.uuid(), description);
        }
        array.reopen(None);
        array.check_space();
        for one in &owned {
            one.pool.replace(array.pools[0].clone());
            let volume = one.description.borrow().uuid();
            one.description.replace(array.registry[&volume].clone());
        }
    }
    for one in &owned {
        seen.full += one.full.get();
        seen.stale += one.stale.get();
    }
}

#[test]
fn owners_of_slices_never_see_each_others_data() {
    let seeds = if std::env::var_os("DYAD_LONG").is_some() { 4000 } else { 40 };
    let mut seen = Seen::default();
    for seed in 0..seeds {
        one_seed(seed, &mut seen);
    }
    println!("{seen:?}");
    assert!(seen.full > 50 && seen.stale > 50 && seen.died > 20, "the test tests: {seen:?}");
}

#[test]
fn commands_are_small_enough_for_lanes() {
    let mut array = Array::new(2, 16, 8, 2, 1);
    let volume = thin(&mut array, 1, 32);
    let way = array.way(volume);
    let segments = [crate::testing::segment(array.grounds[0].memory(), 0, 1)];
    let (read, write) = (size_of_val(&way.read(Lba(0), &segments)), size_of_val(&way.write(Lba(0), &segments)));
    println!("read {read}, write {write} bytes, without those of the group");
    assert!(read <= 1536 && write <= 2560, "{read} {write}");
}
