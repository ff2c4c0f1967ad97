//! `argosfs umount`: returns when everything is durable and the daemon is gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::output::Output;
use super::target::{self, Target, client_at, resolved};
use crate::base::{Error, Result};
use crate::control::client::Silent;
use crate::control::mounts::{self, MountEntry};
use crate::control::protocol::{Outcome, Request};
use crate::control::runtime::Runtime;
use crate::fuse::mount::{self, FILESYSTEM_TYPE};
use crate::fuse::report::say;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Where the pool is mounted, or the pool.
    mountpoint: PathBuf,
    /// Take it out of sight now even if files are open; it ends when they are closed.
    #[arg(short, long)]
    lazy: bool,
}

/// Unmounts.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    umount(&arguments.mountpoint, arguments.lazy)?;
    let answer = serde_json::json!({ "unmounted": arguments.mountpoint.display().to_string() });
    output.answer(&Outcome { level: 0, answer, text: String::new() })?;
    Ok(0)
}

/// Unmounts what is at `place`, and waits for its daemon.
pub fn umount(place: &Path, lazy: bool) -> Result<()> {
    let runtime = Runtime::find();
    let request = Request::Unmount { lazy };
    let mountpoint = resolved(place);
    match mounts::mounted_at(&mountpoint) {
        Some(mount) if mount.kind == FILESYSTEM_TYPE => match client_at(&runtime, &mountpoint)? {
            Some(client) => client.call_last(&request, &mut Silent).map(drop),
            None if mount::is_dead(&mountpoint) => clear_away(&mountpoint, &mount),
            None => Err(Error::Unavailable(format!(
                "{} is served by a daemon that cannot be asked from here: run this as the user who mounted it, with the same \
                 XDG_RUNTIME_DIR or ARGOSFS_RUNTIME_DIR, or try again if it is busy",
                mountpoint.display()
            ))),
        },
        Some(mount) => {
            Err(Error::Usage(format!("{} is a {} filesystem, not ours: use umount", mountpoint.display(), mount.kind)))
        }
        None => match target::resolve(&runtime, place, &[]) {
            Ok(Target::Mounted(client)) => client.call_last(&request, &mut Silent).map(drop),
            _ => Err(Error::Usage(format!("nothing is mounted at {}", place.display()))),
        },
    }
}

/// Takes off a mount whose daemon does not answer any more.
fn clear_away(mountpoint: &Path, mount: &MountEntry) -> Result<()> {
    let shown = mountpoint.display().to_string();
    if !rustix::process::geteuid().is_root() {
        let done = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).status();
        return match done {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Error::Unavailable(format!("fusermount3 could not unmount {shown} ({status})"))),
            Err(error) => Err(Error::io("fusermount3", "run", error)),
        };
    }
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(mountpoint, flags).map_err(|errno| Error::io(&*shown, "unmount", errno.into()))?;
    // Its daemon died; what was durable is in the pool, and the next mount recovers it.
    say(format_args!("the daemon of {} at {shown} did not answer; the dead mount was taken off", mount.source));
    Ok(())
}
