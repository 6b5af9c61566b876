//! How much of a volume a scan uses: in virtual time, so that the processor is not what limits it.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dyad_host::{Volume, VolumeError};
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned, RUN_FRAMES_MAX};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::executor::{Fifo, Handle};
use dyad_reactor::figures::{Figures, to_f64};
use dyad_reactor::{Clock, Time, VirtualTime};

use super::BenchError;
use super::bed::Bed;
use super::scan::{fill, scan};
use super::volume::MemoryVolume;
use crate::database::Options;

/// What a command takes before its bytes come.
const LATENCY: Duration = Duration::from_micros(90);
/// Bytes per second.
const BANDWIDTH: u64 = 3_000_000_000;
/// Commands that whoever reads without the engine has outstanding.
const DEPTH: u64 = 32;
const PAGES: usize = 2048;

/// A volume that takes its time.
#[derive(Clone)]
struct Rated {
    below: MemoryVolume,
    handle: Handle,
    /// The bytes of earlier commands are through then.
    free: Rc<Cell<Time>>,
}

impl Volume for Rated {
    fn blocks(&self) -> BlockCount {
        self.below.blocks()
    }

    fn pool(&self) -> &FramePool {
        self.below.pool()
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        let bytes = (frames.len() * FRAME_BYTES) as u64;
        let start = self.free.get().max(self.handle.now() + LATENCY);
        let done = start + Duration::from_nanos(bytes * 1_000_000_000 / BANDWIDTH);
        self.free.set(done);
        self.handle.sleep_until(done).await;
        self.below.read_scatter(at, frames).await
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.below.write_gather(at, frames).await
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

/// Runs a task in virtual time; how long it took.
fn timed<T: 'static>(
    bed: &Bed,
    time: &VirtualTime,
    task: impl Future<Output = Result<T, BenchError>> + 'static,
) -> Result<(T, Duration), BenchError> {
    let result = Rc::new(Cell::new(None));
    let there = Rc::clone(&result);
    bed.handle.spawn("task", async move { there.set(Some(task.await)) });
    let before = time.now();
    loop {
        bed.executor.run_until_idle(&mut Fifo);
        if let Some(done) = result.take() {
            return Ok((done?, time.now().since(before)));
        }
        let next = bed.executor.next_deadline().ok_or(BenchError::Wrong("a task did not end"))?;
        time.advance_to(next);
        bed.executor.fire_timers();
    }
}

/// How much of the volume a scan uses.
pub(super) fn measure(figures: &mut Figures) -> Result<(), BenchError> {
    figures.add("scan.share_of_raw", "", share()?);
    Ok(())
}

/// The raw volume first, then the scan of a table on it: bytes per second of this by those of that.
fn share() -> Result<f64, BenchError> {
    let time = VirtualTime::new(1);
    let (volume, log) = (MemoryVolume::new(64 << 20, 4096), MemoryVolume::new(64 << 20, 256));
    let making = Bed::new();
    let start = making.start((volume.clone(), log.clone()), 1024, true, Options::default())?;
    making.run(async move {
        let database = start.await?;
        fill(&database, "cold", 10, PAGES).await?;
        Ok(database.close().await?)
    })?;

    let bed = Bed::on(Rc::new(time.clone()));
    let rated = |frames: usize| Rated {
        below: volume.again(frames),
        handle: bed.handle.clone(),
        free: Rc::new(Cell::new(Time::ZERO)),
    };
    let raw = rated(4096);
    let extents = PAGES as u64 / 8;
    let (handle, left) = (bed.handle.clone(), Rc::new(Cell::new(extents)));
    let reading = dyad_reactor::sync::Signal::new();
    let ended = reading.clone();
    let (_, raw_time) = timed(&bed, &time, async move {
        for lane in 0..DEPTH {
            let (raw, left, ended) = (raw.clone(), Rc::clone(&left), ended.clone());
            handle.spawn("raw", async move {
                for extent in (lane..extents).step_by(usize::try_from(DEPTH).expect("few")) {
                    let frames = raw.pool().try_take(RUN_FRAMES_MAX).expect("enough frames");
                    if raw.read_scatter(Lba(extent * 16), frames).await.is_ok() {
                        left.set(left.get() - 1);
                        ended.notify_all();
                    }
                }
            });
        }
        loop {
            let seen = reading.generation();
            if left.get() == 0 {
                return Ok(());
            }
            reading.changed_since(seen).await;
        }
    })?;

    let options = Options { read_ahead: 256, ..Options::default() };
    let start = bed.start((rated(4096), log.again(256)), 1024, false, options)?;
    let (table, _) = timed(&bed, &time, async move {
        let database = start.await?;
        Ok(database.table("cold").await?)
    })?;
    let ((pages, _, _), scan_time) = {
        let table = Arc::clone(&table);
        timed(&bed, &time, async move { scan(&table, 0, 256).await })?
    };
    let per_second = |pages: u64, time: Duration| to_f64(pages) / time.as_secs_f64();
    Ok(per_second(pages, scan_time) / per_second(extents * 8, raw_time))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_scan_uses_its_volume() {
        let share = super::share().unwrap();
        assert!((0.9..1.1).contains(&share), "{share}");
    }
}
