//! How a driver reaches one PCI function. The driver is the same whether the function is real (VFIO), another process (vfio-user), or the emulated
//! controller in this process.

use std::os::fd::BorrowedFd;
use std::task::Poll;

use dyad_matrix::Memory;

/// An address as the device uses it: what goes into PRP entries and SGL descriptors.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BusAddress(pub u64);

/// Why memory could not be given to a function.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// The function cannot reach this kind of memory: another process needs a file behind it.
    #[error("the device cannot reach this memory")]
    Unreachable,
    /// There is no address or table entry left.
    #[error("the device has no room for another mapping")]
    Full,
    /// No memory could be made.
    #[error("no memory for the device's queues")]
    NoMemory,
    /// Memory that a real device reaches is locked, and this process may not lock so much.
    #[error(
        "the limit on locked memory is too low: {needed} more bytes are needed and {left} are left; raise it with \
         LimitMEMLOCK= in the service's unit (or `ulimit -l`), to all memory of the director, once for every device and once more"
    )]
    LockLimit {
        /// Bytes to be locked.
        needed: u64,
        /// Bytes that may still be.
        left: u64,
    },
    /// The function was removed, or its process is gone.
    #[error("the device is gone")]
    Gone,
}

/// One PCI function: registers in BAR 0, DMA, an interrupt.
///
/// A function belongs to one reactor. Implementations promise:
/// - nothing here waits for the device, except [`Self::reset`], and that not longer than a small part of a lease (PROTOCOLS 4.1);
/// - register reads and writes take effect in the order in which they are made;
/// - a read of a function that is gone gives all ones, and a write to it is dropped: nothing blocks, nothing panics;
/// - memory written before a doorbell is rung is seen by the device when it acts on the doorbell;
/// - the device reaches exactly the memory that was mapped, from [`Self::map_dma`] until [`Self::reset`] or the function is dropped;
/// - after [`Self::reset`] returned the device touches no memory until it is enabled again.
pub trait PciFunction: 'static {
    /// Reads a 4-byte register. As on the bus, a read is a question that is answered later: [`Poll::Pending`] says that it is under way and
    /// is to be asked again. How long one waits for an answer is the caller's business.
    fn read32(&self, offset: u32) -> Poll<u32>;

    /// Reads an 8-byte register. Functions that answer later have a way of their own.
    fn read64(&self, offset: u32) -> Poll<u64> {
        match (self.read32(offset), self.read32(offset + 4)) {
            (Poll::Ready(low), Poll::Ready(high)) => Poll::Ready(u64::from(low) | u64::from(high) << 32),
            _ => Poll::Pending,
        }
    }

    /// Writes a 4-byte register: posted, nobody waits for it.
    fn write32(&self, offset: u32, value: u32);

    /// Writes an 8-byte register, low half first.
    fn write64(&self, offset: u32, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.write32(offset, u32::from_le_bytes([a, b, c, d]));
        self.write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
    }

    /// Writes a doorbell: a posted write, on the I/O path.
    fn doorbell(&self, offset: u32, value: u32);

    /// Zeroed memory of a kind that [`Self::map_dma`] takes, for queues.
    ///
    /// # Errors
    /// [`DmaError::NoMemory`].
    fn allocate(&self, len: usize) -> Result<Memory, DmaError>;

    /// Lets the device reach all of `memory`, contiguous at the address returned, which is a multiple of 4096. Mapping it again gives the same
    /// address. No command may name it before [`Self::settled`] says so.
    ///
    /// # Errors
    /// [`DmaError`].
    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError>;

    /// Whether the device reaches everything that was mapped so far; [`Poll::Pending`] is to be asked again.
    ///
    /// # Errors
    /// [`DmaError`] if it refused something: then it is of no use.
    fn settled(&self) -> Poll<Result<(), DmaError>> {
        Poll::Ready(Ok(()))
    }

    /// Becomes readable when vector 0 is signalled, if the function has interrupts; reading it clears it. Without one it must be polled.
    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Masks vector 0, or unmasks it. Signalled while masked means signalled when unmasked. Masked at first.
    fn mask_interrupt(&self, masked: bool) {
        let _ = masked;
    }

    /// The function is to be given up: it is being unplugged, or another driver asks for it, and whoever does so waits for
    /// [`Self::reset`]. Looked at when the reactor was woken, and now and then under load.
    fn is_leaving(&self) -> bool {
        false
    }

    /// Stops the device whatever it does: function level reset, or disconnection. Mappings may be gone afterwards.
    fn reset(&self);
}
