//! How long a reactor without work looks for some before it sleeps: a pure state machine.
//!
//! The limit adapts to what spinning brings (DESIGN 2):
//!
//! | state    | event                                            | then     | limit   |
//! |----------|--------------------------------------------------|----------|---------|
//! | busy     | a turn worked                                    | busy     | stays   |
//! | busy     | a turn found nothing, the limit is zero          | asleep   | stays   |
//! | busy     | a turn found nothing                             | spinning | stays   |
//! | spinning | a turn worked                                    | busy     | doubled |
//! | spinning | nothing for as long as the limit, or preempted   | asleep   | halved  |
//! | spinning | a turn found nothing                             | spinning | stays   |
//! | asleep   | woken                                            | busy     | stays, or a trial |
//!
//! The way back from zero is a *trial* of the greatest limit, after sleeps so short that spinning might have been better. Only
//! might: if the work comes from a thread on the same core, it came because this one slept. So each trial needs twice as
//! many short sleeps as the last one, until a spin finds work again.

use crate::Time;
use std::time::Duration;

/// The greatest spin limit of a reactor that has a core to itself.
pub const MAX_SPIN: Duration = Duration::from_micros(50);

/// The smallest limit above zero.
const MIN_SPIN: Duration = Duration::from_micros(1);

/// Turns that find nothing take far less than this; if one took longer, somebody else had the core.
const PREEMPTED: Duration = Duration::from_micros(20);

/// Short sleeps that a trial needs at most.
const MAX_PATIENCE: u32 = 1024;

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
    /// Short sleeps at a limit of zero since the last trial, and how many the next trial needs.
    short_sleeps: u32,
    patience: u32,
    state: State,
}

impl Spin {
    /// A machine that spins for `max` at most. Starts there: the first work decides.
    pub(super) fn new(max: Duration) -> Self {
        Self { max, limit: max, short_sleeps: 0, patience: 1, state: State::Busy }
    }

    /// A turn ended at `now`; did it work?
    pub(super) fn turn(&mut self, now: Time, worked: bool) -> Advice {
        match self.state {
            State::Busy if worked => {}
            State::Busy if self.limit.is_zero() => return self.sleep(now),
            State::Busy => self.state = State::Spinning { since: now, last_turn: now },
            State::Spinning { .. } if worked => {
                self.limit = (self.limit * 2).min(self.max);
                (self.short_sleeps, self.patience) = (0, 1);
                self.state = State::Busy;
            }
            State::Spinning { since, last_turn } => {
                if now.since(since) >= self.limit || now.since(last_turn) >= PREEMPTED {
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
        self.state = State::Busy;
        if self.limit.is_zero() && now.since(since) <= self.max {
            self.short_sleeps += 1;
            if self.short_sleeps == self.patience {
                self.limit = self.max;
                (self.short_sleeps, self.patience) = (0, (self.patience * 2).min(MAX_PATIENCE));
            }
        }
    }

    fn sleep(&mut self, now: Time) -> Advice {
        self.state = State::Asleep { since: now };
        Advice::Sleep
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

    /// Spins and sleeps shortly until the machine does not spin any more.
    fn without_spinning(max_us: u64) -> Run {
        let mut run = Run::new(max_us);
        while !run.spin.limit.is_zero() {
            run.spin_until_sleep();
            run.woken_after(1000);
        }
        run
    }

    #[test]
    fn short_sleeps_bring_spinning_back_where_it_finds_the_work() {
        let mut run = without_spinning(50);
        assert_eq!(run.turn(false), Advice::Sleep);
        run.woken_after(30);
        // From now on work comes 30 us after the last, and no sleep is needed.
        for _ in 0..10 {
            run.turn(true);
            assert!((0..30).all(|_| run.turn(false) == Advice::Turn));
        }
    }

    #[test]
    fn trials_become_rare_where_spinning_never_finds_the_work() {
        let mut run = without_spinning(50);
        let start = run.now;
        let sleeps = 100_000;
        for _ in 0..sleeps {
            // As on a shared core: the work comes when this thread sleeps, however long it spun before.
            run.turn(true);
            run.spin_until_sleep();
            run.woken_after(1);
        }
        let spun = run.now.since(start) - Duration::from_micros(3) * sleeps;
        assert!(spun < Duration::from_millis(20), "{spun:?} in {sleeps} waits");
    }

    #[test]
    fn a_preempted_thread_gives_the_core_away() {
        let mut run = Run::new(50);
        assert_eq!(run.turn(false), Advice::Turn);
        run.now = run.now + PREEMPTED;
        assert_eq!(run.turn(false), Advice::Sleep);
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
