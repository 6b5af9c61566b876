//! Points in time as logic sees them, and the trait that tells them.

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, Sub};
use std::rc::Rc;
use std::time::Duration;

/// A point in time: nanoseconds since an arbitrary origin that all readings of one clock share.
///
/// In production the origin is the boot of the machine; in the simulator it is the start of the run.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than every reachable time.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The point `nanos` after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Tells the time.
///
/// Implementations promise: readings never go backwards; the clock counts time during which the machine was
/// suspended; its rate is right to within 1 % (PROTOCOLS 1). Nothing is promised about two clocks' origins.
pub trait Clock {
    /// The time now.
    fn now(&self) -> Time;
}

impl<C: Clock + ?Sized> Clock for Rc<C> {
    fn now(&self) -> Time {
        (**self).now()
    }
}

/// A clock that stands still until it is told to move: the fake for tests and the simulator's base.
#[derive(Debug, Default)]
pub struct ManualClock(Cell<Time>);

impl ManualClock {
    /// Moves the clock to `now`.
    ///
    /// # Panics
    /// If `now` lies in this clock's past.
    pub fn set(&self, now: Time) {
        assert!(now >= self.0.get(), "a clock never goes backwards: {:?} after {:?}", now, self.0.get());
        self.0.set(now);
    }

    /// Moves the clock by `by`.
    pub fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        self.0.get()
    }
}
