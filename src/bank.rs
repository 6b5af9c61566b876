//! The demo's database: transfers between accounts over the array, through the death of the director that serves.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use dyad_director::layout::ArrayDir;
use dyad_director::membership::DirectorId;
use dyad_director::node::HOST_SERVICE;
use dyad_director::process::HOST_DEPTH;
use dyad_director::trial::Trial;
use dyad_director::trial::load::REACTORS;
use dyad_host::{Initiator, InitiatorConfig};
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_matrix::provider::NetAddress;
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_nvme::types::{HostId, NamespaceId};
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::{Options, max_spin_for};
use dyad_reactor::sync::Inbox;
use dyad_reactor::{Reactor, SeededRng};
use dyad_storage::bank::Bank;
use dyad_storage::{Durability, Options as DatabaseOptions, Seats, Site};

const ACCOUNTS: i32 = 1000;
const BALANCE: i64 = 1000;
/// Transfers at once.
const CLIENTS: u64 = 16;
/// In blocks: 24 MiB of data, 8 MiB of log. Commits are acknowledged when both directors have them.
const SITE: Site = Site {
    data: (4096, 6144),
    log: (4096 + 6144, 2048),
    buffers: 512,
    lanes: 16,
    options: DatabaseOptions { durability: Durability::Mirrored, read_ahead: 64 },
};
const STAMP: u64 = 0xba4c;
/// How long anything may take on a machine that others use, too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Transfers between two reports.
const STEP: u64 = 200;

type Shm = Initiator<ShmProvider>;

enum Said {
    Progress,
    /// Transfers, and what all accounts have together: as the engine has it, and after it was opened again.
    Ended(u64, i64, i64),
    Failed(String),
}

/// What the clients share.
struct Branch {
    stop: Arc<AtomicBool>,
    transfers: Cell<u64>,
    ended: Inbox<Result<(), String>>,
    said: Sender<Said>,
}

/// Runs the story in the empty directory `path`.
///
/// # Errors
/// What did not hold, in words.
pub(crate) fn run(path: &Path) -> Result<(), String> {
    let mut trial = Trial::start(path)?;
    let (says, said) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (array, stopping) = (ArrayDir::new(path), Arc::clone(&stop));
    thread::spawn(move || {
        if let Err(error) = host(&array, &stopping, &says) {
            // Nobody listens any more when the demo has failed already.
            let _ = says.send(Said::Failed(error));
        }
    });
    let home = trial.home().ok_or("no director serves")?;
    progress(&said, 5)?;
    trial.processes.kill(home).map_err(|error| error.to_string())?;
    println!(
        "\nA database on the array: {CLIENTS} clients transfer money between {ACCOUNTS} accounts; kill -9 of director {home:?} in the middle of it."
    );
    trial.wait_for_solo(home.partner())?;
    progress(&said, 5)?;
    stop.store(true, Ordering::Release);
    let (transfers, total, again) = loop {
        match next(&said)? {
            Said::Ended(transfers, total, again) => break (transfers, total, again),
            Said::Progress => {}
            Said::Failed(why) => return Err(why),
        }
    };
    let right = i64::from(ACCOUNTS) * BALANCE;
    if (total, again) != (right, right) {
        return Err(format!("the accounts should have {right}; they have {total}, after recovery {again}"));
    }
    println!(
        "{transfers} transfers committed; the accounts have {total} together, before the database was opened again and after: \
         nothing is lost, nothing is doubled."
    );
    Ok(())
}

fn next(said: &Receiver<Said>) -> Result<Said, String> {
    said.recv_timeout(PATIENCE).map_err(|_| "the database does not get on".to_owned())
}

fn progress(said: &Receiver<Said>, steps: u32) -> Result<(), String> {
    for _ in 0..steps {
        match next(said)? {
            Said::Progress => {}
            Said::Failed(why) => return Err(why),
            Said::Ended(..) => return Err("the transfers ended too early".to_owned()),
        }
    }
    Ok(())
}

/// The database's host: a reactor with the host library and the storage engine.
fn host(array: &ArrayDir, stop: &Arc<AtomicBool>, said: &Sender<Said>) -> Result<(), String> {
    let limits = Limits { tasks: 128, timers: 512 };
    let options = Options { limits, max_spin: max_spin_for(REACTORS), core: None };
    let mut reactor = Reactor::new(options).map_err(text)?;
    let generation = 1;
    let provider = ShmProvider::new(&array.path().join("bank.sock"), 2, ShmLimits::default()).map_err(text)?;
    reactor.add_source(provider.clone()).map_err(text)?;
    let paths = [DirectorId::A, DirectorId::B]
        .map(|me| NetAddress { host: array.director(me).to_string_lossy().into_owned(), discriminator: HOST_SERVICE });
    let config = InitiatorConfig {
        host: HostId(*b"dyad demo's bank"),
        paths: paths.to_vec(),
        namespace: NamespaceId(1),
        depth: HOST_DEPTH,
        first_generation: generation,
        connect_timeout: Duration::from_secs(2),
        path_timeout: Duration::from_millis(1500),
        command_timeout: Duration::from_secs(60),
        retry_delay: Duration::from_millis(20),
    };
    let memory = Memory::shared("dyad-bank", 24 << 20, HugePages::No).map_err(text)?;
    let handle = reactor.handle();
    let volume = Initiator::new(&handle, provider, config, memory).map_err(text)?;
    let branch = Rc::new(Branch {
        stop: Arc::clone(stop),
        transfers: Cell::new(0),
        ended: Inbox::new(usize::try_from(CLIENTS).map_err(text)?),
        said: said.clone(),
    });
    // Two databases, one after the other, and the clients.
    let seats = Seats::new(&handle, 96);
    handle.spawn("story", async move {
        if let Err(error) = story(&volume, &seats, &branch).await {
            let _ = branch.said.send(Said::Failed(error));
        }
    });
    reactor.run().map_err(text)
}

async fn story(volume: &Shm, seats: &Seats, branch: &Rc<Branch>) -> Result<(), String> {
    volume.attach().await.map_err(|error| format!("no volume: {error}"))?;
    let database = SITE.start(volume, seats, Some(STAMP)).await.map_err(text)?;
    let bank = Rc::new(Bank::found(database, ACCOUNTS, BALANCE).await.map_err(text)?);
    for client in 0..CLIENTS {
        seats.give(client_of(Rc::clone(branch), Rc::clone(&bank), client));
    }
    for _ in 0..CLIENTS {
        branch.ended.next().await?;
    }
    let total = bank.total().await.map_err(text)?;
    // As after a crash of this host: nothing was closed, so the log is read.
    let database = SITE.start(volume, seats, None).await.map_err(text)?;
    let again = Bank::visit(database).await.map_err(text)?.total().await.map_err(text)?;
    let _ = branch.said.send(Said::Ended(branch.transfers.get(), total, again));
    Ok(())
}

async fn client_of(branch: Rc<Branch>, bank: Rc<Bank>, client: u64) {
    let mut rng = SeededRng::new(client);
    let mut done = Ok(());
    while done.is_ok() && !branch.stop.load(Ordering::Acquire) {
        done = match bank.transfer(&mut rng).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                branch.transfers.set(branch.transfers.get() + 1);
                if branch.transfers.get().is_multiple_of(STEP) {
                    let _ = branch.said.send(Said::Progress);
                }
                Ok(())
            }
            Err(error) => Err(format!("a transfer failed: {error}")),
        };
    }
    branch.ended.push(done).await;
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
