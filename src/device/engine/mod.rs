//! Engines: ways to have all requests of a batch in flight together.
//!
//! Invariants:
//! - `run` returns, or unwinds, only when the kernel and every worker are done with the batch's buffers. Reads that `read`
//!   leaves behind take their buffers along.
//! - An engine that cannot do a request its own way does it by the device's methods; it never fails for that reason.
//! - Engines start threads or kernel workers: make one after the process has detached itself, not before.

mod errands;
mod mmap;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

use super::{Engine, InlineEngine, Op, Request, bounds};
use crate::base::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use mmap::MmapEngine;
pub use threads::ThreadsEngine;
pub use uring::UringEngine;

/// Which engine, and with it whether members are opened with `O_DIRECT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// The best that works here: `Uring`, else `Threads`.
    #[default]
    Auto,
    /// io_uring with `O_DIRECT`.
    Uring,
    /// A pool of threads with `O_DIRECT`.
    Threads,
    /// One request after the other with `O_DIRECT`.
    Inline,
    /// A pool of threads over the page cache.
    Buffered,
    /// Reads staged through mappings of the page cache, writes by a pool of threads.
    Mmap,
}

impl EngineChoice {
    /// All choices with the names users give.
    pub const NAMES: [(&'static str, EngineChoice); 6] = [
        ("auto", EngineChoice::Auto),
        ("uring", EngineChoice::Uring),
        ("threads", EngineChoice::Threads),
        ("inline", EngineChoice::Inline),
        ("buffered", EngineChoice::Buffered),
        ("mmap", EngineChoice::Mmap),
    ];

    /// Whether members should be opened with `O_DIRECT`.
    pub fn direct(self) -> bool {
        !matches!(self, EngineChoice::Buffered | EngineChoice::Mmap)
    }
}

impl FromStr for EngineChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<EngineChoice> {
        let known = EngineChoice::NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = EngineChoice::NAMES.iter().map(|(name, _)| *name).collect();
            Error::Usage(format!("no engine is called {text}; there are {}", names.join(", ")))
        })
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = EngineChoice::NAMES.iter().find(|(_, choice)| choice == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// The engine for a choice, and what the user should know when it is not the one asked for.
pub fn select(choice: EngineChoice) -> (Arc<dyn Engine>, Vec<String>) {
    let threads = || Arc::new(ThreadsEngine::new());
    let instead = |what: &str, why: std::io::Error| vec![format!("{what} cannot be used here ({why}), using threads")];
    match choice {
        EngineChoice::Inline => (Arc::new(InlineEngine), Vec::new()),
        EngineChoice::Threads | EngineChoice::Buffered => (threads(), Vec::new()),
        EngineChoice::Mmap => match MmapEngine::new() {
            Ok(engine) => (Arc::new(engine), Vec::new()),
            Err(why) => (threads(), instead("reading through mappings", why)),
        },
        EngineChoice::Auto | EngineChoice::Uring => match UringEngine::new() {
            Ok(engine) => (Arc::new(engine), Vec::new()),
            Err(why) => (threads(), instead("io_uring", why)),
        },
    }
}

/// The checks a device makes on its own, for requests that bypass it.
fn check(request: &Request<'_>) -> Result<()> {
    let device = request.device;
    match &request.op {
        Op::Read { offset, buf } => bounds::check(device.name(), "read", device.size(), *offset, buf.len() as u64),
        Op::Write { offset, bufs } => {
            bounds::check(device.name(), "write", device.size(), *offset, bounds::total(bufs))
        }
        Op::Flush => Ok(()),
    }
}
