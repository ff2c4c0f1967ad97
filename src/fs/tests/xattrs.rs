use super::*;
use crate::base::file::{SetAttr, XattrSet};

fn set(rig: &Rig, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    rig.set_xattr(&ADMIN, ino, name, value, XattrSet::Any, false)
}

fn get(rig: &Rig, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
    rig.get_xattr(&ADMIN, ino, name)
}

#[test]
fn values_of_every_size_come_back_and_leave_nothing_behind() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr;
    refused!(get(&rig, file.ino, b"user.a"), NoAttribute);
    assert!(rig.list_xattr(&ADMIN, file.ino).unwrap().is_empty());
    for size in [0, 1, 999, 1000, 1001, 65_536, 2000, 5] {
        let value: Vec<u8> = (0..size).map(|at: u32| at as u8 ^ 0x5a).collect();
        let now = rig.now();
        rig.one_transaction(|fs| fs.set_xattr(&ADMIN, file.ino, b"user.a", &value, XattrSet::Any, false));
        assert_eq!(get(&rig, file.ino, b"user.a").unwrap(), value);
        assert_eq!(rig.rows()[2], value.len().div_ceil(1000).max(1));
        assert_eq!((rig.attr(file.ino).ctime, rig.attr(file.ino).mtime), (now, file.mtime));
    }
    refused!(set(&rig, file.ino, b"user.b", &vec![0; 65_537]), TooBig);
    set(&rig, file.ino, b"user.aa", b"2").unwrap();
    set(&rig, file.ino, b"trusted.t", b"3").unwrap();
    assert_eq!(rig.list_xattr(&ADMIN, file.ino).unwrap(), b"trusted.t\0user.a\0user.aa\0");
    assert_eq!(rig.list_xattr(&USER, file.ino).unwrap(), b"user.a\0user.aa\0");
    let rig = rig.remount();
    assert_eq!(get(&rig, file.ino, b"user.a").unwrap().len(), 5);
    for name in [&b"user.a"[..], b"trusted.t", b"user.aa"] {
        rig.one_transaction(|fs| fs.remove_xattr(&ADMIN, file.ino, name));
        refused!(rig.remove_xattr(&ADMIN, file.ino, name), NoAttribute);
    }
    assert_eq!(rig.rows()[2], 0);
    assert_eq!(rig.shown(file.ino).unwrap().flags, 0, "asking costs nothing again");
}

/// Nor is it in the way of the others.
#[test]
fn what_nobody_can_ask_for_is_not_listed() {
    use crate::base::TxnId;
    use crate::format::rows::{XattrKey, XattrRow};
    use crate::format::table::Xattrs;

    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    set(&rig, file, b"user.a", b"1").unwrap();
    for name in [&b"other.x"[..], b"user.", b"x", &[b"user.".as_slice(), &[b'n'; 251]].concat()] {
        let row = XattrRow { total: 1, birth: TxnId(1), value: vec![1] };
        let key = XattrKey { ino: file, name: name.to_vec(), piece: 0 };
        rig.store().transact(|tx, _| tx.put::<Xattrs>(&key, &row)).unwrap();
    }
    assert_eq!(rig.list_xattr(&ADMIN, file).unwrap(), b"user.a\0");
}

#[test]
fn create_and_replace_say_what_they_expect() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let set = |set| rig.set_xattr(&USER, file, b"user.a", b"v", set, false);
    refused!(set(XattrSet::Replace), NoAttribute);
    set(XattrSet::Create).unwrap();
    refused!(set(XattrSet::Create), Exists);
    set(XattrSet::Replace).unwrap();
}

#[test]
fn namespaces_have_their_rules() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let link = rig.symlink(&USER, ROOT, b"l", b"t").unwrap().attr.ino;
    let fifo = rig.mknod(&USER, ROOT, b"p", 0o010_600, 0).unwrap().attr.ino;
    refused!(set(&rig, file, b"other.x", b""), Unsupported);
    refused!(set(&rig, file, b"system.nothing", b""), Unsupported);
    refused!(get(&rig, file, b"plain"), Unsupported);
    refused!(set(&rig, file, b"user.", b""), Invalid(_));
    refused!(set(&rig, link, b"user.x", b""), NotPermitted);
    refused!(set(&rig, fifo, b"user.x", b""), NotPermitted);
    set(&rig, link, b"trusted.x", b"1").unwrap();
    set(&rig, fifo, b"security.selinux", b"label").unwrap();
    assert_eq!(get(&rig, fifo, b"security.selinux").unwrap(), b"label");
    let long = [b"user.".as_slice(), &[b'n'; 250]].concat();
    set(&rig, file, &long, b"").unwrap();
    refused!(set(&rig, file, &[long.as_slice(), b"n"].concat(), b""), Range);
}

#[test]
fn the_list_of_names_fits_one_answer() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let refused = (0..1000).find(|number| {
        let name = format!("user.{number:0250}");
        matches!(set(&rig, file, name.as_bytes(), b""), Err(Error::NoSpace))
    });
    assert_eq!(refused, Some(256), "64 KiB of names of 256 bytes each");
    assert_eq!(rig.list_xattr(&ADMIN, file).unwrap().len(), 65_536);
    rig.unlink(&USER, ROOT, b"f").unwrap();
    rig.forget_all();
    rig.reclaim_all().unwrap();
    assert_eq!(rig.rows(), [1, 0, 0, 0]);
}

/// An ACL as the kernel hands it over: (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const NONE: u32 = u32::MAX;

fn chmod(rig: &Rig, ino: Ino, mode: u32) -> u32 {
    rig.setattr(&ADMIN, ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap().mode
}

#[test]
fn an_access_acl_and_the_mode_follow_each_other() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    chmod(&rig, file, 0o2640);
    let full = acl(&[(1, 7, NONE), (2, 6, 1000), (4, 4, NONE), (16, 6, NONE), (32, 1, NONE)]);
    set(&rig, file, ACCESS, &full).unwrap();
    assert_eq!(rig.attr(file).mode, 0o102_761, "the group bits are the mask");
    assert_eq!(get(&rig, file, ACCESS).unwrap(), full);
    chmod(&rig, file, 0o640);
    let narrowed = acl(&[(1, 6, NONE), (2, 6, 1000), (4, 4, NONE), (16, 4, NONE), (32, 0, NONE)]);
    assert_eq!(get(&rig, file, ACCESS).unwrap(), narrowed, "chmod changes mask, not the owning group");
    chmod(&rig, file, 0o2777);
    rig.set_xattr(&USER, file, ACCESS, &full, XattrSet::Any, true).unwrap();
    assert_eq!(rig.attr(file).mode, 0o100_761, "who is outside the group loses set-group-id");
    let minimal = acl(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]);
    set(&rig, file, ACCESS, &minimal).unwrap();
    assert_eq!(rig.attr(file).mode, 0o100_644);
    refused!(get(&rig, file, ACCESS), NoAttribute);
    assert_eq!(rig.rows()[2], 0);
    set(&rig, file, ACCESS, &full).unwrap();
    set(&rig, file, ACCESS, &acl(&[])).unwrap();
    refused!(get(&rig, file, ACCESS), NoAttribute);
    assert_eq!(rig.attr(file).mode, 0o100_761);
}

#[test]
fn malformed_acls_are_refused() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"f").attr.ino;
    let good = acl(&[(1, 7, NONE), (4, 4, NONE), (32, 1, NONE)]);
    for bad in [
        vec![],
        good[..3].to_vec(),
        good[..good.len() - 1].to_vec(),
        acl(&[(1, 7, NONE), (4, 4, NONE)]),
        acl(&[(1, 8, NONE), (4, 4, NONE), (32, 1, NONE)]),
        acl(&[(1, 7, NONE), (1, 7, NONE), (4, 4, NONE), (32, 1, NONE)]),
        acl(&[(4, 4, NONE), (1, 7, NONE), (32, 1, NONE)]),
        acl(&[(1, 7, NONE), (2, 6, 5), (4, 4, NONE), (32, 1, NONE)]),
        acl(&[(1, 7, NONE), (2, 6, NONE), (4, 4, NONE), (16, 7, NONE), (32, 1, NONE)]),
        acl(&[(1, 7, NONE), (4, 4, NONE), (64, 1, NONE)]),
    ] {
        refused!(set(&rig, file, ACCESS, &bad), Invalid(_));
    }
    let newer = [&3u32.to_le_bytes()[..], &good[4..]].concat();
    refused!(set(&rig, file, ACCESS, &newer), Unsupported);
    refused!(set(&rig, file, DEFAULT, &good), Access);
    let link = rig.symlink(&USER, ROOT, b"l", b"t").unwrap().attr.ino;
    refused!(set(&rig, link, ACCESS, &good), Unsupported);
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    let default = acl(&[(1, 7, NONE), (2, 7, 5), (4, 5, NONE), (16, 7, NONE), (32, 5, NONE)]);
    set(&rig, dir, DEFAULT, &default).unwrap();
    assert_eq!(rig.attr(dir).mode, 0o40_755, "a default ACL says nothing about the directory itself");
    let strict = Caller { umask: 0o077, ..USER };
    let file = rig.mknod(&strict, dir, b"f", 0o100_666, 0).unwrap().attr;
    assert_eq!(file.mode, 0o100_664);
    let access = acl(&[(1, 6, NONE), (2, 7, 5), (4, 5, NONE), (16, 6, NONE), (32, 4, NONE)]);
    assert_eq!(get(&rig, file.ino, ACCESS).unwrap(), access);
    refused!(get(&rig, file.ino, DEFAULT), NoAttribute);
    let sub = rig.mkdir(&strict, dir, b"s", 0o700).unwrap().attr;
    assert_eq!(sub.mode, 0o40_700);
    assert_eq!(get(&rig, sub.ino, DEFAULT).unwrap(), default, "handed on unchanged");
    let temporary = rig.tmpfile(&strict, dir, 0o600).unwrap().attr;
    assert!(get(&rig, temporary.ino, ACCESS).is_ok());
    let link = rig.symlink(&strict, dir, b"l", b"t").unwrap().attr;
    assert_eq!(link.mode, 0o120_777);
    refused!(get(&rig, link.ino, ACCESS), NoAttribute);
    // A default ACL that says no more than a mode leaves no access ACL.
    set(&rig, dir, DEFAULT, &acl(&[(1, 7, NONE), (4, 5, NONE), (32, 0, NONE)])).unwrap();
    let plain = rig.mknod(&strict, dir, b"g", 0o100_666, 0).unwrap().attr;
    assert_eq!(plain.mode, 0o100_640);
    refused!(get(&rig, plain.ino, ACCESS), NoAttribute);
}
