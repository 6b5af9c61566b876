//! What this director may do for its hosts right now: written by pair membership, read by every command.
//!
//! Rules: PROTOCOLS 4.1-4.4. A write is acknowledged by the partner's answer (`Mirrored`) or by media or vault (`Solo`); a read needs a lease that the
//! partner granted, or the registry, checked after the command arrived and before its data is looked up.

use std::cell::Cell;
use std::rc::Rc;

use dyad_reactor::Time;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::Signal;

use crate::address::Epoch;

/// How this director serves.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Regime {
    /// It serves nobody: not (yet, any more) the home. Commands are answered so that hosts try the other path.
    Elsewhere,
    /// It is or may become the home, and does not know yet: commands wait.
    Undecided,
    /// Home in `both`: writes are acknowledged by the partner.
    Mirrored(Epoch),
    /// Home in `solo`: writes are acknowledged from media or vault.
    Solo(Epoch),
}

struct Inner {
    regime: Cell<Regime>,
    lease_until: Cell<Time>,
    changed: Signal,
    fenced: Cell<bool>,
}

/// The current [`Regime`]. Clones are the same authority.
#[derive(Clone)]
pub struct Authority {
    inner: Rc<Inner>,
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            inner: Rc::new(Inner {
                regime: Cell::new(Regime::Elsewhere),
                lease_until: Cell::new(Time::ZERO),
                changed: Signal::new(),
                fenced: Cell::new(false),
            }),
        }
    }
}

impl Authority {
    /// The regime now.
    #[must_use]
    pub fn regime(&self) -> Regime {
        self.inner.regime.get()
    }

    /// Membership decided.
    pub fn set_regime(&self, regime: Regime) {
        if self.inner.regime.replace(regime) != regime {
            self.inner.changed.notify_all();
        }
    }

    /// The partner granted a lease, or the registry did.
    pub fn set_lease(&self, until: Time) {
        self.inner.lease_until.set(until);
        self.inner.changed.notify_all();
    }

    /// Whether data may be looked up for a read that has already arrived.
    #[must_use]
    pub fn may_read(&self, now: Time) -> bool {
        match self.regime() {
            Regime::Mirrored(_) => now < self.inner.lease_until.get() || is_active(Mutation::ReadWithoutLease),
            Regime::Solo(_) => now < self.inner.lease_until.get() || is_active(Mutation::SoloWithoutLease),
            Regime::Elsewhere | Regime::Undecided => false,
        }
    }

    /// A device answered with a reservation conflict: somebody else is the home (PROTOCOLS 5.3).
    pub fn report_fenced(&self) {
        self.inner.fenced.set(true);
        self.inner.changed.notify_all();
    }

    /// A reservation conflict was reported.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.inner.fenced.get()
    }

    /// Fires at every change of the regime, the lease or the fence.
    #[must_use]
    pub fn changes(&self) -> &Signal {
        &self.inner.changed
    }
}
