//! The host of a trial: a reactor with the host library, and workers that write, read, and remember what was acknowledged.
//!
//! Every block belongs to one worker, which waits for each write: so a block must hold exactly the last acknowledged
//! write, or the one that is under way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dyad_host::{Initiator, InitiatorConfig, Volume, VolumeError};
use dyad_matrix::Memory;
use dyad_matrix::frames::FRAME_BYTES;
use dyad_matrix::memory::HugePages;
use dyad_matrix::provider::NetAddress;
use dyad_nvme::types::{HostId, Lba, NamespaceId};
use dyad_reactor::executor::{Handle, Limits};
use dyad_reactor::reactor::{Options, max_spin_for};
use dyad_reactor::ring::{Receiver, Sender, ring};
use dyad_reactor::sync::Signal;
use dyad_reactor::{Reactor, Rng, SeededRng, Time};

use crate::config::{MatrixAddress, MatrixSecurity};
use crate::fabric::Fabric;
use crate::layout::ArrayDir;
use crate::membership::DirectorId;
use crate::node::HOST_SERVICE;
use crate::process::HOST_DEPTH;
use crate::trial::meeting::Meeting;

/// Workers of the load.
pub const WORKERS: u64 = 32;
/// Blocks that each worker owns.
const BLOCKS_PER_WORKER: u64 = 64;
/// Reactors of a trial: shelf, two directors, host.
pub const REACTORS: usize = 4;

/// What the host is to do next.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Order {
    /// Write one block after the other, and say how long each took.
    Measure,
    /// Write and read with all workers until told otherwise.
    Load,
    /// End the load and flush the volume.
    Flush,
    /// End the load and read back every block.
    Verify,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// The volume is there.
    Attached {
        /// Its size in bytes.
        bytes: u64,
    },
    /// Latency of writes, one at a time.
    Measured {
        /// Median, microseconds.
        p50_us: f64,
        /// 99th percentile, microseconds.
        p99_us: f64,
    },
    /// Another thousand operations of the load are done.
    Progress,
    /// The load has ended, and everything was flushed or read back.
    Ended(Summary),
    /// Something is not as it must be.
    Failed(String),
}

/// The sum of a load.
#[derive(Debug, Copy, Clone, PartialEq, Default)]
pub struct Summary {
    /// Acknowledged writes.
    pub writes: u64,
    /// Reads, each checked.
    pub reads: u64,
    /// Operations per second over the whole load.
    pub per_second: f64,
    /// The longest time in which no operation was acknowledged, in seconds.
    pub longest_gap_s: f64,
    /// Blocks read back at the end.
    pub verified_blocks: u64,
    /// Those of them that did not hold their last acknowledged write.
    pub lost_blocks: u64,
    /// Commands that were sent again on another path.
    pub retries: u64,
}

/// The host's thread, seen from outside.
pub struct Host {
    orders: Sender<Order>,
    /// What it says.
    pub reports: mpsc::Receiver<Report>,
}

impl Host {
    /// Starts the host of an array in shared memory.
    #[must_use]
    pub fn start(array: &ArrayDir) -> Self {
        Self::start_over(&Meeting::in_shared_memory(array))
    }

    /// Starts a host that meets the directors in any way.
    #[must_use]
    pub fn start_over(meeting: &Meeting) -> Self {
        let (orders, inbox) = ring(8);
        let (outbox, reports) = mpsc::channel();
        let (own, security) = (meeting.host.clone(), meeting.security.clone());
        let directors = [DirectorId::A, DirectorId::B].map(|me| meeting.director(me).to_string());
        thread::spawn(move || {
            if let Err(error) = run(&own, &security, directors, inbox, &outbox) {
                let _ = outbox.send(Report::Failed(error));
            }
        });
        Self { orders, reports }
    }

    /// Tells it what to do.
    pub fn order(&mut self, order: Order) {
        assert!(self.orders.try_send(order).is_ok(), "orders are few, and answered before the next");
    }
}

struct Load {
    handle: Handle,
    volume: Initiator<Fabric>,
    /// Last acknowledged write of each block.
    acknowledged: RefCell<Vec<u64>>,
    running: Cell<bool>,
    changed: Signal,
    active: Cell<u64>,
    sum: Cell<Summary>,
    began: Cell<Time>,
    last_done: Cell<Time>,
    outbox: mpsc::Sender<Report>,
}

fn run(
    own: &MatrixAddress,
    security: &MatrixSecurity,
    directors: [String; 2],
    inbox: Receiver<Order>,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), String> {
    let workers = usize::try_from(WORKERS).expect("few");
    let limits = Limits { tasks: workers + 8, timers: 512 };
    let options = Options { limits, max_spin: max_spin_for(REACTORS), core: None };
    let mut reactor = Reactor::new(options).map_err(|error| error.to_string())?;
    let generation = generation()?;
    let provider = Fabric::new(own, security, generation & 0xffff_ffff).map_err(|error| error.to_string())?;
    reactor.add_source(provider.clone()).map_err(|error| error.to_string())?;
    let config = InitiatorConfig {
        host: HostId(*b"dyad demo's host"),
        paths: directors.map(|host| NetAddress { host, discriminator: HOST_SERVICE }).to_vec(),
        namespace: NamespaceId(1),
        depth: HOST_DEPTH,
        first_generation: generation,
        connect_timeout: Duration::from_secs(2),
        // A stopped director keeps its connections. Longer than a takeover, so that there is somebody to turn to.
        path_timeout: Duration::from_millis(1500),
        command_timeout: Duration::from_secs(60),
        retry_delay: Duration::from_millis(20),
    };
    let memory = Memory::shared("dyad-host", 16 << 20, HugePages::No).map_err(|error| error.to_string())?;
    let handle = reactor.handle();
    let volume = Initiator::new(&handle, provider, config, memory).map_err(|error| error.to_string())?;
    let blocks = usize::try_from(WORKERS * BLOCKS_PER_WORKER).expect("few");
    let load = Rc::new(Load {
        handle: handle.clone(),
        volume,
        acknowledged: RefCell::new(vec![0; blocks]),
        running: Cell::new(false),
        changed: Signal::new(),
        active: Cell::new(0),
        sum: Cell::default(),
        began: Cell::new(Time::ZERO),
        last_done: Cell::new(Time::ZERO),
        outbox: outbox.clone(),
    });
    for worker in 0..WORKERS {
        handle.spawn("worker", Rc::clone(&load).work(worker));
    }
    handle.spawn("orders", load.obey(inbox));
    reactor.run().map_err(|error| error.to_string())
}

impl Load {
    async fn obey(self: Rc<Self>, mut inbox: Receiver<Order>) {
        match self.volume.attach().await {
            Ok(()) => self.say(Report::Attached { bytes: self.volume.blocks().bytes() }),
            Err(error) => return self.say(Report::Failed(format!("no volume: {error}"))),
        }
        while let Some(order) = inbox.receive().await {
            let result = match order {
                Order::Measure => self.measure().await,
                Order::Load => {
                    self.sum.set(Summary::default());
                    self.began.set(self.handle.now());
                    self.last_done.set(self.handle.now());
                    self.running.set(true);
                    self.changed.notify_all();
                    Ok(())
                }
                Order::Flush => self.flush().await,
                Order::Verify => self.verify().await,
            };
            if let Err(error) = result {
                self.say(Report::Failed(error));
            }
        }
    }

    async fn measure(&self) -> Result<(), String> {
        let mut times = Vec::new();
        for round in 0..2000 {
            let start = self.handle.now();
            self.write(round % BLOCKS_PER_WORKER, 1).await?;
            times.push(self.handle.now().since(start));
        }
        times.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        self.say(Report::Measured {
            p50_us: micros(times[times.len() / 2]),
            p99_us: micros(times[times.len() * 99 / 100]),
        });
        Ok(())
    }

    async fn work(self: Rc<Self>, worker: u64) {
        let mut rng = SeededRng::new(worker);
        let first = worker * BLOCKS_PER_WORKER;
        loop {
            let seen = self.changed.generation();
            if !self.running.get() {
                self.changed.changed_since(seen).await;
                continue;
            }
            self.active.set(self.active.get() + 1);
            let count = 1 + rng.below(4);
            let at = first + rng.below(BLOCKS_PER_WORKER - count + 1);
            let writes = !rng.one_in(3);
            let result = if writes { self.write(at, count).await } else { self.check(at, count).await };
            self.active.set(self.active.get() - 1);
            self.changed.notify_all();
            match result {
                Ok(()) => self.count(writes),
                Err(error) => {
                    self.running.set(false);
                    self.say(Report::Failed(error));
                }
            }
        }
    }

    fn count(&self, write: bool) {
        let now = self.handle.now();
        let mut sum = self.sum.get();
        if write {
            sum.writes += 1
        } else {
            sum.reads += 1
        }
        sum.longest_gap_s = sum.longest_gap_s.max(now.since(self.last_done.replace(now)).as_secs_f64());
        self.sum.set(sum);
        if (sum.writes + sum.reads).is_multiple_of(1000) {
            self.say(Report::Progress);
        }
    }

    async fn write(&self, at: u64, count: u64) -> Result<(), String> {
        let frames = self.frames(count)?;
        let write = |block: u64| self.acknowledged.borrow()[place(block)] + 1;
        for (index, block) in (at..at + count).enumerate() {
            frames.write(index, &contents(block, write(block))[..]);
        }
        self.volume
            .write_gather(Lba(at), &frames)
            .await
            .map_err(|error| format!("a write of block {at} failed: {error}"))?;
        for block in at..at + count {
            self.acknowledged.borrow_mut()[place(block)] += 1;
        }
        Ok(())
    }

    async fn check(&self, at: u64, count: u64) -> Result<(), String> {
        match self.lost(at, count).await?.first() {
            None => Ok(()),
            Some(block) => {
                let expected = self.acknowledged.borrow()[place(*block)];
                Err(format!(
                    "block {block} does not hold its acknowledged write number {expected}: it was lost or damaged"
                ))
            }
        }
    }

    /// Reads blocks; those that do not hold their last acknowledged write.
    async fn lost(&self, at: u64, count: u64) -> Result<Vec<u64>, String> {
        let frames = self.frames(count)?;
        let failed = |error: VolumeError| format!("a read of block {at} failed: {error}");
        let frames = self.volume.read_scatter(Lba(at), frames).await.map_err(failed)?;
        let mut bytes = Box::new([0; FRAME_BYTES]);
        let is_lost = |(index, block): (usize, u64)| {
            frames.read(index, &mut bytes[..]);
            let expected = self.acknowledged.borrow()[place(block)];
            (expected > 0 && bytes != contents(block, expected)).then_some(block)
        };
        Ok((at..at + count).enumerate().filter_map(is_lost).collect())
    }

    async fn flush(&self) -> Result<(), String> {
        let sum = self.end_load().await;
        self.volume.flush().await.map_err(|error| format!("a flush failed: {error}"))?;
        self.say(Report::Ended(sum));
        Ok(())
    }

    async fn verify(&self) -> Result<(), String> {
        let mut sum = self.end_load().await;
        for at in (0..WORKERS * BLOCKS_PER_WORKER).step_by(4) {
            sum.lost_blocks += self.lost(at, 4).await?.len() as u64;
            sum.verified_blocks += 4;
        }
        self.say(Report::Ended(sum));
        Ok(())
    }

    /// Waits until no worker works, and adds up.
    async fn end_load(&self) -> Summary {
        self.running.set(false);
        let elapsed = self.handle.now().since(self.began.get()).as_secs_f64();
        loop {
            let seen = self.changed.generation();
            if self.active.get() == 0 {
                break;
            }
            self.changed.changed_since(seen).await;
        }
        let sum = self.sum.get();
        let per_second = per_second(sum.writes + sum.reads, elapsed);
        Summary { per_second, retries: self.volume.counters().retries, ..sum }
    }

    fn frames(&self, count: u64) -> Result<dyad_matrix::frames::Pinned, String> {
        let frames = self.volume.pool().try_take(usize::try_from(count).expect("few"));
        frames.ok_or_else(|| "the host has no free buffers".to_owned())
    }

    fn say(&self, report: Report) {
        // Nobody listens any more when the demo is over.
        let _ = self.outbox.send(report);
    }
}

/// Higher than in every earlier run of this host, over reboots too.
#[expect(clippy::disallowed_types, reason = "the only clock that outlives the machine; no logic depends on it")]
fn generation() -> Result<u64, String> {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?;
    u64::try_from(since.as_nanos()).map_err(|error| error.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for humans")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn place(block: u64) -> usize {
    usize::try_from(block).expect("few blocks")
}

/// What write number `write` of `block` puts there: both, in every 64-byte line.
fn contents(block: u64, write: u64) -> Box<[u8; FRAME_BYTES]> {
    let mut bytes = Box::new([0; FRAME_BYTES]);
    for line in bytes.as_chunks_mut::<64>().0 {
        line[..8].copy_from_slice(&block.to_le_bytes());
        line[8..16].copy_from_slice(&write.to_le_bytes());
    }
    bytes
}
