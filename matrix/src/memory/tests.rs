//! Moving, counting, refusing: what callers and peers may and may not do to a memory.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::mapping::HUGE_PAGE;
use super::*;

fn clone_fd(memory: &Memory) -> OwnedFd {
    memory.fd().expect("shared memory has a file").try_clone_to_owned().unwrap()
}

#[test]
fn bytes_go_in_and_come_out_and_are_counted() {
    let (a, b) = (Memory::anonymous(10_000), Memory::anonymous(10_000));
    let pattern: Vec<u8> = (0..5001_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    a.write(3, &pattern).unwrap();
    copy(&a, 3, &b, 4999, 5001).unwrap();
    let mut out = vec![0; 5001];
    b.read(4999, &mut out).unwrap();
    assert_eq!(out, pattern);
    assert_eq!(a.crc32c(3, 5001).unwrap(), crc32c::crc32c(&pattern));
    b.fill_zero(5000, 5000).unwrap();
    b.read(4999, &mut out).unwrap();
    assert!(out[0] == pattern[0] && out[1..].iter().all(|&byte| byte == 0), "fill_zero clears its range and no more");
    assert_eq!((a.copied_bytes(), b.copied_bytes()), (5001, 5001 * 3), "write; copy and two reads");
}

#[test]
fn every_access_outside_is_refused() {
    let m = Memory::anonymous(100);
    let other = Memory::anonymous(200);
    assert_eq!(m.read(99, &mut [0; 2]), Err(RangeError::Outside));
    assert_eq!(m.write(u64::MAX, &[0; 2]), Err(RangeError::Outside));
    assert_eq!(m.segment(100, 1), Err(RangeError::Outside));
    assert_eq!(m.crc32c(0, 101), Err(RangeError::Outside));
    assert_eq!(m.fill_zero(1, u64::MAX), Err(RangeError::Outside));
    assert_eq!(m.load_u32(97), Err(RangeError::Outside));
    assert_eq!(m.store_u64(96, 1), Err(RangeError::Outside));
    assert_eq!(m.store_u64(4, 1), Err(RangeError::Misaligned));
    assert_eq!(m.load_u32(2), Err(RangeError::Misaligned));
    assert_eq!(m.atomics_u64(8, 12).unwrap_err(), RangeError::Outside);
    assert_eq!(m.atomics_u64(8, usize::MAX).unwrap_err(), RangeError::Outside);
    assert_eq!(m.atomics_u64(4, 1).unwrap_err(), RangeError::Misaligned);
    assert_eq!(m.atomics_u64(8, 11).unwrap().len(), 11);
    assert_eq!(copy(&other, 0, &m, 50, 51), Err(RangeError::Outside));
    assert_eq!(copy(&m, 50, &other, 0, 51), Err(RangeError::Outside));
    assert_eq!(m.segment(100, 0), Ok(Segment { memory: m.id(), offset: 100, len: 0 }));
    assert_eq!(m.copied_bytes() + other.copied_bytes(), 0, "no byte moved");
}

#[test]
fn shared_memory_is_one_memory_in_two_places() {
    let a = Memory::shared("dyad-test", 8192, HugePages::IfAvailable).unwrap();
    let b = Memory::from_fd(clone_fd(&a), 8192, false).unwrap();
    a.store_u64(8, 77).unwrap();
    assert_eq!(b.load_u64(8), Ok(77));
    assert_eq!(b.write(0, &[1]), Err(RangeError::ReadOnly));
    assert_eq!(b.store_u32(0, 1), Err(RangeError::ReadOnly));
    assert_eq!(b.fill_zero(0, 1), Err(RangeError::ReadOnly));
    assert_eq!(copy(&a, 0, &b, 0, 8), Err(RangeError::ReadOnly));
    assert!(a.id() < b.id());
}

#[test]
fn interleaved_memory_is_told_to_the_kernel() {
    let memory = Memory::interleaved("dyad-test", 1 << 20, HugePages::No).unwrap();
    memory.write(12345, b"anywhere").unwrap();
    assert_eq!(memory.crc32c(12345, 8), Ok(crc32c::crc32c(b"anywhere")));
    // A kernel without NUMA has no such file.
    if let Ok(maps) = std::fs::read_to_string("/proc/self/numa_maps") {
        let start = format!("{:x} ", memory.as_ptr().as_ptr().addr());
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("the mapping stands there");
        assert!(line.contains("interleave"), "{line}");
    }
}

#[test]
fn files_that_could_fault_are_refused() {
    let a = Memory::shared("dyad-test", 4096, HugePages::No).unwrap();
    assert_eq!(Memory::from_fd(clone_fd(&a), 4097, true).unwrap_err(), MapError::TooSmall { held: 4096, needed: 4097 });
    assert_eq!(Memory::from_fd(clone_fd(&a), 0, true).unwrap_err(), MapError::Empty);
    assert_eq!(Memory::from_fd(clone_fd(&a), u64::MAX, true).unwrap_err(), MapError::Os(Errno::ENOMEM));
    let unsealed = memfd_create("dyad-test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&unsealed, 4096).unwrap();
    assert_eq!(Memory::from_fd(unsealed, 4096, true).unwrap_err(), MapError::NotSealed);
    let no_file_of_that_kind = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(Memory::from_fd(no_file_of_that_kind.into(), 4096, false).unwrap_err(), MapError::NotSealed);
}

#[test]
fn whoever_holds_the_file_cannot_change_its_length_or_its_seals() {
    let a = Memory::shared("dyad-test", 4096, HugePages::No).unwrap();
    let fd = clone_fd(&a);
    assert_eq!(ftruncate(&fd, 0), Err(Errno::EPERM));
    assert_eq!(ftruncate(&fd, 8192), Err(Errno::EPERM));
    assert_eq!(fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)), Err(Errno::EPERM));
}

#[test]
fn a_file_is_its_owners_and_published_memory_is_written_by_nobody_else() {
    let shared = Memory::shared("dyad-test", 4096, HugePages::No).unwrap();
    let published = Memory::published("dyad-test", 4096).unwrap();
    for memory in [&shared, &published] {
        assert_eq!(fstat(memory.fd().unwrap()).unwrap().st_mode & 0o777, 0o600, "whoever may read cannot reopen it");
    }
    published.store_u64(8, 7).unwrap();
    assert_eq!(Memory::from_fd(clone_fd(&published), 4096, false).unwrap().load_u64(8), Ok(7));
    assert_eq!(Memory::from_fd(clone_fd(&published), 4096, true).unwrap_err(), MapError::Os(Errno::EPERM));
    assert_eq!(nix::unistd::write(clone_fd(&published), &[1]), Err(Errno::EPERM));
    assert_eq!(punch(&published), Err(Errno::EPERM));
    published.store_u64(8, 9).unwrap();
}

#[test]
fn shared_memory_is_populated_and_locked_if_the_limit_allows() {
    let memory = Memory::shared("dyad-test", 64 << 10, HugePages::No).unwrap();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", memory.as_ptr().as_ptr().addr());
    let mine: Vec<&str> = smaps.lines().skip_while(|line| !line.starts_with(&start)).take(30).collect();
    let kib = |name| {
        let line = mine.iter().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert_eq!(kib("Rss"), 64);
    assert_eq!(kib("Locked"), if memory.locked() { 64 } else { 0 });
}

fn punch(memory: &Memory) -> nix::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(memory.fd().unwrap(), how, 0, i64::try_from(memory.len()).unwrap())
}

#[test]
fn a_hole_that_a_peer_punches_reads_as_zeros_and_can_be_written() {
    let memory = Memory::shared("dyad-test", 8192, HugePages::No).unwrap();
    memory.write(0, &[7; 8192]).unwrap();
    punch(&memory).unwrap();
    let mut bytes = [1; 8192];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8192]);
    memory.write(100, &[5]).unwrap();
    assert_eq!(memory.load_u32(100), Ok(5));
}

/// Without huge pages (`vm.nr_hugepages`) all of it is about ordinary ones.
#[test]
fn huge_pages_are_used_where_there_are_some_and_told_by_their_file() {
    let len = (HUGE_PAGE + 1).try_into().unwrap();
    let memory = Memory::shared("dyad-test", len, HugePages::IfAvailable).unwrap();
    assert!(!Memory::shared("dyad-test", 4096, HugePages::No).unwrap().huge_pages());
    assert_eq!(memory.len(), HUGE_PAGE + 1);
    memory.write(HUGE_PAGE, &[9]).unwrap();
    let again = Memory::from_fd(clone_fd(&memory), HUGE_PAGE + 1, true).unwrap();
    assert_eq!(again.huge_pages(), memory.huge_pages());
    let start = format!("{:x}-", again.as_ptr().as_ptr().addr());
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| line.starts_with(&start));
    assert!(mapped());
    drop(again);
    assert!(!mapped(), "it was unmapped");
    // More than there can be.
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = free.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).and_then(|n| n.trim().parse().ok());
    if free.unwrap_or(0) < 32_u64 {
        let fallen_back = Memory::shared("dyad-test", 64 << 20, HugePages::IfAvailable).unwrap();
        assert!(!fallen_back.huge_pages() && fallen_back.len() == 64 << 20);
    }
}

proptest::proptest! {
    #[test]
    fn copies_move_exactly_their_range(len in 0_u32..700, from in 0_u32..64, to in 0_u32..64) {
        let (a, b) = (Memory::anonymous(1024), Memory::anonymous(1024));
        let pattern: Vec<u8> = (0..1024_u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        a.write(0, &pattern).unwrap();
        copy(&a, from.into(), &b, to.into(), len.into()).unwrap();
        let mut out = [0; 1024];
        b.read(0, &mut out).unwrap();
        let (from, to, len) = (from as usize, to as usize, len as usize);
        assert_eq!(out[to..to + len], pattern[from..from + len]);
        assert!(out[..to].iter().chain(&out[to + len..]).all(|&byte| byte == 0));
    }
}
