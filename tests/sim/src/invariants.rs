//! What must be true of a pair, at every moment or when all is quiet.

use std::collections::BTreeMap;
use std::fmt;

use dyad_cache::record::CommandId;
use dyad_cache::{Epoch, Regime};
use dyad_director::membership::{DirectorId, PairState};
use dyad_matrix::frames::FRAME_BYTES;

use crate::pair::{BOTH, Director, Pair, SimNode, device_id, host_identifier};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// Both directors may read now: what one of them writes the other does not see (PROTOCOLS 4.1).
    TwoReaders,
    /// Both directors were home in one epoch (PROTOCOLS 4).
    TwoHomes(Epoch),
    /// A director serves alone, and a device lets its partner write (PROTOCOLS 5.2).
    NotFenced(usize),
    /// A director that was not the home wrote to a device to which others could write (PROTOCOLS 4.3).
    WroteUnfenced(DirectorId),
    /// The partner does not have what the home believes it has, or has what the home does not know of (PROTOCOLS 3).
    MirrorDiffers,
    /// The home knows that a command was applied, and its partner does not (PROTOCOLS 9.1, 9.3).
    OutcomesDiffer,
    /// Memory that a director took back from its partner can be written by it (PROTOCOLS 3.5).
    NotRevoked(DirectorId),
    /// The devices of the group differ (PROTOCOLS 7).
    LegsDiffer(u64),
    /// Frames are neither free nor in use.
    FramesLost {
        /// Of whom.
        of: &'static str,
        /// How many.
        frames: usize,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoReaders => write!(f, "both directors may read"),
            Self::TwoHomes(epoch) => write!(f, "both directors are home in epoch {}", epoch.0),
            Self::NotFenced(device) => write!(f, "device {device} is open to a director that was put out"),
            Self::WroteUnfenced(director) => {
                write!(f, "{director:?} wrote to a device before its partner was put out of it")
            }
            Self::MirrorDiffers => write!(f, "the mirror is not what its home believes"),
            Self::OutcomesDiffer => write!(f, "the partner would apply a command again"),
            Self::NotRevoked(director) => write!(f, "{director:?}'s partner reaches memory that was taken from it"),
            Self::LegsDiffer(lba) => write!(f, "block {lba} differs on the devices though nothing is being written"),
            Self::FramesLost { of, frames } => write!(f, "{frames} frames of {of} are neither free nor in use"),
        }
    }
}

/// Watches one pair.
#[derive(Default)]
pub struct Watch {
    homes: BTreeMap<Epoch, DirectorId>,
    /// The home of the last `both` in the record.
    last_home: Option<DirectorId>,
    /// Writes of each director to devices that others could write to.
    shared_writes: [u64; 2],
}

impl Watch {
    /// What must be true at every moment.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn always(&mut self, pair: &Pair) -> Result<(), Broken> {
        // A director that is paused does nothing: what it would believe counts when it goes on.
        let running = || BOTH.into_iter().filter_map(|me| Some((me, pair.node(me)?)));
        if running().filter(|(_, node)| node.may_read()).count() > 1 {
            return Err(Broken::TwoReaders);
        }
        for (me, node) in running() {
            let (Regime::Mirrored(epoch) | Regime::Solo(epoch)) = node.regime() else { continue };
            if *self.homes.entry(epoch).or_insert(me) != me {
                return Err(Broken::TwoHomes(epoch));
            }
            // One that is alone and has lost its lease may be being put out itself.
            if matches!(node.regime(), Regime::Solo(_)) && node.may_read() {
                let failed = pair.failed_devices();
                let open = |device: &usize| {
                    !failed.contains(&device_id(*device))
                        && pair.media[*device].may_write(&host_identifier(me.partner()))
                };
                if let Some(device) = (0..pair.media.len()).find(open) {
                    return Err(Broken::NotFenced(device));
                }
            }
        }
        self.first_writes(pair)?;
        Self::outcomes(pair)
    }

    /// Only the home of `both` writes where others may write, and may still be doing so when it has become another's or its own.
    fn first_writes(&mut self, pair: &Pair) -> Result<(), Broken> {
        let before = self.last_home;
        if let PairState::Both { home } = pair.record() {
            self.last_home = Some(home);
        }
        for (me, seen) in BOTH.into_iter().zip(&mut self.shared_writes) {
            let now = pair.media.iter().map(|medium| medium.shared_writes(&host_identifier(me))).sum();
            if std::mem::replace(seen, now) != now && ![before, self.last_home].contains(&Some(me)) {
                return Err(Broken::WroteUnfenced(me));
            }
        }
        Ok(())
    }

    /// Of commands that a host has no answer to, those that the home applied are known to a partner that may take over.
    fn outcomes(pair: &Pair) -> Result<(), Broken> {
        let both = || BOTH.into_iter().filter_map(|me| pair.node(me));
        let Some(home) = both().find(|node| matches!(node.regime(), Regime::Mirrored(_))) else { return Ok(()) };
        let is_partner =
            |node: &&SimNode| !node.serves() && node.state_name() == "both" && node.epoch() == home.epoch();
        let Some(partner) = both().find(is_partner) else { return Ok(()) };
        let known = partner.cache().outcomes();
        let needed = |id: &CommandId| pair.oldest_outstanding(id.origin).is_some_and(|oldest| id.sequence >= oldest);
        let same = home.cache().outcomes().all().into_iter().filter(needed).all(|id| known.contains(id));
        if same { Ok(()) } else { Err(Broken::OutcomesDiffer) }
    }

    /// What must be true of a whole pair when no host has an operation under way: the mirror is what the home has dirty.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn idle(&self, pair: &Pair) -> Result<(), Broken> {
        let Some((home, partner)) = pair.home().and_then(|home| Some((pair.node(home)?, pair.node(home.partner())?)))
        else {
            return Ok(());
        };
        let (dirty, mirrored) = (home.cache().dirty(), partner.mirrored());
        // A block that is being released may be there and not here any more, never the other way round.
        let same = mirrored.iter().all(|theirs| {
            let place = dirty.binary_search_by_key(&(theirs.track, theirs.index), |ours| (ours.track, ours.index));
            place.is_ok_and(|at| (dirty[at].version, dirty[at].crc) == (theirs.version, theirs.crc))
        });
        let releasing = |track| home.cache().is_destaging(track);
        let missing = dirty.iter().filter(|ours| !releasing(ours.track)).any(|ours| {
            mirrored.binary_search_by_key(&(ours.track, ours.index), |theirs| (theirs.track, theirs.index)).is_err()
        });
        if same && !missing { Ok(()) } else { Err(Broken::MirrorDiffers) }
    }

    /// What must be true when, besides, everything is on media.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn quiet(&self, pair: &Pair) -> Result<(), Broken> {
        if pair.failed_devices().is_empty()
            && let Some(lba) = pair.unequal_blocks().next()
        {
            return Err(Broken::LegsDiffer(lba.0));
        }
        let all_there = |of, have: usize, bytes: u64| {
            let all = usize::try_from(bytes / FRAME_BYTES as u64).expect("memory fits the address space");
            if have == all { Ok(()) } else { Err(Broken::FramesLost { of, frames: all.abs_diff(have) }) }
        };
        for node in BOTH.into_iter().filter_map(|me| pair.node(me)) {
            let pool = node.cache().pool();
            all_there("a cache", pool.free_count() + node.cache().cached_blocks(), pool.memory().len())?;
        }
        let reached = |me: &DirectorId| pair.director(*me).is_some_and(Director::is_reached);
        if let Some(me) = BOTH.into_iter().find(reached) {
            return Err(Broken::NotRevoked(me));
        }
        for host in pair.initiators() {
            let pool = dyad_host::Volume::pool(host);
            all_there("a host", pool.free_count() + host.quarantined_frames(), pool.memory().len())?;
        }
        if let Some(home) = pair.home().and_then(|home| pair.director(home))
            && let (Some(link), Some(mirror)) =
                (home.node.cache().link(), pair.home().and_then(|home| pair.director(home.partner())?.mirror()))
        {
            all_there("a mirror", link.free_frames(), mirror.len())?;
        }
        Ok(())
    }
}
