use super::*;
use crate::base::file::{RenameMode, SetAttr};
use crate::format::rows::{FLAG_APPEND, FLAG_IMMUTABLE};
use crate::fs::dentry::NameHasher;
use crate::fs::namespace::LINK_MAX;

#[test]
fn everything_that_is_made_can_be_found_and_is_one_transaction() {
    let rig = Rig::new();
    let now = rig.now();
    let dir = rig.one_transaction(|fs| fs.mkdir(&USER, ROOT, b"dir", 0o777)).attr;
    assert_eq!((dir.mode, dir.nlink, dir.uid, dir.gid), (0o40_755, 2, 1000, 100));
    assert_eq!([dir.atime, dir.mtime, dir.ctime, dir.btime], [now; 4]);
    let root = rig.attr(ROOT);
    assert_eq!((root.nlink, root.mtime, root.ctime), (3, now, now));
    assert!(root.btime < now);

    let file = rig.one_transaction(|fs| fs.mknod(&USER, dir.ino, b"file", 0o100_666, 7)).attr;
    assert_eq!((file.mode, file.nlink, file.rdev, file.size), (0o100_644, 1, 0, 0), "only device nodes have a number");
    let node = rig.one_transaction(|fs| fs.mknod(&ADMIN, dir.ino, b"node", 0o060_600, 0x801)).attr;
    assert_eq!((node.mode, node.rdev), (0o060_600, 0x801));
    let fifo = rig.one_transaction(|fs| fs.mknod(&USER, dir.ino, b"fifo", 0o010_600, 0)).attr;
    assert_eq!(fifo.kind(), FileType::Fifo);
    let target = vec![b't'; 4095];
    let link = rig.one_transaction(|fs| fs.symlink(&USER, dir.ino, b"link", &target)).attr;
    assert_eq!((link.mode, link.size), (0o120_777, 4095));
    assert_eq!(rig.readlink(link.ino).unwrap(), target);
    refused!(rig.readlink(file.ino), Invalid(_));

    for (name, attr) in [(&b"file"[..], file), (b"node", node), (b"fifo", fifo), (b"link", link)] {
        assert_eq!(rig.find(dir.ino, name).unwrap(), attr);
        assert_eq!(rig.attr(attr.ino), attr);
    }
    assert_eq!(rig.find(dir.ino, b"..").unwrap().ino, ROOT);
    assert_eq!(rig.find(file.ino, b".").unwrap().ino, file.ino, "an NFS handle of a file");
    assert_eq!(rig.find(ROOT, b"..").unwrap().ino, ROOT);
    let rig = rig.remount();
    assert_eq!(rig.find(dir.ino, b"link").unwrap(), link);
    assert_eq!(rig.attr(dir.ino).nlink, 2, "only subdirectories count");
}

#[test]
fn wrong_names_and_parents_are_refused_without_a_trace() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"file").attr.ino;
    let before = (rig.rows(), rig.attr(ROOT), rig.journal());
    rig.now();
    refused!(rig.find(ROOT, &[b'x'; 256]), NameTooLong);
    refused!(rig.find(ROOT, b"nothing"), NotFound);
    refused!(rig.find(file, b"x"), NotDirectory);
    refused!(rig.find(Ino(12345), b"x"), Stale);
    refused!(rig.getattr(Ino(12345)), Stale);
    refused!(rig.mkdir(&USER, ROOT, &[b'x'; 256], 0), NameTooLong);
    refused!(rig.mkdir(&USER, ROOT, b".", 0), Exists);
    refused!(rig.mkdir(&USER, ROOT, b"file", 0), Exists);
    refused!(rig.mkdir(&USER, file, b"x", 0), NotDirectory);
    refused!(rig.mknod(&USER, ROOT, b"x", 0o040_755, 0), Invalid(_));
    refused!(rig.symlink(&USER, ROOT, b"x", &[b't'; 4096]), NameTooLong);
    refused!(rig.unlink(&USER, ROOT, b"nothing"), NotFound);
    refused!(rig.unlink(&USER, ROOT, b"."), Invalid(_));
    refused!(rig.rmdir(&USER, ROOT, b"file"), NotDirectory);
    refused!(rig.link(&USER, ROOT, ROOT, b"x"), NotPermitted);
    refused!(rig.link(&USER, file, ROOT, b"file"), Exists);
    assert_eq!((rig.rows(), rig.attr(ROOT), rig.journal()), before);
    let name = [0xff; 255];
    let longest = rig.file(ROOT, &name).attr;
    assert_eq!(rig.find(ROOT, &name).unwrap(), longest);
}

#[test]
fn names_with_equal_hashes_live_together() {
    let mut rig = Rig::new();
    rig.fs.names = NameHasher::colliding([9; 32], 1);
    let names: Vec<Vec<u8>> = (0..100u32).map(|n| n.to_string().into_bytes()).collect();
    let inodes: Vec<Ino> = names.iter().map(|name| rig.file(ROOT, name).attr.ino).collect();
    for name in names.iter().step_by(3) {
        rig.unlink(&USER, ROOT, name).unwrap();
    }
    for (at, name) in names.iter().enumerate() {
        match rig.find(ROOT, name) {
            Ok(attr) => assert!(at % 3 != 0 && attr.ino == inodes[at]),
            Err(_) => assert!(at % 3 == 0),
        }
    }
    let again = rig.file(ROOT, b"0").attr.ino;
    assert_eq!(rig.find(ROOT, b"0").unwrap().ino, again);
    rig.rename(&USER, ROOT, b"1", ROOT, b"2", RenameMode::Replace).unwrap();
    assert_eq!(rig.find(ROOT, b"2").unwrap().ino, inodes[1]);
    let mut listed = rig.names(ROOT);
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 66);
    // 253 names with hash 0 (cookies 0 to 2 are not names) and 256 with hash 1, then it is full.
    let refused = (1000..3000u32).find_map(|n| rig.mknod(&USER, ROOT, n.to_string().as_bytes(), 0o100_600, 0).err());
    assert!(matches!(refused, Some(Error::NoSpace)), "{refused:?}");
    assert!(rig.names(ROOT).len() > 250);
}

#[test]
fn links_count_and_the_limit_holds() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"a").attr;
    let dir = rig.dir(ROOT, b"d").attr.ino;
    let now = rig.now();
    let linked = rig.one_transaction(|fs| fs.link(&USER, file.ino, dir, b"b")).attr;
    assert_eq!((linked.ino, linked.nlink, linked.ctime, linked.mtime), (file.ino, 2, now, file.mtime));
    assert_eq!(rig.attr(dir).mtime, now);
    rig.one_transaction(|fs| fs.unlink(&USER, ROOT, b"a"));
    assert_eq!(rig.attr(file.ino).nlink, 1);
    assert_eq!(rig.find(dir, b"b").unwrap().ino, file.ino);
    let limit = |ino, nlink| {
        rig.mutate(|change| {
            let slot = change.load(ino)?;
            change.row_mut(slot).nlink = nlink;
            Ok(())
        })
        .unwrap();
    };
    limit(file.ino, LINK_MAX);
    refused!(rig.link(&USER, file.ino, ROOT, b"c"), TooManyLinks);
    limit(dir, LINK_MAX);
    refused!(rig.mkdir(&USER, dir, b"c", 0o700), TooManyLinks);
    rig.dir(ROOT, b"e");
    refused!(rig.rename(&USER, ROOT, b"e", dir, b"e", RenameMode::Replace), TooManyLinks);
    assert_eq!(rig.attr(dir).nlink, LINK_MAX, "a refused change was published");
}

#[test]
fn rmdir_wants_an_empty_directory_and_leaves_a_dead_one() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    rig.file(dir, b"f");
    refused!(rig.rmdir(&USER, ROOT, b"d"), NotEmpty);
    refused!(rig.unlink(&USER, ROOT, b"d"), IsDirectory);
    rig.unlink(&USER, dir, b"f").unwrap();
    rig.one_transaction(|fs| fs.rmdir(&USER, ROOT, b"d"));
    assert_eq!((rig.attr(dir).nlink, rig.attr(ROOT).nlink), (0, 2));
    refused!(rig.mkdir(&USER, dir, b"x", 0o700), NotFound);
    refused!(rig.rename(&USER, ROOT, b"d", dir, b"x", RenameMode::Replace), NotFound);
    assert!(rig.names(dir).is_empty());
}

#[test]
fn rename_moves_replaces_and_keeps_counts() {
    let rig = Rig::new();
    let (a, b) = (rig.dir(ROOT, b"a").attr.ino, rig.dir(ROOT, b"b").attr.ino);
    let file = rig.file(a, b"f").attr;
    let now = rig.now();
    rig.one_transaction(|fs| fs.rename(&USER, a, b"f", b, b"g", RenameMode::Replace));
    let moved = rig.find(b, b"g").unwrap();
    assert_eq!((moved.ino, moved.ctime, moved.mtime), (file.ino, now, file.mtime));
    refused!(rig.find(a, b"f"), NotFound);
    assert_eq!((rig.attr(a).mtime, rig.attr(b).mtime), (now, now));

    let victim = rig.file(b, b"h").attr.ino;
    rig.rename(&USER, b, b"g", b, b"h", RenameMode::Replace).unwrap();
    assert_eq!((rig.attr(victim).nlink, rig.names(b)), (0, vec![b"h".to_vec()]));

    let sub = rig.dir(a, b"sub").attr.ino;
    rig.rename(&USER, a, b"sub", b, b"sub", RenameMode::Replace).unwrap();
    assert_eq!((rig.attr(a).nlink, rig.attr(b).nlink), (2, 3));
    assert_eq!(rig.find(sub, b"..").unwrap().ino, b);
    refused!(rig.rename(&USER, ROOT, b"a", b, b"h", RenameMode::Replace), NotDirectory);
    refused!(rig.rename(&USER, b, b"h", ROOT, b"a", RenameMode::Replace), IsDirectory);
    refused!(rig.rename(&USER, ROOT, b"a", ROOT, b"b", RenameMode::Replace), NotEmpty);
    rig.rename(&USER, ROOT, b"a", b, b"sub", RenameMode::Replace).unwrap();
    assert_eq!((rig.attr(ROOT).nlink, rig.attr(b).nlink, rig.attr(sub).nlink), (3, 3, 0));

    let rows = rig.journal();
    rig.link(&USER, file.ino, ROOT, b"other").unwrap();
    rig.rename(&USER, ROOT, b"other", b, b"h", RenameMode::Replace).unwrap();
    assert_eq!(rig.attr(file.ino).nlink, 2, "two names of one file stay");
    assert_eq!(rig.journal(), rows + 1);
    refused!(rig.rename(&USER, ROOT, b"other", b, b"sub", RenameMode::NoReplace), Exists);
    refused!(rig.rename(&USER, ROOT, b"other", b, b"none", RenameMode::Exchange), NotFound);
}

#[test]
fn rename_exchanges_files_and_directories() {
    let rig = Rig::new();
    let (a, b) = (rig.dir(ROOT, b"a").attr.ino, rig.dir(ROOT, b"b").attr.ino);
    let file = rig.file(a, b"f").attr.ino;
    let sub = rig.dir(b, b"s").attr.ino;
    rig.one_transaction(|fs| fs.rename(&USER, a, b"f", b, b"s", RenameMode::Exchange));
    assert_eq!((rig.find(a, b"f").unwrap().ino, rig.find(b, b"s").unwrap().ino), (sub, file));
    assert_eq!((rig.attr(a).nlink, rig.attr(b).nlink), (3, 2));
    assert_eq!(rig.find(sub, b"..").unwrap().ino, a);
    let kinds = |dir| {
        let mut kinds = Vec::new();
        rig.readdir(dir, 2, &mut |entry| {
            kinds.push(entry.kind);
            Sink::Taken
        })
        .unwrap();
        kinds
    };
    assert_eq!((kinds(a), kinds(b)), (vec![FileType::Directory], vec![FileType::Regular]));
}

#[test]
fn a_directory_never_moves_below_itself() {
    let rig = Rig::new();
    let a = rig.dir(ROOT, b"a").attr.ino;
    let b = rig.dir(a, b"b").attr.ino;
    let c = rig.dir(b, b"c").attr.ino;
    refused!(rig.rename(&USER, ROOT, b"a", a, b"x", RenameMode::Replace), Invalid(_));
    refused!(rig.rename(&USER, ROOT, b"a", c, b"x", RenameMode::Replace), Invalid(_));
    refused!(rig.rename(&USER, b, b"c", ROOT, b"a", RenameMode::Replace), NotEmpty);
    refused!(rig.rename(&USER, ROOT, b"a", b, b"c", RenameMode::Exchange), Invalid(_));
    refused!(rig.rename(&USER, b, b"c", ROOT, b"a", RenameMode::Exchange), Invalid(_));
    rig.rename(&USER, a, b"b", ROOT, b"b", RenameMode::Replace).unwrap();
    rig.rename(&USER, ROOT, b"a", c, b"a", RenameMode::Replace).unwrap();
    assert_eq!(rig.find(a, b"..").unwrap().ino, c);
}

#[test]
fn set_group_id_directories_hand_down_their_group() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    rig.setattr(&ADMIN, dir, &SetAttr { gid: Some(7), mode: Some(0o2775), ..SetAttr::default() }).unwrap();
    assert_eq!(rig.file(dir, b"f").attr.gid, 7);
    let sub = rig.dir(dir, b"s").attr;
    assert_eq!((sub.gid, sub.mode), (7, 0o42_755));
}

#[test]
fn immutable_and_append_only_inodes_keep_their_names() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    let file = rig.file(dir, b"f").attr.ino;
    refused!(rig.set_flags(&USER, file, FLAG_IMMUTABLE), NotPermitted);
    rig.set_flags(&ADMIN, file, FLAG_IMMUTABLE).unwrap();
    refused!(rig.unlink(&ADMIN, dir, b"f"), NotPermitted);
    refused!(rig.link(&ADMIN, file, ROOT, b"x"), NotPermitted);
    refused!(rig.rename(&ADMIN, dir, b"f", ROOT, b"x", RenameMode::Replace), NotPermitted);
    rig.file(ROOT, b"y");
    refused!(rig.rename(&ADMIN, ROOT, b"y", dir, b"f", RenameMode::Replace), NotPermitted);
    refused!(rig.setattr(&ADMIN, file, &SetAttr { mode: Some(0), ..SetAttr::default() }), NotPermitted);
    rig.set_flags(&ADMIN, file, 0).unwrap();
    rig.set_flags(&ADMIN, dir, FLAG_APPEND).unwrap();
    assert_eq!(rig.flags(dir).unwrap(), FLAG_APPEND);
    rig.file(dir, b"more");
    refused!(rig.unlink(&ADMIN, dir, b"f"), NotPermitted);
    refused!(rig.rename(&ADMIN, dir, b"f", ROOT, b"x", RenameMode::Replace), NotPermitted);
    refused!(rig.rename(&ADMIN, ROOT, b"y", dir, b"f", RenameMode::Replace), NotPermitted);
    rig.rename(&ADMIN, ROOT, b"y", dir, b"new", RenameMode::Replace).unwrap();
    rig.set_flags(&ADMIN, dir, FLAG_IMMUTABLE).unwrap();
    refused!(rig.mknod(&ADMIN, dir, b"z", 0o100_600, 0), NotPermitted);
}

#[test]
fn node_ids_of_an_earlier_epoch_are_stale() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    rig.store().transact(|tx, _| tx.set_counter(Counter::LiveEpoch, 3)).unwrap();
    let rig = rig.remount();
    refused!(rig.getattr(file), Stale);
    let found = rig.find(ROOT, b"f").unwrap().ino;
    assert_eq!(found, Ino(3 << 48 | file.0));
    assert_eq!(rig.attr(found).ino, found);
    assert_eq!(rig.attr(ROOT).ino, ROOT);
}

#[test]
fn a_name_without_an_inode_is_damage() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    rig.store().transact(|tx, _| tx.delete::<Inodes>(&file).map(drop)).unwrap();
    let rig = rig.remount();
    refused!(rig.find(ROOT, b"f"), Corrupt(_));
    refused!(rig.unlink(&USER, ROOT, b"f"), Corrupt(_));
}

#[test]
fn a_read_only_filesystem_changes_nothing() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let Rig { clock, fs } = rig;
    let store = fs.store().clone();
    let rig = Rig { clock, fs: Fs::open(store, Options { read_only: true, ..Options::default() }).unwrap() };
    let committed = rig.store().meta().committed();
    rig.now();
    rig.names(ROOT);
    refused!(rig.mkdir(&ADMIN, ROOT, b"d", 0o700), ReadOnly);
    refused!(rig.setattr(&ADMIN, file, &SetAttr::default()), ReadOnly);
    rig.syncfs().unwrap();
    rig.reclaim_step().unwrap();
    assert_eq!(rig.store().meta().committed(), committed);
}
