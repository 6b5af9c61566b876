//! The processes of an array: started, heard, ended. They end with this process, whatever ends it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::DirectorNumber;
use crate::process::{CONTROL, EXIT_FRESH, StatusLine};

/// A process cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ChildrenError {
    /// The kernel refused it.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// It ended before it served.
    #[error("the shelf does not start; what it said is above")]
    Shelf,
}

/// What comes from the processes.
pub(super) enum Word {
    Said(DirectorNumber, StatusLine),
    /// Where its control plane listens.
    Control(DirectorNumber, String),
    /// Ended; `true`: it wants to be started as a fresh incarnation.
    Ended(DirectorNumber, ExitStatus, bool),
    ShelfEnded(ExitStatus),
}

enum Heard {
    Said(u32, StatusLine),
    Control(u32, String),
    Ended(u32),
}

struct Running {
    id: DirectorNumber,
    child: Child,
}

pub(super) struct Children {
    program: PathBuf,
    configuration: PathBuf,
    shelf: Option<Child>,
    directors: Vec<Running>,
    words: (Sender<Heard>, Receiver<Heard>),
}

impl Children {
    pub(super) fn new(program: &Path, configuration: &Path) -> Self {
        let (program, configuration) = (program.to_owned(), configuration.to_owned());
        Self { program, configuration, shelf: None, directors: Vec::new(), words: channel() }
    }

    /// Starts the shelf and waits until it serves.
    pub(super) fn start_shelf(&mut self) -> Result<(), ChildrenError> {
        let start = |source| ChildrenError::Start { what: "the shelf", source };
        let mut child = self.command("shelf").spawn().map_err(start)?;
        let mut output =
            BufReader::new(child.stdout.take().expect("the output is piped")).lines().map_while(Result::ok);
        let ready = output.any(|line| line == "ready");
        let (process, words) = (child.id(), self.words.0.clone());
        self.shelf = Some(child);
        // It says nothing more; the end of its output is its end.
        thread::spawn(move || {
            output.for_each(drop);
            let _ = words.send(Heard::Ended(process));
        });
        if ready { Ok(()) } else { Err(ChildrenError::Shelf) }
    }

    /// Starts a director; its process number.
    pub(super) fn start_director(&mut self, id: DirectorNumber) -> Result<u32, ChildrenError> {
        let start = |source| ChildrenError::Start { what: "a director", source };
        let mut child = self.command("director").arg("--id").arg(id.0.to_string()).spawn().map_err(start)?;
        let output = BufReader::new(child.stdout.take().expect("the output is piped"));
        let (process, words) = (child.id(), self.words.0.clone());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Whoever listens may have gone.
                if let Some(address) = line.strip_prefix(CONTROL) {
                    let _ = words.send(Heard::Control(process, address.to_owned()));
                } else if let Some(status) = StatusLine::parse(&line) {
                    let _ = words.send(Heard::Said(process, status));
                }
            }
            let _ = words.send(Heard::Ended(process));
        });
        self.directors.push(Running { id, child });
        Ok(process)
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(what).arg("--config").arg(&self.configuration).arg("--with-parent");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // A terminal sends Ctrl-C to its whole group: what is to be ended, and when, is decided here.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// The next word within this time.
    pub(super) fn hear(&mut self, patience: Duration) -> Option<Word> {
        match self.words.1.recv_timeout(patience).ok()? {
            Heard::Said(process, status) => Some(Word::Said(self.who(process)?, status)),
            Heard::Control(process, address) => Some(Word::Control(self.who(process)?, address)),
            Heard::Ended(process) => {
                if let Some(mut shelf) = self.shelf.take_if(|shelf| shelf.id() == process) {
                    return shelf.wait().ok().map(Word::ShelfEnded);
                }
                let at = self.directors.iter().position(|running| running.child.id() == process)?;
                let Running { id, mut child } = self.directors.swap_remove(at);
                let status = child.wait().ok()?;
                Some(Word::Ended(id, status, status.code() == Some(i32::from(EXIT_FRESH))))
            }
        }
    }

    fn who(&self, process: u32) -> Option<DirectorNumber> {
        self.directors.iter().find(|running| running.child.id() == process).map(|running| running.id)
    }

    /// This director runs.
    pub(super) fn runs(&self, id: DirectorNumber) -> bool {
        self.directors.iter().any(|running| running.id == id)
    }

    /// Ends a director, with SIGKILL if it does not end in time.
    pub(super) fn end(&mut self, id: DirectorNumber, patience: Duration) {
        if let Some(at) = self.directors.iter().position(|running| running.id == id) {
            let Running { mut child, .. } = self.directors.swap_remove(at);
            end(&mut child, patience);
        }
    }

    /// Ends everybody at once.
    pub(super) fn end_all(&mut self) {
        for child in self.directors.iter_mut().map(|running| &mut running.child).chain(self.shelf.as_mut()) {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.directors.clear();
        self.shelf = None;
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.end_all();
    }
}

fn end(child: &mut Child, patience: Duration) {
    let process = i32::try_from(child.id()).map(Pid::from_raw);
    if process.is_ok_and(|process| kill(process, Signal::SIGTERM).is_ok()) {
        let (done, waiting) = channel();
        let raw = child.id();
        thread::scope(|scope| {
            scope.spawn(move || {
                let timed_out = waiting.recv_timeout(patience).is_err();
                if timed_out && let Ok(process) = i32::try_from(raw) {
                    // It is waited for until the other side of this channel says otherwise: the number is still its own.
                    let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
                }
            });
            let _ = child.wait();
            let _ = done.send(());
        });
    } else {
        let _ = child.kill();
        let _ = child.wait();
    }
}
