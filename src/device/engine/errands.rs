//! Threads that read for somebody else, who may leave before they are done.
//!
//! Invariants:
//! - Each read under way has a thread of its own: however many are stuck, the next one is not.
//! - A thread that finds nothing to do stays while few others do; one that was stuck counts as any other.

use crate::device::{Answer, OwnRead};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads kept for the next reads.
const KEPT: usize = 12;

/// The reads of one caller.
struct Party {
    answers: Mutex<Answers>,
    all_here: Condvar,
}

struct Answers {
    given: Vec<Option<Answer>>,
    left: usize,
}

impl Party {
    fn give(&self, at: usize, answer: Answer) {
        let mut answers = lock(&self.answers);
        answers.left -= 1;
        // Nobody is there any more when the list is gone.
        if let Some(place) = answers.given.get_mut(at) {
            *place = Some(answer);
        }
        if answers.left == 0 {
            self.all_here.notify_all();
        }
    }
}

struct Errand {
    read: OwnRead,
    at: usize,
    party: Arc<Party>,
}

impl Errand {
    fn run(self) {
        self.party.give(self.at, self.read.run_inline());
    }
}

#[derive(Default)]
struct Queue {
    errands: VecDeque<Errand>,
    idle: usize,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    fn serve(&self, first: Errand) {
        first.run();
        let mut queue = lock(&self.queue);
        loop {
            if let Some(errand) = queue.errands.pop_front() {
                drop(queue);
                errand.run();
                queue = lock(&self.queue);
            } else if queue.closing || queue.idle >= KEPT {
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs reads on threads, as many as there are reads under way.
#[derive(Default)]
pub struct Errands {
    shared: Arc<Shared>,
}

impl Errands {
    /// Reads, and waits no longer than `patience`.
    pub fn read(&self, reads: Vec<OwnRead>, patience: Duration) -> Vec<Answer> {
        let count = reads.len();
        let answers = Mutex::new(Answers { given: (0..count).map(|_| None).collect(), left: count });
        let party = Arc::new(Party { answers, all_here: Condvar::new() });
        for (at, read) in reads.into_iter().enumerate() {
            self.send(Errand { read, at, party: Arc::clone(&party) });
        }
        let answers = lock(&party.answers);
        let waited = party.all_here.wait_timeout_while(answers, patience, |answers| answers.left > 0);
        let mut answers = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::take(&mut answers.given).into_iter().map(|given| given.unwrap_or(Answer::Late)).collect()
    }

    /// Gives it to a thread that is idle or new.
    fn send(&self, errand: Errand) {
        let mut queue = lock(&self.shared.queue);
        if queue.idle > queue.errands.len() {
            queue.errands.push_back(errand);
            self.shared.work.notify_one();
            return;
        }
        drop(queue);
        let (shared, held) = (Arc::clone(&self.shared), Arc::new(Mutex::new(Some(errand))));
        let taken = Arc::clone(&held);
        let started = std::thread::Builder::new().name("argosfs-read".into()).spawn(move || {
            let errand = lock(&taken).take();
            if let Some(errand) = errand {
                shared.serve(errand);
            }
        });
        if started.is_err() {
            // The system has no thread to spare: it is waited for.
            let errand = lock(&held).take();
            errand.into_iter().for_each(Errand::run);
        }
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        // Threads end by themselves; one that hangs on a device is not waited for.
        lock(&self.shared.queue).closing = true;
        self.shared.work.notify_all();
    }
}
