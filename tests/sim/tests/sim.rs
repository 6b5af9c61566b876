//! The array in virtual time: seeds that must hold, the same run twice, and rules broken on purpose.

use dyad_sim::faults::FaultKinds;
use dyad_sim::timeline::Detail;
use dyad_sim::{SimOptions, run};

fn options(seed: u64, faults: FaultKinds) -> SimOptions {
    SimOptions { seed, pairs: 1, operations: 1000, faults, detail: Detail::None }
}

#[cfg(not(feature = "mutations"))]
mod rules {
    use super::*;

    /// Runs the seeds; returns how many faults there were.
    fn hold(seeds: impl Iterator<Item = u64>, pairs: usize) -> u64 {
        let mut faults = 0;
        for seed in seeds {
            let outcome = run(SimOptions { pairs, ..options(seed, FaultKinds::ALL) });
            assert_eq!(outcome.failure, None, "dyad sim --seed {seed} --directors {}", pairs * 2);
            faults += outcome.faults;
        }
        faults
    }

    #[test]
    fn without_faults_everything_is_read_back() {
        for seed in 0..10 {
            let outcome = run(options(seed, FaultKinds::NONE));
            assert_eq!(outcome.failure, None, "dyad sim --seed {seed} --faults none");
            assert_eq!(outcome.faults, 0);
        }
    }

    #[test]
    fn the_total_of_a_bank_is_right_whoever_is_lost() {
        let stories: Vec<_> = (0..8).map(|seed| dyad_sim::database::run(seed, 6).unwrap()).collect();
        let sum = |of: fn(&dyad_sim::database::Story) -> u64| stories.iter().map(of).sum::<u64>();
        let (directors, recoveries) = (sum(|story| story.directors), sum(|story| story.recoveries));
        assert!(directors > 15 && recoveries > 15 && sum(|story| story.transfers) > 1000, "{stories:?}");
    }

    // In two parts, which run side by side.
    #[test]
    fn even_seeds_survive_all_faults() {
        assert!(hold((0..200).step_by(2), 1) > 1000);
    }

    #[test]
    fn odd_seeds_survive_all_faults() {
        assert!(hold((1..200).step_by(2), 1) > 1000);
    }

    #[test]
    fn sixteen_directors_survive_all_faults() {
        assert!(hold(0..4, 8) > 100);
    }

    // Seeds that found something, under its name.

    #[test]
    fn a_destage_that_outlives_its_epoch_is_not_overtaken_by_what_was_there_before() {
        let outcome = run(SimOptions { pairs: 2, operations: 2000, ..options(8, FaultKinds::ALL) });
        assert_eq!(outcome.failure, None, "dyad sim --seed 8 --directors 4 --operations 2000");
    }

    #[test]
    fn a_failure_that_only_the_superblocks_know_comes_to_the_record() {
        let outcome = run(SimOptions { pairs: 2, ..options(740, FaultKinds::ALL) });
        assert_eq!(outcome.failure, None, "dyad sim --seed 740 --directors 4");
    }

    #[test]
    fn one_seed_is_one_run() {
        let hashes = [0, 0].map(|_| run(options(7, FaultKinds::ALL)).trace_hash);
        assert_eq!(hashes[0], hashes[1]);
        assert_ne!(hashes[0], run(options(8, FaultKinds::ALL)).trace_hash);
    }
}

#[cfg(feature = "mutations")]
mod mutations {
    use dyad_reactor::mutation::{Mutation, activate};

    use super::*;

    /// Seeds within which each broken rule must be found. Most take a few; which ones changes with every change of what a run does.
    const SEEDS: u64 = 300;

    /// The faults that show it: all, or the few without which it takes more seeds.
    fn faults(mutation: Mutation) -> FaultKinds {
        let list = match mutation {
            Mutation::ReleaseAnyVersion | Mutation::JoinWithoutQuiescing => "crash,delay",
            Mutation::LeaseFromReceipt | Mutation::DecideWithoutWaiting => "link,partition,slow",
            // What is settled in a few milliseconds takes longer when devices sit on it.
            Mutation::SettledWhileDirty => "crash,delay",
            Mutation::LentBuffersAreReused => "pause,path",
            _ => "all",
        };
        FaultKinds::parse(list).expect("kinds of faults")
    }

    #[test]
    fn every_broken_rule_is_found() {
        // A broken rule may as well trip an assertion of the production code: that is finding it, too. No need to print it here.
        std::panic::set_hook(Box::new(|_| {}));
        let mut missed = Vec::new();
        for mutation in Mutation::ALL {
            activate(Some(mutation));
            let failure = |seed| Some((seed, run(options(seed, faults(mutation))).failure?));
            match (0..SEEDS).find_map(failure) {
                Some((seed, failure)) => println!("{mutation:?}: found with seed {seed}: {failure}"),
                None => missed.push(mutation),
            }
        }
        activate(None);
        let _ = std::panic::take_hook();
        assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
    }
}
