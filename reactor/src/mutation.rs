//! Deliberate faults in production code, to see that the simulator's checkers find them.
//!
//! Each names the rule that it breaks. Without the feature `mutations`, which only the mutation test turns on, every
//! question is answered `false` at compile time and nothing of it is left in the program.
//!
//! Rules of PROTOCOLS that exist in code and have none here, because breaking them alone changes nothing that anybody could see:
//! - 2.2, a message of another epoch or incarnation: what arrives on a VI that is not of the current link is dropped, a link joins two
//!   incarnations, and it ends before either leaves the epoch; so on one link there is one epoch and the zero of a partner that joins, to
//!   which nothing is granted and which grants nothing;
//! - 2.4, an unknown generation: there is one volume, and it is never deleted;
//! - 3.2, the partner's check of the CRC: a link is reliable, so bytes have landed when their commit record comes, and whoever adopts them
//!   checks again;
//! - 3.6, what is reserved: asserted where it is reserved;
//! - 4.6, 4.8, the operator, and stopping without a registry: nothing is done there that could be done wrongly, but for `UnknownIsWon`;
//! - 5.3, a fenced director that goes on: the devices refuse it, which is what the rule relies on; what it may read ended with its lease;
//! - 9.3, draining: a session's VI is revoked when a newer one asks, a command that has its bytes by then holds its turn at the track, and
//!   the one that is sent again waits behind it.

/// A rule broken on purpose.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// PROTOCOLS 2.1: a fresh incarnation takes the place in `both` of the member that it follows.
    FreshLeavesBoth = 1,
    /// PROTOCOLS 3.1: incoming bytes land over the bytes that they replace.
    FetchOverAcknowledged,
    /// PROTOCOLS 3.2: a write is acknowledged before the partner has answered.
    AcknowledgeBeforeAnswer,
    /// PROTOCOLS 3.2, 9.1: a director that is not the home says that a repeated write was applied.
    RepeatsAreAnsweredByAnybody,
    /// PROTOCOLS 3.3: bytes are destaged and read before they are committed: the slot names the frames before the answer.
    VisibleBeforeCommit,
    /// PROTOCOLS 3.4: a release frees whatever version the partner has.
    ReleaseAnyVersion,
    /// PROTOCOLS 3.5: the survivor does not take its memory from the lost home.
    MirrorIsNotRevoked,
    /// PROTOCOLS 3.5: what is adopted is not checked against its CRC.
    AdoptWithoutChecking,
    /// PROTOCOLS 4: a change of the record whose outcome is unknown counts as made.
    UnknownIsWon,
    /// PROTOCOLS 4: whoever reads a record of its own epoch takes it for its own change.
    NonceIsIgnored,
    /// PROTOCOLS 4.1: reads do not ask for a lease.
    ReadWithoutLease,
    /// PROTOCOLS 4.1: a lease runs from when the grant came, not from when it was asked for.
    LeaseFromReceipt,
    /// PROTOCOLS 4.2: the survivor does not wait until the leases it granted have ended.
    DecideWithoutWaiting,
    /// PROTOCOLS 4.3, 5.2: the winner serves without fencing the devices.
    TakeOverWithoutFencing,
    /// PROTOCOLS 4.3: the winner makes legs equal before it fences the devices.
    WriteBeforeFencing,
    /// PROTOCOLS 5.2: the winner fences one device and leaves out the others.
    FenceOneDevice,
    /// PROTOCOLS 5.4: a device that missed writes is left out of its group without being put on record.
    GoOnUnrecorded,
    /// PROTOCOLS 4.3: the winner does not adopt what the lost home had committed.
    TakeOverWithoutAdopting,
    /// PROTOCOLS 7.1: what a device returns is not compared with its guard.
    GuardsUnchecked,
    /// PROTOCOLS 7.2: members are written before the intent is durable.
    WriteWithoutIntent,
    /// PROTOCOLS 7.3, 7.4: whoever becomes home does not replay what a lost home left in the middle of a write.
    OpenWithoutReplay,
    /// PROTOCOLS 4.4: a director that is alone acknowledges before media has the write.
    SoloAcknowledgesFromMemory,
    /// PROTOCOLS 4.4: a director that is alone calls itself settled before everything is on media.
    SettledWhileDirty,
    /// PROTOCOLS 4.4: a director that is alone and settled reads without a lease of the registry.
    SoloWithoutLease,
    /// PROTOCOLS 4.4: whoever finds a settled partner's record takes over at once.
    ClaimWithoutWaiting,
    /// PROTOCOLS 4.5: a partner joins while writes are on their way to media.
    JoinWithoutQuiescing,
    /// PROTOCOLS 6.2: a flush is answered before everything is on media.
    FlushBeforeDestage,
    /// PROTOCOLS 6.2: a write with FUA is answered before it is on media.
    FuaIsIgnored,
    /// PROTOCOLS 7.3, 3.4: blocks are called clean, and released, before media has them.
    CleanBeforeDurable,
    /// PROTOCOLS 6.1, 7.3: blocks are called clean that a device has in its volatile cache.
    CleanInDeviceCache,
    /// PROTOCOLS 9.1: a command that is sent again is applied again.
    ApplyTwice,
    /// PROTOCOLS 9.1: the partner does not remember which commands it mirrored.
    PartnerForgetsOutcomes,
    /// PROTOCOLS 9.3: a joining director is not told which commands were applied.
    JoinWithoutOutcomes,
    /// PROTOCOLS 10.2: the host uses the buffers of a path that was lost at once.
    LentBuffersAreReused,
    /// PROTOCOLS 6.4: a flush is answered although the vault would bring back something older than media.
    StaleRecordsStay,
    /// PROTOCOLS 6.4: saves of one track overtake each other, so that the record that counts may be retired before an older one.
    SavesOvertake,
    /// PROTOCOLS 6.4, 4.3: the vault is retired before adopted slots are in it.
    RetireBeforeJournal,
    /// PROTOCOLS 6.4: replay retires the vault before media has what it had.
    RetireBeforeMedia,
    /// PROTOCOLS 6.3: a record counts as durable before any device has it.
    SavedBeforeDurable,
    /// PROTOCOLS 6.4: what the vault has of mirrored volumes is replayed although their mirror is adopted.
    ReplayOverMirror,
    /// PROTOCOLS 12.1: a takeover forgets that an unmirrored volume was dirty.
    LossIsForgotten,
    /// The storage engine writes a page before media have the log of its last change.
    PageBeforeLog,
    /// The storage engine says that the log is on media before it was flushed.
    CommitUnflushed,
    /// The storage engine undoes without compensation records.
    UndoUnlogged,
    /// The storage engine moves the start of recovery before what was written is durable.
    CheckpointUnflushed,
    /// The storage engine changes a page that was written without its image in the log, so that it cannot be mended if it is torn.
    ImagesOmitted,
}

impl Mutation {
    /// Those that the crash tests of the storage engine must find (`engine/storage/tests/storage`).
    pub const OF_THE_ENGINE: [Self; 5] = [
        Self::PageBeforeLog,
        Self::CommitUnflushed,
        Self::UndoUnlogged,
        Self::CheckpointUnflushed,
        Self::ImagesOmitted,
    ];

    /// Those that the model of the cache must find (`cache/tests/cache`): what they break is not in every director yet.
    pub const OF_THE_VAULT: [Self; 6] = [
        Self::StaleRecordsStay,
        Self::SavesOvertake,
        Self::RetireBeforeJournal,
        Self::RetireBeforeMedia,
        Self::SavedBeforeDurable,
        Self::LossIsForgotten,
    ];

    /// Those of groups under directors: the simulator meets them with crashes and misdirected writes, and has not yet been asked to find all of them.
    pub const OF_GROUPS: [Self; 3] = [Self::GuardsUnchecked, Self::WriteWithoutIntent, Self::OpenWithoutReplay];

    /// All others: the simulator must find them.
    pub const ALL: [Self; 32] = [
        Self::FreshLeavesBoth,
        Self::FetchOverAcknowledged,
        Self::AcknowledgeBeforeAnswer,
        Self::RepeatsAreAnsweredByAnybody,
        Self::VisibleBeforeCommit,
        Self::ReleaseAnyVersion,
        Self::MirrorIsNotRevoked,
        Self::AdoptWithoutChecking,
        Self::UnknownIsWon,
        Self::NonceIsIgnored,
        Self::ReadWithoutLease,
        Self::LeaseFromReceipt,
        Self::DecideWithoutWaiting,
        Self::TakeOverWithoutFencing,
        Self::WriteBeforeFencing,
        Self::FenceOneDevice,
        Self::GoOnUnrecorded,
        Self::TakeOverWithoutAdopting,
        Self::SoloAcknowledgesFromMemory,
        Self::SettledWhileDirty,
        Self::SoloWithoutLease,
        Self::ClaimWithoutWaiting,
        Self::JoinWithoutQuiescing,
        Self::FlushBeforeDestage,
        Self::FuaIsIgnored,
        Self::ReplayOverMirror,
        Self::CleanBeforeDurable,
        Self::CleanInDeviceCache,
        Self::ApplyTwice,
        Self::PartnerForgetsOutcomes,
        Self::JoinWithoutOutcomes,
        Self::LentBuffersAreReused,
    ];
}

#[cfg(feature = "mutations")]
static ACTIVE: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks `mutation`'s rule in the whole process, or none.
#[cfg(feature = "mutations")]
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.store(mutation.map_or(0, |mutation| mutation as u8), std::sync::atomic::Ordering::Relaxed);
}

/// Whether this rule is to be broken.
#[cfg(feature = "mutations")]
#[must_use]
pub fn is_active(mutation: Mutation) -> bool {
    ACTIVE.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

/// Whether this rule is to be broken: never.
#[cfg(not(feature = "mutations"))]
#[must_use]
#[inline(always)]
pub const fn is_active(_mutation: Mutation) -> bool {
    false
}
