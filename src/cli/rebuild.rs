//! `argosfs rebuild`.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::Result;
use crate::control::protocol::Request;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
}

/// Rebuilds what is missing and tells what it did.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let outcome = arguments.pool.perform(&Request::Rebuild, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
