//! Reads staged through mappings of the page cache; everything else by threads.
//!
//! A mapped page whose device fails, or that a truncation took away, answers a plain load with SIGBUS. So the window is
//! populated first, which reports errors and does the I/O in one go, and then copied out by the kernel, which answers with
//! an error whatever happened to the page meanwhile. No code of ours ever loads from the mapping.

use super::{ThreadsEngine, check};
use crate::device::{Answer, Engine, Op, OwnRead, Request, patience};
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::io;
use std::time::Duration;

/// Reads through mappings, where that works.
pub struct MmapEngine {
    rest: ThreadsEngine,
}

impl MmapEngine {
    /// Tries whether the kernel offers what staged reads need (Linux 5.14, no sandbox against it), then starts the threads
    /// for what is not read by mapping.
    pub fn new() -> io::Result<MmapEngine> {
        let window = MmapRaw::from(MmapOptions::new().len(crate::base::BLOCK_SIZE as usize).map_anon()?);
        stage(&window, &mut [1; crate::base::BLOCK_SIZE as usize])?;
        Ok(MmapEngine { rest: ThreadsEngine::new() })
    }
}

impl Engine for MmapEngine {
    fn run(&self, batch: &mut [Request<'_>]) {
        if !batch.iter().all(|request| matches!(request.op, Op::Read { .. })) {
            return self.rest.run(batch);
        }
        // All windows first, so that the devices read ahead in parallel while the first one is waited for.
        let windows: Vec<_> = batch.iter().map(map).collect();
        for (request, window) in batch.iter_mut().zip(windows) {
            match (&mut request.op, request.device.raw(), window) {
                (Op::Read { buf, .. }, Some(raw), Some(window)) => {
                    let watch = raw.in_flight.start();
                    let staged = stage(&window, buf);
                    drop(watch);
                    match staged {
                        Ok(()) => request.result = Ok(()),
                        // The usual way finds out what is wrong with this range, if anything is.
                        Err(_) => request.run_inline(),
                    }
                }
                _ => request.run_inline(),
            }
        }
    }

    fn read(&self, reads: Vec<OwnRead>, patience: Option<Duration>) -> Vec<Answer> {
        match patience {
            Some(_) => self.rest.read(reads, patience),
            None => patience::run_all(reads, |batch| self.run(batch)),
        }
    }

    fn name(&self) -> &'static str {
        "mmap"
    }
}

/// Maps what a read wants and starts reading it ahead; `None` where that cannot be done.
fn map(request: &Request<'_>) -> Option<MmapRaw> {
    let Op::Read { offset, buf } = &request.op else { return None };
    let raw = request.device.raw()?;
    if buf.is_empty() || check(request).is_err() {
        return None;
    }
    let window = MmapOptions::new().offset(*offset).len(buf.len()).map_raw_read_only(&raw.fd).ok()?;
    // Only a hint.
    let _ = window.advise(Advice::WillNeed);
    Some(window)
}

/// Brings the window into memory and copies it out. They are of the same length.
fn stage(window: &MmapRaw, buf: &mut [u8]) -> io::Result<()> {
    assert_eq!(window.len(), buf.len(), "a window is made for its buffer");
    while let Err(error) = window.advise(Advice::PopulateRead) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let to = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let from = libc::iovec { iov_base: window.as_mut_ptr().cast(), iov_len: window.len() };
    // SAFETY: writes at most `buf.len()` bytes to `buf`, which is borrowed alone; the source is only read, by the kernel,
    // which checks that it is mapped.
    let copied = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
    match usize::try_from(copied) {
        Ok(count) if count == buf.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
