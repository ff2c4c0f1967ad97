//! What `fsck` asks about the devices, and mends there: copies of the metadata, headers of shards.
//!
//! Invariant: a header is written only in front of a shard whose payload is the one that the stripe's row says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::Store;
use super::devices::Devices;
use super::host::HostedLog;
use super::recover::{FoundShard, find_shards};
use super::repair::Repaired;
use crate::base::{BLOCK_SIZE, Incarnation, Ino, Result, StripeId, TxnId};
use crate::device::buffer::AlignedBuf;
use crate::format::rows::{BackrefKey, Placement, StripeRow, StripeState};
use crate::format::shard::{ShardHeader, Unit};
use crate::format::table::{Backrefs, Stripes};
use crate::meta::volume::VerifyReport;
use crate::meta::{Reader, Visit, uses_unreadable};
use crate::pool::stripe_io;

/// How often it is asked what redb uses, when checkpoints come in between.
const TRIES: usize = 3;

/// Forgets the blocks that no copy has right, if redb uses none of them. It is asked only when there are any.
fn leave_out_free(log: &HostedLog, report: &mut VerifyReport) {
    if report.unreadable.is_empty() {
        return;
    }
    for _ in 0..TRIES {
        let before = log.volume.stats().checkpoints;
        match uses_unreadable(log.volume.backend()) {
            Ok(true) => return,
            Ok(false) => break,
            // Behind a checkpoint, blocks of the state that was looked at are used again.
            Err(_) if log.volume.stats().checkpoints != before => {}
            Err(_) => return,
        }
    }
    report.unreadable.clear();
}

impl Store {
    /// Compares all copies of the metadata with its checksums; nothing is changed. `None` for a store without devices.
    pub fn inspect_metadata(&self) -> Result<Option<VerifyReport>> {
        let Some(log) = &self.log else { return Ok(None) };
        let mut report = log.volume.inspect()?;
        leave_out_free(log, &mut report);
        Ok(Some(report))
    }

    /// The same, and writes anew what is bad.
    pub fn mend_copies(&self) -> Result<Option<VerifyReport>> {
        let Some(log) = &self.log else { return Ok(None) };
        self.mend_volume(log, &mut || true)
    }

    /// `None` when `go_on` ended it early.
    pub(super) fn mend_volume(&self, log: &HostedLog, go_on: &mut dyn FnMut() -> bool) -> Result<Option<VerifyReport>> {
        let Some(mut report) = log.volume.verify_while(go_on)? else { return Ok(None) };
        if report.log_broken {
            self.meta.checkpoint()?;
        }
        leave_out_free(log, &mut report);
        Ok(Some(report))
    }

    /// Replicas of the metadata that are lacking.
    pub fn lacking_replicas(&self) -> usize {
        let (Some(pool), Some(log)) = (&self.pool, &self.log) else { return 0 };
        let able = pool.state().members.iter().filter(|member| member.is_current()).count();
        let wanted = (usize::from(pool.geometry().m) + 1).max(2).min(able);
        wanted.saturating_sub(log.volume.stats().replicas.len())
    }

    /// Whether a shard is whole where the row says it is; `None` when its device is not here.
    pub fn holds(&self, id: StripeId, row: &StripeRow, index: usize) -> Option<bool> {
        let devices = self.devices.as_ref()?;
        let placement = row.placements.get(index)?;
        devices.membership.device(placement.device)?;
        let payload = stripe_io::read_shard(&*devices.membership, row, index).is_some();
        Some(payload && self.has_header(devices, id, row, index))
    }

    fn has_header(&self, devices: &Devices, id: StripeId, row: &StripeRow, index: usize) -> bool {
        let Some(placement) = row.placements.get(index) else { return false };
        let Some(device) = devices.membership.device(placement.device) else { return false };
        let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
        if device.read_at(placement.block.byte_offset(), &mut block).is_err() {
            return false;
        }
        let Ok(header) = ShardHeader::decode(&block) else { return false };
        let uuid = self.pool.as_ref().and_then(|pool| pool.state().member(placement.device).map(|member| member.uuid));
        header.belongs_to(id, row, index as u8)
            && header.pool == devices.membership.pool()
            && uuid.is_none_or(|uuid| uuid == header.device)
    }

    /// Rows for stripes that have none, as the headers of their shards tell. Every block of every device is looked at. A stripe
    /// is there when enough of its shards are whole.
    pub fn find_rows(&self, wanted: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>> {
        let mut rows = BTreeMap::new();
        let (Some(pool), Some(devices)) = (&self.pool, &self.devices) else { return Ok(rows) };
        let search = find_shards(pool, &|found| wanted.contains(&found.stripe), &mut |_, _| true)?;
        let mut stripes: BTreeMap<(StripeId, TxnId, Incarnation), Vec<FoundShard>> = BTreeMap::new();
        for found in search.shards {
            stripes.entry((found.stripe, found.txn, found.incarnation)).or_default().push(found);
        }
        for ((id, ..), shards) in stripes {
            // Of several versions the newest one that can be read counts: it comes last.
            if let Some(row) = self.row_of_shards(devices, id, &shards) {
                rows.insert(id, row);
            }
        }
        Ok(rows)
    }

    fn row_of_shards(&self, devices: &Devices, id: StripeId, shards: &[FoundShard]) -> Option<StripeRow> {
        let header_at = |found: &FoundShard| {
            let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
            devices.membership.device(found.device)?.read_at(found.block.byte_offset(), &mut block).ok()?;
            ShardHeader::decode(&block).ok()
        };
        let header = shards.iter().find_map(header_at)?;
        let mut placements = vec![Placement::NONE; usize::from(header.k) + usize::from(header.m)];
        for found in shards {
            let place = placements.get_mut(usize::from(found.index))?;
            *place = Placement { device: found.device, block: found.block };
        }
        let mut row = header.row(placements).ok()?;
        for index in 0..row.placements.len() {
            let placed = row.placements.get(index).is_some_and(|place| *place != Placement::NONE);
            if placed && self.holds(id, &row, index) != Some(true) {
                row.placements[index] = Placement::NONE;
                row.state = StripeState::Degraded;
            }
        }
        let whole = row.placements.iter().filter(|place| **place != Placement::NONE).count();
        (whole >= usize::from(row.k)).then_some(row)
    }

    /// The shards of a stripe, on devices that are here, in front of which there is no header of theirs. `None`: there is no
    /// such stripe, or it changed meanwhile.
    pub fn wrong_headers(&self, id: StripeId) -> Result<Option<(StripeRow, Vec<usize>)>> {
        let Some(devices) = self.devices.clone() else { return Ok(None) };
        let _window = devices.enter_read(self.meta.committed());
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(None) };
        let here =
            |at: &usize| row.placements.get(*at).is_some_and(|place| devices.membership.device(place.device).is_some());
        let wrong: Vec<usize> =
            (0..row.placements.len()).filter(here).filter(|at| !self.has_header(&devices, id, &row, *at)).collect();
        if !wrong.is_empty() && self.view(|view| view.get::<Stripes>(&id))?.as_ref() != Some(&row) {
            return Ok(None);
        }
        Ok(Some((row, wrong)))
    }

    /// Writes the headers of a stripe that are wrong anew, from those of its other shards or from the rows.
    pub fn mend_headers(&self, id: StripeId) -> Result<Repaired> {
        let Some(devices) = self.devices.clone() else { return Ok(Repaired::default()) };
        let _held = self.repairs.hold(id);
        self.mend_headers_held(&devices, id)
    }

    pub(super) fn mend_headers_held(&self, devices: &Devices, id: StripeId) -> Result<Repaired> {
        let mut repaired = Repaired::default();
        // Until all is written: whoever frees the stripe meanwhile must not have its blocks given to another one.
        let window = devices.enter_read(self.meta.committed());
        let Some((row, wrong)) = self.wrong_headers(id)? else { return Ok(repaired) };
        let whole = |at: usize| Some((at, stripe_io::read_shard(&*devices.membership, &row, at)?));
        let shards: Vec<(usize, AlignedBuf)> = wrong.iter().copied().filter_map(whole).collect();
        if shards.is_empty() {
            return Ok(repaired);
        }
        let header = match self.surviving_header(devices, id, &row, &wrong) {
            Some(header) => header,
            None => self.header_of_rows(devices, id, &row)?,
        };
        for (index, payload) in shards {
            let Some(Placement { device, block }) = row.placements.get(index).copied() else { continue };
            let Some(target) = devices.membership.device(device) else { continue };
            let member = devices.membership.members().into_iter().find(|member| member.id == device);
            let header = ShardHeader {
                pool: devices.membership.pool(),
                device: member.map_or(header.device, |member| member.uuid),
                index: index as u8,
                ..header.clone()
            };
            let mut bytes = AlignedBuf::scratch(BLOCK_SIZE as usize);
            bytes.copy_from_slice(&header.encode());
            if target.write_at(block.byte_offset(), &[&bytes]).is_ok() {
                devices.mark_dirty(std::iter::once((device, id)));
                repaired.rewritten += 1;
            } else if self.move_shard(devices, id, index as u8, &payload, Some(&header))? {
                repaired.rebuilt += 1;
            } else {
                repaired.missing += 1;
            }
        }
        self.barrier()?;
        drop(window);
        Ok(repaired)
    }

    /// What a header says, as far as the rows know it: names are not in it.
    fn header_of_rows(&self, devices: &Devices, id: StripeId, row: &StripeRow) -> Result<ShardHeader> {
        let mut units = Vec::new();
        self.view(|view| {
            let low = BackrefKey { stripe: id, ino: Ino(0), offset: 0, birth: TxnId(0) };
            let high = BackrefKey { stripe: StripeId(id.0.saturating_add(1)), ..low.clone() };
            view.scan::<Backrefs>((Bound::Included(low), Bound::Excluded(high)), |key, backref| {
                units.push(Unit {
                    ino: key.ino,
                    offset: key.offset,
                    length: backref.length,
                    start: backref.start,
                    birth: Some(key.birth),
                    parent: Ino(0),
                    name: Vec::new(),
                });
                Ok(Visit::Continue(()))
            })
        })?;
        Ok(ShardHeader {
            pool: devices.membership.pool(),
            device: crate::base::Uuid::NIL,
            stripe: id,
            incarnation: row.incarnation,
            index: 0,
            k: row.k,
            m: row.m,
            granule_shift: row.granule_shift,
            shard_blocks: row.shard_blocks,
            txn: row.birth,
            payload_bytes: row.payload_bytes,
            sums: row.sums.clone(),
            sealed: false,
            truncated: false,
            units,
        })
    }
}
