//! Pair membership as a state machine (PROTOCOLS 4). All its transitions stand in [`Machine::step`] and this table:
//!
//! | from | when | to | rule |
//! |---|---|---|---|
//! | joining | both directors are fresh, nothing unsettled; A's change to `both` wins | both | 4.6 |
//! | joining | the record says `both` and names this incarnation | both | 4.5 |
//! | joining | the record names this incarnation, but the partner is solo already | restart as a fresh incarnation | 2.1 |
//! | joining | the record of a partner that is alone and settled has not changed for a lease and the drift; our change to `solo` wins | taking over | 4.4 |
//! | both | the partner is missed, or does not become a member in time, and every lease granted to it has ended | deciding | 4.2 |
//! | both | a device says that we are fenced | lost | 5.3 |
//! | deciding | our change `both -> solo` wins | taking over | 4.2 |
//! | deciding | the record names somebody else | lost | 4.2 |
//! | taking over | devices are fenced, the mirror is revoked and adopted | solo (settling) | 4.3 |
//! | solo (settling) | everything is on media or in the vault; our change to `settled` wins | solo (settled) | 4.4 |
//! | solo (settled) | a fresh partner is connected, writes are quiet, it knows the outcomes; our change `solo -> both` wins | both | 4.5, 9.3 |
//! | deciding, solo | a device says that we are fenced, or the record names somebody else | lost | 5.3 |
//! | lost | the winner is settled: nothing here is needed any more | restart as a fresh incarnation | 2.1, 4.2 |
//!
//! A change is one compare-and-swap with a nonce; while its outcome is unknown the record is read again and nothing is
//! served.
//!
//! **The registry lease** of a director that is alone and settled (4.4) is that it keeps changing the record's nonce. A change gives it a lease from
//! the moment at which the record surely was without it. Whoever has seen the record unchanged for that long and the drift changes what it has seen, or
//! loses: so a change of the holder that comes late cannot be made any more. While it is settling nobody takes over, and no lease is needed.

use std::time::Duration;

use dyad_cache::{Epoch, Regime};
use dyad_reactor::Time;
use dyad_reactor::mutation::{Mutation, is_active};

use super::message::PeerMessage;
use super::record::{DirectorId, Incarnation, PairRecord, PairState};

/// How long things take (PROTOCOLS 4.1).
#[derive(Debug, Copy, Clone)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// How long a grant, or a change of the record, lets a director read.
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100), lease: Duration::from_millis(600) }
    }
}

impl Timing {
    /// The same, slower: for machines where a process may not run for a while.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        Self { heartbeat: self.heartbeat * factor, lease: self.lease * factor }
    }

    /// When a lease has surely ended at the grantee, counted from the grant by the granter's clock. Either clock may be 1 % off.
    fn lease_ended(self) -> Duration {
        self.lease * 103 / 100
    }

    /// Between changes of the record by a director that is alone.
    fn renewal(self) -> Duration {
        self.lease / 3
    }

    /// Silence after which the partner is missed.
    fn missed(self) -> Duration {
        self.heartbeat * 3
    }
}

/// What happened.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed; comes several times per heartbeat.
    Tick,
    /// The record was read.
    Read(PairRecord),
    /// The registry did not answer a read.
    ReadFailed,
    /// Our change is the record now.
    CasWon,
    /// The record was another one than the change expected.
    CasLost,
    /// The change was made, or not, or will be.
    CasUnknown,
    /// Both VIs to this incarnation of the partner are connected.
    LinkUp(Incarnation),
    /// The VIs to the partner are gone.
    LinkDown,
    /// Somebody who says it is this incarnation of the partner asked for a connection.
    PartnerSeen(Incarnation),
    /// The partner said something.
    Message(PeerMessage),
    /// [`Action::Register`] is done, in that epoch.
    Registered(Epoch),
    /// [`Action::Welcome`] is done, in that epoch.
    Welcomed(Epoch),
    /// [`Action::TakeOver`] is done, in that epoch.
    TookOver(Epoch),
    /// An action of that epoch could not be done; it is asked for again.
    ActionFailed(Epoch),
    /// Everything acknowledged is on media or in the vault.
    Settled,
    /// [`Action::Quiesce`] is done, in that epoch.
    Quiesced(Epoch),
    /// A device refused us with a reservation conflict.
    Fenced,
}

/// What is to be done.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the record: `Read` or `ReadFailed`.
    ReadRecord,
    /// Replace `expected`: `CasWon`, `CasLost` or `CasUnknown`.
    Cas {
        /// The record as it was last read.
        expected: PairRecord,
        /// The record to be.
        proposal: PairRecord,
    },
    /// Say this to the partner.
    Send(PeerMessage),
    /// From now on serve like this.
    SetRegime(Regime),
    /// Reads are allowed until then.
    SetLease(Time),
    /// Take the VIs from the partner.
    CloseLink,
    /// Make our key of this epoch one of the two that write to the devices: `Registered` or `ActionFailed`.
    Register(Epoch),
    /// As the home: start mirroring to the partner: `Welcomed` or `ActionFailed`.
    Welcome(Epoch),
    /// Fence the partner, revoke the mirror, adopt what it held: `TookOver` or `ActionFailed`.
    TakeOver(Epoch),
    /// Wait until no write is on its way to media, and teach the partner the outcomes of all: `Quiesced` or `ActionFailed`.
    Quiesce(Epoch),
    /// Forget everything and start as a fresh incarnation.
    Restart,
    /// Only an operator can say what to do: one director is lost together with data that only it had.
    NeedOperator,
}

/// The actions of one step.
pub type Actions = heapless::Vec<Action, 8>;

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum State {
    Joining,
    Both {
        stage: BothStage,
        heard: Time,
        granted_until: Time,
    },
    Deciding,
    /// Nobody yet: the partner, alone and settled, has not been heard of in the registry.
    Claiming,
    TakingOver {
        working: bool,
    },
    Solo {
        stage: SoloStage,
    },
    Lost,
    Restarting,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum BothStage {
    /// The devices do not know our key yet.
    Registering { working: bool },
    /// Home: the partner does not know yet that it is a member.
    Awaiting,
    /// Home: it knows; mirroring is being set up.
    Welcoming,
    /// Everything runs.
    Whole,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum SoloStage {
    Settling,
    Settled,
    Quiescing,
    /// The partner knows the outcomes; the registry is busy.
    Quiesced,
    Admitting,
}

/// The outstanding request to the registry; there is never a second one.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Registry {
    Idle,
    Reading,
    Changing(PairRecord),
    /// A change whose outcome is unknown; the record is being read again.
    Unknown {
        proposal: PairRecord,
        reading: bool,
    },
}

/// The membership of one director incarnation.
#[derive(Debug)]
pub struct Machine {
    me: DirectorId,
    incarnation: Incarnation,
    timing: Timing,
    state: State,
    registry: Registry,
    record: Option<PairRecord>,
    /// The partner's incarnation at the other end of the link.
    link: Option<Incarnation>,
    /// The partner, at the other end of the link, is no member of anything.
    partner_fresh: bool,
    /// The partner's process is another one than the record says.
    stranger: bool,
    heartbeat_due: Time,
    changes: u32,
    /// When the change that is outstanding, or was made last, surely had not been made.
    unmade: Time,
    /// When the record that is outstanding was asked for.
    asked: Time,
    /// The nonce of a settled partner's record, and when it was first seen.
    seen: Option<(u64, Time)>,
    renewal_due: Time,
}

impl Machine {
    /// A fresh incarnation that knows nothing.
    #[must_use]
    pub fn new(me: DirectorId, incarnation: Incarnation, timing: Timing) -> Self {
        assert_ne!(incarnation, Incarnation(0), "zero is no incarnation");
        Self {
            me,
            incarnation,
            timing,
            state: State::Joining,
            registry: Registry::Idle,
            record: None,
            link: None,
            partner_fresh: false,
            stranger: false,
            heartbeat_due: Time::ZERO,
            changes: 0,
            unmade: Time::ZERO,
            asked: Time::ZERO,
            seen: None,
            renewal_due: Time::ZERO,
        }
    }

    /// The epoch this director is a member in; zero when it is none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        let member = match self.state {
            // A partner says that it is a member when it is one in every respect; a home at once, so that the partner learns of it.
            State::Both { stage: BothStage::Registering { .. }, .. } => {
                self.record.is_some_and(|record| self.is_home(&record))
            }
            State::Joining | State::Claiming | State::Lost | State::Restarting => false,
            State::Both { .. } | State::Deciding | State::TakingOver { .. } | State::Solo { .. } => true,
        };
        self.record.filter(|_| member).map_or(Epoch(0), |record| record.epoch)
    }

    /// The epoch in which this director answers the home's commits, if it is a partner now.
    #[must_use]
    pub fn mirror_epoch(&self) -> Option<Epoch> {
        let record = self.record?;
        let mirrors = matches!(self.state, State::Both { stage: BothStage::Whole, .. }) && !self.is_home(&record);
        mirrors.then_some(record.epoch)
    }

    /// A connection with a partner of this incarnation would be of use now.
    #[must_use]
    pub fn wants_link(&self, partner: Option<Incarnation>) -> bool {
        let known = self.record.map(|record| record.member(self.me.partner()));
        match self.state {
            State::Joining => self.record.is_some(),
            State::Solo { stage: SoloStage::Settled } => partner.is_none() || partner != known,
            _ => false,
        }
    }

    /// It is the home, or becomes it: only then may it put devices on record as failed.
    #[must_use]
    pub fn is_or_becomes_home(&self) -> bool {
        match self.state {
            State::Both { .. } => self.record.is_some_and(|record| self.is_home(&record)),
            State::TakingOver { .. } | State::Solo { .. } => true,
            State::Joining | State::Deciding | State::Claiming | State::Lost | State::Restarting => false,
        }
    }

    /// It is no member yet: a director that is alone may teach it what was applied.
    #[must_use]
    pub fn is_joining(&self) -> bool {
        self.state == State::Joining
    }

    /// [`Event::Settled`] would change something now.
    #[must_use]
    pub fn awaits_settling(&self) -> bool {
        self.state == (State::Solo { stage: SoloStage::Settling }) && self.registry == Registry::Idle
    }

    /// One word for status displays and traces.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Joining => "joining",
            State::Both {
                stage: BothStage::Registering { .. } | BothStage::Awaiting | BothStage::Welcoming, ..
            } => "both, forming",
            State::Both { stage: BothStage::Whole, .. } => "both",
            State::Deciding => "deciding",
            State::Claiming => "claiming",
            State::TakingOver { .. } => "taking over",
            State::Solo { stage: SoloStage::Settling } => "solo, settling",
            State::Solo { .. } => "solo, settled",
            State::Lost => "lost",
            State::Restarting => "restarting",
        }
    }

    /// Whether this director is the home of the group now.
    #[must_use]
    pub fn serves(&self) -> bool {
        match self.state {
            State::Both { stage: BothStage::Whole, .. } => self.record.is_some_and(|record| self.is_home(&record)),
            State::Solo { .. } => true,
            _ => false,
        }
    }

    /// Takes what happened and says what to do.
    pub fn step(&mut self, now: Time, event: Event, actions: &mut Actions) {
        // What was begun in an epoch that is over says nothing about this one.
        if let Event::Registered(epoch)
        | Event::Welcomed(epoch)
        | Event::TookOver(epoch)
        | Event::ActionFailed(epoch)
        | Event::Quiesced(epoch) = event
            && self.record.map(|record| record.epoch) != Some(epoch)
        {
            return;
        }
        match event {
            Event::Tick => self.tick(now, actions),
            Event::LinkUp(partner) => {
                assert!(self.link.is_none(), "one link at a time");
                self.link = Some(partner);
                self.partner_fresh = false;
                self.heartbeat_due = now;
                self.tick(now, actions);
            }
            Event::LinkDown => {
                self.link = None;
                self.partner_fresh = false;
                if let State::Solo { stage: stage @ (SoloStage::Quiescing | SoloStage::Quiesced) } = &mut self.state {
                    *stage = SoloStage::Settled;
                    self.serve_solo(actions);
                }
                self.tick(now, actions);
            }
            Event::PartnerSeen(partner) => {
                let member = self.record.map(|record| record.member(self.me.partner()));
                self.stranger |= matches!(self.state, State::Both { .. }) && member != Some(partner);
                self.tick(now, actions);
            }
            Event::Message(message) => self.heard(now, message, actions),
            Event::Read(record) => self.read(now, record, actions),
            Event::ReadFailed => self.registry_silent(),
            Event::CasUnknown => {
                let Registry::Changing(proposal) = self.registry else { panic!("an outcome of no change") };
                self.registry = Registry::Unknown { proposal, reading: false };
            }
            Event::CasWon => {
                let Registry::Changing(proposal) = self.registry else { panic!("an outcome of no change") };
                self.registry = Registry::Idle;
                self.change_won(now, proposal, actions);
            }
            Event::CasLost => {
                let Registry::Changing(proposal) = self.registry else { panic!("an outcome of no change") };
                // Somebody else's change, or our own that was reported unknown before: the nonce will tell.
                self.registry = Registry::Unknown { proposal, reading: true };
                self.ask(now, actions);
            }
            Event::Registered(_) => {
                let home = self.record.is_some_and(|record| self.is_home(&record));
                if let State::Both { stage: stage @ BothStage::Registering { .. }, heard, .. } = &mut self.state {
                    *stage = if home { BothStage::Awaiting } else { BothStage::Whole };
                    *heard = now;
                    self.heartbeat_due = now;
                    self.tick(now, actions);
                }
            }
            Event::Welcomed(_) => {
                if let State::Both { stage: stage @ BothStage::Welcoming, .. } = &mut self.state {
                    *stage = BothStage::Whole;
                    push(actions, Action::SetRegime(Regime::Mirrored(self.epoch())));
                }
            }
            Event::TookOver(_) => {
                if let State::TakingOver { .. } = self.state {
                    let stage = if self.is_settled() { SoloStage::Settled } else { SoloStage::Settling };
                    self.state = State::Solo { stage };
                    if stage == SoloStage::Settling {
                        push(actions, Action::SetLease(Time::FAR_FUTURE));
                    }
                    self.serve_solo(actions);
                }
            }
            Event::ActionFailed(_) => match &mut self.state {
                State::TakingOver { working } | State::Both { stage: BothStage::Registering { working }, .. } => {
                    *working = false
                }
                State::Both { stage: stage @ BothStage::Welcoming, .. } => *stage = BothStage::Awaiting,
                State::Solo { stage: stage @ SoloStage::Quiescing } => {
                    *stage = SoloStage::Settled;
                    self.partner_fresh = false;
                    self.serve_solo(actions);
                }
                _ => {}
            },
            Event::Settled => {
                if self.awaits_settling() {
                    self.change(now, actions, |record, me| {
                        record.state = PairState::Solo { holder: me, settled: true }
                    });
                    self.renew_lease(actions);
                }
            }
            Event::Quiesced(_) => {
                if let State::Solo { stage: stage @ SoloStage::Quiescing } = &mut self.state {
                    *stage = SoloStage::Quiesced;
                    self.tick(now, actions);
                }
            }
            Event::Fenced => match self.state {
                State::Both { .. } | State::Deciding | State::Solo { .. } => self.lose(actions),
                // Until the takeover is done the devices may well be somebody else's.
                State::Joining | State::Claiming | State::TakingOver { .. } | State::Lost | State::Restarting => {}
            },
        }
    }

    fn tick(&mut self, now: Time, actions: &mut Actions) {
        if self.link.is_some() && now >= self.heartbeat_due {
            self.heartbeat_due = now + self.timing.heartbeat;
            push(
                actions,
                Action::Send(PeerMessage::Heartbeat { from: self.incarnation, epoch: self.epoch(), stamp: now }),
            );
        }
        if let Registry::Unknown { proposal, reading: false } = self.registry {
            self.registry = Registry::Unknown { proposal, reading: true };
            self.ask(now, actions);
        }
        match self.state {
            State::Joining => {
                self.consider_forming(now, actions);
                if self.registry == Registry::Idle {
                    self.registry = Registry::Reading;
                    self.ask(now, actions);
                }
            }
            State::Both { stage, heard, granted_until } => {
                if self.misses_partner(now, stage, heard)
                    && (now >= granted_until || is_active(Mutation::DecideWithoutWaiting))
                    && self.registry == Registry::Idle
                {
                    self.state = State::Deciding;
                    self.stop(actions, Regime::Undecided);
                    self.change(now, actions, |record, me| {
                        record.state = PairState::Solo { holder: me, settled: false };
                        record.epoch = Epoch(record.epoch.0 + 1);
                    });
                } else if stage == (BothStage::Registering { working: false }) {
                    self.register(actions);
                }
            }
            State::Deciding | State::Claiming => {}
            State::TakingOver { working: false } => {
                self.state = State::TakingOver { working: true };
                push(actions, Action::TakeOver(self.epoch()));
            }
            State::Solo { stage: SoloStage::Settled }
                if self.link.is_some() && self.partner_fresh && self.registry == Registry::Idle =>
            {
                self.state = State::Solo { stage: SoloStage::Quiescing };
                push(actions, Action::SetRegime(Regime::Undecided));
                push(actions, Action::Quiesce(self.epoch()));
            }
            State::Solo { stage: SoloStage::Quiesced } if self.registry == Registry::Idle => {
                if let Some(partner) = self.link {
                    self.state = State::Solo { stage: SoloStage::Admitting };
                    self.change(now, actions, |record, me| form_both(record, me, partner));
                }
            }
            State::TakingOver { working: true } | State::Solo { .. } | State::Restarting => {}
            State::Lost => {
                if self.registry == Registry::Idle {
                    self.registry = Registry::Reading;
                    self.ask(now, actions);
                }
            }
        }
        self.keep_lease(now, actions);
    }

    /// Alone and settled: changes the record, so that nobody takes it for left (PROTOCOLS 4.4).
    fn keep_lease(&mut self, now: Time, actions: &mut Actions) {
        let holds = matches!(self.state, State::TakingOver { .. } | State::Solo { .. }) && self.is_settled();
        if holds && self.registry == Registry::Idle && now >= self.renewal_due {
            self.change(now, actions, |_, _| {});
        }
    }

    /// The record says that this director is alone, and that nothing is in its memory only.
    fn is_settled(&self) -> bool {
        self.record.is_some_and(|record| record.state == PairState::Solo { holder: self.me, settled: true })
    }

    /// From when the record surely was without the change that gives it.
    fn renew_lease(&self, actions: &mut Actions) {
        push(actions, Action::SetLease(self.unmade + self.timing.lease));
    }

    fn ask(&mut self, now: Time, actions: &mut Actions) {
        self.asked = now;
        push(actions, Action::ReadRecord);
    }

    fn misses_partner(&self, now: Time, stage: BothStage, heard: Time) -> bool {
        let patience = if stage == BothStage::Awaiting { self.timing.lease } else { self.timing.missed() };
        self.link.is_none() || self.stranger || now.since(heard) > patience
    }

    fn heard(&mut self, now: Time, message: PeerMessage, actions: &mut Actions) {
        let (PeerMessage::Heartbeat { from, epoch, stamp } | PeerMessage::Grant { from, epoch, stamp }) = message;
        // Unknown incarnations and lower epochs are refused (PROTOCOLS 2.2).
        if self.link != Some(from) {
            return;
        }
        self.partner_fresh = epoch == Epoch(0);
        match &mut self.state {
            State::Both { stage, heard, granted_until } => {
                let record = self.record.expect("a member has read its record");
                if record.member(self.me.partner()) != from || epoch != record.epoch {
                    return;
                }
                // A partner that cannot become a member, because a device is gone that only the home may put on record, is missed like
                // one that is silent: the home, alone again, will find out what hinders it.
                let is_member = *stage != BothStage::Awaiting || matches!(message, PeerMessage::Heartbeat { .. });
                if is_member {
                    *heard = now;
                }
                match message {
                    PeerMessage::Heartbeat { .. } if !self.stranger => {
                        if *stage == BothStage::Awaiting {
                            *stage = BothStage::Welcoming;
                            push(actions, Action::Welcome(record.epoch));
                        }
                        *granted_until = now + self.timing.lease_ended();
                        push(actions, Action::Send(PeerMessage::Grant { from: self.incarnation, epoch, stamp }));
                    }
                    PeerMessage::Heartbeat { .. } => {}
                    // A grant answers a heartbeat of ours: a stamp from the future is nonsense.
                    PeerMessage::Grant { .. } if stamp <= now => {
                        let from = if is_active(Mutation::LeaseFromReceipt) { now } else { stamp };
                        push(actions, Action::SetLease(from + self.timing.lease));
                    }
                    PeerMessage::Grant { .. } => {}
                }
            }
            State::Joining => {
                let known = self.record.map_or(Epoch(0), |record| record.epoch);
                if epoch > known && self.registry == Registry::Idle {
                    self.registry = Registry::Reading;
                    self.ask(now, actions);
                }
                self.consider_forming(now, actions);
            }
            State::Solo { .. } => self.tick(now, actions),
            State::Deciding | State::Claiming | State::TakingOver { .. } | State::Lost | State::Restarting => {}
        }
    }

    /// Both fresh: director A forms the pair, if nothing is lost by it (PROTOCOLS 4.6).
    fn consider_forming(&mut self, now: Time, actions: &mut Actions) {
        let (Some(record), Some(partner)) = (self.record, self.link) else { return };
        if self.me != DirectorId::A
            || self.registry != Registry::Idle
            || !self.partner_fresh
            || record.member(DirectorId::B) == partner
        {
            return;
        }
        match record.state {
            PairState::Solo { settled: false, .. } => push(actions, Action::NeedOperator),
            PairState::Down | PairState::Both { .. } | PairState::Solo { settled: true, .. } => {
                self.change(now, actions, |record, me| form_both(record, me, partner));
            }
        }
    }

    /// The partner is alone and settled, and has not changed the record for as long as any lease of its could last: what it had is on media or in the
    /// vault. So whoever takes over is settled, too (PROTOCOLS 4.4).
    fn consider_claiming(&mut self, now: Time, record: PairRecord, actions: &mut Actions) {
        if record.state != (PairState::Solo { holder: self.me.partner(), settled: true }) {
            self.seen = None;
            return;
        }
        let since = self.seen.filter(|(nonce, _)| *nonce == record.nonce).map_or(now, |(_, since)| since);
        self.seen = Some((record.nonce, since));
        let over = now.since(since) > self.timing.lease_ended() || is_active(Mutation::ClaimWithoutWaiting);
        if over && self.registry == Registry::Idle {
            self.state = State::Claiming;
            self.change(now, actions, |record, me| {
                record.state = PairState::Solo { holder: me, settled: true };
                record.epoch = Epoch(record.epoch.0 + 1);
            });
        }
    }

    fn read(&mut self, now: Time, record: PairRecord, actions: &mut Actions) {
        match std::mem::replace(&mut self.registry, Registry::Idle) {
            Registry::Reading => self.learn(now, record, actions),
            Registry::Unknown { proposal, .. }
                if record.nonce == proposal.nonce
                    || (is_active(Mutation::NonceIsIgnored) && record.epoch == proposal.epoch) =>
            {
                self.change_won(now, proposal, actions)
            }
            Registry::Unknown { proposal, .. } if Some(record) == self.record => {
                // Not made (yet): asking for the same again cannot make it twice.
                self.registry = Registry::Changing(proposal);
                self.unmade = self.asked;
                push(actions, Action::Cas { expected: record, proposal });
            }
            Registry::Unknown { .. } => self.change_lost(now, record, actions),
            Registry::Idle | Registry::Changing(_) => panic!("a record that nobody asked for"),
        }
    }

    fn registry_silent(&mut self) {
        self.registry = match self.registry {
            Registry::Reading => Registry::Idle,
            Registry::Unknown { proposal, .. } => Registry::Unknown { proposal, reading: false },
            Registry::Idle | Registry::Changing(_) => panic!("a failed read that nobody asked for"),
        };
    }

    fn learn(&mut self, now: Time, record: PairRecord, actions: &mut Actions) {
        match self.state {
            State::Joining => {
                self.record = Some(record);
                let named = record.member(self.me) == self.incarnation || is_active(Mutation::FreshLeavesBoth);
                if let (true, PairState::Both { home }) = (named, record.state) {
                    assert_eq!(home, self.me.partner(), "a home learns that it is one from its own change");
                    self.state = State::Both {
                        stage: BothStage::Registering { working: false },
                        heard: now,
                        granted_until: now,
                    };
                    self.tick(now, actions);
                } else if named {
                    // It was a member and did not live to see it: the partner went on without it.
                    self.state = State::Restarting;
                    push(actions, Action::Restart);
                } else {
                    self.consider_forming(now, actions);
                    self.consider_claiming(now, record, actions);
                }
            }
            State::Lost => {
                let needed = matches!(record.state, PairState::Solo { settled: false, .. })
                    || record.member(self.me) == self.incarnation && { matches!(record.state, PairState::Both { .. }) };
                if !needed {
                    self.state = State::Restarting;
                    push(actions, Action::Restart);
                }
            }
            State::Both { .. }
            | State::Deciding
            | State::Claiming
            | State::TakingOver { .. }
            | State::Solo { .. }
            | State::Restarting => {}
        }
    }

    fn change_won(&mut self, now: Time, proposal: PairRecord, actions: &mut Actions) {
        self.record = Some(proposal);
        match self.state {
            State::Joining | State::Solo { stage: SoloStage::Admitting } => {
                self.stranger = false;
                self.state =
                    State::Both { stage: BothStage::Registering { working: false }, heard: now, granted_until: now };
                self.heartbeat_due = now;
                push(actions, Action::SetRegime(Regime::Undecided));
                // A lease that an earlier partner granted says nothing about this one.
                push(actions, Action::SetLease(Time::ZERO));
                self.tick(now, actions);
            }
            State::Deciding => {
                self.state = State::TakingOver { working: false };
                self.tick(now, actions);
            }
            State::Claiming => {
                self.state = State::TakingOver { working: false };
                self.renew_lease(actions);
                // Whoever is at the other end of the link: it is not a partner of this epoch.
                self.stop(actions, Regime::Undecided);
                self.tick(now, actions);
            }
            State::Solo { stage: SoloStage::Settling } => {
                self.state = State::Solo { stage: SoloStage::Settled };
                self.renew_lease(actions);
            }
            State::Solo { .. } | State::TakingOver { .. } => self.renew_lease(actions),
            State::Both { .. } => unreachable!("no change is asked for in {:?}", self.state),
            // Fenced while the change was under way: somebody took over from the record that we wrote.
            State::Lost | State::Restarting => {}
        }
    }

    fn change_lost(&mut self, now: Time, record: PairRecord, actions: &mut Actions) {
        match self.state {
            State::Claiming => {
                self.state = State::Joining;
                self.learn(now, record, actions);
            }
            State::Joining | State::Lost => self.learn(now, record, actions),
            State::Restarting => {}
            State::Both { .. } | State::Deciding | State::TakingOver { .. } | State::Solo { .. } => {
                self.record = Some(record);
                self.lose(actions);
            }
        }
    }

    fn change(&mut self, now: Time, actions: &mut Actions, edit: impl FnOnce(&mut PairRecord, DirectorId)) {
        assert_eq!(self.registry, Registry::Idle, "one change at a time");
        let expected = self.record.expect("a change starts from a record that was read");
        let mut proposal = expected;
        edit(&mut proposal, self.me);
        self.changes += 1;
        proposal.nonce = u64::from(self.incarnation.0) << 32 | u64::from(self.changes);
        proposal.members[usize::from(self.me.index())] = self.incarnation;
        self.registry = Registry::Changing(proposal);
        self.unmade = now;
        self.renewal_due = now + self.timing.renewal();
        push(actions, Action::Cas { expected, proposal });
    }

    fn register(&mut self, actions: &mut Actions) {
        let record = self.record.expect("a member has read its record");
        if let State::Both { stage: BothStage::Registering { working }, .. } = &mut self.state {
            *working = true;
            push(actions, Action::Register(record.epoch));
        }
    }

    fn serve_solo(&self, actions: &mut Actions) {
        push(actions, Action::SetRegime(Regime::Solo(self.epoch())));
    }

    fn lose(&mut self, actions: &mut Actions) {
        self.state = State::Lost;
        self.stop(actions, Regime::Elsewhere);
    }

    fn stop(&self, actions: &mut Actions, regime: Regime) {
        push(actions, Action::SetRegime(regime));
        push(actions, Action::CloseLink);
    }

    fn is_home(&self, record: &PairRecord) -> bool {
        record.state == PairState::Both { home: self.me }
    }
}

fn form_both(record: &mut PairRecord, me: DirectorId, partner: Incarnation) {
    record.state = PairState::Both { home: me };
    record.epoch = Epoch(record.epoch.0 + 1);
    record.members[usize::from(me.partner().index())] = partner;
}

fn push(actions: &mut Actions, action: Action) {
    assert!(actions.push(action).is_ok(), "a step has few actions");
}
