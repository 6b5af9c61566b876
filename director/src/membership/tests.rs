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
        assert!(actions.contains(&Action::Welcome { epoch: Epoch(1), equalise: false }), "{actions:?}");
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
    assert!(home.step(Event::CasWon).contains(&Action::TakeOver { epoch: Epoch(2), equalise: false }));
    assert_eq!(home.step(Event::TookOver(Epoch(2))), [Action::SetRegime(Regime::Solo(Epoch(2)))]);
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
    assert!(actions.contains(&Action::TakeOver { epoch: Epoch(2), equalise: false }), "{actions:?}");
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
        legs_suspect: false,
        nonce: 1,
    };
    driver.step(Event::Read(lost));
    driver.step(Event::LinkUp(PARTNER));
    driver.step(Event::Read(lost));
    let actions = driver.heartbeat(0);
    assert!(actions.contains(&Action::NeedOperator) && cas_of(&actions).is_none(), "{actions:?}");
}

#[test]
fn a_pair_formed_after_both_were_lost_makes_the_legs_equal_first() {
    let mut driver = Driver::new(DirectorId::A);
    driver.step(Event::Tick);
    let lost = PairRecord {
        epoch: Epoch(5),
        state: PairState::Both { home: DirectorId::B },
        members: [Incarnation(1), Incarnation(2)],
        legs_suspect: false,
        nonce: 1,
    };
    driver.step(Event::Read(lost));
    driver.step(Event::LinkUp(PARTNER));
    driver.step(Event::Read(lost));
    assert_eq!(cas_of(&driver.heartbeat(0)).map(|proposal| proposal.epoch), Some(Epoch(6)));
    driver.step(Event::CasWon);
    let epoch = driver.machine.epoch();
    driver.step(Event::Registered(epoch));
    assert!(driver.heartbeat(6).contains(&Action::Welcome { epoch: Epoch(6), equalise: true }));
}
