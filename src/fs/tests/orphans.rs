use super::*;
use crate::base::file::{SetAttr, XattrSet};

#[test]
fn an_unlinked_inode_lives_until_its_last_reference() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    rig.lookup(&USER, ROOT, b"f").unwrap();
    rig.set_xattr(&USER, file, b"user.x", &[5; 5000], XattrSet::Any, false).unwrap();
    rig.unlink(&USER, ROOT, b"f").unwrap();
    rig.reclaim_all().unwrap();
    assert_eq!(rig.rows(), [2, 0, 5, 1]);
    rig.setattr(&USER, file, &SetAttr { size: Some(77), ..SetAttr::default() }).unwrap();
    assert_eq!((rig.attr(file).nlink, rig.attr(file).size), (0, 77));
    refused!(rig.link(&USER, file, ROOT, b"back"), NotFound);
    rig.forget(file, 1);
    rig.reclaim_all().unwrap();
    assert_eq!(rig.attr(file).nlink, 0, "one reference is left");
    rig.forget(file, 1);
    assert!(rig.wait_for_orphans(std::time::Duration::ZERO));
    let rows = rig.journal();
    rig.reclaim_all().unwrap();
    assert!(!rig.wait_for_orphans(std::time::Duration::ZERO));
    assert_eq!(rig.rows(), [1, 0, 0, 0]);
    assert_eq!(rig.journal(), rows + 1);
    refused!(rig.getattr(file), Stale);
    refused!(rig.find(file, b"."), Stale);
}

#[test]
fn orphans_of_an_earlier_life_are_reclaimed_after_mount() {
    let rig = Rig::new();
    for number in 0..300u32 {
        let name = number.to_string().into_bytes();
        rig.file(ROOT, &name);
        rig.unlink(&USER, ROOT, &name).unwrap();
    }
    let kept = rig.file(ROOT, b"kept").attr;
    let dir = rig.dir(ROOT, b"d").attr.ino;
    rig.rmdir(&USER, ROOT, b"d").unwrap();
    assert_eq!(rig.rows()[3], 301);
    let rig = rig.remount();
    refused!(rig.find(dir, b"."), Stale);
    assert!(rig.wait_for_orphans(std::time::Duration::ZERO));
    rig.reclaim_all().unwrap();
    assert_eq!(rig.rows(), [2, 1, 0, 0]);
    assert_eq!(rig.find(ROOT, b"kept").unwrap(), kept);
}

#[test]
fn files_made_without_a_name_can_be_given_one() {
    let rig = Rig::new();
    let file = rig.one_transaction(|fs| fs.tmpfile(&USER, ROOT, 0o666)).attr;
    assert_eq!((file.nlink, file.mode), (0, 0o100_644));
    assert_eq!(rig.rows(), [2, 0, 0, 1]);
    let linked = rig.one_transaction(|fs| fs.link(&USER, file.ino, ROOT, b"named")).attr;
    assert_eq!((linked.nlink, linked.ino, rig.rows()), (1, file.ino, [2, 1, 0, 0]));
    rig.unlink(&USER, ROOT, b"named").unwrap();
    refused!(rig.link(&USER, file.ino, ROOT, b"again"), NotFound);
    let kept = rig.tmpfile(&USER, ROOT, 0o600).unwrap().attr.ino;
    for number in 0..1000u32 {
        // Nothing of it stays in memory.
        rig.file(ROOT, number.to_string().as_bytes());
        rig.unlink(&USER, ROOT, number.to_string().as_bytes()).unwrap();
    }
    rig.link(&USER, kept, ROOT, b"kept").unwrap();
    rig.unlink(&USER, ROOT, b"kept").unwrap();
    let unnamed = rig.tmpfile(&USER, ROOT, 0o600).unwrap().attr.ino;
    rig.forget_all();
    rig.reclaim_all().unwrap();
    assert_eq!(rig.rows(), [1, 0, 0, 0]);
    refused!(rig.getattr(unnamed), Stale);
}

#[test]
fn forgetting_an_inode_with_names_keeps_it() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr;
    rig.forget(file.ino, 1);
    rig.forget(file.ino, 1);
    rig.reclaim_all().unwrap();
    assert_eq!(rig.attr(file.ino), file);
}

#[test]
fn one_damaged_orphan_does_not_keep_the_others() {
    let rig = Rig::new();
    rig.reclaim_all().unwrap();
    let mut inodes = Vec::new();
    for name in [b"a", b"b", b"c"] {
        inodes.push(rig.file(ROOT, name).attr.ino);
        rig.unlink(&USER, ROOT, name).unwrap();
    }
    // Content in a stripe that does not exist.
    rig.mutate(|change| {
        let slot = change.load(inodes[1])?;
        let run = crate::format::rows::Run::plain(crate::base::StripeId(99), 0, 4096);
        let body = crate::format::rows::ExtentBody::Run(run);
        let row = crate::format::rows::ExtentRow { length: 4096, birth: change.tx.id(), body };
        crate::store::extents::insert(change.tx, inodes[1], 0, &row, change.ledger)?;
        let row = change.row_mut(slot);
        (row.size, row.content) = (4096, 4096);
        Ok(())
    })
    .unwrap();
    rig.forget_all();
    refused!(rig.reclaim_all(), Corrupt(_));
    rig.reclaim_all().unwrap();
    assert_eq!(rig.rows(), [2, 0, 0, 1]);
    assert_eq!(rig.attr(inodes[1]).nlink, 0);
}

#[test]
fn a_deleted_inode_stays_deleted_for_readers_with_an_older_view() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let held = rig.inodes.state(file);
    let row = rig.shown(file).unwrap();
    rig.unlink(&USER, ROOT, b"f").unwrap();
    rig.forget_all();
    rig.reclaim_all().unwrap();
    // What such a reader sees.
    let name = crate::format::rows::DentryRow { ino: file, kind: 8, birth: row.birth, name: b"f".to_vec() };
    let key = crate::format::rows::DentryKey { parent: ROOT, cookie: 12345 };
    rig.store()
        .transact(|tx, _| {
            tx.put::<Dentries>(&key, &name)?;
            tx.put::<Inodes>(&file, &row)
        })
        .unwrap();
    refused!(rig.getattr(file), Stale);
    let mut listed = 0;
    rig.readdir_plus(ROOT, 2, &mut |_, entry| {
        assert!(entry.is_none());
        listed += 1;
        Sink::Taken
    })
    .unwrap();
    assert_eq!(listed, 1);
    drop(held);
}
