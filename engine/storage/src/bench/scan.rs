//! What scans cost.

use std::sync::Arc;

use dyad_matrix::Memory;
use dyad_matrix::memory::copy;
use dyad_reactor::figures::{Figures, to_f64};

use super::BenchError;
use super::bed::Bed;
use super::volume::MemoryVolume;
use crate::database::{Database, Options};
use crate::page::PAGE_BYTES;
use crate::schema::{Column, ColumnType, Fixed, Schema};
use crate::table::Table;
use crate::value::Value;

/// Rows per page that are looked at.
const ROWS_PER_PAGE: [usize; 4] = [1, 10, 100, 476];
/// Pages of each table.
const PAGES: usize = 2048;
const VOLUME_BYTES: usize = 160 << 20;
const LOG_BYTES: usize = 64 << 20;
const BUFFERS: usize = 12 << 10;

fn schema() -> Schema {
    let column = |name: &str, of| Column { name: name.into(), of, nullable: false };
    let pad = ColumnType::Binary { max: 8000 };
    let int = ColumnType::Int;
    Schema::new(vec![column("a", int), column("b", int), column("pad", pad)]).expect("columns")
}

/// As small as rows can be: without room for a variable column, so that 476 fit.
fn small_schema() -> Schema {
    let column = |name: &str| Column { name: name.into(), of: ColumnType::Int, nullable: false };
    Schema::new(vec![column("a"), column("b")]).expect("columns")
}

/// Fills a table until it has so many pages of so many rows each.
pub(super) async fn fill(
    database: &Database,
    name: &str,
    per_page: usize,
    pages: usize,
) -> Result<Arc<Table>, BenchError> {
    let small = per_page > 300;
    let table = database.create_table(name, if small { small_schema() } else { schema() }).await?;
    // A row has so many bytes besides its pad, and a slot.
    let pad = (8128 / per_page).saturating_sub(15 + 4).min(7900);
    let mut key = 0;
    for _ in 0..per_page * pages / 512 + 1 {
        let mut transaction = database.begin();
        for _ in 0..512 {
            key += 1;
            let mut values = vec![Value::Int(key), Value::Int(key ^ 5)];
            if !small {
                values.push(Value::Binary(vec![0; pad]));
            }
            table.insert(&mut transaction, &values).await?;
        }
        transaction.commit().await?;
    }
    Ok(table)
}

/// What a scan found: pages, rows, and a sum so that nothing is left out.
type Seen = (u64, u64, i64);

/// Scans, looking at so many columns.
pub(super) async fn scan(table: &Table, columns: usize, read_ahead: usize) -> Result<Seen, BenchError> {
    let fixed = |column: usize| table.schema().fixed(column).ok_or(BenchError::Wrong("the columns are fixed"));
    let (a, b) = (fixed(0)?, fixed(1)?);
    let mut scan = table.scan(read_ahead).await?;
    let (mut pages, mut rows, mut sum) = (0, 0, 0);
    while let Some(page) = scan.next().await? {
        pages += 1;
        let (count, of_page) = look(&page.rows(), columns, a, b);
        rows += count;
        sum += of_page;
    }
    Ok((pages, rows, sum))
}

fn look(rows: &crate::heap::scan::Rows<'_>, columns: usize, a: Fixed, b: Fixed) -> (u64, i64) {
    let (mut count, mut sum) = (0, 0_i64);
    match columns {
        0 => count = rows.iter().count() as u64,
        1 => rows.iter().for_each(|row| {
            count += 1;
            sum += i64::from(row.int(a).unwrap_or(0));
        }),
        _ => rows.iter().for_each(|row| {
            count += 1;
            sum += i64::from(row.int(a).unwrap_or(0)) + i64::from(row.int(b).unwrap_or(0));
        }),
    }
    (count, sum)
}

/// Tables that are in the buffer pool.
pub(super) struct Tables {
    bed: Bed,
    tables: Vec<(usize, Arc<Table>)>,
}

impl Tables {
    pub(super) fn fill() -> Result<Self, BenchError> {
        let bed = Bed::new();
        let frames = 2 * (BUFFERS + 64);
        let volumes = (MemoryVolume::new(VOLUME_BYTES, frames), MemoryVolume::new(LOG_BYTES, 256));
        let start = bed.start(volumes, BUFFERS, true, Options::default())?;
        let tables = bed.run(async move {
            let database = start.await?;
            let mut tables = Vec::new();
            for per_page in ROWS_PER_PAGE {
                let pages = if per_page > 300 { PAGES / 2 } else { PAGES };
                tables.push((per_page, fill(&database, &format!("of {per_page}"), per_page, pages).await?));
            }
            database.close().await?;
            Ok(tables)
        })?;
        Ok(Self { bed, tables })
    }

    /// One scan: nanoseconds per page, and rows per page.
    fn time(&self, table: usize, columns: usize) -> Result<(f64, f64), BenchError> {
        let table = Arc::clone(&self.tables[table].1);
        let before = self.bed.now();
        let (pages, rows, _) = self.bed.run(async move { scan(&table, columns, 0).await })?;
        let nanos = u64::try_from(self.bed.now().since(before).as_nanos()).unwrap_or(u64::MAX);
        Ok((to_f64(nanos) / to_f64(pages), to_f64(rows) / to_f64(pages)))
    }

    pub(super) fn measure(&mut self, figures: &mut Figures) -> Result<(), BenchError> {
        let mut pages = Vec::new();
        for table in 0..self.tables.len() {
            // The best of a few: a scan is short, and others share the machine.
            let mut best = self.time(table, 0)?;
            for _ in 0..4 {
                let again = self.time(table, 0)?;
                best = if again.0 < best.0 { again } else { best };
            }
            figures.add(format!("scan.page_of_{}_rows_ns", self.tables[table].0), "ns", best.0);
            pages.push(best);
        }
        let (one, many) = (pages[0], pages[pages.len() - 1]);
        figures.add("scan.page_ns", "ns", one.0);
        figures.add("scan.row_ns", "ns", (many.0 - one.0) / (many.1 - 1.0));
        let last = self.tables.len() - 1;
        let column = |columns| -> Result<f64, BenchError> {
            let times = (0..5).map(|_| self.time(last, columns).map(|(nanos, _)| nanos));
            times.collect::<Result<Vec<_>, _>>().map(|times| times.into_iter().fold(f64::INFINITY, f64::min))
        };
        let (none, first, second) = (many.0, column(1)?, column(2)?);
        figures.add("scan.first_column_ns", "ns", (first - none) / many.1);
        figures.add("scan.column_ns", "ns", (second - first) / many.1);
        Ok(())
    }
}

/// What a page costs that comes from a volume in memory, beside its checksum and a copy of it.
pub(super) fn from_volume(figures: &mut Figures) -> Result<(), BenchError> {
    const COLD: usize = 2048;
    let bed = Bed::new();
    let volume = MemoryVolume::new(VOLUME_BYTES / 4, 4096);
    let log = MemoryVolume::new(LOG_BYTES, 256);
    let start = bed.start((volume.clone(), log.clone()), 1024, true, Options::default())?;
    bed.run(async move {
        let database = start.await?;
        fill(&database, "cold", 10, COLD).await?;
        Ok(database.close().await?)
    })?;
    let bed = Bed::new();
    let start = bed.start((volume.again(4096), log.again(256)), 1024, false, Options::default())?;
    let table = bed.run(async move {
        let database = start.await?;
        Ok(database.table("cold").await?)
    })?;
    // Once for the frames, which the kernel fills with zeros when they are touched first. There are too few for the table to stay.
    let warm = Arc::clone(&table);
    bed.run(async move { scan(&warm, 0, 128).await })?;
    let before = bed.now();
    let (pages, _, _) = bed.run(async move { scan(&table, 0, 128).await })?;
    let nanos = bed.now().since(before).as_secs_f64() * 1e9;
    figures.add("scan.from_volume_page_ns", "ns", nanos / to_f64(pages));
    figures.add("scan.gb_s", "GB/s", to_f64(pages * PAGE_BYTES as u64) / nanos);

    // The same bytes, checked and copied by nobody but us.
    let (from, to) = (Memory::anonymous(COLD * PAGE_BYTES), Memory::anonymous(COLD * PAGE_BYTES));
    from.fill_zero(0, from.len()).and_then(|()| to.fill_zero(0, to.len())).map_err(|_| BenchError::Wrong("memory"))?;
    let before = bed.now();
    for at in (0..from.len()).step_by(PAGE_BYTES) {
        let page = PAGE_BYTES as u64;
        let done = copy(&from, at, &to, at, page).and_then(|()| to.crc32c(at, page));
        done.map_err(|_| BenchError::Wrong("memory"))?;
    }
    let nanos = bed.now().since(before).as_secs_f64() * 1e9;
    figures.add("scan.crc_and_copy_page_ns", "ns", nanos / to_f64(COLD as u64));
    Ok(())
}
