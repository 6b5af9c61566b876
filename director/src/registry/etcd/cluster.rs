//! Which member is asked, how often, and what its silence means.

use std::io::ErrorKind;

use ureq::Agent;

use super::wire::{self, Answer, Refusal};
use super::{Endpoint, EtcdConfig};
use crate::registry::{Cas, Key, RegistryError, Revision, Versioned, worker};

/// What became of a request to one member.
enum Failure {
    /// It never left: another member may be asked.
    NotSent,
    /// It left, and what came back, if anything did, is not certain.
    Unanswered,
    /// Nothing was changed, and no other member would answer otherwise.
    Refused(RegistryError),
}

#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    /// It has shown that it belongs to the cluster.
    belongs: bool,
}

/// The cluster's members, the one that answered last first.
#[derive(Debug)]
pub(super) struct Cluster {
    agent: Agent,
    members: Vec<Member>,
    prefix: String,
    /// The number that the first answer named.
    id: Option<u64>,
}

impl Cluster {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let agent = Agent::config_builder()
            .timeout_connect(Some(config.timeout))
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        let members = config.endpoints.iter().map(|endpoint| Member { endpoint: endpoint.clone(), belongs: false });
        Self { agent: agent.into(), members: members.collect(), prefix: format!("dyad/{}/", config.array), id: None }
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Sends a request to the member that is first, and has `parse` read what came back.
    fn ask<T>(
        &mut self,
        path: &str,
        request: &[u8],
        parse: impl FnOnce(&[u8]) -> Option<Answer<T>>,
    ) -> Result<T, Failure> {
        let url = format!("{}{path}", self.members[0].endpoint);
        let sent = self.agent.post(&url).content_type("application/json").send(request);
        let mut response = sent.map_err(|error| failure(&error))?;
        let limit = wire::ANSWER_BYTES_MAX as u64;
        let body = response.body_mut().with_config().limit(limit).read_to_vec().map_err(|_| Failure::Unanswered)?;
        if response.status() != 200 {
            return Err(match wire::refusal(&body) {
                Refusal::Full => Failure::Refused(RegistryError::Full),
                Refusal::Busy => Failure::Refused(RegistryError::Busy),
                Refusal::Denied => Failure::Refused(RegistryError::Storage(ErrorKind::PermissionDenied)),
                Refusal::Uncertain => Failure::Unanswered,
            });
        }
        let Answer { cluster, outcome } = parse(&body).ok_or(Failure::Unanswered)?;
        if *self.id.get_or_insert(cluster) != cluster {
            return Err(Failure::Unanswered);
        }
        self.members[0].belongs = true;
        Ok(outcome)
    }

    /// The member that is first did not serve: the others come before it.
    fn ask_another_next(&mut self) {
        self.members[0].belongs = false;
        self.members.rotate_left(1);
    }

    fn read(&mut self, name: &str) -> Result<Option<Versioned>, Failure> {
        self.ask(wire::RANGE, &wire::range_request(name), |bytes| wire::range_answer(name, bytes))
    }

    /// A change at the member that is first, after it has shown whose it is.
    fn change(&mut self, name: &str, expected: Option<Revision>, value: &[u8]) -> Result<Cas, Failure> {
        if !self.members[0].belongs {
            self.read(name).map_err(|failure| match failure {
                Failure::Unanswered => Failure::NotSent,
                other => other,
            })?;
        }
        self.ask(wire::TXN, &wire::txn_request(name, expected, value), |bytes| wire::txn_answer(name, bytes))
    }
}

impl worker::Store for Cluster {
    fn get(&mut self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        let name = self.name(key);
        for _ in 0..self.members.len() {
            match self.read(&name) {
                Ok(value) => return Ok(value),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::NotSent | Failure::Unanswered) => self.ask_another_next(),
            }
        }
        Err(RegistryError::Unknown)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<Revision>, value: &[u8]) -> Result<Cas, RegistryError> {
        let name = self.name(key);
        for _ in 0..self.members.len() {
            match self.change(&name, expected, value) {
                Ok(outcome) => return Ok(outcome),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::NotSent) => self.ask_another_next(),
                Err(Failure::Unanswered) => {
                    self.ask_another_next();
                    break;
                }
            }
        }
        Err(RegistryError::Unknown)
    }
}

/// Whether a request that failed can have been received.
fn failure(error: &ureq::Error) -> Failure {
    use ureq::{Error, Timeout};
    match error {
        Error::HostNotFound | Error::ConnectionFailed | Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Failure::NotSent
        }
        Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => Failure::NotSent,
        _ => Failure::Unanswered,
    }
}
