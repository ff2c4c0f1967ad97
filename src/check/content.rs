//! File content: extents do not overlap, lie in stripes that exist, and each run and its back reference name each other.

use std::collections::HashMap;

use super::fsck::Checked;
use super::issue::{Findings, Issue};
use super::plan::{Field, Fix, INO_END, backref_key};
use super::scan;
use crate::base::file::FileType;
use crate::base::{BLOCK_SIZE, Ino, Result, TxnId};
use crate::format::intent::Intent;
use crate::format::rows::{BackrefKey, BackrefRow, Counter, ExtentBody, ExtentKey, ExtentRow, InodeRow, Run};
use crate::format::table::{Backrefs, Extents, History, Inodes, Intents, Stripes};
use crate::meta::{Reader, Visit};

/// Truncates that go on in the background: what they hide is not an error.
type Truncates = HashMap<Ino, Vec<(u64, TxnId)>>;

/// Runs the pass.
pub fn check(reader: &impl Reader, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let truncates = intents(reader, findings)?;
    extents(reader, &truncates, findings, checked)?;
    empty_files(reader, findings)?;
    if scan::is_empty::<History>(reader)? {
        backrefs(reader, findings)?;
    }
    Ok(())
}

fn intents(reader: &impl Reader, findings: &mut Findings) -> Result<Truncates> {
    let mut truncates = Truncates::new();
    let next_stripe = scan::counter(reader, Counter::NextStripe)?;
    scan::rows::<Intents>(reader, |id, intent| {
        let valid = match intent {
            Intent::Truncate { ino, from, txn } => {
                truncates.entry(Ino(ino)).or_default().push((from, TxnId(txn)));
                true
            }
            Intent::Rebuild { stripe } => stripe < next_stripe,
            // The stripe or the content may have moved or gone since; the action then finds nothing to do.
            Intent::Destage { .. } | Intent::Evacuate { .. } => true,
        };
        let show = || format!("intent {id}: {intent:?}");
        findings.expect_or(valid, Issue::IntentInvalid, show, || Fix::DropIntent { id });
        Ok(())
    })?;
    Ok(truncates)
}

/// The file whose extents are being visited.
struct File {
    ino: Ino,
    row: Option<InodeRow>,
    /// The extent that reaches furthest: where it begins and ends, and when it was written.
    furthest: (u64, u64, TxnId),
    content: u64,
}

impl File {
    fn begin(reader: &impl Reader, ino: Ino) -> Result<File> {
        Ok(File { ino, row: scan::find::<Inodes>(reader, &ino)?, furthest: (0, 0, TxnId(0)), content: 0 })
    }

    fn finish(&self, findings: &mut Findings) {
        let Some(row) = &self.row else { return };
        let show = || format!("inode {} says {}, its extents have {}", self.ino, row.content, self.content);
        findings.expect_or(row.content == self.content, Issue::ContentWrong, show, || Fix::Inode {
            ino: self.ino,
            field: Field::Content(self.content),
        });
    }
}

fn extents(reader: &impl Reader, truncates: &Truncates, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let mut file: Option<File> = None;
    let mut reserved = 0u64;
    checked.extents = scan::rows::<Extents>(reader, |ExtentKey { ino, offset }, extent| {
        if file.as_ref().is_none_or(|file| file.ino != ino)
            && let Some(last) = file.replace(File::begin(reader, ino)?)
        {
            last.finish(findings);
        }
        let Some(file) = &mut file else { return Ok(()) };
        let show = || format!("inode {ino}, bytes {offset}+{}", extent.length);
        let hidden = truncates
            .get(&ino)
            .is_some_and(|cuts| cuts.iter().any(|(from, txn)| offset >= *from && extent.birth <= *txn));
        let key = ExtentKey { ino, offset };
        let Some(end) = offset.checked_add(extent.length) else {
            findings.mend(Issue::ExtentPastEnd, show, || Fix::DropExtent { key: key.clone() });
            return Ok(());
        };
        let (begun, reached, born) = file.furthest;
        findings.expect_or(offset >= reached, Issue::ExtentOverlap, show, || match extent.birth >= born {
            true => Fix::Cut { key: ExtentKey { ino, offset: begun }, hole: offset..end },
            false => Fix::Cut { key: key.clone(), hole: begun..reached },
        });
        if end > reached {
            file.furthest = (offset, end, extent.birth);
        }
        file.content += extent.length;
        if extent.body == ExtentBody::Reserved {
            reserved = reserved.saturating_add(extent.length);
        }
        match &file.row {
            Some(row) => {
                let kind = FileType::from_mode(row.mode);
                let holds_content = matches!(kind, Some(FileType::Regular | FileType::Symlink));
                findings.expect_or(holds_content, Issue::ExtentInodeMissing, show, || Fix::SplitContent { ino });
                let inside = extent.body == ExtentBody::Reserved || end <= row.size;
                let size = row.size;
                findings.expect_or(
                    inside || hidden,
                    Issue::ExtentPastEnd,
                    || format!("{}, size {size}", show()),
                    || Fix::Cut { key: key.clone(), hole: size..u64::MAX },
                );
            }
            None => findings.expect_or(hidden, Issue::ExtentInodeMissing, show, || match ino.0 < INO_END {
                true => Fix::MakeInode { ino, kind: FileType::Regular },
                false => Fix::SplitContent { ino },
            }),
        }
        if let ExtentBody::Run(run) = &extent.body {
            check_run(reader, ino, offset, &extent, run, findings)?;
        }
        Ok(())
    })?;
    if let Some(last) = file {
        last.finish(findings);
    }
    let counted = scan::counter(reader, Counter::Reserved)?;
    let show = || format!("{reserved} bytes are reserved, the counter says {counted}");
    findings.expect_or(counted == reserved, Issue::CounterWrong, show, || Fix::Reserved { bytes: reserved });
    Ok(())
}

fn check_run(
    reader: &impl Reader,
    ino: Ino,
    offset: u64,
    extent: &ExtentRow,
    run: &Run,
    findings: &mut Findings,
) -> Result<()> {
    let show = || format!("inode {ino}, offset {offset}, stripe {}", run.stripe);
    let extent_key = ExtentKey { ino, offset };
    match scan::find::<Stripes>(reader, &run.stripe)? {
        None => {
            findings.mend(Issue::ExtentStripeMissing, show, || Fix::DropExtent { key: extent_key.clone() });
            findings.also(Issue::ExtentStripeMissing, show, || Fix::FindStripe { stripe: run.stripe });
        }
        Some(stripe) => {
            let end = u64::from(run.start) + u64::from(run.stored);
            let shown = u64::from(run.inside) + extent.length;
            let fits = end <= u64::from(stripe.payload_bytes) && shown <= u64::from(run.logical);
            // The checksums of a stripe cover all of its shards, used or not.
            let capacity = u64::from(stripe.k) * u64::from(stripe.shard_blocks) * BLOCK_SIZE;
            findings.expect_or(fits, Issue::ExtentOutsideStripe, show, || match u32::try_from(end) {
                Ok(bytes) if end <= capacity => Fix::Payload { stripe: run.stripe, bytes },
                _ => Fix::DropExtent { key: extent_key.clone() },
            });
        }
    }
    let (start, length) = run.payload_range(extent.length);
    let key = backref_key(run.stripe, &extent_key, extent.birth);
    let backref = scan::find::<Backrefs>(reader, &key)?;
    let row = BackrefRow { start, length };
    findings.expect_or(backref.as_ref() == Some(&row), Issue::ExtentBackrefMissing, show, || Fix::Backref {
        key,
        row: row.clone(),
    });
    Ok(())
}

/// Inodes that claim content but have no extent at all were not visited by [`extents`].
fn empty_files(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<Inodes>(reader, |ino, row| {
        if row.content == 0 {
            return Ok(());
        }
        let mut any = false;
        let (low, high) = (ExtentKey { ino, offset: 0 }, ExtentKey { ino: Ino(ino.0.saturating_add(1)), offset: 0 });
        scan::range::<Extents>(reader, &low, &high, |_, _| {
            any = true;
            Ok(Visit::Break(()))
        })?;
        let show = || format!("inode {ino} says {}, has no extents", row.content);
        findings.expect_or(any, Issue::ContentWrong, show, || Fix::Inode { ino, field: Field::Content(0) });
        Ok(())
    })?;
    Ok(())
}

fn backrefs(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<Backrefs>(reader, |key, _| {
        let matches = belongs(reader, &key)?;
        let show = || format!("stripe {}, inode {}, offset {}", key.stripe, key.ino, key.offset);
        findings.expect_or(matches, Issue::BackrefDangling, show, || Fix::DropBackref { key: key.clone() });
        Ok(())
    })?;
    Ok(())
}

/// Whether there is an extent that asks for this back reference, whatever it should say.
pub fn belongs(reader: &impl Reader, key: &BackrefKey) -> Result<bool> {
    let extent = scan::find::<Extents>(reader, &ExtentKey { ino: key.ino, offset: key.offset })?;
    Ok(extent.is_some_and(|extent| {
        extent.birth == key.birth && matches!(&extent.body, ExtentBody::Run(run) if run.stripe == key.stripe)
    }))
}
