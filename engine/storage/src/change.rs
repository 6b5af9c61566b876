//! What a log record says about one page: enough to do it again, and, for rows, to undo it. `FORMAT.md`, "Changes".

use crate::codec::{Fields, put_run};
use crate::ids::{ObjectId, PageId};
use crate::page::{Page, PageKind, Stamp};
use crate::row::{self, RowKind};

/// A change of one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The page is made anew, empty.
    Format {
        /// What for.
        kind: PageKind,
        /// For whom.
        owner: ObjectId,
    },
    /// What the page was before the changes that follow: the first time that it is changed since it was written. A page that
    /// was torn is mended with it.
    Image {
        /// Up to the end of the data.
        low: Vec<u8>,
        /// From the last slot on.
        slots: Vec<u8>,
    },
    /// A row is put into an empty slot.
    Insert {
        /// Which.
        slot: u16,
        /// The row.
        row: Vec<u8>,
    },
    /// A slot is emptied.
    Remove {
        /// Which.
        slot: u16,
    },
    /// A row takes the place of another one.
    Replace {
        /// Where.
        slot: u16,
        /// What was there; empty in records that are never undone.
        old: Vec<u8>,
        /// What is there now.
        new: Vec<u8>,
    },
    /// A row is marked as deleted, or that is taken back.
    Mark {
        /// Which.
        slot: u16,
        /// Deleted.
        ghost: bool,
    },
    /// Bytes of a page without rows.
    Bytes {
        /// From the start of the page.
        at: u16,
        /// What is there now.
        bytes: Vec<u8>,
    },
}

/// A change does not fit the page: it is not the page that the log speaks of.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the page is not what the log says")]
pub(crate) struct Mismatch;

impl Change {
    /// Whether it needs nothing of what the page was.
    #[must_use]
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Format { .. } | Self::Image { .. })
    }

    /// What undoes it; `None` for changes that are never undone.
    #[must_use]
    pub(crate) fn inverse(&self) -> Option<Self> {
        Some(match self {
            Self::Insert { slot, .. } => Self::Remove { slot: *slot },
            Self::Replace { slot, old, .. } => Self::Replace { slot: *slot, old: Vec::new(), new: old.clone() },
            Self::Mark { slot, ghost } => Self::Mark { slot: *slot, ghost: !ghost },
            Self::Format { .. } | Self::Image { .. } | Self::Remove { .. } | Self::Bytes { .. } => return None,
        })
    }

    /// Does it.
    ///
    /// # Errors
    /// [`Mismatch`]: the page was not changed.
    pub(crate) fn apply(&self, page: Page<'_>, name: PageId, stamp: Stamp) -> Result<(), Mismatch> {
        match self {
            Self::Format { kind, owner } => page.format(name, *kind, *owner, stamp),
            Self::Image { low, slots } => page.restore(low, slots),
            Self::Insert { slot, row } => {
                if page.row_place(*slot).is_some() {
                    return Err(Mismatch);
                }
                page.insert(*slot, row).map_err(|_| Mismatch)?;
            }
            Self::Remove { slot } => {
                page.row_place(*slot).ok_or(Mismatch)?;
                page.remove(*slot);
            }
            Self::Replace { slot, new, .. } => {
                page.row_place(*slot).ok_or(Mismatch)?;
                page.replace(*slot, new).map_err(|_| Mismatch)?;
            }
            Self::Mark { slot, ghost } => {
                let (at, _) = page.row_place(*slot).ok_or(Mismatch)?;
                page.write(at, &[row::with_ghost(page.u8_at(at), *ghost)]);
            }
            Self::Bytes { at, bytes } => page.write(usize::from(*at), bytes),
        }
        Ok(())
    }

    /// Bytes at the end of `target`.
    pub(crate) fn encode(&self, target: &mut Vec<u8>) {
        let code = |target: &mut Vec<u8>, code: u8, number: u16| {
            target.push(code);
            target.extend_from_slice(&number.to_le_bytes());
        };
        match self {
            Self::Format { kind, owner } => {
                code(target, 1, *kind as u16);
                target.extend_from_slice(&owner.0.to_le_bytes());
            }
            Self::Image { low, slots } => {
                code(target, 2, 0);
                put_run(target, low);
                put_run(target, slots);
            }
            Self::Insert { slot, row } => {
                code(target, 3, *slot);
                put_run(target, row);
            }
            Self::Remove { slot } => code(target, 4, *slot),
            Self::Replace { slot, old, new } => {
                code(target, 5, *slot);
                put_run(target, old);
                put_run(target, new);
            }
            Self::Mark { slot, ghost } => code(target, if *ghost { 6 } else { 7 }, *slot),
            Self::Bytes { at, bytes } => {
                code(target, 8, *at);
                put_run(target, bytes);
            }
        }
    }

    /// What [`Self::encode`] made; `None` if it is not that.
    pub(crate) fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (code, number) = (fields.u8()?, fields.u16()?);
        Some(match code {
            1 => Self::Format { kind: PageKind::from_code(number)?, owner: ObjectId(fields.u32()?) },
            2 => Self::Image { low: fields.run()?.to_vec(), slots: fields.run()?.to_vec() },
            3 => Self::Insert { slot: number, row: fields.run()?.to_vec() },
            4 => Self::Remove { slot: number },
            5 => Self::Replace { slot: number, old: fields.run()?.to_vec(), new: fields.run()?.to_vec() },
            6 | 7 => Self::Mark { slot: number, ghost: code == 6 },
            8 => Self::Bytes { at: number, bytes: fields.run()?.to_vec() },
            _ => return None,
        })
    }
}

/// What kind of row is in a slot, and whether it was deleted.
#[must_use]
pub(crate) fn row_in(page: Page<'_>, slot: u16) -> Option<(RowKind, bool)> {
    let (at, _) = page.row_place(slot)?;
    let tag = page.u8_at(at);
    Some((row::kind_of(tag)?, row::is_ghost(tag)))
}
