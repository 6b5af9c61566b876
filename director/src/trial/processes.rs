//! The processes of a trial: the shelf and two directors, started, watched, killed and started again.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::ArrayDir;
use crate::membership::DirectorId;
use crate::process::{EXIT_FRESH, StatusLine};
use crate::trial::meeting::Meeting;
use crate::up::Plan;

/// The array's UUID: pair 0 is known by it.
pub const ARRAY: [u8; 16] = [0xda; 16];

/// Longer than anything here takes on an idle machine, ten times over.
pub const PATIENCE: Duration = Duration::from_secs(60);

enum Word {
    Status(DirectorId, u32, StatusLine),
    Ended(DirectorId, u32),
}

struct Running {
    child: Child,
    status: StatusLine,
    start: u32,
}

/// The processes of one array on this host. They end with this.
pub struct Processes {
    array: ArrayDir,
    meeting: Arc<Meeting>,
    program: PathBuf,
    /// What the directors are told besides.
    arguments: [Vec<String>; 2],
    shelf: Option<Child>,
    directors: [Option<Running>; 2],
    words: (Sender<Word>, Receiver<Word>),
    starts: u32,
}

impl Processes {
    /// Nothing runs yet; the array is configured, with devices in memory.
    ///
    /// # Errors
    /// When the running program cannot be found, or the configuration not written.
    pub fn new(array: ArrayDir) -> io::Result<Self> {
        let meeting = Meeting::in_shared_memory(&array);
        Self::over(array, Arc::new(meeting))
    }

    /// The same, with processes that meet in another way.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn over(array: ArrayDir, meeting: Arc<Meeting>) -> io::Result<Self> {
        let small = |text: &str| text.parse().expect("a size");
        let plan = Plan { size: small("64MiB"), files: false, ..Plan::new(2, SocketAddr::from(([127, 0, 0, 1], 0))) };
        std::fs::write(array.configuration(), meeting.configuration(&plan.text(ARRAY)))?;
        Ok(Self {
            array,
            meeting,
            program: std::env::current_exe()?,
            arguments: [const { Vec::new() }; 2],
            shelf: None,
            directors: [None, None],
            words: channel(),
            starts: 0,
        })
    }

    /// Other than the running program.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// What a director is told besides.
    #[must_use]
    pub fn with_arguments(mut self, me: DirectorId, arguments: impl IntoIterator<Item = String>) -> Self {
        self.arguments[place(me)].extend(arguments);
        self
    }

    /// Starts the shelf and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_shelf(&mut self) -> io::Result<()> {
        let mut child = self.command(Command::new(&self.program), "shelf").spawn()?;
        let output = BufReader::new(child.stdout.take().expect("the output is piped"));
        self.shelf = Some(child);
        let ready = output.lines().map_while(Result::ok).any(|line| line == "ready");
        if ready { Ok(()) } else { Err(io::Error::other("the shelf did not start")) }
    }

    /// Starts a fresh incarnation of a director.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start(&mut self, me: DirectorId) -> io::Result<()> {
        let mut command = self.command(self.meeting.command(me, &self.program), "director");
        let mut child = command.args(["--id", &me.index().to_string()]).args(&self.arguments[place(me)]).spawn()?;
        let output = BufReader::new(child.stdout.take().expect("the output is piped"));
        self.starts += 1;
        let (words, start) = (self.words.0.clone(), self.starts);
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(status) = StatusLine::parse(&line) {
                    let _ = words.send(Word::Status(me, start, status));
                }
            }
            let _ = words.send(Word::Ended(me, start));
        });
        self.directors[place(me)] = Some(Running { child, status: StatusLine::default(), start });
        Ok(())
    }

    /// Starts the shelf and both directors, and waits until they are a pair and one serves.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn start_whole(&mut self) -> io::Result<()> {
        self.start_shelf()?;
        self.start(DirectorId::A)?;
        self.start(DirectorId::B)?;
        self.wait_until("the pair becomes whole", |processes| {
            let members = [DirectorId::A, DirectorId::B].map(|me| processes.status(me));
            members.iter().flatten().filter(|status| status.state == "both").count() == 2 && processes.home().is_some()
        })
    }

    /// The director that serves.
    #[must_use]
    pub fn home(&self) -> Option<DirectorId> {
        let serves = |me: &DirectorId| self.status(*me).is_some_and(|status| status.serves);
        [DirectorId::A, DirectorId::B].into_iter().find(serves)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&mut self, me: DirectorId) -> io::Result<()> {
        let mut running =
            self.directors[place(me)].take().ok_or_else(|| io::Error::other("this director does not run"))?;
        running.child.kill()?;
        running.child.wait().map(|_| ())
    }

    /// Stops a director where it is, or lets it go on (SIGSTOP, SIGCONT).
    ///
    /// # Errors
    /// When there is no such process.
    pub fn pause(&self, me: DirectorId, paused: bool) -> io::Result<()> {
        let running = self.directors[place(me)].as_ref();
        let id = running.ok_or_else(|| io::Error::other("this director does not run"))?.child.id();
        let id = i32::try_from(id).map_err(io::Error::other)?;
        kill(Pid::from_raw(id), if paused { Signal::SIGSTOP } else { Signal::SIGCONT }).map_err(io::Error::from)
    }

    /// The process number of a director.
    #[must_use]
    pub fn pid(&self, me: DirectorId) -> Option<u32> {
        self.directors[place(me)].as_ref().map(|running| running.child.id())
    }

    /// The last that a director said of itself.
    #[must_use]
    pub fn status(&self, me: DirectorId) -> Option<&StatusLine> {
        self.directors[place(me)].as_ref().map(|running| &running.status)
    }

    /// Waits until `ready`; directors that want to begin anew are started again meanwhile.
    ///
    /// # Errors
    /// When a director ends otherwise, or it takes longer than [`PATIENCE`].
    pub fn wait_until(&mut self, what: &str, ready: impl Fn(&Self) -> bool) -> io::Result<()> {
        let deadline = BootClock.now() + PATIENCE;
        while !ready(self) {
            match self.words.1.recv_timeout(deadline.since(BootClock.now())) {
                Ok(word) => self.hear(word)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{what}: not within {} s", PATIENCE.as_secs()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Hears what the directors have said so far: those that want to begin anew are started again.
    ///
    /// # Errors
    /// When a director ended otherwise.
    pub fn attend(&mut self) -> io::Result<()> {
        while let Ok(word) = self.words.1.try_recv() {
            self.hear(word)?;
        }
        Ok(())
    }

    fn hear(&mut self, word: Word) -> io::Result<()> {
        match word {
            Word::Status(me, start, status) => {
                if let Some(running) = self.directors[place(me)].as_mut().filter(|running| running.start == start) {
                    running.status = status;
                }
            }
            Word::Ended(me, start) => {
                let Some(mut running) = self.directors[place(me)].take_if(|running| running.start == start) else {
                    return Ok(());
                };
                let exit = running.child.wait()?;
                if exit.code() != Some(i32::from(EXIT_FRESH)) {
                    return Err(io::Error::other(format!("director {me:?} ended: {exit}")));
                }
                self.start(me)?;
            }
        }
        Ok(())
    }

    fn command(&self, mut command: Command, what: &str) -> Command {
        command.arg(what).arg("--config").arg(self.array.configuration()).arg("--with-parent");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let directors = self.directors.iter_mut().flatten().map(|running| &mut running.child);
        for child in directors.chain(self.shelf.as_mut()) {
            // They may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn place(me: DirectorId) -> usize {
    usize::from(me.index())
}
