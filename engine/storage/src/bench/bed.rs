//! One executor with one database on it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use dyad_host::Volume;
use dyad_reactor::executor::{Executor, Fifo, Handle, Limits};
use dyad_reactor::{BootClock, Clock, Time};

use super::BenchError;
use crate::database::{Database, Options};
use crate::port::Server;

/// Lanes of the data file.
const LANES: usize = 32;

/// An executor, and how to start a database on it.
pub(super) struct Bed {
    pub(super) executor: Executor,
    pub(super) handle: Handle,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::on(Rc::new(BootClock))
    }

    pub(super) fn on(clock: Rc<dyn Clock>) -> Self {
        let executor = Executor::new(Limits { tasks: 256, timers: 256 }, clock);
        let handle = executor.handle();
        Self { executor, handle }
    }

    /// A database on two volumes, made or opened.
    pub(super) fn start<V: Volume + 'static, L: Volume + 'static>(
        &self,
        volumes: (V, L),
        buffers: usize,
        make: bool,
        options: Options,
    ) -> Result<impl Future<Output = Result<Arc<Database>, BenchError>> + use<V, L>, BenchError> {
        let (server, file) = Server::of_file(volumes.0, 0, buffers)?;
        let (log_server, log) = Server::of_log(volumes.1)?;
        for _ in 0..LANES {
            self.handle.spawn("file", Rc::clone(&server).lane());
        }
        for _ in 0..4 {
            self.handle.spawn("log", Rc::clone(&log_server).lane());
        }
        let handle = self.handle.clone();
        Ok(async move {
            let database = if make {
                Database::create(vec![file], log, 1, options).await?
            } else {
                Database::open(vec![file], log, options).await?
            };
            for service in database.services() {
                handle.spawn("service", service);
            }
            Ok(database)
        })
    }

    /// Runs a task until nothing moves: what it came to.
    pub(super) fn run<T: 'static>(
        &self,
        task: impl Future<Output = Result<T, BenchError>> + 'static,
    ) -> Result<T, BenchError> {
        let result = Rc::new(RefCell::new(None));
        let there = Rc::clone(&result);
        self.handle.spawn("task", async move {
            let output = task.await;
            *there.borrow_mut() = Some(output);
        });
        self.executor.run_until_idle(&mut Fifo);
        result.take().unwrap_or(Err(BenchError::Wrong("a task did not end")))
    }

    pub(super) fn now(&self) -> Time {
        self.handle.now()
    }
}
