//! Samples, and what is reported of them.

use std::time::Duration;

use dyad_reactor::figures::{Row, to_f64};

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

    /// Bandwidth per second of one core's time, of memcpy, writes and reads that took turns, and what part of memcpy's the
    /// others reach.
    pub(super) fn add_bandwidth(&mut self, bytes: u32, took: [Duration; 3]) {
        let moved = to_f64(u64::from(SPAN) * u64::from(TURNS) * u64::from(WALKS));
        for (what, took_this) in ["memcpy", "shm.rdma_write", "shm.rdma_read"].into_iter().zip(took) {
            self.add(format!("{what}.{bytes}.gb_s"), "GB/s", moved / took_this.as_secs_f64() / 1e9);
            if what != "memcpy" {
                let part = took[0].as_secs_f64() / took_this.as_secs_f64();
                self.add(format!("{what}.{bytes}.of_memcpy"), "x", part);
            }
        }
    }

    pub(super) fn rows(self) -> Vec<Row> {
        self.0.rows()
    }
}

/// Bytes of memory that a copy walks through, at either side: more than the second-level cache holds.
pub(super) const SPAN: u32 = 16 << 20;

/// Ways to copy take turns, so that what disturbs disturbs them all: so many times for one sample.
pub(super) const TURNS: u32 = 4;

/// Walks of one turn that count. As many go before.
pub(super) const WALKS: u32 = 4;

/// Two buffers of one process, for one core's memcpy.
pub(super) struct Yardstick {
    source: Vec<u8>,
    target: Vec<u8>,
}

impl Yardstick {
    pub(super) fn new() -> Self {
        Self { source: vec![1; SPAN as usize], target: vec![2; SPAN as usize] }
    }

    /// Copies all, in pieces of `bytes`.
    pub(super) fn memcpy(&mut self, bytes: u32) {
        for (from, to) in self.source.chunks_exact(bytes as usize).zip(self.target.chunks_exact_mut(bytes as usize)) {
            // copy: the yardstick
            std::hint::black_box(to).copy_from_slice(std::hint::black_box(from));
        }
    }
}
