//! The guard table in memory: all guards of all members, and which table blocks are newer here than on the devices.

use crate::format::guard::{GUARDED_CHUNKS, GUARDS, Guard};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry};

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Status {
    /// It is in the list of those to be written.
    listed: bool,
    /// No holder could tell: blocks are taken as they are, and the table is not written, until it is learned anew.
    unknown: bool,
    sequence: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    /// Table blocks of each member.
    tables: usize,
    guards: Vec<[Guard; GUARDS]>,
    status: Vec<Status>,
    /// Those that must be written, each once.
    dirty: Vec<usize>,
    unknown: usize,
}

impl Table {
    /// Nothing is known.
    pub(super) fn new(geometry: Geometry, chunks: u64) -> Self {
        let tables = usize::try_from(chunks.div_ceil(GUARDED_CHUNKS)).expect("a table that fits memory");
        let all = tables * geometry.members();
        let status = Status { listed: false, unknown: true, sequence: 0 };
        Self {
            tables,
            guards: vec![[Guard::OF_ZEROS; GUARDS]; all],
            status: vec![status; all],
            dirty: Vec::with_capacity(all),
            unknown: all,
        }
    }

    /// The guard of a block, if it is known.
    pub(super) fn get(&self, member: usize, stripe: u64, row: u64) -> Option<Guard> {
        let (table, at) = self.place(member, stripe, row);
        (!self.status[table].unknown).then_some(self.guards[table][at])
    }

    pub(super) fn set(&mut self, member: usize, stripe: u64, row: u64, guard: Guard) {
        let (table, at) = self.place(member, stripe, row);
        if self.guards[table][at] != guard {
            self.guards[table][at] = guard;
            self.list(table);
        }
    }

    /// Table blocks of each member.
    pub(super) fn tables(&self) -> usize {
        self.tables
    }

    /// A table block that must be written, as (member, table). It counts as written from now on.
    pub(super) fn next_dirty(&mut self) -> Option<(usize, usize)> {
        let at = self.dirty.pop()?;
        self.status[at].listed = false;
        Some((at / self.tables, at % self.tables))
    }

    /// The guards to be written now, and the sequence to write them with.
    pub(super) fn for_write(&mut self, member: usize, table: usize) -> (u64, &[Guard; GUARDS]) {
        let at = member * self.tables + table;
        self.status[at].sequence += 1;
        (self.status[at].sequence, &self.guards[at])
    }

    /// A copy was read: it counts if it is the newest of them.
    pub(super) fn load(&mut self, member: usize, table: usize, sequence: u64, guards: &[Guard; GUARDS]) {
        let at = member * self.tables + table;
        if self.status[at].unknown || sequence > self.status[at].sequence {
            self.guards[at] = *guards;
            self.status[at].sequence = sequence;
            self.know(at);
        }
    }

    /// The first table block that nobody could read, as (member, table).
    pub(super) fn first_unknown(&self) -> Option<(usize, usize)> {
        if self.unknown == 0 {
            return None;
        }
        let at = self.status.iter().position(|status| status.unknown)?;
        Some((at / self.tables, at % self.tables))
    }

    /// All its guards were set anew.
    pub(super) fn learned(&mut self, member: usize, table: usize) {
        let at = member * self.tables + table;
        self.know(at);
        self.list(at);
    }

    /// It must be written again, though it did not change.
    pub(super) fn touch(&mut self, member: usize, table: usize) {
        self.list(member * self.tables + table);
    }

    fn know(&mut self, at: usize) {
        self.unknown -= usize::from(self.status[at].unknown);
        self.status[at].unknown = false;
    }

    fn list(&mut self, at: usize) {
        if !self.status[at].unknown && !std::mem::replace(&mut self.status[at].listed, true) {
            self.dirty.push(at);
        }
    }

    fn place(&self, member: usize, stripe: u64, row: u64) -> (usize, usize) {
        debug_assert!(row < CHUNK_BLOCKS);
        let (table, first) = crate::format::guard::index(stripe);
        let (table, row) = (usize::try_from(table), usize::try_from(row));
        (member * self.tables + table.expect("it fits"), first + row.expect("below 16"))
    }
}
