//! A flat memory, and what reads may return of it: every block is one register, written by values that are never used twice.
//!
//! Moments are counted, not timed: an operation has one when it begins and one when it ends. A read may return a value if its write had begun, and if no
//! other write lies wholly between the two; and once a read has returned something else, a value does not come back. After a loss of power a value may be
//! there if no write that was promised to survive lies wholly after it.

/// A write of one value to one block.
#[derive(Debug, Copy, Clone)]
struct Put {
    value: u64,
    begun: u64,
    /// When it was acknowledged.
    ended: Option<u64>,
    /// It was promised to survive a loss of power.
    durable: bool,
}

#[derive(Debug, Clone)]
struct Block {
    puts: Vec<Put>,
    /// The last value that was read, and when that read began and ended.
    seen: Option<(u64, u64, u64)>,
    /// Nobody knows what is there: the first read says.
    unknown: bool,
}

/// The memory.
pub(crate) struct Flat {
    blocks: Vec<Block>,
    moment: u64,
    /// Values before this one belong to a time before the last loss of power or reset.
    floor: u64,
}

impl Flat {
    /// Zeros, durably.
    pub(crate) fn new(blocks: usize) -> Self {
        let zero = Put { value: 0, begun: 0, ended: Some(0), durable: true };
        Self { blocks: vec![Block { puts: vec![zero], seen: None, unknown: false }; blocks], moment: 1, floor: 0 }
    }

    /// The next moment.
    pub(crate) fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A write of `value` begins.
    pub(crate) fn begin(&mut self, block: usize, value: u64) {
        let begun = self.moment();
        self.blocks[block].puts.push(Put { value, begun, ended: None, durable: false });
    }

    /// It was acknowledged; `durable`: so that it survives a loss of power.
    pub(crate) fn acknowledge(&mut self, block: usize, value: u64, durable: bool) {
        let moment = self.moment();
        // After a reset nobody knows it any more.
        if let Some(put) = self.blocks[block].puts.iter_mut().find(|put| put.value == value) {
            put.ended = Some(moment);
            put.durable |= durable;
        }
    }

    /// Everything that was acknowledged before `moment` is promised to survive.
    pub(crate) fn make_durable(&mut self, blocks: std::ops::Range<usize>, moment: u64) {
        for put in self.blocks[blocks].iter_mut().flat_map(|block| &mut block.puts) {
            put.durable |= put.ended.is_some_and(|ended| ended < moment);
        }
    }

    /// A read that began at `begun` returned `value`.
    pub(crate) fn read(&mut self, at: usize, value: u64, begun: u64) -> Result<(), String> {
        let ended = self.moment();
        let floor = self.floor;
        let block = &mut self.blocks[at];
        if begun < floor {
            return Ok(());
        }
        if block.unknown {
            if block.puts.iter().all(|put| put.value != value) {
                block.puts.push(Put { value, begun: 0, ended: Some(0), durable: false });
            }
            block.unknown = false;
        }
        let Some(put) = block.puts.iter().find(|put| put.value == value).copied() else {
            return Err(format!("block {at} has {value:x}, which nobody wrote there"));
        };
        let over =
            |other: &&Put| put.ended.is_some_and(|end| end < other.begun) && other.ended.is_some_and(|end| end < begun);
        if let Some(over) = block.puts.iter().find(over) {
            return Err(format!("block {at} has {value:x}, which was overwritten by {:x}", over.value));
        }
        if let Some((seen, first, last)) = block.seen
            && last < begun
            && seen != value
            && put.ended.is_some_and(|ended| ended < first)
        {
            return Err(format!("block {at} has {value:x} again, after {seen:x} was read"));
        }
        if block.seen.is_none_or(|(_, first, _)| first <= begun) {
            block.seen = Some((value, begun, ended));
        }
        // What lies before an acknowledged write that lies before now is history.
        if block.puts.len() > 64 {
            let last = block.puts.iter().filter_map(|put| put.ended.map(|_| put.begun)).max().unwrap_or(0);
            block.puts.retain(|put| put.durable || put.ended.is_none_or(|ended| ended >= last));
        }
        Ok(())
    }

    /// Power was lost; then this was read. From now on it is what the block has, durably.
    pub(crate) fn read_after_loss(&mut self, at: usize, value: u64) -> Result<(), String> {
        let block = &mut self.blocks[at];
        let Some(put) = block.puts.iter().find(|put| put.value == value).copied() else {
            return Err(format!("block {at} has {value:x} after a loss of power, which nobody wrote there"));
        };
        let lost = |other: &&Put| other.durable && put.ended.is_some_and(|end| end < other.begun);
        if let Some(lost) = block.puts.iter().find(lost) {
            return Err(format!("block {at} has {value:x} after a loss of power, and {:x} was to survive", lost.value));
        }
        block.puts = vec![Put { begun: 0, ended: Some(0), durable: true, ..put }];
        (block.seen, block.unknown) = (None, false);
        Ok(())
    }

    /// Whatever is there, nobody promised it.
    pub(crate) fn forget(&mut self, blocks: std::ops::Range<usize>) {
        for block in &mut self.blocks[blocks] {
            *block = Block { puts: std::mem::take(&mut block.puts), seen: None, unknown: true };
            // What was written may still be there; what is under way ends nowhere.
            for put in &mut block.puts {
                (put.begun, put.ended, put.durable) = (0, None, false);
            }
        }
        self.floor = self.moment();
    }
}

#[test]
fn the_checker_finds_what_a_register_does_not_do() {
    let written = || {
        let mut flat = Flat::new(1);
        for (value, durable) in [(1, true), (2, false), (3, false)] {
            flat.begin(0, value);
            flat.acknowledge(0, value, durable);
        }
        flat
    };
    let mut flat = written();
    let begun = flat.moment();
    assert!(flat.read(0, 3, begun).is_ok() && flat.read(0, 2, begun).is_err() && flat.read(0, 9, begun).is_err());
    flat.begin(0, 4);
    assert!(flat.read(0, 4, begun).is_ok());
    let begun = flat.moment();
    assert!(flat.read(0, 3, begun).is_err(), "4 was read before");
    assert!(written().read_after_loss(0, 0).is_err(), "1 was to survive");
    for value in [1, 2, 3] {
        assert!(written().read_after_loss(0, value).is_ok());
    }
    let mut flat = written();
    let moment = flat.moment();
    flat.make_durable(0..1, moment);
    assert!(flat.read_after_loss(0, 2).is_err() && flat.read_after_loss(0, 3).is_ok());
}
