//! `cargo bench -p dyad-backend --bench raid`: how fast parity is made, beside memcpy in the same run.
//!
//! Bytes read and bytes written both count, for memcpy too. The set is many times larger than any cache, and is gone through in stripes of eight
//! data chunks of 64 KiB, as full-stripe writes do. `memcpy` is the C library's, which writes past the caches; `copy` is `dyad_matrix::memory`'s.

use std::time::Duration;

use dyad_backend::parity::{Gf, Member, Piece, Recipe, combine, xor};
use dyad_matrix::Memory;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock};

const CHUNK: u64 = 64 << 10;
const BLOCKS: BlockCount = BlockCount(16);
const DATA: u64 = 8;
const MEMBERS: u64 = DATA + 2;
/// Of the whole set: 1.25 GiB.
const STRIPES: u64 = 2048;
const ROUNDS: usize = 5;

fn main() {
    let bytes = usize::try_from(STRIPES * MEMBERS * CHUNK).expect("a 64-bit machine");
    let memory = Memory::anonymous(bytes);
    for chunk in 0..STRIPES * MEMBERS {
        memory.write(chunk * CHUNK, &vec![u8::try_from(chunk % 251).expect("small"); 64 << 10]).expect("inside");
    }
    let row = |parity| {
        let recipe = Recipe::new(8, 2, parity, None).expect("parity of all data");
        std::array::from_fn::<Gf, 8, _>(|i| recipe.factor(Member::Data(i)))
    };
    let half = bytes / 2;
    let mut plain = vec![1_u8; bytes];
    let (of_p, of_q) = (row(Member::P), row(Member::Q));
    let mut samples: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        samples[0].push(rate(bytes as u64, || {
            let (from, to) = plain.split_at_mut(half);
            to.copy_from_slice(from);
        }));
        samples[3].push(rate(bytes as u64, || {
            let half = half as u64;
            dyad_matrix::memory::copy(&memory, 0, &memory, half, half).expect("inside");
        }));
        let stripe = |n: u64| -> [Piece<'_>; 10] {
            std::array::from_fn(|i| Piece { memory: &memory, offset: (n * MEMBERS + i as u64) * CHUNK })
        };
        samples[1].push(rate(STRIPES * (DATA + 1) * CHUNK, || {
            for n in 0..STRIPES {
                let members = stripe(n);
                xor(members[8], &members[..8], BLOCKS).expect("inside");
            }
        }));
        samples[2].push(rate(STRIPES * MEMBERS * CHUNK, || {
            for n in 0..STRIPES {
                let members = stripe(n);
                combine(&members[8..], &members[..8], &[&of_p, &of_q], BLOCKS).expect("inside");
            }
        }));
    }
    for (name, mut values) in ["memcpy.gb_s", "xor.gb_s", "pq.gb_s", "copy.gb_s"].into_iter().zip(samples) {
        values.sort_by(f64::total_cmp);
        println!("{name:12} {:>8.2} ({:.2} to {:.2})", values[ROUNDS / 2], values[0], values[ROUNDS - 1]);
    }
}

/// GB/s of `bytes` read and written by `work`.
fn rate(bytes: u64, work: impl FnOnce()) -> f64 {
    let clock = BootClock;
    let before = clock.now();
    work();
    let spent = clock.now().since(before).max(Duration::from_nanos(1));
    #[expect(clippy::cast_precision_loss, reason = "a figure is rounded anyway")]
    let bytes = bytes as f64;
    bytes / spent.as_secs_f64() / 1e9
}
