//! Attributes, extended attributes and what changes them on the side.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::{USER, as_user, c_path, check, errno, fresh_stat, mounted, mounted_with};

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> std::io::Result<i64> {
    let (path, name) = (c_path(path), c_path(name.as_ref()));
    // SAFETY: both texts are NUL-terminated, the value is as long as is said.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

fn get_xattr(path: &Path, name: &str, room: usize) -> std::io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), c_path(name.as_ref()));
    let mut value = vec![0u8; room];
    // SAFETY: both texts are NUL-terminated, the buffer is as long as is said.
    let len = check(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) } as i64)?;
    if room > 0 {
        value.truncate(len as usize);
        return Ok(value);
    }
    Ok(vec![0; len as usize])
}

/// `u::rw-,u:USER:r--,g::---,m::r--,o::---` as the kernel takes it.
fn acl_for_user() -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [tag.to_le_bytes().as_slice(), &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let nobody = u32::MAX;
    [
        2u32.to_le_bytes().to_vec(),
        entry(0x01, 6, nobody),
        entry(0x02, 4, USER),
        entry(0x04, 0, nobody),
        entry(0x10, 4, nobody),
        entry(0x20, 0, nobody),
    ]
    .concat()
}

#[test]
fn modes_owners_and_times_are_set() {
    mounted(|m| {
        let path = m.path("file");
        let file = File::create(&path).expect("create");
        fs::set_permissions(&path, Permissions::from_mode(0o6751)).expect("chmod");
        assert_eq!(fs::metadata(&path).expect("stat").mode(), libc::S_IFREG | 0o6751);
        chown(&path, Some(12), Some(34)).expect("chown");
        let found = fs::metadata(&path).expect("stat");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (12, 34, 0o751), "set-id bits go with the owner");
        let (past, future) = (
            SystemTime::UNIX_EPOCH - Duration::from_millis(1500),
            SystemTime::UNIX_EPOCH + Duration::from_nanos(5_000_000_000_123_456_789),
        );
        file.set_times(FileTimes::new().set_accessed(past).set_modified(future)).expect("utimens");
        let found = fresh_stat(&path).expect("stat");
        assert_eq!((found.stx_atime.tv_sec, found.stx_atime.tv_nsec), (-2, 500_000_000));
        assert_eq!((found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec), (5_000_000_000, 123_456_789));
        let before = found.stx_mtime.tv_sec;
        // SAFETY: the path is NUL-terminated; no times means now.
        check(unsafe { libc::utimensat(libc::AT_FDCWD, c_path(&path).as_ptr(), std::ptr::null(), 0) }).expect("touch");
        assert!(fresh_stat(&path).expect("stat").stx_mtime.tv_sec < before);
    });
}

#[test]
fn statx_tells_the_birth() {
    mounted(|m| {
        let path = m.path("file");
        fs::write(&path, "x").expect("write");
        let born = fresh_stat(&path).expect("statx");
        assert_ne!(born.stx_mask & libc::STATX_BTIME, 0, "the birth time is told");
        assert!(born.stx_btime.tv_sec > 1_600_000_000);
        assert!(fs::metadata(&path).expect("stat").created().is_ok());
        std::thread::sleep(Duration::from_millis(2));
        fs::write(&path, "y").expect("write");
        let later = fresh_stat(&path).expect("statx");
        let birth = |stat: &rustix::fs::Statx| (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        assert_eq!(birth(&later), birth(&born));
        assert_ne!((later.stx_mtime.tv_sec, later.stx_mtime.tv_nsec), birth(&born));
    });
}

#[test]
fn special_files_keep_their_kind_and_number() {
    mounted(|m| {
        let make = |name: &str, mode, device| {
            // SAFETY: the path is NUL-terminated.
            check(unsafe { libc::mknod(c_path(&m.path(name)).as_ptr(), mode, device) }).expect("mknod");
            fs::symlink_metadata(m.path(name)).expect("stat")
        };
        assert!(make("fifo", libc::S_IFIFO | 0o600, 0).file_type().is_fifo());
        let null = make("null", libc::S_IFCHR | 0o666, libc::makedev(1, 3));
        assert!(null.file_type().is_char_device() && null.rdev() == libc::makedev(1, 3));
        fs::write(m.path("null"), "gone").expect("device nodes work: the mount is not nodev");
        let disk = make("disk", libc::S_IFBLK | 0o600, libc::makedev(259, 70_000));
        assert!(disk.file_type().is_block_device() && disk.rdev() == libc::makedev(259, 70_000));
        std::os::unix::net::UnixListener::bind(m.path("socket")).expect("bind");
        assert!(fs::symlink_metadata(m.path("socket")).expect("stat").file_type().is_socket());
    });
}

#[test]
fn umask_is_left_to_the_filesystem() {
    mounted(|m| {
        let path = m.path("file");
        let script = "umask 027; : > \"$0\"; mkdir \"$0.d\"";
        let make = || std::process::Command::new("sh").arg("-c").arg(script).arg(&path).status();
        let made = make();
        assert!(made.expect("sh").success());
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o640);
        assert_eq!(fs::metadata(m.path("file.d")).expect("stat").mode() & 0o777, 0o750);
        set_xattr(m.root, "system.posix_acl_default", &acl_for_user(), 0).expect("set a default ACL");
        fs::remove_file(&path).expect("unlink");
        fs::remove_dir(m.path("file.d")).expect("rmdir");
        let made = make();
        assert!(made.expect("sh").success());
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o666, "here it does not apply");
        assert_eq!(fs::metadata(m.path("file.d")).expect("stat").mode() & 0o777, 0o777);
    });
}

#[test]
fn extended_attributes_come_and_go() {
    mounted(|m| {
        let path = m.path("file");
        File::create(&path).expect("create");
        assert_eq!(errno(get_xattr(&path, "user.a", 10)), libc::ENODATA);
        set_xattr(&path, "user.a", b"first", libc::XATTR_CREATE).expect("create");
        assert_eq!(errno(set_xattr(&path, "user.a", b"", libc::XATTR_CREATE)), libc::EEXIST);
        assert_eq!(errno(set_xattr(&path, "user.b", b"", libc::XATTR_REPLACE)), libc::ENODATA);
        set_xattr(&path, "user.a", b"second", libc::XATTR_REPLACE).expect("replace");
        assert_eq!(get_xattr(&path, "user.a", 0).expect("size").len(), 6);
        assert_eq!(errno(get_xattr(&path, "user.a", 5)), libc::ERANGE);
        assert_eq!(get_xattr(&path, "user.a", 6).expect("value"), b"second");
        let large: Vec<u8> = (0..65536u32).map(|at| (at / 5) as u8).collect();
        set_xattr(&path, "trusted.large", &large, 0).expect("64 KiB");
        assert!(get_xattr(&path, "trusted.large", 65536).expect("value") == large);
        let mut names = vec![0u8; 100];
        // SAFETY: the path is NUL-terminated, the buffer is as long as is said.
        let len = check(unsafe { libc::listxattr(c_path(&path).as_ptr(), names.as_mut_ptr().cast(), 100) } as i64)
            .expect("list");
        assert_eq!(&names[..len as usize], b"trusted.large\0user.a\0");
        // SAFETY: both texts are NUL-terminated.
        let remove = || check(unsafe { libc::removexattr(c_path(&path).as_ptr(), c"user.a".as_ptr()) });
        remove().expect("remove");
        assert_eq!(errno(remove()), libc::ENODATA);
    });
}

#[test]
fn writes_strip_set_id_bits_and_ask_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let hook = move |what, _| {
        counter.fetch_add(usize::from(what == "getxattr"), Ordering::SeqCst);
        Ok(())
    };
    mounted_with(
        Some(Box::new(hook)),
        |_| {},
        |m| {
            let path = m.path("program");
            let reset = || {
                fs::write(&path, "code").expect("write");
                fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("chmod");
            };
            let mode = || fresh_stat(&path).expect("stat").stx_mode & 0o7777;
            reset();
            let file = OpenOptions::new().write(true).open(&path).expect("open");
            file.write_all_at(b"x", 0).expect("write");
            assert_eq!(mode(), 0o6777, "root keeps them");
            as_user(|| OpenOptions::new().append(true).open(&path).expect("open").write_all(b"y").expect("write"));
            assert_eq!(mode(), 0o777, "a user's write strips them");
            reset();
            as_user(|| OpenOptions::new().write(true).open(&path).expect("open").set_len(1).expect("truncate"));
            assert_eq!(mode(), 0o777, "so does a user's truncate");
            reset();
            as_user(|| {
                let file = OpenOptions::new().write(true).open(&path).expect("open");
                // SAFETY: the descriptor is open through the call.
                check(unsafe { libc::fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, 100) })
                    .expect("fallocate");
            });
            assert_eq!(mode(), 0o777, "and a user's fallocate");
            asked.store(0, Ordering::SeqCst);
            for at in 0..100 {
                file.write_all_at(b"x", at).expect("write");
            }
            assert!(asked.load(Ordering::SeqCst) <= 1, "writes are not preceded by questions for capabilities");
        },
    );
}

#[test]
fn permissions_are_the_kernels_with_our_acls() {
    mounted(|m| {
        let path = m.path("secret");
        fs::write(&path, "x").expect("write");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
        assert_eq!(as_user(|| errno(fs::read(&path))), libc::EACCES);
        let acl = acl_for_user();
        set_xattr(&path, "system.posix_acl_access", &acl, 0).expect("set the ACL");
        assert_eq!(as_user(|| fs::read(&path)).expect("the ACL lets the user in"), b"x");
        assert_eq!(as_user(|| errno(OpenOptions::new().write(true).open(&path))), libc::EACCES);

        let own = m.path("own");
        File::create(&own).expect("create");
        chown(&own, Some(USER), Some(0)).expect("chown");
        fs::set_permissions(&own, Permissions::from_mode(0o2770)).expect("chmod");
        as_user(|| set_xattr(&own, "system.posix_acl_access", &acl, 0)).expect("set the ACL");
        assert_eq!(fresh_stat(&own).expect("stat").stx_mode & 0o2000, 0, "a stranger to the group loses set-group-id");
        fs::set_permissions(&own, Permissions::from_mode(0o2770)).expect("chmod");
        set_xattr(&own, "system.posix_acl_access", &acl, 0).expect("set the ACL");
        assert_eq!(fresh_stat(&own).expect("stat").stx_mode & 0o2000, 0o2000, "root keeps it");
    });
}

#[test]
fn space_is_told() {
    mounted(|m| {
        let stat = rustix::fs::statvfs(m.root).expect("statvfs");
        assert_eq!((stat.f_bsize, stat.f_blocks, stat.f_bfree, stat.f_bavail), (4096, 1 << 28, 1 << 27, 1 << 26));
        assert_eq!((stat.f_namemax, stat.f_ffree), (255, 1_000_000));
    });
}
