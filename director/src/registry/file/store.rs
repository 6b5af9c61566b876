//! The directory behind [`FileRegistry`](super::FileRegistry), used by any number of processes of one host at once, without locks: a
//! process that hangs, at whatever instruction, holds up nobody (PROTOCOLS 1).
//!
//! ```text
//! <directory>/<key>/<revision, 20 digits>    one revision (module `record`); never changed, never empty
//! <directory>/<key>/tmp-<process>-<number>   being written
//! ```
//!
//! - The value of a key is its **highest** revision. The highest is never removed.
//! - A change from revision r writes a temporary file, syncs it, and **links** it as r+1: link(2) fails if that name is there, so of all
//!   that try one succeeds. Then the directory is synced, and only then the change is won.
//! - Old revisions are removed later, lowest first. A process that overslept may therefore link an old number that was there and is no
//!   more. It sees higher revisions afterwards, and so does one that won and was overtaken at once: for both the outcome is `Unknown`,
//!   and reading tells.
//! - A read lists, reads the highest, syncs the directory (so that what it returns is durable), and lists again: if the highest is still
//!   the same, it was the value then (and not an old number that was linked anew while we slept).
//! - Anyone may remove temporary files at any time: linking one that is gone fails, and the change is tried anew.
//!
//! Needs a local file system with hard links.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::record;
use crate::registry::{Cas, Damage, KEY_BYTES_MAX, Key, RegistryError, Revision, VALUE_BYTES_MAX, Versioned, worker};

/// Revisions that stay, so that a read that others overtake need not start over.
const REVISIONS_KEPT: u64 = 4;

/// Somebody changes the record, or tidies up, each time that we look: another try is due, but not for ever.
const TRIES_MAX: u32 = 100;

/// Longest file of a record.
const FILE_BYTES_MAX: usize = record::HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;

const TEMPORARY: &str = "tmp-";

#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// Numbers this store's temporary files.
    next: u64,
}

impl Store {
    /// Makes the directory if need be, and removes what crashes left behind.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        make_directories(directory)?;
        for key in fs::read_dir(directory)? {
            let key = key?.path();
            if !key.is_dir() {
                continue;
            }
            for file in fs::read_dir(&key)? {
                let file = file?;
                if file.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY)) {
                    let _ = fs::remove_file(file.path()); // somebody else may be tidying up too
                }
            }
        }
        Ok(Self { directory: directory.to_owned(), next: 0 })
    }

    fn write_temporary(&mut self, directory: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        let (path, mut file) = loop {
            // Another process of that number may have died here, or live in another container.
            let path = directory.join(format!("{TEMPORARY}{}-{}", std::process::id(), self.next));
            self.next += 1;
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                file => break (path, file?),
            }
        };
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }
}

impl worker::Store for Store {
    fn get(&mut self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        let directory = self.directory.join(key.as_str());
        for _ in 0..TRIES_MAX {
            let Some(revision) = highest(&directory).map_err(failed)? else { return Ok(None) };
            let file = match read(&directory.join(name(revision))) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.map_err(failed)?,
            };
            let value = record::decode(key, revision, &file);
            let value = value.map_err(|why| RegistryError::Corrupt(Damage { revision, why }))?;
            sync(&directory).map_err(failed)?;
            if highest(&directory).map_err(failed)? == Some(revision) {
                return Ok(Some(Versioned { revision, value }));
            }
        }
        Err(RegistryError::Busy)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<Revision>, value: &[u8]) -> Result<Cas, RegistryError> {
        let directory = self.directory.join(key.as_str());
        let next = expected.map_or(0, Revision::number).checked_add(1).and_then(Revision::new);
        let revision = next.ok_or(RegistryError::Full)?;
        let file = record::encode(key, revision, value);
        for _ in 0..TRIES_MAX {
            let current = self.get(key)?;
            if current.as_ref().map(|current| current.revision) != expected {
                return Ok(Cas::Lost(current));
            }
            if expected.is_none() {
                // Whoever made it, it is not durable before the root is synced.
                fs::create_dir_all(&directory).and_then(|()| sync(&self.directory)).map_err(failed)?;
            }
            let temporary = self.write_temporary(&directory, &file).map_err(failed)?;
            let linked = fs::hard_link(&temporary, directory.join(name(revision)));
            let _ = fs::remove_file(&temporary); // or the next opening does
            match linked {
                Ok(()) => return settle(&directory, revision),
                // Somebody was first, or tidied up: look again.
                Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(RegistryError::Busy)
    }
}

/// The link is made: is it won?
pub(super) fn settle(directory: &Path, revision: Revision) -> Result<Cas, RegistryError> {
    let durable = sync(directory).and_then(|()| highest(directory));
    match durable {
        Ok(Some(highest)) if highest == revision => {
            remove_old(directory, revision);
            Ok(Cas::Won(revision))
        }
        Ok(_) | Err(_) => Err(RegistryError::Unknown),
    }
}

/// What cannot be removed now will be at the next change.
fn remove_old(directory: &Path, current: Revision) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut old: Vec<Revision> = entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect();
    old.retain(|revision| revision.number().saturating_add(REVISIONS_KEPT) <= current.number());
    old.sort_unstable();
    for revision in old {
        let _ = fs::remove_file(directory.join(name(revision)));
    }
}

/// The highest revision. A directory of so few entries is listed in one system call, at one moment.
fn highest(directory: &Path) -> io::Result<Option<Revision>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut highest = None;
    for entry in entries {
        highest = highest.max(entry?.file_name().to_str().and_then(parse));
    }
    Ok(highest)
}

/// The whole file, if it is not longer than a record can be; the part that shows that it is longer otherwise.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes the directories that are missing on the way to this one, durably.
fn make_directories(directory: &Path) -> io::Result<()> {
    let named = |path: &&Path| !path.as_os_str().is_empty();
    let missing: Vec<&Path> = directory.ancestors().filter(named).take_while(|path| !path.exists()).collect();
    fs::create_dir_all(directory)?;
    missing.iter().try_for_each(|made| sync(made.parent().filter(named).unwrap_or(Path::new("."))))
}

/// Makes the entries of a directory durable.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn name(revision: Revision) -> String {
    format!("{:020}", revision.number())
}

fn parse(name: &str) -> Option<Revision> {
    let digits = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
    Revision::new(digits.then(|| name.parse().ok())??)
}

/// Nothing was changed, because of this.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: io::Error) -> RegistryError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RegistryError::Full,
        kind => RegistryError::Storage(kind),
    }
}
