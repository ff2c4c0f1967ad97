//! `argosfs damage`.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::Result;
use crate::control::protocol::{DamageAction, Request};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    /// Keep what is left of this file: what is lost of it reads as zeros from now on.
    #[arg(long, value_name = "PATH", conflicts_with = "delete")]
    accept: Option<String>,
    /// Remove this file.
    #[arg(long, value_name = "PATH")]
    delete: Option<String>,
}

/// Names every file with content that cannot be read, or does something about one.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let action = match (&arguments.accept, &arguments.delete) {
        (Some(path), _) => DamageAction::Accept { path: path.clone() },
        (None, Some(path)) => DamageAction::Delete { path: path.clone() },
        (None, None) => DamageAction::List,
    };
    let outcome = arguments.pool.perform(&Request::Damage { action }, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
