//! `argosfs scrub`.

use super::output::Output;
use super::target::PoolArguments;
use crate::base::{Bytes, Result};
use crate::control::protocol::{Request, ScrubAction};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pool: PoolArguments,
    #[command(flatten)]
    action: Actions,
    /// Read so many bytes a second at most.
    #[arg(long, value_name = "SIZE", value_parser = super::mkfs::parse_size)]
    limit: Option<Bytes>,
}

#[derive(clap::Args, Debug)]
#[group(multiple = false)]
struct Actions {
    /// Return at once; the daemon goes on with it, after an unmount and a mount too.
    #[arg(long)]
    background: bool,
    /// Stop for now.
    #[arg(long)]
    pause: bool,
    /// Go on with one that was paused.
    #[arg(long)]
    resume: bool,
    /// Stop for good.
    #[arg(long)]
    cancel: bool,
    /// Tell how far it is.
    #[arg(long)]
    status: bool,
}

/// Verifies everything, repairs what is bad, and tells what it found.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let Actions { background, pause, resume, cancel, status } = arguments.action;
    let action = match () {
        () if background => ScrubAction::Start,
        () if pause => ScrubAction::Pause,
        () if resume => ScrubAction::Resume,
        () if cancel => ScrubAction::Cancel,
        () if status => ScrubAction::Status,
        () => ScrubAction::Wait,
    };
    let request = Request::Scrub { action, limit: arguments.limit.map_or(0, |limit| limit.0) };
    let outcome = arguments.pool.perform(&request, &mut output.follow(None), output)?;
    output.answer(&outcome)?;
    Ok(outcome.level)
}
