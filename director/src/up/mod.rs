//! `dyad up`: an array on this host. A shelf, where the configuration has one, and the directors are processes that this one starts, watches, starts again
//! when they die, and stops in an order in which nothing that was acknowledged is lost.
//!
//! Rooms: `directory` the array's directory and who may use it; `children` the processes; this file the order of things.
//!
//! **The way down.** Of each pair the director that does not serve ends first. The other notices, becomes alone, and from then on acknowledges from media
//! only; when it says that everything is settled it ends too. So the next start finds everything, and the pair's record says so (PROTOCOLS 4.6).

mod children;
mod directory;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};

pub use self::children::ChildrenError;
use self::children::{Children, Word};
pub use self::directory::{Directory, DirectoryError, Plan};
use crate::config::{Config, DirectorNumber};
use crate::process::StatusLine;

/// How long a director that is alone may take to bring everything to media.
const SETTLING: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM.
const ENDING: Duration = Duration::from_secs(10);
/// Rest before a director that died is started again, doubled each time it dies young.
const REST_MIN: Duration = Duration::from_millis(100);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(10);
/// A director that lived this long did not die young.
const OLD: Duration = Duration::from_secs(30);

/// The array does not run.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// A process.
    #[error(transparent)]
    Children(#[from] ChildrenError),
    /// A director did not come up at all; it has said why.
    #[error("director {0} does not start; what it said is above")]
    Director(u8),
    /// The shelf has ended: its devices are gone.
    #[error("the shelf has ended: {0}; start the array again")]
    Shelf(std::process::ExitStatus),
    /// It was stopped before everything was on media.
    #[error("stopped before everything was on media: acknowledged writes that were not flushed may be lost")]
    Unsettled,
}

/// What happens, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The shelf serves.
    Shelf,
    /// A director runs, as this process.
    Started(DirectorNumber, u32),
    /// Where a director's control plane listens.
    Control(DirectorNumber, String),
    /// What a director says of itself has changed.
    Became(DirectorNumber, StatusLine),
    /// A director died and will be started again.
    Died(DirectorNumber, std::process::ExitStatus),
    /// All pairs are whole, each with a home.
    Whole,
    /// The array is being stopped.
    Stopping,
    /// A director has ended as it should.
    Ended(DirectorNumber),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shelf => write!(f, "the shelf serves its devices"),
            Self::Started(id, process) => write!(f, "director {}: process {process}", id.0),
            Self::Control(id, address) => write!(f, "director {}: http://{address}/v1/status", id.0),
            Self::Became(id, StatusLine { state, serves, epoch, .. }) => {
                let serves = if *serves { ", serves" } else { "" };
                write!(f, "director {}: {state}, epoch {epoch}{serves}", id.0)
            }
            Self::Died(id, status) => write!(f, "director {} died ({status}); it is started again", id.0),
            Self::Whole => write!(f, "the array is up"),
            Self::Stopping => write!(f, "stopping: everything goes to media first; once more to stop at once"),
            Self::Ended(id) => write!(f, "director {} has ended", id.0),
        }
    }
}

/// How often it was asked to stop, so far: once to stop in order, more than once to stop at once.
pub trait StopRequests {
    /// So many times.
    fn count(&self) -> u32;
}

/// Runs the array until it is stopped. `program` is the command `dyad`; `configuration` the file that `config` was read from.
///
/// # Errors
/// [`UpError`].
pub fn run(
    program: &Path,
    configuration: &Path,
    config: &Config,
    stop: &impl StopRequests,
    mut say: impl FnMut(&Progress),
) -> Result<(), UpError> {
    let mut array = Running {
        config,
        children: Children::new(program, configuration),
        states: config.directors.iter().map(|director| State::new(director.id)).collect(),
        whole: false,
    };
    if config.shelf.is_some() {
        array.children.start_shelf()?;
        say(&Progress::Shelf);
    }
    for director in &config.directors {
        array.start(director.id, &mut say)?;
    }
    while stop.count() == 0 {
        array.turn(&mut say)?;
    }
    say(&Progress::Stopping);
    array.stop(stop, &mut say)
}

struct State {
    id: DirectorNumber,
    said: Option<StatusLine>,
    /// It said something once, in any of its lives.
    came_up: bool,
    started: dyad_reactor::Time,
    rest: Duration,
    /// When it is to be started again.
    again: Option<dyad_reactor::Time>,
}

impl State {
    fn new(id: DirectorNumber) -> Self {
        Self { id, said: None, came_up: false, started: dyad_reactor::Time::ZERO, rest: REST_MIN, again: None }
    }
}

struct Running<'a> {
    config: &'a Config,
    children: Children,
    states: Vec<State>,
    whole: bool,
}

/// How long one turn waits for words.
const TURN: Duration = Duration::from_millis(200);

impl Running<'_> {
    fn start(&mut self, id: DirectorNumber, say: &mut impl FnMut(&Progress)) -> Result<(), UpError> {
        let process = self.children.start_director(id)?;
        say(&Progress::Started(id, process));
        let state = self.state(id);
        (state.said, state.started, state.again) = (None, BootClock.now(), None);
        Ok(())
    }

    fn state(&mut self, id: DirectorNumber) -> &mut State {
        self.states.iter_mut().find(|state| state.id == id).expect("one for each director")
    }

    /// Hears one word, if there is one, and starts again who died.
    fn turn(&mut self, say: &mut impl FnMut(&Progress)) -> Result<(), UpError> {
        match self.children.hear(TURN) {
            Some(Word::Said(id, status)) => self.said(id, status, say),
            Some(Word::Control(id, address)) => say(&Progress::Control(id, address)),
            Some(Word::Ended(id, status, fresh)) => self.ended(id, status, fresh, say)?,
            Some(Word::ShelfEnded(status)) => return Err(UpError::Shelf(status)),
            None => {}
        }
        let now = BootClock.now();
        let due: Vec<_> =
            self.states.iter().filter(|s| s.again.is_some_and(|at| at <= now)).map(|state| state.id).collect();
        due.into_iter().try_for_each(|id| self.start(id, say))
    }

    fn said(&mut self, id: DirectorNumber, status: StatusLine, say: &mut impl FnMut(&Progress)) {
        let state = self.state(id);
        state.came_up = true;
        let news = state
            .said
            .as_ref()
            .is_none_or(|said| (&said.state, said.serves, said.epoch) != (&status.state, status.serves, status.epoch));
        state.said = Some(status.clone());
        if news {
            say(&Progress::Became(id, status));
        }
        let both = |state: &State| state.said.as_ref().is_some_and(|said| said.state == "both");
        let homes = self.states.iter().filter(|state| state.said.as_ref().is_some_and(|said| said.serves)).count();
        let whole = self.states.iter().all(both) && homes == self.config.pairs.len();
        if whole && !self.whole {
            say(&Progress::Whole);
        }
        self.whole = whole;
    }

    fn ended(
        &mut self,
        id: DirectorNumber,
        status: std::process::ExitStatus,
        fresh: bool,
        say: &mut impl FnMut(&Progress),
    ) -> Result<(), UpError> {
        self.whole = false;
        let state = self.state(id);
        state.said = None;
        if fresh {
            return self.start(id, say);
        }
        if !state.came_up {
            return Err(UpError::Director(id.0));
        }
        let now = BootClock.now();
        state.rest = if now.since(state.started) >= OLD { REST_MIN } else { (state.rest * 2).min(REST_MAX) };
        state.again = Some(now + state.rest);
        say(&Progress::Died(id, status));
        Ok(())
    }

    /// Everything to media, then the end.
    fn stop(&mut self, stop: &impl StopRequests, say: &mut impl FnMut(&Progress)) -> Result<(), UpError> {
        let mut settled = true;
        // Whoever serves nobody has nothing that its partner, or media, does not have.
        let idle: Vec<_> = self.states.iter().filter(|state| !serves(state)).map(|state| state.id).collect();
        for id in &idle {
            self.end(*id, say);
        }
        let deadline = BootClock.now() + SETTLING;
        loop {
            let waiting: Vec<_> = self
                .states
                .iter()
                .filter(|state| !idle.contains(&state.id) && self.children.runs(state.id))
                .map(|s| s.id)
                .collect();
            let done: Vec<_> = waiting.iter().copied().filter(|id| self.is_settled(*id)).collect();
            for id in &done {
                self.end(*id, say);
            }
            if done.len() == waiting.len() {
                break;
            }
            if stop.count() > 1 || BootClock.now() >= deadline {
                settled = false;
                break;
            }
            match self.children.hear(TURN) {
                Some(Word::Said(id, status)) => self.said(id, status, say),
                // The last one of a pair has died with what only it had.
                Some(Word::Ended(id, ..)) if waiting.contains(&id) => settled = false,
                Some(Word::Control(..) | Word::Ended(..) | Word::ShelfEnded(_)) | None => {}
            }
        }
        self.children.end_all();
        if settled { Ok(()) } else { Err(UpError::Unsettled) }
    }

    fn is_settled(&self, id: DirectorNumber) -> bool {
        let said = self.states.iter().find(|state| state.id == id).and_then(|state| state.said.as_ref());
        said.is_some_and(|said| said.state == "solo, settled")
    }

    fn end(&mut self, id: DirectorNumber, say: &mut impl FnMut(&Progress)) {
        self.children.end(id, ENDING);
        say(&Progress::Ended(id));
    }
}

fn serves(state: &State) -> bool {
    state.said.as_ref().is_some_and(|said| said.serves)
}

/// The directory's configuration file.
#[must_use]
pub fn configuration_in(directory: &Path) -> PathBuf {
    directory.join("dyad.toml")
}
