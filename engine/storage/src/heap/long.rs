//! Values too long for a row: cut into fragments, each a row of a heap of its own, so they are undone, purged and found like rows.

use super::Heap;
use crate::error::StorageError;
use crate::ids::RowId;
use crate::row::{LongValue, RowKind};
use crate::store::Store;
use crate::transaction::Work;

/// Bytes of a fragment at most.
const FRAGMENT_BYTES: usize = 7990;

/// Stores a value.
pub(crate) async fn write(
    heap: &Heap,
    store: &Store,
    work: &mut Work,
    value: &[u8],
) -> Result<LongValue, StorageError> {
    let mut fragments = Vec::new();
    for piece in value.chunks(FRAGMENT_BYTES) {
        let row = [&[RowKind::Fragment as u8], piece].concat();
        fragments.push(heap.insert(store, work, &row).await?);
    }
    let root = match fragments[..] {
        [only] => only,
        _ => {
            let mut row = vec![RowKind::Root as u8];
            row.extend(fragments.iter().flat_map(|fragment| fragment.pack().to_le_bytes()));
            heap.insert(store, work, &row).await?
        }
    };
    let len = u32::try_from(value.len()).expect("values have at most 1 MiB");
    Ok(LongValue { root, len })
}

/// The names of a value's fragments, if it has a root, and the bytes of its only fragment otherwise.
async fn root(heap: &Heap, store: &Store, value: LongValue) -> Result<Result<Vec<RowId>, Vec<u8>>, StorageError> {
    let (bytes, kind) = heap.read(store, value.root).await?;
    match kind {
        RowKind::Fragment => Ok(Err(bytes[1..].to_vec())),
        RowKind::Root => {
            let packed = bytes[1..].as_chunks().0.iter().map(|packed| u64::from_le_bytes(*packed));
            Ok(Ok(packed.map(RowId::unpack).collect()))
        }
        _ => Err(StorageError::Inconsistent(value.root.page)),
    }
}

/// The bytes of a value.
pub(crate) async fn read(heap: &Heap, store: &Store, value: LongValue) -> Result<Vec<u8>, StorageError> {
    let bytes = match root(heap, store, value).await? {
        Err(only) => only,
        Ok(fragments) => {
            let mut bytes = Vec::new();
            for fragment in fragments {
                let (piece, _) = heap.read(store, fragment).await?;
                bytes.extend_from_slice(&piece[1..]);
            }
            bytes
        }
    };
    let whole = u32::try_from(bytes.len()).is_ok_and(|len| len == value.len);
    if whole { Ok(bytes) } else { Err(StorageError::Inconsistent(value.root.page)) }
}

/// Deletes a value.
pub(crate) async fn delete(heap: &Heap, store: &Store, work: &mut Work, value: LongValue) -> Result<(), StorageError> {
    if let Ok(fragments) = root(heap, store, value).await? {
        for fragment in fragments {
            heap.delete(store, work, fragment).await?;
        }
    }
    heap.delete(store, work, value.root).await
}
