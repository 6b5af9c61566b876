//! Where the blocks of an emulated namespace are kept.

use dyad_matrix::Memory;
use dyad_matrix::memory::copy;

/// The media did not do it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the media failed")]
pub struct MediaError;

/// Bytes at offsets, and one small record that survives power loss.
///
/// Implementations promise: what was never written reads as zeros; after [`Media::flush`] everything written before is on whatever the media calls
/// durable. Ranges are inside the size that the namespace was made with.
pub trait Media {
    /// Moves bytes from the media to host memory.
    ///
    /// # Errors
    /// The media failed, or the host's memory is not there.
    fn read(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError>;

    /// Moves bytes from host memory to the media.
    ///
    /// # Errors
    /// The media failed, or the host's memory is not there.
    fn write(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError>;

    /// Reads bytes for the device's own use.
    ///
    /// # Errors
    /// The media failed.
    fn load(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), MediaError>;

    /// Writes bytes of the device's own.
    ///
    /// # Errors
    /// The media failed.
    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<(), MediaError>;

    /// Sets bytes to zero, giving their space back where that is possible.
    ///
    /// # Errors
    /// The media failed.
    fn zero(&mut self, at: u64, len: u64) -> Result<(), MediaError>;

    /// Makes everything durable.
    ///
    /// # Errors
    /// The media failed.
    fn flush(&mut self) -> Result<(), MediaError>;

    /// The bytes from `at` on may be read soon.
    fn prefetch(&self, at: u64) {
        let _ = at;
    }

    /// The record that [`Media::keep`] kept last; empty if none.
    fn kept(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Keeps a small record, durably and as a whole.
    ///
    /// # Errors
    /// The media failed.
    fn keep(&mut self, record: &[u8]) -> Result<(), MediaError> {
        let _ = record;
        Ok(())
    }
}

/// Media in memory.
#[derive(Debug)]
pub struct MemoryMedia(Memory);

/// Media without data: reads leave the host's memory as it is, writes go nowhere. For measuring everything else.
#[derive(Debug, Copy, Clone)]
pub struct NullMedia;

impl MemoryMedia {
    /// Zeroed media.
    ///
    /// # Panics
    /// If there is no memory of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self(Memory::anonymous(len))
    }
}

impl From<Memory> for MemoryMedia {
    fn from(memory: Memory) -> Self {
        Self(memory)
    }
}

impl Media for MemoryMedia {
    #[inline]
    fn prefetch(&self, at: u64) {
        for line in 0..4 {
            self.0.prefetch(at.wrapping_add(line * 64));
        }
    }

    #[inline]
    fn read(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError> {
        copy(&self.0, at, host, offset, len).map_err(|_| MediaError)
    }

    #[inline]
    fn write(&mut self, at: u64, host: &Memory, offset: u64, len: u64) -> Result<(), MediaError> {
        copy(host, offset, &self.0, at, len).map_err(|_| MediaError)
    }

    fn load(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), MediaError> {
        self.0.read(at, bytes).map_err(|_| MediaError)
    }

    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<(), MediaError> {
        self.0.write(at, bytes).map_err(|_| MediaError)
    }

    fn zero(&mut self, at: u64, len: u64) -> Result<(), MediaError> {
        self.0.fill_zero(at, len).map_err(|_| MediaError)
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        Ok(())
    }
}

impl Media for NullMedia {
    fn read(&mut self, _: u64, _: &Memory, _: u64, _: u64) -> Result<(), MediaError> {
        Ok(())
    }

    fn write(&mut self, _: u64, _: &Memory, _: u64, _: u64) -> Result<(), MediaError> {
        Ok(())
    }

    fn load(&mut self, _: u64, bytes: &mut [u8]) -> Result<(), MediaError> {
        bytes.fill(0);
        Ok(())
    }

    fn store(&mut self, _: u64, _: &[u8]) -> Result<(), MediaError> {
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<(), MediaError> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        Ok(())
    }
}
