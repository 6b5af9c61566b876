//! Rows there and back, byte by byte, and what is no row.

use proptest::prelude::*;

use super::*;
use crate::ids::PageId;
use crate::schema::{Column, ColumnType, SchemaError};

fn column(of: ColumnType, nullable: bool) -> Column {
    Column { name: "c".into(), of, nullable }
}

fn schema(columns: &[(ColumnType, bool)]) -> Schema {
    Schema::new(columns.iter().map(|(of, nullable)| column(*of, *nullable)).collect()).unwrap()
}

#[test]
fn a_row_is_as_the_format_says() {
    let schema = schema(&[
        (ColumnType::Int, false),
        (ColumnType::String { max: 10 }, true),
        (ColumnType::SmallInt, true),
        (ColumnType::Binary { max: 1 << 20 }, false),
    ]);
    let long = LongValue { root: RowId { page: PageId::new(1, 2), slot: 3 }, len: 5000 };
    let values = [Value::Int(-2), Value::String("abc".into()), Value::Null, Value::Binary(vec![0; 5000])];
    check(&schema, &values).unwrap();
    let row = encode(&schema, &values, &[(3, long)]).unwrap();
    let expected = [
        &[0, 4, 10, 0][..],              // tag, columns, end of the fixed part
        &[0xfe, 0xff, 0xff, 0xff, 0, 0], // -2, nothing
        &[0b0100],                       // the third is null
        &[18, 0, 34, 0x80],              // ends; the second lies elsewhere
        b"abc",
        &[2, 0, 0, 0, 1, 0, 3, 0, 0x88, 0x13, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(row, expected);
    let mut fields: Vec<_> = values.iter().cloned().map(Field::Here).collect();
    fields[3] = Field::Elsewhere(long);
    assert_eq!(decode(&schema, &row), Some(fields));
}

#[test]
fn what_no_table_can_have_is_refused() {
    let refused = |columns: &[(ColumnType, bool)]| {
        Schema::new(columns.iter().map(|(of, nullable)| column(*of, *nullable)).collect()).unwrap_err()
    };
    assert_eq!(refused(&[]), SchemaError::Columns(0));
    assert_eq!(refused(&[(ColumnType::Int, false); 256]), SchemaError::Columns(256));
    assert_eq!(refused(&[(ColumnType::Decimal { precision: 39, scale: 0 }, false)]), SchemaError::OutOfRange(0));
    assert_eq!(refused(&[(ColumnType::Binary { max: (1 << 20) + 1 }, false)]), SchemaError::OutOfRange(0));

    let schema = schema(&[(ColumnType::Int, false), (ColumnType::Decimal { precision: 3, scale: 1 }, true)]);
    let check = |values: &[Value]| check(&schema, values).unwrap_err();
    assert_eq!(check(&[Value::Int(1)]), RowError::Count { values: 1, columns: 2 });
    assert_eq!(check(&[Value::Null, Value::Null]), RowError::Null(0));
    assert_eq!(check(&[Value::BigInt(1), Value::Null]), RowError::Value(0));
    assert_eq!(check(&[Value::Int(1), Value::Decimal(1000)]), RowError::Value(1));
}

#[test]
fn the_longest_values_go_elsewhere() {
    let schema = schema(&[(ColumnType::String { max: 1 << 20 }, true); 3]);
    let values = |lens: [usize; 3]| lens.map(|len| Value::String("x".repeat(len)));
    assert_eq!(choose_long(&schema, &values([2000, 3000, 2900])), Ok(vec![]));
    assert_eq!(choose_long(&schema, &values([2000, 4000, 3000])), Ok(vec![1]));
    assert_eq!(choose_long(&schema, &values([9000, 5000, 4000])), Ok(vec![0, 1]));
}

fn value() -> impl Strategy<Value = (ColumnType, Value)> {
    prop_oneof![
        any::<bool>().prop_map(|v| (ColumnType::Bool, Value::Bool(v))),
        any::<i16>().prop_map(|v| (ColumnType::SmallInt, Value::SmallInt(v))),
        any::<i32>().prop_map(|v| (ColumnType::Int, Value::Int(v))),
        any::<i64>().prop_map(|v| (ColumnType::BigInt, Value::BigInt(v))),
        (-1e300..1e300).prop_map(|v| (ColumnType::Float, Value::Float(v))),
        any::<i64>().prop_map(|v| (ColumnType::Decimal { precision: 38, scale: 4 }, Value::Decimal(v.into()))),
        any::<i32>().prop_map(|v| (ColumnType::Date, Value::Date(v))),
        any::<i64>().prop_map(|v| (ColumnType::Time, Value::Time(v))),
        any::<i64>().prop_map(|v| (ColumnType::Timestamp, Value::Timestamp(v))),
        ".{0,20}".prop_map(|v| (ColumnType::String { max: 100 }, Value::String(v))),
        prop::collection::vec(any::<u8>(), 0..60).prop_map(|v| (ColumnType::Binary { max: 100 }, Value::Binary(v))),
    ]
}

proptest! {
    #[test]
    fn rows_and_schemas_come_back(columns in prop::collection::vec((value(), any::<bool>(), any::<bool>()), 1..30)) {
        let of: Vec<_> = columns.iter().map(|((of, _), nullable, _)| (*of, *nullable)).collect();
        let schema = schema(&of);
        let values: Vec<_> = columns
            .into_iter()
            .map(|((_, value), nullable, null)| if nullable && null { Value::Null } else { value })
            .collect();
        check(&schema, &values).unwrap();
        let row = encode(&schema, &values, &[]).unwrap();
        let fields: Vec<_> = values.into_iter().map(Field::Here).collect();
        prop_assert_eq!(decode(&schema, &row), Some(fields.clone()));
        let mut padded = row.clone();
        padded.extend_from_slice(&[0; 7]);
        prop_assert_eq!(decode(&schema, &padded), Some(fields));
        prop_assert_eq!(Schema::decode(&schema.encode()), Some(schema.clone()));
        for len in 0..row.len() {
            // Whatever is left of a row: no panic.
            let _ = decode(&schema, &row[..len]);
        }
    }
}
