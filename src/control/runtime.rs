//! Where the sockets of mounted pools are: `/run/argosfs` for root, the user's runtime directory otherwise.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, Uuid};

/// Names another runtime directory: for tests.
pub const RUNTIME_VARIABLE: &str = "ARGOSFS_RUNTIME_DIR";

/// The directory of the sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runtime(PathBuf);

impl Runtime {
    /// The directory for this user.
    pub fn find() -> Runtime {
        let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        let euid = rustix::process::geteuid();
        Runtime(match set(RUNTIME_VARIABLE) {
            Some(path) => path,
            None if euid.is_root() => PathBuf::from("/run/argosfs"),
            None => match set("XDG_RUNTIME_DIR") {
                Some(path) => path.join("argosfs"),
                None => std::env::temp_dir().join(format!("argosfs-{}", euid.as_raw())),
            },
        })
    }

    /// A given directory.
    pub fn at(path: impl Into<PathBuf>) -> Runtime {
        Runtime(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket of a pool.
    pub fn socket(&self, pool: Uuid) -> PathBuf {
        self.0.join(format!("{pool}.sock"))
    }

    /// Where the daemon of a pool writes what it has to say.
    pub fn log(&self, pool: Uuid) -> PathBuf {
        self.0.join(format!("{pool}.log"))
    }

    /// Makes the directory, for this user alone. One that somebody else could write to is refused.
    pub fn prepare(&self) -> Result<()> {
        let name = self.0.display().to_string();
        let failed = |error| Error::io(&*name, "make the runtime directory", error);
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let meta = fs::symlink_metadata(&self.0).map_err(failed)?;
        let owner = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != owner || meta.permissions().mode() & 0o022 != 0 {
            return Err(Error::Unavailable(format!(
                "{name} must be a directory of user {owner} that nobody else can write to: remove it, or set \
                 {RUNTIME_VARIABLE} to another"
            )));
        }
        Ok(())
    }

    /// The sockets that are there, whether or not anybody listens.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
            .collect();
        found.sort();
        found
    }
}
