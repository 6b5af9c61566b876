//! What the cache has done, in plain numbers: whoever shows them reads a copy.

use std::time::Duration;

/// Buckets of a [`Histogram`].
const BUCKETS: usize = 40;

/// How often a quantity was how large: bucket n counts those from 2^(n-1) to less than 2^n, bucket 0 the zeros, the last one all that are larger.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, value: u64) {
        let bits = usize::try_from(u64::BITS - value.leading_zeros()).expect("at most 64");
        self.buckets[bits.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// One more time, in nanoseconds.
    pub fn add_time(&mut self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// A value that so many percent are not above: the end of the bucket that has it.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let mut left = self.count() * percent / 100;
        for (bucket, count) in self.buckets.iter().enumerate() {
            if left < *count || bucket == BUCKETS - 1 {
                return (1 << bucket) - 1;
            }
            left -= count;
        }
        unreachable!("the last bucket ends it")
    }

    /// The counts, from zeros on.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }
}

/// What the cache has done since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Track pieces read without a device.
    pub read_hits: u64,
    /// Track pieces read with one.
    pub read_misses: u64,
    /// Blocks read from the group because somebody asked for them.
    pub read_blocks: u64,
    /// Track pieces that went past the frames: parts of large sequential reads.
    pub bypassed_reads: u64,
    /// Blocks read before anybody asked.
    pub read_ahead_blocks: u64,
    /// Track pieces acknowledged by the partner.
    pub mirrored_writes: u64,
    /// Track pieces acknowledged from this memory alone (`unmirrored`).
    pub unmirrored_writes: u64,
    /// Track pieces acknowledged from media (`through`, or alone).
    pub media_writes: u64,
    /// Track pieces acknowledged from the vault (alone).
    pub journalled_writes: u64,
    /// Track pieces that were sent again and not applied again.
    pub repeated_writes: u64,
    /// Writes that were slowed because too much was dirty.
    pub slowed_writes: u64,
    /// Blocks written to the group by destage.
    pub destaged_blocks: u64,
    /// Whole stripes among them.
    pub destaged_stripes: u64,
    /// Blocks saved to the vault.
    pub vaulted_blocks: u64,
    /// Blocks brought back from the vault.
    pub replayed_blocks: u64,
    /// Blocks adopted from a lost partner.
    pub adopted_blocks: u64,
    /// Blocks of a lost partner whose bytes had changed in memory: what vault or media has of them may be older.
    pub damaged_blocks: u64,
    /// Frames of a lost partner that no commit record names: whatever is in them was never acknowledged.
    pub quarantined_frames: u64,
    /// Blocks of each destage.
    pub destage_blocks: Histogram,
    /// Nanoseconds from the first byte to the partner's answer.
    pub mirror_latency: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_end_of_its_bucket() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 900, 1000, 1023, 1024, u64::MAX, 5] {
            histogram.add(value);
        }
        assert_eq!((histogram.count(), histogram.sum()), (10, u64::MAX));
        assert_eq!([0, 10, 35, 65, 85].map(|percent| histogram.percentile(percent)), [0, 1, 3, 1023, 2047]);
        assert_eq!(histogram.percentile(99), (1 << 39) - 1);
    }
}
