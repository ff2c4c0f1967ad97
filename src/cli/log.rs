//! Where a daemon in the background writes what it has to say: a file that never grows beyond a bound.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::fuse::report::say;

/// The file is moved aside when it is longer than this, so it and its predecessor together take twice as much at most.
const LENGTH_MAX: u64 = 1 << 20;

/// The log file.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

impl Log {
    /// A log at this path; nothing is written yet.
    pub fn open(path: PathBuf) -> Log {
        Log(path)
    }

    /// Makes the log this process's standard error. When that cannot be, nothing changes.
    pub fn take_stderr(&self) {
        match self.append() {
            Ok(mut file) => {
                let _ = writeln!(file, "argosfs: daemon {} started", std::process::id());
                let _ = rustix::stdio::dup2_stderr(&file);
            }
            Err(error) => say(format_args!("{} cannot be written: {error}", self.0.display())),
        }
    }

    /// Begins a new file when this one is long.
    pub fn shorten(&self) {
        if fs::metadata(&self.0).is_ok_and(|meta| meta.len() > LENGTH_MAX)
            && fs::rename(&self.0, old(&self.0)).is_ok()
            && let Ok(file) = self.append()
        {
            let _ = rustix::stdio::dup2_stderr(&file);
        }
    }

    fn append(&self) -> std::io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().append(true).create(true).mode(0o600).open(&self.0)
    }
}

fn old(path: &Path) -> PathBuf {
    let mut old = path.as_os_str().to_owned();
    old.push(".old");
    PathBuf::from(old)
}
