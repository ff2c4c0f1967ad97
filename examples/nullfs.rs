//! `nullfs MOUNTPOINT [writeback]`: a filesystem that does nothing, served by our transport. What it reaches is the
//! ceiling of what any filesystem behind this transport can reach on this machine.

#[path = "../tests/memfs/mod.rs"]
mod memfs;

use std::path::PathBuf;
use std::process::ExitCode;

use argosfs::fuse::{MountOptions, Report, Session};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(mountpoint) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: nullfs MOUNTPOINT [writeback]");
        return ExitCode::from(2);
    };
    let mut options = MountOptions::new("nullfs");
    options.writeback = arguments.next().is_some_and(|word| word == "writeback");
    let fs = memfs::MemFs::new(false, None);
    let served = Session::mount(&mountpoint, &options, Report::stderr()).and_then(|session| session.run(&fs));
    match served {
        Ok(ended) => {
            eprintln!("nullfs: {ended:?}, {} inodes", fs.inodes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nullfs: {error}");
            ExitCode::FAILURE
        }
    }
}
