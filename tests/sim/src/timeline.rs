//! What happened in a run, line by line, for those who want to read it.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_reactor::{Clock, VirtualTime};

/// How much is told.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing.
    None,
    /// Faults, repairs, changes of state, and the life of the block that is wrong.
    Story,
    /// Every message of the matrix, too.
    Everything,
}

/// The lines so far. Clones are the same.
#[derive(Clone)]
pub struct Timeline {
    time: VirtualTime,
    detail: Detail,
    lines: Rc<RefCell<Vec<String>>>,
}

impl Timeline {
    /// No lines yet.
    #[must_use]
    pub fn new(time: &VirtualTime, detail: Detail) -> Self {
        Self { time: time.clone(), detail, lines: Rc::default() }
    }

    /// How much is told.
    #[must_use]
    pub fn detail(&self) -> Detail {
        self.detail
    }

    /// Something happened now.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.detail > Detail::None {
            let line = format!("{:?}  {}", self.time.now(), line());
            self.lines.borrow_mut().push(line);
        }
    }

    /// Takes the lines.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        self.lines.take()
    }
}
