//! What can be done to a pair, and the limits within which it is survived (PROTOCOLS 1, 13).
//!
//! Of the list in PROTOCOLS 13, by what there is in code:
//!
//! | there | here |
//! |---|---|
//! | pause at any await | `Pause`: the executor stops between any two polls; `Host` does it to hosts |
//! | pause inside any RDMA write, landing after the takeover | `Pause`, at the moment of a write, with the matrix's stalled nodes and, by seed, late writes |
//! | restart faster than detection | `Crash` |
//! | compare-and-swap with unknown outcome | `Registry` |
//! | partial preempt | `Reset`, `Controller` or `Crash` while the winner fences, device by device |
//! | shelf restart without persistent reservations | `Shelf` |
//! | commands already fetched completing after Preempt | `Delay`; a Preempt and Abort drains them, whatever they take |
//! | delayed heartbeats | `Slow` |
//! | CMI-only, matrix-only, registry-only and one-way cuts | `Link`, `Path`, `Partition`, `Registry`: the pair has one link |
//! | two hosts on one block with retries | the workload, always |
//! | host buffers reused right after failover | the workload, always: it looks at memory that is lent to nobody |
//! | total power loss at any point | `Power`, at any point from which no operator is needed |
//! | two reactors per director with delayed rings | not yet: a node has one reactor |
//! | crash in replay, then in its replay | of intents and vault: `Crash`, `Power`; not of the mirror: what is adopted is in one memory only (4.4) |
//! | delete and slice reuse with old maps and vault records | not yet: one volume, never deleted |
//!
//! A seed chooses which of them a run uses at all, and how often; see [`FaultKinds::swarm`].

use std::fmt;

use dyad_reactor::{Rng, SeededRng};

/// One kind of fault: what it does, and its limit if there is one beyond being mended after some time.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A director is gone; it starts again sooner or later than its lease. Only while its partner lives and is a member, or
    /// when nothing is in its memory alone: the loss of two directors is survived only by what is on media or in the vault.
    Crash,
    /// A director's tasks stop wherever they await, mostly the home's and while it writes to somebody's memory, in half of the cases with
    /// these writes in their middle, for less or longer than a lease. Both directors, too.
    Pause,
    /// The link between the directors holds everything, one way or both.
    Link,
    /// The link between a host and a director, one way or both.
    Path,
    /// Directors and hosts fall into two parts that do not reach each other; both reach devices and registry.
    Partition,
    /// The link between the directors becomes so slow that heartbeats and grants come late, one way or both.
    Slow,
    /// Registry requests and answers are lost, repeated and late, so that the outcome of a change is unknown; or one director
    /// cannot reach it at all, or not hear it.
    Registry,
    /// Devices sit on commands that they have fetched, beyond leases and takeovers.
    Delay,
    /// Blocks of one device cannot be read, or return what belongs elsewhere, until they are written again. Always the same device.
    Media,
    /// That device is gone for ever.
    Device,
    /// A director loses its own controller of that device until it starts again; its partner has another one.
    Controller,
    /// A director's controller of that device is reset: what it was doing, fencing included, is aborted, done or not.
    Reset,
    /// A device aborts what it is doing, loses its volatile cache, and has forgotten its reservations. Only while the pair is
    /// whole: whoever was fenced by them would be no more.
    Shelf,
    /// The home crashes, and in the mirror of its partner a block is damaged: that block may be lost, but never be wrong.
    Memory,
    /// A host is gone, with operations under way, and starts again under its name; or it stops for a while.
    Host,
    /// Everything loses power: directors, devices and hosts. Only while nothing is in one memory alone; otherwise an operator
    /// would have to say what becomes of it (PROTOCOLS 4.4).
    Power,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Crash,
        Self::Pause,
        Self::Link,
        Self::Path,
        Self::Partition,
        Self::Slow,
        Self::Registry,
        Self::Delay,
        Self::Media,
        Self::Device,
        Self::Controller,
        Self::Reset,
        Self::Shelf,
        Self::Memory,
        Self::Host,
        Self::Power,
    ];

    /// Its name in lists.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// Which faults may happen.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FaultKinds(u32);

impl FaultKinds {
    /// None.
    pub const NONE: Self = Self(0);
    /// All.
    pub const ALL: Self = Self((1 << Fault::ALL.len()) - 1);

    /// It is one of them.
    #[must_use]
    pub const fn has(self, fault: Fault) -> bool {
        self.0 & fault.bit() != 0
    }

    /// These and `fault`.
    #[must_use]
    pub const fn with(self, fault: Fault) -> Self {
        Self(self.0 | fault.bit())
    }

    /// The kinds in a list like `crash,pause`; `all` and `none` are lists, too. `Err` has the word that is no fault.
    ///
    /// # Errors
    /// The first word that is none.
    pub fn parse(list: &str) -> Result<Self, String> {
        list.split(',').try_fold(Self::NONE, |kinds, word| match word {
            "all" => Ok(Self::ALL),
            "none" => Ok(kinds),
            _ => match Fault::ALL.iter().find(|fault| fault.name() == word) {
                Some(fault) => Ok(kinds.with(*fault)),
                None => Err(word.to_owned()),
            },
        })
    }

    /// A part of these, as the seed has it, never none if there is one: runs with few kinds reach states that runs with all do not.
    #[must_use]
    pub fn swarm(self, rng: &mut SeededRng) -> Self {
        let one_in = 2 + rng.below(6);
        let drawn = Fault::ALL.iter().filter(|fault| self.has(**fault) && rng.one_in(one_in));
        match drawn.fold(Self::NONE, |kinds, fault| kinds.with(*fault)) {
            Self::NONE => self,
            drawn => drawn,
        }
    }
}

impl fmt::Display for FaultKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Fault::ALL.into_iter().filter(|fault| self.has(*fault)).map(Fault::name).collect();
        match *self {
            Self::ALL => write!(f, "all"),
            Self::NONE => write!(f, "none"),
            _ => write!(f, "{}", names.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_that_lists_know() {
        for fault in Fault::ALL {
            assert_eq!(FaultKinds::parse(&fault.name()), Ok(FaultKinds::NONE.with(fault)));
        }
        assert_eq!(FaultKinds::parse("crash,earthquake"), Err("earthquake".to_owned()));
        assert_eq!(FaultKinds::parse("all"), Ok(FaultKinds::ALL));
    }
}
