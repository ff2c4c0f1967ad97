//! One mount, from the mount call to the last request.
//!
//! Invariants:
//! - A [`Session`] that exists is mounted and negotiated; [`Session::run`] serves it.
//! - Dropping a session closes the connection: whatever is still mounted of it is dead from then on.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, notify};
use super::adapter::Adapter;
use super::buffer::Buffer;
use super::crew::Ended;
use super::handler::Filesystem;
use super::mount::{Mount, MountOptions};
use super::negotiate::{Agreement, negotiate};
use super::reply::{Channel, Reply};
use super::report::Report;
use super::request::{Dialect, Operation, Request};
use super::workers::{Port, Workers};
use crate::base::{Error, Ino, Result};

/// Readahead of a mount made by root, in KiB: enough to keep four requests of the largest size under way.
const READ_AHEAD_KIB: u32 = 4096;
/// Share of the machine's dirty pages that a mount made by root may hold, in percent (new FUSE mounts may hold 1).
const DIRTY_RATIO_PERCENT: u32 = 40;

/// A mounted connection.
pub struct Session {
    device: Arc<OwnedFd>,
    mount: Mount,
    agreement: Agreement,
    threads_max: usize,
    report: Report,
    /// The kernel tells an abort from an unmount only when it came through its control file.
    aborted: AtomicBool,
}

impl Session {
    /// Mounts at `mountpoint` and settles the protocol. Requests wait until [`Session::run`].
    pub fn mount(mountpoint: &Path, options: &MountOptions, report: Report) -> Result<Session> {
        let (device, mount) = Mount::attach(mountpoint, options)?;
        match greet(&device, options.writeback, &report) {
            Ok(agreement) => {
                let device = Arc::new(device);
                let aborted = AtomicBool::new(false);
                let session = Session { device, mount, agreement, threads_max: options.threads_max, report, aborted };
                session.tune();
                Ok(session)
            }
            Err(error) => {
                drop(device);
                let _ = mount.detach(true);
                Err(error)
            }
        }
    }

    /// Serves requests until the filesystem is unmounted or the connection aborted, and every request has been served.
    pub fn run<F: Filesystem + ?Sized>(&self, fs: &F) -> Result<Ended> {
        let adapter = Adapter { fs, dialect: self.agreement.dialect, report: &self.report };
        let serve = |channel: &dyn Channel, buffer: &mut Buffer, len: usize| {
            adapter.serve(channel, buffer, len);
        };
        let ended = Workers::new(self.device.as_fd(), self.threads_max, &serve, &self.report).run()?;
        Ok(if self.aborted.load(Ordering::Relaxed) { Ended::Aborted } else { ended })
    }

    /// Where it is mounted: absolute, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mount.mountpoint
    }

    /// What was agreed with the kernel.
    pub fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Tells the kernel what changed behind its back.
    pub fn notifier(&self) -> Notifier {
        Notifier { device: Arc::downgrade(&self.device) }
    }

    /// Unmounts; [`Session::run`] returns when the last request is served. [`Error::Busy`] while files are open, unless
    /// `lazy`.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        self.mount.detach(lazy)
    }

    /// Breaks the connection at once, wherever it is mounted: waiting requests fail, later ones too.
    pub fn abort(&self) -> Result<()> {
        self.aborted.store(true, Ordering::Relaxed);
        self.mount.abort()
    }

    /// Widens the limits that new FUSE mounts start with, where we may.
    fn tune(&self) {
        let folder = format!("/sys/class/bdi/{}:{}", self.mount.major, self.mount.minor);
        for (file, value) in [("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", DIRTY_RATIO_PERCENT)] {
            match std::fs::write(format!("{folder}/{file}"), value.to_string()) {
                Ok(()) => {}
                // Ordinary users may not, containers hide it; both only cost speed.
                Err(error) => match error.kind() {
                    io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem => {}
                    _ => self.report.say(format_args!("{folder}/{file} cannot be set: {error}")),
                },
            }
        }
    }
}

/// Answers INIT, the first request of every connection.
fn greet(device: &OwnedFd, writeback: bool, report: &Report) -> Result<Agreement> {
    let mut buffer = Buffer::new()?;
    let len = loop {
        match rustix::io::read(device, buffer.message_mut()) {
            Ok(len) => break len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(errno) => return Err(Error::io("/dev/fuse", "read the first request", errno.into())),
        }
    };
    let port = Port { device: device.as_fd(), report };
    let request = Request::parse(buffer.message(len), Dialect { setxattr_ext: false });
    let Ok(Request { header, operation: Operation::Init(offer) }) = request else {
        return Err(Error::Unavailable("the kernel did not begin with INIT".into()));
    };
    let reply = Reply::new(&port, header.unique);
    match negotiate(&offer, writeback) {
        Ok((out, agreement)) => {
            reply.fixed(&out);
            Ok(agreement)
        }
        Err(error) => {
            reply.errno(libc::EPROTO);
            Err(error)
        }
    }
}

/// Tells the kernel to forget what it has cached. What it does not have cached is no error.
///
/// Never call this from within a [`Filesystem`] method: the kernel may hold the lock of the very inode until that method
/// has answered.
#[derive(Clone)]
pub struct Notifier {
    /// Does not keep the connection of a dropped session open.
    device: Weak<OwnedFd>,
}

impl Notifier {
    /// Attributes of `ino`, and its cached content unless `attributes_only`.
    pub fn inval_inode(&self, ino: Ino, attributes_only: bool) -> Result<()> {
        let (off, len) = if attributes_only { (-1, 0) } else { (0, 0) };
        self.send(notify::INVAL_INODE, &[abi::NotifyInvalInodeOut { ino: ino.0, off, len }.as_bytes()])
    }

    /// Whatever is known of `name` in `parent`, its absence included.
    pub fn inval_entry(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let body = abi::NotifyInvalEntryOut { parent: parent.0, namelen: name.len() as u32, flags: 0 };
        self.send(notify::INVAL_ENTRY, &[body.as_bytes(), name, &[0]])
    }

    /// Every name: each is looked up again when next used. Not known to kernels before 6.16.
    pub fn inval_all_names(&self) -> Result<()> {
        self.send(notify::INC_EPOCH, &[])
    }

    fn send(&self, code: i32, body: &[&[u8]]) -> Result<()> {
        let Some(device) = self.device.upgrade() else { return Ok(()) };
        let len = size_of::<abi::OutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let header = abi::OutHeader { len: len as u32, error: code, unique: 0 };
        let mut parts = vec![IoSlice::new(header.as_bytes())];
        parts.extend(body.iter().map(|part| IoSlice::new(part)));
        match rustix::io::writev(&*device, &parts) {
            // ENOENT, and ENOTDIR for a parent: not cached.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            // No mount is left that could have cached anything.
            Err(Errno::NODEV | Errno::NOTCONN | Errno::CONNABORTED) => Ok(()),
            Err(Errno::INVAL) if code == notify::INC_EPOCH => Err(Error::Unsupported),
            Err(errno) => Err(Error::io("/dev/fuse", "notify", errno.into())),
        }
    }
}
