//! Samples, and what is reported of them.

use std::collections::BTreeMap;

use super::load::Outcome;

/// How often everything is measured, in turn.
pub(super) const ROUNDS: usize = 5;

/// One figure: the median of the rounds, with the least and the most.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured, as `emulator.null.read.4096.qd128.iops`.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The least of the rounds.
    pub min: f64,
    /// The most of the rounds.
    pub max: f64,
}

/// All samples, one per round and name.
#[derive(Debug, Default)]
pub(super) struct Figures {
    samples: BTreeMap<&'static str, (&'static str, Vec<f64>)>,
}

impl Figures {
    pub(super) fn add(&mut self, name: &'static str, unit: &'static str, value: f64) {
        self.samples.entry(name).or_insert((unit, Vec::new())).1.push(value);
    }

    pub(super) fn add_rate(&mut self, name: &'static str, outcome: Outcome) {
        self.add(name, "1/s", outcome.per_second());
    }

    pub(super) fn add_micros(&mut self, name: &'static str, nanos: u64) {
        self.add(name, "us", to_f64(nanos) / 1e3);
    }

    /// The median of the rounds, with the least and the most.
    pub(super) fn rows(self) -> Vec<Row> {
        let row = |(name, (unit, mut values)): (&str, (&'static str, Vec<f64>))| {
            values.sort_by(f64::total_cmp);
            let (value, min, max) = (values[values.len() / 2], values[0], values[values.len() - 1]);
            Row { name: name.to_owned(), value, unit, min, max }
        };
        self.samples.into_iter().map(row).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures are rounded anyway")]
pub(super) fn to_f64(n: u64) -> f64 {
    n as f64
}
