//! Who goes first when several tasks are ready: first come in production, the seed in the simulator.

use crate::Rng;

/// Chooses the next task to poll.
///
/// Implementations promise that every ready task is chosen after finitely many picks.
pub trait Order {
    /// Chooses among `ready` (> 0) tasks, which stand in the order in which they were found ready: a position below `ready`.
    fn pick(&mut self, ready: usize) -> usize;
}

/// First come, first served; tasks that became ready together go by index.
#[derive(Debug, Default, Copy, Clone)]
pub struct Fifo;

impl Order for Fifo {
    fn pick(&mut self, _ready: usize) -> usize {
        0
    }
}

/// Any ready task, as chance has it.
#[derive(Debug, Clone)]
pub struct Shuffled<R>(pub R);

impl<R: Rng> Order for Shuffled<R> {
    fn pick(&mut self, ready: usize) -> usize {
        let bound = u64::try_from(ready).expect("a count of tasks fits");
        usize::try_from(self.0.below(bound)).expect("below a count of tasks")
    }
}
