//! Translation is a bijection, growing moves nothing, and descriptions are checked.

use std::collections::BTreeMap;
use std::ops::Range;

use dyad_nvme::types::{BlockCount, Lba};
use proptest::prelude::*;

use super::super::*;
use super::{group, uuid};
use crate::format::GroupId;

fn name() -> Name {
    Name::new("data-1").expect("a name")
}

/// Groups from a mask, in a rotated order.
fn groups(mask: u8, turn: usize) -> Vec<GroupId> {
    let mut groups: Vec<_> = (0..8).filter(|bit| mask >> bit & 1 == 1).map(group).collect();
    let turn = turn % groups.len();
    groups.rotate_left(turn);
    groups
}

prop_compose! {
    fn volumes()(
        tracks in 1..6_u16,
        first in 1..40_u64,
        steps in proptest::collection::vec((1..30_u64, proptest::option::of((1..=255_u8, 0..8_usize))), 0..5),
        mask in 1..=255_u8,
    ) -> Vec<Description> {
        let extent = Extent::of_tracks(tracks).expect("an extent");
        let new = Description::new(name(), uuid(1), extent, first, Allocation::Thin, groups(mask, 0));
        let mut all = vec![new.expect("a volume")];
        for (more, segment) in steps {
            let last = all.last().expect("one");
            let extents = last.extents() + more;
            let next = match segment {
                None => last.grown(extents),
                Some((mask, turn)) => last.with_groups(groups(mask, turn), extents),
            };
            all.push(next.expect("a longer volume"));
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_block_has_its_own_place_and_all_places_are_used(volumes in volumes()) {
        let volume = volumes.last().expect("one");
        let map = Map::new(volume);
        let mut seen: BTreeMap<usize, Vec<(u64, u64)>> = BTreeMap::new();
        for lba in 0..volume.blocks().0 {
            let place = map.locate(Lba(lba)).expect("inside");
            prop_assert_eq!(map.address(place), Some(Lba(lba)));
            seen.entry(place.group).or_default().push((place.position, place.block));
        }
        prop_assert_eq!(map.locate(Lba(volume.blocks().0)), None);
        prop_assert_eq!(map.locate(Lba(u64::MAX)), None);
        for (at, id) in map.groups().iter().enumerate() {
            let positions = volume.share(*id).map_or(0, |share| share.positions);
            let mut found = seen.remove(&at).unwrap_or_default();
            found.sort_unstable();
            let all = (0..positions).flat_map(|p| (0..volume.extent().blocks()).map(move |b| (p, b)));
            prop_assert!(found.into_iter().eq(all), "positions are dense from zero on");
            prop_assert_eq!(map.address(Place { group: at, position: positions, block: 0 }), None);
        }
    }

    #[test]
    fn growing_moves_nothing(volumes in volumes()) {
        let last = Map::new(volumes.last().expect("one"));
        for before in &volumes {
            let map = Map::new(before);
            for lba in (0..before.blocks().0).step_by(7) {
                let (old, new) = (map.locate(Lba(lba)).expect("inside"), last.locate(Lba(lba)).expect("inside"));
                prop_assert_eq!(map.groups()[old.group], last.groups()[new.group]);
                prop_assert_eq!((old.position, old.block), (new.position, new.block));
            }
        }
    }

    #[test]
    fn parts_cover_a_command(volumes in volumes(), from in any::<u64>(), blocks in 1..256_u64) {
        let map = Map::new(volumes.last().expect("one"));
        let lba = from % map.blocks().0;
        match map.parts(Lba(lba), BlockCount(blocks)) {
            None => prop_assert!(lba + blocks > map.blocks().0),
            Some(parts) => {
                let mut at = 0;
                for part in parts {
                    prop_assert_eq!(part.at, at);
                    for block in 0..part.blocks {
                        let place = Place { block: part.place.block + block, ..part.place };
                        prop_assert_eq!(map.locate(Lba(lba + at + block)), Some(place));
                    }
                    at += part.blocks;
                }
                prop_assert_eq!(at, blocks);
            }
        }
        prop_assert!(map.parts(Lba(u64::MAX), BlockCount(2)).is_none());
    }

    #[test]
    fn whole_positions_are_the_extents_inside(volumes in volumes(), from in 0..500_u64, blocks in 0..900_u64) {
        let volume = volumes.last().expect("one");
        let (map, extent) = (Map::new(volume), volume.extent().blocks());
        let Some(items) = map.whole_positions(Lba(from), BlockCount(blocks)) else {
            prop_assert!(from + blocks > map.blocks().0);
            return Ok(());
        };
        let mut found: Vec<(usize, u64)> =
            items.flat_map(|(group, positions): (usize, Range<u64>)| positions.map(move |p| (group, p))).collect();
        found.sort_unstable();
        let inside = (0..volume.extents()).filter(|e| e * extent >= from && (e + 1) * extent <= from + blocks);
        let mut expected: Vec<_> =
            inside.map(|e| map.locate(Lba(e * extent)).expect("inside")).map(|p| (p.group, p.position)).collect();
        expected.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn descriptions_are_stored_and_read(volumes in volumes()) {
        let last = volumes.last().expect("one");
        let shrunk = last.shrunk(1).ok();
        for description in [Some(last.clone()), shrunk, last.deleted().ok()].into_iter().flatten() {
            let text = serde_json::to_string(&description).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<Description>(&text).expect("what was stored"), description);
        }
    }

    /// Whatever is wrong in the registry is an error or a description that holds together, and never a panic.
    #[test]
    fn nonsense_is_no_description(volumes in volumes(), at in 0..400_usize, byte in any::<u8>()) {
        let mut text = serde_json::to_vec(volumes.last().expect("one")).expect("plain data");
        let at = at % text.len();
        text[at] = byte;
        if let Ok(description) = serde_json::from_slice::<Description>(&text)
            && description.blocks().0 < 1 << 16
        {
            let map = Map::new(&description);
            prop_assert!((0..map.blocks().0).all(|lba| map.locate(Lba(lba)).is_some()));
        }
    }
}

#[test]
fn what_a_stored_description_looks_like() {
    let extent = Extent::of_tracks(2).expect("an extent");
    let volume = Description::new(name(), uuid(0xab), extent, 5, Allocation::Full, vec![group(1), group(2)])
        .and_then(|volume| volume.with_groups(vec![group(3)], 9))
        .and_then(|volume| volume.shrunk(5))
        .expect("a volume");
    let ab = "ab".repeat(16);
    let id = |name: &str| format!("\"{}\"", name.repeat(16));
    let expected = format!(
        "{{\"name\":\"data-1\",\"uuid\":\"{ab}\",\"generation\":2,\"extent_tracks\":2,\"extents\":5,\"allocation\":\"full\",\
         \"segments\":[{{\"first\":0,\"groups\":[{},{}]}}],\"state\":{{\"shrinking\":{{\"retiring\":[{}]}}}}}}",
        id("01"),
        id("02"),
        id("03")
    );
    assert_eq!(serde_json::to_string(&volume).expect("plain data"), expected);
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    let long = "x".repeat(64);
    for bad in ["", "-a", ".", "a b", "a/b", "ä", long.as_str()] {
        assert_eq!(Name::new(bad), Err(DescriptionError::Name), "{bad}");
    }
    assert!(Name::new(&long[..63]).is_ok());
    for blocks in [0, 15, 24, 4097 * 16, u64::MAX] {
        assert_eq!(Extent::of_blocks(BlockCount(blocks)), Err(DescriptionError::Extent), "{blocks}");
    }
    let extent = Extent::of_blocks(BlockCount(4096 * 16)).expect("the longest");
    let make = |extents, groups| Description::new(name(), uuid(1), extent, extents, Allocation::Thin, groups);
    assert_eq!(make(0, vec![group(1)]), Err(DescriptionError::Size));
    assert_eq!(make(u64::MAX, vec![group(1)]), Err(DescriptionError::Size));
    assert_eq!(make((1 << 26) + 1, vec![group(1)]), Err(DescriptionError::Size));
    assert_eq!(make(1, vec![]), Err(DescriptionError::Groups));
    assert_eq!(make(1, vec![group(1), group(2), group(1)]), Err(DescriptionError::Groups));
    let volume = make(10, vec![group(1), group(2)]).expect("a volume");
    assert_eq!(volume.grown(10), Err(DescriptionError::Direction(10)));
    assert_eq!(volume.with_groups(vec![group(3)], 9), Err(DescriptionError::Direction(10)));
    assert_eq!(volume.shrunk(10), Err(DescriptionError::Direction(10)));
    assert_eq!(volume.shrunk(0), Err(DescriptionError::Size));
    assert_eq!(volume.settled(), Err(DescriptionError::State(State::Active)));
    let mut long = volume.clone();
    for more in 1..limits::SEGMENTS as u64 {
        long = long.with_groups(vec![group(1)], 10 + more).expect("a segment");
    }
    assert_eq!(long.with_groups(vec![group(1)], 1000), Err(DescriptionError::Segments));
}

#[test]
fn a_volume_that_shrinks_does_not_grow_until_all_homes_have_cut_it() {
    let extent = Extent::of_tracks(1).expect("an extent");
    let volume =
        Description::new(name(), uuid(1), extent, 4, Allocation::Thin, vec![group(1), group(2)]).expect("a volume");
    let longer = volume.with_groups(vec![group(3), group(1)], 8).expect("longer");
    let shrunk = longer.shrunk(1).expect("shorter");
    assert_eq!(shrunk.generation(), Generation(2));
    assert_eq!(shrunk.state(), &State::Shrinking { retiring: vec![group(2), group(3)] });
    assert_eq!(shrunk.groups(), [group(1), group(2), group(3)]);
    assert_eq!((shrunk.share(group(1)).map(|s| s.positions), shrunk.share(group(2))), (Some(1), None));
    for refused in [shrunk.grown(9), shrunk.with_groups(vec![group(1)], 9), shrunk.shrunk(1)] {
        assert!(matches!(
            refused,
            Err(DescriptionError::State(State::Shrinking { .. }) | DescriptionError::Direction(_))
        ));
    }
    let settled = shrunk.settled().expect("settled");
    assert_eq!(settled.groups(), [group(1), group(2)]);
    let gone = settled.deleted().expect("deleted");
    assert_eq!((gone.generation(), gone.share(group(1))), (Generation(3), None));
    assert_eq!(gone.deleted(), Err(DescriptionError::State(State::Deleting)));
    assert!(gone.grown(100).is_err() && gone.settled().is_err());
}
