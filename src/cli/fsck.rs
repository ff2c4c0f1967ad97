//! `argosfs fsck`.

use super::exit::{FSCK_PROBLEMS, OK};
use super::output::Output;
use super::target::PoolArguments;
use crate::base::Result;
use crate::control::protocol::Request;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    /// Read every shard too and compare it with its checksums.
    #[arg(long)]
    data: bool,
}

/// Checks, mounted or not, and tells what is wrong under permanent ids.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let request = Request::Fsck { data: arguments.data };
    let outcome = arguments.pool.perform(&request, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(if outcome.level == 0 { OK } else { FSCK_PROBLEMS })
}
