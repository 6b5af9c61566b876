//! QEMU's machine protocol (docs/interop/qmp-spec.rst): one JSON object per line, events in between.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::GuestError;

/// How long QEMU may take to answer, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    input: BufReader<UnixStream>,
    output: UnixStream,
    /// Names of events that nobody has waited for yet.
    events: VecDeque<String>,
}

impl Qmp {
    /// Connects to the socket that QEMU listens at.
    ///
    /// # Errors
    /// [`GuestError::Qmp`].
    pub fn connect(path: &Path) -> Result<Self, GuestError> {
        let failed = |error: std::io::Error| GuestError::Qmp(error.to_string());
        let output = UnixStream::connect(path).map_err(failed)?;
        output.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        let input = BufReader::new(output.try_clone().map_err(failed)?);
        let mut qmp = Self { input, output, events: VecDeque::new() };
        // It says who it is first.
        qmp.line()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Has a command done; what it returns.
    ///
    /// # Errors
    /// [`GuestError::Qmp`] with QEMU's own words.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, GuestError> {
        let question = json!({ "execute": command, "arguments": arguments });
        writeln!(self.output, "{question}").map_err(|error| GuestError::Qmp(error.to_string()))?;
        loop {
            let mut answer = self.line()?;
            if let Some(event) = event(&answer) {
                self.events.push_back(event);
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(GuestError::Qmp(format!("{command}: {error}")));
            }
        }
    }

    /// Waits until something has happened; events before it are forgotten.
    ///
    /// # Errors
    /// [`GuestError::Qmp`] if it does not happen in time.
    pub fn wait_for(&mut self, name: &str) -> Result<(), GuestError> {
        loop {
            let seen = match self.events.pop_front() {
                Some(seen) => Some(seen),
                None => event(&self.line()?),
            };
            if seen.as_deref() == Some(name) {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> Result<Value, GuestError> {
        let mut line = String::new();
        self.input.read_line(&mut line).map_err(|error| GuestError::Qmp(error.to_string()))?;
        serde_json::from_str(&line).map_err(|error| GuestError::Qmp(error.to_string()))
    }
}

/// The name of an event.
fn event(message: &Value) -> Option<String> {
    Some(message.get("event")?.as_str()?.to_owned())
}
