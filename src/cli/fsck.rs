//! `argosfs fsck`.

use super::exit::{FSCK_CORRECTED, FSCK_PROBLEMS, OK};
use super::output::Output;
use super::target::{PoolArguments, Target, open_options};
use crate::base::{Error, Result};
use crate::control::protocol::Request;
use crate::control::service::{self, FsckMode};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    /// Read every shard too and compare it with its checksums and its header with its stripe.
    #[arg(long)]
    data: bool,
    /// Correct what can be corrected; on a mounted pool only labels, copies of the metadata and shards.
    #[arg(long)]
    repair: bool,
    /// Tell what --repair would do, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The devices may hold bytes made to do harm: let the metadata store check all of itself first. Takes long.
    #[arg(long)]
    untrusted: bool,
}

/// Checks, mounted or not, and tells what is wrong under permanent ids.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let Arguments { pool, data, repair, dry_run, untrusted } = arguments;
    let mut follow = output.follow(None);
    let outcome = match pool.resolve()? {
        Target::Mounted(_) if *dry_run || *untrusted => {
            return Err(Error::Busy("the pool is mounted: unmount it for --dry-run and --untrusted".to_owned()));
        }
        Target::Mounted(client) => client.call(&Request::Fsck { data: *data, repair: *repair }, &mut follow)?,
        Target::Unmounted(located) => {
            let mode = match (dry_run, repair) {
                (true, _) => FsckMode::Plan,
                (false, true) => FsckMode::Repair,
                (false, false) => FsckMode::Check,
            };
            let options = open_options(true);
            let (outcome, notes) = service::fsck_unmounted(&located, &options, *data, *untrusted, mode, &mut follow)?;
            notes.iter().for_each(|note| output.note(note));
            outcome
        }
    };
    drop(follow);
    output.answer(&outcome)?;
    Ok(match outcome.level {
        0 => OK,
        1 => FSCK_CORRECTED,
        _ => FSCK_PROBLEMS,
    })
}
