//! What the engine does when nothing goes wrong, and what it refuses.

use std::sync::Arc;

use dyad_host::FakeVolume;
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool};
use dyad_nvme::types::BlockCount;
use dyad_reactor::SeededRng;
use dyad_storage::{
    Column, ColumnType, Damage, Database, Durability, OpenError, Options, PAGE_BYTES, RowError, RowId, Schema,
    SchemaError, Server, StorageError, Table, Value,
};

use super::world::{Machine, Shape, Volumes, schema, table};

const SHAPE: Shape = Shape {
    files: &[64],
    log_blocks: 1024,
    buffers: 64,
    options: Options { durability: Durability::Media, read_ahead: 32 },
    elsewhere: false,
};

fn row(key: i32, note: usize) -> Vec<Value> {
    vec![Value::Int(key), Value::BigInt(i64::from(key) * 3), Value::Binary(vec![key.to_le_bytes()[0]; note])]
}

/// Inserts rows until there are `count` of them, or one is refused.
async fn fill(database: &Database, table: &Table, count: i32, note: usize) -> Result<Vec<RowId>, StorageError> {
    let mut rows = Vec::new();
    for first in (0..count).step_by(20) {
        let mut transaction = database.begin();
        for key in first..count.min(first + 20) {
            match table.insert(&mut transaction, &row(key, note)).await {
                Ok(id) => rows.push(id),
                Err(error) => {
                    transaction.commit().await?;
                    return if error == StorageError::Full { Ok(rows) } else { Err(error) };
                }
            }
        }
        transaction.commit().await?;
    }
    Ok(rows)
}

/// A machine with a new database, and whatever `task` does with it.
fn fresh<T: 'static, F: Future<Output = T> + 'static>(
    shape: Shape,
    task: impl FnOnce(Arc<Database>, Arc<Table>) -> F + 'static,
) -> (Volumes, T) {
    let volumes = Volumes::new(&shape);
    let mut machine = Machine::new(shape, 1);
    let start = machine.start(&volumes, true);
    let output = machine.run(async move {
        let database = start.await.expect("made");
        let table = table(&database).await;
        let output = task(database.clone(), table).await;
        database.close().await.expect("closed");
        output
    });
    (volumes, output.expect("nothing hinders it"))
}

#[test]
fn an_extent_is_read_with_one_command_into_eight_frames_and_never_copied() {
    let (volumes, rows) =
        fresh(SHAPE, |database, table| async move { fill(&database, &table, 400, 900).await.unwrap().len() });
    assert_eq!(rows, 400);
    let shape = Shape { buffers: 256, ..SHAPE };
    let mut machine = Machine::new(shape, 2);
    let start = machine.start(&volumes, false);
    let memory = machine.memories.borrow()[0].clone();
    let medium = volumes.data[0].clone();
    machine
        .run(async move {
            let database = start.await.unwrap();
            let table = table(&database).await;
            let mut scan = table.scan(32).await.unwrap();
            let (before, commands, frames) =
                (memory.copied_bytes(), medium.reads.get(), medium.read_frames.borrow().len());
            let (mut sum, mut pages) = (0, 0_u64);
            let balance = table.schema().fixed(1).unwrap();
            while let Some(page) = scan.next().await.unwrap() {
                pages += 1;
                sum += page.rows().iter().filter_map(|row| row.big_int(balance)).sum::<i64>();
            }
            assert_eq!(sum, (0..400).map(|key| key * 3).sum::<i64>());
            let blocks: usize = medium.read_frames.borrow()[frames..].iter().sum();
            let extents = medium.read_frames.borrow()[frames..].iter().filter(|frames| **frames == 16).count() as u64;
            assert!(pages > 48 && extents >= (pages - 8 - 8) / 8, "{pages} pages, {extents} commands of eight frames");
            assert!(medium.reads.get() - commands <= extents + 9, "the rest are single pages");
            // The volume of this test copies what it reads into the frames. Nobody else copied anything.
            assert_eq!(memory.copied_bytes() - before, (blocks * FRAME_BYTES) as u64);
        })
        .unwrap();
}

#[test]
fn rows_of_every_kind_come_back_after_reopening_wherever_they_moved() {
    let long = |byte: u8, len: usize| Value::Binary(vec![byte; len]);
    let (volumes, (rows, moved)) = fresh(SHAPE, move |database, table| async move {
        let mut transaction = database.begin();
        let mut rows = Vec::new();
        for (key, len) in [0, 1, 100, 7000, 9000, 100_000, 1 << 20].into_iter().enumerate() {
            let values = vec![Value::Int(i32::try_from(key).unwrap()), Value::Null, long(7, len)];
            rows.push((table.insert(&mut transaction, &values).await.unwrap(), values));
        }
        transaction.commit().await.unwrap();
        // A full page, and a row on it that grows.
        let small = fill(&database, &table, 300, 20).await.unwrap();
        let mut transaction = database.begin();
        let mut moved = Vec::new();
        for (id, len) in small.iter().step_by(40).zip([500, 3000, 6000, 200_000, 10].into_iter().cycle()) {
            for len in [len, len + 900, 30] {
                let values = vec![Value::Int(1), Value::BigInt(5), long(9, len)];
                table.update(&mut transaction, *id, &values).await.unwrap();
                assert_eq!(table.get(*id).await.unwrap(), values);
            }
            let values = vec![Value::Int(1), Value::BigInt(5), long(8, len)];
            table.update(&mut transaction, *id, &values).await.unwrap();
            moved.push((*id, values));
        }
        table.delete(&mut transaction, small[1]).await.unwrap();
        assert_eq!(table.get(small[1]).await, Err(StorageError::NoRow(small[1])));
        transaction.commit().await.unwrap();
        (rows, moved)
    });
    let mut machine = Machine::new(SHAPE, 3);
    let start = machine.start(&volumes, false);
    machine
        .run(async move {
            let database = start.await.unwrap();
            assert_eq!(database.tables().await.unwrap(), ["accounts"]);
            let table = database.table("accounts").await.unwrap();
            assert_eq!(table.schema(), &schema());
            let all = table.rows().await.unwrap();
            assert_eq!(all.len(), 7 + 300 - 1);
            for (id, values) in rows.iter().chain(&moved) {
                assert_eq!(&table.get(*id).await.unwrap(), values);
                assert_eq!(all.iter().filter(|(other, _)| other == id).count(), 1, "a scan sees {id} once");
            }
        })
        .unwrap();
}

#[test]
fn a_row_belongs_to_who_changed_it_until_that_ends() {
    fresh(SHAPE, |database, table| async move {
        let row = fill(&database, &table, 1, 10).await.unwrap()[0];
        let (mut one, mut two) = (database.begin(), database.begin());
        table.delete(&mut one, row).await.unwrap();
        assert_eq!(table.delete(&mut two, row).await, Err(StorageError::Locked(row)));
        one.rollback().await.unwrap();
        table.update(&mut two, row, &[Value::Int(5), Value::Null, Value::Binary(vec![])]).await.unwrap();
        two.commit().await.unwrap();
        assert_eq!(table.get(row).await.unwrap()[0], Value::Int(5));
    });
}

#[test]
fn a_full_volume_refuses_rows_and_keeps_the_others_and_room_comes_back() {
    let shape = Shape { files: &[6, 10], ..SHAPE };
    let (volumes, count) = fresh(shape, |database, table| async move {
        let rows = fill(&database, &table, 10_000, 2000).await.unwrap();
        let mut transaction = database.begin();
        assert_eq!(table.insert(&mut transaction, &row(1, 200_000)).await, Err(StorageError::Full), "nor a long one");
        for id in &rows[..40] {
            table.delete(&mut transaction, *id).await.unwrap();
        }
        transaction.commit().await.unwrap();
        let again = fill(&database, &table, 30, 2000).await.unwrap();
        assert_eq!(again.len(), 30, "where the deleted ones were");
        rows.len() - 40 + 30
    });
    let pages = (6 + 10 - 2) * 8;
    assert!(count > pages * 3 - 60, "{count} rows of 2 KB in {pages} pages");
    let mut machine = Machine::new(shape, 4);
    let start = machine.start(&volumes, false);
    let found = machine.run(async move {
        let database = start.await.unwrap();
        table(&database).await.rows().await.unwrap().len()
    });
    assert_eq!(found, Some(count));
}

#[test]
fn a_damaged_page_fails_what_needs_it_by_name_and_nothing_else() {
    let (volumes, rows) =
        fresh(SHAPE, |database, table| async move { fill(&database, &table, 300, 900).await.unwrap() });
    let bad = rows[150].page;
    volumes.data[0].damage(u64::from(bad.number) * 2);
    let mut machine = Machine::new(SHAPE, 5);
    let start = machine.start(&volumes, false);
    machine
        .run(async move {
            let database = start.await.unwrap();
            let table = table(&database).await;
            let corrupt = StorageError::Corrupt { page: bad, damage: Damage::Checksum };
            assert_eq!(corrupt.to_string(), format!("page {bad}: its checksum is wrong"));
            let mut transaction = database.begin();
            for id in &rows {
                let (got, changed) = (table.get(*id).await, table.update(&mut transaction, *id, &row(1, 900)).await);
                if id.page == bad {
                    assert_eq!((got, changed), (Err(corrupt.clone()), Err(corrupt.clone())));
                } else {
                    assert!(got.is_ok() && changed.is_ok(), "{got:?} {changed:?}");
                }
            }
            transaction.commit().await.unwrap();
            let mut scan = table.scan(32).await.unwrap();
            let mut failed = Vec::new();
            loop {
                match scan.next().await {
                    Ok(None) => break,
                    Ok(Some(_)) => {}
                    Err(error) => failed.push(error),
                }
            }
            assert_eq!(failed, [corrupt]);
        })
        .unwrap();
}

#[test]
fn what_is_not_the_database_is_refused() {
    let open = |volumes: &Volumes, shape: Shape| {
        let mut machine = Machine::new(shape, 6);
        let start = machine.start(volumes, false);
        machine.run(async move { start.await.err() }).expect("it ends")
    };
    let shape = Shape { files: &[16, 16], ..SHAPE };
    let nothing = async |_: Arc<Database>, _: Arc<Table>| {};
    let (one, ()) = fresh(shape, nothing);
    assert_eq!(open(&one.copy(), shape), None);
    assert_eq!(open(&Volumes::new(&shape), shape), Some(OpenError::NoDatabase));
    let mixed = one.copy();
    let logless = Volumes { log: Volumes::new(&shape).log, ..mixed };
    assert_eq!(open(&logless, shape), Some(OpenError::ForeignLog));
    let mut swapped = one.copy();
    swapped.data.swap(0, 1);
    assert_eq!(open(&swapped, shape), Some(OpenError::NoDatabase), "the boot page is in file 0");
    let mut twice = one.copy();
    twice.data[1] = twice.data[0].copy();
    assert!(matches!(open(&twice, shape), Some(OpenError::ForeignFile(_))));
    let mut fewer = one.copy();
    fewer.data.pop();
    assert!(matches!(open(&fewer, SHAPE), Some(OpenError::ForeignFile(_))));
}

#[test]
fn too_little_memory_or_room_is_refused_with_what_is_needed() {
    let volume = |pages: usize, blocks: u64| {
        FakeVolume::new(FramePool::new(Memory::anonymous(pages * PAGE_BYTES)), BlockCount(blocks))
    };
    let refused = |volume: FakeVolume, buffers| Server::of_file(volume, 0, buffers).err();
    assert_eq!(refused(volume(80, 1000), 63), Some(OpenError::TooLittleMemory { have: 63, least: 64 }));
    assert_eq!(refused(volume(70, 1000), 64), Some(OpenError::TooLittleMemory { have: 54, least: 64 }));
    assert_eq!(refused(volume(80, 63), 64), Some(OpenError::TooSmall { blocks: 63, least: 64 }));
    assert_eq!(refused(volume(80, 64), 64), None);
    assert_eq!(Server::of_log(volume(80, 127)).err(), Some(OpenError::TooSmall { blocks: 127, least: 128 }));
}

#[test]
fn what_no_row_can_hold_is_refused_and_changes_nothing() {
    fresh(SHAPE, |database, table| async move {
        let mut transaction = database.begin();
        let mut insert = async |values: Vec<Value>| table.insert(&mut transaction, &values).await.unwrap_err();
        assert_eq!(insert(row(1, (1 << 20) + 1)).await, StorageError::Row(RowError::Value(2)));
        assert_eq!(insert(row(1, 1)[..2].to_vec()).await, StorageError::Row(RowError::Count { values: 2, columns: 3 }));
        transaction.commit().await.unwrap();
        assert_eq!(table.rows().await.unwrap(), []);
        let wide = Column { name: "c".into(), of: ColumnType::Int, nullable: false };
        assert_eq!(Schema::new(vec![wide; 256]), Err(SchemaError::Columns(256)));
        assert_eq!(database.create_table("accounts", schema()).await.err(), Some(StorageError::Name));
        assert_eq!(database.table("others").await.err(), Some(StorageError::NoTable));
    });
}

#[test]
fn a_transaction_larger_than_the_log_is_refused_and_can_be_undone() {
    let shape = Shape { log_blocks: 160, ..SHAPE };
    fresh(shape, |database, table| async move {
        let before = fill(&database, &table, 40, 100).await.unwrap().len();
        let mut transaction = database.begin();
        let mut refused = None;
        for key in 0..5000 {
            if let Err(error) = table.insert(&mut transaction, &row(key, 500)).await {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused, Some(StorageError::LogFull));
        transaction.rollback().await.unwrap();
        assert_eq!(table.rows().await.unwrap().len(), before);
        assert_eq!(fill(&database, &table, 100, 100).await.unwrap().len(), 100, "the log has room again");
    });
}

#[test]
fn a_scan_does_not_wash_the_pool() {
    fresh(SHAPE, |database, table| async move {
        fill(&database, &table, 2000, 900).await.unwrap();
        let hot = database.create_table("hot", schema()).await.unwrap();
        let rows = fill(&database, &hot, 40, 900).await.unwrap();
        for _ in 0..40 {
            for row in &rows {
                hot.get(*row).await.unwrap();
            }
        }
        let before = database.tally();
        let mut scan = table.scan(16).await.unwrap();
        while scan.next().await.unwrap().is_some() {}
        let scanned = database.tally();
        assert!(scanned.misses - before.misses > 200, "far more pages than buffers");
        for row in &rows {
            hot.get(*row).await.unwrap();
        }
        assert_eq!(database.tally().misses, scanned.misses, "what is used again and again is still there");
    });
}

#[test]
fn adjacent_dirty_pages_are_written_with_one_command() {
    let shape = Shape { buffers: 512, ..SHAPE };
    fresh(shape, |database, table| async move {
        fill(&database, &table, 800, 900).await.unwrap();
        let before = database.tally().writes;
        database.close().await.unwrap();
        let writes = database.tally().writes - before;
        assert!((12..40).contains(&writes), "{writes} writes for more than a hundred pages");
    });
}

#[test]
fn a_log_that_fails_stops_the_database_and_loses_nothing() {
    let volumes = Volumes::new(&SHAPE);
    let mut machine = Machine::new(SHAPE, 1);
    let start = machine.start(&volumes, true);
    let log = volumes.log.clone();
    let rows = machine.run(async move {
        let database = start.await.unwrap();
        let table = table(&database).await;
        let rows = fill(&database, &table, 20, 100).await.unwrap().len();
        log.broken.set(true);
        let mut transaction = database.begin();
        table.insert(&mut transaction, &row(99, 1)).await.unwrap();
        let down = transaction.commit().await.unwrap_err();
        assert_eq!(down.to_string(), "the database is down: no path to the volume answered in time");
        assert!(matches!(fill(&database, &table, 1, 1).await, Err(StorageError::Down(_))));
        rows
    });
    volumes.log.broken.set(false);
    volumes.lose_power(&mut SeededRng::new(1), None);
    let mut machine = Machine::new(SHAPE, 2);
    let start = machine.start(&volumes, false);
    let found = machine.run(async move { table(&start.await.unwrap()).await.rows().await.unwrap().len() });
    assert_eq!((rows, found), (Some(20), Some(20)));
}
