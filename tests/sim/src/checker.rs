//! The model: what a host may read, given what was written (PROTOCOLS 3).
//!
//! Every block has one writer at a time, so its writes are ordered by their numbers. A read may return a write that was
//! issued before the read ended, and nothing older than: the last write acknowledged before the read began; the newest
//! write that a read which ended before this one began has returned. Block contents say which block and write they are,
//! in every 64-byte line, so torn, misplaced and mixed blocks are seen.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_matrix::frames::FRAME_BYTES;
use dyad_reactor::Time;

/// The contents of a block that was never written.
const NEVER: u64 = 0;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A write that was acknowledged, or that had been read, is not there.
    Lost {
        /// The block.
        block: u64,
        /// The oldest write that may be there.
        expected: u64,
        /// The write that is.
        found: u64,
    },
    /// The bytes are those of no write, or of several, or of another block.
    Garbage {
        /// The block.
        block: u64,
        /// The first line that does not belong to the block's first line.
        line: usize,
    },
    /// A write that was never issued.
    FromNowhere {
        /// The block.
        block: u64,
        /// Its number.
        found: u64,
    },
}

#[derive(Debug, Default, Clone)]
struct Block {
    issued: u64,
    /// Writes that were acknowledged, newest last, with when.
    acknowledged: Vec<(u64, Time)>,
    /// Writes that were returned by reads, newest last, with when the read ended.
    seen: Vec<(u64, Time)>,
}

/// The model of a volume. Clones are the same model.
#[derive(Clone)]
pub struct Model(Rc<RefCell<Vec<Block>>>);

impl Model {
    /// A model of `blocks` blocks of zeros.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self(Rc::new(RefCell::new(vec![Block::default(); blocks])))
    }

    /// The number of a new write.
    #[must_use]
    pub fn issue(&self, block: u64) -> u64 {
        let entry = &mut self.0.borrow_mut()[place(block)];
        entry.issued += 1;
        entry.issued
    }

    /// The write was acknowledged.
    pub fn acknowledge(&self, block: u64, write: u64, at: Time) {
        push_newest(&mut self.0.borrow_mut()[place(block)].acknowledged, write, at);
    }

    /// A read that began at `from` returned `bytes` at `to`.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check(&self, block: u64, bytes: &[u8; FRAME_BYTES], from: Time, to: Time) -> Result<(), Violation> {
        let entry = &mut self.0.borrow_mut()[place(block)];
        let found = number_of(block, bytes)?;
        if found > entry.issued {
            return Err(Violation::FromNowhere { block, found });
        }
        let newest_before =
            |list: &[(u64, Time)]| list.iter().rev().find(|(_, at)| *at < from).map_or(NEVER, |(write, _)| *write);
        let expected = newest_before(&entry.acknowledged).max(newest_before(&entry.seen));
        if found < expected {
            return Err(Violation::Lost { block, expected, found });
        }
        push_newest(&mut entry.seen, found, to);
        Ok(())
    }
}

fn push_newest(list: &mut Vec<(u64, Time)>, write: u64, at: Time) {
    if list.last().is_none_or(|(newest, _)| *newest < write) {
        list.push((write, at));
        // Reads last less long than it takes to write a block this often.
        if list.len() > 64 {
            list.remove(0);
        }
    }
}

fn place(block: u64) -> usize {
    usize::try_from(block).expect("volumes in the simulator are small")
}

/// The contents of `write` of `block`.
#[must_use]
pub fn contents(block: u64, write: u64) -> Box<[u8; FRAME_BYTES]> {
    let mut bytes = Box::new([0; FRAME_BYTES]);
    for line in bytes.as_chunks_mut::<64>().0 {
        line[..8].copy_from_slice(&block.to_le_bytes());
        line[8..16].copy_from_slice(&write.to_le_bytes());
    }
    bytes
}

fn number_of(block: u64, bytes: &[u8; FRAME_BYTES]) -> Result<u64, Violation> {
    let lines = bytes.as_chunks::<64>().0;
    let (first, _) = lines[0].split_first_chunk::<16>().expect("a line has 64 bytes");
    if let Some(line) = lines.iter().position(|line| line[..16] != *first || line[16..].iter().any(|byte| *byte != 0)) {
        return Err(Violation::Garbage { block, line });
    }
    let word = |at: usize| u64::from_le_bytes(first[at..at + 8].try_into().expect("8 bytes"));
    let write = word(8);
    if word(0) == block || (write == NEVER && word(0) == 0) {
        Ok(write)
    } else {
        Err(Violation::Garbage { block, line: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    #[test]
    fn an_old_value_is_lost_and_a_concurrent_one_is_fine() {
        let model = Model::new(2);
        assert_eq!(model.check(1, &contents(0, 0), at(1), at(2)), Ok(()), "zeros before any write");
        let first = model.issue(1);
        assert_eq!(model.check(1, &contents(1, first), at(3), at(4)), Ok(()), "an issued write may be seen");
        assert_eq!(model.check(1, &contents(0, 0), at(3), at(6)), Ok(()), "by reads that overlap");
        let lost = Err(Violation::Lost { block: 1, expected: 1, found: 0 });
        assert_eq!(model.check(1, &contents(0, 0), at(5), at(6)), lost, "but not be unseen");
        model.acknowledge(1, first, at(7));
        let second = model.issue(1);
        assert_eq!(model.check(1, &contents(1, first), at(8), at(9)), Ok(()));
        model.acknowledge(1, second, at(10));
        assert!(model.check(1, &contents(1, first), at(11), at(12)).is_err());
        assert!(model.check(1, &contents(1, 3), at(11), at(12)).is_err(), "from nowhere");
        assert!(model.check(1, &contents(0, second), at(11), at(12)).is_err(), "another block");
        let mut torn = contents(1, second);
        torn[2048..].copy_from_slice(&contents(1, first)[2048..]);
        assert_eq!(model.check(1, &torn, at(11), at(12)), Err(Violation::Garbage { block: 1, line: 32 }));
    }
}
