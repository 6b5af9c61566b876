//! The directory of an array on this host: whose it is, in which format, and that one process at a time runs it.
//!
//! | path | what |
//! |---|---|
//! | `array` | text: `dyad array directory 1`, then the array's UUID in hexadecimal |
//! | `lock` | locked (flock(2)) by whoever runs the array |
//! | `dyad.toml` | the configuration, unless another one is named |
//! | `registry/`, `shelf/`, `director*.sock` | as the configuration says |

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::configuration_in;
use crate::config::{ByteSize, Config, ConfigError};

const MARK: &str = "dyad array directory ";
const FORMAT: u32 = 1;

/// The directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file system.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Somebody runs it.
    #[error("{} is in use: another `dyad up` runs the array in it", .0.display())]
    InUse(PathBuf),
    /// A later version made it.
    #[error("{} has format {found}, and this version knows {FORMAT}: use the version that made it, or a newer one", .path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// The format that it says.
        found: String,
    },
    /// Something is in it that is no array.
    #[error("{} is not empty and no array's directory: name another one with --dir", .0.display())]
    Foreign(PathBuf),
    /// The mark is there and makes no sense.
    #[error("{} is damaged: it should say which array this is", .0.display())]
    Damaged(PathBuf),
    /// It is another array's.
    #[error(
        "{} belongs to the array {found}, and the configuration is of {expected}: name the directory or the configuration that \
         belongs to the other",
        .path.display()
    )]
    OtherArray {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it would have to be.
        expected: String,
    },
    /// There is an array in it, of another size.
    #[error("the array in {} has {found} directors, not {asked}: leave --directors away, or name another directory", .path.display())]
    Directors {
        /// Where.
        path: PathBuf,
        /// As configured.
        found: usize,
        /// As asked for.
        asked: u8,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What an array in a new directory is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// 2, 4, 6 or 8.
    pub directors: u8,
    /// Where the control plane of director 0 listens; the others on the ports after it. Port 0: each on any that is free.
    pub control: SocketAddr,
    /// Devices of each pair.
    pub devices: u8,
    /// Size of each device.
    pub size: ByteSize,
    /// Cache of each director.
    pub cache: ByteSize,
    /// The directors meet over TCP on loopback, the first at this port, the others at those after it; otherwise in shared memory.
    pub matrix_port: Option<u16>,
    /// Devices keep their blocks in files; otherwise they are gone with the shelf.
    pub files: bool,
}

impl Plan {
    /// As small as it is still useful.
    #[must_use]
    pub fn new(directors: u8, control: SocketAddr) -> Self {
        let size = |text: &str| text.parse().expect("a size");
        Self {
            directors,
            control,
            devices: 2,
            size: size("256MiB"),
            cache: size("16MiB"),
            matrix_port: None,
            files: true,
        }
    }

    /// The configuration's text for an array with this UUID.
    #[must_use]
    pub fn text(&self, uuid: [u8; 16]) -> String {
        let Self { directors, control, devices, size, cache, matrix_port, files } = self;
        let (uuid, pairs) = (hex(uuid), directors / 2);
        let mut text = format!(
            "# Made by `dyad up`; it may be changed while the array is stopped.\n\n\
             [array]\nname = \"array\"\nuuid = \"{uuid}\"\n\n\
             [registry]\ndirectory = \"registry\"\n\n\
             [shelf]\ndirectory = \"shelf\"\ndevices = {}\nsize = \"{size}\"\nfiles = {files}\n",
            pairs * devices
        );
        for pair in 0..pairs {
            let mirror = ByteSize::of_blocks(dyad_nvme::types::BlockCount(cache.blocks().0 / 4)).expect("large enough");
            text.push_str(&format!("\n[[pairs]]\nid = {pair}\ncache = \"{cache}\"\nmirror = \"{mirror}\"\n"));
        }
        for director in 0..*directors {
            let (pair, port) = (director / 2, director % 2);
            let device = |number: u8| format!("\"shelf/disk{}.port{port}.sock\"", pair * devices + number);
            let addresses: Vec<_> = (0..*devices).map(device).collect();
            let mut control = *control;
            if control.port() != 0 {
                control.set_port(control.port().saturating_add(director.into()));
            }
            let matrix = match matrix_port {
                Some(port) => format!("127.0.0.1:{}", port.saturating_add(director.into())),
                None => format!("director{director}.sock"),
            };
            text.push_str(&format!(
                "\n[[directors]]\nid = {director}\npair = {pair}\nmatrix = \"{matrix}\"\n\
                 control = \"{control}\"\ndevices = [{}]\n",
                addresses.join(", ")
            ));
        }
        text
    }
}

/// A directory that this process may use until it drops this.
#[derive(Debug)]
pub struct Directory {
    configuration: PathBuf,
    config: Config,
    _lock: Flock<File>,
}

impl Directory {
    /// Opens the directory of the array of a configuration, or makes it.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(path: &Path, configuration: &Path) -> Result<Self, DirectoryError> {
        let config = Config::read(configuration)?;
        let lock = enter(path)?;
        match mark_in(path)? {
            Some(uuid) => belongs(path, uuid, &config)?,
            None => write_mark(path, config.uuid)?,
        }
        Ok(Self { configuration: configuration.to_owned(), config, _lock: lock })
    }

    /// Opens a directory with its own configuration; makes both, as planned, if it is empty or not there.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open_or_make(path: &Path, plan: &Plan, directors: Option<u8>) -> Result<Self, DirectoryError> {
        let configuration = configuration_in(path);
        let lock = enter(path)?;
        let Some(uuid) = mark_in(path)? else {
            let mut others = fs::read_dir(path).map_err(io(path))?.filter_map(Result::ok);
            // A start that was cut short leaves its configuration.
            if others.any(|entry| !["lock", "dyad.toml"].iter().any(|name| entry.file_name() == *name)) {
                return Err(DirectoryError::Foreign(path.to_owned()));
            }
            let uuid = random_uuid().map_err(io(Path::new("/dev/urandom")))?;
            fs::write(&configuration, plan.text(uuid)).map_err(io(&configuration))?;
            let config = Config::read(&configuration)?;
            write_mark(path, uuid)?;
            return Ok(Self { configuration, config, _lock: lock });
        };
        let config = Config::read(&configuration)?;
        belongs(path, uuid, &config)?;
        if let Some(asked) = directors.filter(|asked| usize::from(*asked) != config.directors.len()) {
            return Err(DirectoryError::Directors { path: path.to_owned(), found: config.directors.len(), asked });
        }
        Ok(Self { configuration, config, _lock: lock })
    }

    /// The array's configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The file that it was read from.
    #[must_use]
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { path: path.clone(), source }
}

/// Makes the directory, if need be, and keeps others out.
fn enter(path: &Path) -> Result<Flock<File>, DirectoryError> {
    fs::create_dir_all(path).map_err(io(path))?;
    let name = path.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(io(&name))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => DirectoryError::InUse(path.to_owned()),
        other => DirectoryError::Io { path: name, source: other.into() },
    })
}

/// Whose directory it is; `None` if it is nobody's yet.
fn mark_in(path: &Path) -> Result<Option<[u8; 16]>, DirectoryError> {
    let name = path.join("array");
    let text = match fs::read_to_string(&name) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(io(&name))?,
    };
    let mut lines = text.lines();
    let format =
        lines.next().and_then(|line| line.strip_prefix(MARK)).ok_or_else(|| DirectoryError::Damaged(name.clone()))?;
    if format != FORMAT.to_string() {
        return Err(DirectoryError::Newer { path: path.to_owned(), found: format.to_owned() });
    }
    let uuid = lines.next().and_then(|line| u128::from_str_radix(line, 16).ok());
    uuid.map(|uuid| Some(uuid.to_be_bytes())).ok_or(DirectoryError::Damaged(name))
}

fn write_mark(path: &Path, uuid: [u8; 16]) -> Result<(), DirectoryError> {
    let (name, made) = (path.join("array"), path.join("array.new"));
    fs::write(&made, format!("{MARK}{FORMAT}\n{}\n", hex(uuid))).map_err(io(&made))?;
    fs::rename(&made, &name).map_err(io(&name))
}

fn belongs(path: &Path, uuid: [u8; 16], config: &Config) -> Result<(), DirectoryError> {
    if uuid == config.uuid {
        return Ok(());
    }
    Err(DirectoryError::OtherArray { path: path.to_owned(), found: hex(uuid), expected: hex(config.uuid) })
}

fn hex(uuid: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(uuid))
}

fn random_uuid() -> std::io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    // Version 4, variant 1 (RFC 9562, section 5.4).
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(directors: u8) -> Plan {
        Plan::new(directors, "127.0.0.1:7600".parse().unwrap())
    }

    #[test]
    fn what_is_made_can_be_read_for_every_size() {
        for (directors, matrix_port) in [(2, None), (4, Some(7700)), (8, None)] {
            let text = Plan { matrix_port, ..plan(directors) }.text([7; 16]);
            let config =
                Config::parse(&text, Path::new("a/dyad.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(config.directors.len(), usize::from(directors));
            assert_eq!(config.directors.last().unwrap().control.port(), 7599 + u16::from(directors));
        }
    }

    #[test]
    fn a_second_start_finds_the_array_and_a_parallel_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let first = Directory::open_or_make(&path, &plan(2), None).unwrap();
        let uuid = first.config().uuid;
        assert!(matches!(Directory::open_or_make(&path, &plan(2), None), Err(DirectoryError::InUse(_))));
        drop(first);
        let second = Directory::open_or_make(&path, &plan(4), None).unwrap();
        assert_eq!((second.config().uuid, second.config().directors.len()), (uuid, 2));
        drop(second);
        let other = Directory::open_or_make(&path, &plan(4), Some(4)).unwrap_err();
        assert!(matches!(other, DirectoryError::Directors { found: 2, asked: 4, .. }), "{other}");
    }

    #[test]
    fn directories_of_others_are_refused_and_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::write(path.join("letters"), "dear").unwrap();
        assert!(matches!(Directory::open_or_make(path, &plan(2), None), Err(DirectoryError::Foreign(_))));
        fs::remove_file(path.join("letters")).unwrap();

        drop(Directory::open_or_make(path, &plan(2), None).unwrap());
        let elsewhere = tempfile::tempdir().unwrap();
        let configuration = elsewhere.path().join("other.toml");
        fs::write(&configuration, plan(2).text([9; 16])).unwrap();
        let other = Directory::open(path, &configuration).unwrap_err();
        assert!(matches!(other, DirectoryError::OtherArray { .. }), "{other}");

        let mark = path.join("array");
        let good = fs::read_to_string(&mark).unwrap();
        fs::write(&mark, good.replace("directory 1", "directory 2")).unwrap();
        let newer = Directory::open_or_make(path, &plan(2), None).unwrap_err();
        assert!(matches!(&newer, DirectoryError::Newer { found, .. } if found == "2"), "{newer}");
        for damaged in ["", "dyad array directory 1\n", "dyad array directory 1\nxyz\n", "something else\n"] {
            fs::write(&mark, damaged).unwrap();
            let error = Directory::open_or_make(path, &plan(2), None).unwrap_err();
            assert!(matches!(error, DirectoryError::Damaged(_)), "{error}");
            assert_eq!(fs::read_to_string(&mark).unwrap(), damaged);
        }
    }
}
