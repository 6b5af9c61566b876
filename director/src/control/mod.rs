//! The control plane of a director: HTTP and JSON for people and programs, Prometheus metrics at `/metrics`, the OpenAPI document at
//! `/v1/openapi.json`.
//!
//! It has a thread of its own and shares nothing with the reactor but two bounded rings and counters, so neither waits for the other: a reactor
//! under full load answers between two pieces of I/O, and one that does not answer in two seconds is reported as such.
//!
//! Who may ask: anybody on this machine; from elsewhere whoever shows the configured token.
//!
//! Rooms: `routes` what can be asked and how it is answered; `auth` who may ask, `listener` how many at once; `snapshot` the way to the reactor and
//! back; `view` what JSON looks like; `counters` the names of all numbers; `metrics` the same for Prometheus; `events` the log; [`client`] the other
//! end, for commands.

mod auth;
pub mod client;
mod counters;
mod events;
mod listener;
mod metrics;
mod routes;
mod snapshot;
pub mod view;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use dyad_reactor::reactor::Counters;
use dyad_reactor::{BootClock, Clock, Time};

pub use self::events::Event;
use self::events::EventLog;
use self::listener::{Bounded, Peer};
use self::snapshot::{Asker, NoAnswer, Snapshot};
pub use self::snapshot::{PortNumbers, Reporter, TASKS};
use crate::config::{Config, DirectorNumber, Token};

/// What does not change while a director runs.
struct Facts {
    array: String,
    director: u8,
    pair: u8,
    host: String,
    started: Time,
    frames: u64,
    write_pending_limit: u64,
    reactor: Arc<Counters>,
    token: Option<Token>,
    directors: Vec<view::Director>,
}

impl Facts {
    fn new(config: &Config, me: DirectorNumber, reactor: Arc<Counters>) -> Self {
        let director = config.director(me).expect("a director of its own configuration");
        let pair = config.pair(director);
        let directors = config.directors.iter().map(|director| view::Director {
            director: director.id.0,
            pair: director.pair.0,
            host: director.host.clone(),
            control: director.control.to_string(),
            matrix: director.matrix.to_string(),
        });
        Self {
            array: config.array.to_string(),
            director: me.0,
            pair: director.pair.0,
            host: director.host.clone(),
            started: BootClock.now(),
            frames: pair.cache.blocks().0,
            write_pending_limit: pair.mirror.blocks().0,
            reactor,
            token: config.token.clone(),
            directors: directors.collect(),
        }
    }
}

/// What handlers share.
struct Plane {
    facts: Facts,
    asker: Asker,
    events: EventLog,
    last: Mutex<Option<Snapshot>>,
}

/// The reactor has not said anything yet, or too many ask.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Unavailable {
    Starting,
    Busy,
}

impl Plane {
    /// The reactor's numbers now, or the last that it said: then the second is false.
    async fn look(&self) -> Result<(Snapshot, bool), Unavailable> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.asker.ask().await {
            Ok(snapshot) => {
                *last() = Some(snapshot.clone());
                Ok((snapshot, true))
            }
            Err(NoAnswer::Silent) => last().clone().map(|snapshot| (snapshot, false)).ok_or(Unavailable::Starting),
            Err(NoAnswer::Busy) => Err(Unavailable::Busy),
        }
    }
}

/// The control plane cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The port is in use, or not ours.
    #[error(
        "the control plane cannot listen at {address}: {source}; `control` of this director in the configuration names another address"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No thread or no event loop.
    #[error("the control plane cannot be started: {0}")]
    Thread(io::Error),
}

/// A control plane that listens and answers nobody yet.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    /// Listens.
    ///
    /// # Errors
    /// [`ControlError::Listen`].
    pub fn new(address: SocketAddr) -> Result<Self, ControlError> {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(Self { address: listener.local_addr()?, listener })
        });
        bound.map_err(|source| ControlError::Listen { address, source })
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the thread that answers for director `me` until the process ends. The reactor's ends are to be spawned on it.
    ///
    /// # Errors
    /// [`ControlError::Thread`].
    pub fn serve(self, config: &Config, me: DirectorNumber, reactor: Arc<Counters>) -> Result<Reporter, ControlError> {
        let (asker, happened, reporter) = snapshot::wire();
        let facts = Facts::new(config, me, reactor);
        let plane = Arc::new(Plane { facts, asker, events: EventLog::default(), last: Mutex::default() });
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ControlError::Thread)?;
        let serve = move || {
            runtime.block_on(async move {
                plane.events.note_now(&format_args!("director {} started", plane.facts.director));
                let listening = Arc::clone(&plane);
                tokio::spawn(async move { listening.events.listen(happened).await });
                let listener = Bounded::new(tokio::net::TcpListener::from_std(self.listener)?);
                let (router, _) = routes::router(plane);
                axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await
            })
        };
        let thread = thread::Builder::new().name("control".into()).spawn(move || {
            if let Err(error) = serve() {
                eprintln!("warning: the control plane has ended: {error}");
            }
        });
        thread.map(|_| reporter).map_err(ControlError::Thread)
    }
}

#[cfg(test)]
mod tests;
