//! Does faults to a pair, at moments that the seed chooses, and mends them later.

use std::time::Duration;

use dyad_backend::fake::{BadBlock, Delay, FakeDevice};
use dyad_director::membership::{DirectorId, PairState};
use dyad_director::registry::{Faults, Link};
use dyad_matrix::frames::FRAME_BYTES;
use dyad_matrix::sim::LinkProfile;
use dyad_nvme::types::Lba;
use dyad_reactor::{Rng, SeededRng, Time};

use crate::chance::{one_of, place, up_to};
use crate::faults::{Fault, FaultKinds};
use crate::kernel::Kernel;
use crate::pair::{BOTH, HOSTS, Pair, VOLUME_BLOCKS};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Repair {
    Start(DirectorId),
    StartHost(usize),
    ResumeHost(usize),
    Resume(DirectorId),
    Heal { from: String, to: String },
    Hasten { from: String, to: String },
    Registry,
    RegistryLink(DirectorId),
    NoDelay,
}

/// Does things to a pair.
pub struct Injector {
    kinds: FaultKinds,
    rng: SeededRng,
    next: Time,
    /// At most this long from one fault to the next.
    between: Duration,
    repairs: Vec<(Time, Repair)>,
    /// The device that all faults of devices happen to: of two legs one must be good.
    weak: usize,
    weak_is_gone: bool,
    done: u64,
    /// The next fault waits for an operation, but not for ever.
    waits: bool,
    seen: [&'static str; 2],
}

impl Injector {
    /// An injector that uses `kinds`.
    #[must_use]
    pub fn new(kinds: FaultKinds, mut rng: SeededRng) -> Self {
        let next = Time::from_nanos(300_000_000 + rng.below(1_000_000_000));
        let between = Duration::from_millis(300 + rng.below(1700));
        let weak = usize::from(rng.one_in(2));
        Self {
            kinds,
            rng,
            next,
            between,
            repairs: Vec::new(),
            weak,
            weak_is_gone: false,
            done: 0,
            waits: false,
            seen: [""; 2],
        }
    }

    /// Faults so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.done
    }

    /// It does anything at all.
    #[must_use]
    pub fn has_any(&self) -> bool {
        self.kinds != FaultKinds::NONE
    }

    /// Everything is repaired that ever will be.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        self.repairs.is_empty()
    }

    /// When there is something to do.
    #[must_use]
    pub fn next_moment(&self) -> Time {
        self.repairs.iter().map(|(at, _)| *at).chain([self.next]).min().unwrap_or(self.next)
    }

    /// Does what is due: repairs, directors that want to begin anew, and, while `active`, a new fault.
    pub fn act(&mut self, kernel: &mut Kernel, pair: &mut Pair, active: bool) {
        let now = kernel.now();
        if let Some(ended) = pair.ended() {
            self.crash(kernel, pair, ended);
        }
        while let Some(due) = self.repairs.iter().position(|(at, _)| *at <= now) {
            let (_, repair) = self.repairs.swap_remove(due);
            self.repair(kernel, pair, repair);
        }
        if !active {
            self.next = Time::FAR_FUTURE;
            return;
        }
        // The moments around a change of state are the interesting ones.
        let states = BOTH.map(|me| pair.state_name(me));
        if std::mem::replace(&mut self.seen, states) != states && self.rng.one_in(3) {
            let soon = now + up_to(&mut self.rng, Duration::from_millis(30));
            self.next = self.next.min(soon);
        }
        let trap = pair.workload.trap().clone();
        if now < self.next && !trap.is_sprung() {
            return;
        }
        if self.waits || self.rng.one_in(4) {
            self.waits = false;
            trap.unset();
            self.next = now + up_to(&mut self.rng, self.between);
            self.done += u64::from(self.inject(kernel, pair));
        } else {
            self.waits = true;
            trap.set();
            self.next = now + pair.timing().lease;
        }
    }

    fn repair(&mut self, kernel: &mut Kernel, pair: &mut Pair, repair: Repair) {
        pair.timeline.say(|| format!("repair: {repair:?}"));
        match repair {
            Repair::Start(director) => pair.start_director(kernel, director),
            Repair::StartHost(host) => pair.start_host(kernel, host),
            Repair::ResumeHost(host) => pair.resume_host(kernel, host),
            Repair::Resume(director) => pair.resume_director(kernel, director),
            Repair::Heal { from, to } => pair.fabric.heal(&from, &to),
            Repair::Hasten { from, to } => pair.fabric.set_link(&from, &to, pair.link),
            Repair::Registry => pair.registry.set_faults(Faults::default()),
            Repair::RegistryLink(director) => {
                if let Some(director) = pair.director(director) {
                    director.registry.set_link(Link::Up);
                }
            }
            Repair::NoDelay => pair.media.iter().for_each(|medium| medium.set_delay(None)),
        }
    }

    /// A random fault, if it is one of the kinds and within its limits now.
    fn inject(&mut self, kernel: &mut Kernel, pair: &mut Pair) -> bool {
        let kinds: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| self.kinds.has(*fault)).collect();
        let Some(fault) = kinds.get(place(&mut self.rng, kinds.len())) else { return false };
        let director = one_of(&mut self.rng, &BOTH);
        let lease = pair.timing().lease;
        match fault {
            Fault::Crash if may_crash(pair, director) => {
                if !pair.is_whole() {
                    // Its partner knows nothing yet (PROTOCOLS 9.1 is about the loss of one).
                    pair.workload.model().outcomes_lost();
                }
                self.crash(kernel, pair, director);
            }
            Fault::Pause if pair.node(director).is_some() => {
                // Mostly the one that moves bytes, while it does.
                let director = pair.home().filter(|_| !self.rng.one_in(4)).unwrap_or(director);
                if !self.rng.one_in(4) {
                    pair.run_until_writing(kernel, director);
                }
                pair.pause_director(kernel, director);
                let time = self.either(2, lease * 4, lease / 2);
                self.mend_after(kernel, time, Repair::Resume(director));
            }
            Fault::Link => {
                let (a, b) = (pair.name(DirectorId::A), pair.name(DirectorId::B));
                let time = self.either(2, lease * 3, lease / 10);
                self.cut(kernel, pair, &a, &b, time);
            }
            Fault::Path => {
                let host = pair.host_name(place(&mut self.rng, HOSTS));
                let time = self.either(2, lease * 3, lease / 10);
                self.cut(kernel, pair, &host, &pair.name(director), time);
            }
            Fault::Partition => self.partition(kernel, pair),
            Fault::Slow => {
                let latency = up_to(&mut self.rng, lease / 2);
                for from in self.ways() {
                    let (from, to) = (pair.name(*from), pair.name(from.partner()));
                    pair.timeline.say(|| format!("{from} -> {to} takes {latency:?}"));
                    pair.fabric.set_link(&from, &to, LinkProfile { latency, ..pair.link });
                    let time = up_to(&mut self.rng, lease * 3);
                    self.mend_after(kernel, time, Repair::Hasten { from, to });
                }
            }
            Fault::Registry => self.registry(kernel, pair, director),
            Fault::Delay => {
                let delay = Delay { one_in: 1 + self.rng.below(16), by: self.either(2, lease * 3, lease / 4) };
                pair.timeline.say(|| format!("devices sit on commands: {delay:?}"));
                pair.media.iter().for_each(|medium| medium.set_delay(Some(delay)));
                let time = up_to(&mut self.rng, lease * 2);
                self.mend_after(kernel, time, Repair::NoDelay);
            }
            Fault::Media if !self.weak_is_gone => {
                let lba = Lba(self.rng.below(VOLUME_BLOCKS));
                let from = Pair::on_device(Lba(self.rng.below(VOLUME_BLOCKS)));
                let how = if self.rng.one_in(2) { BadBlock::UntilWritten } else { BadBlock::Misdirected { from } };
                pair.timeline.say(|| format!("device {} of {lba:?}: {how:?}", self.weak));
                pair.media[self.weak].spoil(Pair::on_device(lba), how);
            }
            Fault::Device if !self.weak_is_gone && self.rng.one_in(8) => {
                pair.timeline.say(|| format!("device {} is gone", self.weak));
                self.weak_is_gone = true;
                pair.media[self.weak].fail();
            }
            Fault::Controller if !self.weak_is_gone && self.rng.one_in(4) => {
                let (name, weak) = (pair.name(director), self.weak);
                pair.timeline.say(|| format!("{name} loses its controller of device {weak}"));
                pair.controller(director, weak, FakeDevice::remove);
            }
            Fault::Reset if !self.weak_is_gone => {
                let (name, weak) = (pair.name(director), self.weak);
                pair.timeline.say(|| format!("{name}'s controller of device {weak} is reset"));
                pair.controller(director, weak, FakeDevice::reset);
            }
            Fault::Shelf if pair.is_whole() => {
                let medium = place(&mut self.rng, 2);
                pair.timeline.say(|| format!("device {medium} starts again without reservations"));
                pair.media[medium].power_loss();
                pair.media[medium].forget_reservations();
            }
            Fault::Memory => return self.damage(kernel, pair),
            Fault::Host if self.rng.one_in(2) => {
                let host = place(&mut self.rng, HOSTS);
                if !pair.has_host(host) {
                    return false;
                }
                if self.rng.one_in(2) {
                    pair.pause_host(kernel, host);
                    let time = self.either(2, lease * 4, lease / 2);
                    self.mend_after(kernel, time, Repair::ResumeHost(host));
                } else {
                    pair.kill_host(kernel, host);
                    let time = up_to(&mut self.rng, lease);
                    self.mend_after(kernel, time, Repair::StartHost(host));
                }
            }
            Fault::Power if may_lose_power(pair) && self.rng.one_in(3) => self.power(kernel, pair),
            _ => return false,
        }
        true
    }

    fn crash(&mut self, kernel: &mut Kernel, pair: &mut Pair, director: DirectorId) {
        pair.kill_director(kernel, director);
        self.repairs.retain(|(_, repair)| *repair != Repair::Resume(director));
        let time = self.either(3, Duration::from_millis(50), Duration::from_secs(2));
        self.mend_after(kernel, time, Repair::Start(director));
    }

    fn cut(&mut self, kernel: &Kernel, pair: &Pair, one: &str, other: &str, time: Duration) {
        let ways = self.ways();
        for (way, (from, to)) in [(DirectorId::A, (one, other)), (DirectorId::B, (other, one))] {
            if ways.contains(&way) {
                pair.timeline.say(|| format!("{from} -> {to} is cut"));
                pair.fabric.cut(from, to);
                let time = time + up_to(&mut self.rng, Duration::from_millis(20));
                self.mend_after(kernel, time, Repair::Heal { from: from.to_owned(), to: to.to_owned() });
            }
        }
    }

    fn partition(&mut self, kernel: &Kernel, pair: &Pair) {
        let lease = pair.timing().lease;
        let time = self.either(2, lease * 3, lease);
        let mut parts: [Vec<String>; 2] = BOTH.map(|me| vec![pair.name(me)]);
        for host in 0..HOSTS {
            parts[place(&mut self.rng, 2)].push(pair.host_name(host));
        }
        pair.timeline.say(|| format!("partition: {parts:?}"));
        for one in &parts[0] {
            for other in &parts[1] {
                for (from, to) in [(one, other), (other, one)] {
                    pair.fabric.cut(from, to);
                    self.mend_after(kernel, time, Repair::Heal { from: from.clone(), to: to.clone() });
                }
            }
        }
    }

    fn registry(&mut self, kernel: &Kernel, pair: &Pair, director: DirectorId) {
        let time = up_to(&mut self.rng, pair.timing().lease * 4);
        if let Some(running) = pair.director(director).filter(|_| self.rng.one_in(2)) {
            let link = if self.rng.one_in(2) { Link::RequestsLost } else { Link::AnswersLost };
            pair.timeline.say(|| format!("registry and {director:?}: {link:?}"));
            running.registry.set_link(link);
            return self.mend_after(kernel, time, Repair::RegistryLink(director));
        }
        let mut one_in = || if self.rng.one_in(2) { 0 } else { 1 + self.rng.below(4) };
        let mut faults = Faults { request_lost: one_in(), answer_lost: one_in(), duplicated: one_in(), late: one_in() };
        if self.kinds.has(Fault::Power) {
            // A change that arrives when its author has lost power would need an operator.
            faults.late = 0;
        }
        pair.timeline.say(|| format!("registry: {faults:?}"));
        pair.registry.set_faults(faults);
        self.mend_after(kernel, time, Repair::Registry);
    }

    /// Damages one block that the partner holds, and crashes the home.
    fn damage(&mut self, kernel: &mut Kernel, pair: &mut Pair) -> bool {
        let Some(home) = pair.home().filter(|home| may_crash(pair, *home) && pair.is_whole()) else { return false };
        let Some(mirror) = pair.director(home.partner()).and_then(|partner| partner.mirror()) else { return false };
        let frame = self.rng.below(mirror.len() / FRAME_BYTES as u64) * FRAME_BYTES as u64;
        // Contents begin with the number of their block.
        let mut block = [0; 8];
        mirror.read(frame, &mut block).expect("a frame of the mirror");
        let block = u64::from_le_bytes(block);
        let at = frame + 64 + self.rng.below(FRAME_BYTES as u64 - 64);
        let mut byte = [0];
        mirror.read(at, &mut byte).expect("a byte of the mirror");
        mirror.write(at, &[byte[0] ^ 0x40]).expect("a byte of the mirror");
        pair.timeline.say(|| format!("the mirrored copy of block {block} is damaged"));
        self.crash(kernel, pair, home);
        pair.workload.model().lost(block, kernel.now());
        true
    }

    fn power(&mut self, kernel: &mut Kernel, pair: &mut Pair) {
        pair.timeline.say(|| "power is lost".to_owned());
        let mut back = Vec::new();
        for director in BOTH {
            if pair.director(director).is_none() {
                continue;
            }
            pair.kill_director(kernel, director);
            self.repairs.retain(|(_, repair)| *repair != Repair::Resume(director));
            back.push(Repair::Start(director));
        }
        for host in 0..HOSTS {
            if pair.has_host(host) {
                pair.kill_host(kernel, host);
                back.push(Repair::StartHost(host));
            }
        }
        pair.media.iter().for_each(dyad_backend::fake::FakeMedium::power_loss);
        pair.workload.model().power_lost(kernel.now());
        for repair in back {
            let time = self.either(2, Duration::from_millis(50), Duration::from_secs(2));
            self.mend_after(kernel, time, repair);
        }
    }

    fn mend_after(&mut self, kernel: &Kernel, time: Duration, repair: Repair) {
        let at = kernel.now() + time;
        // What is done twice is mended once, when the second one ends.
        self.repairs.retain(|(_, other)| *other != repair);
        self.repairs.push((at, repair));
    }

    /// One way of two, or both, by the director that the first end is or stands for.
    fn ways(&mut self) -> &'static [DirectorId] {
        one_of(&mut self.rng, &[&BOTH[..], &BOTH[..1], &BOTH[1..]])
    }

    /// Up to `some` once in `one_in` times, else up to `others`.
    fn either(&mut self, one_in: u64, some: Duration, others: Duration) -> Duration {
        let longest = if self.rng.one_in(one_in) { some } else { others };
        up_to(&mut self.rng, longest)
    }
}

/// The loss of this director loses nothing: its partner has everything, or media has.
fn may_crash(pair: &Pair, director: DirectorId) -> bool {
    let is_none = |me| matches!(pair.state_name(me), "joining" | "not running");
    let forms = |me| is_none(me) || pair.state_name(me) == "both, forming";
    match pair.record() {
        _ if pair.is_whole() || pair.state_name(director) == "joining" => true,
        PairState::Down => false,
        PairState::Both { .. } => forms(director) && forms(director.partner()),
        PairState::Solo { holder, settled } => {
            let alone = holder == director && matches!(pair.state_name(director), "solo, settled" | "taking over");
            settled && alone && is_none(director.partner())
        }
    }
}

/// Everybody may be lost: what must survive is on media, and the record does not say otherwise.
fn may_lose_power(pair: &Pair) -> bool {
    let quiet = |me: &DirectorId| match pair.state_name(*me) {
        "not running" | "joining" | "claiming" | "both, forming" | "both" | "solo, settled" => true,
        // From a director that was alone: it is in the middle of a replay.
        "taking over" => matches!(pair.record(), PairState::Solo { settled: true, .. }),
        _ => false,
    };
    pair.is_settled() && BOTH.iter().all(quiet)
}
