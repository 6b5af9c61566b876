//! Commands that were applied, so that one that is sent again is not applied again (PROTOCOLS 9.1).
//!
//! Per host the table holds what is not older than the host's oldest outstanding command; the host's credits bound it.

use std::cell::{Cell, RefCell};

use dyad_reactor::collections::{FixedMap, fixed_map};

use crate::record::CommandId;

/// The outcomes that a director remembers.
pub struct OutcomeTable {
    hosts: RefCell<FixedMap<[u8; 16], Host>>,
    hosts_max: usize,
    per_host: usize,
    inserts: Cell<u64>,
}

struct Host {
    /// When it was last heard of, in inserts of the whole table.
    used: u64,
    oldest: u64,
    applied: Vec<(u64, u8)>,
}

impl OutcomeTable {
    /// A table for `hosts_max` hosts with `per_host` outstanding command parts each.
    #[must_use]
    pub fn new(hosts_max: usize, per_host: usize) -> Self {
        Self { hosts: RefCell::new(fixed_map(hosts_max)), hosts_max, per_host, inserts: Cell::new(0) }
    }

    /// Makes room for a host's outcomes. If there is none, the host that has been silent for longest is forgotten: home and
    /// partner hear of the same writes in the same order, so they forget the same one.
    fn admit(&self, origin: [u8; 16]) {
        let mut hosts = self.hosts.borrow_mut();
        if hosts.contains_key(&origin) {
            return;
        }
        if hosts.len() == self.hosts_max {
            let silent = hosts
                .iter()
                .min_by_key(|(_, host)| host.used)
                .map(|(origin, _)| *origin)
                .expect("a full table has hosts");
            hosts.remove(&silent);
        }
        hosts.insert(origin, Host { used: 0, oldest: 0, applied: Vec::with_capacity(self.per_host) });
    }

    /// The command was applied before.
    #[must_use]
    pub fn contains(&self, id: CommandId) -> bool {
        let hosts = self.hosts.borrow();
        hosts.get(&id.origin).is_some_and(|host| host.applied.contains(&(id.sequence, id.part)))
    }

    /// Remembers `id`; forgets what the host has acknowledged (everything before `oldest`). `false`: the host broke its credits.
    pub fn insert(&self, id: CommandId, oldest: u64) -> bool {
        self.admit(id.origin);
        self.inserts.set(self.inserts.get() + 1);
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.get_mut(&id.origin).expect("the host was admitted");
        host.used = self.inserts.get();
        if oldest > host.oldest {
            host.oldest = oldest;
            host.applied.retain(|(sequence, _)| *sequence >= oldest);
        }
        if id.sequence < host.oldest || host.applied.contains(&(id.sequence, id.part)) {
            return true;
        }
        if host.applied.len() == self.per_host {
            return false;
        }
        host.applied.push((id.sequence, id.part));
        true
    }

    /// Everything remembered, for a partner that joins.
    #[must_use]
    pub fn all(&self) -> Vec<CommandId> {
        let hosts = self.hosts.borrow();
        let ids = hosts.iter().flat_map(|(origin, host)| {
            host.applied.iter().map(|(sequence, part)| CommandId { origin: *origin, sequence: *sequence, part: *part })
        });
        ids.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_from_the_oldest_outstanding_on() {
        let table = OutcomeTable::new(1, 4);
        let id = |sequence| CommandId { origin: [1; 16], sequence, part: 0 };
        assert!((1..=4).all(|sequence| table.insert(id(sequence), 1)));
        assert!(!table.insert(id(5), 1), "more outstanding than the credits allow");
        assert!(table.insert(id(5), 3));
        assert!(!table.contains(id(2)) && table.contains(id(3)) && table.contains(id(5)));
        assert!(table.insert(CommandId { origin: [2; 16], sequence: 1, part: 0 }, 1));
        assert!(!table.contains(id(5)), "a table for one host forgot the other");
    }
}
