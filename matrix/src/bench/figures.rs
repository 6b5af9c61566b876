//! Samples, and what is reported of them.

use std::time::Duration;

use dyad_reactor::figures::{Row, to_f64};
use dyad_reactor::{BootClock, Clock};

/// The samples of a run, named as the transport's figures are.
#[derive(Debug, Default)]
pub(super) struct Figures(dyad_reactor::figures::Figures);

impl Figures {
    pub(super) fn add(&mut self, name: String, unit: &'static str, value: f64) {
        self.0.add(name, unit, value);
    }

    /// Percentiles of round trips.
    pub(super) fn add_round_trips(&mut self, transport: &str, bytes: u32, mut nanos: Vec<u64>) {
        nanos.sort_unstable();
        for (name, part) in [("p50", 50), ("p99", 99)] {
            let value = nanos[(nanos.len() - 1) * part / 100];
            self.add(format!("{transport}.rtt.{bytes}.{name}_us"), "us", to_f64(value) / 1e3);
        }
    }

    /// Messages of one round: how many in a second, and the time that both processors together spent on one.
    pub(super) fn add_rate(&mut self, transport: &str, bytes: u32, messages: u64, took: Duration, cpu: Duration) {
        self.add(format!("{transport}.rate.{bytes}.per_s"), "1/s", to_f64(messages) / took.as_secs_f64());
        let nanos = cpu.as_secs_f64() * 1e9 / to_f64(messages);
        self.add(format!("{transport}.cpu_per_message.{bytes}.ns"), "ns", nanos);
    }

    pub(super) fn add_bandwidth(&mut self, what: &str, bytes: u32, moved: u64, took: Duration) {
        self.add(format!("{what}.{bytes}.gb_s"), "GB/s", to_f64(moved) / took.as_secs_f64() / 1e9);
    }

    pub(super) fn rows(self) -> Vec<Row> {
        self.0.rows()
    }
}

/// Bytes of memory that a copy walks through, at either side: more than the second-level cache holds.
pub(super) const SPAN: u32 = 16 << 20;

/// How often something of `bytes` bytes is moved for one sample: 256 MiB.
pub(super) fn moves(bytes: u32) -> u32 {
    (256 << 20) / bytes
}

/// One core's memcpy.
pub(super) fn memcpy(bytes: u32, figures: &mut Figures) {
    let (size, span) = (bytes as usize, SPAN as usize);
    let (source, mut target) = (vec![1_u8; span], vec![2_u8; span]);
    let start = BootClock.now();
    let mut at = 0;
    for _ in 0..moves(bytes) {
        let from = std::hint::black_box(&source[at..at + size]);
        // copy: the yardstick
        std::hint::black_box(&mut target[at..at + size]).copy_from_slice(from);
        at = (at + size) % span;
    }
    figures.add_bandwidth("memcpy", bytes, u64::from(moves(bytes)) * u64::from(bytes), BootClock.now().since(start));
}
