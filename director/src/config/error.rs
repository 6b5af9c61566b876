//! What can be wrong with a configuration, and where.

use std::io;
use std::path::PathBuf;

use super::{ArrayName, ByteSize, SizeError, Token};
use crate::registry::EndpointError;

/// The configuration cannot be used. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file, or it is no text.
    #[error("cannot read the configuration {}: {kind}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        kind: io::ErrorKind,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {why}", .path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What.
        why: Reason,
    },
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is no TOML, or a key is missing, unknown or of another type: the parser's words.
    #[error("{0}")]
    Syntax(String),
    /// Not [`ArrayName`].
    #[error(
        "an array's name has 1 to {} lower-case letters, digits and '-', and begins with a letter or digit",
        ArrayName::LEN_MAX
    )]
    Name,
    /// Not 16 bytes.
    #[error("a UUID is 32 hexadecimal digits, with or without '-'; make one with `uuidgen`")]
    Uuid,
    /// No size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Neither or both.
    #[error("[registry] has either `directory`, for directors on one host, or `etcd`, a list of endpoints")]
    Registry,
    /// No endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Two of them.
    #[error("{what} {id} is there twice")]
    Twice {
        /// What.
        what: &'static str,
        /// Which.
        id: String,
    },
    /// There is nothing to run.
    #[error("there is no {0}")]
    None(&'static str),
    /// A director names it.
    #[error("there is no pair {0}")]
    NoPair(u8),
    /// One director is none, and three are too many.
    #[error("pair {pair} has {directors} directors: a pair has two, each with `pair = {pair}`")]
    NotTwo {
        /// Which.
        pair: u8,
        /// How many it has.
        directors: usize,
    },
    /// A directory cannot decide between machines.
    #[error(
        "directors on several hosts ({first}, {other}) cannot share a directory as their registry: no machine may decide for the \
         other. Name an etcd cluster with a member on a third machine: etcd = [\"http://HOST:2379\", ...]"
    )]
    EmbeddedOnSeveralHosts {
        /// One.
        first: String,
        /// And another.
        other: String,
    },
    /// Shared memory, or a shelf's sockets, do not reach there.
    #[error(
        "directors {first} and {other} of pair {pair} are on different hosts: each needs `matrix = \"ADDRESS:PORT\"` that the other \
         reaches, and devices with PCI addresses"
    )]
    PairOnSeveralHosts {
        /// Which.
        pair: u8,
        /// One.
        first: u8,
        /// And the other.
        other: u8,
    },
    /// As many as a level needs.
    #[error("a pair has 2 to 16 devices, and director {director} has {devices}")]
    Devices {
        /// Whose.
        director: u8,
        /// How many.
        devices: usize,
    },
    /// Each director has its own controller to each device.
    #[error(
        "director {director} has {devices} devices and its partner has {partner}: each has its own way to every device"
    )]
    DevicesDiffer {
        /// Whose.
        director: u8,
        /// How many.
        devices: usize,
        /// How many its partner has.
        partner: usize,
    },
    /// A reactor reaches no files in a pair.
    #[error(
        "{0} is neither a PCI address (0000:01:00.0) nor a path to a shelf's socket (....sock): other devices cannot be fenced, so no pair can have them"
    )]
    DeviceAddress(String),
    /// No room for the partner.
    #[error("`mirror` ({mirror}) is to be at most half of `cache` ({cache}) with at least {least} of cache")]
    Memory {
        /// For the partner.
        mirror: ByteSize,
        /// In all.
        cache: ByteSize,
        /// The least.
        least: ByteSize,
    },
    /// A lease that ends before it is renewed.
    #[error(
        "`lease_ms` ({lease_ms}) is to be at least four times `heartbeat_ms` ({heartbeat_ms}), and that at least 1"
    )]
    Timing {
        /// The lease.
        lease_ms: u32,
        /// The heartbeat.
        heartbeat_ms: u32,
    },
    /// No address for a matrix.
    #[error(
        "{0} is no end of a matrix: a path to a socket (....sock), for one host, or ADDRESS:PORT, which the others reach"
    )]
    MatrixAddress(String),
    /// One speaks shared memory and the other TCP.
    #[error(
        "directors {first} and {other} of pair {pair} do not meet: `matrix` is a path for both, or ADDRESS:PORT for both"
    )]
    MatrixMixed {
        /// Which.
        pair: u8,
        /// One.
        first: u8,
        /// And the other.
        other: u8,
    },
    /// Anybody could be a director.
    #[error(
        "director {0}'s matrix is beyond loopback: give a `secret` under [matrix], or say `trusted_network = true` there"
    )]
    SecretMissing(u8),
    /// Too short for the matrix.
    #[error(
        "the matrix's secret has at least 32 printable characters and no spaces; make one with `openssl rand -hex 24`"
    )]
    Secret,
    /// Two cannot listen at one.
    #[error("{0} is used twice")]
    AddressTwice(String),
    /// Everybody could do everything.
    #[error("director {0}'s control plane listens beyond loopback: that needs a `token` under [control]")]
    TokenMissing(u8),
    /// Not [`Token`].
    #[error(
        "a token has at least {} printable characters and no spaces; make one with `openssl rand -hex 24`",
        Token::LEN_MIN
    )]
    Token,
    /// Hosts cannot be sent everywhere, or nowhere.
    #[error("hosts cannot be sent to {0}: `advertise` says which address and port they are to use")]
    Advertise(std::net::SocketAddr),
    /// There is nothing to advertise.
    #[error("`advertise` says where hosts find `nvme_tcp`, which is not there")]
    NothingToAdvertise,
    /// A name that could be none.
    #[error("a host's name is not empty")]
    Host,
    /// A shelf of no, or too many, devices.
    #[error("a shelf has 1 to 64 devices")]
    ShelfDevices,
}
