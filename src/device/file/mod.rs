//! Block devices, image files and directories as pool members.
//!
//! Invariants:
//! - An open device is ours alone: `O_EXCL` on block devices, an open-file-description lock on files (shared among readers).
//! - No request reaches past the size found at opening; a file that has become shorter gives errors, never zeros.
//! - After one failed flush no later one succeeds: the kernel may have dropped the data and forgotten about it.
//! - `O_DIRECT` is an optimisation: where it is refused, at opening or later, the page cache is used, and said so once.

mod domain;
mod open;
#[cfg(test)]
pub(in crate::device) mod tests;
pub(in crate::device) mod transfer;

pub use open::{DIRECTORY_FILE, OpenOptions, PathKind, open, probe};

use super::{Device, InFlight, RawFile, bounds};
use crate::base::{Error, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl, fdatasync};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// One member behind a file descriptor.
#[derive(Debug)]
struct FileDevice {
    name: String,
    file: File,
    size: u64,
    block: bool,
    may_wait: bool,
    read_only: bool,
    domain: u64,
    /// What memory must be aligned to while `direct`.
    alignment: usize,
    direct: AtomicBool,
    flush_failed: AtomicBool,
    discards: AtomicBool,
    in_flight: InFlight,
    notes: Mutex<Vec<String>>,
}

impl FileDevice {
    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Runs a transfer; when `O_DIRECT` is refused after all, again without it. `transfer` is told whether it is on.
    fn transfer(&self, operation: &'static str, mut transfer: impl FnMut(bool) -> io::Result<()>) -> Result<()> {
        let _watch = self.in_flight.start();
        let direct = self.direct.load(Ordering::Relaxed);
        match transfer(direct) {
            Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
                self.leave_direct().and_then(|()| transfer(false))
            }
            result => result,
        }
        .map_err(|error| Error::io(&*self.name, operation, error))
    }

    fn leave_direct(&self) -> io::Result<()> {
        fcntl_setfl(&self.file, fcntl_getfl(&self.file)? - OFlags::DIRECT)?;
        if self.direct.swap(false, Ordering::Relaxed) {
            self.note(format!("{}: a request with O_DIRECT was refused, using the page cache from now on", self.name));
        }
        Ok(())
    }

    fn discard_range(&self, offset: u64, len: u64) -> Result<(), Errno> {
        if self.block {
            let range = [offset, len];
            let request = rustix::ioctl::opcode::none(0x12, 119);
            // SAFETY: BLKDISCARD reads two u64, which `range` holds until the call returns.
            match unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&self.file), request as _, range.as_ptr()) } {
                0 => Ok(()),
                _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
            }
        } else {
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
        }
    }
}

impl Device for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        bounds::check(&self.name, "read", self.size, offset, buf.len() as u64)?;
        let fd = self.file.as_fd();
        self.transfer("read", |direct| {
            if direct && !transfer::aligned(buf, self.alignment) {
                transfer::read_bounced(fd, offset, buf)
            } else {
                transfer::read(fd, offset, buf)
            }
        })
    }

    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        self.writable()?;
        bounds::check(&self.name, "write", self.size, offset, bounds::total(bufs))?;
        let fd = self.file.as_fd();
        self.transfer("write", |direct| {
            if direct && !bufs.iter().all(|buf| transfer::aligned(buf, self.alignment)) {
                transfer::write_bounced(fd, offset, bufs)
            } else {
                transfer::write_all(fd, offset, bufs)
            }
        })
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let _watch = self.in_flight.start();
        let failed = |error| Err(Error::io(&*self.name, "flush", error));
        if self.flush_failed.load(Ordering::Acquire) {
            return failed(io::Error::other("an earlier flush failed, so written data may be lost; open it anew"));
        }
        loop {
            match fdatasync(&self.file) {
                Ok(()) if self.flush_failed.load(Ordering::Acquire) => {
                    return failed(io::Error::other("another flush failed meanwhile"));
                }
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.flush_failed.store(true, Ordering::Release);
                    return failed(error.into());
                }
            }
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        self.writable()?;
        bounds::check(&self.name, "discard", self.size, offset, len)?;
        if len == 0 || !self.discards.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let _watch = self.in_flight.start();
        loop {
            match self.discard_range(offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                    self.discards.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(error) => return Err(Error::io(&*self.name, "discard", error.into())),
            }
        }
    }

    fn raw(&self) -> Option<RawFile<'_>> {
        // What `flush` has to say then must not be bypassed.
        if self.flush_failed.load(Ordering::Acquire) {
            return None;
        }
        Some(RawFile {
            fd: self.file.as_fd(),
            direct: self.direct.load(Ordering::Relaxed),
            alignment: self.alignment,
            may_wait: self.may_wait,
            in_flight: &self.in_flight,
            flush_failed: &self.flush_failed,
        })
    }

    fn stalled_ns(&self) -> Option<u64> {
        self.in_flight.oldest_ns()
    }

    fn domain_hint(&self) -> Option<u64> {
        Some(self.domain)
    }

    fn is_file(&self) -> bool {
        !self.block
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
