//! What is done to the array, when, and within which limits (PROTOCOLS 1).
//!
//! - **Crash**: a director is gone and starts again later, sooner or later than its lease. Only while the pair is whole and
//!   nobody pauses: the loss of two directors is not survived.
//! - **Pause**: a director's tasks stop, for less or for longer than a lease. At any time, both too.
//! - **Cut**: the link between the directors holds everything, one way or both, and is mended later. At any time.
//!
//! A seed chooses which of them it uses at all.

use std::time::Duration;

use dyad_director::membership::DirectorId;
use dyad_reactor::{Clock, Rng, SeededRng, Time};

use crate::array::{Array, name};

/// Which faults may happen.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FaultKinds {
    /// See the module.
    pub crash: bool,
    /// See the module.
    pub pause: bool,
    /// See the module.
    pub cut: bool,
}

impl FaultKinds {
    /// None.
    pub const NONE: Self = Self { crash: false, pause: false, cut: false };
    /// All.
    pub const ALL: Self = Self { crash: true, pause: true, cut: true };

    /// A part of these, as the seed has it; never none if there is one.
    #[must_use]
    pub fn swarm(self, rng: &mut SeededRng) -> Self {
        let drawn = Self {
            crash: self.crash && !rng.one_in(3),
            pause: self.pause && !rng.one_in(3),
            cut: self.cut && rng.one_in(2),
        };
        if drawn == Self::NONE { self } else { drawn }
    }
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Repair {
    Start(DirectorId),
    Resume(DirectorId),
    Heal(DirectorId),
}

/// Does things to an array.
pub struct FaultInjector {
    kinds: FaultKinds,
    rng: SeededRng,
    next: Time,
    repairs: Vec<(Time, Repair)>,
    paused: [bool; 2],
    done: u64,
}

impl FaultInjector {
    /// An injector that uses `kinds`.
    #[must_use]
    pub fn new(kinds: FaultKinds, rng: SeededRng, first: Time) -> Self {
        Self { kinds, rng, next: first, repairs: Vec::new(), paused: [false; 2], done: 0 }
    }

    /// Faults so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.done
    }

    /// It does anything at all.
    #[must_use]
    pub fn has_any(&self) -> bool {
        self.kinds != FaultKinds::NONE
    }

    /// Everything is repaired.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        self.repairs.is_empty()
    }

    /// When there is something to do.
    #[must_use]
    pub fn next_moment(&self) -> Time {
        self.repairs.iter().map(|(at, _)| *at).chain([self.next]).min().unwrap_or(self.next)
    }

    /// Does what is due: repairs, directors that want to begin anew, and, while `active`, a new fault.
    pub fn act(&mut self, array: &mut Array, active: bool) {
        let now = array.time.now();
        if let Some(ended) = array.ended() {
            self.crash(array, ended);
        }
        while let Some(due) = self.repairs.iter().position(|(at, _)| *at <= now) {
            match self.repairs.swap_remove(due).1 {
                Repair::Start(director) => array.start_director(director),
                Repair::Resume(director) => {
                    self.paused[usize::from(director.index())] = false;
                    array.resume_director(director);
                }
                Repair::Heal(from) => array.fabric.heal(name(from), name(from.partner())),
            }
        }
        if active && now >= self.next {
            self.next = now + self.random(Duration::from_millis(1500));
            self.inject(array);
        }
        if !active {
            self.next = Time::FAR_FUTURE;
        }
    }

    fn inject(&mut self, array: &mut Array) {
        let director = if self.rng.one_in(2) { DirectorId::A } else { DirectorId::B };
        let lease = array.timing().lease;
        match self.rng.below(3) {
            0 if self.kinds.crash && array.is_whole() && self.paused == [false; 2] => self.crash(array, director),
            1 if self.kinds.pause && array.node(director).is_some() && !self.paused[usize::from(director.index())] => {
                self.paused[usize::from(director.index())] = true;
                array.pause_director(director);
                let time = self.either(2, lease * 4, lease / 2);
                self.repairs.push((array.time.now() + time, Repair::Resume(director)));
            }
            2 if self.kinds.cut => {
                for from in [DirectorId::A, DirectorId::B] {
                    if self.rng.one_in(3) {
                        continue;
                    }
                    array.fabric.cut(name(from), name(from.partner()));
                    let time = self.either(2, lease * 3, lease / 10);
                    self.repairs.push((array.time.now() + time, Repair::Heal(from)));
                }
            }
            _ => return,
        }
        self.done += 1;
    }

    fn crash(&mut self, array: &mut Array, director: DirectorId) {
        array.kill_director(director);
        self.paused[usize::from(director.index())] = false;
        self.repairs.retain(|(_, repair)| *repair != Repair::Resume(director));
        let time = self.either(3, Duration::from_millis(50), Duration::from_secs(2));
        self.repairs.push((array.time.now() + time, Repair::Start(director)));
    }

    /// Up to `some` once in `one_in` times, else up to `others`.
    fn either(&mut self, one_in: u64, some: Duration, others: Duration) -> Duration {
        let longest = if self.rng.one_in(one_in) { some } else { others };
        self.random(longest)
    }

    fn random(&mut self, longest: Duration) -> Duration {
        Duration::from_nanos(self.rng.below(u64::try_from(longest.as_nanos()).expect("short") + 1))
    }
}
