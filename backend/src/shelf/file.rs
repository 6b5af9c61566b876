//! Media in a sparse file. What the file system's cache holds is this device's volatile cache: flush is `fdatasync`.
//!
//! Reservations that survive power loss are kept beside it, in `<file>.reservations`, replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dyad_matrix::Memory;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::emulator::{Media, MediaError};

/// Bytes moved at a time.
const PIECE: usize = 128 << 10;

/// A file of blocks.
#[derive(Debug)]
pub struct FileMedia {
    file: File,
    record: PathBuf,
    buffer: Vec<u8>,
    dirty: bool,
}

impl FileMedia {
    /// Opens a file of `len` bytes, or makes it. One that is longer or shorter belongs to another device.
    ///
    /// # Errors
    /// As the file system says; [`io::ErrorKind::InvalidInput`] for another length; [`io::ErrorKind::ResourceBusy`] if another process has it.
    pub fn open(path: &Path, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process uses the file")
            }
            std::fs::TryLockError::Error(error) => error,
        })?;
        match file.metadata()?.len() {
            0 => file.set_len(len)?,
            held if held == len => {}
            held => {
                let text = format!("it has {held} bytes; a device keeps its size");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        let mut record = path.as_os_str().to_owned();
        record.push(".reservations");
        Ok(Self { file, record: record.into(), buffer: vec![0; PIECE], dirty: false })
    }
}

impl Media for FileMedia {
    fn read(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError> {
        pieces(len, |done, piece| {
            let buffer = &mut self.buffer[..piece];
            self.file.read_exact_at(buffer, at + done).map_err(|_| MediaError)?;
            host.write(offset + done, buffer).map_err(|_| MediaError)
        })
    }

    fn write(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError> {
        self.dirty = true;
        pieces(len, |done, piece| {
            let buffer = &mut self.buffer[..piece];
            host.read(offset + done, buffer).map_err(|_| MediaError)?;
            self.file.write_all_at(buffer, at + done).map_err(|_| MediaError)
        })
    }

    fn load(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), MediaError> {
        self.file.read_exact_at(bytes, at).map_err(|_| MediaError)
    }

    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<(), MediaError> {
        self.dirty = true;
        self.file.write_all_at(bytes, at).map_err(|_| MediaError)
    }

    fn zero(&mut self, at: u64, len: u64) -> Result<(), MediaError> {
        self.dirty = true;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let range = (i64::try_from(at), i64::try_from(len));
        if let (Ok(at), Ok(len)) = range
            && fallocate(&self.file, hole, at, len).is_ok()
        {
            return Ok(());
        }
        // A file system without holes.
        self.buffer.fill(0);
        pieces(len, |done, piece| self.file.write_all_at(&self.buffer[..piece], at + done).map_err(|_| MediaError))
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        if std::mem::take(&mut self.dirty) {
            self.file.sync_data().map_err(|_| MediaError)?;
        }
        Ok(())
    }

    fn kept(&self) -> Vec<u8> {
        // None yet is none.
        std::fs::read(&self.record).unwrap_or_default()
    }

    fn keep(&mut self, record: &[u8]) -> Result<(), MediaError> {
        let mut new = self.record.clone();
        new.as_mut_os_string().push(".new");
        let replace = || {
            let mut file = File::create(&new)?;
            file.write_all(record)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.record)?;
            let directory = self.record.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(directory)?.sync_all()
        };
        replace().map_err(|_: io::Error| MediaError)
    }
}

/// Calls `each` with how far it is and the size of each piece.
fn pieces(len: u64, mut each: impl FnMut(u64, usize) -> Result<(), MediaError>) -> Result<(), MediaError> {
    let mut done = 0;
    while done < len {
        let piece = usize::try_from(len - done).map_or(PIECE, |left| left.min(PIECE));
        each(done, piece)?;
        done += piece as u64;
    }
    Ok(())
}
