//! A database on the array: transfers between accounts while directors are lost and come back, and while the database's own host is.
//!
//! The storage engine is the production code, on the host library, on a volume of a simulated pair. After every start of its host the
//! database recovers, and all accounts must have together what they had at first.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_director::membership::DirectorId;
use dyad_host::{Initiator, Volume};
use dyad_matrix::sim::{Fabric, FabricConfig, SimProvider};
use dyad_reactor::executor::Handle;
use dyad_reactor::{Rng, SeededRng, VirtualTime};
use dyad_storage::bank::Bank;
use dyad_storage::{Durability, Options, Seats, Site};

use crate::kernel::{Kernel, Stuck};
use crate::pair::{BOTH, Pair};
use crate::timeline::{Detail, Timeline};

const ACCOUNTS: i32 = 24;
const BALANCE: i64 = 100;
const CLIENTS: usize = 3;
const HOST: usize = 0;
const STEP: Duration = Duration::from_millis(5);
/// Virtual time in which something must get done.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tasks of the database's host.
const SEATS: usize = 16;

/// What a run came to.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Story {
    /// Transfers that were committed.
    pub transfers: u64,
    /// Directors that were killed.
    pub directors: u64,
    /// How often the database was opened, and recovered.
    pub recoveries: u64,
    /// Transactions that recovery undid.
    pub losers: u64,
}

/// What the hosts of a run have in common.
#[derive(Default)]
struct Shared {
    made: Cell<bool>,
    stop: Cell<bool>,
    clients: Cell<usize>,
    total: Cell<Option<i64>>,
    story: Cell<Story>,
    failure: RefCell<Option<String>>,
}

impl Shared {
    fn fail(&self, what: impl std::fmt::Display) {
        self.failure.borrow_mut().get_or_insert(what.to_string());
    }

    fn note(&self, change: impl FnOnce(&mut Story)) {
        let mut story = self.story.get();
        change(&mut story);
        self.story.set(story);
    }
}

/// The whole volume of the simulator: as much log as must be, and the rest.
fn site(durability: Durability) -> Site {
    let options = Options { durability, read_ahead: 16 };
    Site { data: (0, 64), log: (64, 128), buffers: 64, lanes: 4, options }
}

async fn program(
    shared: Rc<Shared>,
    volume: Initiator<SimProvider>,
    handle: Handle,
    seats: Seats,
    site: Site,
    mut rng: SeededRng,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    volume.attach().await.map_err(|error| text(&error))?;
    assert!(volume.blocks().0 >= site.log.0 + site.log.1, "the volume is as large as this room believes");
    let made = shared.made.get();
    let database = site.start(&volume, &seats, (!made).then_some(7)).await.map_err(|error| text(&error))?;
    let bank = if made {
        shared.note(|story| {
            story.recoveries += 1;
            story.losers += database.recovered().losers;
        });
        Bank::visit(database).await.map_err(|error| text(&error))?
    } else {
        let bank = Bank::found(database, ACCOUNTS, BALANCE).await.map_err(|error| text(&error))?;
        shared.made.set(true);
        bank
    };
    let bank = Rc::new(bank);
    check(&shared, &bank).await?;
    shared.clients.set(CLIENTS);
    for _ in 0..CLIENTS {
        let (shared, bank, mut rng) = (Rc::clone(&shared), Rc::clone(&bank), rng.fork());
        let (ended, handle) = (seats.clone(), handle.clone());
        seats.give(async move {
            while !shared.stop.get() {
                match bank.transfer(&mut rng).await {
                    Ok(moved) => shared.note(|story| story.transfers += u64::from(moved)),
                    Err(error) => return shared.fail(format!("a transfer failed: {error}")),
                }
                handle.sleep(Duration::from_millis(1 + rng.below(20))).await;
            }
            shared.clients.set(shared.clients.get() - 1);
            if shared.clients.get() == 0 {
                ended.give(async move {
                    match bank.total().await {
                        Ok(total) => shared.total.set(Some(total)),
                        Err(error) => shared.fail(error),
                    }
                });
            }
        });
    }
    Ok(())
}

async fn check(shared: &Shared, bank: &Bank) -> Result<(), String> {
    let (total, right) = (bank.total().await.map_err(|error| error.to_string())?, i64::from(ACCOUNTS) * BALANCE);
    if total == right && bank.accounts() == usize::try_from(ACCOUNTS).expect("few") {
        return Ok(());
    }
    let story = shared.story.get();
    Err(format!("{} accounts have {total}, not {right}, after {story:?}", bank.accounts()))
}

struct Run {
    kernel: Kernel,
    pair: Pair,
    shared: Rc<Shared>,
    rng: SeededRng,
    site: Site,
}

impl Run {
    fn start_host(&mut self) {
        let (shared, site, rng) = (Rc::clone(&self.shared), self.site, self.rng.fork());
        self.pair.start_program(&mut self.kernel, HOST, SEATS + 2, |handle: &Handle, volume| {
            let (seats, own) = (Seats::new(handle, SEATS), handle.clone());
            handle.spawn("program", async move {
                if let Err(error) = program(Rc::clone(&shared), volume, own, seats, site, rng).await {
                    shared.fail(error);
                }
            });
        });
    }

    /// Lets time pass until it is so, while directors that lost their epoch begin anew.
    fn until(&mut self, what: &str, most: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = self.kernel.now() + most;
        while !done(self) {
            if let Some(failure) = self.shared.failure.borrow().as_ref() {
                return Err(failure.clone());
            }
            if self.kernel.now() >= deadline {
                return Err(format!("{what}: not within {most:?}, after {:?}", self.shared.story.get()));
            }
            if let Some(me) = self.pair.ended() {
                self.pair.kill_director(&mut self.kernel, me);
                self.pair.start_director(&mut self.kernel, me);
            }
            let to = self.kernel.now() + STEP;
            self.kernel.run_until(to).map_err(|Stuck| "tasks wake each other for ever".to_owned())?;
        }
        Ok(())
    }

    fn rest(&mut self, most_ms: u64) -> Result<(), String> {
        let until = self.kernel.now() + Duration::from_millis(1 + self.rng.below(most_ms));
        self.until("time passes", PATIENCE, |run| run.kernel.now() >= until)
    }

    fn through(&mut self, faults: u64) -> Result<Story, String> {
        self.until("the pair becomes whole", PATIENCE, |run| run.pair.is_whole())?;
        self.start_host();
        self.until("the bank opens", PATIENCE, |run| run.shared.made.get())?;
        for _ in 0..faults {
            self.rest(300)?;
            let director = self.rng.below(3) > 0;
            let lost = if self.rng.one_in(4) { self.pair.home().map(DirectorId::partner) } else { self.pair.home() };
            if let Some(me) = lost.filter(|_| director) {
                self.pair.kill_director(&mut self.kernel, me);
                self.shared.note(|story| story.directors += 1);
            }
            if !director || self.rng.one_in(3) {
                self.pair.kill_host(&mut self.kernel, HOST);
                self.rest(50)?;
                self.start_host();
            }
            self.rest(1500)?;
            for me in BOTH {
                if self.pair.director(me).is_none() {
                    self.pair.start_director(&mut self.kernel, me);
                }
            }
            self.until("the pair becomes whole again", PATIENCE, |run| run.pair.is_whole())?;
            let before = self.shared.story.get().transfers;
            self.until("transfers go on", PATIENCE, |run| run.shared.story.get().transfers > before + 20)?;
        }
        self.shared.stop.set(true);
        self.until("the transfers end", PATIENCE, |run| run.shared.total.get().is_some())?;
        let (total, right) = (self.shared.total.get(), i64::from(ACCOUNTS) * BALANCE);
        if total == Some(right) { Ok(self.shared.story.get()) } else { Err(format!("at the end they have {total:?}")) }
    }
}

/// Runs one seed.
///
/// # Errors
/// What did not hold, in words.
pub fn run(seed: u64, faults: u64) -> Result<Story, String> {
    let time = VirtualTime::new(seed);
    let mut rng = time.rng();
    let timeline = Timeline::new(&time, Detail::None);
    let matrix = FabricConfig { torn_one_in: 1 + rng.below(8), late_writes: !rng.one_in(4), ..FabricConfig::default() };
    let fabric = Fabric::new(&time, matrix);
    let mut kernel = Kernel::new(&time);
    let mut pair = Pair::new(0, &kernel, &time, (&fabric, matrix.link), &timeline);
    for director in BOTH {
        pair.start_director(&mut kernel, director);
    }
    let durability = if rng.one_in(2) { Durability::Media } else { Durability::Mirrored };
    let mut run = Run { kernel, pair, shared: Rc::default(), rng, site: site(durability) };
    let story = run.through(faults).map_err(|what| format!("seed {seed}: {what}"));
    time.forget_events();
    story
}
