//! The catalog: what commands may ask for, when it is true, and that asking twice is asking once.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dyad_backend::format::{GroupId, VolumeUuid};
use dyad_backend::pool::{Allocation, Description, DescriptionError, Name, State};
use dyad_cache::Policy;
use dyad_reactor::VirtualTime;

use super::{Catalog, CatalogError, Group, NewVolume};
use crate::registry::{FakeRegistry, Faults};

const STRIPE: u64 = 2 * 65536;

fn group(id: u8) -> Group {
    Group { id: GroupId([id; 16]), pair: 0, stripe_tracks: 2, slice_tracks: 8, slices: 100 }
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn new(called: &str, uuid: u8, bytes: u64) -> NewVolume {
    NewVolume {
        name: name(called),
        uuid: VolumeUuid([uuid; 16]),
        bytes,
        allocation: Allocation::Thin,
        policy: Policy::Mirrored,
        groups: Vec::new(),
        extent: None,
    }
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    assert!(catalog.enroll(&group(1)) && catalog.enroll(&group(2)) && !catalog.enroll(&group(1)));
    catalog
}

fn description(catalog: &Catalog, called: &str) -> Description {
    catalog.volume(&name(called)).unwrap().description.clone()
}

/// Every home does its part; true if there was one to be done.
fn all_done(catalog: &mut Catalog, called: &str) -> Vec<bool> {
    let of = description(catalog, called);
    of.groups().into_iter().map(|group| catalog.done(&of, group).unwrap()).collect()
}

#[test]
fn a_volume_is_there_when_every_home_has_made_its_share() {
    let mut catalog = catalog();
    assert_eq!(catalog.create(&new("a", 1, 1)), Ok(true));
    assert_eq!(catalog.create(&new("a", 1, 1)), Ok(false), "asked again");
    assert_eq!(catalog.create(&new("a", 2, 1)), Err(CatalogError::NameTaken(name("a"))));
    assert_eq!(catalog.create(&new("b", 3, 5 * STRIPE + 1)), Ok(true));
    let b = description(&catalog, "b");
    assert_eq!((b.extents(), b.blocks().bytes()), (6, 6 * STRIPE), "rounded up");
    assert_eq!(catalog.done(&b, GroupId([2; 16])), Ok(true));
    assert_eq!(catalog.done(&b, GroupId([2; 16])), Ok(false), "said again");
    let half = catalog.volume(&name("b")).unwrap();
    assert_eq!((half.served, half.is_settled()), (0, false));
    assert_eq!(catalog.done(&b, GroupId([1; 16])), Ok(true));
    let whole = catalog.volume(&name("b")).unwrap();
    assert_eq!((whole.served, whole.is_settled(), whole.namespace), (6, true, 2));
}

#[test]
fn sizes_change_and_what_is_being_changed_is_not_changed_otherwise() {
    let mut catalog = catalog();
    catalog.create(&new("a", 1, 4 * STRIPE)).unwrap();
    assert_eq!(catalog.resize(&name("a"), 8 * STRIPE), Err(CatalogError::Busy(name("a"))), "it is not made yet");
    all_done(&mut catalog, "a");
    assert_eq!(catalog.resize(&name("a"), 8 * STRIPE), Ok(true));
    assert_eq!(catalog.volume(&name("a")).unwrap().served, 4, "not longer yet");
    all_done(&mut catalog, "a");
    assert_eq!(catalog.volume(&name("a")).unwrap().served, 8);
    let before = description(&catalog, "a");
    assert_eq!(catalog.resize(&name("a"), 8 * STRIPE), Ok(false));
    assert_eq!(catalog.resize(&name("a"), 0), Err(DescriptionError::Size.into()));
    assert_eq!(catalog.resize(&name("a"), STRIPE), Ok(true));
    let shrinking = description(&catalog, "a");
    assert!(shrinking.generation() > before.generation());
    assert_eq!(catalog.volume(&name("a")).unwrap().served, 1, "shorter at once");
    assert_eq!(catalog.done(&before, GroupId([1; 16])), Ok(false), "that was another one");
    assert_eq!(all_done(&mut catalog, "a"), [true, true]);
    assert_eq!(description(&catalog, "a").state(), &State::Active);
    assert_eq!(catalog.resize(&name("z"), 1), Err(CatalogError::NoSuchVolume(name("z"))));
}

#[test]
fn a_growth_that_no_home_can_do_can_be_taken_back() {
    let mut catalog = catalog();
    catalog.create(&new("a", 1, 4 * STRIPE)).unwrap();
    all_done(&mut catalog, "a");
    catalog.resize(&name("a"), 800 * STRIPE).unwrap();
    let of = description(&catalog, "a");
    assert!(catalog.refuse(&of, "full") && !catalog.refuse(&of, "full"));
    assert_eq!(catalog.volume(&name("a")).unwrap().refused.as_deref(), Some("full"));
    assert_eq!(catalog.resize(&name("a"), 4 * STRIPE), Ok(true));
    assert_eq!(catalog.volume(&name("a")).unwrap().refused, None);
    all_done(&mut catalog, "a");
    assert_eq!(catalog.volume(&name("a")).unwrap().served, 4);
}

#[test]
fn what_is_deleted_is_gone_when_every_home_has_freed_it_and_its_number_is_never_used_again() {
    let mut catalog = catalog();
    catalog.create(&new("a", 1, 1)).unwrap();
    assert_eq!(catalog.delete(&name("a")), Ok(true));
    assert_eq!(catalog.delete(&name("a")), Ok(false));
    assert_eq!(catalog.create(&new("a", 2, 1)), Err(CatalogError::NameTaken(name("a"))), "until it is gone");
    all_done(&mut catalog, "a");
    assert_eq!(catalog.delete(&name("a")), Err(CatalogError::NoSuchVolume(name("a"))));
    catalog.create(&new("a", 2, 1)).unwrap();
    assert_eq!(catalog.volume(&name("a")).unwrap().namespace, 2);
}

#[test]
fn what_is_asked_for_wrongly_changes_nothing() {
    let mut catalog = Catalog::default();
    assert_eq!(catalog.create(&new("a", 1, 1)), Err(CatalogError::NoSuchGroup), "no group was made yet");
    catalog.enroll(&group(1));
    assert_eq!(catalog.create(&new("a", 1, 0)), Err(DescriptionError::Size.into()));
    let elsewhere = NewVolume { groups: vec![GroupId([9; 16])], ..new("a", 1, 1) };
    assert_eq!(catalog.create(&elsewhere), Err(CatalogError::NoSuchGroup));
    assert!(catalog.volumes.is_empty());
}

#[test]
fn records_return_and_others_are_refused() {
    let mut catalog = catalog();
    catalog.create(&NewVolume { policy: Policy::Unmirrored, ..new("a", 1, 7 * STRIPE) }).unwrap();
    catalog.create(&new("b", 2, 3 * STRIPE)).unwrap();
    all_done(&mut catalog, "b");
    catalog.resize(&name("b"), STRIPE).unwrap();
    let of = description(&catalog, "b");
    catalog.refuse(&of, "why");
    let bytes = catalog.encode();
    assert_eq!(Catalog::decode(&bytes), Ok(catalog));
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [("\"format\":1", "\"format\":2"), ("\"pair\"", "\"bear\""), ("unmirrored", "x"), ("}]}", "")] {
        assert!(text.contains(from), "{from}");
        let other = text.replacen(from, to, 1);
        assert!(matches!(Catalog::decode(other.as_bytes()), Err(CatalogError::Damaged(_))), "{to}");
    }
}

fn run<F: Future>(time: &VirtualTime, future: F) -> F::Output {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        time.advance_to(time.next_event().expect("the registry answers, or says that it does not know"));
        time.run_due();
    }
}

#[test]
fn commands_and_homes_change_it_in_a_registry_that_loses_answers() {
    for seed in 0..40 {
        let time = VirtualTime::new(seed);
        let registry = FakeRegistry::new(time.clone(), seed);
        registry.set_faults(Faults { answer_lost: 3, duplicated: 2, late: 4, ..Faults::default() });
        let client = registry.client();
        let ended = run(&time, async {
            super::enroll(&client, &group(1)).await?;
            let made = super::create(&client, &new("a", 1, 3 * STRIPE)).await?;
            super::done(&client, &made.description, GroupId([1; 16])).await?;
            let grown = super::resize(&client, &name("a"), 9 * STRIPE).await?;
            super::done(&client, &grown.description, GroupId([1; 16])).await?;
            super::get(&client, &name("a")).await
        });
        let volume = ended.unwrap_or_else(|error: CatalogError| panic!("seed {seed}: {error}"));
        assert_eq!((volume.served, volume.namespace, volume.is_settled()), (9, 1, true), "seed {seed}");
    }
}
