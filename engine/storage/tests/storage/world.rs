//! A machine with a database: volumes that survive it, an executor that does not.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use dyad_matrix::Memory;
use dyad_reactor::executor::{Executor, Handle, Limits};
use dyad_reactor::{SeededRng, Shuffled, VirtualTime};
use dyad_storage::{Column, ColumnType, Database, OpenError, Options, Schema, Server, Table};

use super::disk::{Disk, Medium, Power};

/// How a machine is made.
#[derive(Debug, Copy, Clone)]
pub(crate) struct Shape {
    /// Extents of each data file.
    pub(crate) files: &'static [u64],
    pub(crate) log_blocks: u64,
    /// Buffers per file.
    pub(crate) buffers: usize,
    pub(crate) options: Options,
    /// Reads come back in other frames.
    pub(crate) elsewhere: bool,
}

/// The volumes.
pub(crate) struct Volumes {
    pub(crate) data: Vec<Rc<Medium>>,
    pub(crate) log: Rc<Medium>,
}

impl Volumes {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self { data: shape.files.iter().map(|_| Rc::default()).collect(), log: Rc::default() }
    }

    pub(crate) fn copy(&self) -> Self {
        Self { data: self.data.iter().map(|medium| medium.copy()).collect(), log: self.log.copy() }
    }

    pub(crate) fn lose_power(&self, rng: &mut SeededRng, survive_one_in: Option<u64>) {
        for medium in self.data.iter().chain([&self.log]) {
            medium.lose_power(rng, survive_one_in);
        }
    }
}

/// A machine that runs until nothing moves, or the power goes.
pub(crate) struct Machine {
    executor: Executor,
    pub(crate) handle: Handle,
    pub(crate) power: Rc<Power>,
    shape: Shape,
    order: SeededRng,
    /// Of the data files, in the order in which they were started.
    pub(crate) memories: RefCell<Vec<Memory>>,
}

impl Machine {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        let time = VirtualTime::new(seed);
        let executor = Executor::new(Limits { tasks: 128, timers: 8 }, Rc::new(time));
        let handle = executor.handle();
        Self {
            executor,
            handle,
            power: Rc::default(),
            shape,
            order: SeededRng::new(seed),
            memories: RefCell::default(),
        }
    }

    /// Starts a database on the volumes: made, or opened.
    pub(crate) fn start(
        &self,
        volumes: &Volumes,
        make: bool,
    ) -> impl Future<Output = Result<Arc<Database>, OpenError>> + 'static {
        let frames = 2 * (self.shape.buffers + 40);
        let mut files = Vec::new();
        for (number, (medium, extents)) in (0..).zip(volumes.data.iter().zip(self.shape.files)) {
            let mut disk = Disk::new(medium, &self.power, extents * 16, frames);
            disk.elsewhere = self.shape.elsewhere;
            self.memories.borrow_mut().push(disk.memory());
            let (server, file) = Server::of_file(disk, number, self.shape.buffers).expect("enough of everything");
            for _ in 0..4 {
                self.handle.spawn("file", Rc::clone(&server).lane());
            }
            files.push(file);
        }
        let disk = Disk::new(&volumes.log, &self.power, self.shape.log_blocks, 96);
        let (server, log) = Server::of_log(disk).expect("enough of everything");
        for _ in 0..2 {
            self.handle.spawn("log", Rc::clone(&server).lane());
        }
        let (handle, options) = (self.handle.clone(), self.shape.options);
        async move {
            let database = if make {
                Database::create(files, log, 0x5eed, options).await?
            } else {
                Database::open(files, log, options).await?
            };
            for service in database.services() {
                handle.spawn("service", service);
            }
            Ok(database)
        }
    }

    /// Runs a task, and everything else, until nothing moves; what the task came to, if it came to its end.
    pub(crate) fn run<T: 'static>(&mut self, task: impl Future<Output = T> + 'static) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let there = Rc::clone(&result);
        self.handle.spawn("task", async move {
            let output = task.await;
            *there.borrow_mut() = Some(output);
        });
        self.executor.run_until_idle(&mut Shuffled(self.order.clone()));
        result.take()
    }
}

/// A table with columns of both kinds.
pub(crate) fn schema() -> Schema {
    let column = |name: &str, of, nullable| Column { name: name.into(), of, nullable };
    Schema::new(vec![
        column("key", ColumnType::Int, false),
        column("balance", ColumnType::BigInt, true),
        column("note", ColumnType::Binary { max: 1 << 20 }, false),
    ])
    .expect("columns")
}

/// The table of the tests, made if it is not there.
pub(crate) async fn table(database: &Database) -> Arc<Table> {
    match database.table("accounts").await {
        Ok(table) => table,
        Err(_) => database.create_table("accounts", schema()).await.expect("a table"),
    }
}
