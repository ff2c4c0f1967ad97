//! `argosfs import-meta`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::output::Output;
use super::recover::not_mounted;
use super::target::{PoolArguments, open_options};
use crate::base::{Error, Result};
use crate::control::service;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The path of any device of the pool, its name, or argosfs:UUID.
    pool: PathBuf,
    /// What `argosfs export-meta` wrote of this pool. It is read several times, so it must be a file.
    file: PathBuf,
    /// Also look for devices in this directory.
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Even though the metadata can be opened, or devices with copies of it are merely missing: what is newer than the export
    /// becomes uncertain.
    #[arg(long)]
    force: bool,
    /// Do not verify all content afterwards.
    #[arg(long)]
    no_scrub: bool,
    /// Verify the file and tell what it is; change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Imports, and tells what is whole, what is uncertain and what is lost.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let file = open(&arguments.file)?;
    let name = arguments.file.display().to_string();
    let pieces = move |sink: &mut dyn FnMut(&[u8]) -> Result<()>| read(&file, &name, sink);
    let pool = PoolArguments { pool: Some(arguments.pool.clone()), search: arguments.search.clone() };
    let located = not_mounted(&pool)?;
    let options = open_options(false);
    let mut follow = output.follow(None);
    let (outcome, notes) = if arguments.dry_run {
        (service::import_dry_run(&located, &options, &pieces, &mut follow)?, Vec::new())
    } else {
        service::import(&located, &options, &pieces, arguments.force, !arguments.no_scrub, &mut follow)?
    };
    drop(follow);
    notes.iter().for_each(|note| output.note(note));
    output.answer(&outcome)?;
    Ok(outcome.level)
}

fn open(path: &Path) -> Result<File> {
    let failed = |error| Error::io(path.display().to_string(), "open", error);
    // What is opened before it is known to be a file may wait for ever.
    let kind = std::fs::metadata(path).map_err(failed).map(|meta| meta.file_type());
    if path == Path::new("-") || !kind?.is_file() {
        return Err(Error::Usage(format!(
            "{} is not a file, and an export is read several times: write it to a file first",
            path.display()
        )));
    }
    File::open(path).map_err(failed)
}

/// Reads the file from its beginning to its end.
fn read(file: &File, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut piece = vec![0; 128 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                at += length as u64;
                sink(piece.get(..length).unwrap_or_default())?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(name, "read", error)),
        }
    }
}
