//! `argosfs device`.

use std::path::{Path, PathBuf};

use super::output::Output;
use super::target::{PoolArguments, Target, perform, resolve};
use crate::base::{Error, Result};
use crate::control::open::absolute;
use crate::control::protocol::Request;
use crate::control::runtime::Runtime;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Put a new device in the place of one that is there, broken or gone; what was on it is moved or rebuilt.
    Replace(Replace),
}

#[derive(clap::Args, Debug)]
struct Replace {
    /// The device to replace: its path, number or UUID.
    old: String,
    /// The new device; an image or a directory's file is made as large as the old one if it is missing.
    new: PathBuf,
    /// The pool, when OLD does not tell: a mount point, the path of another device, its name, or argosfs:UUID.
    #[arg(long)]
    pool: Option<PathBuf>,
    /// Also look for devices in this directory.
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Use NEW even if it holds something else.
    #[arg(long)]
    force: bool,
}

/// Runs the action.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let Action::Replace(replace) = &arguments.action;
    let target = pool_of(replace)?;
    let new = absolute(&replace.new)?;
    let new = new.to_str().ok_or_else(|| Error::Usage("paths of devices must be UTF-8".to_owned()))?;
    // A daemon has another working directory.
    let old = match replace.old.contains('/') || Path::new(&replace.old).exists() {
        true => absolute(Path::new(&replace.old))?.to_string_lossy().into_owned(),
        false => replace.old.clone(),
    };
    let request = Request::Replace { old, new: new.to_owned(), force: replace.force };
    let outcome = perform(&target, &request, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}

/// The pool as told, or the one that OLD is or was a member of, or the only one that is mounted.
fn pool_of(replace: &Replace) -> Result<Target> {
    let named = PoolArguments { pool: replace.pool.clone(), search: replace.search.clone() };
    if named.pool.is_some() {
        return named.resolve();
    }
    let by_device = resolve(&Runtime::find(), Path::new(&replace.old), &replace.search);
    match by_device {
        Ok(target) => Ok(target),
        Err(by_device) => named.resolve().map_err(|only| match only {
            Error::Usage(_) => Error::Usage(format!("{by_device}; say which pool with --pool")),
            other => other,
        }),
    }
}
