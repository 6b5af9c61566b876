//! The registry: the small, strongly consistent store of who owns what (DESIGN 5).
//!
//! Membership rests on one operation of it: of several directors that want to change the same record, exactly one wins. So the trait is small, and what it
//! promises is stated once, here, and tested once, by one suite (`conformance`) that every implementation passes.
//!
//! - [`FileRegistry`]: embedded, for the directors of one host: a directory.
//! - [`EtcdRegistry`]: for several hosts: an etcd cluster.
//! - [`ConfiguredRegistry`]: one of these, as the configuration says.
//! - [`FakeRegistry`]: for the simulator: latency, cuts, lost and repeated messages.
//!
//! Watch and lease need no operations of their own: a record that somebody keeps changing is a lease to whoever reads it (PROTOCOLS 4.4), and
//! reading again is a watch.

mod answer;
mod configured;
mod etcd;
mod fake;
mod file;
mod worker;

use std::fmt;
use std::future::Future;
use std::io;
use std::num::NonZeroU64;

pub use configured::{ConfiguredError, ConfiguredRegistry};
pub use etcd::{Endpoint, EndpointError, EtcdConfig, EtcdRegistry, StartError};
pub use fake::{FakeClient, FakeRegistry, Faults, Link, Timing};
pub use file::{FileRegistry, OpenError};

/// The longest key in bytes.
pub const KEY_BYTES_MAX: usize = 64;

/// The longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// The name of a record: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit; at most [`KEY_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Box<str>);

impl Key {
    /// The key of this name; `None` if it cannot be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
        (starts && plain && name.len() <= KEY_BYTES_MAX).then(|| Self(name.into()))
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells the values that one key has had apart. Later values have greater revisions, not necessarily the next one.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(NonZeroU64);

impl Revision {
    /// The revision with this number; `None` for zero.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0.get()
    }
}

/// A value and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Of this value.
    pub revision: Revision,
    /// The bytes.
    pub value: Vec<u8>,
}

/// How a compare-and-swap ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas {
    /// The value is ours, durably, with this revision.
    Won(Revision),
    /// The key did not have the expected revision; this is what it had (`None`: no value). **It may be our own value**, if the request arrived twice:
    /// values that have to be told apart carry a nonce.
    Lost(Option<Versioned>),
}

/// Why there is no answer.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer in time. A change may have been made, may still be made later, or never: read until it is known. While the key has the
    /// expected revision it is not known; once it has another one, the change was made or never will be.
    #[error("the registry did not answer: the outcome is unknown")]
    Unknown,
    /// Too many requests are waiting. Nothing was changed.
    #[error("too many requests to the registry are waiting")]
    Busy,
    /// The value is longer than [`VALUE_BYTES_MAX`]. Nothing was changed.
    #[error("the value is longer than {VALUE_BYTES_MAX} bytes")]
    TooLarge,
    /// The store has no room. Nothing was changed, nothing was lost.
    #[error("the registry's storage is full")]
    Full,
    /// What is stored fails its check. Nothing was changed, and nothing older is taken for it: an operator has to restore it.
    #[error("revision {} of the record is damaged: {}", .0.revision.number(), .0.why)]
    Corrupt(Damage),
    /// The storage did not do its part. Nothing was changed.
    #[error("the registry's storage failed: {0}")]
    Storage(io::ErrorKind),
}

/// A stored value that cannot be believed.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which revision.
    pub revision: Revision,
    /// How it shows.
    pub why: Corruption,
}

/// How damage shows.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// It does not begin like a record.
    #[error("it is not a record of Dyad's registry")]
    Magic,
    /// A format that this version does not read.
    #[error("format {0} is not known to this version")]
    Format(u16),
    /// It is shorter or longer than it says.
    #[error("its length is wrong")]
    Length,
    /// Its checksum does not match.
    #[error("its checksum is wrong")]
    Checksum,
    /// It was written for another key or revision.
    #[error("it belongs elsewhere")]
    Misplaced,
}

/// Access to the registry: a cheap handle; clones are the same client.
///
/// Implementations promise:
/// - **Atomic and in order of real time**: each operation takes effect at one moment between its call and its answer. Two that do not
///   overlap take effect in their order, whoever made them. So of several changes that expect the same revision at most one wins.
/// - **Durable**: what was won, or read, is not undone by a crash or loss of power.
/// - **Revisions** of a key grow with every change and are never used again. A request that comes late or twice finds its expected
///   revision gone: it cannot overwrite anything newer.
/// - **Honest about not knowing**: an answer that is not certain is [`RegistryError::Unknown`]. All other errors mean that nothing was changed.
/// - **Bounded**: values have [`VALUE_BYTES_MAX`] bytes at most; waiting for a network ends with `Unknown`. Whoever must not wait for a stuck local
///   disk sets a timer: dropping a future leaves its outcome as unknown as `Unknown` does.
/// - The reactor is never blocked: work is done elsewhere, and the answer wakes the task.
pub trait Registry: Clone + 'static {
    /// The value of the key, if it has one.
    ///
    /// # Errors
    /// [`RegistryError`].
    fn get(&self, key: &Key) -> impl Future<Output = Result<Option<Versioned>, RegistryError>>;

    /// Gives the key a value if its revision is `expected` (`None`: if it has no value).
    ///
    /// # Errors
    /// [`RegistryError`].
    fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> impl Future<Output = Result<Cas, RegistryError>>;
}

#[cfg(test)]
mod conformance;
