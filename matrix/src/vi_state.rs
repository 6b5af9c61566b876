//! The states of a VI (VI Architecture 2.3; the names are the trait's). A broken VI is destroyed, never used again.

/// Where a VI stands.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum ViState {
    /// Made, or refused by whom it asked: may connect or accept.
    Idle,
    /// Asked, or accepted, and waits for the other end.
    Connecting,
    /// Descriptors may be posted.
    Connected,
    /// The connection ended.
    Broken,
}

/// What happens to a VI.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum ViEvent {
    /// Its owner connects it or accepts a request with it.
    Connect,
    /// The other end agreed.
    Established,
    /// The other end did not.
    Refused,
    /// The connection, or the attempt, ended for good.
    Broken,
}

impl ViState {
    /// The table of transitions; `None` is not one.
    pub(crate) fn step(self, event: ViEvent) -> Option<Self> {
        match (self, event) {
            (Self::Idle, ViEvent::Connect) => Some(Self::Connecting),
            (Self::Connecting, ViEvent::Established) => Some(Self::Connected),
            (Self::Connecting, ViEvent::Refused) => Some(Self::Idle),
            (Self::Connecting | Self::Connected, ViEvent::Broken) => Some(Self::Broken),
            (Self::Idle | Self::Broken, _) | (Self::Connecting | Self::Connected, _) => None,
        }
    }
}
