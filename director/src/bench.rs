//! The second half of `dyad bench frontend`: NVMe/TCP to a pair of real directors over a shelf, all on this machine.
//!
//! Reads are of blocks that are in the cache; writes are in the memory of both directors before they are answered.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use dyad_frontend::bench::{Subject, run_load};
use dyad_nvme::types::NamespaceId;
use dyad_reactor::figures::Row;
use dyad_reactor::reactor::max_spin_for;

use crate::layout::ArrayDir;
use crate::membership::DirectorId;
use crate::node::port::array_nqn;
use crate::trial::load::REACTORS;
use crate::trial::processes::{ARRAY, Processes};

/// Blocks that are used: less than the cache holds.
const BLOCKS: u64 = 1024;
/// The deepest queue: as deep as a director's queues are.
const DEPTH: u16 = 126;

/// Takes all figures in the empty directory `path`.
///
/// # Errors
/// What did not start, or failed, in words.
pub fn nvme_tcp(path: &Path, progress: impl FnMut(&str) + 'static) -> Result<Vec<Row>, String> {
    let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for listener in listeners {
        addresses.push(listener.and_then(|listener| listener.local_addr()).map_err(|error| error.to_string())?);
    }
    let mut processes = Processes::new(ArrayDir::new(path)).map_err(|error| error.to_string())?;
    for (me, address) in [DirectorId::A, DirectorId::B].into_iter().zip(&addresses) {
        processes = processes.with_arguments(me, [format!("--nvme-tcp={address}")]);
    }
    processes.start_whole().map_err(|error| error.to_string())?;
    let subject = Subject {
        prefix: "pair.",
        addresses,
        subsystem_nqn: array_nqn(ARRAY),
        namespace: NamespaceId(1),
        blocks: Some(BLOCKS),
        depth_max: DEPTH,
    };
    let figures = run_load(subject, max_spin_for(REACTORS), None, None, progress).map_err(|error| error.to_string())?;
    Ok(figures.rows())
}
