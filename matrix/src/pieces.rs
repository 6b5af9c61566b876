//! Scattered bytes: what the segments of a descriptor stand for once they were found to be allowed.

use crate::memory::{self, Memory};

/// Bytes that lie in their memory (checked when the piece was made) and may be used as the descriptor uses them.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) memory: Memory,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Bytes in all.
pub(crate) fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.len).sum()
}

/// Copies `len` bytes that start `from_at` bytes into one list to `to_at` bytes into the other. Both lists are long enough.
pub(crate) fn copy(from: &[Piece], mut from_at: u64, to: &[Piece], mut to_at: u64, mut len: u64) {
    let (mut from, mut to) = (from.iter(), to.iter());
    let (mut source, mut target) = (from.next(), to.next());
    while len > 0 {
        let (s, t) = source.zip(target).expect("both lists are at least as long as the copy");
        if from_at >= s.len {
            (from_at, source) = (from_at - s.len, from.next());
        } else if to_at >= t.len {
            (to_at, target) = (to_at - t.len, to.next());
        } else {
            let step = len.min(s.len - from_at).min(t.len - to_at);
            memory::copy(&s.memory, s.offset + from_at, &t.memory, t.offset + to_at, step)
                .expect("a piece lies in its memory, and targets are writable");
            (from_at, to_at, len) = (from_at + step, to_at + step, len - step);
        }
    }
}

/// Copies all of `pieces` out, in order.
pub(crate) fn gather(pieces: &[Piece]) -> Box<[u8]> {
    let len = usize::try_from(total(pieces)).expect("a descriptor moves less than the address space");
    let mut bytes = vec![0; len].into_boxed_slice();
    let mut at = 0;
    for piece in pieces {
        let end = at + usize::try_from(piece.len).expect("a part of what fitted");
        piece.memory.look(piece.offset, &mut bytes[at..end]).expect("a piece lies in its memory");
        at = end;
    }
    bytes
}

/// Copies `bytes` to `to_at` bytes into the list, which is long enough.
pub(crate) fn scatter(mut bytes: &[u8], to: &[Piece], mut to_at: u64) {
    for piece in to {
        if to_at >= piece.len {
            to_at -= piece.len;
            continue;
        }
        let room = usize::try_from(piece.len - to_at).unwrap_or(usize::MAX);
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        piece.memory.write(piece.offset + to_at, now).expect("a piece lies in its memory, and targets are writable");
        (bytes, to_at) = (later, 0);
    }
    assert!(bytes.is_empty(), "the list is as long as the bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(n: u64) -> usize {
        usize::try_from(n).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn scattered_copies_equal_flat_ones(
            from_lens in proptest::collection::vec(0_u64..40, 1..8),
            to_lens in proptest::collection::vec(0_u64..40, 1..8),
            from_at in 0_u64..50, to_at in 0_u64..50, len in 0_u64..200,
        ) {
            let (a, b) = (Memory::anonymous(1024), Memory::anonymous(1024));
            a.write(0, &(0..1024_u32).map(|i| i.to_le_bytes()[0].wrapping_mul(37) | 1).collect::<Vec<_>>()).unwrap();
            // Pieces in reverse order of their place, with gaps.
            let list = |memory: &Memory, lens: &[u64]| -> Vec<Piece> {
                (0_u64..).zip(lens).map(|(i, &len)| Piece { memory: memory.clone(), offset: 900 - i * 100, len }).collect()
            };
            let (from, to) = (list(&a, &from_lens), list(&b, &to_lens));
            let len = len.min(total(&from).saturating_sub(from_at)).min(total(&to).saturating_sub(to_at));
            let whole = gather(&from);
            copy(&from, from_at, &to, to_at, len);
            let wanted: Vec<u8> = whole.iter().skip(index(from_at)).take(index(len)).copied().collect();
            let landed: Vec<u8> = gather(&to).iter().skip(index(to_at)).take(index(len)).copied().collect();
            assert_eq!(landed, wanted);
            assert_eq!(gather(&to).iter().filter(|&&byte| byte != 0).count() as u64, len, "nothing else was touched");
            let c = Memory::anonymous(1024);
            let again = list(&c, &to_lens);
            scatter(&wanted, &again, to_at);
            assert_eq!(gather(&again), gather(&to));
        }
    }
}
