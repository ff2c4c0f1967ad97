//! This program as a helper of mount(8) and umount(8), which call it by other names and with arguments of their own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::mount;
use super::options::Options;
use super::output::Output;
use super::umount;
use crate::base::{Error, Result};

/// Which helper this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Helper {
    Mount,
    Umount,
}

/// The helper a name stands for; `None` for the program's own name.
pub fn of_name(name: Option<&OsStr>) -> Option<Helper> {
    match Path::new(name?).file_name()?.to_str()? {
        "mount.argosfs" | "mount.fuse.argosfs" => Some(Helper::Mount),
        "umount.argosfs" | "umount.fuse.argosfs" => Some(Helper::Umount),
        _ => None,
    }
}

/// What mount(8) and umount(8) pass.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    places: Vec<PathBuf>,
    options: Vec<String>,
    /// `-s`: unknown options are no error.
    sloppy: bool,
    /// `-f`: mount: do nothing; umount: force.
    fake_or_force: bool,
    lazy: bool,
}

/// Runs as the helper.
pub fn run(helper: Helper, words: &[OsString]) -> Result<u8> {
    let call = read(words)?;
    match (helper, call.places.as_slice()) {
        (Helper::Mount, [_, _]) if call.fake_or_force => Ok(0),
        (Helper::Mount, [pool, mountpoint]) => {
            let options = options(&call)?;
            mount::mount(pool, mountpoint, options, false, false, Output { json: false })
        }
        (Helper::Mount, _) => Err(Error::Usage("usage: mount.argosfs POOL MOUNTPOINT [-o OPTIONS]".to_owned())),
        (Helper::Umount, [place]) => umount::umount(place, call.lazy).map(|()| 0),
        (Helper::Umount, _) => Err(Error::Usage("usage: umount.argosfs MOUNTPOINT [-l]".to_owned())),
    }
}

fn options(call: &Call) -> Result<Options> {
    if !call.sloppy {
        return Options::parse(&call.options);
    }
    let known = call.options.iter().flat_map(|list| list.split(','));
    let known = known.filter(|option| Options::parse(&[(*option).to_owned()]).is_ok());
    Options::parse(&[known.collect::<Vec<_>>().join(",")])
}

/// Reads `spec dir [-sfnvrw] [-N namespace] [-o options] [-t type]` in any order, as mount(8) documents it.
fn read(words: &[OsString]) -> Result<Call> {
    let mut call = Call::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flags = match word.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(flags) if !flags.is_empty() => flags,
            _ => {
                call.places.push(PathBuf::from(word));
                continue;
            }
        };
        for (at, flag) in flags.char_indices() {
            match flag {
                's' => call.sloppy = true,
                'f' => call.fake_or_force = true,
                'l' => call.lazy = true,
                'r' => call.options.push("ro".to_owned()),
                'w' => call.options.push("rw".to_owned()),
                'n' | 'v' => {}
                'o' | 't' | 'N' => {
                    let rest = &flags[at + 1..];
                    let value = match rest {
                        "" => words.next().map(|value| value.to_string_lossy().into_owned()),
                        rest => Some(rest.to_owned()),
                    };
                    let value = value.ok_or_else(|| Error::Usage(format!("-{flag} needs a value")))?;
                    if flag == 'o' {
                        call.options.push(value);
                    }
                    break;
                }
                _ => return Err(Error::Usage(format!("-{flag} is unknown"))),
            }
        }
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Result<Call> {
        read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_helper_names_are_known() {
        assert_eq!(of_name(Some(OsStr::new("/sbin/mount.argosfs"))), Some(Helper::Mount));
        assert_eq!(of_name(Some(OsStr::new("mount.fuse.argosfs"))), Some(Helper::Mount));
        assert_eq!(of_name(Some(OsStr::new("/usr/sbin/umount.fuse.argosfs"))), Some(Helper::Umount));
        assert_eq!(of_name(Some(OsStr::new("/usr/bin/argosfs"))), None);
    }

    #[test]
    fn calls_of_mount_are_understood() {
        let read = call("tank /mnt/tank -n -o rw,noatime -t fuse.argosfs").expect("reads");
        assert_eq!(read.places, [PathBuf::from("tank"), PathBuf::from("/mnt/tank")]);
        assert_eq!(read.options, ["rw,noatime"]);
        let read = call("-sv /dev/a /mnt -obogus,ro").expect("reads");
        assert!(read.sloppy);
        assert!(options(&read).expect("sloppy").read_only);
        assert!(options(&call("/dev/a /mnt -o bogus").expect("reads")).is_err());
        assert!(call("/mnt -l -n").expect("reads").lazy);
        assert!(call("/mnt -x").is_err() && call("/mnt -o").is_err());
    }
}
