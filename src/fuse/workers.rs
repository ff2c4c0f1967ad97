//! The threads that read requests and serve them.
//!
//! Invariants:
//! - A thread that has read a request makes sure, before it serves it, that another one waits in a read, unless
//!   `threads_max` threads are busy: requests that wait for a device, space or a durable point never keep others from
//!   being read.
//! - `reading` counts the threads in a read or on their way to one; whoever wakes or starts a reader counts it first.
//! - At most `readers_max` threads wait in reads, so a burst leaves no crowd that the kernel wakes in turn. (Two for each
//!   processor: a thread that has answered is often not back when its client's next request is read, and with fewer
//!   readers a surplus thread would be woken for most requests of a single busy client.) The surplus
//!   gives its memory back and ends when nobody calls for it.
//! - A panic while serving costs that request an EIO, and nobody else anything.

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl};

use super::abi::{self, op};
use super::adapter::{describe, opcode};
use super::buffer::Buffer;
use super::mount::open_device;
use super::reply::{Channel, Reply};
use super::report::Report;
use crate::base::{Error, Result};

/// How long a thread without work is kept.
const SURPLUS_LIFE: Duration = Duration::from_secs(5);
/// How long such a thread keeps the pages of its buffer.
const SURPLUS_WARMTH: Duration = Duration::from_millis(100);

/// Why a session is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The last mount of it is gone.
    Unmounted,
    /// The connection was broken on request.
    Aborted,
}

/// Serves one request: the channel to answer on, the memory it lies in, and its length.
pub type Serve<'a> = dyn Fn(&dyn Channel, &mut Buffer, usize) + Sync + 'a;

/// The threads of one session.
pub struct Workers<'a> {
    device: BorrowedFd<'a>,
    serve: &'a Serve<'a>,
    report: &'a Report,
    threads_max: usize,
    readers_max: usize,
    reading: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    parked: usize,
    /// Parked threads told to go and read, not yet awake.
    called: usize,
    ended: Option<Result<Ended>>,
}

impl<'a> Workers<'a> {
    /// Threads for the connection behind `device`, at most `threads_max` of them.
    pub fn new(device: BorrowedFd<'a>, threads_max: usize, serve: &'a Serve<'a>, report: &'a Report) -> Workers<'a> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let threads_max = threads_max.max(2);
        Workers {
            device,
            serve,
            report,
            threads_max,
            readers_max: (2 * cpus).clamp(4, 16).min(threads_max),
            reading: AtomicUsize::new(0),
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Serves until the session is over and every request read has been served.
    pub fn run(&self) -> Result<Ended> {
        std::thread::scope(|scope| self.add_reader(scope));
        self.lock().ended.take().unwrap_or_else(|| Err(Error::Unavailable("no thread could be started".into())))
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
                    if self.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
                        self.add_reader(scope);
                    }
                    self.serve_one(&port, &mut buffer, len);
                }
                // The second: the request was withdrawn while it was being read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return self.end(Ok(Ended::Unmounted)),
                Err(Errno::CONNABORTED) => return self.end(Ok(Ended::Aborted)),
                Err(errno) => return self.end(Err(Error::io("/dev/fuse", "read a request", errno.into()))),
            }
            if !self.take_reader_slot() && !self.park(&mut buffer) {
                return;
            }
        }
    }

    fn serve_one(&self, port: &Port<'_>, buffer: &mut Buffer, len: usize) {
        let served = catch_unwind(AssertUnwindSafe(|| (self.serve)(port, buffer, len)));
        let Err(panic) = served else { return };
        // The header lies in the page in front of the data, which a reply's data never overwrites.
        let Some((unique, what, ino)) = describe(buffer.message(len)) else { return };
        self.report.say(format_args!("a {what} of inode {ino} ended in a panic: {}", panic_text(&*panic)));
        let _ = Reply::new(port, unique).errno(libc::EIO);
    }

    fn add_reader<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        if state.parked > state.called {
            state.called += 1;
            self.reading.fetch_add(1, Ordering::AcqRel);
            self.wake.notify_one();
        } else if state.threads < self.threads_max {
            state.threads += 1;
            self.reading.fetch_add(1, Ordering::AcqRel);
            let started = std::thread::Builder::new().name("fuse".into()).spawn_scoped(scope, || self.work(scope));
            if let Err(error) = started {
                state.threads -= 1;
                self.reading.fetch_sub(1, Ordering::AcqRel);
                drop(state);
                self.report.say(format_args!("no further thread for requests: {error}"));
            }
        }
    }

    fn take_reader_slot(&self) -> bool {
        self.reading
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |readers| {
                (readers < self.readers_max).then_some(readers + 1)
            })
            .is_ok()
    }

    /// Waits to be called to read; false when the thread is to end.
    fn park(&self, buffer: &mut Buffer) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        for (patience, last) in [(SURPLUS_WARMTH, false), (SURPLUS_LIFE, true)] {
            state = self
                .wake
                .wait_timeout_while(state, patience, |state| state.called == 0 && state.ended.is_none())
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
            if state.called > 0 {
                state.called -= 1;
                state.parked -= 1;
                return true;
            }
            if last || state.ended.is_some() {
                break;
            }
            drop(state);
            buffer.shrink();
            state = self.lock();
        }
        state.parked -= 1;
        state.threads -= 1;
        false
    }

    fn leave_without_memory(&self, error: Error) {
        let mut state = self.lock();
        state.threads -= 1;
        let last = state.threads == 0;
        drop(state);
        self.reading.fetch_sub(1, Ordering::AcqRel);
        match last {
            true => self.end(Err(error)),
            false => self.report.say(format_args!("no further thread for requests: {error}")),
        }
    }

    fn end(&self, how: Result<Ended>) {
        self.lock().ended.get_or_insert(how);
        self.wake.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
