//! The model: what hosts may read, given what was written (PROTOCOLS 3, 6).
//!
//! **Order.** Every block is a register that any host writes and reads at any time; its history must be linearizable. Each
//! write has contents of its own, so a read says which write it saw. A write and its reads form a cluster, of which two moments
//! matter: when the first of them ended and when the last of them began. Two clusters contradict each other exactly if each
//! has something that ended before something of the other began (Gibbons and Korach, Testing Shared Memories, SIAM J.
//! Comput. 26, 1997). Contents name block and write in every 64-byte line, so torn, misplaced and mixed blocks are seen.
//!
//! **Loss.** A total loss of power, or a damaged mirror at the loss of a home, may take what was never made durable. The
//! history of the block then begins again with any earlier write, unless a later one was acknowledged with FUA, or
//! before a flush that was completed (PROTOCOLS 6.1).

use std::cell::RefCell;
use std::rc::Rc;

use dyad_matrix::frames::FRAME_BYTES;
use dyad_reactor::Time;

/// The contents of a block that was never written.
const NEVER: u64 = 0;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A write is seen again after another one, or not seen although it was acknowledged or seen before.
    Order {
        /// The block.
        block: u64,
        /// The write that was just read or acknowledged.
        found: u64,
        /// The write that it contradicts.
        other: u64,
    },
    /// After a loss of power the block has a write that a flushed one had replaced.
    Unflushed {
        /// The block.
        block: u64,
        /// The write that was read.
        found: u64,
        /// The flushed one.
        flushed: u64,
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
    /// Memory that a host owned, and had lent to nobody, was changed.
    HostMemory,
}

impl Violation {
    /// The block that it is about, if it is about one.
    #[must_use]
    pub fn block(&self) -> Option<u64> {
        match self {
            Self::Order { block, .. }
            | Self::Unflushed { block, .. }
            | Self::Garbage { block, .. }
            | Self::FromNowhere { block, .. } => Some(*block),
            Self::HostMemory => None,
        }
    }
}

/// A cluster's two moments.
#[derive(Debug, Copy, Clone)]
struct Cluster {
    first_end: Time,
    last_start: Time,
}

impl Cluster {
    fn contradicts(self, other: Self) -> bool {
        self.first_end < other.last_start && other.first_end < self.last_start
    }

    fn add(&mut self, from: Time, to: Time) {
        self.first_end = self.first_end.min(to);
        self.last_start = self.last_start.max(from);
    }
}

#[derive(Debug, Copy, Clone)]
struct Write {
    issued: Time,
    acknowledged: Option<Time>,
    /// When it could take effect last: its acknowledgement, or the loss that ended it.
    over: Time,
    cluster: Cluster,
    age: Age,
    /// It was acknowledged with FUA.
    forced: bool,
    /// It was on media when the history began again.
    durable: bool,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Age {
    /// Issued, or not answered, since the block's history began.
    Present,
    /// It was under way at a loss, and may be lost or be done again: what becomes of it is not judged.
    Loose,
    /// From before; the history may have begun with it.
    Past,
    /// From before, and it did not.
    Gone,
}

struct Block {
    /// By number; the first is the zeros that nobody wrote.
    writes: Vec<Write>,
    /// When its history began.
    began: Time,
    /// What it began with, once a read has told.
    initial: Option<(u64, Cluster)>,
    /// It began when memory was gone: what is there is on media.
    from_media: bool,
    story: Vec<String>,
}

struct Inner {
    blocks: Vec<Block>,
    /// The latest beginning of a flush that was completed.
    flushed: Time,
    tells: bool,
}

/// The model of a volume. Clones are the same model.
#[derive(Clone)]
pub struct Model(Rc<RefCell<Inner>>);

impl Model {
    /// A model of `blocks` blocks of zeros; if it `tells`, it keeps their stories.
    #[must_use]
    pub fn new(blocks: u64, tells: bool) -> Self {
        let start = Time::ZERO;
        let cluster = Cluster { first_end: start, last_start: start };
        let zeros = Write {
            issued: start,
            acknowledged: Some(start),
            over: start,
            cluster,
            age: Age::Past,
            forced: false,
            durable: false,
        };
        let block = |_| Block {
            writes: vec![zeros],
            began: start,
            initial: Some((NEVER, cluster)),
            from_media: false,
            story: Vec::new(),
        };
        Self(Rc::new(RefCell::new(Inner { blocks: (0..blocks).map(block).collect(), flushed: Time::ZERO, tells })))
    }

    /// The number of a new write.
    #[must_use]
    pub fn issue(&self, block: u64, at: Time) -> u64 {
        self.with(block, |entry, tells| {
            let cluster = Cluster { first_end: Time::FAR_FUTURE, last_start: at };
            let write = Write {
                issued: at,
                acknowledged: None,
                over: Time::FAR_FUTURE,
                cluster,
                age: Age::Present,
                forced: false,
                durable: false,
            };
            let number = entry.writes.len() as u64;
            entry.writes.push(write);
            entry.tell(tells, || format!("{at:?}  write {number} begins"));
            number
        })
    }

    /// The write was acknowledged.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn acknowledge(&self, block: u64, number: u64, at: Time) -> Result<(), Violation> {
        self.with(block, |entry, tells| {
            entry.tell(tells, || format!("{at:?}  write {number} is acknowledged"));
            let write = &mut entry.writes[place(number)];
            if write.age == Age::Loose {
                return Ok(());
            }
            write.acknowledged = Some(at);
            write.over = at;
            write.cluster.add(write.issued, at);
            entry.check(block, number)
        })
    }

    /// The write was acknowledged as one that survives loss of power.
    pub fn forced(&self, block: u64, number: u64) {
        self.with(block, |entry, tells| {
            entry.tell(tells, || format!("write {number} is durable"));
            entry.writes[place(number)].forced = true;
        });
    }

    /// A read that began at `from` returned `bytes` at `to`.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check(&self, block: u64, bytes: &[u8; FRAME_BYTES], from: Time, to: Time) -> Result<(), Violation> {
        let found = number_of(block, bytes)?;
        self.with(block, |entry, tells| {
            entry.tell(tells, || format!("{to:?}  a read that began at {from:?} returns write {found}"));
            if found >= entry.writes.len() as u64 {
                return Err(Violation::FromNowhere { block, found });
            }
            // From before the loss or after it: such a read says nothing.
            if from < entry.began {
                return Ok(());
            }
            match entry.writes[place(found)].age {
                Age::Loose => return Ok(()),
                Age::Present => entry.writes[place(found)].cluster.add(from, to),
                Age::Past | Age::Gone => entry.began_with(block, found, from)?,
            }
            entry.check(block, found)
        })
    }

    /// A flush that began at `from` was completed.
    pub fn flushed(&self, from: Time) {
        let inner = &mut *self.0.borrow_mut();
        inner.flushed = inner.flushed.max(from);
    }

    /// Everything that was not durable may be lost, in all blocks, and nobody who wrote lives to write it again.
    pub fn power_lost(&self, at: Time) {
        let inner = &mut *self.0.borrow_mut();
        for block in &mut inner.blocks {
            block.begin_again(at, inner.flushed, true);
            block.tell(inner.tells, || format!("{at:?}  power is lost"));
        }
    }

    /// Nobody remembers which commands were applied: those that are under way may be applied again when they are sent again.
    pub fn outcomes_lost(&self) {
        for block in &mut self.0.borrow_mut().blocks {
            block.loosen();
        }
    }

    /// What was not durable of this block may be lost.
    pub fn lost(&self, block: u64, at: Time) {
        let inner = &mut *self.0.borrow_mut();
        let Some(entry) = inner.blocks.get_mut(place(block)) else { return };
        entry.begin_again(at, inner.flushed, false);
        entry.tell(inner.tells, || format!("{at:?}  the mirrored copy is damaged, and the home is lost"));
    }

    /// What happened to a block.
    #[must_use]
    pub fn story(&self, block: u64) -> Vec<String> {
        self.with(block, |entry, _| entry.story.clone())
    }

    fn with<T>(&self, block: u64, change: impl FnOnce(&mut Block, bool) -> T) -> T {
        let inner = &mut *self.0.borrow_mut();
        change(&mut inner.blocks[place(block)], inner.tells)
    }
}

impl Block {
    fn tell(&mut self, tells: bool, line: impl FnOnce() -> String) {
        if tells {
            self.story.push(line());
        }
    }

    /// Whether the cluster of `number` contradicts another one.
    fn check(&self, block: u64, number: u64) -> Result<(), Violation> {
        let present = (0..).zip(&self.writes).filter(|(_, write)| write.age == Age::Present);
        let clusters = present.map(|(number, write)| (number, write.cluster)).chain(self.initial);
        let found = match self.initial {
            Some((initial, cluster)) if initial == number => cluster,
            _ => self.writes[place(number)].cluster,
        };
        match clusters.into_iter().find(|(other, cluster)| *other != number && cluster.contradicts(found)) {
            Some((other, _)) => Err(Violation::Order { block, found: number, other }),
            None => Ok(()),
        }
    }

    /// A read says that the block's history began with this write of the past.
    fn began_with(&mut self, block: u64, found: u64, from: Time) -> Result<(), Violation> {
        if let Some((initial, cluster)) = &mut self.initial {
            if *initial != found {
                return Err(Violation::Order { block, found, other: *initial });
            }
            cluster.add(from, Time::FAR_FUTURE);
            return Ok(());
        }
        let Write { over, age, .. } = self.writes[place(found)];
        let later = (0..).zip(&self.writes).filter(|(_, write)| write.age == Age::Past && over < write.issued);
        if let Some((flushed, _)) = later.into_iter().find(|(_, write)| write.durable) {
            return Err(Violation::Unflushed { block, found, flushed });
        }
        if age == Age::Gone {
            return Err(Violation::FromNowhere { block, found });
        }
        self.writes[place(found)].durable |= self.from_media;
        self.initial = Some((found, Cluster { first_end: self.began, last_start: from }));
        Ok(())
    }

    fn loosen(&mut self) {
        for write in &mut self.writes {
            if write.age == Age::Present && write.acknowledged.is_none() {
                write.age = Age::Loose;
            }
        }
    }

    fn begin_again(&mut self, at: Time, flushed: Time, power: bool) {
        if let Some((initial, _)) = self.initial.take() {
            // What an earlier loss could have left is known.
            for (_, write) in
                (0..).zip(&mut self.writes).filter(|(number, write)| write.age == Age::Past && *number != initial)
            {
                write.age = Age::Gone;
            }
        }
        for write in self.writes.iter_mut().filter(|write| write.age == Age::Present) {
            if write.acknowledged.is_some() || power {
                write.durable = write.forced || write.acknowledged.is_some_and(|at| at <= flushed);
                write.over = write.over.min(at);
                write.age = Age::Past;
            } else {
                write.age = Age::Loose;
            }
        }
        self.began = at;
        self.from_media = power;
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).expect("volumes in the simulator are small")
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
    let ours = word(0) == block || (write == NEVER && word(0) == 0);
    if ours { Ok(write) } else { Err(Violation::Garbage { block, line: 0 }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    fn model() -> Model {
        Model::new(2, false)
    }

    fn read(model: &Model, write: u64, from: u64, to: u64) -> Result<(), Violation> {
        model.check(1, &contents(1, write), at(from), at(to))
    }

    #[test]
    fn an_old_value_is_lost_and_a_concurrent_one_is_fine() {
        let model = model();
        assert_eq!(model.check(1, &contents(0, 0), at(1), at(2)), Ok(()), "zeros before any write");
        let first = model.issue(1, at(2));
        assert_eq!(read(&model, first, 3, 4), Ok(()), "an issued write may be seen");
        assert_eq!(model.check(1, &contents(0, 0), at(3), at(6)), Ok(()), "by reads that overlap");
        let unseen = model.check(1, &contents(0, 0), at(5), at(6));
        assert_eq!(unseen, Err(Violation::Order { block: 1, found: 0, other: 1 }), "but not be unseen");
    }

    #[test]
    fn writes_of_two_hosts_have_one_order() {
        let model = model();
        let (one, two) = (model.issue(1, at(1)), model.issue(1, at(2)));
        assert_eq!(model.acknowledge(1, one, at(10)), Ok(()));
        assert_eq!(model.acknowledge(1, two, at(11)), Ok(()));
        assert_eq!(read(&model, two, 12, 13), Ok(()), "whichever was later");
        assert_eq!(read(&model, one, 14, 15), Err(Violation::Order { block: 1, found: one, other: two }));
    }

    #[test]
    fn a_write_that_is_applied_twice_is_seen() {
        let model = model();
        let (one, two) = (model.issue(1, at(1)), model.issue(1, at(4)));
        assert_eq!(read(&model, one, 2, 3), Ok(()));
        assert_eq!(model.acknowledge(1, two, at(5)), Ok(()));
        assert_eq!(read(&model, two, 6, 7), Ok(()));
        assert!(read(&model, one, 8, 9).is_err(), "though it was never acknowledged");
    }

    #[test]
    fn foreign_and_torn_blocks_are_garbage() {
        let model = model();
        let (first, second) = (model.issue(1, at(1)), model.issue(1, at(1)));
        assert_eq!(read(&model, 3, 2, 3), Err(Violation::FromNowhere { block: 1, found: 3 }));
        assert!(model.check(1, &contents(0, second), at(2), at(3)).is_err(), "another block");
        let mut torn = contents(1, second);
        torn[2048..].copy_from_slice(&contents(1, first)[2048..]);
        assert_eq!(model.check(1, &torn, at(2), at(3)), Err(Violation::Garbage { block: 1, line: 32 }));
    }

    #[test]
    fn a_loss_of_power_takes_what_was_not_flushed_and_nothing_else() {
        for (flushed, forced) in [(false, false), (true, false), (false, true)] {
            let model = model();
            let write = |from, to| {
                let number = model.issue(1, at(from));
                assert_eq!(model.acknowledge(1, number, at(to)), Ok(()));
                number
            };
            let (first, second) = (write(1, 2), write(3, 4));
            if flushed {
                model.flushed(at(5));
            }
            if forced {
                model.forced(1, second);
            }
            model.power_lost(at(6));
            let old = read(&model, first, 7, 8);
            let lost = Violation::Unflushed { block: 1, found: first, flushed: second };
            assert_eq!(old, if flushed || forced { Err(lost) } else { Ok(()) });
            if !flushed && !forced {
                assert!(read(&model, second, 9, 10).is_err(), "it was gone");
            }
        }
    }

    #[test]
    fn what_a_loss_left_is_there_from_then_on() {
        let model = model();
        let first = model.issue(1, at(1));
        model.power_lost(at(2));
        assert_eq!(read(&model, first, 3, 4), Ok(()), "done before power was lost");
        let second = model.issue(1, at(5));
        assert_eq!(model.acknowledge(1, second, at(6)), Ok(()));
        assert!(read(&model, first, 7, 8).is_err());
        model.power_lost(at(9));
        let lost = Violation::Unflushed { block: 1, found: 0, flushed: first };
        assert_eq!(model.check(1, &contents(0, 0), at(10), at(11)), Err(lost), "it was read from media");
    }
}
