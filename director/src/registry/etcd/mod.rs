//! The registry for directors on several hosts: an etcd cluster (version 3.4 and later), through the HTTP/JSON gateway that each member has,
//! <https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>. A quorum of its members has a change on disk before it is won; reads
//! are linearizable, etcd's default.
//!
//! A record of the array `a` with key `k` is etcd's key `dyad/a/k`; its [`Revision`] is etcd's `mod_revision`, which
//! grows over the whole cluster and is never used again.
//!
//! What is not certain is `Unknown`: only a change that no member can have received is tried at another member. Members of different clusters under one
//! configuration are noticed before the first change goes to them.
//!
//! Not there: TLS and etcd's own users. The members belong on a network of their own.

mod cluster;
mod wire;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use self::cluster::Cluster;
use super::worker::Worker;
use super::{Cas, Key, Registry, RegistryError, Revision, Versioned};

/// Where a member of the cluster listens for clients: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

/// An endpoint that cannot be one.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Only plain HTTP is there.
    #[error("an etcd endpoint begins with `http://` (TLS is not supported yet)")]
    Scheme,
    /// A host and a port, and nothing behind them.
    #[error("an etcd endpoint is `http://HOST:PORT`")]
    Authority,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let authority = text.strip_prefix("http://").ok_or(EndpointError::Scheme)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or(EndpointError::Authority)?;
        // An address of version 6 stands in brackets.
        let plain = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let bracketed = plain.len() != host.len();
        let named = plain.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c) || (bracketed && c == ':'));
        if plain.is_empty() || !named || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(EndpointError::Authority);
        }
        Ok(Self(format!("http://{authority}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which cluster, and how patient to be with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its members, or some of them; requests go to the first that answers.
    pub endpoints: Vec<Endpoint>,
    /// The array's name: several arrays may use one cluster.
    pub array: Key,
    /// How long one member may take for one answer. Each request asks each member at most twice.
    pub timeout: Duration,
}

/// There is no client.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody could be asked.
    #[error("no etcd endpoint is configured")]
    NoEndpoints,
    /// The client's thread.
    #[error("the registry's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A client of an etcd cluster. Clones are the same client.
#[derive(Debug, Clone)]
pub struct EtcdRegistry(Worker);

impl EtcdRegistry {
    /// A client. Whether anybody answers shows with the first request.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: &EtcdConfig) -> Result<Self, StartError> {
        if config.endpoints.is_empty() {
            return Err(StartError::NoEndpoints);
        }
        Worker::start(Cluster::new(config)).map(Self).map_err(StartError::Thread)
    }
}

impl Registry for EtcdRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        self.0.get(key).await
    }

    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> Result<Cas, RegistryError> {
        self.0.compare_and_swap(key, expected, value).await
    }
}

#[cfg(test)]
mod tests;
