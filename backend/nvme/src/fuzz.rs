//! Bytes that anybody made up, through every parser: nothing may panic, and what was understood says the same again. proptest runs this in
//! every test; `fuzz/` has a target for it.

use crate::bytes::array;
use crate::capsule::{CommandCapsule, ConnectAnswer, ConnectRequest};
use crate::fabrics::{ConnectData, PropertySize};
use crate::feature::{AsyncEvent, Select};
use crate::identify::{
    IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceDescriptors, parse_namespace_list,
};
use crate::log::{AnaGroup, AnaHeader, ErrorEntry, ReservationNotification, SmartLog};
use crate::protection::Protection;
use crate::reservation::{
    AcquireAction, AcquireData, RegisterAction, RegisterData, ReleaseAction, ReportHeader, ReportRegistrant,
    ReservationType,
};
use crate::{CompletionEntry, SglDescriptor, Status, SubmissionEntry};

/// Reads `bytes` as everything that hosts and devices send.
///
/// # Panics
/// If a parser has a fault.
pub fn wire(bytes: &[u8]) {
    capsules(bytes);
    let mut page = Box::new([0; IDENTIFY_BYTES]);
    for (to, from) in page.iter_mut().zip(bytes) {
        *to = *from;
    }
    identify(&page);
    logs(&page);
    reservations(&page);
    entries(&page);
}

fn capsules(bytes: &[u8]) {
    if let Ok(capsule) = CommandCapsule::decode(bytes) {
        let again = CommandCapsule::decode(&capsule.encode()).expect("what was understood can be sent");
        assert_eq!((again.sequence, again.oldest, again.data), (capsule.sequence, capsule.oldest, capsule.data));
    }
    if let Some(request) = ConnectRequest::decode(bytes) {
        assert_eq!(ConnectRequest::decode(&request.encode()), Some(request));
    }
    if let Some(answer) = ConnectAnswer::decode(bytes) {
        assert_eq!(ConnectAnswer::decode(&answer.encode()), Some(answer));
    }
}

fn identify(page: &[u8; IDENTIFY_BYTES]) {
    let controller = IdentifyController::from_bytes(page);
    assert_eq!(IdentifyController::from_bytes(&controller.to_bytes()), controller);
    let namespace = IdentifyNamespace::from_bytes(page);
    assert_eq!(IdentifyNamespace::from_bytes(&namespace.to_bytes()), namespace);
    assert!(namespace.block_bytes().is_none_or(u64::is_power_of_two));
    let descriptors = NamespaceDescriptors::from_bytes(page);
    assert_eq!(NamespaceDescriptors::from_bytes(&descriptors.to_bytes()), descriptors);
    assert!(parse_namespace_list(page).count() <= IDENTIFY_BYTES / 4);
    let connect = ConnectData::from_bytes(&array(page, 0));
    assert_eq!(ConnectData::from_bytes(&connect.to_bytes()), connect);
    let _ = crate::bytes::text(&page[..40]);
}

fn logs(page: &[u8; IDENTIFY_BYTES]) {
    let smart = SmartLog::from_bytes(&array(page, 0));
    assert_eq!(SmartLog::from_bytes(&smart.to_bytes()), smart);
    if let Some(entry) = ErrorEntry::from_bytes(&array(page, 0)) {
        assert_eq!(ErrorEntry::from_bytes(&entry.to_bytes()), Some(entry));
    }
    let header = AnaHeader::from_bytes(&array(page, 0));
    assert_eq!(AnaHeader::from_bytes(&header.to_bytes()), header);
    if let Some(group) = AnaGroup::from_bytes(&array(page, 0)) {
        assert_eq!(AnaGroup::from_bytes(&group.to_bytes()), Some(group));
    }
    let notification = ReservationNotification::from_bytes(&array(page, 0));
    assert_eq!(ReservationNotification::from_bytes(&notification.to_bytes()), notification);
    let event = AsyncEvent::from_result(u32::from_le_bytes(array(page, 0)));
    assert_eq!(AsyncEvent::from_result(event.to_result()), event);
}

fn reservations(page: &[u8; IDENTIFY_BYTES]) {
    let register = RegisterData::from_bytes(&array(page, 0));
    assert_eq!(RegisterData::from_bytes(&register.to_bytes()), register);
    let acquire = AcquireData::from_bytes(&array(page, 0));
    assert_eq!(AcquireData::from_bytes(&acquire.to_bytes()), acquire);
    let header = ReportHeader::from_bytes(&array(page, 0));
    assert_eq!(ReportHeader::from_bytes(&header.to_bytes()), header);
    let registrant = ReportRegistrant::from_bytes(&array(page, 0));
    assert_eq!(ReportRegistrant::from_bytes(&registrant.to_bytes()), registrant);
    for bits in page[..4].iter().copied() {
        assert!(ReservationType::from_bits(bits).is_none_or(|kind| kind.to_bits() == bits));
        assert!(RegisterAction::from_bits(bits).is_none_or(|action| action.to_bits() == bits));
        assert!(AcquireAction::from_bits(bits).is_none_or(|action| action.to_bits() == bits));
        assert!(ReleaseAction::from_bits(bits).is_none_or(|action| action.to_bits() == bits));
        let _ = (Select::from_bits(bits), PropertySize::from_bits(u32::from(bits)));
    }
}

fn entries(page: &[u8; IDENTIFY_BYTES]) {
    let entry = SubmissionEntry::from_bytes(array(page, 0));
    assert_eq!(SubmissionEntry::from_words(entry.to_words()), entry);
    let _ = (entry.data_pointer(), entry.fuse(), entry.sgl().parse(), entry.lba(), entry.block_count());
    assert!((4..=4 << 32).contains(&entry.log_bytes()));
    let _ = format!("{entry:?}");
    let completion = CompletionEntry::from_bytes(array(page, 0));
    let (low, high) = completion.to_words();
    assert_eq!(CompletionEntry::from_words(low, high), completion);
    assert_eq!(Status::from_bits(completion.status().bits()), completion.status());
    let _ = format!("{} {:?}", completion.status(), completion.status().kind());
    let descriptor = SglDescriptor::from_bytes(array(page, 0));
    let _ = descriptor.parse();
    let protection = Protection::from_bytes(&array(page, 0));
    assert_eq!(Protection::from_bytes(&protection.to_bytes()), protection);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            keyed in any::<bool>(),
        ) {
            if keyed {
                // Descriptors that a capsule takes.
                bytes.iter_mut().skip(80 + 15).step_by(16).for_each(|kind| *kind = 0x40);
                bytes.truncate(80 + bytes.len().saturating_sub(80) / 16 * 16);
            }
            super::wire(&bytes);
        }
    }

    #[test]
    fn pages_of_one_byte() {
        (0..=255).for_each(|byte| super::wire(&[byte; 4096]));
    }
}
