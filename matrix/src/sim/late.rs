//! Bytes of a revoked write that land all the same: what shared memory cannot prevent (see [`crate::shm`], Revocation).
//!
//! Only with [`FabricConfig::late_writes`](super::FabricConfig): a node that was stopped in the middle of a write, whose
//! target was revoked meanwhile, lands the rest when it goes on. The write does not succeed, and until it is over the owner is
//! told that its memory is reachable.

use dyad_reactor::Rng;

use super::Inner;
use super::flow::reach;
use super::state::{Body, Connection, Landing, NodeIndex, Operation, Side, Source, State, Transfer, other};
use crate::memory::MemoryId;
use crate::pieces::Piece;
use crate::provider::Revocable;
use crate::regions::RemoteUse;

/// The rest of a write that its writer was stopped in.
pub(super) struct LateWrite {
    writer: NodeIndex,
    target: Piece,
    rest: Transfer,
}

impl Inner {
    /// A node stops moving bytes: some of its writes that are about to land are caught in the middle.
    pub(super) fn stop_in_the_middle(&self, state: &mut State, writer: NodeIndex) {
        if !self.config.late_writes {
            return;
        }
        let State { connections, nodes, rng, .. } = state;
        for connection in connections.values_mut() {
            for side in [0, 1] {
                let receiver = &connection.ends[other(side)];
                let (node, vi, from) = (receiver.node, receiver.vi, connection.ends[side].node);
                let Some(transfer) = first_write(connection, side).filter(|_| from == writer) else { continue };
                if transfer.landing == Landing::NotBegun
                    && rng.one_in(2)
                    && let Ok(target) = reach(&nodes[node], vi, transfer, RemoteUse::Write)
                {
                    let seed = rng.next_u64();
                    transfer.land_lines(&[target], seed, true);
                    transfer.landing = Landing::Torn(seed);
                }
            }
        }
    }

    /// Before `what` of `owner` is revoked: the writes into it whose writers are stopped in the middle.
    pub(super) fn keep_late_writes(&self, state: &mut State, owner: NodeIndex, what: Revocable) {
        if !self.config.late_writes {
            return;
        }
        let State { connections, nodes, late_writes, .. } = state;
        for connection in connections.values_mut() {
            for side in [0, 1] {
                let (receiver, writer) = (&connection.ends[other(side)], connection.ends[side].node);
                let (node, vi) = (receiver.node, receiver.vi);
                let Some(transfer) = first_write(connection, side) else { continue };
                let Operation::Write(address) = transfer.operation else { continue };
                let meant = match what {
                    Revocable::Vi(revoked) => revoked == vi,
                    Revocable::Region(revoked) => revoked == address.region,
                };
                let stopped = nodes[writer].stalled && matches!(transfer.landing, Landing::Torn(_));
                if node == owner
                    && meant
                    && stopped
                    && let Ok(target) = reach(&nodes[node], vi, transfer, RemoteUse::Write)
                {
                    transfer.source.take();
                    let Source::Taken(bytes) = &transfer.source else { continue };
                    let source = Source::Taken(bytes.clone());
                    let rest = Transfer { source, immediate: None, ..*transfer };
                    late_writes.push(LateWrite { writer, target, rest });
                }
            }
        }
    }

    /// A node goes on: what it was stopped in lands.
    pub(super) fn land_late_writes(&self, state: &mut State, writer: NodeIndex) {
        for late in state.late_writes.extract_if(.., |late| late.writer == writer) {
            if let Landing::Torn(seed) = late.rest.landing {
                late.rest.land_lines(&[late.target], seed, false);
                self.trace(|| format!("{} bytes land late, in revoked memory", late.rest.len));
            }
        }
    }
}

impl State {
    /// A node died: what it was stopped in lands no more.
    pub(super) fn forget_late_writes(&mut self, writer: NodeIndex) {
        self.late_writes.retain(|late| late.writer != writer);
    }

    /// Whether the rest of a write may land in the memory.
    pub(super) fn awaits_late_write(&self, memory: MemoryId) -> bool {
        self.late_writes.iter().any(|late| late.target.memory.id() == memory)
    }
}

fn first_write(connection: &mut Connection, side: Side) -> Option<&mut Transfer> {
    match &mut connection.flows[side].packets.front_mut()?.body {
        Body::Transfer(transfer) if matches!(transfer.operation, Operation::Write(_)) => Some(transfer),
        _ => None,
    }
}
