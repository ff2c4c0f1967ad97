//! The mount table of this process, as the kernel tells it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    pub mountpoint: PathBuf,
    /// `major:minor`.
    pub device: String,
    pub kind: String,
    pub source: String,
}

/// All mounts, later ones cover earlier ones at the same place.
pub fn mounts() -> Vec<MountEntry> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// What is mounted at exactly this place now.
pub fn mounted_at(mountpoint: &Path) -> Option<MountEntry> {
    mounts().into_iter().rev().find(|mount| mount.mountpoint == mountpoint)
}

/// Reads the text of `/proc/self/mountinfo`; lines that are not understood are left out.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let mut behind = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (behind.next()?, behind.next()?);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountEntry {
        mountpoint: PathBuf::from(OsString::from_vec(unescape(mountpoint))),
        device: text(device),
        kind: text(kind),
        source: text(source),
    })
}

/// Undoes the kernel's `\ooo` for spaces, tabs, line breaks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        if *byte == b'\\'
            && let Some((digits, after)) = after.split_first_chunk::<3>()
            && let Ok(code) = u8::from_str_radix(&String::from_utf8_lossy(digits), 8)
        {
            out.push(code);
            rest = after;
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_understood() {
        let text = b"22 28 0:21 / /proc rw,nosuid - proc proc rw\n\
            90 28 0:55 / /mnt/a\\040b\\134c rw,relatime shared:1 master:2 - fuse.argosfs tank rw,user_id=0\n\
            broken line\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!((&*mounts[1].device, &*mounts[1].kind, &*mounts[1].source), ("0:55", "fuse.argosfs", "tank"));
    }

    #[test]
    fn this_process_sees_its_root() {
        assert!(mounted_at(Path::new("/")).is_some());
        assert!(mounted_at(Path::new("/no/such/mount")).is_none());
    }
}
