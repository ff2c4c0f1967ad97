//! `argosfs trim`.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::Result;
use crate::control::protocol::Request;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
}

/// Discards all free space.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let outcome = arguments.pool.perform(&Request::Trim, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
