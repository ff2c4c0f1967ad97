//! The threads of an open filesystem: some commit content, one looks after everything that is due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fs;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::thread::{self, JoinHandle};
use crate::base::{Error, Result};

/// Threads that commit content. More than there are processors: they wait for devices most of the time.
pub const WORKERS: usize = 3;
/// How long acknowledged changes may stay volatile when nobody asks for durability.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Steps of reclaiming between two looks at the clock.
const RECLAIM_STEPS: usize = 16;

/// The running threads. Dropped, they stop without making anything durable.
pub struct Background {
    fs: Arc<Fs>,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Fs {
    /// Does what is due every few seconds: everything becomes durable, and the log short.
    pub fn tick(&self) -> Result<()> {
        self.retry_orphans();
        let synced = self.syncfs();
        if self.store.meta().wants_checkpoint() {
            self.store.meta().checkpoint()?;
        }
        synced
    }

    /// Gives back some of the space that nobody can reach any more; says whether there may be more.
    pub fn reclaim_some(&self) -> Result<bool> {
        // Whoever looks for space waits for this instead of finding nothing left to do.
        let _only = self.writeback.hold_relief();
        for _ in 0..RECLAIM_STEPS {
            if !(self.reclaim_step()? || self.truncate_step()?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Repairs what reads found bad, moves content to better places and, unless there is, discards what became free: a
    /// bounded step of each. Says whether there may be more. `all` as in `Store::tidy_step`.
    fn tidy(&self, all: bool) -> Result<bool> {
        let repaired = self.store.repair_queued()?;
        Ok(self.store.tidy_step(all)? || repaired > 0 || (all && self.store.discard_step()?))
    }

    /// Waits for things to do and does them, until told to stop.
    fn keep(&self, interval: Duration, stop: &AtomicBool) {
        let mut next = Instant::now() + interval;
        let mut tidy_all = false;
        while !stop.load(Ordering::Acquire) {
            let due = Instant::now() >= next;
            if due {
                // An error is told to whoever asks for durability; a poisoned store to everybody.
                let _ = self.tick();
                next = Instant::now() + interval;
                tidy_all = true;
            }
            // What cannot be done now is tried again when the next inode is given up, or at the next tick.
            let more = self.reclaim_some().unwrap_or(false) || self.tidy(tidy_all).unwrap_or(false);
            tidy_all &= more;
            if !more && !stop.load(Ordering::Acquire) {
                self.wait_for_orphans(next.saturating_duration_since(Instant::now()));
            }
        }
    }
}

impl Background {
    /// Starts `workers` threads that commit content, and one that makes everything durable every `interval`.
    pub fn start(fs: Arc<Fs>, workers: usize, interval: Duration) -> Result<Background> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut background = Background { fs: fs.clone(), stop: stop.clone(), keeper: None, workers: Vec::new() };
        fs.writeback.set_workers(workers);
        for _ in 0..workers {
            let fs = fs.clone();
            background.workers.push(spawn("argosfs-write", move || fs.work())?);
        }
        background.keeper = Some(spawn("argosfs-keeper", move || fs.keep(interval, &stop))?);
        Ok(background)
    }

    /// Makes everything durable and stops the threads.
    pub fn stop(mut self) -> Result<()> {
        self.stop_keeper();
        self.fs.syncfs()
    }

    fn stop_keeper(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.fs.interrupt();
        if let Some(keeper) = self.keeper.take() {
            // A panic of the keeper was told by the thread itself.
            let _ = keeper.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop_keeper();
        self.fs.writeback.set_workers(0);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        // Batches that came before any worker did.
        self.fs.work();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(body).map_err(|source| Error::io("the system", "starting a thread", source))
}
