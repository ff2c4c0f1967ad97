use super::*;
use crate::base::file::{AccessTime, SetAttr, SetTime, XattrSet};
use crate::format::rows::{ExtentBody, ExtentRow, FLAG_APPEND, FLAG_IMMUTABLE};
use crate::store::extents;

const CAPABILITY: &[u8] = b"security.capability";

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 123_456_789 }
}

#[test]
fn setattr_changes_what_is_asked_and_the_change_time() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr;
    let now = rig.now();
    let changes = SetAttr { mode: Some(0o100_640), ..SetAttr::default() };
    let attr = rig.one_transaction(|fs| fs.setattr(&USER, file.ino, &changes));
    assert_eq!((attr.mode, attr.ctime, attr.mtime, attr.atime), (0o100_640, now, file.mtime, file.atime));
    let now = rig.now();
    let times = SetAttr { atime: Some(SetTime::At(at(-5))), mtime: Some(SetTime::Now), ..SetAttr::default() };
    let attr = rig.setattr(&USER, file.ino, &times).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (at(-5), now, now));
    let kept = SetAttr { mtime: Some(SetTime::At(at(9))), ctime: Some(at(10)), ..SetAttr::default() };
    let attr = rig.setattr(&USER, file.ino, &kept).unwrap();
    assert_eq!((attr.mtime, attr.ctime), (at(9), at(10)));
    assert_eq!(rig.attr(file.ino), attr);
    let rig = rig.remount();
    assert_eq!(rig.attr(file.ino), attr);
    assert_eq!(rig.attr(file.ino).btime, file.btime);
}

#[test]
fn changing_the_owner_strips_privileges_of_files() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let reset = |mode| {
        rig.setattr(&ADMIN, file, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
        rig.set_xattr(&ADMIN, file, CAPABILITY, b"cap", XattrSet::Any, false).unwrap();
    };
    let set = |changes: SetAttr| rig.setattr(&ADMIN, file, &changes).unwrap().mode & 0o7777;
    reset(0o6755);
    assert_eq!(set(SetAttr { uid: Some(5), ..SetAttr::default() }), 0o755);
    refused!(rig.get_xattr(&ADMIN, file, CAPABILITY), NoAttribute);
    reset(0o6745);
    assert_eq!(set(SetAttr { gid: Some(5), ..SetAttr::default() }), 0o2745, "mandatory locking is no privilege");
    reset(0o6755);
    assert_eq!(set(SetAttr::default()), 0o755, "chown to nobody in particular");
    reset(0o6755);
    let touch = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert_eq!(set(touch), 0o6755);
    assert_eq!(rig.get_xattr(&ADMIN, file, CAPABILITY).unwrap(), b"cap");
    assert_eq!(set(SetAttr { size: Some(10), ..SetAttr::default() }), 0o6755, "the superuser keeps them");
    refused!(rig.get_xattr(&ADMIN, file, CAPABILITY), NoAttribute);
    reset(0o6755);
    assert_eq!(set(SetAttr { size: Some(10), kill_suidgid: true, ..SetAttr::default() }), 0o755);
    let dir = rig.dir(ROOT, b"d").attr.ino;
    rig.setattr(&ADMIN, dir, &SetAttr { mode: Some(0o7755), ..SetAttr::default() }).unwrap();
    let owned = rig.setattr(&ADMIN, dir, &SetAttr { uid: Some(1), gid: Some(2), ..SetAttr::default() }).unwrap();
    assert_eq!((owned.mode, owned.uid, owned.gid), (0o47_755, 1, 2), "directories keep theirs");
}

#[test]
fn truncating_changes_size_content_and_times() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    rig.mutate(|change| {
        let slot = change.load(file)?;
        let row = ExtentRow { length: 1000, birth: change.tx.id(), body: ExtentBody::Inline(vec![7; 1000]) };
        extents::insert(change.tx, file, 0, &row, change.ledger)?;
        let row = change.row_mut(slot);
        (row.size, row.content) = (1000, 1000);
        Ok(())
    })
    .unwrap();
    assert_eq!(rig.attr(file).blocks512, 2);
    let now = rig.now();
    let resize = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let attr = rig.one_transaction(|fs| fs.setattr(&USER, file, &resize(400)));
    assert_eq!((attr.size, attr.blocks512, attr.mtime, attr.ctime), (400, 1, now, now));
    rig.setattr(&USER, file, &resize(2000)).unwrap();
    let mut content = vec![1; 2000];
    rig.store().read(file, 0, &mut content).unwrap();
    assert!(content[..400].iter().all(|byte| *byte == 7) && content[400..].iter().all(|byte| *byte == 0));
    let now = rig.now();
    assert_eq!(rig.setattr(&USER, file, &resize(2000)).unwrap().mtime, now, "the same size counts too");
    let attr = rig.setattr(&USER, file, &resize(i64::MAX as u64)).unwrap();
    assert_eq!(attr.size, i64::MAX as u64);
    refused!(rig.setattr(&USER, file, &resize(i64::MAX as u64 + 1)), FileTooLarge);
    refused!(rig.setattr(&USER, ROOT, &resize(0)), IsDirectory);
    let link = rig.symlink(&USER, ROOT, b"l", b"t").unwrap().attr.ino;
    refused!(rig.setattr(&USER, link, &resize(0)), Invalid(_));
}

#[test]
fn immutable_and_append_only_inodes_keep_their_attributes() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let touch = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    let set_time = SetAttr { mtime: Some(SetTime::At(at(1))), ..SetAttr::default() };
    rig.set_flags(&ADMIN, file, FLAG_APPEND).unwrap();
    rig.setattr(&ADMIN, file, &touch).unwrap();
    refused!(rig.setattr(&ADMIN, file, &set_time), NotPermitted);
    refused!(rig.setattr(&ADMIN, file, &SetAttr { size: Some(0), ..SetAttr::default() }), NotPermitted);
    refused!(rig.set_xattr(&ADMIN, file, b"user.x", b"", XattrSet::Any, false), NotPermitted);
    rig.set_flags(&ADMIN, file, FLAG_IMMUTABLE).unwrap();
    refused!(rig.setattr(&ADMIN, file, &touch), NotPermitted);
    refused!(rig.remove_xattr(&ADMIN, file, b"user.x"), NotPermitted);
}

#[test]
fn access_times_follow_the_options_and_are_written_lazily() {
    let rig = Rig::new();
    let link = rig.symlink(&USER, ROOT, b"l", b"target").unwrap().attr;
    let now = rig.now();
    let committed = rig.store().meta().committed();
    rig.readlink(link.ino).unwrap();
    assert_eq!(rig.attr(link.ino).atime, now);
    rig.now();
    rig.readlink(link.ino).unwrap();
    assert_eq!(rig.attr(link.ino).atime, now, "later than the last change and not a day old");
    assert_eq!(rig.store().meta().committed(), committed, "reading committed something");
    let stored = |rig: &Rig| rig.store().view(|view| view.get::<Inodes>(&link.ino)).unwrap().unwrap().atime;
    assert_eq!(stored(&rig), link.atime);
    rig.syncfs().unwrap();
    assert_eq!(stored(&rig), now);

    // A change of something else takes the pending time with it.
    rig.clock.advance_ns(86_400_000_000_000);
    let later = rig.now();
    rig.readlink(link.ino).unwrap();
    rig.setattr(&USER, link.ino, &SetAttr { uid: Some(3), ..SetAttr::default() }).unwrap();
    assert_eq!((rig.attr(link.ino).atime, stored(&rig)), (later, later));

    let rig = Rig::with(Options { access_time: AccessTime::Never, ..Options::default() });
    let link = rig.symlink(&USER, ROOT, b"l", b"target").unwrap().attr;
    rig.now();
    rig.readlink(link.ino).unwrap();
    rig.names(ROOT);
    assert_eq!(rig.attr(link.ino).atime, link.atime);
}

#[test]
fn a_hot_inode_is_answered_from_memory() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr;
    // Behind the filesystem's back, so that whoever reads the table sees it.
    let sabotage = |tx: &mut crate::meta::Tx<'_>| {
        let mut row = tx.get::<Inodes>(&file.ino)?.unwrap();
        row.uid = 4242;
        tx.put::<Inodes>(&file.ino, &row)
    };
    rig.store().transact(|tx, _| sabotage(tx)).unwrap();
    assert_eq!(rig.attr(file.ino), file);
    assert_eq!(rig.remount().attr(file.ino).uid, 4242);
}

#[test]
fn statfs_counts_inodes_and_space() {
    let rig = Rig::new();
    let before = rig.statfs().unwrap();
    rig.file(ROOT, b"f");
    let after = rig.statfs().unwrap();
    assert_eq!(after.files - after.files_free, 2);
    assert_eq!((before.files - before.files_free, before.block_size), (1, 4096));
    assert_eq!(after.blocks, (1 << 30) / 4096);
    assert!(after.blocks_available <= after.blocks_free && after.blocks_free <= after.blocks);
}
