//! A user who is not root and has no `fusermount3` may still mount, in a user namespace of their own.

use std::path::Path;

use rustix::thread::UnshareFlags;

use crate::base::{Error, Result};
use crate::control::runtime::RUNTIME_VARIABLE;

/// Enters user and mount namespaces of our own where that is the only way to mount. Sockets then go to `directory`.
/// Call while this process has one thread.
pub fn enter_if_needed(directory: &Path) -> Result<bool> {
    let euid = rustix::process::geteuid();
    if euid.is_root() || has_fusermount() {
        return Ok(false);
    }
    let egid = rustix::process::getegid();
    let failed = |operation| {
        move |error: std::io::Error| {
            Error::Unavailable(format!(
                "mounting needs root, fusermount3, or user namespaces, and none can be had here ({operation}: {error})"
            ))
        }
    };
    // SAFETY: no other thread exists that could share what is separated.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|errno| failed("unshare")(errno.into()))?;
    let write = |file: &str, text: String| std::fs::write(file, text).map_err(failed("map ids"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {} 1", euid.as_raw()))?;
    write("/proc/self/gid_map", format!("0 {} 1", egid.as_raw()))?;
    // SAFETY: no other thread exists that could read the environment meanwhile.
    unsafe { std::env::set_var(RUNTIME_VARIABLE, directory.join("run")) };
    Ok(true)
}

fn has_fusermount() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("fusermount3").exists())
}
