//! The other end: what commands ask a control plane with.

use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::{Request, StatusCode};

use super::view::Failure;

/// Longer than the slowest answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a machine that is there may take to accept.
const CONNECT: Duration = Duration::from_secs(3);
/// Bytes of the longest answer.
const ANSWER_MAX: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("no director answers at {address} ({why}): is the array running? Other addresses: --control, or --config")]
    Unreachable {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// It said no.
    #[error("{error}")]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// Why, and what to do.
        error: String,
    },
    /// It said something else.
    #[error("{address} does not answer like a director of this version: {why}")]
    NotUnderstood {
        /// Where.
        address: String,
        /// What was wrong.
        why: String,
    },
}

/// A control plane, as a client sees it.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    token: Option<String>,
    agent: Agent,
}

impl Client {
    /// The control plane at `HOST:PORT`.
    #[must_use]
    pub fn new(address: &str, token: Option<&str>) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        Self { address: address.to_owned(), token: token.map(ToOwned::to_owned), agent }
    }

    /// Another one, with the same token.
    #[must_use]
    pub fn at(&self, address: &str) -> Self {
        Self { address: address.to_owned(), ..self.clone() }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parse(&self.ask("GET", path, &[])?)
    }

    /// Asks for text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn text(&self, path: &str) -> Result<String, ClientError> {
        self.ask("GET", path, &[]).map(|body| String::from_utf8_lossy(&body).into_owned())
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body).map_err(|error| self.not_understood(&error))?;
        let unreachable =
            |error: ureq::Error| ClientError::Unreachable { address: self.address.clone(), why: error.to_string() };
        let mut answer = self.agent.run(request).map_err(unreachable)?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(unreachable)?;
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice(&body).map(|Failure { error }| error);
        let error = said.unwrap_or_else(|_| match status {
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST => String::from_utf8_lossy(&body).into_owned(),
            other => format!("{} answered {other}", self.address),
        });
        Err(ClientError::Refused { status: status.as_u16(), error })
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        // A change that has nothing to say.
        let body = if body.is_empty() { b"null" } else { body };
        serde_json::from_slice(body).map_err(|error| self.not_understood(&error))
    }

    fn not_understood(&self, why: &impl ToString) -> ClientError {
        ClientError::NotUnderstood { address: self.address.clone(), why: why.to_string() }
    }
}
