//! Where a small database is: on parts of one volume, with tasks of an executor that makes all of them before it runs.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use dyad_host::Volume;
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::Inbox;

use crate::database::{Database, Options};
use crate::error::OpenError;
use crate::part::Part;
use crate::port::Server;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that are there from the start and learn later what they are to do.
#[derive(Clone)]
pub struct Seats(Rc<Inbox<Task>>);

impl Seats {
    /// So many tasks on an executor.
    #[must_use]
    pub fn new(handle: &Handle, count: usize) -> Self {
        let tasks: Rc<Inbox<Task>> = Rc::new(Inbox::new(count));
        for _ in 0..count {
            let tasks = Rc::clone(&tasks);
            handle.spawn("seat", async move {
                loop {
                    tasks.next().await.await;
                }
            });
        }
        Self(tasks)
    }

    /// Has one of them do this, as soon as one is free.
    ///
    /// # Panics
    /// If as many as there are tasks wait already.
    pub fn give(&self, task: impl Future<Output = ()> + 'static) {
        assert!(self.0.try_push(Box::pin(task)).is_ok(), "there are enough seats");
    }
}

/// Where the database's file and log are on a volume, in blocks, and what it is given.
#[derive(Debug, Copy, Clone)]
pub struct Site {
    /// First block and blocks of the data.
    pub data: (u64, u64),
    /// First block and blocks of the log.
    pub log: (u64, u64),
    /// Pages of the buffer pool.
    pub buffers: usize,
    /// Commands that may be outstanding at the data.
    pub lanes: usize,
    /// How it runs.
    pub options: Options,
}

/// Commands that may be outstanding at the log.
const LOG_LANES: usize = 4;

impl Site {
    /// Makes a database there, with this stamp, or opens the one that is there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn start<V: Volume + Clone + 'static>(
        &self,
        volume: &V,
        seats: &Seats,
        make: Option<u64>,
    ) -> Result<Arc<Database>, OpenError> {
        let part = |(first, blocks)| Part::new(volume.clone(), first, blocks);
        let (server, file) = Server::of_file(part(self.data), 0, self.buffers)?;
        let (log_server, log) = Server::of_log(part(self.log))?;
        (0..self.lanes).for_each(|_| seats.give(Rc::clone(&server).lane()));
        (0..LOG_LANES).for_each(|_| seats.give(Rc::clone(&log_server).lane()));
        let database = match make {
            Some(stamp) => Database::create(vec![file], log, stamp, self.options).await?,
            None => Database::open(vec![file], log, self.options).await?,
        };
        database.services().into_iter().for_each(|service| seats.give(service));
        Ok(database)
    }
}
