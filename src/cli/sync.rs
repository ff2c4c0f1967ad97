//! `argosfs sync`.

use super::output::Output;
use super::target::{PoolArguments, Target};
use crate::base::Result;
use crate::control::client::Silent;
use crate::control::protocol::{Outcome, Request};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
}

/// Returns when everything is durable. A pool that is not mounted has nothing that is not.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let outcome = match arguments.pool.resolve()? {
        Target::Mounted(client) => client.call(&Request::Sync, &mut Silent)?,
        Target::Unmounted(_) => Outcome { level: 0, answer: serde_json::json!({}), text: "not mounted".to_owned() },
    };
    output.answer(&outcome)?;
    Ok(outcome.level)
}
