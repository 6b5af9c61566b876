//! Columns of a table, and where each stands in a row.

use crate::codec::{Fields, put_run};
use crate::value::Value;

/// Most bytes of one value.
pub(crate) const VALUE_BYTES_MAX: u32 = 1 << 20;
/// Most columns of a table.
pub(crate) const COLUMNS_MAX: usize = 255;
/// Most digits of a decimal.
pub(crate) const PRECISION_MAX: u8 = 38;

/// Bytes in front of a row's fixed columns.
pub(crate) const ROW_HEADER: usize = 4;

/// What a column holds.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ColumnType {
    /// [`Value::Bool`]
    Bool,
    /// [`Value::SmallInt`]
    SmallInt,
    /// [`Value::Int`]
    Int,
    /// [`Value::BigInt`]
    BigInt,
    /// [`Value::Float`]
    Float,
    /// [`Value::Decimal`] of at most `precision` digits, `scale` of them behind the point.
    Decimal {
        /// 1 to 38.
        precision: u8,
        /// At most the precision.
        scale: u8,
    },
    /// [`Value::Date`]
    Date,
    /// [`Value::Time`]
    Time,
    /// [`Value::Timestamp`]
    Timestamp,
    /// [`Value::String`] of at most `max` bytes of UTF-8.
    String {
        /// 1 to 1 MiB.
        max: u32,
    },
    /// [`Value::Binary`] of at most `max` bytes.
    Binary {
        /// 1 to 1 MiB.
        max: u32,
    },
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub of: ColumnType,
    /// Whether it may hold nothing.
    pub nullable: bool,
}

/// Why there is no such table.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// No columns, or too many.
    #[error("{0} columns; a table has 1 to {COLUMNS_MAX}")]
    Columns(usize),
    /// A length, precision or scale that no column can have.
    #[error("column {0} has a length, precision or scale that is out of range")]
    OutOfRange(usize),
    /// The fixed columns alone are longer than a row may be.
    #[error("the fixed columns are longer than a row")]
    TooLong,
}

/// Where a column stands.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Fixed(Fixed),
    /// The how-maniest variable one.
    Variable(usize),
}

/// Where a column of fixed length stands in every row.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// Bytes from the start of the row.
    pub(crate) offset: usize,
    /// Its bit in the null bitmap, if it may hold nothing: byte from the start of the row, and mask.
    pub(crate) null: Option<(usize, u8)>,
}

/// The columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    columns: Vec<Column>,
    places: Vec<Place>,
    fixed_end: usize,
    variable: usize,
}

impl ColumnType {
    /// Bytes of a value, if all have the same number.
    #[must_use]
    pub fn fixed_len(self) -> Option<usize> {
        match self {
            Self::Bool => Some(1),
            Self::SmallInt => Some(2),
            Self::Int | Self::Date => Some(4),
            Self::BigInt | Self::Float | Self::Time | Self::Timestamp => Some(8),
            Self::Decimal { .. } => Some(16),
            Self::String { .. } | Self::Binary { .. } => None,
        }
    }

    fn is_possible(self) -> bool {
        match self {
            Self::Decimal { precision, scale } => (1..=PRECISION_MAX).contains(&precision) && scale <= precision,
            Self::String { max } | Self::Binary { max } => (1..=VALUE_BYTES_MAX).contains(&max),
            _ => true,
        }
    }

    /// Whether `value` may stand in such a column; nothing may not.
    #[must_use]
    pub fn admits(self, value: &Value) -> bool {
        let fits = |len: usize, max: u32| u32::try_from(len).is_ok_and(|len| len <= max);
        match (self, value) {
            (Self::Bool, Value::Bool(_))
            | (Self::SmallInt, Value::SmallInt(_))
            | (Self::Int, Value::Int(_))
            | (Self::BigInt, Value::BigInt(_))
            | (Self::Float, Value::Float(_))
            | (Self::Date, Value::Date(_))
            | (Self::Time, Value::Time(_))
            | (Self::Timestamp, Value::Timestamp(_)) => true,
            (Self::Decimal { precision, .. }, Value::Decimal(digits)) => {
                digits.unsigned_abs() < 10_u128.pow(u32::from(precision))
            }
            (Self::String { max }, Value::String(text)) => fits(text.len(), max),
            (Self::Binary { max }, Value::Binary(bytes)) => fits(bytes.len(), max),
            _ => false,
        }
    }

    fn encode(self) -> [u8; 5] {
        let (code, [a, b, c, d]) = match self {
            Self::Bool => (1, [0; 4]),
            Self::SmallInt => (2, [0; 4]),
            Self::Int => (3, [0; 4]),
            Self::BigInt => (4, [0; 4]),
            Self::Float => (5, [0; 4]),
            Self::Decimal { precision, scale } => (6, [precision, scale, 0, 0]),
            Self::Date => (7, [0; 4]),
            Self::Time => (8, [0; 4]),
            Self::Timestamp => (9, [0; 4]),
            Self::String { max } => (10, max.to_le_bytes()),
            Self::Binary { max } => (11, max.to_le_bytes()),
        };
        [code, a, b, c, d]
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (code, detail) = (fields.u8()?, fields.u32()?);
        let [precision, scale, ..] = detail.to_le_bytes();
        Some(match code {
            1 => Self::Bool,
            2 => Self::SmallInt,
            3 => Self::Int,
            4 => Self::BigInt,
            5 => Self::Float,
            6 => Self::Decimal { precision, scale },
            7 => Self::Date,
            8 => Self::Time,
            9 => Self::Timestamp,
            10 => Self::String { max: detail },
            11 => Self::Binary { max: detail },
            _ => return None,
        })
    }
}

impl Schema {
    /// A table of these columns.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn new(columns: Vec<Column>) -> Result<Self, SchemaError> {
        if columns.is_empty() || columns.len() > COLUMNS_MAX {
            return Err(SchemaError::Columns(columns.len()));
        }
        if let Some(bad) = columns.iter().position(|column| !column.of.is_possible()) {
            return Err(SchemaError::OutOfRange(bad));
        }
        let fixed_end = ROW_HEADER + columns.iter().filter_map(|column| column.of.fixed_len()).sum::<usize>();
        let (mut offset, mut variable) = (ROW_HEADER, 0);
        let mut places = Vec::with_capacity(columns.len());
        for (index, column) in columns.iter().enumerate() {
            if let Some(len) = column.of.fixed_len() {
                let null = column.nullable.then_some((fixed_end + index / 8, 1 << (index % 8)));
                places.push(Place::Fixed(Fixed { offset, null }));
                offset += len;
            } else {
                places.push(Place::Variable(variable));
                variable += 1;
            }
        }
        let schema = Self { columns, places, fixed_end, variable };
        // Every variable column may take part of a row that lies elsewhere: what is left must fit.
        let least = schema.variable_start() + schema.variable * (2 + crate::row::LONG_BYTES);
        if least > crate::row::ROW_BYTES_MAX { Err(SchemaError::TooLong) } else { Ok(schema) }
    }

    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Where a column of fixed length stands in every row.
    #[must_use]
    pub fn fixed(&self, column: usize) -> Option<Fixed> {
        match self.places.get(column)? {
            Place::Fixed(fixed) => Some(*fixed),
            Place::Variable(_) => None,
        }
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(crate) fn fixed_end(&self) -> usize {
        self.fixed_end
    }

    pub(crate) fn variable_count(&self) -> usize {
        self.variable
    }

    /// Bytes of a row in front of the values of its variable columns, their end offsets included.
    pub(crate) fn variable_start(&self) -> usize {
        self.fixed_end + self.columns.len().div_ceil(8) + 2 * self.variable
    }

    /// As the catalog keeps it. `FORMAT.md`, "Catalog".
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for column in &self.columns {
            bytes.extend_from_slice(&column.of.encode());
            bytes.push(u8::from(column.nullable));
            put_run(&mut bytes, column.name.as_bytes());
        }
        bytes
    }

    /// What [`Self::encode`] made; `None` if it is not that.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let mut columns = Vec::new();
        while !fields.0.is_empty() {
            let of = ColumnType::decode(&mut fields)?;
            let nullable = fields.u8()? == 1;
            let name = String::from_utf8(fields.run()?.to_vec()).ok()?;
            columns.push(Column { name, of, nullable });
        }
        Self::new(columns).ok()
    }
}
