//! A group in memory: its share region in copies, its data one byte for each block: the first one of the caller's. It counts writes and can die at any of
//! them, which is then done in part, copy by copy and block by block, and torn.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::{Rng, SeededRng};

use super::super::ground::{Facts, Ground};
use super::group;
use crate::format::Block;
use crate::raid::GroupError;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// How long commands take.
#[derive(Debug, Copy, Clone)]
pub(super) enum Pace {
    AtOnce,
    Polls(u64),
    Random,
}

pub(super) struct State {
    facts: Facts,
    memory: Memory,
    pub(super) shares: RefCell<Vec<Vec<Block>>>,
    pub(super) data: RefCell<Vec<u8>>,
    rng: RefCell<SeededRng>,
    /// Shared by the groups of a director: writes that are still done.
    budget: Rc<Cell<u64>>,
    /// A copy that cannot be read.
    pub(super) lost: Cell<Option<usize>>,
    /// Blocks that cannot be zeroed.
    pub(super) bad: Cell<Option<u64>>,
    pub(super) pace: Cell<Pace>,
}

#[derive(Clone)]
pub(super) struct FakeGround(pub(super) Rc<State>);

impl std::fmt::Debug for FakeGround {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeGround").field("facts", &self.0.facts).finish_non_exhaustive()
    }
}

/// Groups named 1, 2, ... of so many stripes of two chunks.
pub(super) fn grounds(count: u8, stripes: u64, share_blocks: u64, copies: usize, seed: u64) -> Vec<FakeGround> {
    let budget = Rc::new(Cell::new(u64::MAX));
    let memory = Memory::anonymous(64 * BLOCK_BYTES);
    let ground = |name: u8| {
        let facts = Facts { group: group(name), stripe_blocks: 32, stripes, share_blocks, copies };
        let blocks = usize::try_from(stripes * 32).expect("small");
        let pages = vec![[0; BLOCK_BYTES]; usize::try_from(share_blocks).expect("small")];
        FakeGround(Rc::new(State {
            facts,
            memory: memory.clone(),
            shares: RefCell::new(vec![pages; copies]),
            data: RefCell::new(vec![0; blocks]),
            rng: RefCell::new(SeededRng::new(seed * 31 + u64::from(name))),
            budget: Rc::clone(&budget),
            lost: Cell::new(None),
            bad: Cell::new(None),
            pace: Cell::new(Pace::AtOnce),
        }))
    };
    (1..=count).map(ground).collect()
}

impl FakeGround {
    pub(super) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// After so many more writes of any group of this director everything fails, and the next one is done in part.
    pub(super) fn die_after(&self, writes: u64) {
        self.0.budget.set(writes);
    }

    /// Whether it has died.
    pub(super) fn dead(&self) -> bool {
        self.0.budget.get() == 0
    }

    pub(super) fn live(&self) {
        self.0.budget.set(u64::MAX);
    }

    /// Whether a write is done, and if not, whether some of it is.
    fn spend(&self) -> Result<(), bool> {
        let left = self.0.budget.get();
        match left {
            0 => Err(false),
            1 => {
                self.0.budget.set(0);
                Err(true)
            }
            _ => {
                self.0.budget.set(left - 1);
                Ok(())
            }
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.0.rng.borrow_mut().below(below)
    }

    async fn wait(&self) {
        let mut polls = match self.0.pace.get() {
            Pace::AtOnce => 0,
            Pace::Polls(polls) => polls,
            Pace::Random if self.draw(8) == 0 => self.draw(60),
            Pace::Random => self.draw(4),
        };
        poll_fn(|cx| {
            if polls == 0 {
                return Poll::Ready(());
            }
            polls -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn set(&self, lba: Lba, bytes: impl Iterator<Item = u8>) -> Result<(), GroupError> {
        let spent = self.spend();
        let mut data = self.0.data.borrow_mut();
        for (at, byte) in (lba.0..).zip(bytes) {
            let done = match spent {
                Ok(()) => true,
                Err(partly) => partly && self.draw(2) == 0,
            };
            if done {
                data[usize::try_from(at).expect("small")] = byte;
            }
        }
        spent.map_err(|_| GroupError::Lost)
    }
}

impl Ground for FakeGround {
    fn facts(&self) -> Facts {
        self.0.facts
    }

    async fn read_share(&self, copy: usize, place: u64, blocks: &mut [Block]) -> Result<bool, GroupError> {
        self.wait().await;
        if self.0.lost.get() == Some(copy) {
            return Ok(false);
        }
        let from = usize::try_from(place).expect("small");
        blocks.copy_from_slice(&self.0.shares.borrow()[copy][from..from + blocks.len()]);
        Ok(true)
    }

    async fn write_share(&self, place: u64, blocks: &[Block]) -> Result<(), GroupError> {
        self.wait().await;
        let spent = self.spend();
        for copy in self.0.shares.borrow_mut().iter_mut() {
            for (to, block) in copy[usize::try_from(place).expect("small")..].iter_mut().zip(blocks) {
                match spent {
                    Ok(()) => *to = *block,
                    Err(false) => {}
                    Err(true) => match self.draw(4) {
                        0 => *to = *block,
                        1 => {
                            let torn = usize::try_from(self.draw(BLOCK)).expect("small");
                            to[..torn].copy_from_slice(&block[..torn]);
                        }
                        _ => {}
                    },
                }
            }
        }
        spent.map_err(|_| GroupError::Lost)
    }

    async fn zero(&self, lba: Lba, blocks: BlockCount) -> Result<(), GroupError> {
        self.wait().await;
        if self.0.bad.get().is_some_and(|bad| (lba.0..lba.0 + blocks.0).contains(&bad)) {
            return Err(GroupError::Media);
        }
        self.set(lba, (0..blocks.0).map(|_| 0))
    }

    async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.wait().await;
        let mut at = usize::try_from(lba.0).expect("small");
        for segment in segments {
            for block in 0..u64::from(segment.len) / BLOCK {
                let byte = self.0.data.borrow()[at];
                self.0.memory.write(segment.offset + block * BLOCK, &[byte]).expect("in memory");
                at += 1;
            }
        }
        self.wait().await;
        if self.dead() { Err(GroupError::Lost) } else { Ok(()) }
    }

    async fn write(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.wait().await;
        let mut bytes = Vec::new();
        for segment in segments {
            for block in 0..u64::from(segment.len) / BLOCK {
                let mut byte = [0];
                self.0.memory.read(segment.offset + block * BLOCK, &mut byte).expect("in memory");
                bytes.push(byte[0]);
            }
        }
        let written = self.set(lba, bytes.into_iter());
        self.wait().await;
        written
    }

    async fn flush(&self) -> Result<(), GroupError> {
        if self.dead() { Err(GroupError::Lost) } else { Ok(()) }
    }
}
