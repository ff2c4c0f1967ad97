//! `argosfs status`.

use super::output::Output;
use super::target::{PoolArguments, Target, perform};
use crate::base::{Error, Result};
use crate::control::client::Silent;
use crate::control::protocol::{Outcome, Request};
use crate::control::status::Status;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
}

/// Prints the state of a pool. One that is there but cannot be opened is faulted; that is an answer, not a failure.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let target = arguments.pool.resolve()?;
    let outcome = perform(&target, &Request::Status, &mut Silent, output);
    let outcome: Outcome = match (outcome, &target) {
        (Err(error @ (Error::Unavailable(_) | Error::Corrupt(_) | Error::Io { .. })), Target::Unmounted(located)) => {
            Status::faulted(&located.name, &located.uuid.to_string(), &error.to_string())
        }
        (outcome, _) => outcome?,
    };
    output.answer(&outcome)?;
    Ok(outcome.level)
}
