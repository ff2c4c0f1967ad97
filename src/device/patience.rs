//! Reads that can be left behind. A device that has gone silent keeps its requests for as long as it likes, with the memory
//! that they read into; so a read that is not to wait for it owns that memory and the device, and takes them along.

use std::sync::Arc;
use std::time::Duration;

use super::{AlignedBuf, Device, Op, Request};
use crate::base::{Error, Result};

/// How long a request may take before others go around its device.
pub const STALL: Duration = Duration::from_millis(500);

/// A read with everything that it needs.
pub struct OwnRead {
    pub device: Arc<dyn Device>,
    pub offset: u64,
    pub buf: AlignedBuf,
}

/// What became of a read.
#[derive(Debug)]
pub enum Answer {
    Read(AlignedBuf),
    Failed(Error),
    /// There was no answer in time. The device may still give one, to nobody.
    Late,
}

impl OwnRead {
    /// The same as a request, while it is looked after.
    pub fn request(&mut self) -> Request<'_> {
        Request::new(&*self.device, Op::Read { offset: self.offset, buf: &mut self.buf })
    }

    /// Reads by itself in the calling thread.
    pub fn run_inline(mut self) -> Answer {
        let mut request = self.request();
        request.run_inline();
        let result = request.result;
        self.answer(result)
    }

    /// The answer to a read that ended like this.
    pub fn answer(self, result: Result<()>) -> Answer {
        match result {
            Ok(()) => Answer::Read(self.buf),
            Err(error) => Answer::Failed(error),
        }
    }
}

/// Has all of them run as one batch, and waits for it.
pub(super) fn run_all(mut reads: Vec<OwnRead>, run: impl FnOnce(&mut [Request<'_>])) -> Vec<Answer> {
    let mut batch: Vec<Request<'_>> = reads.iter_mut().map(OwnRead::request).collect();
    run(&mut batch);
    let results: Vec<Result<()>> = batch.into_iter().map(|request| request.result).collect();
    reads.into_iter().zip(results).map(|(read, result)| read.answer(result)).collect()
}
