//! Asynchronous events of one controller (Base 5.2): requests of the host wait for events, events wait for requests.

use std::collections::VecDeque;

use dyad_nvme::feature::{AsyncEvent, event_config};
use dyad_nvme::types::CommandId;

/// Requests that may wait.
pub(super) const REQUESTS_MAX: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<CommandId>,
    /// At most one of each kind: the host reads the log page before it hears of the next.
    waiting: VecDeque<AsyncEvent>,
    /// Reported, and not read about yet.
    masked: Vec<AsyncEvent>,
    /// Feature 0Bh.
    pub(super) config: u32,
}

impl Events {
    /// A request of the host; gives it back if too many wait.
    pub(super) fn request(&mut self, command: CommandId) -> Result<(), CommandId> {
        if self.requests.len() == REQUESTS_MAX {
            return Err(command);
        }
        self.requests.push_back(command);
        Ok(())
    }

    /// Something happened.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        let enabled = match event {
            AsyncEvent::NAMESPACE_CHANGED => self.config & event_config::NAMESPACE_ATTRIBUTE != 0,
            AsyncEvent::RELIABILITY => self.config & 1 << 2 != 0,
            _ => true,
        };
        if enabled && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// The next event that can be reported now, and the request that it completes.
    pub(super) fn next(&mut self) -> Option<(CommandId, AsyncEvent)> {
        let at = self.waiting.iter().position(|e| !self.masked.contains(e))?;
        let command = self.requests.pop_front()?;
        let event = self.waiting.remove(at).expect("found just now");
        self.masked.push(event);
        Some((command, event))
    }

    /// The host read a log page without retaining the event: it will hear of the next.
    pub(super) fn read(&mut self, log_page: u8) {
        self.masked.retain(|e| e.log_page != log_page);
    }

    /// Ends a waiting request, if it is one.
    pub(super) fn abort(&mut self, command: CommandId) -> bool {
        let before = self.requests.len();
        self.requests.retain(|c| *c != command);
        self.requests.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_reported_once_until_its_page_is_read() {
        let mut events = Events::default();
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.next(), None, "not enabled");
        events.config = event_config::NAMESPACE_ATTRIBUTE;
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.next(), None, "no request");
        for id in 0..4 {
            events.request(CommandId(id)).expect("room");
        }
        assert_eq!(events.request(CommandId(9)), Err(CommandId(9)));
        assert_eq!(events.next(), Some((CommandId(0), AsyncEvent::NAMESPACE_CHANGED)));
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.next(), None, "masked until the page is read");
        events.read(AsyncEvent::NAMESPACE_CHANGED.log_page);
        assert!(events.abort(CommandId(1)) && !events.abort(CommandId(1)));
        assert_eq!(events.next(), Some((CommandId(2), AsyncEvent::NAMESPACE_CHANGED)));
    }
}
