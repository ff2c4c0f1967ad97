//! `argosfs debug`: for rehearsals, and not shown in the help.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::{Bytes, Error, Result};
use crate::control::protocol::{Harm, InjectAction, Request};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Make requests to a device of a mounted pool fail; the pool was made with `mkfs --debug-faults`.
    Inject(Inject),
}

#[derive(clap::Args, Debug)]
struct Inject {
    #[command(flatten)]
    pool: PoolArguments,
    /// Number or path.
    #[arg(long, required_unless_present_any = ["list", "clear"])]
    device: Option<String>,
    /// `error`, `corrupt` (flipped bits), or `delay=MILLISECONDS`.
    #[arg(long, default_value = "error", value_parser = parse_harm)]
    fault: Harm,
    /// `read`, `write`, `flush` or `any`.
    #[arg(long)]
    on: Option<String>,
    /// Bytes of the device: `START+LENGTH`, all of it otherwise.
    #[arg(long, value_parser = parse_range)]
    range: Option<(Bytes, Bytes)>,
    /// Harm one in so many requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u64,
    /// Stop after so many.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only tell which faults there are.
    #[arg(long)]
    list: bool,
    /// Remove all faults.
    #[arg(long)]
    clear: bool,
}

fn parse_harm(text: &str) -> Result<Harm, String> {
    match (text, text.strip_prefix("delay=").map(str::parse)) {
        ("error", _) => Ok(Harm::Error),
        ("corrupt", _) => Ok(Harm::Corrupt),
        (_, Some(Ok(milliseconds))) => Ok(Harm::DelayMs(milliseconds)),
        _ => Err("a fault is error, corrupt or delay=MILLISECONDS".to_owned()),
    }
}

fn parse_range(text: &str) -> Result<(Bytes, Bytes), String> {
    let range = text.split_once('+').and_then(|(start, length)| Some((Bytes::parse(start)?, Bytes::parse(length)?)));
    range.ok_or_else(|| "a range looks like 1M+64K".to_owned())
}

/// Adds, lists or removes faults.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let Command::Inject(inject) = &arguments.command;
    let action = match &inject.device {
        _ if inject.clear => InjectAction::Clear,
        _ if inject.list => InjectAction::List,
        Some(device) => {
            let (start, length) = inject.range.unwrap_or((Bytes(0), Bytes(u64::MAX)));
            InjectAction::Add {
                device: device.clone(),
                harm: inject.fault,
                on: inject.on.clone(),
                start: start.0,
                length: length.0,
                one_in: inject.one_in,
                count: inject.count,
            }
        }
        None => return Err(Error::Usage("say which device".to_owned())),
    };
    let outcome = inject.pool.perform(&Request::Inject { action }, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
