//! Names and contents.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{c_path, check, errno, fresh_stat, mounted, mounted_with};

fn rw() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

#[test]
fn files_are_made_read_written_and_removed() {
    mounted(|m| {
        let path = m.path("file");
        let mut file = rw().create_new(true).open(&path).expect("create");
        file.write_all(b"hello world").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"hello world");
        assert_eq!(errno(rw().create_new(true).open(&path)), libc::EEXIST);
        OpenOptions::new().append(true).open(&path).expect("open").write_all(b"!").expect("append");
        assert_eq!(fs::read(&path).expect("read"), b"hello world!");
        drop(OpenOptions::new().write(true).truncate(true).open(&path).expect("truncating open"));
        assert_eq!(fresh_stat(&path).expect("stat").stx_size, 0, "a truncating open reaches the filesystem");
        file.set_len(3).expect("extend");
        assert_eq!(fs::read(&path).expect("read"), [0, 0, 0]);
        file.sync_all().expect("fsync");
        file.sync_data().expect("fdatasync");

        fs::hard_link(&path, m.path("second")).expect("link");
        assert_eq!(fresh_stat(&path).expect("stat").stx_nlink, 2);
        fs::remove_file(&path).expect("unlink");
        assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
        fs::remove_file(m.path("second")).expect("unlink");
        file.write_all_at(b"still here", 0).expect("write without a name");
        file.seek(SeekFrom::Start(0)).expect("seek");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read without a name");
        assert_eq!(text, "still here");
        assert_eq!(m.fs.inodes(), 2, "the open file lives");
        drop(file);
        // The reference comes back after the last close, on its own time.
        while m.fs.inodes() > 1 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn directories_list_every_entry_once() {
    mounted(|m| {
        let many = m.path("many");
        fs::create_dir(&many).expect("mkdir");
        for number in 0..3000 {
            File::create(many.join(format!("an entry with a rather long name, number {number}"))).expect("create");
        }
        for _ in 0..2 {
            let names: Vec<_> = many.read_dir().expect("list").map(|entry| entry.expect("entry").file_name()).collect();
            assert_eq!(names.len(), 3000);
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3000);
        }
        assert_eq!(errno(fs::remove_dir(&many)), libc::ENOTEMPTY);
        for entry in many.read_dir().expect("list") {
            fs::remove_file(entry.expect("entry").path()).expect("unlink while listing");
        }
        assert_eq!(fresh_stat(m.root).expect("stat").stx_nlink, 3);
        fs::remove_dir(&many).expect("rmdir");
        assert_eq!(fresh_stat(m.root).expect("stat").stx_nlink, 2);
        while m.fs.inodes() > 1 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn names_may_be_any_255_bytes() {
    mounted(|m| {
        let long: Vec<u8> =
            (0..255u32).map(|at| (at % 251 + 1) as u8).map(|b| if b == b'/' { 0xff } else { b }).collect();
        let path = m.path(OsStr::from_bytes(&long));
        File::create(&path).expect("create");
        let listed = m.root.read_dir().expect("list").next().expect("one").expect("entry").file_name();
        assert_eq!(listed.as_bytes(), long);
        let longer = [long.as_slice(), b"x"].concat();
        assert_eq!(errno(File::create(m.path(OsStr::from_bytes(&longer)))), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::metadata(m.path(OsStr::from_bytes(&longer)))), libc::ENAMETOOLONG);
        symlink(OsStr::from_bytes(b"anywhere/\xfe\xff"), m.path("link")).expect("symlink");
        assert_eq!(fs::read_link(m.path("link")).expect("readlink").as_os_str().as_bytes(), b"anywhere/\xfe\xff");
        assert_eq!(fs::symlink_metadata(m.path("link")).expect("lstat").len(), 11);
    });
}

#[test]
fn renames_replace_refuse_or_exchange() {
    mounted(|m| {
        let rename = |from: &str, to: &str, flags: u32| {
            let (from, to) = (c_path(&m.path(from)), c_path(&m.path(to)));
            // SAFETY: both are NUL-terminated paths that live through the call.
            check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
        };
        fs::write(m.path("a"), "a").expect("write");
        fs::write(m.path("b"), "b").expect("write");
        fs::create_dir(m.path("dir")).expect("mkdir");
        assert_eq!(errno(rename("a", "b", libc::RENAME_NOREPLACE)), libc::EEXIST);
        rename("a", "c", libc::RENAME_NOREPLACE).expect("a free name");
        rename("c", "b", libc::RENAME_EXCHANGE).expect("exchange");
        assert_eq!(fs::read(m.path("b")).expect("read"), b"a");
        assert_eq!(fs::read(m.path("c")).expect("read"), b"b");
        assert_eq!(errno(rename("b", "missing", libc::RENAME_EXCHANGE)), libc::ENOENT);
        rename("b", "dir", libc::RENAME_EXCHANGE).expect("a file and a directory");
        assert!(m.path("b").is_dir() && m.path("dir").is_file());
        assert_eq!(errno(rename("b", "x", libc::RENAME_WHITEOUT)), libc::EINVAL);
        rename("dir", "b/inside", 0).expect("into the directory");
        rename("c", "b/inside", 0).expect("replace");
        assert_eq!(fs::read(m.path("b/inside")).expect("read"), b"b");
        assert_eq!(errno(rename("b", "b/itself", 0)), libc::EINVAL);
    });
}

#[test]
fn unnamed_files_get_a_name_later() {
    mounted(|m| {
        let temporary = || rw().custom_flags(libc::O_TMPFILE).mode(0o640).open(m.root).expect("O_TMPFILE");
        let mut file = temporary();
        file.write_all(b"from nowhere").expect("write");
        assert_eq!(file.metadata().expect("stat").nlink(), 0);
        let source = c_path(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref());
        let target = c_path(&m.path("named"));
        let flags = libc::AT_SYMLINK_FOLLOW;
        // SAFETY: both are NUL-terminated paths that live through the call.
        check(unsafe { libc::linkat(libc::AT_FDCWD, source.as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags) })
            .expect("linkat");
        assert_eq!(fs::read(m.path("named")).expect("read"), b"from nowhere");
        let found = fs::metadata(m.path("named")).expect("stat");
        assert_eq!((found.nlink(), found.mode() & 0o777), (1, 0o640));
        drop(temporary());
        while m.fs.inodes() > 2 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_mebibyte_is_one_request() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let hook = move |what, _| {
        counter.fetch_add(usize::from(matches!(what, "read" | "write")), Ordering::SeqCst);
        Ok(())
    };
    mounted_with(
        Some(Box::new(hook)),
        |_| {},
        |m| {
            // One page more, to start at a page boundary as O_DIRECT wants it.
            let mut memory = vec![0u8; (1 << 20) + 4096];
            let start = memory.as_ptr().align_offset(4096);
            let data = &mut memory[start..start + (1 << 20)];
            for (at, byte) in data.iter_mut().enumerate() {
                *byte = (at * 7 + at / 4096) as u8;
            }
            let file = rw().create(true).truncate(false).custom_flags(libc::O_DIRECT).open(m.path("x")).expect("open");
            requests.store(0, Ordering::SeqCst);
            assert_eq!(file.write_at(data, 0).expect("write"), 1 << 20);
            assert_eq!(requests.swap(0, Ordering::SeqCst), 1);
            let expected = data.to_vec();
            data.fill(0);
            assert_eq!(file.read_at(data, 0).expect("read"), 1 << 20);
            assert_eq!(requests.swap(0, Ordering::SeqCst), 1);
            assert!(data == expected.as_slice(), "what comes back is what went in");
            let buffered = rw().open(m.path("x")).expect("open");
            buffered.write_all_at(&expected[..999_999], 5).expect("unaligned");
            assert!(requests.load(Ordering::SeqCst) <= 2, "buffered writes are not cut up");
            let mut back = vec![0; 999_999];
            buffered.read_exact_at(&mut back, 5).expect("read");
            assert!(back == expected[..999_999]);
            assert_eq!(fs::metadata(m.path("x")).expect("stat").len(), 1 << 20);
        },
    );
}

#[test]
fn holes_are_made_found_and_kept() {
    mounted(|m| {
        let file = rw().create(true).truncate(false).open(m.path("sparse")).expect("open");
        let allocate = |mode, offset, len| {
            // SAFETY: the descriptor is open through the call.
            check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
        };
        let seek = |offset, whence| {
            // SAFETY: the descriptor is open through the call.
            check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
        };
        file.write_all_at(&[1; 65536], 1 << 20).expect("write");
        assert_eq!(seek(0, libc::SEEK_DATA).expect("data"), 1 << 20);
        assert_eq!(seek(1 << 20, libc::SEEK_HOLE).expect("the end"), (1 << 20) + 65536);
        assert_eq!(errno(seek(2 << 20, libc::SEEK_DATA)), libc::ENXIO);
        allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, (1 << 20) + 4096, 8192).expect("punch");
        assert_eq!(seek(1 << 20, libc::SEEK_HOLE).expect("hole"), (1 << 20) + 4096);
        let mut byte = [9];
        file.read_exact_at(&mut byte, (1 << 20) + 5000).expect("read");
        assert_eq!(byte, [0], "the punched range reads as zeros from the cache, too");
        allocate(libc::FALLOC_FL_ZERO_RANGE, 1 << 20, 10).expect("zero");
        file.read_exact_at(&mut byte, 1 << 20).expect("read");
        assert_eq!(byte, [0]);
        allocate(0, 0, 3 << 20).expect("extend");
        assert_eq!(file.metadata().expect("stat").len(), 3 << 20);
        allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 9 << 20).expect("keep the size");
        assert_eq!(file.metadata().expect("stat").len(), 3 << 20);
        assert_eq!(errno(allocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)), libc::EOPNOTSUPP);
    });
}

#[test]
fn ranges_are_copied_inside_the_filesystem() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let hook = move |what, _| {
        counter.fetch_add(usize::from(matches!(what, "read" | "write")), Ordering::SeqCst);
        Ok(())
    };
    mounted_with(
        Some(Box::new(hook)),
        |_| {},
        |m| {
            let data: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3) as u8).collect();
            fs::write(m.path("from"), &data).expect("write");
            let (from, to) = (
                File::open(m.path("from")).expect("open"),
                rw().create(true).truncate(false).open(m.path("to")).expect("open"),
            );
            requests.store(0, Ordering::SeqCst);
            let (mut from_offset, mut to_offset) = (1_000i64, 500i64);
            // SAFETY: both descriptors and both offsets live through the call.
            let copied = check(unsafe {
                libc::copy_file_range(
                    from.as_raw_fd(),
                    &raw mut from_offset,
                    to.as_raw_fd(),
                    &raw mut to_offset,
                    9_000_000,
                    0,
                )
            } as i64)
            .expect("copy");
            assert_eq!(copied, 2_999_000, "up to the end of the source");
            assert_eq!(requests.load(Ordering::SeqCst), 0, "no byte came through here");
            let mut back = vec![0; 2_999_500];
            to.read_exact_at(&mut back, 0).expect("read");
            assert!(back[..500].iter().all(|byte| *byte == 0) && back[500..] == data[1000..]);
        },
    );
}

#[test]
fn shared_mappings_reach_the_filesystem() {
    for writeback in [false, true] {
        mounted_with(
            None,
            move |options| options.writeback = writeback,
            move |m| {
                assert_eq!(m.session.agreement().writeback, writeback);
                let file = rw().create(true).truncate(false).open(m.path("map")).expect("open");
                file.set_len(100_000).expect("extend");
                // SAFETY: nobody truncates the file while it is mapped.
                let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("map");
                map[50_000..50_005].copy_from_slice(b"hello");
                map.flush().expect("msync");
                let direct =
                    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(m.path("map")).expect("open");
                let mut memory = vec![0u8; 8192];
                let start = memory.as_ptr().align_offset(4096);
                direct.read_exact_at(&mut memory[start..start + 4096], 12 * 4096).expect("read past the cache");
                assert_eq!(&memory[start + 50_000 - 12 * 4096..][..5], b"hello");
                file.write_all_at(b"by write(2)", 7).expect("write");
                assert_eq!(&map[7..18], b"by write(2)");
                drop(map);
                file.sync_all().expect("fsync");
                assert_eq!(fresh_stat(&m.path("map")).expect("stat").stx_size, 100_000);
            },
        );
    }
}
