//! Block storage: one trait, its implementations, and the engines that run many requests at once.
//! Above: `pool` decides what goes where. Below: the kernel, or the simulator.
//!
//! Invariants:
//! - A write is durable only after a later [`Device::flush`] on the same device returned `Ok`.
//! - After an error the content of the written range is unknown until it is written again; other ranges are unaffected.
//! - Reads of ranges never written return zeros (images, directories) or anything at all (block devices).

pub mod buffer;
pub mod engine;
pub mod file;
pub mod in_flight;
pub mod inject;
pub mod patience;
pub mod sim;

mod bounds;

pub use buffer::AlignedBuf;
pub use engine::EngineChoice;
pub use in_flight::InFlight;
pub use patience::{Answer, OwnRead, STALL};

use crate::base::Result;
use std::fmt;
use std::time::Duration;

/// One member's storage: a linear range of bytes. All offsets and lengths of data requests are multiples of
/// [`crate::base::BLOCK_SIZE`] unless the implementation says more.
pub trait Device: Send + Sync {
    /// What a user calls this device: its path.
    fn name(&self) -> &str;

    /// Size in bytes, fixed while open.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`. A read past the end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes the buffers one after the other from `offset` on. Not durable before [`Device::flush`].
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()>;

    /// Makes every completed write durable.
    fn flush(&self) -> Result<()>;

    /// Tells the device that the range holds nothing of use. Content afterwards is unspecified; not durable by itself.
    /// `false`: the device is not interested, and nothing has happened.
    fn discard(&self, offset: u64, len: u64) -> Result<bool>;

    /// What an engine needs to bypass the methods above; `None` for devices without a file behind them.
    fn raw(&self) -> Option<RawFile<'_>> {
        None
    }

    /// Nanoseconds since the oldest request now in flight was started; `None` when idle or unknown.
    /// A device that stalls shows a large value here, and readers then prefer other shards.
    fn stalled_ns(&self) -> Option<u64> {
        None
    }

    /// The kernel's id of what this device finally rests on (`st_dev` of the file or the block device's number),
    /// for failure domains; `None` when it has none.
    fn domain_hint(&self) -> Option<u64> {
        None
    }

    /// Whether it is a file among others, in which somebody may keep something of any kind.
    fn is_file(&self) -> bool {
        false
    }

    /// What the user should know about how this device is used (a fallback, say). Each note is returned once.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

impl fmt::Debug for dyn Device + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// A file descriptor an engine may submit requests on.
#[derive(Clone, Copy, Debug)]
pub struct RawFile<'a> {
    pub fd: std::os::fd::BorrowedFd<'a>,
    /// Opened with `O_DIRECT`: buffers, offsets and lengths must be block-aligned.
    pub direct: bool,
    /// What buffers' addresses must be multiples of when `direct`.
    pub alignment: usize,
    /// Submitting a request may wait for the one before: the file lies on a filesystem that asks somebody else.
    pub may_wait: bool,
    /// Where requests that bypass the device's own methods announce themselves.
    pub in_flight: &'a InFlight,
    /// Must be set when a flush submitted on `fd` fails.
    pub flush_failed: &'a std::sync::atomic::AtomicBool,
}

/// What one request of a batch does.
#[derive(Debug)]
pub enum Op<'a> {
    Read { offset: u64, buf: &'a mut [u8] },
    Write { offset: u64, bufs: Vec<&'a [u8]> },
    Flush,
}

/// One request of a batch, and its answer.
pub struct Request<'a> {
    pub device: &'a dyn Device,
    pub op: Op<'a>,
    /// Set by [`Engine::run`].
    pub result: Result<()>,
}

impl<'a> Request<'a> {
    /// A request that has not run yet.
    pub fn new(device: &'a dyn Device, op: Op<'a>) -> Request<'a> {
        Request { device, op, result: Ok(()) }
    }

    /// Runs the request by itself in the calling thread.
    pub fn run_inline(&mut self) {
        self.result = match &mut self.op {
            Op::Read { offset, buf } => self.device.read_at(*offset, buf),
            Op::Write { offset, bufs } => self.device.write_at(*offset, bufs),
            Op::Flush => self.device.flush(),
        };
    }
}

/// Runs batches: all requests of one batch are in flight together, in no promised order.
pub trait Engine: Send + Sync {
    /// Runs every request and sets every `result`; returns when all have finished.
    fn run(&self, batch: &mut [Request<'_>]);

    /// Runs reads that own what they need. With `patience`, those without an answer after that time are left behind, and end
    /// by themselves; an engine that has no way to do so waits.
    fn read(&self, reads: Vec<OwnRead>, patience: Option<Duration>) -> Vec<Answer> {
        let _ = patience;
        patience::run_all(reads, |batch| self.run(batch))
    }

    /// Its name in status and logs.
    fn name(&self) -> &'static str;
}

/// Runs requests one after the other in the calling thread: for simulation, where order must follow from the seed.
#[derive(Debug, Default)]
pub struct InlineEngine;

impl Engine for InlineEngine {
    fn run(&self, batch: &mut [Request<'_>]) {
        for request in batch {
            request.run_inline();
        }
    }

    /// Nothing is waited for here, so a device is late when it says so before.
    fn read(&self, reads: Vec<OwnRead>, patience: Option<Duration>) -> Vec<Answer> {
        let is_late = |read: &OwnRead| {
            let stalled = read.device.stalled_ns().map(Duration::from_nanos);
            patience.is_some_and(|patience| stalled.is_some_and(|stalled| stalled >= patience))
        };
        reads.into_iter().map(|read| if is_late(&read) { Answer::Late } else { read.run_inline() }).collect()
    }

    fn name(&self) -> &'static str {
        "inline"
    }
}
