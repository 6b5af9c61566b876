//! What a column of a row can hold.

/// One value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// 16-bit integer.
    SmallInt(i16),
    /// 32-bit integer.
    Int(i32),
    /// 64-bit integer.
    BigInt(i64),
    /// IEEE 754 binary64.
    Float(f64),
    /// An exact number: this, divided by ten to the power of the column's scale.
    Decimal(i128),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
    /// Text.
    String(String),
    /// Bytes.
    Binary(Vec<u8>),
}
