//! What a start needs of a machine, point by point: found good, or with what to do about it. `dyad doctor` shows all of it; a director that starts makes
//! sure of what is about itself, and refuses to start with anything bad.
//!
//! Nothing is changed by looking. A device that a running director has is not touched.
//!
//! Rooms: `machine` what any array needs of the host; `parts` what one configuration needs: its directors, devices, registry and ports.

mod machine;
mod parts;

use std::fmt;

use serde::Serialize;

use crate::config::{Config, Director};

pub use self::machine::Host;
pub(crate) use self::machine::reactors;

/// How bad it is.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and not as well, or not always.
    Warning,
    /// It does not work.
    Bad,
}

/// One point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub point: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Finding {
    fn good(point: impl Into<String>, found: impl Into<String>) -> Self {
        Self { point: point.into(), verdict: Verdict::Good, found: found.into(), mend: None }
    }

    fn warning(point: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { point: point.into(), verdict: Verdict::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn bad(point: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { point: point.into(), verdict: Verdict::Bad, found: found.into(), mend: Some(mend.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "good   ",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD    ",
        };
        write!(f, "{verdict}  {:22} {}", self.point, self.found)?;
        self.mend.as_ref().map_or(Ok(()), |mend| write!(f, "\n{:33}{mend}", ""))
    }
}

/// Everything, on this machine. Without a configuration: what any array needs.
#[must_use]
pub fn examine(config: Option<&Config>) -> Vec<Finding> {
    let host = Host::of_this_machine();
    let Some(config) = config else { return machine::any(&host) };
    let directors: Vec<&Director> = config.directors.iter().collect();
    let mut findings = machine::array(&host, config, &directors);
    findings.push(parts::registry(config));
    findings.extend(directors.iter().flat_map(|director| parts::director(config, director)));
    findings
}

/// What one director must not start without; the devices and the registry it reaches itself.
#[must_use]
pub fn before_start(config: &Config, director: &Director) -> Vec<Finding> {
    let mut findings = machine::array(&Host::of_this_machine(), config, &[director]);
    findings.push(parts::matrix(director));
    findings
}

#[cfg(test)]
mod tests;
