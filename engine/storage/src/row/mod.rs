//! The bytes of a row. `FORMAT.md`, "Row".

use crate::ids::RowId;
use crate::page::Page;
use crate::schema::{Fixed, Place, ROW_HEADER, Schema};
use crate::value::Value;

/// Most bytes of a row in a page; longer values are taken out of it.
pub(crate) const ROW_BYTES_MAX: usize = 8000;
/// Bytes of a row at least, so that a stub can take its place.
pub(crate) const ROW_BYTES_MIN: usize = STUB_BYTES;
/// Bytes of a stub.
pub(crate) const STUB_BYTES: usize = 9;
/// Bytes in front of a row that was moved: a tag, and where its stub is.
pub(crate) const MOVED_BYTES: usize = 9;
/// Bytes that stand for a value that lies elsewhere.
pub(crate) const LONG_BYTES: usize = 16;

/// Marks the end offset of a value that lies elsewhere.
const LONG: u16 = 0x8000;
const KIND_MASK: u8 = 0x07;
const GHOST: u8 = 0x08;

/// What a row in a page is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RowKind {
    /// Values of a table's columns.
    Data = 0,
    /// Says where the row is now.
    Stub = 1,
    /// A row that its stub points to.
    Moved = 2,
    /// A piece of a long value.
    Fragment = 3,
    /// The list of the pieces of a long value.
    Root = 4,
}

/// Why these values make no row of this table.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Not as many values as columns.
    #[error("{values} values for {columns} columns")]
    Count {
        /// Values.
        values: usize,
        /// Columns.
        columns: usize,
    },
    /// A column cannot hold its value: another type, too long, too many digits.
    #[error("column {0} cannot hold this value")]
    Value(usize),
    /// A column that must hold a value has none.
    #[error("column {0} must hold a value")]
    Null(usize),
    /// Even with its long values elsewhere it does not fit into a page.
    #[error("a row of {0} bytes; a page holds {ROW_BYTES_MAX}")]
    TooLarge(usize),
}

/// The tag and ghost bit of the row at `at`.
#[inline]
pub(crate) fn kind_of(tag: u8) -> Option<RowKind> {
    match tag & KIND_MASK {
        0 => Some(RowKind::Data),
        1 => Some(RowKind::Stub),
        2 => Some(RowKind::Moved),
        3 => Some(RowKind::Fragment),
        4 => Some(RowKind::Root),
        _ => None,
    }
}

/// Whether a row with this tag was deleted.
#[inline]
pub(crate) fn is_ghost(tag: u8) -> bool {
    tag & GHOST != 0
}

/// The tag with the mark of a deleted row set or not.
pub(crate) fn with_ghost(tag: u8, ghost: bool) -> u8 {
    if ghost { tag | GHOST } else { tag & !GHOST }
}

/// A value that lies elsewhere.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct LongValue {
    /// Its root, or its only piece.
    pub root: RowId,
    /// Its bytes.
    pub len: u32,
}

/// A value as a row has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Field {
    /// In the row.
    Here(Value),
    /// Elsewhere.
    Elsewhere(LongValue),
}

/// Checks values against the columns.
///
/// # Errors
/// [`RowError`], but for `TooLarge`.
pub(crate) fn check(schema: &Schema, values: &[Value]) -> Result<(), RowError> {
    let columns = schema.columns();
    if values.len() != columns.len() {
        return Err(RowError::Count { values: values.len(), columns: columns.len() });
    }
    for (index, (value, column)) in values.iter().zip(columns).enumerate() {
        match value {
            Value::Null if !column.nullable => return Err(RowError::Null(index)),
            Value::Null => {}
            value if !column.of.admits(value) => return Err(RowError::Value(index)),
            _ => {}
        }
    }
    Ok(())
}

fn variable_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::String(text) => Some(text.as_bytes()),
        Value::Binary(bytes) => Some(bytes),
        _ => None,
    }
}

/// Which columns' values must lie elsewhere so that the row fits into a page: the longest ones.
///
/// # Errors
/// [`RowError::TooLarge`].
pub(crate) fn choose_long(schema: &Schema, values: &[Value]) -> Result<Vec<usize>, RowError> {
    let mut lengths: Vec<_> =
        values.iter().enumerate().filter_map(|(column, value)| Some((variable_bytes(value)?.len(), column))).collect();
    let mut total = schema.variable_start() + lengths.iter().map(|(len, _)| len).sum::<usize>();
    lengths.sort_unstable();
    let mut long = Vec::new();
    while total > ROW_BYTES_MAX {
        match lengths.pop() {
            Some((len, column)) if len > LONG_BYTES => {
                total -= len - LONG_BYTES;
                long.push(column);
            }
            _ => return Err(RowError::TooLarge(total)),
        }
    }
    Ok(long)
}

/// The bytes of a row of checked values, of which those of `long` lie elsewhere.
///
/// # Errors
/// [`RowError::TooLarge`].
///
/// # Panics
/// If the values were not checked.
pub(crate) fn encode(schema: &Schema, values: &[Value], long: &[(usize, LongValue)]) -> Result<Vec<u8>, RowError> {
    let narrow = |value: usize| u16::try_from(value).map_err(|_| RowError::TooLarge(value));
    let fixed_end = schema.fixed_end();
    let mut row = vec![0; schema.variable_start()];
    row[0] = RowKind::Data as u8;
    row[1] = u8::try_from(values.len()).expect("at most 255 columns");
    row[2..4].copy_from_slice(&narrow(fixed_end)?.to_le_bytes());
    for (index, (value, place)) in values.iter().zip(schema.places()).enumerate() {
        if *value == Value::Null {
            row[fixed_end + index / 8] |= 1 << (index % 8);
        }
        match place {
            Place::Fixed(fixed) => put_fixed(&mut row[fixed.offset..], value),
            Place::Variable(number) => {
                let elsewhere = long.iter().find(|(column, _)| *column == index);
                if let Some((_, value)) = elsewhere {
                    row.extend_from_slice(&value.root.pack().to_le_bytes());
                    row.extend_from_slice(&u64::from(value.len).to_le_bytes());
                } else {
                    row.extend_from_slice(variable_bytes(value).unwrap_or_default());
                }
                let mark = if elsewhere.is_some() { LONG } else { 0 };
                let end = narrow(row.len())?.min(LONG - 1) | mark;
                let at = schema.variable_start() - 2 * (schema.variable_count() - number);
                row[at..at + 2].copy_from_slice(&end.to_le_bytes());
            }
        }
    }
    if row.len() > ROW_BYTES_MAX {
        return Err(RowError::TooLarge(row.len()));
    }
    row.resize(row.len().max(ROW_BYTES_MIN), 0);
    Ok(row)
}

fn put_fixed(target: &mut [u8], value: &Value) {
    let mut put = |bytes: &[u8]| target[..bytes.len()].copy_from_slice(bytes);
    match value {
        Value::Bool(value) => put(&[u8::from(*value)]),
        Value::SmallInt(value) => put(&value.to_le_bytes()),
        Value::Int(value) | Value::Date(value) => put(&value.to_le_bytes()),
        Value::BigInt(value) | Value::Time(value) | Value::Timestamp(value) => put(&value.to_le_bytes()),
        Value::Float(value) => put(&value.to_le_bytes()),
        Value::Decimal(value) => put(&value.to_le_bytes()),
        Value::Null | Value::String(_) | Value::Binary(_) => {}
    }
}

/// The fields of a row; `None` if the bytes are no row of this table.
#[must_use]
pub(crate) fn decode(schema: &Schema, row: &[u8]) -> Option<Vec<Field>> {
    use crate::schema::ColumnType as T;
    let fixed_end = schema.fixed_end();
    let head = [u8::try_from(schema.columns().len()).ok()?];
    if row.len() < schema.variable_start() || row[1..2] != head {
        return None;
    }
    let mut start = schema.variable_start();
    let mut fields = Vec::with_capacity(schema.columns().len());
    for (index, (column, place)) in schema.columns().iter().zip(schema.places()).enumerate() {
        let null = row[fixed_end + index / 8] & 1 << (index % 8) != 0;
        let field = match place {
            Place::Fixed(fixed) => {
                let bytes = &row[fixed.offset..];
                Field::Here(match column.of {
                    _ if null => Value::Null,
                    T::Bool => Value::Bool(bytes[0] != 0),
                    T::SmallInt => Value::SmallInt(i16::from_le_bytes(take(bytes)?)),
                    T::Int => Value::Int(i32::from_le_bytes(take(bytes)?)),
                    T::BigInt => Value::BigInt(i64::from_le_bytes(take(bytes)?)),
                    T::Float => Value::Float(f64::from_le_bytes(take(bytes)?)),
                    T::Decimal { .. } => Value::Decimal(i128::from_le_bytes(take(bytes)?)),
                    T::Date => Value::Date(i32::from_le_bytes(take(bytes)?)),
                    T::Time => Value::Time(i64::from_le_bytes(take(bytes)?)),
                    T::Timestamp => Value::Timestamp(i64::from_le_bytes(take(bytes)?)),
                    T::String { .. } | T::Binary { .. } => return None,
                })
            }
            Place::Variable(number) => {
                let at = schema.variable_start() - 2 * (schema.variable_count() - number);
                let end = u16::from_le_bytes(take(&row[at..])?);
                let bytes = row.get(start..usize::from(end & !LONG))?;
                start = usize::from(end & !LONG);
                match column.of {
                    _ if null => Field::Here(Value::Null),
                    _ if end & LONG != 0 => {
                        let len = u32::try_from(u64::from_le_bytes(take(bytes.get(8..)?)?)).ok()?;
                        Field::Elsewhere(LongValue { root: RowId::unpack(u64::from_le_bytes(take(bytes)?)), len })
                    }
                    T::String { .. } => Field::Here(Value::String(String::from_utf8(bytes.to_vec()).ok()?)),
                    _ => Field::Here(Value::Binary(bytes.to_vec())),
                }
            }
        };
        fields.push(field);
    }
    Some(fields)
}

fn take<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// A stub that points to `target`.
pub(crate) fn stub(target: RowId) -> [u8; STUB_BYTES] {
    pointer(RowKind::Stub, target)
}

/// A row that was moved away from `home`.
pub(crate) fn moved(home: RowId, row: &[u8]) -> Vec<u8> {
    let mut bytes = pointer(RowKind::Moved, home).to_vec();
    bytes.extend_from_slice(row);
    bytes
}

fn pointer(kind: RowKind, to: RowId) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = kind as u8;
    bytes[1..].copy_from_slice(&to.pack().to_le_bytes());
    bytes
}

/// Where a stub, or a row that was moved, points.
pub(crate) fn pointed_to(row: &[u8]) -> Option<RowId> {
    Some(RowId::unpack(u64::from_le_bytes(take(row.get(1..)?)?)))
}

/// A row of a table in its page, looked at in place.
#[derive(Copy, Clone)]
pub struct Row<'a> {
    page: &'a Page<'a>,
    at: usize,
    len: usize,
    id: RowId,
}

impl<'a> Row<'a> {
    /// The row in a slot, wherever its home is; `None` if there is none that was not deleted, or only a stub.
    #[inline(always)]
    pub fn in_slot(page: &'a Page<'a>, id: RowId) -> Option<Self> {
        let (at, len) = page.row_place(id.slot)?;
        let tag = page.u8_at(at);
        if tag == RowKind::Data as u8 {
            return Some(Self { page, at, len, id });
        }
        if tag != RowKind::Moved as u8 || len < MOVED_BYTES + ROW_HEADER {
            return None;
        }
        let home = RowId::unpack(page.u64_at(at + 1));
        Some(Self { page, at: at + MOVED_BYTES, len: len - MOVED_BYTES, id: home })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> RowId {
        self.id
    }

    #[inline]
    fn has(&self, column: Fixed) -> bool {
        column.null.is_none_or(|(byte, mask)| self.page.u8_at(self.at + byte) & mask == 0)
    }

    /// A column of type `Int` or `Date`.
    #[must_use]
    #[inline]
    pub fn int(&self, column: Fixed) -> Option<i32> {
        self.has(column).then(|| self.page.u32_at(self.at + column.offset).cast_signed())
    }

    /// A column of type `BigInt`, `Time` or `Timestamp`.
    #[must_use]
    #[inline]
    pub fn big_int(&self, column: Fixed) -> Option<i64> {
        self.has(column).then(|| self.page.u64_at(self.at + column.offset).cast_signed())
    }

    /// A column of type `Float`.
    #[must_use]
    #[inline]
    pub fn float(&self, column: Fixed) -> Option<f64> {
        self.has(column).then(|| f64::from_bits(self.page.u64_at(self.at + column.offset)))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.page.bytes(self.at, self.len)
    }
}

#[cfg(test)]
mod tests;
