//! `argosfs export-meta`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::output::Output;
use super::target::PoolArguments;
use crate::base::{Error, Result};
use crate::control::protocol::Request;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    /// Write to this file instead of standard output; it appears whole or not at all.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What the newest metadata archive has, which is read without the pool's metadata.
    #[arg(long)]
    archived: bool,
}

/// Writes the export; with `--output`, prints what was written.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let request = Request::ExportMeta { archived: arguments.archived };
    let Some(path) = &arguments.output else {
        let mut out = BufWriter::new(io::stdout().lock());
        arguments.pool.perform(&request, &mut output.follow(Some(&mut out)), output)?;
        out.flush().map_err(|error| Error::io("standard output", "write", error))?;
        return Ok(0);
    };
    let failed = |operation| move |error| Error::io(path.display().to_string(), operation, error);
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let mut file = BufWriter::new(File::create(&partial).map_err(failed("create"))?);
    let performed = arguments.pool.perform(&request, &mut output.follow(Some(&mut file)), output);
    let written = performed.and_then(|outcome| {
        file.flush().map_err(failed("write"))?;
        file.get_ref().sync_all().map_err(failed("sync"))?;
        std::fs::rename(&partial, path).map_err(failed("rename"))?;
        Ok(outcome)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    output.answer(&written?)?;
    Ok(0)
}
