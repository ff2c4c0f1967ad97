//! The threads that read requests and serve them.
//!
//! Invariants:
//! - A thread that has read a request makes sure, before it serves it, that another one waits in a read, unless
//!   `threads_max` threads are busy: requests that wait for a device, space or a durable point never keep others from
//!   being read.
//! - At most `readers_max` threads wait in reads, so a burst leaves no crowd that the kernel wakes in turn. (Two for each
//!   processor: a thread that has answered is often not back when its client's next request is read, and with fewer
//!   readers a surplus thread would be woken for most requests of a single busy client.) The surplus
//!   gives its memory back and ends when nobody calls for it.
//! - A panic while serving costs that request an EIO, and nobody else anything.

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Scope;

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl};

use super::abi::{self, op};
use super::adapter::{describe, opcode};
use super::buffer::Buffer;
use super::crew::{Crew, Ended};
use super::mount::open_device;
use super::reply::{Channel, Reply};
use super::report::Report;
use crate::base::{Error, Result};

/// Serves one request: the channel to answer on, the memory it lies in, and its length.
pub type Serve<'a> = dyn Fn(&dyn Channel, &mut Buffer, usize) + Sync + 'a;

/// The threads of one session.
pub struct Workers<'a> {
    device: BorrowedFd<'a>,
    serve: &'a Serve<'a>,
    report: &'a Report,
    crew: Crew,
}

impl<'a> Workers<'a> {
    /// Threads for the connection behind `device`, at most `threads_max` of them.
    pub fn new(device: BorrowedFd<'a>, threads_max: usize, serve: &'a Serve<'a>, report: &'a Report) -> Workers<'a> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Workers { device, serve, report, crew: Crew::new(threads_max, (2 * cpus).clamp(4, 16)) }
    }

    /// Serves until the session is over and every request read has been served.
    pub fn run(&self) -> Result<Ended> {
        std::thread::scope(|scope| self.add_reader(scope));
        self.crew.outcome()
    }

    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let clone = clone_device(self.device).ok();
        let port = Port { device: clone.as_ref().map_or(self.device, AsFd::as_fd), report: self.report };
        let mut buffer = match Buffer::new() {
            Ok(buffer) => buffer,
            Err(error) => return self.leave_without_memory(error),
        };
        loop {
            match rustix::io::read(port.device, buffer.message_mut()) {
                Ok(len) => {
                    if never_waits(buffer.message(len)) {
                        self.serve_one(&port, &mut buffer, len);
                        continue;
                    }
                    if self.crew.leave_read() {
                        self.add_reader(scope);
                    }
                    self.serve_one(&port, &mut buffer, len);
                }
                // The second: the request was withdrawn while it was being read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NOMEM) => {
                    // It passes, and with one thread fewer each time there would soon be none.
                    self.report.say(format_args!("no memory to read a request: trying again"));
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
                Err(Errno::NODEV) => return self.crew.end(Ok(Ended::Unmounted)),
                Err(Errno::CONNABORTED) => return self.crew.end(Ok(Ended::Aborted)),
                Err(errno) => return self.crew.end(Err(Error::io("/dev/fuse", "read a request", errno.into()))),
            }
            if !self.crew.read_again(|| buffer.shrink()) {
                return;
            }
        }
    }

    fn serve_one(&self, port: &Port<'_>, buffer: &mut Buffer, len: usize) {
        let served = catch_unwind(AssertUnwindSafe(|| (self.serve)(port, buffer, len)));
        let Err(panic) = served else { return };
        // The header lies in the page in front of the data, which a reply's data never overwrites.
        let Some((unique, what, ino)) = describe(buffer.message(len)) else { return };
        let _ = Reply::new(port, unique).errno(libc::EIO);
        self.report.say(format_args!("a {what} of inode {ino} ended in a panic: {}", panic_text(&*panic)));
    }

    fn add_reader<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let start = || {
            let thread = std::thread::Builder::new().name("fuse".into());
            thread.spawn_scoped(scope, || self.work(scope)).map(drop)
        };
        if let Err(error) = self.crew.add_reader(start) {
            self.report.say(format_args!("no further thread for requests: {error}"));
        }
    }

    fn leave_without_memory(&self, error: Error) {
        match self.crew.desert() {
            true => self.crew.end(Err(error)),
            false => self.report.say(format_args!("no further thread for requests: {error}")),
        }
    }
}

/// A descriptor that requests are read from and their replies written to.
pub struct Port<'a> {
    pub device: BorrowedFd<'a>,
    pub report: &'a Report,
}

impl Channel for Port<'_> {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match rustix::io::writev(self.device, parts) {
            Ok(_) => Ok(()),
            Err(errno @ (Errno::NOENT | Errno::NODEV | Errno::CONNABORTED)) => Err(errno.into()),
            Err(errno) => {
                self.report.say(format_args!("the kernel refused a message: {errno}"));
                Err(errno.into())
            }
        }
    }
}

/// Another queue of the same connection, so that threads do not share one.
fn clone_device(device: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fresh = open_device()?;
    // SAFETY: this ioctl reads one u32, the number of an open descriptor, and `Setter` passes a pointer to exactly that.
    unsafe { ioctl(&fresh, Setter::<{ abi::DEV_IOC_CLONE }, u32>::new(device.as_raw_fd() as u32))? };
    Ok(fresh)
}

/// Whether this thread can serve the message and still count as a reader: forgets and interrupts, which come in numbers.
fn never_waits(message: &[u8]) -> bool {
    opcode(message).is_some_and(|opcode| matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
