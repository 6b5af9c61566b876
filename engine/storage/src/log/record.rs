//! Log records. `FORMAT.md`, "Record".

use crate::change::Change;
use crate::codec::Fields;
use crate::ids::{Lsn, PageId, TransactionId};

/// Bytes in front of a record's content.
pub(crate) const RECORD_HEADER: usize = 32;
/// Bytes of a record at most: a few pages with their images, or a checkpoint of many dirty pages.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;

/// What a record is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Pages were changed, all or none of them: by a transaction, or (transaction zero) by the engine, for good.
    Update(Vec<(PageId, Change)>),
    /// Pages were changed back. What was to be undone next is the record at `undo_next`.
    Compensation {
        /// Zero: nothing is left.
        undo_next: Lsn,
        /// How.
        changes: Vec<(PageId, Change)>,
    },
    /// The transaction has happened.
    Commit,
    /// The transaction has not happened, and everything of it is undone.
    End,
    /// What was dirty and active.
    Checkpoint(Checkpoint),
}

/// What a checkpoint notes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Where the log ended when this was gathered.
    pub begin: Lsn,
    /// Transactions from here on were never used.
    pub next_transaction: u64,
    /// Pages that media may not have, and the first record of which they may miss something.
    pub dirty: Vec<(PageId, Lsn)>,
    /// Transactions that have not ended, and a place in the log before their first record.
    pub active: Vec<(TransactionId, Lsn)>,
}

/// A log record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whose.
    pub transaction: TransactionId,
    /// The record of the same transaction before it; zero if there is none.
    pub previous: Lsn,
    /// What it says.
    pub content: Content,
}

fn put_changes(bytes: &mut Vec<u8>, changes: &[(PageId, Change)]) {
    for (page, change) in changes {
        bytes.extend_from_slice(&page.pack().to_le_bytes());
        change.encode(bytes);
    }
}

fn changes(mut fields: Fields<'_>) -> Option<Vec<(PageId, Change)>> {
    let mut changes = Vec::new();
    while !fields.0.is_empty() {
        changes.push((PageId::unpack(fields.u64()?), Change::decode(&mut fields)?));
    }
    Some(changes)
}

impl Checkpoint {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let dirty = self.dirty.iter().map(|(page, lsn)| [page.pack(), lsn.0]);
        let active = self.active.iter().map(|(transaction, lsn)| [transaction.0, lsn.0]);
        let head = [[self.begin.0, self.next_transaction], [self.dirty.len() as u64, self.active.len() as u64]];
        for pair in head.into_iter().chain(dirty).chain(active) {
            bytes.extend(pair.iter().flat_map(|number| number.to_le_bytes()));
        }
    }

    fn decode(mut fields: Fields<'_>) -> Option<Self> {
        let [begin, next_transaction, dirty, active] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        let dirty =
            (0..dirty).map(|_| Some((PageId::unpack(fields.u64()?), Lsn(fields.u64()?)))).collect::<Option<_>>()?;
        let active =
            (0..active).map(|_| Some((TransactionId(fields.u64()?), Lsn(fields.u64()?)))).collect::<Option<_>>()?;
        Some(Self { begin: Lsn(begin), next_transaction, dirty, active })
    }
}

impl Record {
    /// Its bytes.
    ///
    /// # Panics
    /// If they are more than [`RECORD_BYTES_MAX`].
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_HEADER];
        let (code, undo_next) = match &self.content {
            Content::Update(changes) => {
                put_changes(&mut bytes, changes);
                (1, Lsn(0))
            }
            Content::Compensation { undo_next, changes } => {
                put_changes(&mut bytes, changes);
                (2, *undo_next)
            }
            Content::Commit => (3, Lsn(0)),
            Content::End => (4, Lsn(0)),
            Content::Checkpoint(checkpoint) => {
                checkpoint.encode(&mut bytes);
                (5, Lsn(0))
            }
        };
        assert!(bytes.len() <= RECORD_BYTES_MAX, "a record of {} bytes", bytes.len());
        let len = u32::try_from(bytes.len()).expect("within the most");
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4] = code;
        for (at, number) in [(8, self.transaction.0), (16, self.previous.0), (24, undo_next.0)] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The length that the first bytes of a record announce; `None` if it is none of a record.
    #[must_use]
    pub(crate) fn announced_len(bytes: [u8; 4]) -> Option<usize> {
        let len = usize::try_from(u32::from_le_bytes(bytes)).ok()?;
        (RECORD_HEADER..=RECORD_BYTES_MAX).contains(&len).then_some(len)
    }

    /// What [`Self::encode`] made; `None` if it is not that.
    #[must_use]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if Self::announced_len(fields.u32()?.to_le_bytes())? != bytes.len() {
            return None;
        }
        let code = fields.u32()?;
        let transaction = TransactionId(fields.u64()?);
        let (previous, undo_next) = (Lsn(fields.u64()?), Lsn(fields.u64()?));
        let content = match code {
            1 => Content::Update(changes(fields)?),
            2 => Content::Compensation { undo_next, changes: changes(fields)? },
            3 => Content::Commit,
            4 => Content::End,
            5 => Content::Checkpoint(Checkpoint::decode(fields)?),
            _ => return None,
        };
        Some(Self { transaction, previous, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectId;
    use crate::page::PageKind;

    fn records() -> Vec<Record> {
        let page = PageId::new(1, 2);
        let changes = vec![
            (page, Change::Image { low: vec![1; 70], slots: vec![2; 8] }),
            (page, Change::Insert { slot: 3, row: vec![4; 9] }),
            (page, Change::Remove { slot: 3 }),
            (page, Change::Replace { slot: 1, old: vec![5; 10], new: vec![6; 12] }),
            (page, Change::Mark { slot: 2, ghost: true }),
            (page, Change::Mark { slot: 2, ghost: false }),
            (PageId::new(0, 9), Change::Bytes { at: 99, bytes: vec![7; 3] }),
            (page, Change::Format { kind: PageKind::Iam, owner: ObjectId(17) }),
        ];
        let checkpoint = Checkpoint {
            begin: Lsn(9),
            next_transaction: 8,
            dirty: vec![(page, Lsn(7)), (PageId::new(0, 1), Lsn(6))],
            active: vec![(TransactionId(5), Lsn(4))],
        };
        [
            Content::Update(changes.clone()),
            Content::Compensation { undo_next: Lsn(77), changes },
            Content::Commit,
            Content::End,
            Content::Checkpoint(checkpoint),
        ]
        .map(|content| Record { transaction: TransactionId(21), previous: Lsn(20), content })
        .to_vec()
    }

    #[test]
    fn records_come_back_and_pieces_of_them_do_not() {
        for record in records() {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Some(record));
            for len in 0..bytes.len() {
                assert_eq!(Record::decode(&bytes[..len]), None, "{len} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn a_record_is_as_the_format_says() {
        let changes = vec![(PageId::new(2, 3), Change::Insert { slot: 4, row: vec![8, 9] })];
        let content = Content::Compensation { undo_next: Lsn(7), changes };
        let bytes = Record { transaction: TransactionId(5), previous: Lsn(6), content }.encode();
        let expected = [
            &[47, 0, 0, 0, 2, 0, 0, 0][..],
            &[5, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 0, 0, 0, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0],
            &[3, 0, 0, 0, 2, 0, 0, 0],
            &[3, 4, 0, 2, 0, 8, 9],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn what_is_undone_is_as_it_was() {
        for (_, change) in records()
            .into_iter()
            .filter_map(|record| match record.content {
                Content::Update(changes) => Some(changes),
                _ => None,
            })
            .flatten()
        {
            let undone = matches!(change, Change::Insert { .. } | Change::Replace { .. } | Change::Mark { .. });
            assert_eq!(change.inverse().is_some(), undone, "{change:?}");
        }
    }
}
