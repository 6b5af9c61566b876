//! Marks of `unmirrored` volumes: what whoever takes over must know before a write can be lost (PROTOCOLS 12.1).
//!
//! Every record has all marks, so the newest record has those that count. A volume may acknowledge from one memory while its mark is *noted*: the newest
//! durable record has it, and no later one will be without it.

use super::record::{MARKS_MAX, Mark, MarkState, Marks};
use crate::address::VolumeId;

#[derive(Debug, Default)]
pub(super) struct MarkTable {
    marks: Marks,
    noted: heapless::Vec<VolumeId, MARKS_MAX>,
    /// How often a mark was taken away: a record that was begun before that says nothing any more.
    cleared: u64,
}

impl MarkTable {
    pub(super) fn new(marks: Marks) -> Self {
        Self { marks, ..Self::default() }
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    pub(super) fn get(&self, volume: VolumeId) -> Option<MarkState> {
        self.marks.iter().find(|mark| mark.volume == volume).map(|mark| mark.state)
    }

    /// `false`: there are too many.
    pub(super) fn set(&mut self, volume: VolumeId, state: MarkState) -> bool {
        match self.marks.iter_mut().find(|mark| mark.volume == volume) {
            Some(mark) => {
                mark.state = state;
                true
            }
            None => self.marks.push(Mark { volume, state }).is_ok(),
        }
    }

    pub(super) fn clear(&mut self, volume: VolumeId) {
        self.marks.retain(|mark| mark.volume != volume);
        self.noted.retain(|noted| *noted != volume);
        self.cleared += 1;
    }

    pub(super) fn is_noted(&self, volume: VolumeId) -> bool {
        self.noted.contains(&volume)
    }

    /// To be handed to [`Self::note`].
    pub(super) fn cleared(&self) -> u64 {
        self.cleared
    }

    /// A record that was begun when `cleared` was this is durable. Whether the volume's mark counts as noted.
    pub(super) fn note(&mut self, volume: VolumeId, cleared: u64) -> bool {
        let counts = cleared == self.cleared && self.get(volume).is_some();
        if counts && !self.is_noted(volume) {
            let noted = self.noted.push(volume);
            assert!(noted.is_ok(), "no more than there are marks");
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_was_taken_away_meanwhile_is_not_noted() {
        let volume = VolumeId { uuid: [1; 16], generation: 1 };
        let mut table = MarkTable::default();
        assert!(table.set(volume, MarkState::Dirty));
        let begun = table.cleared();
        table.clear(volume);
        assert!(table.set(volume, MarkState::Dirty));
        assert!(!table.note(volume, begun) && !table.is_noted(volume));
        assert!(table.note(volume, table.cleared()) && table.note(volume, table.cleared()) && table.is_noted(volume));
        table.clear(volume);
        assert!(!table.is_noted(volume) && table.get(volume).is_none());
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut table = MarkTable::default();
        let volume = |n: usize| VolumeId { uuid: [u8::try_from(n).unwrap(); 16], generation: 1 };
        assert!((0..MARKS_MAX).all(|n| table.set(volume(n), MarkState::Lost)));
        assert!(!table.set(volume(MARKS_MAX), MarkState::Dirty));
        assert!(table.set(volume(0), MarkState::Dirty));
    }
}
