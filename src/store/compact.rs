//! Moving content to better places: inline rows above the small limit into stripes, what is left of sparse stripes
//! together into full ones.
//!
//! Invariants:
//! - Content is written to its new place first; the transaction moves only extents that are still exactly as they were
//!   read, and keeps their births.
//! - What has no extent in the end is not live: a new stripe none of whose pieces moved is not made at all.

use std::collections::BTreeSet;

use super::commit::{ContentWrite, SharedBytes, Written};
use super::devices::Devices;
use super::extents::{self, Ledger};
use super::pack::{self, INLINE_SMALL};
use super::{Store, lock};
use crate::base::sync::Mutex;
use crate::base::{Ino, Result, StripeId, TxnId};
use crate::format::rows::{ExtentBody, ExtentKey, ExtentRow, StripeRow};
use crate::format::table::{Extents, StripeLive, Stripes};
use crate::meta::{Reader, Tx, Visit};
use crate::pool::stripe_io::{PayloadRead, read_payloads};

/// What could lie better; in memory only, because leaving it is never wrong.
#[derive(Debug, Default)]
pub(super) struct Untidy {
    inline: Mutex<BTreeSet<(Ino, u64)>>,
    sparse: Mutex<BTreeSet<StripeId>>,
}

/// Most rows and stripes remembered.
const REMEMBERED: usize = 100_000;
/// Inline rows moved by one step.
const ROWS: usize = 512;
/// Sparse stripes emptied by one step.
const STRIPES: usize = 4;

impl Untidy {
    pub fn note(&self, ledger: &Ledger) {
        if !ledger.destage.is_empty() {
            let mut inline = lock(&self.inline);
            let room = REMEMBERED.saturating_sub(inline.len());
            inline.extend(ledger.destage.iter().take(room));
        }
        if !ledger.sparse.is_empty() {
            let mut sparse = lock(&self.sparse);
            let room = REMEMBERED.saturating_sub(sparse.len());
            sparse.extend(ledger.sparse.iter().take(room));
        }
    }

    fn take<T: Ord + Copy>(from: &Mutex<BTreeSet<T>>, most: usize) -> Vec<T> {
        let mut from = lock(from);
        std::iter::from_fn(|| from.pop_first()).take(most).collect()
    }
}

/// An extent as it was read, with its content.
struct Moving {
    ino: Ino,
    offset: u64,
    row: ExtentRow,
    bytes: Vec<u8>,
}

impl Store {
    /// One bounded step of tidying; says whether it found anything to do. Inline rows are left until they fill a stripe,
    /// unless `all` is to be tidied, and sparse stripes too: those that `rm -r` works on are soon free by themselves.
    pub fn tidy_step(&self, all: bool) -> Result<bool> {
        let Some(devices) = self.devices.clone() else { return Ok(false) };
        let waiting = lock(&self.untidy.inline).len();
        if waiting >= ROWS || (all && waiting > 0) {
            let rows = Untidy::take(&self.untidy.inline, ROWS);
            self.move_inline(&devices, &rows)?;
            return Ok(true);
        }
        let stripes = if all { Untidy::take(&self.untidy.sparse, STRIPES) } else { Vec::new() };
        if stripes.is_empty() {
            return Ok(false);
        }
        let compacted = self.compact(&devices, &stripes);
        if compacted.is_err() {
            lock(&self.untidy.sparse).extend(stripes);
        }
        compacted.map(|()| true)
    }

    fn move_inline(&self, devices: &Devices, rows: &[(Ino, u64)]) -> Result<()> {
        let mut moving = Vec::new();
        self.view(|view| {
            for (ino, offset) in rows {
                let Some(row) = view.get::<Extents>(&ExtentKey { ino: *ino, offset: *offset })? else { continue };
                if let ExtentBody::Inline(bytes) = &row.body
                    && bytes.len() > INLINE_SMALL
                {
                    moving.push(Moving { ino: *ino, offset: *offset, bytes: bytes.clone(), row });
                }
            }
            Ok(())
        })?;
        self.move_extents(devices, moving)
    }

    /// Moves what is live in these stripes elsewhere, which frees them.
    fn compact(&self, devices: &Devices, stripes: &[StripeId]) -> Result<()> {
        let window = devices.enter_read(self.meta.committed());
        let mut rows: Vec<(StripeId, StripeRow)> = Vec::new();
        let mut found: Vec<(usize, Ino, u64, ExtentRow)> = Vec::new();
        self.view(|view| {
            for id in stripes {
                let (Some(row), Some(live)) = (view.get::<Stripes>(id)?, view.get::<StripeLive>(id)?) else { continue };
                if live.shared != 0 || live.live * 2 >= row.payload_bytes {
                    continue;
                }
                let at = rows.len();
                extents::backrefs(view, *id, |key, _| {
                    let extent = view.get::<Extents>(&ExtentKey { ino: key.ino, offset: key.offset })?;
                    if let Some(extent) = extent.filter(|extent| extent.birth == key.birth) {
                        found.push((at, key.ino, key.offset, extent));
                    }
                    Ok(Visit::Continue(()))
                })?;
                rows.push((*id, row));
            }
            Ok(())
        })?;
        let mut moving = Vec::with_capacity(found.len());
        let mut sources = Vec::with_capacity(found.len());
        for (at, ino, offset, row) in found {
            let ExtentBody::Run(run) = &row.body else { continue };
            if !run.is_plain() || run.stripe != rows[at].0 {
                continue;
            }
            sources.push((at, run.start + run.inside));
            moving.push(Moving { ino, offset, bytes: vec![0; row.length as usize], row });
        }
        let mut reads: Vec<PayloadRead<'_>> = moving
            .iter_mut()
            .zip(&sources)
            .map(|(moving, (at, start))| PayloadRead {
                id: rows[*at].0,
                row: &rows[*at].1,
                start: *start,
                out: &mut moving.bytes,
            })
            .collect();
        let bad = read_payloads(&*devices.membership, &mut reads)?;
        self.note_bad(&bad);
        drop(window);
        self.move_extents(devices, moving)
    }

    fn move_extents(&self, devices: &Devices, mut moving: Vec<Moving>) -> Result<()> {
        if moving.is_empty() {
            return Ok(());
        }
        moving.sort_by_key(|item| (item.ino, item.offset));
        let writes: Vec<ContentWrite> = moving
            .iter_mut()
            .map(|item| ContentWrite {
                ino: item.ino,
                offset: item.offset,
                bytes: SharedBytes::new(std::mem::take(&mut item.bytes)),
            })
            .collect();
        let births: Vec<TxnId> = moving.iter().map(|item| item.row.birth).collect();
        let _window = devices.enter_write();
        let (_, written) =
            self.write_stripes(devices, &mut || self.next_stripe(devices), &writes, &births, pack::plan_moved)?;
        let moved = self.transact(|tx, ledger| {
            let same: Vec<bool> = moving
                .iter()
                .map(|item| {
                    let now = tx.get::<Extents>(&ExtentKey { ino: item.ino, offset: item.offset })?;
                    Ok(now.as_ref() == Some(&item.row))
                })
                .collect::<Result<_>>()?;
            for (item, same) in moving.iter().zip(&same) {
                if *same {
                    extents::remove(tx, item.ino, item.offset..item.offset + item.row.length, usize::MAX, ledger)?;
                }
            }
            let mut unused = Vec::new();
            for stripe in &written {
                if !self.put_moved(tx, stripe, &writes, &moving, &same, ledger)? {
                    unused.push(stripe.id);
                }
            }
            Ok(unused)
        });
        for stripe in &written {
            let unused = moved.as_ref().map_or(true, |unused| unused.contains(&stripe.id));
            if unused {
                devices.release(&stripe.allocation);
            }
        }
        moved.map(drop)
    }

    /// Makes a written stripe part of the pool, with those of its pieces whose extents are still the same; `false` when
    /// there are none.
    fn put_moved(
        &self,
        tx: &mut Tx<'_>,
        stripe: &Written,
        writes: &[ContentWrite],
        moving: &[Moving],
        same: &[bool],
        ledger: &mut Ledger,
    ) -> Result<bool> {
        let pieces = stripe.payload.pieces.iter().filter(|piece| same[piece.write]);
        let live: u32 = pieces.clone().map(|piece| piece.length as u32).sum();
        if live == 0 {
            return Ok(false);
        }
        self.put_stripe(tx, stripe, live, ledger)?;
        for piece in pieces {
            self.put_piece(tx, stripe.id, piece, &writes[piece.write], moving[piece.write].row.birth, ledger)?;
        }
        Ok(true)
    }
}
