//! A small filesystem laid out row by row; then each way to break it must be found under its own id.

use std::sync::Arc;

use super::*;
use crate::base::clock::SteppingClock;
use crate::base::{BlockNo, DeviceId, Incarnation, Ino, Result, StripeId, Timestamp, TxnId, Uuid};
use crate::format::acl::AclKind;
use crate::format::intent::Intent;
use crate::format::rows::*;
use crate::format::table::*;
use crate::meta::names::{FIRST_COOKIE, NameHasher};
use crate::meta::{Meta, Reader, Tx};

mod import;
mod repair;
mod schema;

const DIR: Ino = Ino(2);
const FILE: Ino = Ino(3);
const LINK: Ino = Ino(4);
const ORPHAN: Ino = Ino(5);
const STRIPE: StripeId = StripeId(1);

fn inode(mode: u32, nlink: u32) -> InodeRow {
    let time = Timestamp { seconds: 1_700_000_000, nanos: 5 };
    InodeRow {
        mode,
        uid: 0,
        gid: 0,
        project: 0,
        nlink,
        rdev: 0,
        size: 0,
        content: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        flags: 0,
        policy: 0,
        parent: Ino(0),
        entries: 0,
        birth: TxnId(1),
    }
}

/// Where a name is looked for, if no other has its hash.
fn cookie(name: &[u8]) -> u64 {
    NameHasher::new([1; 32]).base(name).max(FIRST_COOKIE)
}

fn dentry(tx: &mut Tx<'_>, parent: Ino, name: &[u8], ino: Ino, kind: u8) -> Result<()> {
    dentry_at(tx, parent, cookie(name), name, ino, kind)
}

fn dentry_at(tx: &mut Tx<'_>, parent: Ino, cookie: u64, name: &[u8], ino: Ino, kind: u8) -> Result<()> {
    tx.put::<Dentries>(&DentryKey { parent, cookie }, &DentryRow { ino, kind, birth: TxnId(1), name: name.to_vec() })
}

fn stripe() -> StripeRow {
    StripeRow {
        k: 2,
        m: 1,
        shard_blocks: 2,
        granule_shift: 0,
        state: StripeState::Whole,
        birth: TxnId(1),
        incarnation: Incarnation(9),
        payload_bytes: 16384,
        placements: (0..3).map(|at| Placement { device: DeviceId(at), block: BlockNo(8190) }).collect(),
        sums: vec![7; 6],
    }
}

fn extent(length: u64, body: ExtentBody) -> ExtentRow {
    ExtentRow { length, birth: TxnId(1), body }
}

fn file_extent() -> ExtentRow {
    extent(10_000, ExtentBody::Run(Run::plain(STRIPE, 0, 10_000)))
}

fn backref_key() -> BackrefKey {
    BackrefKey { stripe: STRIPE, ino: FILE, offset: 0, birth: TxnId(1) }
}

fn device_row(used_blocks: u64) -> DeviceRow {
    DeviceRow {
        uuid: [3; 16],
        state: 0,
        class: 0,
        tier: 0,
        weight_milli: 1000,
        failure_domain: 0,
        blocks: 20_000,
        used_blocks,
        read_errors: 0,
        write_errors: 0,
        checksum_errors: 0,
        read_latency_us_ewma: 0,
        write_latency_us_ewma: 0,
        risk_milli: 0,
    }
}

/// An access control list in the kernel's form, with a named user.
fn acl() -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn lay_out(tx: &mut Tx<'_>) -> Result<()> {
    tx.put::<Inodes>(&Ino::ROOT, &InodeRow { parent: Ino::ROOT, entries: 3, ..inode(0o040_755, 3) })?;
    tx.put::<Inodes>(&DIR, &InodeRow { parent: Ino::ROOT, ..inode(0o040_755, 2) })?;
    let file = InodeRow { size: 10_000, content: 10_000, flags: FLAG_XATTRS, ..inode(0o100_644, 1) };
    tx.put::<Inodes>(&FILE, &file)?;
    tx.put::<Inodes>(&LINK, &InodeRow { size: 6, content: 6, ..inode(0o120_777, 1) })?;
    tx.put::<Inodes>(&ORPHAN, &inode(0o100_600, 0))?;
    tx.put::<Orphans>(&ORPHAN, &())?;
    dentry(tx, Ino::ROOT, b"d", DIR, 4)?;
    dentry(tx, Ino::ROOT, b"f\xff", FILE, 8)?;
    dentry(tx, Ino::ROOT, b"link", LINK, 10)?;
    let value = acl();
    let row = XattrRow { total: value.len() as u32, birth: TxnId(1), value };
    tx.put::<Xattrs>(&XattrKey { ino: FILE, name: AclKind::Access.name().to_vec(), piece: 0 }, &row)?;
    tx.put::<Extents>(&ExtentKey { ino: FILE, offset: 0 }, &file_extent())?;
    tx.put::<Extents>(&ExtentKey { ino: LINK, offset: 0 }, &extent(6, ExtentBody::Inline(b"target".to_vec())))?;
    for (piece, length) in [(0, 1000), (1, 500)] {
        let row = XattrRow { total: 1500, birth: TxnId(1), value: vec![b'x'; length] };
        tx.put::<Xattrs>(&XattrKey { ino: FILE, name: b"user.a".to_vec(), piece }, &row)?;
    }
    tx.put::<Stripes>(&STRIPE, &stripe())?;
    tx.put::<StripeLive>(&STRIPE, &StripeLiveRow { live: 10_000, payload: 10_000, shared: 0 })?;
    tx.put::<Backrefs>(&backref_key(), &BackrefRow { start: 0, length: 10_000 })?;
    // Blocks 8190, 8191 and 8192 of each device: two rows of the bitmap.
    for device in (0..3).map(DeviceId) {
        let mut bits = vec![0; 1024];
        bits[1023] = 0xc0;
        tx.put::<Groups>(&GroupKey { device, group: 0, part: 0 }, &bits)?;
        bits[1023] = 0;
        bits[0] = 1;
        tx.put::<Groups>(&GroupKey { device, group: 1, part: 0 }, &bits)?;
        tx.put::<Devices>(&device, &device_row(3))?;
    }
    tx.put::<Config>(&ConfigKey { name: b"names.key".to_vec() }, &vec![1; 32])?;
    tx.set_counter(Counter::NextIno, 6)?;
    tx.set_counter(Counter::NextStripe, 2)?;
    tx.set_counter(Counter::Inodes, 5)?;
    tx.journal(0, JournalOp::Create { parent: 1, name: b"f\xff".to_vec(), ino: 3, mode: 0o644 })?;
    tx.journal(0, JournalOp::Write { ino: 3, bytes: 10_000, extents: 1, size: 10_000 })
}

fn context() -> Context {
    Context {
        devices: (0..3).map(|at| (DeviceId(at), 20_000)).collect(),
        metadata: vec![(DeviceId(0), 0, 256), (DeviceId(0), 10_000, 500)],
    }
}

fn healthy() -> Meta {
    let meta = Meta::in_memory(Arc::new(SteppingClock::default())).expect("opens");
    meta.transact(lay_out).expect("commits");
    meta
}

fn findings_of(meta: &Meta) -> (Findings, Report) {
    let mut findings = Findings::default();
    let checked = meta.view(|view| fsck(view, &context(), &mut findings, &mut |_| {})).expect("checks");
    let report = Report::new(checked, &findings);
    (findings, report)
}

#[test]
fn a_healthy_filesystem_is_clean() {
    let (findings, report) = findings_of(&healthy());
    assert!(report.clean, "{:?}", findings.listed());
    let checked = report.checked;
    assert_eq!((checked.inodes, checked.names, checked.extents, checked.stripes), (5, 3, 2, 1));
    assert_eq!((checked.blocks, checked.journal, checked.orphans), (9, 2, 1));
}

type Damage = fn(&mut Tx<'_>) -> Result<()>;

/// Each damage, and the id under which it must be found.
const DAMAGES: &[(Issue, Damage)] = &[
    (Issue::RowUndecodable, |tx| tx.put::<Groups>(&GroupKey { device: DeviceId(0), group: 0, part: 0 }, &vec![1])),
    (Issue::CounterWrong, |tx| tx.set_counter(Counter::Inodes, 60)),
    (Issue::IdBeyondCounter, |tx| tx.set_counter(Counter::NextIno, 5)),
    (Issue::IdBeyondCounter, |tx| tx.set_counter(Counter::NextStripe, 1)),
    (Issue::IdBeyondCounter, |tx| tx.put::<Intents>(&7, &Intent::Evacuate { device: 0 })),
    (Issue::RootMissing, |tx| tx.delete::<Inodes>(&Ino::ROOT).map(drop)),
    (Issue::RootMissing, |tx| {
        tx.put::<Inodes>(&Ino::ROOT, &InodeRow { parent: DIR, entries: 3, ..inode(0o040_755, 3) })
    }),
    (Issue::InodeInvalid, |tx| tx.put::<Inodes>(&ORPHAN, &inode(0o170_600, 0))),
    (Issue::InodeInvalid, |tx| tx.put::<Inodes>(&ORPHAN, &InodeRow { size: u64::MAX, ..inode(0o100_600, 0) })),
    (Issue::InodeInvalid, |tx| tx.put::<Inodes>(&ORPHAN, &InodeRow { parent: DIR, ..inode(0o100_600, 0) })),
    (Issue::InodeUnreachable, |tx| tx.delete::<Orphans>(&ORPHAN).map(drop)),
    (Issue::InodeUnreachable, |tx| {
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"d") }).map(drop)
    }),
    (Issue::LinkCountWrong, |tx| dentry(tx, DIR, b"again", FILE, 8)),
    (Issue::LinkCountWrong, |tx| dentry(tx, DIR, b"root", Ino::ROOT, 4)),
    (Issue::DentryDangling, |tx| dentry(tx, DIR, b"ghost", Ino(77), 8)),
    (Issue::DentryParentMissing, |tx| dentry(tx, Ino(77), b"lost", FILE, 8)),
    (Issue::DentryParentMissing, |tx| dentry(tx, FILE, b"below a file", FILE, 8)),
    (Issue::DentryKindWrong, |tx| dentry(tx, Ino::ROOT, b"f\xff", FILE, 4)),
    (Issue::DentryCookieWrong, |tx| {
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"d") })?;
        dentry_at(tx, Ino::ROOT, cookie(b"e"), b"d", DIR, 4)
    }),
    (Issue::DentryCookieWrong, |tx| {
        // Found by its hash, but at a cookie that a listing passes over.
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"d") })?;
        dentry_at(tx, Ino::ROOT, cookie(b"e") + 7, b"d", DIR, 4)
    }),
    (Issue::NamesKeyMissing, |tx| tx.delete::<Config>(&ConfigKey { name: b"names.key".to_vec() }).map(drop)),
    (Issue::NamesKeyMissing, |tx| tx.put::<Config>(&ConfigKey { name: b"names.key".to_vec() }, &vec![1; 31])),
    (Issue::DentryNameInvalid, |tx| dentry(tx, Ino::ROOT, b"a/b", FILE, 8)),
    (Issue::DentryNameInvalid, |tx| dentry(tx, Ino::ROOT, b"..", FILE, 8)),
    (Issue::DentryNameInvalid, |tx| dentry(tx, Ino::ROOT, b"", FILE, 8)),
    (Issue::DentryNameInvalid, |tx| dentry(tx, Ino::ROOT, &[b'x'; 300], FILE, 8)),
    (Issue::DentryDuplicate, |tx| dentry_at(tx, Ino::ROOT, cookie(b"link") + 1, b"link", FILE, 8)),
    (Issue::DirectoryEntriesWrong, |tx| {
        tx.put::<Inodes>(&DIR, &InodeRow { parent: Ino::ROOT, entries: 1, ..inode(0o040_755, 2) })
    }),
    (Issue::DirectoryParentWrong, |tx| tx.put::<Inodes>(&DIR, &InodeRow { parent: DIR, ..inode(0o040_755, 2) })),
    (Issue::DirectoryLoop, |tx| {
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"d") })?;
        dentry(tx, DIR, b"me", DIR, 4)
    }),
    (Issue::OrphanNamed, |tx| tx.put::<Orphans>(&FILE, &())),
    (Issue::OrphanNamed, |tx| tx.put::<Orphans>(&Ino(77), &())),
    (Issue::XattrInodeMissing, |tx| {
        let row = XattrRow { total: 1, birth: TxnId(1), value: vec![1] };
        tx.put::<Xattrs>(&XattrKey { ino: Ino(77), name: b"user.b".to_vec(), piece: 0 }, &row)
    }),
    (Issue::XattrNameInvalid, |tx| {
        let row = XattrRow { total: 1, birth: TxnId(1), value: vec![1] };
        tx.put::<Xattrs>(&XattrKey { ino: FILE, name: b"other.a".to_vec(), piece: 0 }, &row)
    }),
    (Issue::XattrNameInvalid, |tx| {
        // The only one of its inode, which then has none.
        tx.put::<Inodes>(&ORPHAN, &InodeRow { flags: FLAG_XATTRS, ..inode(0o100_600, 0) })?;
        let row = XattrRow { total: 1, birth: TxnId(1), value: vec![1] };
        tx.put::<Xattrs>(&XattrKey { ino: ORPHAN, name: b"user.".to_vec(), piece: 0 }, &row)
    }),
    (Issue::XattrPiecesWrong, |tx| {
        tx.delete::<Xattrs>(&XattrKey { ino: FILE, name: b"user.a".to_vec(), piece: 0 }).map(drop)
    }),
    (Issue::XattrPiecesWrong, |tx| {
        let row = XattrRow { total: 1500, birth: TxnId(1), value: vec![1; 499] };
        tx.put::<Xattrs>(&XattrKey { ino: FILE, name: b"user.a".to_vec(), piece: 1 }, &row)
    }),
    (Issue::AclInvalid, |tx| {
        let row = XattrRow { total: 4, birth: TxnId(1), value: vec![3, 0, 0, 0] };
        tx.put::<Inodes>(&DIR, &InodeRow { parent: Ino::ROOT, flags: FLAG_XATTRS, ..inode(0o040_755, 2) })?;
        tx.put::<Xattrs>(&XattrKey { ino: DIR, name: b"system.posix_acl_default".to_vec(), piece: 0 }, &row)
    }),
    (Issue::XattrFlagWrong, |tx| tx.put::<Inodes>(&ORPHAN, &InodeRow { flags: FLAG_XATTRS, ..inode(0o100_600, 0) })),
    (Issue::ExtentInodeMissing, |tx| {
        tx.put::<Extents>(&ExtentKey { ino: Ino(77), offset: 0 }, &extent(1, ExtentBody::Inline(vec![1])))
    }),
    (Issue::ExtentInodeMissing, |tx| {
        tx.put::<Extents>(&ExtentKey { ino: DIR, offset: 0 }, &extent(1, ExtentBody::Inline(vec![1])))
    }),
    (Issue::ExtentOverlap, |tx| {
        tx.put::<Extents>(&ExtentKey { ino: FILE, offset: 9_999 }, &extent(1, ExtentBody::Inline(vec![1])))
    }),
    (Issue::ExtentPastEnd, |tx| {
        tx.put::<Extents>(&ExtentKey { ino: FILE, offset: 10_000 }, &extent(1, ExtentBody::Inline(vec![1])))
    }),
    (Issue::ExtentPastEnd, |tx| {
        tx.put::<Extents>(&ExtentKey { ino: FILE, offset: u64::MAX }, &extent(1, ExtentBody::Reserved))
    }),
    (Issue::CounterWrong, |tx| tx.set_counter(Counter::Reserved, 4096)),
    (Issue::ExtentStripeMissing, |tx| tx.delete::<Stripes>(&STRIPE).map(drop)),
    (Issue::ExtentOutsideStripe, |tx| tx.put::<Stripes>(&STRIPE, &StripeRow { payload_bytes: 9_999, ..stripe() })),
    (Issue::ExtentOutsideStripe, |tx| {
        // While there are prior rows, back references without content are theirs.
        let row = HistoryRow { death: TxnId(3), present: 0, row: Vec::new() };
        tx.put::<History>(&HistoryKey { table: 0, row_key: vec![2] }, &row)?;
        tx.put::<HistoryByDeath>(&HistoryByDeathKey { death: TxnId(3), table: 0, row_key: vec![2] }, &())?;
        tx.put::<Backrefs>(&BackrefKey { offset: 7, ..backref_key() }, &BackrefRow { start: 9, length: 16_384 })
    }),
    (Issue::ExtentBackrefMissing, |tx| tx.delete::<Backrefs>(&backref_key()).map(drop)),
    (Issue::ExtentBackrefMissing, |tx| tx.put::<Backrefs>(&backref_key(), &BackrefRow { start: 1, length: 9_999 })),
    (Issue::ContentWrong, |tx| tx.put::<Inodes>(&LINK, &InodeRow { size: 6, content: 7, ..inode(0o120_777, 1) })),
    (Issue::ContentWrong, |tx| tx.put::<Inodes>(&ORPHAN, &InodeRow { size: 6, content: 6, ..inode(0o100_600, 0) })),
    (Issue::BackrefDangling, |tx| {
        tx.put::<Backrefs>(&BackrefKey { offset: 7, ..backref_key() }, &BackrefRow { start: 0, length: 5 })
    }),
    (Issue::BackrefDangling, |tx| {
        let key = BackrefKey { stripe: StripeId(77), ..backref_key() };
        tx.put::<Backrefs>(&key, &BackrefRow { start: 0, length: 5 })
    }),
    (Issue::IntentInvalid, |tx| tx.put::<Intents>(&0, &Intent::Rebuild { stripe: 77 })),
    (Issue::StripeInvalid, |tx| {
        let mut row = stripe();
        row.placements[1].device = DeviceId(0);
        tx.put::<Stripes>(&STRIPE, &row)
    }),
    (Issue::StripeInvalid, |tx| {
        let mut row = stripe();
        row.placements[1] = Placement::NONE;
        tx.put::<Stripes>(&STRIPE, &row)
    }),
    (Issue::StripeUnused, |tx| {
        tx.set_counter(Counter::NextStripe, 3)?;
        tx.put::<Stripes>(&StripeId(2), &stripe())
    }),
    (Issue::StripeLiveWrong, |tx| {
        tx.put::<StripeLive>(&STRIPE, &StripeLiveRow { live: 9_999, payload: 10_000, shared: 0 })
    }),
    (Issue::StripeLiveWrong, |tx| tx.delete::<StripeLive>(&STRIPE).map(drop)),
    (Issue::StripeLiveWrong, |tx| {
        tx.put::<Backrefs>(&BackrefKey { offset: 7, ..backref_key() }, &BackrefRow { start: 0, length: 5 })
    }),
    (Issue::StripeLiveDangling, |tx| {
        tx.put::<StripeLive>(&StripeId(77), &StripeLiveRow { live: 1, payload: 10_000, shared: 0 })
    }),
    (Issue::StripeDegraded, |tx| tx.put::<Stripes>(&STRIPE, &StripeRow { state: StripeState::Degraded, ..stripe() })),
    (Issue::ShardOutside, |tx| {
        let mut row = stripe();
        row.placements[0].block = BlockNo(19_998);
        tx.put::<Stripes>(&STRIPE, &row)
    }),
    (Issue::ShardOutside, |tx| {
        let mut row = stripe();
        row.placements[0].device = DeviceId(9);
        tx.put::<Stripes>(&STRIPE, &row)
    }),
    (Issue::BlockShared, |tx| {
        tx.set_counter(Counter::NextStripe, 3)?;
        tx.put::<Stripes>(&StripeId(2), &stripe())
    }),
    (Issue::BlockShared, |tx| {
        let mut row = stripe();
        row.placements[0].block = BlockNo(10_499);
        tx.put::<Stripes>(&STRIPE, &row)
    }),
    (Issue::BlockUnmarked, |tx| tx.delete::<Groups>(&GroupKey { device: DeviceId(2), group: 1, part: 0 }).map(drop)),
    (Issue::BlockUnmarked, |tx| {
        let mut bits = vec![0; 1024];
        bits[1023] = 0x80;
        tx.put::<Groups>(&GroupKey { device: DeviceId(2), group: 0, part: 0 }, &bits)
    }),
    (Issue::BlockLeaked, |tx| tx.put::<Groups>(&GroupKey { device: DeviceId(1), group: 1, part: 0 }, &vec![3; 1024])),
    (Issue::BlockLeaked, |tx| tx.put::<Groups>(&GroupKey { device: DeviceId(1), group: 2, part: 0 }, &vec![8; 1024])),
    (Issue::UsedBlocksWrong, |tx| tx.put::<Devices>(&DeviceId(1), &device_row(2))),
    (Issue::UsedBlocksWrong, |tx| tx.delete::<Devices>(&DeviceId(1)).map(drop)),
    (Issue::DeviceRowWrong, |tx| tx.put::<Devices>(&DeviceId(9), &device_row(0))),
    (Issue::JournalBroken, |tx| tx.delete::<Journal>(&0).map(drop)),
    (Issue::JournalBroken, |tx| tx.set_counter(Counter::NextJournal, 7)),
    (Issue::JournalBroken, |tx| {
        let mut row = tx.get::<Journal>(&1)?.expect("was written");
        row.uid = 1000;
        tx.put::<Journal>(&1, &row)
    }),
    (Issue::JournalBroken, |tx| tx.delete::<Journal>(&1).map(drop)),
    (Issue::HistoryWrong, |tx| {
        let row = HistoryRow { death: TxnId(3), present: 0, row: Vec::new() };
        tx.put::<History>(&HistoryKey { table: 0, row_key: vec![1] }, &row)
    }),
    (Issue::HistoryWrong, |tx| {
        tx.put::<HistoryByDeath>(&HistoryByDeathKey { death: TxnId(3), table: 0, row_key: vec![1] }, &())
    }),
];

#[test]
fn every_damage_is_found_under_its_id() {
    for (at, (issue, damage)) in DAMAGES.iter().enumerate() {
        let meta = healthy();
        meta.transact(damage).expect("commits");
        let (findings, report) = findings_of(&meta);
        assert!(findings.has(*issue), "damage {at} ({}): found {:?}", issue.id(), findings.listed());
        assert!(!report.clean);
    }
}

#[test]
fn every_kind_of_metadata_problem_has_a_damage() {
    for issue in super::issue::ISSUES.iter().filter(|issue| !issue.needs_devices()) {
        assert!(DAMAGES.iter().any(|(covered, _)| covered == issue), "nothing proves that {} is found", issue.id());
    }
}

#[test]
fn what_a_background_truncate_hides_is_no_problem() {
    let meta = healthy();
    meta.transact(|tx| {
        tx.put::<Inodes>(&FILE, &InodeRow { content: 10_000, flags: FLAG_XATTRS, ..inode(0o100_644, 1) })?;
        tx.put::<Intents>(&0, &Intent::Truncate { ino: FILE.0, from: 0, txn: 1 })?;
        tx.set_counter(Counter::NextIntent, 1)
    })
    .expect("commits");
    let (findings, report) = findings_of(&meta);
    assert!(report.clean, "{:?}", findings.listed());
}

#[test]
fn shared_bytes_count_once() {
    let meta = healthy();
    meta.transact(|tx| {
        tx.put::<Inodes>(&ORPHAN, &InodeRow { size: 4_000, content: 4_000, ..inode(0o100_600, 0) })?;
        let run = Run { inside: 1_000, ..Run::plain(STRIPE, 0, 10_000) };
        tx.put::<Extents>(&ExtentKey { ino: ORPHAN, offset: 0 }, &extent(4_000, ExtentBody::Run(run)))?;
        let key = BackrefKey { ino: ORPHAN, ..backref_key() };
        tx.put::<Backrefs>(&key, &BackrefRow { start: 1_000, length: 4_000 })?;
        tx.put::<StripeLive>(&STRIPE, &StripeLiveRow { live: 10_000, payload: 10_000, shared: 1 })
    })
    .expect("commits");
    let (findings, report) = findings_of(&meta);
    assert!(report.clean, "{:?}", findings.listed());
}

/// The file gets two more names; they are all of its paths, in order.
fn link_twice(meta: &Meta) -> [String; 3] {
    meta.transact(|tx| {
        dentry(tx, DIR, b"also", FILE, 8)?;
        dentry(tx, Ino::ROOT, b"a name", FILE, 8)?;
        tx.put::<Inodes>(&DIR, &InodeRow { parent: Ino::ROOT, entries: 1, ..inode(0o040_755, 2) })?;
        let root = tx.get::<Inodes>(&Ino::ROOT)?.expect("the root");
        tx.put::<Inodes>(&Ino::ROOT, &InodeRow { entries: 4, ..root })?;
        let file = tx.get::<Inodes>(&FILE)?.expect("the file");
        tx.put::<Inodes>(&FILE, &InodeRow { nlink: 3, ..file })
    })
    .expect("commits");
    ["/a name", "/d/also", "/f\\xff"].map(str::to_owned)
}

#[test]
fn all_names_of_a_file_are_told() {
    let meta = healthy();
    let all = link_twice(&meta);
    assert!(findings_of(&meta).1.clean);
    let inos = [FILE, LINK, ORPHAN].into();
    let found = meta.view(|view| paths(view, &inos)).expect("reads");
    assert_eq!((found[&FILE].paths.as_slice(), found[&FILE].more_paths), (all.as_slice(), 0));
    assert_eq!(found[&FILE].to_string(), "/a name (also /d/also, /f\\xff)");
    assert_eq!((found[&LINK].to_string(), found[&ORPHAN].to_string()), ("/link".to_owned(), "#5".to_owned()));
    assert_eq!(meta.view(|view| owners_of_stripes(view, &[STRIPE], 10)).expect("reads").paths, all);
    // What there is no room for is counted.
    for (room, kept) in [(0, 1), (1, 2), (2, 3)] {
        let found = meta.view(|view| paths::paths_within(view, &inos, room)).expect("reads");
        assert_eq!((found[&FILE].paths.len(), found[&FILE].more_paths), (kept, 3 - kept as u64));
        assert_eq!(found[&LINK].to_string(), "/link");
        let mut room = room;
        let within = Paths { paths: all.to_vec(), more_paths: 0 }.within(&mut room);
        assert_eq!((within.paths.as_slice(), within.more_paths, room), (&all[..kept], 3 - kept as u64, 0));
    }

    // An action tells them, too.
    let row = meta.view(|view| view.get::<Inodes>(&FILE)).expect("reads").expect("the file");
    meta.transact(|tx| tx.put::<Inodes>(&FILE, &InodeRow { content: 1, ..row })).expect("commits");
    let planned = super::repair::plan(&meta, &context(), &mut |_| {}).expect("plans");
    let action = planned.plan.actions().next().expect("an action");
    assert_eq!(action.names.paths, all);
    let told = serde_json::to_value(action).expect("JSON");
    assert_eq!((&told["path"], &told["paths"]), (&all[0].clone().into(), &all.to_vec().into()));
}

#[test]
fn owners_that_are_not_named_are_counted_by_stripe() {
    let meta = healthy();
    let all = link_twice(&meta);
    let stripes: Vec<StripeId> = (0..3).map(|at| StripeId(STRIPE.0 + at)).collect();
    meta.transact(|tx| {
        for (at, stripe) in stripes.iter().enumerate() {
            for ino in [FILE, LINK].into_iter().skip(at % 2) {
                let key = BackrefKey { stripe: *stripe, ino, ..backref_key() };
                tx.put::<Backrefs>(&key, &BackrefRow { start: 0, length: 6 })?;
            }
        }
        Ok(())
    })
    .expect("commits");
    let owners = |limit| meta.view(|view| owners_of_stripes(view, &stripes, limit)).expect("reads");
    let both = [all.to_vec(), vec!["/link".to_owned()]].concat();
    assert_eq!(owners(2), Owners { paths: both, more_stripes: 0, more_paths: 0 });
    // All of them have the link besides, which is not named.
    assert_eq!(owners(1), Owners { paths: all.to_vec(), more_stripes: 3, more_paths: 0 });
}

#[test]
fn many_problems_of_a_kind_are_counted_but_not_all_listed() {
    let mut findings = Findings::default();
    for _ in 0..1000 {
        findings.add(Issue::BlockLeaked, || "here".to_owned());
    }
    let report = Report::new(fsck::Checked::default(), &findings);
    assert_eq!(report.issues[0].count, 1000);
    assert_eq!(report.findings.len(), 50);
}

fn export_of(meta: &Meta) -> (String, ExportSummary) {
    let header = ExportHeader { pool: Uuid([7; 16]), name: "tank".to_owned() };
    let mut text = Vec::new();
    let summary = meta
        .view(|view| {
            export(view, &header, &mut |piece| {
                text.extend_from_slice(piece);
                Ok(())
            })
        })
        .expect("exports");
    (String::from_utf8(text).expect("UTF-8"), summary)
}

#[test]
fn equal_metadata_exports_to_equal_bytes() {
    let (first, _) = export_of(&healthy());
    let (second, summary) = export_of(&healthy());
    assert_eq!(first, second);
    assert_eq!(summary.bytes, first.len() as u64);
    let other = healthy();
    other.transact(|tx| tx.set_counter(Counter::Reserved, 1)).expect("commits");
    assert_ne!(first, export_of(&other).0);
}

#[test]
fn an_export_is_json_with_a_digest_of_itself() {
    let (text, summary) = export_of(&healthy());
    let document: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
    let digest = document["blake3"].as_str().expect("a digest");
    let covered = &text[..text.rfind("\"blake3\"").expect("the last line")];
    assert_eq!(blake3::hash(covered.as_bytes()).to_hex().as_str(), digest);
    assert_eq!(document["rows"], serde_json::json!(summary.rows));
    let names = document["tables"]["dentries"].as_array().expect("names");
    assert!(names.iter().any(|name| name["name_b64"] == "Zv8="), "names that are not UTF-8 are reversible");
    assert_eq!(document["tables"]["inodes"].as_array().map(Vec::len), Some(5));
}

#[test]
fn rows_that_cannot_be_read_are_refused_and_not_left_out() {
    let mut text = String::new();
    assert!(crate::format::export::row(Counters::ID, &[1], &[0; 9], &mut text).is_err());
    assert!(crate::format::export::row(Inodes::ID, &[1], &[], &mut text).is_err());
    assert!(crate::format::export::row(250, &[], &[], &mut text).is_err());
}

/// Appends what it is given.
fn collect(text: &mut Vec<u8>) -> impl FnMut(&[u8]) -> Result<()> {
    |piece| {
        text.extend_from_slice(piece);
        Ok(())
    }
}

#[test]
fn p8_an_archive_exports_to_what_the_metadata_was() {
    use crate::base::Prng;
    use crate::device::InlineEngine;
    use crate::device::sim::SimWorld;
    use crate::pool::{OpenMode, Pool};
    use crate::store::{PoolMembership, open_tests};

    let world = SimWorld::new(1, 6, 32 << 20);
    let store = open_tests::format(&world, 4, 2).expect("format");
    for number in 0..2_000u64 {
        let name = ConfigKey { name: format!("row {number}").into_bytes() };
        store.transact(|tx, _| tx.put::<Config>(&name, &vec![number as u8; 300])).expect("row");
    }
    let pool = store.pool().expect("a pool").clone();
    let header = ExportHeader { pool: pool.uuid(), name: "test".to_owned() };
    let live = || {
        let mut text = Vec::new();
        let summary = store.view(|view| export(view, &header, &mut collect(&mut text)));
        summary.map(|summary| (text, summary))
    };
    let before = live().expect("export");
    let txn = archive(&store, pool.uuid(), 5, &|| true).expect("archive");
    assert_eq!(txn, before.1.txn);
    assert!(live().expect("export") == before, "writing an archive changes no row");
    store.transact(|tx, _| tx.delete::<Config>(&ConfigKey { name: b"row 7".to_vec() })).expect("change");
    store.durable_point().expect("durable");
    assert!(live().expect("export") != before);

    let label = &pool.state().label.archives[0].clone();
    let media = PoolMembership(pool.clone());
    let archived = |media: &PoolMembership, header: &ExportHeader| {
        let mut text = Vec::new();
        let summary = export_archive(media, header, label, &mut collect(&mut text));
        summary.map(|summary| (text, summary))
    };
    assert!(archived(&media, &header).expect("archive") == before);
    let other = ExportHeader { pool: Uuid([9; 16]), name: "test".to_owned() };
    assert!(archived(&media, &other).is_err(), "an archive of another pool");

    // With every copy of the metadata gone.
    let state = pool.state();
    let meta = &state.label.meta;
    let bytes = |block: u64, blocks: u32| block * 4096..(block + u64::from(blocks)) * 4096;
    for replica in &meta.replicas {
        world.corrupt(usize::from(replica.device), bytes(replica.log_block, replica.log_blocks));
    }
    for run in &meta.chunks {
        world.corrupt(usize::from(run.device), bytes(run.block, run.count * meta.chunk_blocks));
    }
    drop((media, pool, store));
    assert!(open_tests::open(&world, &[0, 1, 2, 3, 4, 5], 4).is_err(), "the metadata is gone");
    let mode = OpenMode { read_only: true, ..OpenMode::default() };
    let pool = Pool::open(&world.devices(), &mode, Arc::new(InlineEngine), Box::new(Prng::new(6))).expect("labels");
    let media = PoolMembership(Arc::new(pool));
    assert!(archived(&media, &header).expect("archive") == before);
}
