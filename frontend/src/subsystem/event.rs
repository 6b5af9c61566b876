//! Asynchronous events of one controller (Base 5.2): requests of the host wait for events, events wait for requests.

use dyad_nvme::feature::{AsyncEvent, event_config};
use dyad_nvme::types::CommandId;

/// Requests that may wait.
pub(super) const REQUESTS_MAX: usize = 4;

/// The discovery log page changed (Base 5.2, notice F0h).
pub(super) const DISCOVERY_CHANGED: AsyncEvent =
    AsyncEvent { kind: 2, info: 0xf0, log_page: dyad_nvme::log::DISCOVERY };

/// Bit of the Asynchronous Event Configuration, and of OAES, for [`DISCOVERY_CHANGED`].
pub(super) const DISCOVERY_CHANGE: u32 = 1 << 31;

/// Kinds of events; each waits at most once, since the host reads the log page before it hears of the next.
const KINDS_MAX: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Events {
    requests: heapless::Vec<CommandId, REQUESTS_MAX>,
    waiting: heapless::Vec<AsyncEvent, KINDS_MAX>,
    /// Reported, and not read about yet.
    masked: heapless::Vec<AsyncEvent, KINDS_MAX>,
    /// Feature 0Bh.
    pub(super) config: u32,
    /// The host has read what lies behind a namespace: it wants to hear of changes. There is no feature for that.
    pub(super) geometry: bool,
}

impl Events {
    /// A request of the host; false if too many wait.
    pub(super) fn request(&mut self, command: CommandId) -> bool {
        self.requests.push(command).is_ok()
    }

    /// Something happened; of no interest if the host did not ask for it.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        let wanted = match event {
            AsyncEvent::NAMESPACE_CHANGED => self.config & event_config::NAMESPACE_ATTRIBUTE != 0,
            AsyncEvent::ANA_CHANGED => self.config & event_config::ANA_CHANGE != 0,
            AsyncEvent::GEOMETRY_CHANGED => self.geometry,
            _ => self.config & DISCOVERY_CHANGE != 0,
        };
        if wanted && !self.waiting.contains(&event) {
            assert!(self.waiting.push(event).is_ok(), "one of each kind");
        }
    }

    /// The next event that can be reported now, and the request that it completes.
    pub(super) fn next(&mut self) -> Option<(CommandId, AsyncEvent)> {
        let at = self.waiting.iter().position(|event| !self.masked.contains(event))?;
        if self.requests.is_empty() {
            return None;
        }
        let command = self.requests.remove(0);
        let event = self.waiting.remove(at);
        assert!(self.masked.push(event).is_ok(), "one of each kind");
        Some((command, event))
    }

    /// The host read a log page without retaining the event: it will hear of the next.
    pub(super) fn read(&mut self, log_page: u8) {
        self.masked.retain(|event| event.log_page != log_page);
    }

    /// Ends a waiting request, if it is one.
    pub(super) fn abort(&mut self, command: CommandId) -> bool {
        let before = self.requests.len();
        self.requests.retain(|waiting| *waiting != command);
        self.requests.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_reported_once_until_its_page_is_read() {
        let mut events = Events::default();
        events.raise(AsyncEvent::ANA_CHANGED);
        events.config = event_config::ANA_CHANGE | event_config::NAMESPACE_ATTRIBUTE;
        assert_eq!(events.next(), None, "it was not enabled when it happened");
        events.raise(AsyncEvent::ANA_CHANGED);
        events.raise(AsyncEvent::ANA_CHANGED);
        assert_eq!(events.next(), None, "no request");
        assert!((0..4).all(|id| events.request(CommandId(id))));
        assert!(!events.request(CommandId(9)), "four wait already");
        assert_eq!(events.next(), Some((CommandId(0), AsyncEvent::ANA_CHANGED)));
        events.raise(AsyncEvent::ANA_CHANGED);
        assert_eq!(events.next(), None, "masked until the page is read");
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.next(), Some((CommandId(1), AsyncEvent::NAMESPACE_CHANGED)), "another kind is not masked");
        events.read(AsyncEvent::ANA_CHANGED.log_page);
        assert!(events.abort(CommandId(2)) && !events.abort(CommandId(2)));
        assert_eq!(events.next(), Some((CommandId(3), AsyncEvent::ANA_CHANGED)));
    }
}
