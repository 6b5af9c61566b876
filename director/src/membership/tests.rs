//! The machine, one step at a time: what it must wait for before it does anything.

use std::time::Duration;

use dyad_cache::{Epoch, Regime};
use dyad_reactor::Time;

use super::machine::Actions;
use super::{Action, DirectorId, Event, Incarnation, Machine, PairRecord, PairState, PeerMessage, Timing};

const ME: Incarnation = Incarnation(10);
const PARTNER: Incarnation = Incarnation(20);

struct Driver {
    machine: Machine,
    now: Time,
}

impl Driver {
    fn new(me: DirectorId) -> Self {
        Self { machine: Machine::new(me, ME, Timing::default()), now: Time::from_nanos(1_000_000_000) }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Actions::new();
        self.machine.step(self.now, event, &mut actions);
        actions.into_iter().collect()
    }

    fn after(&mut self, time: Duration, event: Event) -> Vec<Action> {
        self.now = self.now + time;
        self.step(event)
    }

    fn heartbeat(&mut self, epoch: u64) -> Vec<Action> {
        let message = PeerMessage::Heartbeat { from: PARTNER, epoch: Epoch(epoch), stamp: Time::from_nanos(7) };
        self.step(Event::Message(message))
    }

    /// Director A, which forms the pair with a fresh partner and waits for it to become a member of epoch 1.
    fn forming() -> Self {
        let mut driver = Self::new(DirectorId::A);
        driver.step(Event::Tick);
        driver.step(Event::Read(PairRecord::initial()));
        driver.step(Event::LinkUp(PARTNER));
        // The record is being read again when the link comes up.
        driver.step(Event::Read(PairRecord::initial()));
        let proposal = cas_of(&driver.heartbeat(0)).expect("both are fresh");
        assert_eq!(proposal.state, PairState::Both { home: DirectorId::A });
        assert_eq!(proposal.members, [ME, PARTNER]);
        let actions = driver.step(Event::CasWon);
        assert!(actions.contains(&Action::Register(Epoch(1))), "{actions:?}");
        assert!(
            actions.contains(&Action::SetLease(Time::ZERO)),
            "a lease of an earlier epoch is none in this one: {actions:?}"
        );
        let epoch = driver.machine.epoch();
        driver.step(Event::Registered(epoch));
        driver
    }

    /// The same, whole as the home of epoch 1.
    fn home() -> Self {
        let mut driver = Self::forming();
        let actions = driver.heartbeat(1);
        assert!(actions.contains(&Action::Welcome(Epoch(1))), "{actions:?}");
        assert_eq!(driver.step(Event::Welcomed(Epoch(1))), [Action::SetRegime(Regime::Mirrored(Epoch(1)))]);
        driver
    }
}

fn cas_of(actions: &[Action]) -> Option<PairRecord> {
    actions.iter().find_map(|action| match action {
        Action::Cas { proposal, .. } => Some(*proposal),
        _ => None,
    })
}

#[test]
fn a_survivor_decides_only_when_every_lease_that_it_granted_has_ended() {
    let mut home = Driver::home();
    let granted = home.heartbeat(1);
    assert!(granted.iter().any(|action| matches!(action, Action::Send(PeerMessage::Grant { .. }))));
    assert_eq!(cas_of(&home.step(Event::LinkDown)), None, "the link is gone, the lease is not");
    assert_eq!(cas_of(&home.after(Duration::from_millis(600), Event::Tick)), None, "the grantee's clock may be slower");
    let actions = home.after(Duration::from_millis(20), Event::Tick);
    let proposal = cas_of(&actions).expect("the lease and the drift are over");
    assert_eq!((proposal.state, proposal.epoch), (PairState::Solo { holder: DirectorId::A, settled: false }, Epoch(2)));
    assert!(actions.contains(&Action::SetRegime(Regime::Undecided)), "nothing is served while the outcome is open");
    assert!(home.step(Event::CasWon).contains(&Action::TakeOver(Epoch(2))));
    let serves = [Action::SetLease(Time::FAR_FUTURE), Action::SetRegime(Regime::Solo(Epoch(2)))];
    assert_eq!(home.step(Event::TookOver(Epoch(2))), serves, "nobody takes over from whoever is settling");
}

#[test]
fn a_partner_that_does_not_become_a_member_in_time_is_missed() {
    let mut home = Driver::forming();
    let mut decided = None;
    for _ in 0..8 {
        // It is alive and knows the record, but has no epoch of its own.
        let grant = PeerMessage::Grant { from: PARTNER, epoch: Epoch(1), stamp: Time::ZERO };
        home.after(Duration::from_millis(100), Event::Message(grant));
        decided = decided.or(cas_of(&home.step(Event::Tick)));
    }
    assert_eq!(decided.map(|record| record.state), Some(PairState::Solo { holder: DirectorId::A, settled: false }));
}

#[test]
fn an_unknown_outcome_is_read_until_it_is_known() {
    let mut home = Driver::home();
    home.step(Event::LinkDown);
    let proposal = cas_of(&home.after(Duration::from_secs(1), Event::Tick)).unwrap();
    assert_eq!(home.step(Event::CasUnknown), []);
    assert_eq!(home.step(Event::Tick), [Action::ReadRecord]);
    assert_eq!(home.step(Event::ReadFailed), []);
    assert_eq!(home.step(Event::Tick), [Action::ReadRecord], "and again");
    // Our own nonce: it was made after all.
    let actions = home.step(Event::Read(proposal));
    assert!(actions.contains(&Action::TakeOver(Epoch(2))), "{actions:?}");
}

#[test]
fn the_loser_stops_and_forgets_nothing_until_the_winner_is_settled() {
    let mut home = Driver::home();
    home.step(Event::LinkDown);
    let proposal = cas_of(&home.after(Duration::from_secs(1), Event::Tick)).unwrap();
    let theirs =
        |settled| PairRecord { state: PairState::Solo { holder: DirectorId::B, settled }, nonce: 99, ..proposal };
    assert_eq!(home.step(Event::CasLost), [Action::ReadRecord]);
    let actions = home.step(Event::Read(theirs(false)));
    assert!(actions.contains(&Action::SetRegime(Regime::Elsewhere)), "{actions:?}");
    home.step(Event::Tick);
    assert_eq!(home.step(Event::Read(theirs(false))), [], "its memory may still be all there is");
    home.step(Event::Tick);
    assert_eq!(home.step(Event::Read(theirs(true))), [Action::Restart]);
}

#[test]
fn a_reservation_conflict_means_stop() {
    let mut home = Driver::home();
    let actions = home.step(Event::Fenced);
    assert_eq!(actions, [Action::SetRegime(Regime::Elsewhere), Action::CloseLink]);
    assert_eq!(home.machine.epoch(), Epoch(0));
}

#[test]
fn lower_epochs_and_strangers_extend_nothing() {
    let mut home = Driver::home();
    assert_eq!(home.heartbeat(0), [], "of no epoch");
    let stranger = PeerMessage::Heartbeat { from: Incarnation(21), epoch: Epoch(1), stamp: Time::ZERO };
    assert_eq!(home.step(Event::Message(stranger)), []);
    let future = PeerMessage::Grant { from: PARTNER, epoch: Epoch(1), stamp: home.now + Duration::from_secs(1) };
    assert_eq!(home.step(Event::Message(future)), [], "nobody grants what was not asked for");
    home.step(Event::PartnerSeen(Incarnation(21)));
    let actions = home.heartbeat(1);
    assert!(
        !actions.iter().any(|action| matches!(action, Action::Send(PeerMessage::Grant { .. }))),
        "the partner died: {actions:?}"
    );
}

#[test]
fn unsettled_data_of_a_lost_director_needs_an_operator() {
    let mut driver = Driver::new(DirectorId::A);
    driver.step(Event::Tick);
    let lost = PairRecord {
        epoch: Epoch(5),
        state: PairState::Solo { holder: DirectorId::B, settled: false },
        members: [Incarnation(1), Incarnation(2)],
        nonce: 1,
    };
    driver.step(Event::Read(lost));
    driver.step(Event::LinkUp(PARTNER));
    driver.step(Event::Read(lost));
    let actions = driver.heartbeat(0);
    assert!(actions.contains(&Action::NeedOperator) && cas_of(&actions).is_none(), "{actions:?}");
}

/// Director A, alone and settled in epoch 2.
fn settled() -> Driver {
    let mut home = Driver::home();
    home.step(Event::LinkDown);
    home.after(Duration::from_secs(1), Event::Tick);
    home.step(Event::CasWon);
    home.step(Event::TookOver(Epoch(2)));
    let begun = home.now;
    let proposal = cas_of(&home.step(Event::Settled)).unwrap();
    assert_eq!(proposal.state, PairState::Solo { holder: DirectorId::A, settled: true });
    // The lease runs from when it was asked for.
    let actions = home.after(Duration::from_millis(50), Event::CasWon);
    assert_eq!(actions, [Action::SetLease(begun + Duration::from_millis(600))]);
    home
}

#[test]
fn a_director_that_is_alone_and_settled_lives_by_changing_the_record() {
    let mut alone = settled();
    let renewal = cas_of(&alone.after(Duration::from_millis(200), Event::Tick)).expect("a third of the lease is over");
    let begun = alone.now;
    assert_eq!(renewal.state, PairState::Solo { holder: DirectorId::A, settled: true });
    // Not known: the record is read, and was not changed when it was asked for.
    alone.after(Duration::from_millis(100), Event::CasUnknown);
    assert_eq!(alone.step(Event::Tick), [Action::ReadRecord]);
    let asked = alone.now;
    assert!(asked > begun);
    let before = PairRecord { nonce: renewal.nonce - 1, ..renewal };
    let again = alone.after(Duration::from_millis(100), Event::Read(before));
    assert_eq!(again, [Action::Cas { expected: before, proposal: renewal }], "and no lease: it was not made");
    let actions = alone.after(Duration::from_millis(100), Event::CasWon);
    assert_eq!(actions, [Action::SetLease(asked + Duration::from_millis(600))]);
}

#[test]
fn a_settled_partner_is_followed_when_its_record_has_not_changed_for_a_lease_and_the_drift() {
    let mut driver = Driver::new(DirectorId::B);
    driver.step(Event::Tick);
    let alone = |nonce| PairRecord {
        epoch: Epoch(5),
        state: PairState::Solo { holder: DirectorId::A, settled: true },
        members: [PARTNER, Incarnation(1)],
        nonce,
    };
    assert_eq!(cas_of(&driver.step(Event::Read(alone(1)))), None);
    driver.after(Duration::from_millis(500), Event::Tick);
    assert_eq!(cas_of(&driver.step(Event::Read(alone(2)))), None, "it lives");
    driver.after(Duration::from_millis(610), Event::Tick);
    assert_eq!(cas_of(&driver.step(Event::Read(alone(2)))), None, "its clock may be slower");
    driver.after(Duration::from_millis(10), Event::Tick);
    let claim = cas_of(&driver.step(Event::Read(alone(2)))).expect("its lease has ended");
    assert_eq!((claim.state, claim.epoch), (PairState::Solo { holder: DirectorId::B, settled: true }, Epoch(6)));
    let actions = driver.step(Event::CasWon);
    assert!(actions.contains(&Action::TakeOver(Epoch(6))), "{actions:?}");
    // It lives by changing the record, too, while it takes over.
    let renewal = cas_of(&driver.after(Duration::from_millis(200), Event::Tick)).unwrap();
    assert_eq!(renewal.epoch, Epoch(6));
    driver.step(Event::CasWon);
    assert_eq!(driver.step(Event::TookOver(Epoch(6))), [Action::SetRegime(Regime::Solo(Epoch(6)))]);
    assert_eq!(driver.machine.state_name(), "solo, settled");
}

#[test]
fn who_claims_too_late_goes_on_joining() {
    let mut driver = Driver::new(DirectorId::B);
    driver.step(Event::Tick);
    let record = PairRecord {
        epoch: Epoch(5),
        state: PairState::Solo { holder: DirectorId::A, settled: true },
        members: [PARTNER, Incarnation(1)],
        nonce: 1,
    };
    driver.step(Event::Read(record));
    driver.after(Duration::from_secs(1), Event::Tick);
    assert!(cas_of(&driver.step(Event::Read(record))).is_some());
    assert_eq!(driver.step(Event::CasLost), [Action::ReadRecord]);
    assert_eq!(driver.step(Event::Read(PairRecord { nonce: 2, ..record })), []);
    assert_eq!(driver.machine.state_name(), "joining");
    let unsettled = PairRecord { state: PairState::Solo { holder: DirectorId::A, settled: false }, ..record };
    driver.step(Event::Tick);
    driver.step(Event::Read(unsettled));
    driver.after(Duration::from_secs(9), Event::Tick);
    assert_eq!(cas_of(&driver.step(Event::Read(unsettled))), None, "it has something that nobody else has");
}
