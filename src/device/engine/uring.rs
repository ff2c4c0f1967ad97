//! Batches through io_uring: one submission, one wait. Buffers of the arena are registered with each ring, which saves
//! pinning their pages per request (a third of the CPU time of a stripe); files are not, since a ring that holds a file
//! would hold its lock after the device is closed.
//!
//! Invariants:
//! - A ring belongs to one batch at a time, and goes back to the pool only with nothing in flight and nothing queued.
//! - Memory handed to the kernel is neither freed, moved nor looked at before its completion was seen: a flight that ends in
//!   any way waits for that, and those that nobody waits for any more own what they need.
//! - Whatever a completion leaves undone (short, interrupted, refused) is done by the device's own methods.

use super::{ThreadsEngine, check};
use crate::base::{BLOCK_SIZE, Error, Result};
use crate::device::file::transfer;
use crate::device::in_flight::Watch;
use crate::device::{AlignedBuf, Answer, Engine, Op, OwnRead, Request, buffer, patience};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use self_cell::{MutBorrow, self_cell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Requests in flight on one ring; larger batches go in waves.
const DEPTH: u32 = 64;
/// How long a wait for all answers goes on before those that came are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Rings kept for reuse.
const KEPT: usize = 8;
/// `IOV_MAX`.
const MAX_SLICES: usize = 1024;

struct Ring {
    uring: IoUring,
    /// The arena is registered with it, as buffer 0.
    registered: bool,
}

impl Ring {
    fn new(registered: bool) -> io::Result<Ring> {
        let build = |coop: bool| {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_clamp();
            if coop {
                builder.setup_coop_taskrun();
            }
            builder.build(DEPTH)
        };
        let uring = build(true).or_else(|error| match error.raw_os_error() {
            // Kernels before 5.19.
            Some(libc::EINVAL) => build(false),
            _ => Err(error),
        })?;
        let registered = registered && {
            let (start, len) = buffer::arena_region();
            let arena = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len };
            // SAFETY: the arena lives as long as the process. Where the limit on locked memory forbids it, we go without.
            unsafe { uring.submitter().register_buffers(&[arena]) }.is_ok()
        };
        Ok(Ring { uring, registered })
    }
}

/// Runs batches through io_uring.
pub struct UringEngine {
    rings: Mutex<Vec<Ring>>,
    /// For batches that find no ring.
    threads: OnceLock<ThreadsEngine>,
    register: bool,
}

impl UringEngine {
    /// Fails where the kernel, a sandbox or a sysctl refuses io_uring, or lacks an operation needed.
    pub fn new() -> io::Result<UringEngine> {
        UringEngine::with_registration(true)
    }

    /// As [`UringEngine::new`], with or without registered buffers.
    pub fn with_registration(register: bool) -> io::Result<UringEngine> {
        let first = Ring::new(register)?;
        let mut probe = Probe::new();
        first.uring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
        ];
        let waits_with_patience = first.uring.params().is_feature_ext_arg();
        if !waits_with_patience || !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring lacks an operation"));
        }
        Ok(UringEngine { rings: Mutex::new(vec![first]), threads: OnceLock::new(), register })
    }

    fn take(&self) -> io::Result<Ring> {
        let kept = self.rings.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.map_or_else(|| Ring::new(self.register), Ok)
    }

    /// For batches that find no ring, being out of descriptors or memory: the next one may be luckier.
    fn threads(&self) -> &ThreadsEngine {
        self.threads.get_or_init(ThreadsEngine::new)
    }

    fn give_back(&self, ring: Option<Ring>) {
        let Some(ring) = ring else { return };
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if rings.len() < KEPT {
            rings.push(ring);
        }
    }
}

impl Engine for UringEngine {
    fn run(&self, batch: &mut [Request<'_>]) {
        if let [request] = batch {
            return request.run_inline();
        }
        let Ok(ring) = self.take() else { return self.threads().run(batch) };
        let (mut flight, alone) = Flight::begin(ring, batch);
        // What cannot go through the ring is done while the rest is under way.
        let outcome = catch_unwind(AssertUnwindSafe(|| alone.iter().for_each(|index| batch[*index].run_inline())));
        flight.finish();
        self.give_back(flight.land(batch));
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    fn read(&self, reads: Vec<OwnRead>, patience: Option<Duration>) -> Vec<Answer> {
        let Some(patience) = patience else { return patience::run_all(reads, |batch| self.run(batch)) };
        if reads.iter().any(|read| read.device.raw().is_none()) {
            return self.threads().read(reads, Some(patience));
        }
        let Ok(ring) = self.take() else { return self.threads().read(reads, Some(patience)) };
        let began = Instant::now();
        let mut trip = Trip::new(MutBorrow::new(reads), |reads| {
            let mut requests: Vec<Request<'_>> = reads.borrow_mut().iter_mut().map(OwnRead::request).collect();
            let (flight, alone) = Flight::begin(ring, &mut requests);
            // A ring takes all that the device would.
            alone.iter().for_each(|index| requests[*index].run_inline());
            Underway { requests, flight: Some(flight) }
        });
        let landed = trip.with_dependent_mut(|_, underway| underway.is_over(began, patience));
        if !landed {
            let answers = trip.with_dependent_mut(|_, underway| underway.so_far());
            // Without a thread for it, dropping waits for it.
            let wait = move || drop(trip);
            let _ = std::thread::Builder::new().name("argosfs-late".into()).spawn(wait);
            return answers;
        }
        let (ring, results) = trip.with_dependent_mut(|_, underway| underway.land());
        self.give_back(ring);
        let reads = trip.into_owner().into_inner();
        reads.into_iter().zip(results).map(|(read, result)| read.answer(result)).collect()
    }

    fn name(&self) -> &'static str {
        "uring"
    }
}

self_cell! {
    /// Reads on their way, and what they need.
    struct Trip {
        owner: MutBorrow<Vec<OwnRead>>,
        #[not_covariant]
        dependent: Underway,
    }
}

/// The part of a [`Trip`] that borrows from the other.
struct Underway<'a> {
    // First, so that it ends before what it reads into.
    flight: Option<Flight<'a>>,
    requests: Vec<Request<'a>>,
}

impl Underway<'_> {
    /// Waits, until so long after the beginning; whether all are answered.
    fn is_over(&mut self, began: Instant, patience: Duration) -> bool {
        self.flight.as_mut().is_none_or(|flight| flight.finish_within(began, patience))
    }

    /// The ring, if it can be used again, and the results of all.
    fn land(&mut self) -> (Option<Ring>, Vec<Result<()>>) {
        let ring = self.flight.take().and_then(|flight| flight.land(&mut self.requests));
        (ring, self.requests.drain(..).map(|request| request.result).collect())
    }

    /// Copies of what was read, while others are still under way.
    fn so_far(&mut self) -> Vec<Answer> {
        let slots: Vec<&Slot<'_>> = self.flight.iter().flat_map(|flight| &flight.slots).collect();
        for slot in slots.iter().filter(|slot| slot.answer.is_some()) {
            slot.settle(&mut self.requests[slot.index]);
        }
        let is_late = |index| slots.iter().any(|slot| slot.index == index && slot.answer.is_none());
        let answer = |(index, request): (usize, &mut Request<'_>)| {
            if is_late(index) {
                return Answer::Late;
            }
            let result = std::mem::replace(&mut request.result, Ok(()));
            let mut copy = AlignedBuf::scratch(0);
            if let (Ok(()), Op::Read { buf, .. }) = (&result, &request.op) {
                copy = AlignedBuf::scratch(buf.len());
                copy.copy_from_slice(buf);
            }
            result.map_or_else(Answer::Failed, |()| Answer::Read(copy))
        };
        self.requests.iter_mut().enumerate().map(answer).collect()
    }
}

/// One request on its way through the ring. The raw pointers within `entry` and `vectors` are into the request's buffers.
struct Slot<'a> {
    /// Its place in the batch.
    index: usize,
    /// Tells the device that the request is in flight; dropped at the answer.
    watch: Option<Watch<'a>>,
    /// Of a flush: where the device remembers that one failed.
    flush_failed: Option<&'a AtomicBool>,
    entry: squeue::Entry,
    /// What `entry` points to for a gathered write; never touched while in flight.
    _vectors: Vec<libc::iovec>,
    /// What the kernel answered; `None` when it was never asked.
    answer: Option<i32>,
}

// SAFETY: what the pointers lead to belongs to the request, which goes where the slot goes, and is only followed by the kernel.
unsafe impl Send for Slot<'_> {}

impl<'a> Slot<'a> {
    /// Prepares a request, if a ring can do it.
    fn of(index: usize, request: &mut Request<'a>, registered: bool) -> Option<Slot<'a>> {
        check(request).ok()?;
        let device = request.device;
        let raw = device.raw()?;
        let fd = types::Fd(raw.fd.as_raw_fd());
        let suits = |bytes: &[u8]| {
            !bytes.is_empty()
                && u32::try_from(bytes.len()).is_ok()
                && (!raw.direct || transfer::aligned(bytes, raw.alignment))
        };
        let fixed = |bytes: &[u8]| registered && buffer::in_arena(bytes.as_ptr(), bytes.len());
        let mut vectors = Vec::new();
        let entry = match &mut request.op {
            Op::Read { offset, buf } => {
                if !suits(buf) {
                    return None;
                }
                let (start, len) = (buf.as_mut_ptr(), buf.len() as u32);
                if fixed(buf) {
                    opcode::ReadFixed::new(fd, start, len, 0).offset(*offset).build()
                } else {
                    opcode::Read::new(fd, start, len).offset(*offset).build()
                }
            }
            Op::Write { offset, bufs } => match &bufs[..] {
                [buf] if suits(buf) && fixed(buf) => {
                    opcode::WriteFixed::new(fd, buf.as_ptr(), buf.len() as u32, 0).offset(*offset).build()
                }
                [buf] if suits(buf) => opcode::Write::new(fd, buf.as_ptr(), buf.len() as u32).offset(*offset).build(),
                bufs if bufs.len() > 1 && bufs.len() <= MAX_SLICES && bufs.iter().all(|buf| suits(buf)) => {
                    let vector = |buf: &&[u8]| libc::iovec { iov_base: buf.as_ptr() as *mut _, iov_len: buf.len() };
                    vectors = bufs.iter().map(vector).collect();
                    opcode::Writev::new(fd, vectors.as_ptr(), vectors.len() as u32).offset(*offset).build()
                }
                _ => return None,
            },
            Op::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = if raw.may_wait { entry.flags(squeue::Flags::ASYNC) } else { entry };
        let flush_failed = matches!(request.op, Op::Flush).then_some(raw.flush_failed);
        Some(Slot { index, watch: Some(raw.in_flight.start()), flush_failed, entry, _vectors: vectors, answer: None })
    }

    /// Takes the kernel's answer. That a flush failed must be known before the next one of the device is asked for, and the
    /// rest of the batch may take its time.
    fn answered(&mut self, answer: i32) {
        self.answer = Some(answer);
        self.watch = None;
        if let Some(failed) = self.flush_failed
            && answer < 0
            && !matches!(-answer, libc::EINTR | libc::EAGAIN)
        {
            failed.store(true, Ordering::Release);
        }
    }

    /// Turns the kernel's answer into the request's result, doing what is left to do.
    fn settle(&self, request: &mut Request<'_>) {
        let device = request.device;
        let operation = match request.op {
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Flush => "flush",
        };
        let count = match self.answer.map(|answer| (usize::try_from(answer), answer)) {
            Some((Ok(count), _)) => count,
            Some((Err(_), answer)) => {
                let errno = -answer;
                let again = match request.op {
                    Op::Flush => matches!(errno, libc::EINTR | libc::EAGAIN),
                    _ => matches!(errno, libc::EINTR | libc::EAGAIN | libc::EINVAL | libc::EBADF | libc::EOPNOTSUPP),
                };
                if again {
                    return request.run_inline();
                }
                request.result = Err(Error::io(device.name(), operation, io::Error::from_raw_os_error(errno)));
                return;
            }
            None => return request.run_inline(),
        };
        if self.flush_failed.is_some_and(|failed| failed.load(Ordering::Acquire)) {
            let why = io::Error::other("another flush failed meanwhile");
            request.result = Err(Error::io(device.name(), operation, why));
            return;
        }
        // A rest is done from the start of the block in which the kernel stopped.
        let done = count / BLOCK_SIZE as usize * BLOCK_SIZE as usize;
        request.result = match &mut request.op {
            Op::Read { buf, .. } if count == buf.len() => Ok(()),
            Op::Read { offset, buf } => device.read_at(*offset + done as u64, &mut buf[done..]),
            Op::Write { bufs, .. } if count == bufs.iter().map(|buf| buf.len()).sum::<usize>() => Ok(()),
            Op::Write { offset, bufs } => {
                let mut skip = done;
                let rest: Vec<&[u8]> = bufs
                    .iter()
                    .map(|buf| {
                        let skipped = skip.min(buf.len());
                        skip -= skipped;
                        &buf[skipped..]
                    })
                    .filter(|buf| !buf.is_empty())
                    .collect();
                device.write_at(*offset + done as u64, &rest)
            }
            Op::Flush => Ok(()),
        };
    }
}

/// The requests of one batch while the kernel has them.
struct Flight<'a> {
    /// `None` after landing.
    ring: Option<Ring>,
    slots: Vec<Slot<'a>>,
    /// Slots not yet in the submission queue.
    waiting: VecDeque<usize>,
    /// Entries in the submission queue that the kernel has not taken.
    queued: usize,
    /// Requests the kernel has taken and not answered.
    flying: usize,
    /// Set when the ring no longer takes requests.
    broken: bool,
}

impl<'a> Flight<'a> {
    /// Starts what can go through the ring, and returns the places of the rest. Without such a rest, starting and waiting are
    /// one call.
    fn begin(ring: Ring, batch: &mut [Request<'a>]) -> (Flight<'a>, Vec<usize>) {
        let mut slots = Vec::with_capacity(batch.len());
        let mut alone = Vec::new();
        for (index, request) in batch.iter_mut().enumerate() {
            match Slot::of(index, request, ring.registered) {
                Some(slot) => slots.push(slot),
                None => alone.push(index),
            }
        }
        let waiting = (0..slots.len()).collect();
        let mut flight = Flight { ring: Some(ring), slots, waiting, queued: 0, flying: 0, broken: false };
        if !alone.is_empty() {
            flight.enter(0);
        }
        (flight, alone)
    }

    /// Waits until everything is answered.
    fn finish(&mut self) {
        while !self.is_over() {
            self.wait();
        }
    }

    /// Waits until everything is answered, or for so long; whether everything was.
    fn finish_within(&mut self, began: Instant, patience: Duration) -> bool {
        while !self.is_over() {
            self.wait();
            if began.elapsed() >= patience {
                return self.is_over();
            }
        }
        true
    }

    fn is_over(&self) -> bool {
        self.flying == 0 && (self.broken || (self.queued == 0 && self.waiting.is_empty()))
    }

    /// Waits for a little while, then looks at what was answered.
    fn wait(&mut self) {
        if self.broken {
            // Answers arrive without our asking; asking is what fails.
            std::thread::sleep(Duration::from_micros(100));
        } else {
            self.enter(1);
        }
        self.reap();
    }

    fn enter(&mut self, want: usize) {
        self.fill();
        let want = want * (self.flying + self.queued);
        if self.queued == 0 && want == 0 {
            return;
        }
        // While one device hangs, the answers of the others must still be seen: they are not to look stalled too.
        let patience = types::Timespec::from(LOOK_AGAIN);
        let arguments = types::SubmitArgs::new().timespec(&patience);
        let Some(ring) = &self.ring else { return };
        match ring.uring.submitter().submit_with_args(want, &arguments) {
            Ok(taken) => {
                self.queued -= taken;
                self.flying += taken;
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME) => {}
                // The kernel is short of something; what is in flight will free it.
                Some(libc::EAGAIN | libc::EBUSY) if self.flying > 0 => {}
                _ => self.broken = true,
            },
        }
    }

    fn fill(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let mut queue = ring.uring.submission();
        while self.flying + self.queued < DEPTH as usize
            && let Some(next) = self.waiting.front().copied()
        {
            let entry = self.slots[next].entry.clone().user_data(next as u64);
            // SAFETY: what the entry points to belongs to the batch's requests or to the slot, and both outlive the flight,
            // which lands only after every answer.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            self.waiting.pop_front();
            self.queued += 1;
        }
    }

    fn reap(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        for answer in ring.uring.completion() {
            self.flying -= 1;
            let slot = &mut self.slots[answer.user_data() as usize];
            slot.answered(answer.result());
        }
    }

    /// Puts the answers into the requests they began with; the ring, if it can be used again. All must be answered.
    fn land(mut self, batch: &mut [Request<'a>]) -> Option<Ring> {
        for slot in std::mem::take(&mut self.slots) {
            slot.settle(&mut batch[slot.index]);
        }
        self.ring.take().filter(|_| !self.broken)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // The kernel would write into memory that is about to be something else.
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(op: Op<'_>) -> (Slot<'static>, Op<'_>) {
        let entry = opcode::Nop::new().build();
        (Slot { index: 0, watch: None, flush_failed: None, entry, _vectors: Vec::new(), answer: None }, op)
    }

    /// The device knows as soon as the kernel has said so, and flushes that went on meanwhile prove nothing.
    #[test]
    fn a_failed_flush_is_known_at_once() {
        let failed = AtomicBool::new(false);
        let world = crate::device::sim::SimWorld::new(2, 1, 1 << 20);
        let device = world.device(0);
        let flush = |answer| {
            let mut slot = Slot { flush_failed: Some(&failed), ..slot(Op::Flush).0 };
            slot.answered(answer);
            let mut request = Request::new(&*device, Op::Flush);
            slot.settle(&mut request);
            request.result
        };
        flush(0).unwrap();
        flush(-libc::EINTR).unwrap();
        assert!(!failed.load(Ordering::Acquire));
        let mut slot = Slot { flush_failed: Some(&failed), ..slot(Op::Flush).0 };
        slot.answered(-libc::EIO);
        assert!(failed.load(Ordering::Acquire));
        assert!(flush(0).is_err());
    }

    /// Answers that real devices rarely give: each must end with the data where it belongs, or with the right error.
    #[test]
    fn short_and_refused_answers_are_finished_by_the_device() {
        let world = crate::device::sim::SimWorld::new(1, 1, 1 << 20);
        let device = world.device(0);
        let bytes: Vec<u8> = (0..16384u32).map(|at| (at / 64) as u8).collect();
        for answer in [0, 100, 4096, 5000, 8192, 16383, -libc::EINTR, -libc::EAGAIN, -libc::EINVAL, -libc::EBADF] {
            device.write_at(0, &[&[0; 16384]]).unwrap();
            // The kernel wrote what it says it wrote.
            let done = usize::try_from(answer).unwrap_or(0) / 4096 * 4096;
            device.write_at(0, &[&bytes[..done]]).unwrap();
            let (mut slot, op) = slot(Op::Write { offset: 0, bufs: vec![&bytes[..6000], &bytes[6000..]] });
            slot.answer = Some(answer);
            let mut request = Request::new(&*device, op);
            slot.settle(&mut request);
            request.result.unwrap();
            let mut back = bytes[..done].to_vec();
            back.resize(16384, 0);
            let (mut slot, op) = self::slot(Op::Read { offset: 0, buf: &mut back });
            slot.answer = Some(answer);
            let mut request = Request::new(&*device, op);
            slot.settle(&mut request);
            request.result.unwrap();
            assert!(back == bytes, "answer {answer}");
        }
        let (mut slot, op) = slot(Op::Write { offset: 0, bufs: vec![&bytes] });
        slot.answer = Some(-libc::EIO);
        let mut request = Request::new(&*device, op);
        let before = world.record();
        slot.settle(&mut request);
        assert!(matches!(request.result, Err(Error::Io { operation: "write", .. })));
        assert_eq!(world.record(), before, "an I/O error is not tried again");
    }
}
