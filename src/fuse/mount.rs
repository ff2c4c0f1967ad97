//! Attaching a `/dev/fuse` descriptor to a directory, and taking it off again.
//!
//! As root by mount(2) itself, with the type `fuse.argosfs` and without the `nosuid,nodev` that helpers add; otherwise
//! through `fusermount3`, which hands the descriptor over a socket.
//!
//! Invariants:
//! - Nothing here asks the mounted filesystem anything that its daemon would have to answer: that daemon is the caller.
//! - Only a mount point whose device number is still the one that was mounted is taken off.

use std::ffi::{CString, OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::buffer::DATA_MAX;
use crate::base::{Error, Result};

/// Type of the mount as `findmnt` and `/proc/mounts` show it.
pub const FILESYSTEM_TYPE: &str = "fuse.argosfs";
/// The part of [`FILESYSTEM_TYPE`] that names the filesystem to `fusermount3`.
const SUBTYPE: &str = "argosfs";
/// The kernel's end of every connection.
const DEVICE: &str = "/dev/fuse";
/// Where the kernel is told about connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How a filesystem is mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Shown as the mounted device: the pool's name.
    pub source: String,
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    /// Shown in the mount table; the filesystem itself decides about access times.
    pub no_atime: bool,
    /// Lets users other than the mounting one in.
    pub allow_other: bool,
    /// Lets the kernel collect writes: faster for tiny ones, but a full pool is told late.
    pub writeback: bool,
    /// Threads that may wait for the filesystem at once.
    pub threads_max: usize,
    /// Mounts through this program instead of by itself, as everybody but root must.
    pub helper: Option<PathBuf>,
}

impl MountOptions {
    /// The defaults for this user: all that root's filesystems have, or what `fusermount3` lets users have.
    pub fn new(source: impl Into<String>) -> MountOptions {
        let root = rustix::process::geteuid().is_root();
        MountOptions {
            source: source.into(),
            read_only: false,
            no_suid: false,
            no_dev: false,
            no_exec: false,
            no_atime: false,
            allow_other: root,
            writeback: false,
            threads_max: 256,
            helper: (!root).then(|| PathBuf::from("fusermount3")),
        }
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, self.no_suid);
        flags.set(MountFlags::NODEV, self.no_dev);
        flags.set(MountFlags::NOEXEC, self.no_exec);
        flags.set(MountFlags::NOATIME, self.no_atime);
        flags
    }

    fn helper_options(&self) -> OsString {
        let mut text = format!("subtype={SUBTYPE},default_permissions,max_read={DATA_MAX},fsname=");
        for character in self.source.chars() {
            if matches!(character, ',' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        for (wanted, name) in [
            (self.allow_other, ",allow_other"),
            (self.read_only, ",ro"),
            (self.no_suid, ",nosuid"),
            (self.no_dev, ",nodev"),
            (self.no_exec, ",noexec"),
            (self.no_atime, ",noatime"),
        ] {
            if wanted {
                text.push_str(name);
            }
        }
        text.into()
    }
}

/// A mounted connection's place in the tree.
#[derive(Debug)]
pub struct Mount {
    /// Absolute, without symbolic links.
    pub mountpoint: PathBuf,
    /// `st_dev` of the mounted filesystem.
    pub major: u32,
    pub minor: u32,
    /// The helper that mounted it and must unmount it.
    helper: Option<PathBuf>,
}

impl Mount {
    /// Attaches a new connection at `mountpoint`, in place of a dead one if there is one.
    pub fn attach(mountpoint: &Path, options: &MountOptions) -> Result<(OwnedFd, Mount)> {
        let mountpoint = replace_dead(mountpoint, options.helper.as_deref())?;
        let device = match &options.helper {
            None => attach_directly(&mountpoint, options)?,
            Some(helper) => attach_by_helper(helper, &mountpoint, options)?,
        };
        let mut mount = Mount { mountpoint, major: 0, minor: 0, helper: options.helper.clone() };
        match device_number(&mount.mountpoint) {
            Ok((major, minor)) => (mount.major, mount.minor) = (major, minor),
            Err(errno) => {
                let _ = mount.take_off(true);
                return Err(Error::io(mount.mountpoint.display().to_string(), "look at the new mount", errno.into()));
            }
        }
        Ok((device, mount))
    }

    /// Unmounts. Refused as busy while files are open, unless `lazy`: then it disappears from the tree now and is gone
    /// when the last user is. Already unmounted is fine.
    pub fn detach(&self, lazy: bool) -> Result<()> {
        match device_number(&self.mountpoint) {
            Ok(number) if number == (self.major, self.minor) => self.take_off(lazy),
            _ => Ok(()),
        }
    }

    /// Breaks the connection: every request waiting in it fails, every mount of it, in any namespace, is dead.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the kernel cannot be told.
    pub fn abort(&self) -> Result<()> {
        // The kernel names a connection by the device number, which has no major part for filesystems without a device.
        let control = format!("{CONNECTIONS}/{}/abort", (self.major << 20) | self.minor);
        let tell = || std::fs::write(&control, "1").is_ok();
        if tell() {
            return Ok(());
        }
        if let Ok(number) = device_number(&self.mountpoint)
            && number == (self.major, self.minor)
        {
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            return rustix::mount::unmount(&self.mountpoint, flags).map_err(|errno| self.error("abort", errno));
        }
        // Where nobody has mounted what the kernel is told by.
        let fusectl = rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", MountFlags::empty(), None);
        let told = fusectl.is_ok() && tell();
        if fusectl.is_ok() {
            let _ = rustix::mount::unmount(CONNECTIONS, UnmountFlags::DETACH);
        }
        match told {
            true => Ok(()),
            false => Err(Error::Unavailable(format!("{control} cannot be written"))),
        }
    }

    fn take_off(&self, lazy: bool) -> Result<()> {
        if let Some(helper) = &self.helper {
            return unmount_by_helper(helper, &self.mountpoint, lazy);
        }
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match rustix::mount::unmount(&self.mountpoint, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(busy(&self.mountpoint)),
            Err(errno) => Err(self.error("unmount", errno)),
        }
    }

    fn error(&self, operation: &'static str, errno: Errno) -> Error {
        Error::io(self.mountpoint.display().to_string(), operation, errno.into())
    }
}

/// Changes the flags of an existing mount as `mount -o remount` asks.
pub fn remount(mountpoint: &Path, options: &MountOptions) -> Result<()> {
    rustix::mount::mount_remount(mountpoint, options.flags(), c"")
        .map_err(|errno| Error::io(mountpoint.display().to_string(), "remount", errno.into()))
}

/// Opens the kernel's end of a connection to be.
pub(super) fn open_device() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn attach_directly(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = open_device().map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            Error::Unavailable(format!("{DEVICE} is missing: load the kernel's fuse module (modprobe fuse)"))
        }
        errno => Error::io(DEVICE, "open", errno.into()),
    })?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={DATA_MAX}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        let _ = write!(data, ",allow_other");
    }
    let text = |text: &str| CString::new(text).map_err(|_| Error::Usage("a name with a NUL byte".into()));
    let (source, data) = (text(&options.source)?, text(&data)?);
    rustix::mount::mount(&*source, mountpoint, FILESYSTEM_TYPE, options.flags(), &*data)
        .map_err(|errno| Error::io(mountpoint.display().to_string(), "mount", errno.into()))?;
    Ok(device)
}

fn attach_by_helper(helper: &Path, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let failed = |what: String| Error::Unavailable(format!("{}: {what}", helper.display()));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()
        .map_err(|error| Error::io("socket", "make a pair for the mount helper", error))?;
    let mut command = Command::new(helper);
    command.arg("-o").arg(options.helper_options()).arg("--").arg(mountpoint);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    let inherited = theirs.as_raw_fd();
    // SAFETY: the closure runs in the child between fork and exec and makes one async-signal-safe system call on a
    // descriptor the child inherited; `theirs` lives until after `spawn`.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command.stderr(std::process::Stdio::piped());
    let child = command
        .spawn()
        .map_err(|error| failed(format!("{error}; mounting as an ordinary user needs it (package fuse3)")))?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    // The helper stays for as long as the socket does when it is to unmount by itself, which it is not asked to.
    drop(ours);
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    received.map_err(|error| failed(error.to_string()))?.ok_or_else(|| failed("it handed over no descriptor".into()))
}

fn receive_descriptor(socket: &std::os::unix::net::UnixStream) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

fn unmount_by_helper(helper: &Path, mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new(helper);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .output()
        .map_err(|error| Error::Unavailable(format!("{}: {error}", helper.display())))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            match text.to_ascii_lowercase().contains("busy") {
                true => Err(busy(mountpoint)),
                false => Err(Error::Unavailable(text.trim().to_owned())),
            }
        }
    }
}

fn busy(mountpoint: &Path) -> Error {
    Error::Busy(format!(
        "{} is in use: close what is open there (`fuser -vm` lists it) or unmount lazily",
        mountpoint.display()
    ))
}

/// Whether nobody answers any more for what is mounted there.
pub fn is_dead(mountpoint: &Path) -> bool {
    matches!(probe(mountpoint), Err(Errno::NOTCONN))
}

/// A dead mount answers from its cache unless it is made to ask. Who asks while it dies is told so in another word.
fn probe(mountpoint: &Path) -> rustix::io::Result<rustix::fs::Statx> {
    rustix::fs::statx(CWD, mountpoint, AtFlags::STATX_FORCE_SYNC, StatxFlags::TYPE | StatxFlags::MODE)
        .map_err(|errno| if errno == Errno::CONNABORTED { Errno::NOTCONN } else { errno })
}

/// The mount point's real path, after dead mounts on it are taken off.
fn replace_dead(mountpoint: &Path, helper: Option<&Path>) -> Result<PathBuf> {
    let failed = |operation, errno: Errno| Error::io(mountpoint.display().to_string(), operation, errno.into());
    // One for each mount that could lie on top of another here.
    for _ in 0..16 {
        match probe(mountpoint) {
            Ok(found) if u32::from(found.stx_mode) & libc::S_IFMT != libc::S_IFDIR => {
                return Err(Error::Usage(format!("{} is not a directory", mountpoint.display())));
            }
            Ok(_) => return real_path(mountpoint),
            Err(Errno::NOENT) => {
                return Err(Error::Usage(format!("{} does not exist: make the directory first", mountpoint.display())));
            }
            Err(Errno::NOTCONN) => match helper {
                Some(helper) => unmount_by_helper(helper, mountpoint, true)?,
                None => rustix::mount::unmount(mountpoint, UnmountFlags::DETACH)
                    .map_err(|errno| failed("take off the dead mount", errno))?,
            },
            Err(errno) => return Err(failed("look at the mount point", errno)),
        }
    }
    Err(failed("take off the dead mounts", Errno::NOTCONN))
}

fn real_path(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| Error::io(path.display().to_string(), "resolve", error))
}

/// The device number of what lies at `path`, found without asking a FUSE daemon.
fn device_number(path: &Path) -> rustix::io::Result<(u32, u32)> {
    let found = rustix::fs::statx(
        CWD,
        OsStr::from_bytes(path.as_os_str().as_bytes()),
        AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::empty(),
    )?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_smuggle_options_past_the_helper() {
        let mut options = MountOptions::new("a,suid\\b");
        options.allow_other = false;
        options.read_only = true;
        let text = options.helper_options();
        assert!(text.to_str().is_some_and(|text| text.ends_with("fsname=a\\,suid\\\\b,ro")), "{text:?}");
    }

    #[test]
    fn a_missing_or_plain_mount_point_is_explained() {
        let missing = Mount::attach(Path::new("/nonexistent/x"), &MountOptions::new("p")).expect_err("is refused");
        assert!(missing.to_string().contains("does not exist"), "{missing}");
        let plain = Mount::attach(Path::new("/proc/version"), &MountOptions::new("p")).expect_err("is refused");
        assert!(plain.to_string().contains("not a directory"), "{plain}");
    }
}
