//! Many tasks at once on one executor, in random order: writers that fill slices, one who deallocates, the recycler, readers. Nobody ever sees what is
//! somebody else's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_nvme::types::Lba;
use dyad_reactor::{Executor, Limits, Rng, SeededRng, Shuffled, VirtualTime};

use super::super::*;
use super::array::{Array, thin};
use super::uuid;

/// Blocks of a slice: four extents of a track.
const SLICE: u64 = 64;
const OWNERS: u8 = 4;

fn one_seed(seed: u64) -> u64 {
    let mut array = Array::new(1, 16, 8, 2, seed);
    let volumes: Vec<_> = (1..=OWNERS).map(|name| thin(&mut array, name, 32)).collect();
    array.grounds[0].0.slow.set(true);
    let time = VirtualTime::new(seed);
    let executor = Executor::new(Limits { tasks: 64, timers: 8 }, Rc::new(time));
    let order = RefCell::new(Shuffled(SeededRng::new(seed)));
    let (running, full) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let memory = array.grounds[0].memory().clone();
    for (volume, name) in volumes.iter().zip(1_u8..) {
        // Each volume is written, read and deallocated by a task of its own, which knows what it must find; all share eight slices.
        let way = array.way(*volume);
        let (memory, running, full) = (memory.clone(), Rc::clone(&running), Rc::clone(&full));
        let mut rng = SeededRng::new(seed * 7 + u64::from(name));
        running.set(running.get() + 1);
        executor.handle().spawn("owner", async move {
            let place = crate::testing::segment(&memory, u64::from(name), 1);
            let mut has = [0_u8; 8];
            for _ in 0..60 {
                let slice = rng.below(8);
                let at = usize::try_from(slice).expect("small");
                match rng.below(4) {
                    0 => {
                        let blocks = dyad_nvme::types::BlockCount(SLICE);
                        assert!(way.deallocate(Lba(slice * SLICE), blocks).await.is_ok());
                        has[at] = 0;
                    }
                    1 | 2 => {
                        memory.write(place.offset, &[name * 16]).expect("in memory");
                        match way.write(Lba(slice * SLICE + 33), &[place]).await {
                            Ok(()) => has[at] = name * 16,
                            Err(VolumeError::Pool(PoolError::Full)) => full.set(full.get() + 1),
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    _ => {
                        assert_eq!(way.read(Lba(slice * SLICE + 33), &[place]).await, Ok(()));
                        let mut found = [0];
                        memory.read(place.offset, &mut found).expect("in memory");
                        assert_eq!(found[0], has[at], "seed {seed}, volume {name}");
                    }
                }
            }
            running.set(running.get() - 1);
        });
    }
    let pool = array.pools[0].clone();
    executor.handle().spawn("recycler", async move { drop(pool.serve().await.to_string()) });
    let mut steps = 0;
    while running.get() > 0 {
        assert!(executor.run_one(&mut *order.borrow_mut()), "seed {seed}: everybody waits");
        steps += 1;
        assert!(steps < 1_000_000, "seed {seed}: it never ends");
    }
    array.check_space();
    assert!(array.registry.contains_key(&uuid(1)));
    full.get()
}

#[test]
fn owners_of_slices_never_see_each_others_data() {
    let full: u64 = (0..40).map(one_seed).sum();
    assert!(full > 50, "the pool was full {full} times");
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
