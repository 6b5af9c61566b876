//! What every provider asks of descriptors and attributes before it takes them.

use crate::memory::Segment;
use crate::provider::{
    Capabilities, Descriptor, DescriptorError, PRIVATE_DATA_MAX, PostError, PrivateData, Reliability, ResourceError,
    SEGMENTS_MAX, SendOperation, ViAttributes,
};
use crate::regions::LocalUse;
use crate::vi_state::ViState;

/// How a send descriptor uses its segments, and their length together; or why it is not taken.
pub(crate) fn admit_send(
    descriptor: &Descriptor<'_>,
    attributes: &ViAttributes,
    capabilities: &Capabilities,
    state: ViState,
) -> Result<(LocalUse, u64), PostError> {
    if state != ViState::Connected {
        return Err(PostError::NotConnected);
    }
    let segments = descriptor.segments;
    if segments.len() > SEGMENTS_MAX {
        return Err(PostError::TooManySegments);
    }
    let len = total(segments);
    match descriptor.operation {
        SendOperation::Send => Ok((LocalUse::Source, len)),
        SendOperation::RdmaRead(_)
            if !capabilities.rdma_read || attributes.reliability == Reliability::UnreliableDelivery =>
        {
            Err(PostError::Unsupported)
        }
        SendOperation::RdmaRead(_) | SendOperation::RdmaWrite(_) if len == 0 => Err(PostError::Empty),
        SendOperation::RdmaWrite(_) => Ok((LocalUse::Source, len)),
        SendOperation::RdmaRead(_) => Ok((LocalUse::Target, len)),
    }
}

/// Whether a receive may be posted; its queue's room is the provider's to know.
pub(crate) fn admit_receive(segments: &[Segment], state: ViState) -> Result<(), PostError> {
    if state == ViState::Broken {
        return Err(PostError::NotConnected);
    }
    if segments.len() > SEGMENTS_MAX {
        return Err(PostError::TooManySegments);
    }
    Ok(())
}

/// The length as completions count it, unless the provider moves no transfer of that length.
pub(crate) fn transfer_len(len: u64, capabilities: &Capabilities) -> Result<u32, DescriptorError> {
    u32::try_from(len).ok().filter(|len| *len <= capabilities.transfer_bytes_max).ok_or(DescriptorError::Length)
}

/// Bytes in all.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Whether the provider has the level.
pub(crate) fn offered(capabilities: &Capabilities, reliability: Reliability) -> Result<(), ResourceError> {
    let offered = match reliability {
        Reliability::UnreliableDelivery => capabilities.unreliable_delivery,
        Reliability::ReliableDelivery => capabilities.reliable_delivery,
        Reliability::ReliableReception => capabilities.reliable_reception,
    };
    if offered { Ok(()) } else { Err(ResourceError::State("the reliability level is not offered")) }
}

/// Private data as messages carry it.
pub(crate) fn private_data(bytes: &[u8]) -> Result<PrivateData, ResourceError> {
    const _: () = assert!(PRIVATE_DATA_MAX == 56, "the error says so");
    PrivateData::from_slice(bytes).map_err(|_| ResourceError::State("private data of more than 56 bytes"))
}
