//! An array of real processes on this host, under a load that knows what every block must hold: what the demo shows and the bench measures.

pub mod load;
pub mod meeting;
pub mod processes;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::layout::ArrayDir;
use crate::membership::DirectorId;
use load::{Host, Order, Report, Summary};
use meeting::{Matrix, Meeting};
use processes::{PATIENCE, Processes};

/// A shelf, two directors and a host.
pub struct Trial {
    /// The shelf and the directors.
    pub processes: Processes,
    host: Host,
    volume_bytes: u64,
    /// How they meet.
    pub meeting: Arc<Meeting>,
}

impl Trial {
    /// Starts everything in the empty directory `path`, and waits until the pair is whole and the host sees its volume.
    ///
    /// # Errors
    /// What did not start, in words.
    pub fn start(path: &Path) -> Result<Self, String> {
        Self::start_over(path, Matrix::Shm)
    }

    /// The same, with processes that meet in another way.
    ///
    /// # Errors
    /// What did not start, in words.
    pub fn start_over(path: &Path, matrix: Matrix) -> Result<Self, String> {
        let array = ArrayDir::new(path);
        let meeting = Arc::new(Meeting::new(matrix, &array).map_err(text)?);
        let mut processes = Processes::over(array, Arc::clone(&meeting)).map_err(text)?;
        processes
            .start_shelf()
            .and_then(|()| processes.start(DirectorId::A))
            .and_then(|()| processes.start(DirectorId::B))
            .map_err(text)?;
        let mut trial = Self { processes, host: Host::start_over(&meeting), volume_bytes: 0, meeting };
        trial.wait_for_pair()?;
        let Report::Attached { bytes } = trial.next()? else { return Err("the host did not attach".into()) };
        trial.volume_bytes = bytes;
        Ok(trial)
    }

    /// Size of the volume.
    #[must_use]
    pub fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// The director that serves.
    #[must_use]
    pub fn home(&self) -> Option<DirectorId> {
        let serves = |me: &DirectorId| self.processes.status(*me).is_some_and(|status| status.serves);
        [DirectorId::A, DirectorId::B].into_iter().find(serves)
    }

    /// Waits until both directors are members and one serves.
    ///
    /// # Errors
    /// [`PATIENCE`] is over.
    pub fn wait_for_pair(&mut self) -> Result<(), String> {
        let whole = |processes: &Processes| {
            let both = [DirectorId::A, DirectorId::B].map(|me| processes.status(me));
            both.iter().flatten().filter(|status| status.state == "both").count() == 2
                && both.iter().flatten().any(|status| status.serves)
        };
        self.processes.wait_until("the pair becomes whole", whole).map_err(text)
    }

    /// Waits until a director serves alone.
    ///
    /// # Errors
    /// [`PATIENCE`] is over.
    pub fn wait_for_solo(&mut self, survivor: DirectorId) -> Result<(), String> {
        let alone = |processes: &Processes| {
            processes.status(survivor).is_some_and(|status| status.serves && status.state.starts_with("solo"))
        };
        self.processes.wait_until("a director serves alone", alone).map_err(text)
    }

    /// Waits until either director serves alone, and says which.
    ///
    /// # Errors
    /// [`PATIENCE`] is over.
    pub fn wait_for_any_solo(&mut self) -> Result<DirectorId, String> {
        let alone = |processes: &Processes, me: DirectorId| {
            processes.status(me).is_some_and(|status| status.serves && status.state.starts_with("solo"))
        };
        let both = [DirectorId::A, DirectorId::B];
        let any = |processes: &Processes| both.iter().any(|me| alone(processes, *me));
        self.processes.wait_until("a director serves alone", any).map_err(text)?;
        Ok(if alone(&self.processes, DirectorId::A) { DirectorId::A } else { DirectorId::B })
    }

    /// Writes one block after the other: median and 99th percentile in microseconds.
    ///
    /// # Errors
    /// What failed.
    pub fn measure(&mut self) -> Result<(f64, f64), String> {
        self.host.order(Order::Measure);
        match self.next()? {
            Report::Measured { p50_us, p99_us } => Ok((p50_us, p99_us)),
            other => Err(format!("unexpected: {other:?}")),
        }
    }

    /// Begins the load.
    pub fn load(&mut self) {
        self.host.order(Order::Load);
    }

    /// Waits until the load has done so many thousand operations more.
    ///
    /// # Errors
    /// What failed.
    pub fn progress(&mut self, thousands: u32) -> Result<(), String> {
        for _ in 0..thousands {
            let report = self.next()?;
            if report != Report::Progress {
                return Err(format!("unexpected: {report:?}"));
            }
        }
        Ok(())
    }

    /// Ends the load, and reads everything back.
    ///
    /// # Errors
    /// What failed.
    pub fn verify(&mut self) -> Result<Summary, String> {
        self.host.order(Order::Verify);
        self.summary()
    }

    /// Ends the load and flushes.
    ///
    /// # Errors
    /// What failed.
    pub fn flush(&mut self) -> Result<Summary, String> {
        self.host.order(Order::Flush);
        self.summary()
    }

    fn summary(&mut self) -> Result<Summary, String> {
        loop {
            match self.next()? {
                Report::Ended(summary) => return Ok(summary),
                Report::Progress => {}
                other => return Err(format!("unexpected: {other:?}")),
            }
        }
    }

    fn next(&mut self) -> Result<Report, String> {
        match self.host.reports.recv_timeout(PATIENCE) {
            Ok(Report::Failed(why)) => Err(why),
            Ok(report) => Ok(report),
            Err(_) => Err(format!("the host is stuck: nothing for {} s", PATIENCE.as_secs())),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: io::Error) -> String {
    error.to_string()
}
