//! Little-endian fields in byte arrays.
//!
//! Offsets are constants of the specification; one that lies outside the array is a bug of the caller and panics.

/// The `N` bytes at `at`.
#[must_use]
#[inline]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

/// The 16-bit number at `at`.
#[must_use]
#[inline]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// The 32-bit number at `at`.
#[must_use]
#[inline]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The 64-bit number at `at`.
#[must_use]
#[inline]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The 128-bit number at `at`.
#[must_use]
#[inline]
pub fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(array(bytes, at))
}

/// Writes `value` (already little-endian bytes) at `at`.
#[inline]
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Writes ASCII text, cut or padded with spaces to `N` bytes (Base 1.5, "ASCII string").
#[must_use]
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let n = text.len().min(N);
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
    field
}

/// Writes a string, cut or padded with zeros to `N` bytes, the last of which is always zero (NQNs: Base 4.5).
#[must_use]
pub fn c_string<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let n = text.len().min(N - 1);
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
    field
}

/// The text up to the first zero, without trailing spaces; `None` if it is not UTF-8.
#[must_use]
pub fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok().map(|t| t.trim_end_matches(' '))
}
