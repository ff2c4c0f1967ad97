//! `argosfs scrub`.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::Result;
use crate::control::protocol::Request;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
}

/// Verifies everything, repairs what is bad, and tells what it found.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let outcome = arguments.pool.perform(&Request::Scrub, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
