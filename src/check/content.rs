//! File content: extents do not overlap, lie in stripes that exist, and each run and its back reference name each other.

use std::collections::HashMap;

use super::fsck::Checked;
use super::issue::{Findings, Issue};
use super::scan;
use crate::base::file::FileType;
use crate::base::{Ino, Result, TxnId};
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
    let next_stripe = reader.counter(Counter::NextStripe)?;
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
        findings.expect(valid, Issue::IntentInvalid, || format!("intent {id}: {intent:?}"));
        Ok(())
    })?;
    Ok(truncates)
}

/// The file whose extents are being visited.
struct File {
    ino: Ino,
    row: Option<InodeRow>,
    reached: u64,
    content: u64,
}

impl File {
    fn begin(reader: &impl Reader, ino: Ino) -> Result<File> {
        Ok(File { ino, row: scan::find::<Inodes>(reader, &ino)?, reached: 0, content: 0 })
    }

    fn finish(&self, findings: &mut Findings) {
        let Some(row) = &self.row else { return };
        findings.expect(row.content == self.content, Issue::ContentWrong, || {
            format!("inode {} says {}, its extents have {}", self.ino, row.content, self.content)
        });
    }
}

fn extents(reader: &impl Reader, truncates: &Truncates, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let mut file: Option<File> = None;
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
        if offset.checked_add(extent.length).is_none() {
            findings.add(Issue::ExtentPastEnd, show);
            return Ok(());
        }
        findings.expect(offset >= file.reached, Issue::ExtentOverlap, show);
        file.reached = offset + extent.length;
        file.content += extent.length;
        match &file.row {
            Some(row) => {
                let kind = FileType::from_mode(row.mode);
                let holds_content = matches!(kind, Some(FileType::Regular | FileType::Symlink));
                findings.expect(holds_content, Issue::ExtentInodeMissing, show);
                let inside = extent.body == ExtentBody::Reserved || file.reached <= row.size;
                findings.expect(inside || hidden, Issue::ExtentPastEnd, || format!("{}, size {}", show(), row.size));
            }
            None => findings.expect(hidden, Issue::ExtentInodeMissing, show),
        }
        if let ExtentBody::Run(run) = &extent.body {
            check_run(reader, ino, offset, &extent, run, findings)?;
        }
        Ok(())
    })?;
    if let Some(last) = file {
        last.finish(findings);
    }
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
    match scan::find::<Stripes>(reader, &run.stripe)? {
        None => findings.add(Issue::ExtentStripeMissing, show),
        Some(stripe) => {
            let end = u64::from(run.start) + u64::from(run.stored);
            let shown = u64::from(run.inside) + extent.length;
            let fits = end <= u64::from(stripe.payload_bytes) && shown <= u64::from(run.logical);
            findings.expect(fits, Issue::ExtentOutsideStripe, show);
        }
    }
    let (start, length) = run.payload_range(extent.length);
    let key = BackrefKey { stripe: run.stripe, ino, offset, birth: extent.birth };
    let backref = scan::find::<Backrefs>(reader, &key)?;
    findings.expect(backref == Some(BackrefRow { start, length }), Issue::ExtentBackrefMissing, show);
    Ok(())
}

/// Inodes that claim content but have no extent at all were not visited by [`extents`].
fn empty_files(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<Inodes>(reader, |ino, row| {
        if row.content == 0 {
            return Ok(());
        }
        let mut any = false;
        let (low, high) = (ExtentKey { ino, offset: 0 }, ExtentKey { ino: Ino(ino.0 + 1), offset: 0 });
        scan::range::<Extents>(reader, &low, &high, |_, _| {
            any = true;
            Ok(Visit::Break(()))
        })?;
        findings.expect(any, Issue::ContentWrong, || format!("inode {ino} says {}, has no extents", row.content));
        Ok(())
    })?;
    Ok(())
}

fn backrefs(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<Backrefs>(reader, |key, _| {
        let extent = scan::find::<Extents>(reader, &ExtentKey { ino: key.ino, offset: key.offset })?;
        let matches = extent.is_some_and(|extent| {
            extent.birth == key.birth && matches!(&extent.body, ExtentBody::Run(run) if run.stripe == key.stripe)
        });
        findings.expect(matches, Issue::BackrefDangling, || {
            format!("stripe {}, inode {}, offset {}", key.stripe, key.ino, key.offset)
        });
        Ok(())
    })?;
    Ok(())
}
