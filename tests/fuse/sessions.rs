//! The life of a session: what it survives, how it ends, what it tells.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use argosfs::base::file::{Caller, SetAttr};
use argosfs::base::{Error, Ino};
use argosfs::fuse::{Ended, Filesystem, MountOptions, Report, Session};

use crate::memfs::{Hook, MemFs};
use crate::{can_mount, check, errno, fresh_stat, in_directory, in_own_namespace, mounted, mounted_with, serve};

/// Holds requests back until it is opened.
#[derive(Default)]
struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Stops every read, or every write, of any file.
    fn hook(self: &Arc<Gate>, stopped: &'static str) -> Option<Hook> {
        let gate = Arc::clone(self);
        Some(Box::new(move |what, _| {
            if what == stopped {
                let mut state = gate.state.lock().expect("not poisoned");
                state.0 += 1;
                gate.changed.notify_all();
                drop(gate.changed.wait_while(state, |state| !state.1).expect("not poisoned"));
            }
            Ok(())
        }))
    }

    /// Waits until so many requests stand here; a test that cannot go on fails instead of hanging.
    fn wait_for(&self, waiting: usize) {
        let state = self.state.lock().expect("not poisoned");
        let patience = Duration::from_secs(60);
        let (state, _) =
            self.changed.wait_timeout_while(state, patience, |state| state.0 < waiting).expect("not poisoned");
        let stands = state.0;
        drop(state);
        if stands < waiting {
            self.open();
            panic!("only {stands} of {waiting} requests were taken from the kernel");
        }
    }

    fn open(&self) {
        self.state.lock().expect("not poisoned").1 = true;
        self.changed.notify_all();
    }
}

#[test]
fn sixty_four_stalled_requests_stop_nobody_else() {
    let gate = Arc::new(Gate::default());
    mounted_with(
        gate.hook("read"),
        |_| {},
        |m| {
            fs::write(m.path("stalled"), vec![1; 65 * 4096]).expect("write");
            let mut direct = File::options();
            direct.read(true).custom_flags(libc::O_DIRECT);
            std::thread::scope(|scope| {
                for number in 0..64 {
                    let file = direct.open(m.path("stalled")).expect("open");
                    scope.spawn(move || {
                        let mut memory = vec![0u8; 8192];
                        let start = memory.as_ptr().align_offset(4096);
                        let read = file.read_at(&mut memory[start..start + 4096], number * 4096);
                        assert_eq!(read.expect("in the end"), 4096);
                    });
                }
                gate.wait_for(64);
                assert_eq!(fresh_stat(&m.path("stalled")).expect("getattr answers").stx_size, 65 * 4096);
                fs::write(m.path("other"), "x").expect("others work");
                fs::rename(m.path("other"), m.path("another")).expect("others work");
                assert_eq!(m.root.read_dir().expect("listings, too").count(), 2);
                gate.open();
            });
        },
    );
}

/// Resident memory of this process, in MiB.
fn resident_mib() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") / 256
}

/// Whether this process runs the test `name` and no other. When not, one that does is started and must succeed.
fn runs_alone(name: &str) -> bool {
    const ALONE: &str = "ARGOSFS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("start it again");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name} in its own process:\n{text}");
    false
}

#[test]
fn memory_of_a_burst_is_given_back() {
    // Other tests beside it would be measured as well.
    if !runs_alone("sessions::memory_of_a_burst_is_given_back") {
        return;
    }
    let gate = Arc::new(Gate::default());
    mounted_with(
        gate.hook("write"),
        |_| {},
        |m| {
            let before = resident_mib();
            let files: Vec<File> = (0..64)
                .map(|number| {
                    let mut options = File::options();
                    options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
                    options.open(m.path(format!("file {number}"))).expect("create")
                })
                .collect();
            let mut memory = vec![1u8; (1 << 20) + 4096];
            let start = memory.as_ptr().align_offset(4096);
            let data = &memory[start..start + (1 << 20)];
            std::thread::scope(|scope| {
                for file in &files {
                    scope.spawn(move || file.write_at(data, 0).expect("in the end"));
                }
                gate.wait_for(64);
                assert!(resident_mib() >= before + 40, "each of the stalled requests holds its data");
                gate.open();
            });
            // What was written is kept in memory as well here.
            drop(files);
            for number in 0..64 {
                fs::remove_file(m.path(format!("file {number}"))).expect("unlink");
            }
            memory = Vec::new();
            drop(memory);
            for _ in 0..600 {
                if resident_mib() < before + 30 {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            panic!("{} MiB were resident before, {} MiB are a minute later", before, resident_mib());
        },
    );
}

#[test]
fn a_panic_costs_one_request_an_eio() {
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    let hook = move |what, _| {
        assert!(what != "fsync" || !trigger.load(Ordering::SeqCst), "as the test wants it");
        Ok(())
    };
    mounted_with(
        Some(Box::new(hook)),
        |_| {},
        |m| {
            let file = File::create(m.path("file")).expect("create");
            armed.store(true, Ordering::SeqCst);
            for _ in 0..20 {
                assert_eq!(errno(file.sync_all()), libc::EIO);
            }
            armed.store(false, Ordering::SeqCst);
            file.sync_all().expect("the session lives on");
            let reports = m.reports.lock().expect("not poisoned");
            assert!(reports[0].starts_with("a FSYNC of inode 2 ended in a panic: as the test wants it"), "{reports:?}");
        },
    );
}

#[test]
fn storage_failures_are_reported_and_fsync_never_says_erofs() {
    let hook = |what, _: Ino| match what {
        "write" => Err(Error::io("disk7", "write", std::io::Error::other("it smokes"))),
        "fsync" => Err(Error::Poisoned("it smokes".into())),
        _ => Ok(()),
    };
    mounted_with(
        Some(Box::new(hook)),
        |_| {},
        |m| {
            let file = File::create(m.path("file")).expect("create");
            assert_eq!(errno(file.write_at(b"x", 0)), libc::EIO);
            assert_eq!(errno(file.sync_all()), libc::EIO);
            let reports = m.reports.lock().expect("not poisoned");
            assert_eq!(reports.as_slice(), ["WRITE of inode 2 failed: write failed on disk7: it smokes"]);
        },
    );
}

#[test]
fn an_unmount_waits_for_users_and_says_so() {
    mounted(|m| {
        let file = File::create(m.path("open")).expect("create");
        let error = m.session.unmount(false).expect_err("is busy");
        assert!(matches!(&error, Error::Busy(text) if text.contains("in use")), "{error}");
        drop(file);
    });
}

#[test]
fn a_lazy_unmount_ends_with_the_last_user() {
    if !can_mount() {
        return;
    }
    in_own_namespace(|| {
        in_directory(|root| {
            let fs = MemFs::new(true, None);
            let ended = serve(root, &fs, &MountOptions::new("p"), |m| {
                let file = File::create(m.path("open")).expect("create");
                m.session.unmount(true).expect("lazy");
                file.write_at(b"still", 0).expect("the file is served");
                assert!(!m.path("open").exists());
            });
            assert_eq!(ended, Ended::Unmounted);
        });
    });
}

#[test]
fn a_dead_mount_point_is_replaced() {
    if !can_mount() {
        return;
    }
    in_own_namespace(|| {
        in_directory(|root| {
            for _ in 0..2 {
                let abandoned = Session::mount(root, &MountOptions::new("dead"), Report::stderr()).expect("mount");
                let notifier = abandoned.notifier();
                drop(abandoned);
                assert_eq!(errno(fs::read_dir(root)), libc::ENOTCONN, "the daemon is gone, the mount is not");
                notifier.inval_inode(Ino::ROOT, false).expect("nobody is left to be told");
            }
            let fs = MemFs::new(true, None);
            serve(root, &fs, &MountOptions::new("alive"), |m| {
                fs::write(m.path("file"), "x").expect("write");
                let table = fs::read_to_string("/proc/thread-self/mounts").expect("the mount table");
                let ours: Vec<_> = table.lines().filter(|line| line.contains(&*root.to_string_lossy())).collect();
                assert_eq!(ours.len(), 1, "nothing lies below: {ours:?}");
                assert!(ours[0].starts_with("alive ") && ours[0].contains(" fuse.argosfs rw,"), "{ours:?}");
                assert!(ours[0].contains("default_permissions,allow_other"), "{ours:?}");
                assert!(!ours[0].contains("nosuid") && !ours[0].contains("nodev"), "{ours:?}");
            });
            assert_eq!(fs::read_dir(root).expect("the bare directory").count(), 0);
        });
    });
}

#[test]
fn an_abort_frees_those_who_wait() {
    if !can_mount() {
        return;
    }
    for through_control_file in [false, true] {
        in_own_namespace(|| in_directory(|root| abort_one(root, through_control_file)));
    }
}

fn abort_one(root: &Path, through_control_file: bool) {
    let connections = "/sys/fs/fuse/connections";
    if through_control_file {
        let flags = rustix::mount::MountFlags::empty();
        if rustix::mount::mount("none", connections, "fusectl", flags, None).is_err() {
            eprintln!("SKIPPED: no fusectl here");
            return;
        }
    }
    let gate = Arc::new(Gate::default());
    let fs = MemFs::new(true, gate.hook("read"));
    let ended = serve(root, &fs, &MountOptions::new("p"), |m| {
        fs::write(m.path("file"), vec![1; 4096]).expect("write");
        std::thread::scope(|scope| {
            let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(m.path("file")).expect("open");
            let reader = scope.spawn(move || {
                let mut memory = vec![0u8; 8192];
                let start = memory.as_ptr().align_offset(4096);
                errno(file.read_at(&mut memory[start..start + 4096], 0))
            });
            gate.wait_for(1);
            m.session.abort().expect("abort");
            let errno = reader.join().expect("the reader");
            assert!(matches!(errno, libc::ECONNABORTED | libc::ENOTCONN | libc::EIO), "{errno}");
            let still_there = fs::read_dir(root).map(|_| ()).map_err(|error| error.raw_os_error());
            match through_control_file {
                true => assert_eq!(still_there, Err(Some(libc::ENOTCONN)), "dead, but in place"),
                false => assert_eq!(still_there, Ok(()), "taken off"),
            }
            gate.open();
        });
    });
    assert_eq!(ended, Ended::Aborted);
}

#[test]
fn the_kernel_forgets_what_it_is_told_to() {
    mounted(|m| {
        let notifier = m.session.notifier();
        fs::write(m.path("file"), "12345").expect("write");
        let ino = Ino(fs::metadata(m.path("file")).expect("stat").ino());
        assert_eq!(fs::read(m.path("file")).expect("read"), b"12345");
        assert_eq!(fs::metadata(m.path("file")).expect("asks for the access time").len(), 5);
        let changes = SetAttr { mode: Some(0o600), size: Some(2), ..SetAttr::default() };
        m.fs.setattr(&Caller::ROOT, ino, &changes).expect("behind the kernel's back");
        assert_eq!(fs::metadata(m.path("file")).expect("stat").len(), 5, "attributes are cached for ever");
        notifier.inval_inode(ino, false).expect("tell");
        assert_eq!(fs::metadata(m.path("file")).expect("stat").len(), 2);
        assert_eq!(fs::read(m.path("file")).expect("read"), b"12");

        let made = |name: &str| m.fs.mknod(&Caller::ROOT, Ino::ROOT, name.as_bytes(), libc::S_IFREG | 0o644, 0);
        for name in ["one", "two"] {
            assert!(!m.path(name).exists());
            made(name).expect("behind the kernel's back");
            assert!(!m.path(name).exists(), "absence is cached for ever");
        }
        notifier.inval_entry(Ino::ROOT, b"one").expect("tell");
        assert!(m.path("one").exists() && !m.path("two").exists());
        match notifier.inval_all_names() {
            Ok(()) => assert!(m.path("two").exists()),
            Err(Error::Unsupported) => eprintln!("SKIPPED: this kernel cannot forget all names at once"),
            Err(error) => panic!("{error}"),
        }
        notifier.inval_inode(Ino(999), true).expect("what is not cached is no error");
        notifier.inval_entry(Ino(999), b"x").expect("what is not cached is no error");
    });
}

/// NFS handles: the kernel finds an inode by its number alone, also after a remount.
#[test]
fn handles_survive_a_remount() {
    if !can_mount() {
        return;
    }
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    in_own_namespace(|| {
        in_directory(|root| {
            let fs = MemFs::new(true, None);
            let mut handle = Handle { len: 128, kind: 0, bytes: [0; 128] };
            serve(root, &fs, &MountOptions::new("p"), |m| {
                fs::create_dir(m.path("dir")).expect("mkdir");
                fs::write(m.path("dir/file"), "content").expect("write");
                let (path, mut mount) = (crate::c_path(&m.path("dir/file")), 0);
                // SAFETY: the path is NUL-terminated; the handle has room for `len` bytes behind its head.
                check(unsafe {
                    libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &raw mut mount, 0)
                })
                .expect("a handle");
            });
            serve(root, &fs, &MountOptions::new("p"), |m| {
                let directory = File::open(m.root).expect("open");
                // SAFETY: the handle is the one made above; the descriptor is open through the call.
                let opened = check(unsafe {
                    libc::open_by_handle_at(directory.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDONLY)
                })
                .expect("open by handle");
                // SAFETY: the descriptor was just opened and belongs to nobody else.
                let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(opened as i32) };
                let mut text = [0; 7];
                file.read_exact_at(&mut text, 0).expect("read");
                assert_eq!(&text, b"content");
            });
        });
    });
}

#[test]
fn a_read_only_mount_refuses_changes() {
    mounted_with(
        None,
        |options| options.read_only = true,
        |m| {
            assert_eq!(errno(File::create(m.path("x"))), libc::EROFS);
            let mut options = MountOptions::new("p");
            argosfs::fuse::mount::remount(m.root, &options).expect("remount");
            fs::write(m.path("x"), "y").expect("writable now");
            options.read_only = true;
            argosfs::fuse::mount::remount(m.root, &options).expect("remount");
            assert_eq!(errno(File::create(m.path("z"))), libc::EROFS);
        },
    );
}
