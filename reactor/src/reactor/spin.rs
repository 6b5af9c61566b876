//! How long a reactor without work looks for some before it sleeps: a pure state machine.
//!
//! The limit adapts to what spinning brought (DESIGN 2):
//!
//! | state    | turn                                  | then     | limit   |
//! |----------|---------------------------------------|----------|---------|
//! | busy     | worked                                | busy     | stays   |
//! | busy     | found nothing, limit is zero          | sleep    | stays   |
//! | busy     | found nothing                         | spinning | stays   |
//! | spinning | worked                                | busy     | doubled |
//! | spinning | found nothing, the thread was preempted | sleep  | halved  |
//! | spinning | found nothing for as long as the limit | sleep   | halved  |
//! | spinning | found nothing                         | spinning | stays   |
//! | asleep   | woken within the greatest limit       | busy     | doubled |
//! | asleep   | woken later                           | busy     | stays   |
//!
//! The last but one row brings a limit of zero back up: a spin would have found that work.

use crate::Time;
use std::time::Duration;

/// The greatest spin limit of a reactor that has a core to itself.
pub const MAX_SPIN: Duration = Duration::from_micros(50);

/// The smallest limit above zero.
const MIN_SPIN: Duration = Duration::from_micros(1);

/// Turns that find nothing take far less than this; if one took longer, somebody else had the core.
const PREEMPTED: Duration = Duration::from_micros(20);

/// What to do next.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Advice {
    /// Take another turn.
    Turn,
    /// Sleep until something happens.
    Sleep,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum State {
    Busy,
    Spinning { since: Time, last_turn: Time },
    Asleep { since: Time },
}

/// The machine.
#[derive(Debug)]
pub(super) struct Spin {
    max: Duration,
    limit: Duration,
    state: State,
}

impl Spin {
    /// A machine that spins for `max` at most. Starts there: the first work decides.
    pub(super) fn new(max: Duration) -> Self {
        Self { max, limit: max, state: State::Busy }
    }

    /// A turn ended at `now`; did it work?
    pub(super) fn turn(&mut self, now: Time, worked: bool) -> Advice {
        match self.state {
            State::Busy if worked => {}
            State::Busy if self.limit.is_zero() => return self.sleep(now),
            State::Busy => self.state = State::Spinning { since: now, last_turn: now },
            State::Spinning { .. } if worked => {
                self.double();
                self.state = State::Busy;
            }
            State::Spinning { since, last_turn } => {
                if now.since(last_turn) >= PREEMPTED || now.since(since) >= self.limit {
                    self.halve();
                    return self.sleep(now);
                }
                self.state = State::Spinning { since, last_turn: now };
            }
            State::Asleep { .. } => unreachable!("no turn is taken asleep"),
        }
        Advice::Turn
    }

    /// The sleep that was advised ended at `now`.
    pub(super) fn woken(&mut self, now: Time) {
        let State::Asleep { since } = self.state else { unreachable!("only a sleeper wakes") };
        if now.since(since) <= self.max {
            self.double();
        }
        self.state = State::Busy;
    }

    fn sleep(&mut self, now: Time) -> Advice {
        self.state = State::Asleep { since: now };
        Advice::Sleep
    }

    fn double(&mut self) {
        self.limit = (self.limit * 2).max(MIN_SPIN).min(self.max);
    }

    fn halve(&mut self) {
        self.limit /= 2;
        if self.limit < MIN_SPIN {
            self.limit = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time goes on by a microsecond each turn.
    struct Run {
        spin: Spin,
        now: Time,
    }

    impl Run {
        fn new(max_us: u64) -> Self {
            Self { spin: Spin::new(Duration::from_micros(max_us)), now: Time::ZERO }
        }

        fn turn(&mut self, worked: bool) -> Advice {
            self.now = self.now + Duration::from_micros(1);
            self.spin.turn(self.now, worked)
        }

        /// Finds nothing until advised to sleep; the length of the spin in microseconds.
        fn spin_until_sleep(&mut self) -> u128 {
            let start = self.now;
            while self.turn(false) == Advice::Turn {}
            // The first turn that finds nothing starts the spin.
            self.now.since(start).as_micros() - 1
        }

        fn woken_after(&mut self, slept_us: u64) {
            self.now = self.now + Duration::from_micros(slept_us);
            self.spin.woken(self.now);
        }
    }

    #[test]
    fn spins_that_find_nothing_become_shorter_until_there_are_none() {
        let mut run = Run::new(50);
        let mut spins = Vec::new();
        for _ in 0..8 {
            spins.push(run.spin_until_sleep());
            run.woken_after(1000);
        }
        assert_eq!(spins, [50, 25, 13, 7, 4, 2, 0, 0], "rounded up to whole turns");
    }

    #[test]
    fn a_spin_that_finds_work_is_doubled_up_to_the_greatest() {
        let mut run = Run::new(50);
        while run.spin_until_sleep() > 4 {
            run.woken_after(1000);
        }
        run.woken_after(1000);
        let mut limits = Vec::new();
        for _ in 0..6 {
            assert_eq!(run.turn(false), Advice::Turn);
            assert_eq!(run.turn(true), Advice::Turn);
            limits.push(run.spin.limit.as_nanos());
        }
        assert_eq!(limits, [3124, 6248, 12496, 24992, 49984, 50000]);
    }

    #[test]
    fn short_sleeps_bring_spinning_back() {
        let mut run = Run::new(50);
        while !run.spin.limit.is_zero() {
            run.spin_until_sleep();
            run.woken_after(1000);
        }
        assert_eq!(run.turn(false), Advice::Sleep);
        run.woken_after(30);
        assert_eq!(run.turn(false), Advice::Turn, "it spins again");
    }

    #[test]
    fn a_preempted_thread_gives_the_core_away() {
        let mut run = Run::new(50);
        assert_eq!(run.turn(false), Advice::Turn);
        run.now = run.now + PREEMPTED;
        assert_eq!(run.turn(false), Advice::Sleep);
        assert_eq!(run.spin.limit, Duration::from_micros(25));
    }

    #[test]
    fn a_long_turn_of_work_is_no_preemption() {
        let mut run = Run::new(50);
        assert_eq!(run.turn(false), Advice::Turn);
        run.now = run.now + PREEMPTED;
        assert_eq!(run.turn(true), Advice::Turn);
        assert_eq!(run.spin.limit, Duration::from_micros(50));
    }

    #[test]
    fn without_a_core_of_its_own_it_never_spins() {
        let mut run = Run::new(0);
        for slept_us in [0, 1, 1000] {
            assert_eq!(run.turn(true), Advice::Turn);
            assert_eq!(run.turn(false), Advice::Sleep);
            run.woken_after(slept_us);
        }
    }
}
