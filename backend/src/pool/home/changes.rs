//! What the director asks for: shares that are made, grow, shrink and end, and slices that are given back.

use std::ops::Range;

use dyad_nvme::types::{BlockCount, Lba};

use super::{Pool, Reconciled, ShareId, first_block, refusal, serving};
use crate::format::VolumeUuid;
use crate::format::share::{Change, RECORDS, Record};
use crate::pool::description::{Allocation, Description, ShareSpec, State};
use crate::pool::entries::Entry;
use crate::pool::ground::Ground;
use crate::pool::table::Standing;
use crate::pool::{Generation, PoolError};

impl<G: Ground> Pool<G> {
    /// Makes a volume's share, or makes it longer. With full allocation everything has its slices when this is done.
    ///
    /// # Errors
    /// [`PoolError`]; nothing changed, but with [`PoolError::Group`].
    pub async fn ensure(&self, spec: ShareSpec) -> Result<ShareId, PoolError> {
        let id = {
            let _turn = self.0.turn.acquire(1).await;
            self.alive()?;
            let held = self.hold_for(spec)?;
            let made = match held {
                Some(_) => self.commit(&[spec.record()]).await,
                None => Ok(()),
            };
            let mut table = self.0.table.borrow_mut();
            table.release(held.unwrap_or(0));
            made?;
            let at = table.find(spec.volume).expect("it was made");
            if spec.allocation == Allocation::Full {
                let len = table.share(at).expect("it was made").len();
                table.reserve(at, 0..len)?;
            }
            ShareId { at, volume: spec.volume, generation: spec.generation }
        };
        if spec.allocation == Allocation::Full && spec.positions > 0 {
            self.settle(id, 0..spec.positions).await?;
        }
        Ok(id)
    }

    /// Checks what [`Self::ensure`] is asked for, and keeps the slices that it will need. `None` if there is nothing to do.
    fn hold_for(&self, spec: ShareSpec) -> Result<Option<u32>, PoolError> {
        let mut table = self.0.table.borrow_mut();
        let entries = table.entries_for(spec.extent, spec.positions)?;
        let had = match table.find(spec.volume).and_then(|at| table.share(at)) {
            None if table.records_max() >= self.0.log.capacity() => return Err(PoolError::TooManyShares),
            None => 0,
            Some(share) => {
                let now = share.spec();
                refusal(share, spec.generation)?;
                let same = now.extent == spec.extent && now.allocation == spec.allocation;
                if !same || now.positions > spec.positions || share.standing != Standing::Serving {
                    return Err(PoolError::Contradiction);
                }
                if now.positions == spec.positions {
                    return Ok(None);
                }
                share.len()
            }
        };
        let needed = if spec.allocation == Allocation::Full { entries - had } else { 0 };
        let needed = u32::try_from(needed).map_err(|_| PoolError::Full)?;
        table.hold(needed)?;
        Ok(Some(needed))
    }

    /// Shrinks a volume's share to this, which has a higher generation: older ones are refused from now on, what they have in flight ends, what is
    /// beyond the new end is freed, and what is left of the last slice behind it becomes zeros.
    ///
    /// # Errors
    /// [`PoolError`]. With [`PoolError::Group`] the old generation may be refused already; try again.
    pub async fn cut(&self, spec: ShareSpec) -> Result<(), PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        let tail = {
            let mut table = self.0.table.borrow_mut();
            let at = table.find(spec.volume).ok_or(PoolError::UnknownVolume)?;
            let share = table.share_mut(at).expect("it was found");
            let now = *share.spec();
            let like = ShareSpec { generation: spec.generation, positions: spec.positions, ..now };
            match share.standing {
                Standing::Ending => return Err(PoolError::UnknownVolume),
                _ if now.generation > spec.generation => return Err(PoolError::OldGeneration(now.generation)),
                Standing::Serving if now == spec => return Ok(()),
                Standing::Cutting(before) if before == spec => {}
                Standing::Serving if now.generation < spec.generation && like == spec => {
                    if now.positions < spec.positions {
                        return Err(PoolError::Contradiction);
                    }
                }
                Standing::Serving | Standing::Cutting(_) => return Err(PoolError::Contradiction),
            }
            share.standing = Standing::Cutting(spec);
            let extent = spec.extent.blocks();
            let (entry, place) = share.place_of(spec.positions);
            match share.entry(entry) {
                Entry::Mapped(slice) if place > 0 => Some((first_block(&table, slice).0, place * extent)),
                _ => None,
            }
        };
        self.0.grace.pass().await;
        if let Some((first, kept)) = tail {
            let blocks = BlockCount(self.slice_blocks() - kept);
            self.0.ground.zero(Lba(first + kept), blocks).await?;
        }
        self.commit(&[spec.record()]).await
    }

    /// Ends a volume's share: nobody gets in from now on, what is in flight ends, all slices are freed. `generation` is the volume's last one.
    ///
    /// # Errors
    /// [`PoolError::OldGeneration`] if the share is newer than that; [`PoolError::Group`]. A volume without a share is no error.
    pub async fn delete(&self, volume: VolumeUuid, generation: Generation) -> Result<(), PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        {
            let mut table = self.0.table.borrow_mut();
            let Some(at) = table.find(volume) else { return Ok(()) };
            let share = table.share_mut(at).expect("it was found");
            if share.spec().generation >= generation {
                return Err(PoolError::OldGeneration(share.spec().generation));
            }
            share.standing = Standing::Ending;
        }
        self.0.grace.pass().await;
        self.commit(&[Record { volume, change: Change::Gone }]).await
    }

    /// Frees the slices that lie whole in these positions (Dataset Management); they read as zeros from now on. The rest stays as it is, and so do volumes
    /// with full allocation. Says how many slices were freed. The caller has nothing acknowledged there that is not in the group.
    ///
    /// # Errors
    /// Those of [`Self::locate`]; [`PoolError::Group`]: some may have been freed.
    pub async fn trim(&self, id: ShareId, positions: Range<u64>) -> Result<u64, PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        let entries = {
            let mut table = self.0.table.borrow_mut();
            let share = serving(&table, id)?;
            if share.spec().allocation == Allocation::Full || positions.is_empty() {
                return Ok(0);
            }
            let entries = share.whole_entries(positions);
            table.forgo(id.at, entries.clone());
            entries
        };
        let (mut from, mut freed) = (entries.start, 0);
        while from < entries.end {
            let mut records = Vec::with_capacity(RECORDS);
            {
                let table = self.0.table.borrow();
                let share = table.share(id.at).expect("only whoever has the turn ends shares");
                while from < entries.end && records.len() < RECORDS {
                    let run = (from..entries.end).take_while(|at| matches!(share.entry(*at), Entry::Mapped(_)));
                    let count = run.count();
                    if count > 0 {
                        let index = |at: usize| u32::try_from(at).expect("at most ENTRIES_MAX");
                        let change = Change::Unmapped { first: index(from), entries: index(count) };
                        records.push(Record { volume: id.volume, change });
                        freed += count as u64;
                    }
                    from += count.max(1);
                }
            }
            if !records.is_empty() {
                self.commit(&records).await?;
            }
        }
        Ok(freed)
    }

    /// After opening: goes on with whatever a crash cut short. The descriptions are all that the registry has with a share in this group.
    ///
    /// # Errors
    /// [`PoolError`]; [`PoolError::Contradiction`] and generations if the registry is not the one that this pool grew up with. Some may have been done.
    pub async fn reconcile(&self, descriptions: &[Description]) -> Result<Reconciled, PoolError> {
        let group = self.0.facts.group;
        let here: Vec<_> = self.volumes();
        let mut done = Reconciled::default();
        for volume in here.iter().map(|spec| spec.volume) {
            if !descriptions.iter().any(|d| d.uuid() == volume) {
                done.strangers.push(volume);
            }
        }
        for description in descriptions {
            let volume = description.uuid();
            let now = here.iter().find(|spec| spec.volume == volume);
            let ending = match description.state() {
                State::Deleting => true,
                State::Shrinking { retiring } => retiring.contains(&group),
                State::Active => false,
            };
            match (now, description.share(group)) {
                (None, None) => {}
                (Some(_), None) if ending => self.delete(volume, description.generation()).await?,
                (Some(_), None) => done.strangers.push(volume),
                (Some(now), Some(spec)) if now.generation < spec.generation => match description.state() {
                    State::Shrinking { .. } => self.cut(spec).await?,
                    State::Active | State::Deleting => return Err(PoolError::Contradiction),
                },
                (Some(_) | None, Some(spec)) => drop(self.ensure(spec).await?),
            }
        }
        Ok(done)
    }
}
