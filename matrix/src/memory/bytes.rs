//! Moving bytes that others may be changing.
//!
//! `ptr::copy` may not be used on such bytes: to the language a plain access that races with a write is undefined. On
//! x86-64 the string instructions do the work. The compiler sees only that the assembly touched memory, and what it does
//! is what a loop of relaxed one-byte atomics would do; on processors with FSRM they are also as fast as memcpy.
//! Their stores become visible before any later store (Intel SDM 3A, 9.2.4: fast-string operation), so a release store
//! after them publishes them. Elsewhere, and under Miri, it is that loop of atomics, word by word where both sides are aligned.

#[cfg(any(not(target_arch = "x86_64"), miri))]
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Has the processor bring the cache line at `from` closer, or at least its translation.
///
/// # Safety
/// `from` is mapped.
#[inline]
pub(super) unsafe fn prefetch(from: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the caller's promise; a prefetch changes nothing that a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = from;
}

/// Has the processor own the cache line at `to`: it will be written.
///
/// # Safety
/// `to` is mapped.
#[inline]
pub(super) unsafe fn prefetch_write(to: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's promise; a prefetch changes nothing that a program can see.
    unsafe {
        std::arch::asm!("prefetchw [{to}]", to = in(reg) to, options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = to;
}

/// Copies `len` bytes.
///
/// # Safety
/// `from` is mapped for reading and `to` for writing, `len` bytes each. Whoever accesses them at the same time does so atomically.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise. The direction flag is clear (System V ABI).
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Sets `len` bytes to zero.
///
/// # Safety
/// `to` is mapped for writing, `len` bytes. Whoever accesses them at the same time does so atomically.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) unsafe fn zero(to: *mut u8, len: usize) {
    // SAFETY: the caller's promise. The direction flag is clear (System V ABI).
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            in("al") 0_u8,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies `len` bytes.
///
/// # Safety
/// `from` is mapped for reading and `to` for writing, `len` bytes each. Whoever accesses them at the same time does so atomically.
#[cfg(any(not(target_arch = "x86_64"), miri))]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let mut at = 0;
    while at < len {
        // SAFETY: `at < len`, and the caller's promise.
        let (source, target) = unsafe { (from.add(at), to.add(at)) };
        if len - at >= 8 && source.cast::<u64>().is_aligned() && target.cast::<u64>().is_aligned() {
            // SAFETY: eight bytes are left on both sides, aligned.
            let (source, target) = unsafe { (&*source.cast::<AtomicU64>(), &*target.cast::<AtomicU64>()) };
            target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
            at += 8;
        } else {
            // SAFETY: one byte is left on both sides.
            let (source, target) = unsafe { (&*source.cast::<AtomicU8>(), &*target.cast::<AtomicU8>()) };
            target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
            at += 1;
        }
    }
}

/// Sets `len` bytes to zero.
///
/// # Safety
/// `to` is mapped for writing, `len` bytes. Whoever accesses them at the same time does so atomically.
#[cfg(any(not(target_arch = "x86_64"), miri))]
pub(super) unsafe fn zero(to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: `at < len`, and the caller's promise.
        unsafe { &*to.add(at).cast::<AtomicU8>() }.store(0, Ordering::Relaxed);
    }
}
