//! The oracle for what cannot be listed: larger groups, several writers, failures, spares, crashes, power cuts and lies, drawn from a seed.

use super::*;
use dyad_reactor::Rng;
use std::time::Duration;

/// Enough for one member to be out, another to be rebuilt, and blocks that were never written.
const BLOCKS: BlockCount = BlockCount(420);
const WRITERS: u64 = 6;
/// Of the memory, in blocks.
const ROOM: u64 = 40;

struct Oracle {
    world: World,
    life: Life,
    next_spare: u8,
    /// For messages.
    seed: u64,
}

struct Started {
    lba: u64,
    bytes: Vec<u8>,
    result: Rc<Cell<Option<Result<(), GroupError>>>>,
}

impl Oracle {
    fn new(seed: u64) -> Self {
        let mut rng = SeededRng::new(seed);
        let kinds = [
            (Level::Raid1, 2),
            (Level::Raid1, 3),
            (Level::Raid10, 4),
            (Level::Raid10, 6),
            (Level::Raid5, 3),
            (Level::Raid5, 6),
            (Level::Raid6, 4),
            (Level::Raid6, 7),
        ];
        let (level, members) = kinds[usize::try_from(rng.below(kinds.len() as u64)).expect("few")];
        let mut world = World::sized(seed, level, members, BLOCKS);
        let life = Self::open(&mut world);
        Self { world, life, next_spare: 100, seed }
    }

    fn open(world: &mut World) -> Life {
        let mut life = Life::whole(world);
        life.open(1, &[]).expect("open");
        life.keep_record();
        life.run_background(Background { checkpoint: 3, ..Background::default() });
        // A spare that had not come to the record.
        for medium in &world.media {
            let (group, port) = (life.group(), medium.port([0; 16]));
            let used = |state| !matches!(state, MemberState::Failing | MemberState::Out);
            let member = |(id, state)| id == port.info().id && used(state);
            if !group.members().any(member) {
                let port = medium.port(HOST_A);
                life.finish(async move { group.add_spare(port).await }).expect("a good spare");
            }
        }
        life
    }

    fn below(&mut self, n: u64) -> u64 {
        self.world.rng.below(n)
    }

    /// Some writes at once, none of them of the same block.
    fn start_writes(&mut self) -> Vec<Started> {
        let blocks = self.world.model.len() as u64;
        let mut started: Vec<Started> = Vec::new();
        for writer in 0..1 + self.below(WRITERS) {
            let most = if self.below(3) == 0 { ROOM } else { 4 };
            let count = 1 + self.below(most);
            let lba = self.below(blocks - count + 1);
            let apart = |other: &Started| lba + count <= other.lba || other.lba + other.bytes.len() as u64 <= lba;
            if !started.iter().all(apart) {
                continue;
            }
            let bytes = self.world.bytes(count);
            for (at, byte) in (writer * ROOM..).zip(&bytes) {
                fill(&self.life.memory, at, 1, *byte);
            }
            let (group, segments) = (self.life.group(), [segment(&self.life.memory, writer * ROOM, count)]);
            let result = self.life.start(async move { group.write(Lba(lba), &segments).await });
            started.push(Started { lba, bytes, result });
        }
        started
    }

    /// What may be in the blocks now.
    fn note(&mut self, started: Vec<Started>) {
        for Started { lba, bytes, result } in started {
            let result = result.take();
            assert!(matches!(result, None | Some(Ok(()))), "seed {}: {result:?}", self.seed);
            for (at, byte) in bytes.into_iter().enumerate() {
                let may = &mut self.world.model[usize::try_from(lba).expect("small") + at];
                if result.is_some() {
                    may.clear();
                }
                may.insert(byte);
            }
        }
    }

    fn finish(&mut self, started: Vec<Started>) {
        let over = |started: &Vec<Started>| {
            started.iter().all(|s| {
                let result = s.result.take();
                s.result.set(result);
                result.is_some()
            })
        };
        loop {
            let more = self.life.step();
            if over(&started) {
                break;
            }
            assert!(more, "seed {}: a write never ends", self.seed);
        }
        self.note(started);
    }

    fn is_optimal(&self) -> bool {
        self.life.group().state() == GroupState::Optimal
    }

    /// A member goes, while writes are under way. Only while all members have all data: what the level tolerates beyond that the other tests do.
    fn lose_one(&mut self) {
        let member = usize::try_from(self.below(self.world.media.len() as u64)).expect("few");
        let started = self.start_writes();
        let steps = self.below(60);
        let _ = (0..steps).all(|_| self.life.step());
        let id = self.world.media[member].port([0; 16]).info().id;
        if self.below(2) == 0 {
            self.life.group().retire(id).expect("it can be spared");
        } else {
            drop(self.world.media[member].port(HOST_A));
        }
        self.finish(started);
        let spare = self.world.spare(self.next_spare);
        self.next_spare += 1;
        let (group, port) = (self.life.group(), spare.port(HOST_A));
        self.life.finish(async move { group.add_spare(port).await }).expect("a good spare");
        // It may be that nobody has missed the old one yet.
        let started = self.start_writes();
        self.finish(started);
        if self.is_optimal() && self.life.group().spares() == 1 {
            let _ = self.life.group().retire(id);
        }
        self.world.media[member] = spare;
    }

    fn crash(&mut self) {
        let started = self.start_writes();
        let steps = self.below(200);
        let _ = (0..steps).all(|_| self.life.step());
        self.note(started);
        self.life.ports.iter().for_each(FakeDevice::kill);
        if self.below(2) == 0 {
            self.world.media.iter().for_each(FakeMedium::power_loss);
        }
        self.life = Self::open(&mut self.world);
    }

    /// One block somewhere is not what was written.
    fn lie(&mut self) {
        let member = usize::try_from(self.below(self.world.media.len() as u64)).expect("few");
        let data = self.world.superblock.layout.data;
        let lba = Lba(data.start.0 + self.below(data.blocks.0));
        match self.below(3) {
            0 => self.world.media[member].spoil(lba, BadBlock::UntilWritten),
            n => {
                // By a way of its own: the member may be a spare that came in this life.
                let port = self.world.media[member].port([3; 16]);
                fill(&self.life.memory, 290, 1, if n == 1 { 252 } else { 0 });
                port.map(&self.life.memory).expect("map");
                let segments = [segment(&self.life.memory, 290, 1)];
                let write = crate::device::Io::Write { lba, segments: &segments, fua: true };
                let completion = port.submit(write).expect("submit");
                self.life.finish(completion).expect("a write");
            }
        }
    }

    fn quiet(&mut self) {
        self.life.until("everything is as it should be", |group| group.state() == GroupState::Optimal);
        let patrolled = self.life.group().counters().patrolled;
        self.life.until("patrol", |group| group.counters().patrolled > patrolled + 2 * group.layout().chunks());
        self.world.check(&self.life, 0..0);
        self.world.check_quiet(&self.life, &self.world.all());
        assert_eq!(self.life.group().counters().beyond_repair, 0, "seed {}", self.seed);
    }

    fn run(mut self, rounds: u32) {
        for _ in 0..rounds {
            match self.below(10) {
                0 if self.is_optimal() => self.lose_one(),
                1 | 2 => self.crash(),
                3 if self.is_optimal() => {
                    self.lie();
                    let started = self.start_writes();
                    self.finish(started);
                    self.quiet();
                }
                4 => self.world.check(&self.life, 0..0),
                5 => self.life.pass(Duration::from_millis(200)),
                _ => {
                    let started = self.start_writes();
                    self.finish(started);
                }
            }
        }
        self.quiet();
    }
}

/// `DYAD_LONG` gives hundreds of seeds.
#[test]
fn random_histories_equal_a_flat_memory() {
    let seeds = if std::env::var_os("DYAD_LONG").is_some() { 1000 } else { 8 };
    for seed in 0..seeds {
        println!("seed {seed}"); // The last one that is printed has failed.
        Oracle::new(seed).run(40);
    }
}
