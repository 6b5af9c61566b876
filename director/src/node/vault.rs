//! The pair's vault at its home (PROTOCOLS 6.3, 6.4): opened after fencing and after the group, replayed, then used; and the journal of a director
//! that is alone.
//!
//! What is replayed is decided by the mirror. A mirror that was told that it is whole ([`MirrorArea::is_whole`](dyad_cache::MirrorArea::is_whole)) has,
//! with media, everything that was acknowledged: the vault's records may be older than media, and only those of `unmirrored` volumes count. Any other
//! director has nothing but media and vault: then all of it counts.

use dyad_backend::Device;
use dyad_backend::raid::Group;
use dyad_cache::home::Replay;
use dyad_cache::vault::record::{CELL_BLOCKS, CELLS_MIN, WINDOW};
use dyad_cache::vault::{Found, KEEPERS_MAX, VaultError};
use dyad_cache::{Epoch, Regime, Vault};
use dyad_matrix::Provider;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount};

use super::Node;
use crate::registry::Registry;

/// Blocks of a device for each block of its vault.
const VAULT_SHARE: u64 = 16;
/// 17 MiB and a little more: the heads are read when it is opened.
const CELLS_MAX: u64 = 256;

/// Blocks of the vault on devices of which the smallest has so many.
#[must_use]
pub const fn vault_blocks(smallest: BlockCount) -> BlockCount {
    let cells = smallest.0 / VAULT_SHARE / CELL_BLOCKS;
    let cells = if cells > CELLS_MAX { CELLS_MAX } else { cells };
    BlockCount(CELL_BLOCKS * if cells < CELLS_MIN { CELLS_MIN } else { cells })
}

impl<D: Device, P: Provider, R: Registry> Node<D, P, R> {
    /// Opens the vault, replays it and begins to use it, unless that was done; what was found in it. The group is open, and this director alone writes
    /// to it.
    pub(super) async fn open_vault(&self, epoch: Epoch, what: Replay) -> Option<Found> {
        let inner = &*self.inner;
        let Some(group) = inner.group.group().filter(|_| inner.cache.vault().is_none()) else {
            return Some(Found::default());
        };
        let opened = self.replay_vault(&group, epoch, what).await;
        match opened {
            Ok(_) => {}
            Err(VaultError::Fenced) => inner.authority.report_fenced(),
            // Nothing here can mend it, and nothing was changed.
            Err(VaultError::Damaged(_) | VaultError::Version(_) | VaultError::Unfit) => inner.needs_operator.set(true),
            Err(_) => {}
        }
        opened.ok()
    }

    async fn replay_vault(&self, group: &Group<D>, epoch: Epoch, what: Replay) -> Result<Found, VaultError> {
        let inner = &*self.inner;
        let mut keepers = group.vault_keepers();
        keepers.truncate(KEEPERS_MAX);
        let heads = (inner.world.device_memory)(usize::try_from(WINDOW).expect("few") * BLOCK_BYTES);
        let (vault, mut found) = Vault::open(&inner.handle, group.id(), epoch, keepers, heads).await?;
        // From here on its keepers may fail, and whoever puts them on record must know of it.
        let before = inner.vault.borrow_mut().replace(vault.clone());
        before.inspect(|before| before.changes().notify_all());
        inner.vault_opened.notify_all();
        inner.cache.replay(&vault, &mut found, what).await.map_err(of_vault)?;
        inner.cache.attach_vault(vault).await.map_err(of_vault)?;
        Ok(found)
    }

    /// Puts devices on record that failed under the vault: they leave the group, too.
    pub(super) async fn run_keepers(self) {
        let inner = &*self.inner;
        loop {
            let opened = inner.vault_opened.generation();
            let Some(vault) = inner.vault.borrow().clone() else {
                inner.vault_opened.changed_since(opened).await;
                continue;
            };
            let seen = vault.changes().generation();
            let failing = vault.failing().next();
            match failing {
                None => {
                    vault.changes().changed_since(seen).await;
                }
                Some(device) if self.record_failed(device).await => {
                    if let Some(group) = inner.group.group() {
                        // It may be out already.
                        let _ = group.retire(device);
                    }
                    vault.recorded(device);
                }
                Some(_) => inner.handle.sleep(inner.config.timing.heartbeat).await,
            }
        }
    }

    /// Journals what is in this memory only, once this director is alone (PROTOCOLS 4.3, 4.4).
    pub(super) async fn run_journal(self) {
        let inner = &*self.inner;
        loop {
            let seen = inner.authority.changes().generation();
            let alone = matches!(inner.authority.regime(), Regime::Solo(_));
            if !alone || !inner.cache.awaits_journal() {
                inner.authority.changes().changed_since(seen).await;
            } else if inner.cache.journal().await.is_err() {
                inner.handle.sleep(inner.config.timing.heartbeat).await;
            }
        }
    }
}

/// What kept the vault from being replayed, if it is the vault; else it is tried again.
fn of_vault(error: dyad_cache::CacheError) -> VaultError {
    match error {
        dyad_cache::CacheError::Vault(error) => error,
        // Reported by the cache.
        _ => VaultError::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_room_for_the_least_vault_and_none_has_a_large_one() {
        let cells = |blocks| vault_blocks(BlockCount(blocks)).0 / CELL_BLOCKS;
        assert_eq!([0, 1000, 1 << 15, 1 << 30].map(cells), [CELLS_MIN, CELLS_MIN, 120, CELLS_MAX]);
    }
}
