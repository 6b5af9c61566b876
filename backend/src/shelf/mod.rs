//! The shelf: emulated dual-ported devices in a process of their own, for directors in other processes (vfio-user).
//!
//! Each device is a subsystem with one namespace and two controllers; each controller has a socket ([`socket_path`]).
//! One reactor serves them all: it polls while there is work and sleeps when there is none, after asking its clients
//! for doorbells. A client may die at any moment: its port is reset and waits for the next, while the other port goes
//! on.
//!
//! Faults come through a control socket (module `control`).

mod control;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock, Limits, Options, Reactor, ReactorError, SeededRng, Source, Stopper, Time};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::emulator::{BlockFormat, Latency, Media, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use crate::vfio_user::server::Port;

use self::control::Control;
pub use self::file::FileMedia;

/// Ports of a device: one for each director of a pair.
pub const PORTS: usize = 2;

/// Turns with work between two looks at the sockets; without work every turn looks.
const TURNS_PER_LOOK: u32 = 1024;

/// And no longer than this, however long a turn takes: media in files may, and a register read that is not answered for a second fails the device.
const LOOK_AFTER: Duration = Duration::from_millis(1);

/// Where a device keeps its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShelfMedia {
    /// Gone with the process.
    Memory,
    /// A sparse file, made if it is not there; what is flushed survives the machine's power loss, reservations too.
    File(PathBuf),
}

/// One device.
#[derive(Debug, Clone)]
pub struct ShelfDevice {
    /// Names its sockets. Letters, digits, `-` and `_`.
    pub name: String,
    /// Names the medium.
    pub uuid: [u8; 16],
    /// Size.
    pub blocks: BlockCount,
    /// Where its blocks are.
    pub media: ShelfMedia,
    /// Blocks that its volatile write cache holds; none is write-through.
    pub cache_blocks: Option<usize>,
    /// How it is formatted.
    pub format: BlockFormat,
    /// How slow it is.
    pub latency: Latency,
}

/// A whole shelf.
#[derive(Debug, Clone)]
pub struct ShelfConfig {
    /// Where the sockets are made; it must be there.
    pub directory: PathBuf,
    /// The devices.
    pub devices: Vec<ShelfDevice>,
    /// How long the reactor spins before it sleeps ([`dyad_reactor::reactor::max_spin_for`]).
    pub max_spin: Duration,
    /// The core that it stays on, if any.
    pub core: Option<usize>,
    /// Draws latencies and faults.
    pub seed: u64,
}

/// Why a shelf does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A name that cannot be part of a path.
    #[error("the device name {0:?} is not made of letters, digits, '-' and '_'")]
    Name(String),
    /// Another shelf serves this socket.
    #[error("{0}: another shelf serves this device; stop it first")]
    InUse(PathBuf),
    /// A socket could not be made.
    #[error("cannot listen at {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of blocks cannot be used.
    #[error("cannot use {path} for a device of {bytes} bytes: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// How large it would have to be.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The kernel refused what waiting needs.
    #[error("cannot make the shelf's epoll instance or timer: {0}")]
    Wait(#[from] Errno),
}

/// Where port 0 or 1 of a device is reached.
#[must_use]
pub fn socket_path(directory: &Path, name: &str, port: usize) -> PathBuf {
    directory.join(format!("{name}.port{port}.sock"))
}

/// Where faults are given to a shelf.
#[must_use]
pub fn control_path(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Serves the devices until the [`Stopper`] that `ready` gets is used. When `ready` is called, clients can connect.
///
/// # Errors
/// [`ShelfError`].
pub fn run_shelf(config: &ShelfConfig, ready: impl FnOnce(Stopper)) -> Result<(), ShelfError> {
    let limits = Limits { tasks: 1, timers: 1 };
    let mut reactor = Reactor::new(Options { limits, max_spin: config.max_spin, core: config.core })?;
    reactor.add_source(Shelf::new(config)?)?;
    ready(reactor.stopper());
    reactor.run()?;
    Ok(())
}

/// One device: its subsystem and its ports.
struct Served {
    name: String,
    subsystem: Subsystem,
    ports: Vec<Port>,
}

/// All devices, as one source of a reactor.
struct Shelf {
    devices: Vec<Served>,
    control: Control,
    /// Listeners, clients, control and timer.
    epoll: Epoll,
    timer: TimerFd,
    turns: u32,
    looked: Time,
    paths: Vec<PathBuf>,
}

/// What an epoll event is about, in its data word.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Ready {
    Timer,
    Control,
    /// A listener or client of this device and port.
    Port(usize, usize),
}

impl Ready {
    fn to_word(self) -> u64 {
        match self {
            Self::Timer => 0,
            Self::Control => 1,
            Self::Port(device, port) => (2 + device * PORTS + port) as u64,
        }
    }

    fn from_word(word: u64) -> Self {
        match usize::try_from(word).expect("made from a usize") {
            0 => Self::Timer,
            1 => Self::Control,
            n => Self::Port((n - 2) / PORTS, (n - 2) % PORTS),
        }
    }
}

impl Shelf {
    fn new(config: &ShelfConfig) -> Result<Self, ShelfError> {
        let mut rng = SeededRng::new(config.seed);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        add(&epoll, timer.as_fd(), Ready::Timer)?;
        let control_path = control_path(&config.directory);
        let control = Control::new(listen(&control_path)?).map_err(|source| socket_error(&control_path, source))?;
        add(&epoll, control.listener(), Ready::Control)?;
        let mut shelf = Self {
            devices: Vec::new(),
            control,
            epoll,
            timer,
            turns: 0,
            looked: Time::ZERO,
            paths: vec![control_path],
        };
        for (index, device) in config.devices.iter().enumerate() {
            shelf.add_device(&config.directory, index, device, rng.fork())?;
        }
        Ok(shelf)
    }

    fn add_device(
        &mut self,
        directory: &Path,
        index: usize,
        device: &ShelfDevice,
        rng: SeededRng,
    ) -> Result<(), ShelfError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if device.name.is_empty() || !device.name.chars().all(fits) {
            return Err(ShelfError::Name(device.name.clone()));
        }
        let config = SubsystemConfig {
            nqn: format!("nqn.2026-01.org.dyad:shelf:{}", device.name),
            serial: device.name.clone(),
            ports: PORTS,
            ..SubsystemConfig::default()
        };
        let mut subsystem = Subsystem::new(config, rng);
        let namespace = NamespaceConfig {
            uuid: device.uuid,
            blocks: device.blocks,
            cache_blocks: device.cache_blocks,
            format: device.format,
        };
        let bytes = namespace.media_bytes();
        let media: Box<dyn Media> = match &device.media {
            ShelfMedia::Memory => Box::new(MemoryMedia::new(usize::try_from(bytes).expect("64-bit addresses"))),
            ShelfMedia::File(path) => {
                let open = FileMedia::open(path, bytes);
                Box::new(open.map_err(|source| ShelfError::File { path: path.clone(), bytes, source })?)
            }
        };
        subsystem.add_namespace(namespace, media);
        subsystem.set_latency(device.latency);
        let mut ports = Vec::new();
        for port in 0..PORTS {
            let path = socket_path(directory, &device.name, port);
            let listener = listen(&path)?;
            let port_of = Port::new(&mut subsystem, port, listener).map_err(|source| socket_error(&path, source))?;
            add(&self.epoll, port_of.listener(), Ready::Port(index, port))?;
            ports.push(port_of);
            self.paths.push(path);
        }
        self.devices.push(Served { name: device.name.clone(), subsystem, ports });
        Ok(())
    }

    /// Looks at all sockets that have something.
    fn look(&mut self, now: Time) -> usize {
        let mut events = [EpollEvent::empty(); 16];
        // A failed look is looked at again in the next turn.
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut work = 0;
        for event in &events[..count] {
            match Ready::from_word(event.data()) {
                Ready::Timer => {
                    // Its expiration is all that it has to say.
                    let _ = nix::unistd::read(self.timer.as_fd(), &mut [0; 8]);
                }
                Ready::Control => {
                    let epoll = &self.epoll;
                    work += self.control.serve(&mut self.devices, |client| {
                        // One that cannot be waited for is served when the next one comes.
                        let _ = add(epoll, client, Ready::Control);
                    });
                }
                Ready::Port(device, port) => {
                    let Served { subsystem, ports, .. } = &mut self.devices[device];
                    let port_of = &mut ports[port];
                    // A client that is gone makes room for the one that waits.
                    work += port_of.serve(subsystem, now);
                    if port_of.accept()
                        && let Some(client) = port_of.client()
                    {
                        // Cannot be waited for: the client is served by later looks all the same, when its port has work.
                        let _ = add(&self.epoll, client, Ready::Port(device, port));
                    }
                    work += port_of.serve(subsystem, now);
                }
            }
        }
        work
    }
}

impl Source for Shelf {
    fn poll(&mut self) -> usize {
        let now = BootClock.now();
        let mut work = 0;
        for Served { subsystem, ports, .. } in &mut self.devices {
            let moved = subsystem.step(now);
            if moved > 0 {
                for (index, port) in ports.iter().enumerate() {
                    if subsystem.take_interrupt(index) {
                        port.signal();
                    }
                }
            }
            work += moved;
        }
        self.turns += 1;
        if work == 0 || self.turns >= TURNS_PER_LOOK || now.since(self.looked) >= LOOK_AFTER {
            self.turns = 0;
            self.looked = now;
            work += self.look(now);
        }
        work
    }

    fn arm(&mut self) {
        for Served { subsystem, ports, .. } in &mut self.devices {
            subsystem.ask_for_doorbells();
            for (index, port) in ports.iter().enumerate() {
                if subsystem.take_interrupt(index) {
                    port.signal();
                }
            }
        }
        if let Some(next) = self.devices.iter().filter_map(|d| d.subsystem.next_event()).min() {
            let at = TimeSpec::from_duration(Duration::from_nanos(next.as_nanos().max(1)));
            // Without the timer the shelf would sleep too long; it never fails for a valid time.
            let _ = self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        }
    }

    fn disarm(&mut self) {
        self.turns = TURNS_PER_LOOK;
        let _ = self.timer.unset();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        for path in &self.paths {
            // Somebody may have tidied up already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn add(epoll: &Epoll, fd: BorrowedFd<'_>, ready: Ready) -> Result<(), Errno> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, ready.to_word()))
}

fn socket_error(path: &Path, source: io::Error) -> ShelfError {
    ShelfError::Socket { path: path.to_owned(), source }
}

/// Listens at a path. A socket that nobody listens at is what a dead shelf left.
fn listen(path: &Path) -> Result<UnixListener, ShelfError> {
    if UnixStream::connect(path).is_ok() {
        return Err(ShelfError::InUse(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket_error(path, error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(|source| socket_error(path, source))
}
