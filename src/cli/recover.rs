//! `argosfs recover`.

use super::output::Output;
use super::target::{PoolArguments, Target, open_options};
use crate::base::{Error, Result};
use crate::control::locate::Located;
use crate::control::service;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    /// Even though the metadata can be opened, or devices with copies of it are merely missing or not up to date: what is newer
    /// than the archive becomes uncertain.
    #[arg(long)]
    force: bool,
    /// Do not verify all content afterwards.
    #[arg(long)]
    no_scrub: bool,
}

/// Recovers, and tells what is whole, what is uncertain and what is lost.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let located = not_mounted(&arguments.pool)?;
    let mut follow = output.follow(None);
    let options = open_options(false);
    let (outcome, notes) = service::recover(&located, &options, arguments.force, !arguments.no_scrub, &mut follow)?;
    drop(follow);
    notes.iter().for_each(|note| output.note(note));
    output.answer(&outcome)?;
    Ok(outcome.level)
}

/// Finds a pool whose metadata is to be made again.
pub fn not_mounted(pool: &PoolArguments) -> Result<Box<Located>> {
    match pool.resolve()? {
        Target::Unmounted(located) => Ok(located),
        Target::Mounted(client) => Err(Error::Busy(format!(
            "pool {} is mounted, so its metadata is there: `argosfs fsck` checks it",
            client.info().name
        ))),
    }
}
