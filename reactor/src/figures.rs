//! What is measured and how it is reported: every figure several times, in turn with what it is compared with, and the
//! median of that (DESIGN 8).

use std::collections::BTreeMap;

/// How often everything is measured, in turn.
pub const ROUNDS: usize = 5;

/// One figure: the median of the rounds, with the least and the most.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured, as `shm.rtt.64.p50_us`.
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
pub struct Figures {
    samples: BTreeMap<String, (&'static str, Vec<f64>)>,
}

impl Figures {
    /// One more sample of a figure.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        self.samples.entry(name.into()).or_insert((unit, Vec::new())).1.push(value);
    }

    /// The same, for a time in nanoseconds that is reported in microseconds.
    pub fn add_micros(&mut self, name: impl Into<String>, nanos: u64) {
        self.add(name, "us", to_f64(nanos) / 1e3);
    }

    /// The median of the rounds, with the least and the most, in the order of their names.
    #[must_use]
    pub fn rows(self) -> Vec<Row> {
        let row = |(name, (unit, mut values)): (String, (&'static str, Vec<f64>))| {
            values.sort_by(f64::total_cmp);
            Row { name, value: values[values.len() / 2], unit, min: values[0], max: values[values.len() - 1] }
        };
        self.samples.into_iter().map(row).collect()
    }
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "figures are rounded anyway")]
#[must_use]
pub fn to_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_with_its_spread() {
        let mut figures = Figures::default();
        for nanos in [5000, 1000, 3000] {
            figures.add_micros("b", nanos);
        }
        figures.add("a", "1/s", 7.0);
        let row = |name: &str, value, unit, min, max| Row { name: name.into(), value, unit, min, max };
        assert_eq!(figures.rows(), [row("a", 7.0, "1/s", 7.0, 7.0), row("b", 3.0, "us", 1.0, 5.0)]);
    }
}
