//! A director with a few groups, the registry's descriptions, and what every block of every volume may hold.

use std::collections::{BTreeMap, BTreeSet};

use dyad_matrix::Memory;
use dyad_nvme::types::{BlockCount, Lba};

use super::super::*;
use super::ground::{FakeGround, grounds};
use super::{run, uuid};
use crate::format::GroupId;
use crate::testing::segment;

/// What a block may hold: usually one thing.
type May = BTreeSet<u8>;

pub(super) struct Array {
    pub(super) grounds: Vec<FakeGround>,
    pub(super) pools: Vec<Pool<FakeGround>>,
    pub(super) registry: BTreeMap<VolumeUuid, Description>,
    pub(super) model: BTreeMap<VolumeUuid, Vec<May>>,
    /// Ways to volumes that are not what they were.
    pub(super) old: Vec<Volume<FakeGround>>,
}

/// How an operation ended.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Full,
    Died,
}

impl Array {
    pub(super) fn new(groups: u8, stripes: u64, share_blocks: u64, slice_stripes: u32, seed: u64) -> Self {
        let grounds = grounds(groups, stripes, share_blocks, 3, seed);
        let make = |ground: &FakeGround| run(Pool::format(ground.clone(), Some(slice_stripes))).expect("a pool");
        let pools = grounds.iter().map(make).collect();
        Self { grounds, pools, registry: BTreeMap::new(), model: BTreeMap::new(), old: Vec::new() }
    }

    pub(super) fn ids(&self) -> Vec<GroupId> {
        self.grounds.iter().map(|ground| ground.facts().group).collect()
    }

    pub(super) fn way(&self, volume: VolumeUuid) -> Volume<FakeGround> {
        let mut way = Volume::new(&self.registry[&volume], &self.pools).expect("a volume");
        way.map(self.grounds[0].memory());
        way
    }

    fn outcome(&self, result: Result<(), PoolError>) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(PoolError::Full) => Outcome::Full,
            Err(PoolError::Group(_)) if self.grounds[0].dead() => Outcome::Died,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Every group does what the registry says. A volume that does not fit is deleted again.
    fn ensure(&mut self, volume: VolumeUuid) -> Outcome {
        let description = self.registry[&volume].clone();
        for pool in self.pools.clone() {
            let Some(spec) = description.share(pool.facts().group) else { continue };
            match self.outcome(run(pool.ensure(spec)).map(drop)) {
                Outcome::Done => {}
                other => return other,
            }
        }
        Outcome::Done
    }

    pub(super) fn create(
        &mut self,
        volume: VolumeUuid,
        extent: Extent,
        extents: u64,
        allocation: Allocation,
        groups: Vec<GroupId>,
    ) -> Outcome {
        let name = Name::new("v").expect("a name");
        let description = Description::new(name, volume, extent, extents, allocation, groups).expect("a volume");
        let blocks = usize::try_from(description.blocks().0).expect("small");
        self.registry.insert(volume, description);
        self.model.insert(volume, vec![May::from([0]); blocks]);
        let outcome = self.ensure(volume);
        if outcome == Outcome::Full {
            assert_eq!(allocation, Allocation::Full);
            self.delete(volume);
        }
        outcome
    }

    pub(super) fn grow(&mut self, volume: VolumeUuid, longer: Description) -> Outcome {
        self.old.push(self.way(volume));
        let blocks = usize::try_from(longer.blocks().0).expect("small");
        let before = self.registry.insert(volume, longer).expect("a volume");
        let outcome = self.ensure(volume);
        self.model.get_mut(&volume).expect("a volume").resize(blocks, May::from([0]));
        if outcome == Outcome::Full {
            // The rule for a full one that cannot grow everywhere: it shrinks back.
            assert_eq!(before.allocation(), Allocation::Full);
            return match self.shrink(volume, before.extents()) {
                Outcome::Done => Outcome::Full,
                other => other,
            };
        }
        outcome
    }

    pub(super) fn shrink(&mut self, volume: VolumeUuid, extents: u64) -> Outcome {
        if let Ok(way) = Volume::new(&self.registry[&volume], &self.pools) {
            self.old.push(way);
        }
        let shorter = self.registry[&volume].shrunk(extents).expect("shorter");
        self.model.get_mut(&volume).expect("a volume").truncate(usize::try_from(shorter.blocks().0).expect("small"));
        self.registry.insert(volume, shorter);
        self.finish_shrink(volume)
    }

    fn finish_shrink(&mut self, volume: VolumeUuid) -> Outcome {
        let shorter = self.registry[&volume].clone();
        for pool in self.pools.clone() {
            let group = pool.facts().group;
            if !shorter.groups().contains(&group) {
                continue;
            }
            let result = match shorter.share(group) {
                Some(spec) => match run(pool.cut(spec)) {
                    // A group that the growth before never reached has nothing to cut.
                    Err(PoolError::UnknownVolume) => run(pool.ensure(spec)).map(drop),
                    other => other,
                },
                None => run(pool.delete(volume, shorter.generation())),
            };
            match self.outcome(result) {
                Outcome::Done => {}
                other => return other,
            }
        }
        self.registry.insert(volume, shorter.settled().expect("it was shrinking"));
        Outcome::Done
    }

    pub(super) fn delete(&mut self, volume: VolumeUuid) -> Outcome {
        if let Ok(way) = Volume::new(&self.registry[&volume], &self.pools) {
            self.old.push(way);
        }
        let gone = self.registry[&volume].deleted().expect("it was there");
        self.registry.insert(volume, gone);
        self.model.remove(&volume);
        self.finish_delete(volume)
    }

    fn finish_delete(&mut self, volume: VolumeUuid) -> Outcome {
        let gone = self.registry[&volume].clone();
        for pool in self.pools.clone() {
            match self.outcome(run(pool.delete(volume, gone.generation()))) {
                Outcome::Done => {}
                other => return other,
            }
        }
        self.registry.remove(&volume);
        Outcome::Done
    }

    pub(super) fn write(&mut self, volume: VolumeUuid, lba: u64, blocks: u64, byte: u8) -> Outcome {
        let memory = self.grounds[0].memory().clone();
        (0..blocks).for_each(|at| set(&memory, at, byte));
        let way = self.way(volume);
        let outcome = match run(way.write(Lba(lba), &[segment(&memory, 0, blocks)])) {
            Ok(()) => Outcome::Done,
            Err(VolumeError::Pool(error)) => self.outcome(Err(error)),
            Err(error) => panic!("{error:?}"),
        };
        for at in lba..lba + blocks {
            let may = &mut self.model.get_mut(&volume).expect("a volume")[usize::try_from(at).expect("small")];
            match outcome {
                Outcome::Done => *may = May::from([byte]),
                Outcome::Died => drop(may.insert(byte)),
                Outcome::Full => {}
            }
        }
        outcome
    }

    pub(super) fn deallocate(&mut self, volume: VolumeUuid, lba: u64, blocks: u64) -> Outcome {
        let way = self.way(volume);
        let freed = run(way.deallocate(Lba(lba), BlockCount(blocks)));
        let outcome = match freed {
            Ok(_) => Outcome::Done,
            Err(VolumeError::Pool(error)) => self.outcome(Err(error)),
            Err(error) => panic!("{error:?}"),
        };
        let allocation = self.registry[&volume].allocation();
        let whole = blocks == self.registry[&volume].blocks().0 && allocation == Allocation::Thin;
        for may in &mut self.model.get_mut(&volume).expect("a volume")
            [usize::try_from(lba).expect("small")..usize::try_from(lba + blocks).expect("small")]
        {
            match outcome {
                Outcome::Done if whole => *may = May::from([0]),
                _ if allocation == Allocation::Full => {}
                _ => drop(may.insert(0)),
            }
        }
        outcome
    }

    /// The director dies; another one takes over, with a copy of a share region that nobody can read.
    pub(super) fn reopen(&mut self, lost: Option<usize>) {
        self.grounds[0].live();
        assert!(!self.open_pools(lost), "nothing dies here");
        self.finish();
    }

    /// Another one takes over and may die of it; true if it did.
    pub(super) fn try_reopen(&mut self) -> bool {
        if self.open_pools(None) {
            return true;
        }
        let all: Vec<_> = self.registry.values().cloned().collect();
        let died = self.pools.iter().any(|pool| run(pool.reconcile(&all)).is_err_and(|error| error != PoolError::Full));
        assert!(!died || self.grounds[0].dead());
        died
    }

    fn open_pools(&mut self, lost: Option<usize>) -> bool {
        self.old.clear();
        self.pools.clear();
        for ground in &self.grounds {
            ground.0.lost.set(lost);
            let opened = run(Pool::open(ground.clone()));
            ground.0.lost.set(None);
            match opened {
                Ok(pool) => self.pools.push(pool),
                Err(OpenError::Log(LogError::Group(_))) if ground.dead() => return true,
                Err(error) => panic!("{error}"),
            }
        }
        false
    }

    /// What was begun is brought to its end.
    fn finish(&mut self) {
        let all: Vec<_> = self.registry.values().cloned().collect();
        for pool in &self.pools {
            let done = run(pool.reconcile(&all));
            match done {
                Ok(done) => {
                    assert_eq!(done, Reconciled::default());
                    let mut expected: Vec<_> = all.iter().filter_map(|d| d.share(pool.facts().group)).collect();
                    let mut found = pool.volumes();
                    expected.sort_by_key(|share| share.volume);
                    found.sort_by_key(|share| share.volume);
                    assert_eq!(found, expected, "what the registry says");
                }
                // A volume of full allocation whose making was cut short may not fit.
                Err(PoolError::Full) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        for description in all {
            let volume = description.uuid();
            match description.state() {
                State::Active => match self.ensure(volume) {
                    Outcome::Done => {}
                    Outcome::Full => drop(self.delete(volume)),
                    Outcome::Died => panic!("nothing dies here"),
                },
                State::Shrinking { .. } => assert_eq!(self.finish_shrink(volume), Outcome::Done),
                State::Deleting => assert_eq!(self.finish_delete(volume), Outcome::Done),
            }
        }
    }

    /// Everything reads as it should: what may have been written is settled by what is read. Who is out of date is told so.
    pub(super) fn check(&mut self) {
        let memory = self.grounds[0].memory().clone();
        for (volume, blocks) in &mut self.model {
            let mut way = Volume::new(&self.registry[volume], &self.pools).expect("a volume");
            way.map(&memory);
            assert_eq!(way.blocks().0, blocks.len() as u64);
            for (from, blocks) in (0..).step_by(16).zip(blocks.chunks_mut(16)) {
                (0..16).for_each(|at| set(&memory, at, 0xee));
                run(way.read(Lba(from), &[segment(&memory, 0, blocks.len() as u64)])).expect("a read");
                for (at, may) in (0..).zip(blocks) {
                    let found = get(&memory, at);
                    assert!(may.contains(&found), "block {} of {volume:?} is {found}, not one of {may:?}", from + at);
                    *may = May::from([found]);
                }
            }
        }
        for way in &self.old {
            let current =
                self.registry.values().any(|d| d.uuid() == way.volume() && d.generation() == way.generation());
            let read = run(way.read(Lba(0), &[segment(&memory, 0, 1)]));
            if !current {
                let refused =
                    matches!(read, Err(VolumeError::Pool(PoolError::OldGeneration(_) | PoolError::UnknownVolume)));
                assert!(refused, "{read:?}");
            }
        }
        self.check_space();
    }

    /// Every slice is counted once, and free ones that count as zeros are zeros.
    pub(super) fn check_space(&self) {
        for (pool, ground) in self.pools.iter().zip(&self.grounds) {
            let space = pool.space();
            assert!(space.in_use + space.reserved <= space.slices, "{space:?}");
            let data = ground.0.data.borrow();
            for slice in pool.zeroed() {
                let from = usize::try_from(u64::from(slice.0) * space.slice_blocks.0).expect("small");
                let of_slice = &data[from..from + usize::try_from(space.slice_blocks.0).expect("small")];
                assert!(of_slice.iter().all(|byte| *byte == 0), "{slice:?} counts as zeros");
            }
        }
    }
}

/// An extent of a track.
pub(super) fn track() -> Extent {
    Extent::of_tracks(1).expect("a track")
}

/// A thin volume over all groups, and a way to it.
pub(super) fn thin(array: &mut Array, name: u8, extents: u64) -> VolumeUuid {
    let ids = array.ids();
    assert_eq!(array.create(uuid(name), track(), extents, Allocation::Thin, ids), Outcome::Done);
    uuid(name)
}

/// Marks a block.
fn set(memory: &Memory, block: u64, byte: u8) {
    memory.write(BlockCount(block).bytes(), &[byte]).expect("in memory");
}

/// The mark of a block.
fn get(memory: &Memory, block: u64) -> u8 {
    let mut byte = [0];
    memory.read(BlockCount(block).bytes(), &mut byte).expect("in memory");
    byte[0]
}
