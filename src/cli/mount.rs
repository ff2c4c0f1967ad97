//! `argosfs mount`: starts the daemon and returns when the pool is mounted.
//!
//! The daemon is this program again, with `--foreground`: a fresh process, because threads and rings do not survive a
//! fork. Its standard output is a pipe on which it says that it is ready, or why not.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::daemon;
use super::options::{self, Options};
use super::output::Output;
use crate::base::{Error, Result};
use crate::control::open::absolute;
use crate::control::protocol::{Failure, Outcome};

#[derive(clap::Args, Debug)]
#[command(after_help = options::HELP)]
pub struct Arguments {
    /// The path of any device of the pool, its name, or argosfs:UUID.
    pub pool: PathBuf,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Also look for devices in this directory.
    #[arg(long, value_name = "DIR")]
    pub search: Vec<PathBuf>,
    /// Stay in the foreground; ends when the pool is unmounted, or cleanly on SIGTERM and SIGINT.
    #[arg(long)]
    pub foreground: bool,
    /// Speak to the process that started this one.
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// What the daemon says to the process that started it, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Saying {
    Note(String),
    Failed(Failure),
    /// Mounted; the last line.
    Ready(Ready),
}

/// What was mounted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    pub name: String,
    pub uuid: String,
    pub mountpoint: String,
    pub pid: u32,
}

/// Mounts.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let mut options = Options::parse(&arguments.options)?;
    options.search.extend(arguments.search.iter().cloned());
    mount(&arguments.pool, &arguments.mountpoint, options, arguments.foreground, arguments.daemon, output)
}

/// Mounts with options already read.
pub fn mount(
    pool: &Path,
    mountpoint: &Path,
    mut options: Options,
    foreground: bool,
    is_daemon: bool,
    output: Output,
) -> Result<u8> {
    if options.remount {
        return remount(mountpoint, &options);
    }
    if is_daemon {
        return daemon::run(pool, mountpoint, &options, daemon::Voice::Parent);
    }
    // The daemon lives in another directory.
    for directory in &mut options.search {
        *directory = absolute(directory)?;
    }
    if let Some(log) = &mut options.log {
        *log = absolute(log)?;
    }
    let pool = if pool.exists() { absolute(pool)? } else { pool.to_path_buf() };
    if foreground {
        return daemon::run(&pool, mountpoint, &options, daemon::Voice::User(output));
    }
    let ready = start(&pool, mountpoint, &options, output)?;
    let text = format!("{} is mounted at {}", ready.name, ready.mountpoint);
    let answer = serde_json::to_value(&ready).map_err(|_| Error::Invalid("an answer that is not JSON"))?;
    output.answer(&Outcome { level: 0, answer, text })?;
    Ok(0)
}

/// Starts the daemon and waits until it has mounted.
fn start(pool: &Path, mountpoint: &Path, options: &Options, output: Output) -> Result<Ready> {
    let failed = |operation| move |error| Error::io("the daemon", operation, error);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("argosfs").args(["mount", "--foreground", "--daemon"]);
    for directory in &options.search {
        command.arg("--search").arg(directory);
    }
    command.arg("-o").arg(options.to_text());
    if let Some(log) = &options.log {
        let mut option = std::ffi::OsString::from("log=");
        option.push(log);
        command.arg("-o").arg(option);
    }
    command.arg("--").arg(pool).arg(mountpoint);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed("start"))?;
    let stdout = child.stdout.take().ok_or(Error::Invalid("no pipe"))?;
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(failed("listen to"))?;
        match serde_json::from_str(&line) {
            Ok(Saying::Note(text)) => output.note(&text),
            Ok(Saying::Ready(ready)) => return Ok(ready),
            Ok(Saying::Failed(failure)) => {
                let _ = child.wait();
                return Err(failure.into_error());
            }
            Err(_) => output.note(&line),
        }
    }
    let status = child.wait().map_err(failed("wait for"))?;
    Err(Error::Unavailable(format!("the daemon ended before the pool was mounted ({status})")))
}

/// Changes the flags of a mount that is there.
fn remount(mountpoint: &Path, options: &Options) -> Result<u8> {
    let mountpoint = super::target::resolved(mountpoint);
    match crate::control::mounts::mounted_at(&mountpoint) {
        Some(mount) if mount.kind == crate::fuse::mount::FILESYSTEM_TYPE => {
            crate::fuse::mount::remount(&mountpoint, &daemon::mount_options(&mount.source, options))?;
            Ok(0)
        }
        _ => Err(Error::Usage(format!("no pool is mounted at {}", mountpoint.display()))),
    }
}
