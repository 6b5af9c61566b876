//! Deliberate faults in production code, to see that the simulator's checkers find them.
//!
//! Each names the rule that it breaks. Without the feature `mutations`, which only the mutation test turns on, every
//! question is answered `false` at compile time and nothing of it is left in the program.

/// A rule broken on purpose.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// PROTOCOLS 3.2: a write is acknowledged before the partner has answered.
    AcknowledgeBeforeAnswer = 1,
    /// PROTOCOLS 3.3: bytes are destaged and read before they are committed: the slot names the frames before the answer.
    VisibleBeforeCommit,
    /// PROTOCOLS 3.4: a release frees whatever version the partner has.
    ReleaseAnyVersion,
    /// PROTOCOLS 4.1: reads do not ask for a lease.
    ReadWithoutLease,
    /// PROTOCOLS 4.2: the survivor does not wait until the leases it granted have ended.
    DecideWithoutWaiting,
    /// PROTOCOLS 4.3, 5.2: the winner serves without fencing the devices.
    TakeOverWithoutFencing,
    /// PROTOCOLS 4.3: the winner does not adopt what the lost home had committed.
    TakeOverWithoutAdopting,
    /// PROTOCOLS 4.4: a director that is alone acknowledges before media has the write.
    SoloAcknowledgesFromMemory,
    /// PROTOCOLS 7.3, 3.4: blocks are called clean, and released, before media has them.
    CleanBeforeDurable,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AcknowledgeBeforeAnswer,
        Self::VisibleBeforeCommit,
        Self::ReleaseAnyVersion,
        Self::ReadWithoutLease,
        Self::DecideWithoutWaiting,
        Self::TakeOverWithoutFencing,
        Self::TakeOverWithoutAdopting,
        Self::SoloAcknowledgesFromMemory,
        Self::CleanBeforeDurable,
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
