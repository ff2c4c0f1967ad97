use zerocopy::IntoBytes;

use super::*;
use crate::base::Prng;

const EXT: Dialect = Dialect { setxattr_ext: true };

fn message(opcode: u32, parts: &[&[u8]]) -> Vec<u8> {
    let len = size_of::<abi::InHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
    let header =
        abi::InHeader { len: len as u32, opcode, unique: 7, nodeid: 42, uid: 1, gid: 2, pid: 3, ..Default::default() };
    let mut bytes = header.as_bytes().to_vec();
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

fn parsed(bytes: &[u8]) -> Operation<'_> {
    let request = Request::parse(bytes, EXT).expect("parses");
    assert_eq!((request.header.unique, request.header.ino, request.header.uid), (7, Ino(42), 1));
    request.operation
}

fn refused(bytes: &[u8]) -> Malformed {
    Request::parse(bytes, EXT).expect_err("is refused")
}

/// One well-formed request of every operation with arguments.
fn samples() -> Vec<Vec<u8>> {
    let forget = abi::ForgetOne { nodeid: 5, nlookup: 6 };
    vec![
        message(op::INIT, &[abi::InitIn { major: 7, minor: 45, ..Default::default() }.as_bytes()]),
        message(op::LOOKUP, &[b"name\0"]),
        message(op::FORGET, &[&3u64.to_ne_bytes()]),
        message(
            op::BATCH_FORGET,
            &[abi::BatchForgetIn { count: 2, dummy: 0 }.as_bytes(), forget.as_bytes(), forget.as_bytes()],
        ),
        message(op::SETATTR, &[abi::SetAttrIn { valid: !0, mtimensec: 5, ..Default::default() }.as_bytes()]),
        message(op::SYMLINK, &[b"name\0target\0"]),
        message(op::MKNOD, &[abi::MknodIn { mode: 1, rdev: 2, umask: 3, padding: 0 }.as_bytes(), b"name\0"]),
        message(op::MKDIR, &[abi::MkdirIn { mode: 1, umask: 2 }.as_bytes(), b"name\0"]),
        message(op::RENAME, &[abi::RenameIn { newdir: 9 }.as_bytes(), b"old\0new\0"]),
        message(op::RENAME2, &[abi::Rename2In { newdir: 9, flags: 1, padding: 0 }.as_bytes(), b"old\0new\0"]),
        message(op::LINK, &[abi::LinkIn { oldnodeid: 9 }.as_bytes(), b"new\0"]),
        message(op::TMPFILE, &[abi::CreateIn::default().as_bytes()]),
        message(op::READ, &[abi::ReadIn { offset: 4096, size: 10, ..Default::default() }.as_bytes()]),
        message(op::READDIRPLUS, &[abi::ReadIn { offset: 3, size: 4096, ..Default::default() }.as_bytes()]),
        message(op::WRITE, &[abi::WriteIn { offset: 1, size: 4, ..Default::default() }.as_bytes(), b"data"]),
        message(op::FSYNC, &[abi::FsyncIn { fsync_flags: 1, ..Default::default() }.as_bytes()]),
        message(op::GETXATTR, &[abi::GetxattrIn { size: 9, padding: 0 }.as_bytes(), b"user.a\0"]),
        message(op::SETXATTR, &[abi::SetxattrIn { size: 3, ..Default::default() }.as_bytes(), b"user.a\0val"]),
        message(
            op::LSEEK,
            &[abi::LseekIn { offset: 1, whence: libc::SEEK_DATA as u32, ..Default::default() }.as_bytes()],
        ),
        message(op::FALLOCATE, &[abi::FallocateIn { offset: 1, length: 2, ..Default::default() }.as_bytes()]),
        message(op::COPY_FILE_RANGE, &[abi::CopyFileRangeIn { len: 5, ..Default::default() }.as_bytes()]),
        message(op::COPY_FILE_RANGE_64, &[abi::CopyFileRangeIn { len: u64::MAX, ..Default::default() }.as_bytes()]),
    ]
}

#[test]
fn requests_carry_what_the_kernel_put_in() {
    assert_eq!(parsed(&message(op::LOOKUP, &[b"a\xff\0"])), Operation::Lookup { name: b"a\xff" });
    assert_eq!(parsed(&message(op::LOOKUP, &[b"..\0"])), Operation::Lookup { name: b".." });
    assert_eq!(parsed(&message(op::SYMLINK, &[b"name\0a/b\0"])), Operation::Symlink { name: b"name", target: b"a/b" });
    let rename = abi::Rename2In { newdir: 9, flags: libc::RENAME_EXCHANGE, padding: 0 };
    assert_eq!(
        parsed(&message(op::RENAME2, &[rename.as_bytes(), b"old\0new\0"])),
        Operation::Rename { name: b"old", new_parent: Ino(9), new_name: b"new", flags: libc::RENAME_EXCHANGE }
    );
    let write = abi::WriteIn { offset: 77, size: 4, write_flags: abi::WRITE_KILL_SUIDGID, ..Default::default() };
    assert_eq!(
        parsed(&message(op::WRITE, &[write.as_bytes(), b"data"])),
        Operation::Write { offset: 77, data: b"data", kill_suidgid: true }
    );
    let samples = samples();
    let Operation::BatchForget(forgets) = parsed(&samples[3]) else { panic!("a batch of forgets") };
    assert_eq!(forgets.iter().collect::<Vec<_>>(), [(Ino(5), 6), (Ino(5), 6)]);
    assert_eq!(parsed(&message(op::OPEN, &[&[0; 8]])), Operation::Declined);
    assert_eq!(parsed(&message(9999, &[])), Operation::Declined);
}

#[test]
fn only_marked_attributes_change() {
    let raw = abi::SetAttrIn {
        valid: fattr::MODE | fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW | fattr::KILL_SUIDGID,
        mode: 0o100_644,
        atime: (-5i64) as u64,
        atimensec: 8,
        mtime: 99,
        size: u64::MAX,
        mtimensec: u32::MAX,
        ..Default::default()
    };
    let expected = SetAttr {
        mode: Some(0o100_644),
        atime: Some(SetTime::At(Timestamp { seconds: -5, nanos: 8 })),
        mtime: Some(SetTime::Now),
        kill_suidgid: true,
        ..SetAttr::default()
    };
    assert_eq!(parsed(&message(op::SETATTR, &[raw.as_bytes()])), Operation::SetAttr(expected));
    let late = abi::SetAttrIn { valid: fattr::ATIME, atimensec: 1_000_000_000, ..Default::default() };
    refused(&message(op::SETATTR, &[late.as_bytes()]));
}

#[test]
fn both_layouts_of_setxattr_are_read() {
    let long = abi::SetxattrIn { size: 3, flags: 1, setxattr_flags: abi::SETXATTR_ACL_KILL_SGID, padding: 0 };
    let bytes = message(op::SETXATTR, &[long.as_bytes(), b"user.a\0val"]);
    let expected = Operation::SetXattr { name: b"user.a", value: b"val", flags: 1, kill_sgid: KillSgid::Yes };
    assert_eq!(parsed(&bytes), expected);
    let short = message(op::SETXATTR, &[&3u32.to_ne_bytes(), &1u32.to_ne_bytes(), b"user.a\0val"]);
    let request = Request::parse(&short, Dialect { setxattr_ext: false }).expect("parses");
    let expected = Operation::SetXattr { name: b"user.a", value: b"val", flags: 1, kill_sgid: KillSgid::Untold };
    assert_eq!(request.operation, expected);
}

#[test]
fn nonsense_is_refused_by_number() {
    for (opcode, body) in [
        (op::LOOKUP, &b"no end"[..]),
        (op::LOOKUP, b"\0"),
        (op::LOOKUP, b"a/b\0"),
        (op::UNLINK, b"..\0"),
        (op::SYMLINK, b"name\0"),
        (op::RENAME, b"\x01\0\0\0\0\0\0\0only one\0"),
        (op::SETATTR, b"short"),
    ] {
        assert_eq!(refused(&message(opcode, &[body])).unique, Some(7));
    }
    let write = abi::WriteIn { size: 5, ..Default::default() };
    refused(&message(op::WRITE, &[write.as_bytes(), b"data"]));
    let batch = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
    assert_eq!(refused(&message(op::BATCH_FORGET, &[batch.as_bytes()])).unique, None, "forgets are never answered");
    let far = abi::ReadIn { offset: u64::MAX - 5, size: 10, ..Default::default() };
    refused(&message(op::READ, &[far.as_bytes()]));
    let mut longer_than_read = message(op::LOOKUP, &[b"name\0"]);
    longer_than_read.truncate(42);
    refused(&longer_than_read);
    assert_eq!(refused(&[1, 2, 3]).unique, None);
    let mut extended = message(op::LOOKUP, &[b"name\0", &[9; 8]]);
    extended[36] = 1;
    assert_eq!(parsed(&extended), Operation::Lookup { name: b"name" });
    extended[36] = 200;
    refused(&extended);
}

/// P5: whatever arrives, parsing ends, borrows within the input and keeps the promises of the module.
#[test]
fn hostile_bytes_never_panic() {
    let seed = 20_261_122;
    let mut random = Prng::new(seed);
    let samples = samples();
    let mut accepted = 0;
    for round in 0..400_000 {
        let mut bytes = samples[random.below(samples.len() as u64) as usize].clone();
        for _ in 0..random.below(6) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = if random.chance(1, 3) { 0xff } else { random.next() as u8 };
        }
        if random.chance(1, 4) {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        if random.chance(1, 3)
            && let Some(opcode) = bytes.get_mut(4)
        {
            *opcode = random.below(60) as u8;
        }
        let dialect = Dialect { setxattr_ext: random.chance(1, 2) };
        let Ok(request) = Request::parse(&bytes, dialect) else { continue };
        accepted += 1;
        match request.operation {
            Operation::Unlink { name } | Operation::MkDir { name, .. } | Operation::MkNod { name, .. } => {
                assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0), "seed {seed} round {round}");
                assert!(name != b"." && name != b"..", "seed {seed} round {round}");
            }
            Operation::Write { offset, data, .. } => {
                assert!(offset.checked_add(data.len() as u64).is_some_and(|end| end <= 1 << 63));
                assert!(data.len() < bytes.len());
            }
            Operation::CopyFileRange { from_offset, to_offset, length, .. } => {
                assert!(from_offset.max(to_offset) + length <= 1 << 63, "seed {seed} round {round}");
            }
            Operation::BatchForget(forgets) => assert!(forgets.iter().count() * 16 <= bytes.len()),
            _ => {}
        }
    }
    assert!(accepted > 50_000, "the mutations should leave many requests intact, not {accepted}");
}
