//! Mount options: those of `argosfs mount -o`, of mount(8) and of fstab lines.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::file::AccessTime;
use crate::base::{Bytes, Error, Result};
use crate::device::EngineChoice;
use crate::store::CACHE_BYTES;

/// What a mount is to be like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    pub read_only: bool,
    /// Do not wait for members that are not there.
    pub degraded: bool,
    pub access_time: AccessTime,
    pub writeback: bool,
    /// Tell devices which blocks have become free.
    pub discard: bool,
    /// `None`: root lets others in, other users do not.
    pub allow_other: Option<bool>,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    /// How long to wait for members that are not there.
    pub wait: Duration,
    pub search: Vec<PathBuf>,
    pub engine: EngineChoice,
    /// Memory for content that was read and lies packed with other content.
    pub cache: Bytes,
    pub log: Option<PathBuf>,
    /// Change an existing mount.
    pub remount: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            read_only: false,
            degraded: false,
            access_time: AccessTime::Relative,
            writeback: false,
            discard: true,
            allow_other: None,
            no_suid: false,
            no_dev: false,
            no_exec: false,
            wait: Duration::from_secs(10),
            search: Vec::new(),
            engine: EngineChoice::Auto,
            cache: Bytes(CACHE_BYTES as u64),
            log: None,
            remount: false,
        }
    }
}

/// Options that others look at: mount(8), systemd, fstab. They change nothing here.
const FOR_OTHERS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "async",
    "nomand",
    "silent",
    "loud",
    "rw",
    "exec",
    "suid",
    "dev",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "default_permissions",
    "iversion",
    "noiversion",
    "norelatime",
    "nostrictatime",
    "symfollow",
];

/// Shown in `mount --help`.
pub const HELP: &str = "\
Options (-o, separated by commas):
  ro                read-only; nothing is written to any device
  degraded          do not wait for devices that are missing
  wait=SECONDS      how long to wait for them otherwise (10)
  noatime, relatime, strictatime
                    when reading moves access times (relatime)
  writeback         let the kernel collect writes: faster for tiny ones, but a full pool is told late
  discard, nodiscard
                    tell devices which blocks have become free, a few seconds later (discard)
  allow_other, noallow_other
                    whether other users may use the mount (root: yes)
  nosuid, nodev, noexec
  search=DIR        look for devices in DIR too
  engine=NAME       auto, uring, threads, inline, buffered or mmap
  cache=SIZE        memory for small files read lately, besides the kernel's (64M)
  log=FILE          where the daemon writes what it has to say";

impl Options {
    /// Reads comma-separated options; later ones win.
    pub fn parse(lists: &[String]) -> Result<Options> {
        let mut options = Options::default();
        for option in lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|option| !option.is_empty()) {
            options.set(option)?;
        }
        Ok(options)
    }

    fn set(&mut self, option: &str) -> Result<()> {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let needs = |what: &str| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| Error::Usage(format!("option {name} needs {what}")))
        };
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "degraded" => self.degraded = true,
            "noatime" => self.access_time = AccessTime::Never,
            "relatime" | "atime" => self.access_time = AccessTime::Relative,
            "strictatime" => self.access_time = AccessTime::Strict,
            "writeback" => self.writeback = true,
            "discard" => self.discard = true,
            "nodiscard" => self.discard = false,
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            "nosuid" => self.no_suid = true,
            "suid" => self.no_suid = false,
            "nodev" => self.no_dev = true,
            "dev" => self.no_dev = false,
            "noexec" => self.no_exec = true,
            "exec" => self.no_exec = false,
            "remount" => self.remount = true,
            "wait" => {
                let seconds = needs("a number of seconds, as in wait=30")?;
                let seconds =
                    seconds.parse().map_err(|_| Error::Usage(format!("wait={seconds} is no number of seconds")))?;
                self.wait = Duration::from_secs(seconds);
            }
            "search" => self.search.push(PathBuf::from(needs("a directory, as in search=/images")?)),
            "engine" => self.engine = needs("a name")?.parse()?,
            "cache" => {
                let size = needs("a size, as in cache=256M")?;
                self.cache =
                    Bytes::parse(size).ok_or_else(|| Error::Usage(format!("cache={size} is no size, as 256M is")))?;
            }
            "log" => self.log = Some(PathBuf::from(needs("a file, as in log=/var/log/argosfs.log")?)),
            _ if FOR_OTHERS.contains(&name) || name.starts_with("x-") || name == "comment" => {}
            _ => {
                return Err(Error::Usage(format!(
                    "option {option} is unknown; `argosfs mount --help` lists the options"
                )));
            }
        }
        Ok(())
    }

    /// The same options as text, for the daemon.
    pub fn to_text(&self) -> String {
        let mut words = Vec::new();
        let mut flag = |set: bool, word: &str| {
            if set {
                words.push(word.to_owned());
            }
        };
        flag(self.read_only, "ro");
        flag(self.degraded, "degraded");
        flag(self.access_time == AccessTime::Never, "noatime");
        flag(self.access_time == AccessTime::Strict, "strictatime");
        flag(self.writeback, "writeback");
        flag(!self.discard, "nodiscard");
        flag(self.allow_other == Some(true), "allow_other");
        flag(self.allow_other == Some(false), "noallow_other");
        flag(self.no_suid, "nosuid");
        flag(self.no_dev, "nodev");
        flag(self.no_exec, "noexec");
        words.push(format!("wait={}", self.wait.as_secs()));
        words.push(format!("engine={}", self.engine));
        words.push(format!("cache={}", self.cache.0));
        words.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(&[text.to_owned()])
    }

    #[test]
    fn options_of_mount_and_fstab_are_understood() {
        let options = parse("ro,noatime,degraded,nosuid,wait=3,defaults,nofail,x-systemd.automount,engine=threads")
            .expect("parses");
        assert!(options.read_only && options.degraded && options.no_suid);
        assert_eq!((options.access_time, options.wait.as_secs()), (AccessTime::Never, 3));
        assert_eq!(options.engine, EngineChoice::Threads);
        assert!(!parse("ro,rw").expect("parses").read_only, "later ones win");
        assert_eq!(Options::parse(&[]).expect("parses"), Options::default());
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        for (text, word) in [
            ("bogus", "bogus"),
            ("wait", "seconds"),
            ("wait=x", "wait=x"),
            ("engine=steam", "steam"),
            ("search=", "directory"),
            ("cache=much", "much"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(matches!(&error, Error::Usage(why) if why.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn the_daemon_gets_the_same_options() {
        let options = parse(
            "ro,strictatime,writeback,nodiscard,noallow_other,nodev,noexec,nosuid,degraded,wait=7,engine=mmap,cache=1M",
        )
        .expect("parses");
        assert_eq!(parse(&options.to_text()).expect("parses"), options);
        assert_eq!(parse(&Options::default().to_text()).expect("parses"), Options::default());
    }
}
