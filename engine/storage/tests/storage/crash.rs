//! Loss of power at every write of small workloads, and at random moments of long ones; also in recovery, and in its recovery.
//!
//! `DYAD_ENGINE_SEEDS=first..last` runs other seeds than the fixed ones.

use std::rc::Rc;

use dyad_reactor::{Rng, SeededRng};
use dyad_storage::{Durability, OpenError, Options};

use super::model::{Habits, Known, Shared, client, found, settle};
use super::world::{Machine, Shape, Volumes, table};

const SMALL: Shape = Shape {
    files: &[8],
    log_blocks: 160,
    buffers: 64,
    options: Options { durability: Durability::Media, read_ahead: 16 },
    elsewhere: false,
};

/// How power is lost: which of the unflushed blocks survive.
const SURVIVORS: [Option<u64>; 4] = [None, Some(1), Some(2), Some(3)];

/// What came of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Happened {
    commits: u64,
    rollbacks: u64,
    losers: u64,
    redone: u64,
    cuts: u64,
    cut_recoveries: u64,
    evicted: u64,
    full: u64,
}

fn shared(clients: usize) -> Shared {
    Rc::new(std::cell::RefCell::new(vec![Known::default(); clients]))
}

/// Makes a database with its table.
fn prepare(shape: Shape, seed: u64) -> Volumes {
    let volumes = Volumes::new(&shape);
    let mut machine = Machine::new(shape, seed);
    let start = machine.start(&volumes, true);
    let made = machine.run(async move {
        let database = start.await.expect("made");
        table(&database).await;
    });
    made.expect("nothing hinders it");
    // What was acknowledged is durable, if that was promised.
    let survivors = if shape.options.durability == Durability::Media { None } else { Some(1) };
    volumes.lose_power(&mut SeededRng::new(seed), survivors);
    volumes
}

/// One run of a machine from opening to the cut, if there is one; how many steps it made, and pages that left the pool.
fn work(shape: Shape, volumes: &Volumes, shared: &Shared, seed: u64, cut: Option<u64>, habits: Habits) -> (u64, u64) {
    let mut machine = Machine::new(shape, seed);
    let start = machine.start(volumes, false);
    machine.power.cut_at(cut);
    let (handle, shared) = (machine.handle.clone(), Rc::clone(shared));
    let opened = Rc::new(std::cell::RefCell::new(None));
    let there = Rc::clone(&opened);
    machine.run(async move {
        let database = start.await.expect("opened");
        *there.borrow_mut() = Some(database.clone());
        let table = table(&database).await;
        let mut rng = SeededRng::new(seed);
        let clients = shared.borrow().len();
        for number in 0..clients {
            let (database, table, shared) = (database.clone(), table.clone(), Rc::clone(&shared));
            handle.spawn("client", client(database, table, shared, number, rng.fork(), habits));
        }
    });
    let evicted = opened.borrow().as_ref().map_or(0, |database| database.tally().evicted);
    (machine.power.steps(), evicted)
}

/// Opens, perhaps cut short and once more, and compares.
fn recover(
    shape: Shape,
    volumes: &Volumes,
    shared: &Shared,
    rng: &mut SeededRng,
    happened: &mut Happened,
    cut: Option<u64>,
) -> Result<(), String> {
    let mut machine = Machine::new(shape, rng.next_u64());
    let start = machine.start(volumes, false);
    machine.power.cut_at(cut);
    let clients = shared.borrow().len();
    let came = machine.run(async move {
        let database = match start.await {
            Ok(database) => database,
            Err(error) => return Err(error),
        };
        let table = database.table("accounts").await.expect("the table");
        let rows = found(&table, clients).await.map_err(OpenError::from)?;
        Ok((rows, database.recovered()))
    });
    match came {
        Some(Ok((rows, recovered))) => {
            happened.losers += recovered.losers;
            happened.redone += recovered.redone;
            settle(shared, rows)
        }
        Some(Err(error)) => Err(format!("it does not open: {error}")),
        None if cut.is_some() => {
            happened.cut_recoveries += 1;
            volumes.lose_power(rng, Some(2));
            let cut = if rng.one_in(2) { cut.map(|cut| cut + 1 + rng.below(9)) } else { None };
            recover(shape, volumes, shared, rng, happened, cut)
        }
        None => Err("opening does not end".to_owned()),
    }
}

fn count(shared: &Shared, happened: &mut Happened) {
    for known in shared.borrow().iter() {
        happened.commits += known.commits;
        happened.rollbacks += known.rollbacks;
        happened.full += known.full;
    }
}

/// Every boundary of one small workload.
fn every_boundary(shape: Shape, seed: u64, habits: Habits, happened: &mut Happened) -> Result<(), String> {
    let made = prepare(shape, seed);
    let whole = shared(2);
    let (steps, _) = work(shape, &made.copy(), &whole, seed, None, habits);
    count(&whole, happened);
    for cut in 0..steps {
        for (way, survivors) in SURVIVORS.into_iter().enumerate() {
            let (volumes, shared) = (made.copy(), shared(2));
            let mut rng = SeededRng::new(seed ^ cut << 8 ^ (way as u64) << 40);
            work(shape, &volumes, &shared, seed, Some(cut), habits);
            volumes.lose_power(&mut rng, survivors);
            happened.cuts += 1;
            let again = if way == 3 { Some(rng.below(12)) } else { None };
            recover(shape, &volumes, &shared, &mut rng, happened, again)
                .map_err(|what| format!("seed {seed}, cut {cut} of {steps}, way {way}: {what}"))?;
        }
    }
    Ok(())
}

/// Several machines one after the other on the same volumes, each cut at some moment.
fn random(seed: u64, happened: &mut Happened) -> Result<(), String> {
    let mut rng = SeededRng::new(seed);
    let mirrored = rng.one_in(4);
    let shape = Shape {
        files: [&[64][..], &[40, 24], &[8, 30, 16]][usize::try_from(rng.below(3)).expect("small")],
        log_blocks: 200 + rng.below(400),
        buffers: 64 + usize::try_from(rng.below(3)).expect("small") * 40,
        options: Options {
            durability: if mirrored { Durability::Mirrored } else { Durability::Media },
            read_ahead: usize::try_from(rng.below(40)).expect("small"),
        },
        elsewhere: rng.one_in(3),
    };
    let volumes = prepare(shape, seed);
    let shared = shared(1 + usize::try_from(rng.below(4)).expect("small"));
    for life in 0..4 {
        let habits = Habits {
            transactions: 8 + rng.below(40),
            changes: 1 + rng.below(12),
            note_bytes: 20 + rng.below(1200) * (1 + 3 * rng.below(2)),
            long_one_in: 4 + rng.below(10),
            checkpoint_one_in: 2 + rng.below(12),
        };
        let cut = rng.below(150 + 200 * life);
        let life_seed = rng.next_u64();
        happened.evicted += work(shape, &volumes, &shared, life_seed, Some(cut), habits).1;
        // A commit that is only mirrored survives all but loss of power: then directors die, and nothing that a volume acknowledged is lost.
        let survivors = if mirrored { Some(1) } else { SURVIVORS[usize::try_from(rng.below(4)).expect("small")] };
        volumes.lose_power(&mut rng, survivors);
        happened.cuts += 1;
        let again = if rng.one_in(3) && !mirrored { Some(rng.below(25)) } else { None };
        recover(shape, &volumes, &shared, &mut rng, happened, again)
            .map_err(|what| format!("seed {seed}, life {life}: {what}"))?;
    }
    count(&shared, happened);
    Ok(())
}

const TINY: Habits = Habits { transactions: 3, changes: 5, note_bytes: 300, long_one_in: 6, checkpoint_one_in: 1 };

#[cfg(not(feature = "mutations"))]
fn seeds(fixed: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(range) = std::env::var("DYAD_ENGINE_SEEDS") else { return fixed };
    let (first, last) = range.split_once("..").expect("DYAD_ENGINE_SEEDS=first..last");
    first.parse().expect("a number")..last.parse().expect("a number")
}

#[cfg(not(feature = "mutations"))]
#[test]
fn power_lost_at_every_write_of_small_workloads_loses_nothing_that_was_committed() {
    let mut happened = Happened::default();
    for seed in seeds(1..4) {
        every_boundary(SMALL, seed, TINY, &mut happened).unwrap();
    }
    println!("{happened:?}");
    assert!(
        happened.cuts > 300 && happened.losers > 20 && happened.redone > 1000 && happened.cut_recoveries > 20,
        "{happened:?}"
    );
}

#[cfg(not(feature = "mutations"))]
#[test]
fn random_workloads_equal_the_model_after_every_loss_of_power() {
    let mut happened = Happened::default();
    // 2095: a full log made a plan anew, and the slot of the first one counted as taken.
    for seed in seeds(100..120).chain([2095]) {
        random(seed, &mut happened).unwrap();
    }
    println!("{happened:?}");
    let all = [happened.commits, happened.rollbacks, happened.losers, happened.cut_recoveries, happened.evicted];
    assert!(all.iter().all(|count| *count > 10), "{happened:?}");
}

#[cfg(feature = "mutations")]
#[test]
fn every_rule_that_is_broken_is_found() {
    use dyad_reactor::mutation::{Mutation, activate};
    for mutation in Mutation::OF_THE_ENGINE {
        activate(Some(mutation));
        let mut happened = Happened::default();
        let found = (1..400).find_map(|seed| {
            let run = std::panic::AssertUnwindSafe(|| {
                random(seed, &mut happened)?;
                if seed < 6 { every_boundary(SMALL, seed, TINY, &mut happened) } else { Ok(()) }
            });
            match std::panic::catch_unwind(run) {
                Ok(done) => done.err(),
                Err(_) => Some(format!("seed {seed}: a panic")),
            }
        });
        activate(None);
        let found = found.unwrap_or_else(|| panic!("{mutation:?} was not found"));
        println!("{mutation:?}: {found}");
    }
}
