//! Every damage is planned without a change, mended, and then gone; what was not damaged is as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::file::FileType;
use crate::check::plan::Fix;
use crate::check::recover::name_all;
use crate::check::repair::{KEPT, Round, Rounds, plan, round};
use crate::format::record::Key;

const BYSTANDER: Ino = Ino(9);
const OTHER_STRIPE: StripeId = StripeId(9);

/// The small filesystem, and beside it a file that no damage touches.
fn with_bystander() -> Meta {
    let meta = healthy();
    meta.transact(|tx| {
        let row = InodeRow { size: 8000, content: 8000, flags: FLAG_XATTRS, ..inode(0o100_640, 1) };
        tx.put::<Inodes>(&BYSTANDER, &row)?;
        dentry(tx, Ino::ROOT, b"bystander", BYSTANDER, 8)?;
        let run = ExtentBody::Run(Run::plain(OTHER_STRIPE, 0, 8000));
        tx.put::<Extents>(&ExtentKey { ino: BYSTANDER, offset: 0 }, &extent(8000, run))?;
        let backref = BackrefKey { stripe: OTHER_STRIPE, ino: BYSTANDER, ..backref_key() };
        tx.put::<Backrefs>(&backref, &BackrefRow { start: 0, length: 8000 })?;
        let value = XattrRow { total: 3, birth: TxnId(1), value: b"abc".to_vec() };
        tx.put::<Xattrs>(&XattrKey { ino: BYSTANDER, name: b"user.k".to_vec(), piece: 0 }, &value)?;
        let place = |at| Placement { device: DeviceId(at), block: BlockNo(600) };
        tx.put::<Stripes>(&OTHER_STRIPE, &StripeRow { placements: (0..3).map(place).collect(), ..stripe() })?;
        tx.put::<StripeLive>(&OTHER_STRIPE, &StripeLiveRow { live: 8000, payload: 16384, shared: 0 })?;
        for device in (0..3).map(DeviceId) {
            let mut bits = vec![0; 1024];
            bits[1023] = 0xc0;
            bits[75] = 7;
            tx.put::<Groups>(&GroupKey { device, group: 0, part: 0 }, &bits)?;
            tx.put::<Devices>(&device, &device_row(6))?;
        }
        let root = tx.get::<Inodes>(&Ino::ROOT)?.expect("the root");
        tx.put::<Inodes>(&Ino::ROOT, &InodeRow { entries: 4, ..root })?;
        tx.set_counter(Counter::NextIno, 10)?;
        tx.set_counter(Counter::NextStripe, 10)?;
        tx.set_counter(Counter::Inodes, 6)
    })
    .expect("commits");
    let (findings, report) = findings_of(&meta);
    assert!(report.clean, "{:?}", findings.listed());
    meta
}

/// Everything about the bystander, wherever its name lies.
fn bystander(meta: &Meta) -> String {
    meta.view(|view| {
        let mut out = Vec::new();
        out.push(format!("{:?}", view.get::<Inodes>(&BYSTANDER)?));
        scan::rows::<Dentries>(view, |key, row| {
            if row.ino == BYSTANDER {
                out.push(format!("{} {:?} {}", key.parent, row.name, row.kind));
            }
            Ok(())
        })?;
        scan::rows::<Extents>(view, |key, row| {
            if key.ino == BYSTANDER {
                out.push(format!("{key:?} {row:?}"));
            }
            Ok(())
        })?;
        scan::rows::<Xattrs>(view, |key, row| {
            if key.ino == BYSTANDER {
                out.push(format!("{key:?} {row:?}"));
            }
            Ok(())
        })?;
        out.push(format!("{:?}", view.get::<Stripes>(&OTHER_STRIPE)?));
        Ok(out.join("\n"))
    })
    .expect("reads")
}

/// Every byte of every table.
fn everything(meta: &Meta) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    meta.view(|view| {
        for (table, _) in TABLES {
            let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
            view.scan_raw(*table, all, false, &mut |key, row| {
                rows.push((*table, key.to_vec(), row.to_vec()));
                Ok(crate::meta::Visit::Continue(()))
            })?;
        }
        Ok(())
    })
    .expect("reads");
    rows
}

/// What opening a pool does before each round: members without a row get one, here without a look at what they have.
fn open_anew(meta: &Meta) {
    meta.transact(|tx| {
        for (device, _) in context().devices {
            if !matches!(tx.get::<Devices>(&device), Ok(Some(_))) {
                tx.put::<Devices>(&device, &device_row(0))?;
            }
        }
        Ok(())
    })
    .expect("opens");
}

/// Repairs until nothing is done any more; what was done, and the last look.
fn mend(meta: &Meta) -> (Vec<Action>, Round) {
    let mut done = Vec::new();
    for _ in 0..20 {
        open_anew(meta);
        let mut round = round(meta, &context(), &(), [5; 32], KEPT, &mut |_| {}).expect("repairs");
        if round.done.is_empty() {
            return (done, round);
        }
        done.append(&mut round.done);
    }
    panic!("no end of repairs: {done:#?}");
}

/// Plans, mends and checks; returns what was done.
fn assert_mended(meta: &Meta, issue: Issue, label: &str) -> Vec<Action> {
    let before = everything(meta);
    let planned = plan(meta, &context(), &mut |_| {}).expect("plans");
    assert!(planned.has(issue), "{label}: found {:?}", planned.findings.listed());
    assert!(!planned.plan.is_empty(), "{label}: nothing is planned for {:?}", planned.findings.listed());
    assert!(everything(meta) == before, "{label}: planning changed something");

    let (done, last) = mend(meta);
    assert!(last.is_clean(), "{label}: did {done:#?}\nleft {:#?}", last.findings.listed());
    let last = meta.view(|view| view.get::<Journal>(&(view.counter(Counter::NextJournal)? - 1))).expect("reads");
    let record = last.map(|row| row.operation);
    assert!(matches!(record, Some(JournalOp::Repair { .. })), "{label}: repairs are on the record, {record:?}");
    done
}

#[test]
fn every_damage_is_mended() {
    for (at, (issue, damage)) in DAMAGES.iter().enumerate() {
        let meta = with_bystander();
        let before = bystander(&meta);
        meta.transact(damage).expect("commits");
        assert_mended(&meta, *issue, &format!("damage {at} ({})", issue.id()));
        assert_eq!(bystander(&meta), before, "damage {at} ({})", issue.id());
    }
}

#[test]
fn damages_in_pairs_are_mended() {
    for (first, (issue, damage)) in DAMAGES.iter().enumerate() {
        for (second, (other, again)) in DAMAGES.iter().enumerate().skip(first % 5).step_by(5) {
            let meta = with_bystander();
            let before = bystander(&meta);
            meta.transact(damage).expect("commits");
            meta.transact(again).expect("commits");
            let (done, last) = mend(&meta);
            let label = format!("damages {first} and {second} ({}, {})", issue.id(), other.id());
            assert!(last.is_clean(), "{label}: did {done:#?}\nleft {:#?}", last.findings.listed());
            assert_eq!(bystander(&meta), before, "{label}");
        }
    }
}

/// It may have joined just before a crash; whoever opens the pool makes its row.
#[test]
fn a_member_without_blocks_needs_no_row() {
    let meta = healthy();
    let context = Context { devices: (0..4).map(|at| (DeviceId(at), 20_000)).collect(), ..context() };
    let planned = plan(&meta, &context, &mut |_| {}).expect("plans");
    assert!(planned.is_clean(), "found {:?}", planned.findings.listed());
}

/// Stores bytes that are no row.
fn spoil<T: Table>(meta: &Meta, key: &T::Key) {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    // Loading wants the database for itself.
    meta.view(|_| Ok(())).expect("settles");
    meta.load(&mut |put| put(T::ID, &bytes, b"\xeeno row")).expect("loads");
}

fn path_of(meta: &Meta, ino: Ino) -> String {
    meta.view(|view| crate::check::paths::paths(view, &[ino].into())).expect("reads")[&ino].paths[0].clone()
}

fn file_row(meta: &Meta, ino: Ino) -> Option<InodeRow> {
    meta.view(|view| view.get::<Inodes>(&ino)).expect("reads")
}

#[test]
fn a_row_that_cannot_be_read_costs_no_more_than_itself() {
    let undecodable = |spoil: &dyn Fn(&Meta)| {
        let meta = with_bystander();
        let before = bystander(&meta);
        spoil(&meta);
        let done = assert_mended(&meta, Issue::RowUndecodable, "a row");
        assert_eq!(bystander(&meta), before);
        (meta, done)
    };
    // The inode's content and name stay together.
    let (meta, done) = undecodable(&|meta| spoil::<Inodes>(meta, &FILE));
    assert_eq!(path_of(&meta, FILE), "/f\\xff");
    assert_eq!(file_row(&meta, FILE).map(|row| (row.size, row.nlink)), Some((10_000, 1)));
    assert!(done.iter().any(|action| action.loses && action.names.paths == ["/f\\xff"]), "{done:#?}");
    // A directory keeps its names.
    let (meta, _) = undecodable(&|meta| spoil::<Inodes>(meta, &Ino::ROOT));
    assert_eq!(path_of(&meta, DIR), "/d");
    // A symbolic link keeps its type.
    let (meta, _) = undecodable(&|meta| spoil::<Inodes>(meta, &LINK));
    assert_eq!(file_row(&meta, LINK).map(|row| FileType::from_mode(row.mode)), Some(Some(FileType::Symlink)));
    // Without its name a file is in lost+found.
    let (meta, _) =
        undecodable(&|meta| spoil::<Dentries>(meta, &DentryKey { parent: Ino::ROOT, cookie: cookie(b"f\xff") }));
    assert_eq!(path_of(&meta, FILE), "/lost+found/#3");
    // An extent comes back from its back reference.
    let (meta, _) = undecodable(&|meta| spoil::<Extents>(meta, &ExtentKey { ino: FILE, offset: 0 }));
    let key = ExtentKey { ino: FILE, offset: 0 };
    assert_eq!(meta.view(|view| view.get::<Extents>(&key)).expect("reads"), Some(file_extent()));
    // The rest.
    undecodable(&|meta| spoil::<Extents>(meta, &ExtentKey { ino: LINK, offset: 0 }));
    undecodable(&|meta| {
        spoil::<Xattrs>(meta, &XattrKey { ino: FILE, name: b"user.a".to_vec(), piece: 1 });
    });
    let (_, done) = undecodable(&|meta| spoil::<Stripes>(meta, &STRIPE));
    let lost = done.iter().find(|action| action.id == "extent-stripe-missing").expect("what is lost is named");
    assert_eq!(lost.names.paths, ["/f\\xff"]);
    undecodable(&|meta| spoil::<StripeLive>(meta, &STRIPE));
    undecodable(&|meta| spoil::<Backrefs>(meta, &backref_key()));
    undecodable(&|meta| spoil::<Devices>(meta, &DeviceId(7)));
    undecodable(&|meta| spoil::<Orphans>(meta, &ORPHAN));
    undecodable(&|meta| spoil::<Intents>(meta, &7));
    undecodable(&|meta| spoil::<Journal>(meta, &0));
    undecodable(&|meta| spoil::<Journal>(meta, &1));
    undecodable(&|meta| spoil::<History>(meta, &HistoryKey { table: 0, row_key: vec![1] }));
    undecodable(&|meta| spoil::<Snapshots>(meta, &SnapshotKey { name: b"one".to_vec() }));
    for counter in [Counter::NextIno, Counter::NextStripe, Counter::NextJournal, Counter::Inodes] {
        undecodable(&|meta| spoil::<Counters>(meta, &(counter as u8)));
    }
}

/// Such keys lie in front of all others, between them, and behind.
#[test]
fn a_row_under_what_is_no_key_is_mended() {
    for (table, name) in TABLES {
        for key in [vec![], vec![0, 0], vec![0; 9], vec![0xff; 40]] {
            let meta = with_bystander();
            let before = bystander(&meta);
            meta.view(|_| Ok(())).expect("settles");
            meta.load(&mut |put| put(*table, &key, b"\xeeno row")).expect("loads");
            let (done, last) = mend(&meta);
            assert!(last.is_clean(), "{name}, {key:?}: did {done:#?}, left {:#?}", last.findings.listed());
            assert_eq!(bystander(&meta), before, "{name}, {key:?}");
        }
    }
}

#[test]
fn what_has_no_name_goes_to_lost_and_found() {
    let meta = with_bystander();
    meta.transact(|tx| {
        // Its names are taken already, one of them by a file.
        dentry(tx, Ino::ROOT, b"lost+found", BYSTANDER, 8)?;
        let row = tx.get::<Inodes>(&BYSTANDER)?.expect("the bystander");
        tx.put::<Inodes>(&BYSTANDER, &InodeRow { nlink: 2, ..row })?;
        let root = tx.get::<Inodes>(&Ino::ROOT)?.expect("the root");
        tx.put::<Inodes>(&Ino::ROOT, &InodeRow { entries: 4, ..root })?;
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"d") })?;
        dentry(tx, DIR, b"in it", LINK, 10)?;
        tx.delete::<Dentries>(&DentryKey { parent: Ino::ROOT, cookie: cookie(b"link") }).map(drop)
    })
    .expect("commits");
    assert_mended(&meta, Issue::InodeUnreachable, "a directory");
    assert_eq!(path_of(&meta, DIR), "/lost+found.1/#2");
    assert_eq!(path_of(&meta, LINK), "/lost+found.1/#2/in it");
}

#[test]
fn of_overlapping_extents_the_newer_one_is_shown() {
    let meta = with_bystander();
    meta.transact(|tx| {
        let row = extent(100, ExtentBody::Inline(vec![7; 100]));
        tx.put::<Extents>(&ExtentKey { ino: FILE, offset: 500 }, &ExtentRow { birth: TxnId(2), ..row })
    })
    .expect("commits");
    let done = assert_mended(&meta, Issue::ExtentOverlap, "an overlap");
    assert!(done.iter().any(|action| action.loses && action.names.paths == ["/f\\xff"]), "{done:#?}");
    let mut shown = Vec::new();
    meta.view(|view| {
        scan::rows::<Extents>(view, |key, row| {
            if key.ino == FILE {
                shown.push((key.offset, row.length, matches!(row.body, ExtentBody::Inline(_))));
            }
            Ok(())
        })
    })
    .expect("reads");
    assert_eq!(shown, [(0, 500, false), (500, 100, true), (600, 9_400, false)]);
}

#[test]
fn a_mended_journal_says_so_and_keeps_what_can_be_read() {
    let meta = with_bystander();
    for number in 0..5 {
        meta.transact(|tx| tx.journal(0, JournalOp::Reclaim { ino: number })).expect("commits");
    }
    meta.transact(|tx| tx.delete::<Journal>(&3).map(drop)).expect("commits");
    spoil::<Journal>(&meta, &5);
    assert_mended(&meta, Issue::JournalBroken, "the journal");
    let mut rows = Vec::new();
    let note = |seq, row: JournalRow| {
        rows.push((seq, row.operation));
        Ok(())
    };
    meta.view(|view| scan::rows::<Journal>(view, note)).expect("reads");
    assert_eq!(rows.len(), 6, "{rows:#?}");
    assert!(rows.iter().enumerate().all(|(at, (seq, _))| at as u64 == *seq));
    let JournalOp::Repair { issue, what } = &rows[5].1 else { panic!("{:?}", rows[5]) };
    assert_eq!(issue, b"row-undecodable");
    assert!(String::from_utf8_lossy(what).contains("1 could not be read"), "{}", String::from_utf8_lossy(what));
    // What is done after it fits.
    meta.transact(|tx| tx.journal(0, JournalOp::Reclaim { ino: 9 })).expect("commits");
    assert!(findings_of(&meta).1.clean);
}

#[test]
fn a_dispute_over_blocks_is_settled_by_what_is_in_them() {
    let meta = with_bystander();
    meta.transact(|tx| {
        // The bystander's first shard is where another stripe says to have its own.
        let mut row = tx.get::<Stripes>(&STRIPE)?.expect("a stripe");
        row.placements[0].block = BlockNo(601);
        tx.put::<Stripes>(&STRIPE, &row)
    })
    .expect("commits");
    struct First;
    impl crate::check::repair::Devices for First {
        fn holds(&self, id: StripeId, _: &StripeRow, at: usize) -> Option<bool> {
            Some(id == OTHER_STRIPE || at > 0)
        }
        fn find(&self, _: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>> {
            Ok(BTreeMap::new())
        }
        fn missing(&self) -> usize {
            0
        }
    }
    let mut done = Vec::new();
    let last = loop {
        let mut round = round(&meta, &context(), &First, [5; 32], KEPT, &mut |_| {}).expect("repairs");
        if round.done.is_empty() {
            break round;
        }
        done.append(&mut round.done);
    };
    assert!(last.is_clean(), "did {done:#?}, left {:#?}", last.findings.listed());
    meta.view(|view| {
        let row = view.get::<Stripes>(&STRIPE)?.expect("a stripe");
        assert_eq!((row.placements[0], row.state), (Placement::NONE, StripeState::Degraded));
        assert_eq!(view.get::<Stripes>(&OTHER_STRIPE)?.map(|row| row.state), Some(StripeState::Whole));
        Ok(())
    })
    .expect("reads");
}

/// The stripe may be on the devices that are missing: its content and blocks are not given up.
#[test]
fn nothing_is_given_up_while_devices_are_missing() {
    struct Lacking(usize);
    impl crate::check::repair::Devices for Lacking {
        fn holds(&self, _: StripeId, _: &StripeRow, _: usize) -> Option<bool> {
            None
        }
        fn find(&self, _: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>> {
            Ok(BTreeMap::new())
        }
        fn missing(&self) -> usize {
            self.0
        }
    }
    let meta = with_bystander();
    meta.transact(|tx| tx.delete::<Stripes>(&STRIPE)).expect("commits");
    let before = meta.committed();
    let why = round(&meta, &context(), &Lacking(1), [5; 32], KEPT, &mut |_| {}).expect_err("is put off").to_string();
    assert!(why.contains("1 stripes") && why.contains("1 devices are missing"), "{why}");
    assert_eq!(meta.committed(), before);
    assert!(!round(&meta, &context(), &Lacking(0), [5; 32], KEPT, &mut |_| {}).expect("repairs").done.is_empty());
}

/// However many rounds it takes, and the counts last of all.
#[test]
fn all_that_has_no_name_gets_one() {
    let meta = healthy();
    let files = 60;
    meta.transact(|tx| {
        (0..files).try_for_each(|at| tx.put::<Inodes>(&Ino(100 + at), &inode(0o100_600, 1)))?;
        tx.set_counter(Counter::NextIno, 100 + files)
    })
    .expect("commits");
    name_all(&meta, 5, 1).expect("names");
    let (findings, report) = findings_of(&meta);
    assert!(report.clean, "{:?}", findings.listed());
    assert_eq!(path_of(&meta, Ino(100)), "/lost+found/#100");
    assert_eq!(path_of(&meta, Ino(100 + files - 1)), format!("/lost+found/#{}", 100 + files - 1));
}

#[test]
fn rounds_that_go_round_in_circles_end() {
    let action = |id| {
        let fix = Fix::DropIntent { id };
        Action { id: "", what: String::new(), will: String::new(), loses: false, names: Paths::default(), fix }
    };
    let mut rounds = Rounds::default();
    assert!(!rounds.go_on(&[]));
    for done in [&[1, 2][..], &[2], &[1], &[12]] {
        assert!(rounds.go_on(&done.iter().map(|id| action(*id)).collect::<Vec<_>>()), "{done:?}");
    }
    assert!(!rounds.go_on(&[action(1), action(2)]));
}
