//! The tables of everything that is counted: what JSON and metrics show is the same, under the same names.

use dyad_backend::raid::group::GroupCounters;
use dyad_cache::counters::CacheCounters;
use dyad_reactor::reactor::CounterValues;

/// One counter: its name, what it counts, and how many.
pub(super) type Counter = (&'static str, &'static str, u64);

/// What the cache counts.
pub(super) fn cache(counters: &CacheCounters) -> Vec<Counter> {
    let CacheCounters {
        read_hits,
        read_misses,
        read_blocks,
        bypassed_reads,
        read_ahead_blocks,
        mirrored_writes,
        unmirrored_writes,
        media_writes,
        journalled_writes,
        repeated_writes,
        slowed_writes,
        destaged_blocks,
        destaged_stripes,
        vaulted_blocks,
        replayed_blocks,
        adopted_blocks,
        damaged_blocks,
        quarantined_frames,
        destage_blocks: _,
        mirror_latency: _,
    } = counters;
    vec![
        ("read_hits", "Pieces of tracks read without a device", *read_hits),
        ("read_misses", "Pieces of tracks read with a device", *read_misses),
        ("read_blocks", "Blocks read from the group on demand", *read_blocks),
        ("bypassed_reads", "Pieces of large sequential reads that went past the frames", *bypassed_reads),
        ("read_ahead_blocks", "Blocks read before anybody asked", *read_ahead_blocks),
        ("mirrored_writes", "Pieces of tracks acknowledged by the partner", *mirrored_writes),
        ("unmirrored_writes", "Pieces of tracks acknowledged from one memory", *unmirrored_writes),
        ("media_writes", "Pieces of tracks acknowledged from media", *media_writes),
        ("journalled_writes", "Pieces of tracks acknowledged from the vault", *journalled_writes),
        ("repeated_writes", "Pieces of tracks that were sent again and not applied again", *repeated_writes),
        ("slowed_writes", "Writes that were slowed because too much was dirty", *slowed_writes),
        ("destaged_blocks", "Blocks written to the group by destage", *destaged_blocks),
        ("destaged_stripes", "Whole stripes written to the group by destage", *destaged_stripes),
        ("vaulted_blocks", "Blocks saved to the vault", *vaulted_blocks),
        ("replayed_blocks", "Blocks brought back from the vault", *replayed_blocks),
        ("adopted_blocks", "Blocks adopted from a lost partner", *adopted_blocks),
        ("damaged_blocks", "Blocks of a lost partner that had changed in memory", *damaged_blocks),
        ("quarantined_frames", "Frames of a lost partner that no commit record names", *quarantined_frames),
    ]
}

/// What a group counts.
pub(super) fn group(counters: &GroupCounters) -> Vec<Counter> {
    let GroupCounters {
        media_errors,
        mismatches,
        repaired,
        beyond_repair,
        aborted,
        members_failed,
        members_slow,
        members_erring,
        replayed,
        rebuilt,
        patrolled,
        inconsistent,
        reads,
        writes,
        log_writes,
        guard_writes,
    } = *counters;
    vec![
        ("media_errors", "Blocks that a device could not read", media_errors),
        ("mismatches", "Blocks that were not what had been written", mismatches),
        ("repaired", "Blocks made again and written back", repaired),
        ("beyond_repair", "Blocks that could not be made again", beyond_repair),
        ("aborted", "Commands that a device aborted and that were tried again", aborted),
        ("members_failed", "Members that failed", members_failed),
        ("members_slow", "Members that failed because they were slow", members_slow),
        ("members_erring", "Members that failed because they erred too often", members_erring),
        ("replayed", "Records of the intent log that were replayed", replayed),
        ("rebuilt", "Stripes made again on a spare", rebuilt),
        ("patrolled", "Stripes read by the patrol", patrolled),
        ("inconsistent", "Blocks that were not the parity or mirror of the data, made so", inconsistent),
        ("reads", "Commands that read data or parity", reads),
        ("writes", "Commands that wrote data or parity", writes),
        ("log_writes", "Commands that wrote the intent log", log_writes),
        ("guard_writes", "Commands that wrote the guard table", guard_writes),
    ]
}

/// What the reactor counts; times in nanoseconds.
pub(super) fn reactor(values: &CounterValues) -> Vec<Counter> {
    let CounterValues { busy, spinning, asleep, turns, source_work, task_polls, timers_fired, sleeps } = *values;
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    vec![
        ("busy_ns", "Time in turns that worked", nanos(busy)),
        ("spinning_ns", "Time in turns that found nothing", nanos(spinning)),
        ("asleep_ns", "Time asleep", nanos(asleep)),
        ("turns", "Turns of the loop", turns),
        ("source_work", "Work that sources reported", source_work),
        ("task_polls", "Polls of tasks", task_polls),
        ("timers_fired", "Timers that became due", timers_fired),
        ("sleeps", "Waits for the kernel", sleeps),
    ]
}
