//! Which NUMA nodes the pages of a mapping come from (mbind(2), get_mempolicy(2)). There is no libc function for either.

use std::ptr::NonNull;

use nix::errno::Errno;

/// Nodes that the mask has room for, as many as the kernel can have.
const NODES: usize = 1024;
const MPOL_INTERLEAVE: libc::c_long = 3;
const MPOL_F_MEMS_ALLOWED: libc::c_long = 4;

type Mask = [u64; NODES / 64];

/// Has the pages of the mapping come from all nodes that this process may use, in turn. Pages that are there stay.
///
/// # Safety
/// `start` is the start of a mapping of `len` bytes.
pub(super) unsafe fn interleave(start: NonNull<u8>, len: usize) -> Result<(), Errno> {
    let mut nodes: Mask = [0; NODES / 64];
    let bits = libc::c_long::try_from(NODES).expect("it is small");
    let (nothing, nowhere) = (std::ptr::null_mut::<libc::c_int>(), std::ptr::null_mut::<libc::c_void>());
    // SAFETY: the kernel writes at most `bits` bits of `nodes`, and no policy, because none is asked for.
    let asked = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, nothing, nodes.as_mut_ptr(), bits, nowhere, MPOL_F_MEMS_ALLOWED)
    };
    // ENOSYS: a kernel without NUMA has one node, and all is well.
    match Errno::result(asked) {
        Err(Errno::ENOSYS) => return Ok(()),
        other => other?,
    };
    // SAFETY: the caller's promise; the policy changes where pages come from, not what is in them.
    let bound = unsafe {
        libc::syscall(libc::SYS_mbind, start.as_ptr(), len, MPOL_INTERLEAVE, nodes.as_ptr(), bits, 0 as libc::c_long)
    };
    Errno::result(bound).map(drop)
}
