//! The FUSE transport against the running kernel: real mounts of an in-memory filesystem, each in a mount namespace of
//! its own. Needs root and `/dev/fuse`; says so and passes where they are missing.

mod attributes;
mod files;
mod helper;
mod hostile;
#[path = "../memfs/mod.rs"]
mod memfs;
mod sessions;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use argosfs::fuse::{Ended, Filesystem, MountOptions, Report, Session};
use memfs::{Hook, MemFs};

/// An unprivileged user.
pub const USER: u32 = 4321;

/// What a test works with.
pub struct Mounted<'a> {
    /// The mount point.
    pub root: &'a Path,
    pub session: &'a Session,
    pub fs: &'a MemFs,
    /// Everything the session reported.
    pub reports: Arc<Mutex<Vec<String>>>,
}

impl Mounted<'_> {
    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.root.join(name.as_ref())
    }
}

/// Whether mounts can be made here; says loudly when not.
fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    let reason = match Path::new("/dev/fuse").exists() {
        _ if !root => "not root",
        false => "no /dev/fuse",
        true if in_own_namespace(|| true).is_none() => "no mount namespaces",
        true => return true,
    };
    eprintln!("==================== SKIPPED: FUSE mounts cannot be tested here ({reason}) ====================");
    false
}

/// Runs `work` in a thread whose mounts nobody else sees; `None` where that is not allowed.
pub fn in_own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: this thread was just started and shares no filesystem state that anybody relies on.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.ok()?;
            let flags = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", flags).ok()?;
            Some(work())
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// A directory of its own for each call, removed afterwards.
pub fn in_directory<T>(work: impl FnOnce(&Path) -> T) -> T {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("argosfs-fuse-test-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).expect("make a directory");
    let result = catch_unwind(AssertUnwindSafe(|| work(&path)));
    let _ = std::fs::remove_dir(&path);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Serves `fs` at `root` while `work` runs, then unmounts.
pub fn serve(root: &Path, fs: &MemFs, options: &MountOptions, work: impl FnOnce(&Mounted<'_>)) -> Ended {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reports);
    let report = Report::new(move |text| heard.lock().expect("not poisoned").push(text.to_owned()));
    let session = Session::mount(root, options, report).expect("mount");
    std::thread::scope(|scope| {
        let server = scope.spawn(|| session.run(fs));
        let mounted = Mounted { root, session: &session, fs, reports };
        let worked = catch_unwind(AssertUnwindSafe(|| work(&mounted)));
        if let Err(panic) = worked {
            // Files may still be open.
            session.abort().expect("abort");
            let _ = session.unmount(true);
            resume_unwind(panic);
        }
        session.unmount(false).expect("unmount");
        server.join().expect("the session's thread").expect("a regular end")
    })
}

/// Mounts a fresh filesystem that keeps its data, with the default options.
pub fn mounted(work: impl FnOnce(&Mounted<'_>) + Send) {
    mounted_with(None, |_| {}, work);
}

/// Mounts a fresh filesystem that keeps its data.
pub fn mounted_with(
    hook: Option<Hook>,
    change: impl FnOnce(&mut MountOptions) + Send,
    work: impl FnOnce(&Mounted<'_>) + Send,
) {
    if !can_mount() {
        return;
    }
    in_own_namespace(|| {
        in_directory(|root| {
            let mut options = MountOptions::new("testpool");
            change(&mut options);
            let fs = MemFs::new(true, hook);
            serve(root, &fs, &options, work);
            assert!(root.read_dir().expect("the bare mount point").next().is_none(), "nothing is mounted any more");
        });
    })
    .expect("namespaces were tried");
}

/// Runs `work` as [`USER`], in a thread of its own.
pub fn as_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the raw system calls change the identity of this thread alone, which ends after `work`.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, USER, USER, USER), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, USER, USER, USER), 0);
            }
            work()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The path as C wants it.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

/// The errno behind a failed call.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().expect("an errno"),
    }
}

/// The result of a system call that returns -1 for failure.
pub fn check(result: impl Into<i64>) -> io::Result<i64> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Asks the filesystem itself for attributes, whatever the kernel has cached.
pub fn fresh_stat(path: &Path) -> rustix::io::Result<rustix::fs::Statx> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    statx(CWD, path, AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Any filesystem can be served, also behind a trait object.
#[test]
fn filesystems_are_objects() {
    let fs: Box<dyn Filesystem> = Box::new(MemFs::new(true, None));
    assert_eq!(fs.getattr(argosfs::base::Ino::ROOT).expect("the root").nlink, 2);
}
