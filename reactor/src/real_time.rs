//! The machine's clock.

use crate::{Clock, Time};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since the machine booted, suspend included (`CLOCK_BOOTTIME`, read without a system call where the vDSO has it).
#[derive(Debug, Default, Copy, Clone)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Time {
        let reading = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39");
        Time::ZERO + Duration::from(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_and_never_goes_back() {
        let start = BootClock.now();
        let mut last = start;
        while last == start {
            let now = BootClock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
