//! The guard table in memory: all guards of all members, and which table blocks are newer here than on the devices.

use crate::format::guard::{GUARDED_CHUNKS, GUARDS, Guard};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry};

#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
struct Status {
    dirty: bool,
    /// No holder is left that could tell: blocks are taken as they are.
    unknown: bool,
    sequence: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    /// Table blocks of each member.
    tables: usize,
    guards: Vec<[Guard; GUARDS]>,
    status: Vec<Status>,
}

impl Table {
    pub(super) fn new(geometry: Geometry, chunks: u64) -> Self {
        let tables = usize::try_from(chunks.div_ceil(GUARDED_CHUNKS)).expect("a table that fits memory");
        let all = tables * geometry.members();
        Self { tables, guards: vec![[Guard::OF_ZEROS; GUARDS]; all], status: vec![Status::default(); all] }
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
            self.status[table].dirty = true;
        }
    }

    /// Table blocks of each member.
    pub(super) fn tables(&self) -> usize {
        self.tables
    }

    /// A table block that must be written, as (member, table).
    pub(super) fn next_dirty(&self) -> Option<(usize, usize)> {
        let at = self.status.iter().position(|status| status.dirty && !status.unknown)?;
        Some((at / self.tables, at % self.tables))
    }

    /// The guards to be written now, and the sequence to write them with.
    pub(super) fn clean(&mut self, member: usize, table: usize) -> (u64, &[Guard; GUARDS]) {
        let at = member * self.tables + table;
        self.status[at].dirty = false;
        self.status[at].sequence += 1;
        (self.status[at].sequence, &self.guards[at])
    }

    pub(super) fn load(&mut self, member: usize, table: usize, sequence: u64, guards: &[Guard; GUARDS]) {
        let at = member * self.tables + table;
        self.guards[at] = *guards;
        self.status[at] = Status { dirty: false, unknown: false, sequence };
    }

    pub(super) fn forget(&mut self, member: usize, table: usize) {
        self.status[member * self.tables + table].unknown = true;
    }

    fn place(&self, member: usize, stripe: u64, row: u64) -> (usize, usize) {
        debug_assert!(row < CHUNK_BLOCKS);
        let (table, first) = crate::format::guard::index(stripe);
        let (table, row) = (usize::try_from(table), usize::try_from(row));
        (member * self.tables + table.expect("it fits"), first + row.expect("below 16"))
    }
}
