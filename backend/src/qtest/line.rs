//! Questions and answers in lines, over a socket to QEMU.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use super::{PATIENCE, QtestError};

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Lines {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), line: String::new() })
    }

    /// Says a line, and gives the first one in return that is not passed over.
    fn ask(&mut self, question: &str, pass: impl Fn(&str) -> bool) -> io::Result<&str> {
        self.stream.get_mut().write_all(question.as_bytes())?;
        self.stream.get_mut().write_all(b"\n")?;
        self.hear(pass)
    }

    fn hear(&mut self, pass: impl Fn(&str) -> bool) -> io::Result<&str> {
        loop {
            self.line.clear();
            if self.stream.read_line(&mut self.line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !pass(&self.line) {
                return Ok(self.line.trim());
            }
        }
    }

    /// A qtest command; its result, if it has one. Changes of interrupt lines are passed over.
    pub(super) fn qtest(&mut self, command: &str) -> Result<u64, QtestError> {
        let answer = self.ask(command, |line| line.starts_with("IRQ"))?;
        let refused = || QtestError::Refused(format!("{command}: {answer}"));
        match answer.strip_prefix("OK").ok_or_else(refused)?.trim() {
            "" => Ok(0),
            value => u64::from_str_radix(value.trim_start_matches("0x"), 16).map_err(|_| refused()),
        }
    }

    /// A QMP command with its arguments, a JSON object. Events are passed over.
    pub(super) fn monitor(&mut self, command: &str, arguments: &str) -> Result<(), QtestError> {
        let question = format!(r#"{{"execute": "{command}", "arguments": {arguments}}}"#);
        let answer =
            self.ask(&question, |line| !line.starts_with(r#"{"return""#) && !line.starts_with(r#"{"error""#))?;
        if answer.starts_with(r#"{"return""#) { Ok(()) } else { Err(QtestError::Refused(answer.to_owned())) }
    }
}
