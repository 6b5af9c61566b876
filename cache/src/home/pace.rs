//! How hosts are slowed when they write faster than media does: smoothly, so that none ever stops (DESIGN 5).
//!
//! A write waits in proportion to its blocks, to the time that destage takes for a block, and to how far write pending has come on its way from the
//! threshold to the limit: nothing at the threshold, twice the time of destage at the limit. So between the two there is a point where hosts write as
//! fast as media does, and there it stays.

use std::cell::Cell;
use std::time::Duration;

use dyad_reactor::Time;

/// No write waits longer for this.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// A gap between two destages that is longer says nothing about the speed of media.
const GAP_MAX: Duration = Duration::from_millis(10);

pub(super) struct Pace {
    threshold: usize,
    limit: usize,
    /// When the last destage ended.
    last: Cell<Time>,
    nanos_per_block: Cell<u64>,
}

impl Pace {
    pub(super) fn new(threshold: usize, limit: usize) -> Self {
        Self { threshold, limit, last: Cell::new(Time::ZERO), nanos_per_block: Cell::new(0) }
    }

    /// So many blocks reached media.
    pub(super) fn destaged(&self, blocks: usize, now: Time) {
        let gap = now.since(self.last.replace(now)).min(GAP_MAX);
        let nanos = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX) / (blocks as u64).max(1);
        self.nanos_per_block.set((7 * self.nanos_per_block.get() + nanos) / 8);
    }

    /// How long a write of so many blocks waits when so many are dirty.
    pub(super) fn wait(&self, blocks: usize, dirty: usize) -> Duration {
        let over = dirty.saturating_sub(self.threshold).min(self.limit - self.threshold) as u64;
        let range = (self.limit - self.threshold) as u64;
        let nanos = self.nanos_per_block.get().saturating_mul(2 * blocks as u64).saturating_mul(over) / range;
        Duration::from_nanos(nanos).min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_slowed_to_the_speed_of_media_and_never_stopped() {
        let pace = Pace::new(100, 200);
        let mut now = Time::ZERO;
        for _ in 0..100 {
            now = now + Duration::from_micros(160);
            pace.destaged(16, now);
        }
        assert_eq!(pace.wait(16, 100), Duration::ZERO);
        let close =
            |wait: Duration, micros: u64| wait.abs_diff(Duration::from_micros(micros)) < Duration::from_micros(2);
        assert!(close(pace.wait(16, 125), 80) && close(pace.wait(16, 150), 160) && close(pace.wait(16, 200), 320));
        assert_eq!(pace.wait(16, 100_000), pace.wait(16, 200));

        // A host that writes as fast as it may, beside media that takes 10 us for a block: write pending comes to rest half way.
        let mut pending = 0_u64;
        for _ in 0..10_000 {
            let waited = pace.wait(16, 100 + usize::try_from(pending / 1000).unwrap()) + Duration::from_micros(5);
            let destaged = u64::try_from(waited.as_micros()).unwrap() * 100;
            pending = (pending + 16_000).saturating_sub(destaged);
        }
        assert!((40_000..60_000).contains(&pending), "{pending} thousandths of a block");
    }
}
