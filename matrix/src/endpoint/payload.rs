//! Payload with its message: in the message below the crossover, by RDMA in front of it from there on. The receiver sees no
//! difference: when the message comes, the payload is in its place.
//!
//! A message that carries payload says how much in its immediate data: payload, region key (8 bytes), offset in the region (8),
//! message; numbers little-endian. Its receiver puts the payload where an RDMA write would have gone, under the same
//! conditions.

use super::{Endpoint, MESSAGE_BYTES_MAX, Message, Posted, TransferError};
use crate::crossover::{Crossover, Way};
use crate::memory::{Memory, Segment, copy};
use crate::provider::{
    Provider, RegionHandle, RemoteAccess, RemoteAddress, ResourceError, Revocable, SEGMENTS_MAX, ViId,
};

/// Bytes of the address between payload and message.
const ADDRESS_BYTES: usize = 16;

impl<P: Provider> Endpoint<P> {
    /// Lets peers put payload into `memory`, by [`transfer`](Self::transfer) or RDMA write, and do by RDMA what else `access` says.
    /// It is taken back with [`withdraw`](Self::withdraw), not with the provider.
    ///
    /// # Errors
    /// As [`Provider::register`].
    pub fn export(&self, memory: &Memory, access: RemoteAccess) -> Result<RegionHandle, ResourceError> {
        let region = self.inner.provider.register(memory, self.inner.config.tag, access)?;
        if access.write {
            self.admit(region, memory);
        }
        Ok(region)
    }

    /// Lets payload in messages go into a region that is registered with the provider, as an RDMA write may.
    pub(crate) fn admit(&self, region: RegionHandle, memory: &Memory) {
        if self.inner.config.remote_access.write {
            self.inner.exports.borrow_mut().push((region, memory.clone()));
        }
    }

    /// No payload goes there any more.
    pub(crate) fn dismiss(&self, region: RegionHandle) {
        self.inner.exports.borrow_mut().retain(|(exported, _)| *exported != region);
    }

    /// Revokes a region that was exported here: see [`Provider::revoke`].
    ///
    /// # Errors
    /// When the handle names nothing.
    pub fn withdraw(&self, region: RegionHandle) -> Result<(), ResourceError> {
        self.dismiss(region);
        self.inner.provider.revoke(Revocable::Region(region))
    }

    /// From now on payload goes by the provider's own crossover; before, it all goes by RDMA.
    pub fn choose_by(&self, crossover: Crossover) {
        self.inner.crossover.set(crossover);
    }

    /// How payload of `bytes` would go with a message of `message` bytes.
    #[must_use]
    pub fn way(&self, bytes: u64, message: usize) -> Way {
        let room = (MESSAGE_BYTES_MAX - ADDRESS_BYTES).saturating_sub(message);
        match u32::try_from(bytes) {
            Ok(bytes) if usize::try_from(bytes).is_ok_and(|bytes| bytes <= room) => {
                self.inner.crossover.get().way(bytes)
            }
            _ => Way::Rdma,
        }
    }

    /// Puts `payload` at `to` in the peer's memory and delivers `message` behind it: send or RDMA, whichever costs less. The
    /// payload's memory must stay untouched until the result resolves, and then all of it is done.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Panics
    /// If the message is longer than [`MESSAGE_BYTES_MAX`].
    pub async fn transfer(
        &self,
        vi: ViId,
        payload: &[Segment],
        to: RemoteAddress,
        message: &[u8],
    ) -> Result<Posted, TransferError> {
        let bytes = payload.iter().map(|segment| u64::from(segment.len)).sum();
        match self.way(bytes, message.len()) {
            _ if bytes == 0 => self.send(vi, message).await,
            // The message itself takes a segment.
            Way::Message if payload.len() < SEGMENTS_MAX => {
                let mut tail = Message::new();
                let parts = [&to.region.to_key().to_le_bytes()[..], &to.offset.to_le_bytes(), message];
                parts.iter().for_each(|part| tail.extend_from_slice(part).expect("there was room for all of it"));
                let immediate = u32::try_from(bytes).ok();
                self.when_there_is_room(|| self.post_message(vi, payload, &tail, immediate)).await
            }
            // If the write fails, so does what is behind it.
            Way::Message | Way::Rdma => {
                let write = self.rdma_write(vi, payload, to).await?;
                let message = self.send(vi, message).await;
                drop(write);
                message
            }
        }
    }

    /// The message in a receive buffer, once its payload, if it carries any, is in its place; `None` if that may not be done.
    pub(super) fn unpack(&self, buffer: u32, len: u32, payload: Option<u32>) -> Option<Message> {
        let inner = &*self.inner;
        let read = |from: u32, bytes: &mut [u8]| {
            let start = inner.buffer(buffer, 0).offset + u64::from(from);
            inner.messages.read(start, bytes).expect("a receive buffer lies in its memory");
        };
        let mut at = 0;
        if let Some(payload) = payload {
            let mut address = [0; ADDRESS_BYTES];
            at = payload.checked_add(u32::try_from(ADDRESS_BYTES).expect("it is short")).filter(|at| *at <= len)?;
            read(payload, &mut address);
            let [key, offset] = [0, 8].map(|at| address[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
            let exports = inner.exports.borrow();
            let (_, memory) = exports.iter().find(|(region, _)| *region == RegionHandle::from_key(key))?;
            copy(&inner.messages, inner.buffer(buffer, 0).offset, memory, offset, u64::from(payload)).ok()?;
        }
        let mut message = Message::new();
        message.resize(usize::try_from(len - at).ok()?, 0).ok()?;
        read(at, &mut message);
        Some(message)
    }
}
