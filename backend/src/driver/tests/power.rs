//! Power cuts at any moment: what was flushed or written with FUA is there, everything else is old or new, block by block.

use super::*;
use dyad_reactor::Rng;

/// Blocks that are written to.
const BLOCKS: usize = 48;
/// Blocks of the longest write.
const LONGEST: u64 = 8;
const SEEDS: u64 = 1000;

/// What a block may hold after the cut. Stamps grow with every write.
#[derive(Debug, Clone)]
struct Block {
    possible: Vec<u32>,
    /// The newest write that was completed.
    latest: u32,
    in_flight: bool,
}

enum Command {
    Write {
        stamp: u32,
        first: usize,
        blocks: usize,
        fua: bool,
    },
    /// What was complete when it was submitted.
    Flush {
        latest: Vec<u32>,
    },
}

/// What happened, over all seeds.
#[derive(Debug, Default)]
struct Tally {
    kept: u32,
    lost: u32,
    torn: u32,
    in_flight: u32,
}

struct Run {
    rig: Rig,
    driver: EmulatedDriver,
    memory: Memory,
    rng: SeededRng,
    blocks: Vec<Block>,
    commands: Vec<(Pin<Box<Completion>>, Command)>,
    stamp: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let rig = Rig::seeded(BlockFormat::Bare, seed);
        let driver = rig.attach(0, A);
        let memory = mapped(&driver, 512);
        let mut rng = SeededRng::new(seed);
        rig.subsystem.borrow_mut().set_latency(Latency {
            read: Duration::from_micros(50),
            write: Duration::from_micros(20),
            flush: Duration::from_micros(100),
            jitter: Duration::from_micros(rng.below(200)),
            bytes_per_s: None,
        });
        let block = Block { possible: vec![0], latest: 0, in_flight: false };
        Self { rig, driver, memory, rng, blocks: vec![block; BLOCKS], commands: Vec::new(), stamp: 0 }
    }

    fn submit(&mut self) {
        if self.rng.one_in(8) {
            let latest = self.blocks.iter().map(|b| b.latest).collect();
            let completion = self.driver.submit(Io::Flush).expect("room");
            self.commands.push((Box::pin(completion), Command::Flush { latest }));
            return;
        }
        let first = usize::try_from(self.rng.below(BLOCKS as u64)).unwrap();
        let blocks = usize::try_from(1 + self.rng.below(LONGEST)).unwrap().min(BLOCKS - first);
        if self.blocks[first..first + blocks].iter().any(|b| b.in_flight) {
            return;
        }
        self.stamp += 1;
        let slot = u64::from(self.stamp) % 64 * LONGEST;
        for block in 0..blocks as u64 {
            self.memory.write((slot + block) * 4096, &stamped(self.stamp)).unwrap();
        }
        let segments = [segment(&self.memory, slot, u32::try_from(blocks).unwrap())];
        let fua = self.rng.one_in(5);
        let io = Io::Write { lba: Lba(first as u64), segments: &segments, fua };
        let completion = self.driver.submit(io).expect("room");
        for block in &mut self.blocks[first..first + blocks] {
            block.possible.push(self.stamp);
            block.in_flight = true;
        }
        self.commands.push((Box::pin(completion), Command::Write { stamp: self.stamp, first, blocks, fua }));
    }

    fn take_completions(&mut self) {
        let mut index = 0;
        while index < self.commands.len() {
            let (future, _) = &mut self.commands[index];
            if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                let (_, command) = self.commands.swap_remove(index);
                outcome.expect("nothing fails before the cut");
                self.completed(command);
            } else {
                index += 1;
            }
        }
    }

    fn completed(&mut self, command: Command) {
        match command {
            Command::Write { stamp, first, blocks, fua } => {
                for block in &mut self.blocks[first..first + blocks] {
                    (block.latest, block.in_flight) = (stamp, false);
                    if fua {
                        block.possible = vec![stamp];
                    }
                }
            }
            Command::Flush { latest } => {
                for (block, durable) in self.blocks.iter_mut().zip(latest) {
                    block.possible.retain(|stamp| *stamp >= durable);
                }
            }
        }
    }

    /// Works for a while, then the power fails.
    fn until_the_cut(&mut self) {
        for _ in 0..10 + self.rng.below(60) {
            if self.commands.len() < 16 {
                self.submit();
            }
            for _ in 0..self.rng.below(4) {
                if self.rig.turn() == 0 && !self.rig.wait() {
                    break;
                }
                self.take_completions();
            }
        }
        self.rig.turn();
        self.take_completions();
        self.rig.subsystem.borrow_mut().power_loss();
    }

    fn check(self, tally: &mut Tally) {
        let Self { rig, driver, memory, blocks, commands, .. } = self;
        tally.in_flight += u32::try_from(commands.len()).unwrap();
        let found: Vec<u32> = (0..BLOCKS as u64)
            .map(|lba| {
                let contents = rig.subsystem.borrow_mut().peek(NamespaceId(1), Lba(lba)).unwrap();
                let stamp = u32::from_le_bytes(contents[..4].try_into().unwrap());
                assert_eq!(*contents, stamped(stamp), "block {lba} is torn");
                stamp
            })
            .collect();
        for (lba, (stamp, block)) in found.iter().zip(&blocks).enumerate() {
            assert!(block.possible.contains(stamp), "block {lba} holds {stamp}, not one of {block:?}");
            tally.kept += u32::from(*stamp == block.latest);
            tally.lost += u32::from(*stamp < block.latest);
        }
        for (_, command) in commands {
            if let Command::Write { stamp, first, blocks, .. } = command {
                let there = found[first..first + blocks].iter().filter(|f| **f == stamp).count();
                tally.torn += u32::from(there > 0 && there < blocks);
            }
        }
        // The device works again.
        drop(driver);
        rig.detach_all();
        rig.subsystem.borrow_mut().power_on();
        let again = rig.attach(0, A);
        again.map(&memory).unwrap();
        write(&rig, &again, &memory, 1, 7, true).unwrap();
        assert_eq!(read(&rig, &again, &memory, 1), Ok(7));
    }
}

fn stamped(stamp: u32) -> [u8; 4096] {
    let mut block = [0; 4096];
    block.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
    block
}

#[test]
fn a_thousand_power_cuts_lose_only_what_may_be_lost() {
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        let mut run = Run::new(seed);
        run.until_the_cut();
        run.check(&mut tally);
    }
    println!("{tally:?}");
    assert!(tally.kept > 0 && tally.in_flight > 0);
    assert!(tally.lost > 500, "a device that never loses anything proves nothing: {tally:?}");
    assert!(tally.torn > 50, "nor one that never tears: {tally:?}");
}
