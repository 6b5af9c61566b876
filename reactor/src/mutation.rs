//! Deliberate faults in production code, to see that the simulator's checkers find them.
//!
//! Each names the rule that it breaks. Without the feature `mutations`, which only the mutation test turns on, every
//! question is answered `false` at compile time and nothing of it is left in the program.

/// A rule broken on purpose.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// PROTOCOLS 2.1: a fresh incarnation takes the place in `both` of the member that it follows.
    FreshLeavesBoth = 1,
    /// PROTOCOLS 2.2: what is said in another epoch counts as said in this one.
    AnyEpochIsRight,
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
    /// PROTOCOLS 4.1: reads do not ask for a lease.
    ReadWithoutLease,
    /// PROTOCOLS 4.1: a lease runs from when the grant came, not from when it was asked for.
    LeaseFromReceipt,
    /// PROTOCOLS 4.2: a lease of an earlier epoch holds in the next.
    LeaseOutlivesEpoch,
    /// PROTOCOLS 4.2: the survivor does not wait until the leases it granted have ended.
    DecideWithoutWaiting,
    /// PROTOCOLS 4.3, 5.2: the winner serves without fencing the devices.
    TakeOverWithoutFencing,
    /// PROTOCOLS 5.2: the winner fences one device and leaves out the others.
    FenceOneDevice,
    /// PROTOCOLS 4.3: the winner does not adopt what the lost home had committed.
    TakeOverWithoutAdopting,
    /// PROTOCOLS 4.3, 7.4: the winner leaves legs different where a solo director died in the middle of a write.
    TakeOverWithoutEqualising,
    /// PROTOCOLS 4.4: a director that is alone acknowledges before media has the write.
    SoloAcknowledgesFromMemory,
    /// PROTOCOLS 4.4: a director that is alone calls itself settled before everything is on media.
    SettledWhileDirty,
    /// PROTOCOLS 4.5: a partner joins while writes are on their way to media.
    JoinWithoutQuiescing,
    /// PROTOCOLS 5.3: a reservation conflict is no reason to stop.
    FencedGoesOn,
    /// PROTOCOLS 6.2: a flush is answered before everything is on media.
    FlushBeforeDestage,
    /// PROTOCOLS 7.3, 3.4: blocks are called clean, and released, before media has them.
    CleanBeforeDurable,
    /// PROTOCOLS 9.1: a command that is sent again is applied again.
    ApplyTwice,
    /// PROTOCOLS 9.1: the partner does not remember which commands it mirrored.
    PartnerForgetsOutcomes,
    /// PROTOCOLS 9.3: a joining director is not told which commands were applied.
    JoinWithoutOutcomes,
    /// PROTOCOLS 9.3: a newer session of a host is accepted while commands of the older one are under way.
    OlderSessionIsNotDrained,
    /// PROTOCOLS 10.2: the host uses the buffers of a path that was lost at once.
    LentBuffersAreReused,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::FreshLeavesBoth,
        Self::AnyEpochIsRight,
        Self::FetchOverAcknowledged,
        Self::AcknowledgeBeforeAnswer,
        Self::RepeatsAreAnsweredByAnybody,
        Self::VisibleBeforeCommit,
        Self::ReleaseAnyVersion,
        Self::MirrorIsNotRevoked,
        Self::AdoptWithoutChecking,
        Self::UnknownIsWon,
        Self::ReadWithoutLease,
        Self::LeaseFromReceipt,
        Self::LeaseOutlivesEpoch,
        Self::DecideWithoutWaiting,
        Self::TakeOverWithoutFencing,
        Self::FenceOneDevice,
        Self::TakeOverWithoutAdopting,
        Self::TakeOverWithoutEqualising,
        Self::SoloAcknowledgesFromMemory,
        Self::SettledWhileDirty,
        Self::JoinWithoutQuiescing,
        Self::FencedGoesOn,
        Self::FlushBeforeDestage,
        Self::CleanBeforeDurable,
        Self::ApplyTwice,
        Self::PartnerForgetsOutcomes,
        Self::JoinWithoutOutcomes,
        Self::OlderSessionIsNotDrained,
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
