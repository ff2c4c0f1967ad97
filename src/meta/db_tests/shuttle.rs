//! Transactions, snapshots and durable points in many orders of events; see [`crate::base::sync`].

use std::sync::Weak;

use super::*;
use crate::base::sync::{choose, explore, thread};
use crate::meta::db::DataBarrier;
use crate::meta::tx::Tx;

/// The durable side: knows what may be told to be durable, and takes its time for everything.
#[derive(Default)]
struct Durable {
    meta: Mutex<Weak<Meta>>,
    /// The last transaction committed when the newest barrier began.
    flushed: AtomicU64,
    /// The last transaction that cannot be lost.
    sealed: AtomicU64,
    appends: AtomicU64,
    barriers: AtomicU64,
    /// The barrier with this number fails.
    fails: AtomicU64,
    /// The barrier with this number finds something in doubt.
    doubts: AtomicU64,
    in_doubt: AtomicBool,
}

impl Durable {
    fn committed(&self) -> u64 {
        let meta = self.meta.lock().unwrap().upgrade();
        meta.map_or(0, |meta| meta.committed().0)
    }

    fn sealed(&self) -> u64 {
        self.sealed.load(Ordering::Relaxed)
    }

    fn seal(&self, last: u64) {
        assert!(!self.in_doubt.load(Ordering::Relaxed), "what is in doubt was published");
        assert!(last <= self.flushed.load(Ordering::Relaxed), "the data of transaction {last} was not flushed");
        self.sealed.store(last, Ordering::Relaxed);
    }
}

impl RedoLog for Durable {
    fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        // Every third time the log is full.
        if self.appends.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
            return Ok(Appended::CheckpointFirst);
        }
        thread::yield_now();
        let mut last = self.sealed();
        for group in groups {
            assert_eq!(group.txn.0, last + 1, "a group is missing, or there twice");
            last += 1;
        }
        self.seal(last);
        Ok(Appended::Durable)
    }
    fn checkpoint(&self, commit: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        thread::yield_now();
        let last = self.committed();
        commit()?;
        thread::yield_now();
        assert_eq!(self.committed(), last, "a transaction in the middle of a checkpoint");
        self.seal(last);
        Ok(())
    }
    fn wants_checkpoint(&self) -> bool {
        false
    }
    fn prewrite(&self) -> Result<()> {
        thread::yield_now();
        Ok(())
    }
    fn poison(&self, _: &str) {}
}

impl DataBarrier for Durable {
    fn barrier(&self) -> Result<()> {
        let number = self.barriers.fetch_add(1, Ordering::Relaxed) + 1;
        let committed = self.committed();
        thread::yield_now();
        if self.fails.load(Ordering::Relaxed) == number {
            return Err(Error::Unavailable("no device is left".into()));
        }
        if self.doubts.load(Ordering::Relaxed) == number {
            self.in_doubt.store(true, Ordering::Relaxed);
        }
        self.flushed.fetch_max(committed, Ordering::Relaxed);
        Ok(())
    }
    fn in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }
    fn give_up(&self, tx: &mut Tx<'_>) -> Result<()> {
        self.in_doubt.store(false, Ordering::Relaxed);
        both(tx, tx.id().0)
    }
}

/// Sets two counters to the same.
fn both(tx: &mut Tx<'_>, value: u64) -> Result<()> {
    tx.set_counter(Counter::LiveEpoch, value)?;
    thread::yield_now();
    tx.set_counter(Counter::Reserved, value)
}

/// The last transaction in a view, which holds all of it.
fn last(view: &View<'_>) -> Result<u64> {
    let last = view.counter(Counter::LiveEpoch)?;
    thread::yield_now();
    assert_eq!(view.counter(Counter::Reserved)?, last, "half a transaction");
    Ok(last)
}

/// A store and those who use it at once.
struct Model {
    meta: Arc<Meta>,
    durable: Arc<Durable>,
    /// The last transaction somebody was told of; and the last of those that were to be committed at once.
    told: Arc<AtomicU64>,
    told_at_once: Arc<AtomicU64>,
}

impl Model {
    fn new(fails: u64, doubts: u64) -> Model {
        let durable = Arc::new(Durable::default());
        durable.fails.store(fails, Ordering::Relaxed);
        durable.doubts.store(doubts, Ordering::Relaxed);
        let backend = redb::backends::InMemoryBackend::new();
        let log = durable.clone() as Arc<dyn RedoLog>;
        let meta = Meta::open(backend, Vec::new(), log, durable.clone(), Arc::new(SystemClock), false).unwrap();
        let meta = Arc::new(meta);
        *durable.meta.lock().unwrap() = Arc::downgrade(&meta);
        Model { meta, durable, told: Arc::default(), told_at_once: Arc::default() }
    }

    /// Somebody who runs `count` transactions, the last of them durable; `false` when the store is poisoned.
    fn writer(&self, count: u64, at_once: bool) -> impl FnOnce() -> bool + Send + 'static {
        let (meta, durable) = (self.meta.clone(), self.durable.clone());
        let (told, told_at_once) = (self.told.clone(), self.told_at_once.clone());
        move || {
            for number in 1..=count {
                let refused = meta.transact(|tx| both(tx, 999).and(Err::<(), _>(Error::Exists)));
                let written = meta.transact(|tx| {
                    if at_once {
                        tx.commit_at_once();
                    }
                    both(tx, tx.id().0)
                });
                let id = match (refused, written) {
                    (Err(Error::Exists | Error::Poisoned(_)), Ok(((), id))) => id.0,
                    (_, Err(Error::Poisoned(_))) => return false,
                    other => panic!("{other:?}"),
                };
                told.fetch_max(id, Ordering::Relaxed);
                if at_once {
                    told_at_once.fetch_max(id, Ordering::Relaxed);
                }
                if number == count {
                    match meta.durable_point() {
                        Ok(()) => assert!(durable.sealed() >= id && meta.durable().0 >= id, "{id} is not durable"),
                        Err(Error::Poisoned(_)) => return false,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            true
        }
    }

    /// Somebody who looks in every way.
    fn looker(&self) -> impl FnOnce() + Send + 'static {
        let (meta, told, told_at_once) = (self.meta.clone(), self.told.clone(), self.told_at_once.clone());
        move || {
            for _ in 0..2 {
                let least = told.load(Ordering::Relaxed);
                assert!(meta.peek(last).unwrap() >= least, "{least} was told and is not seen");
                let least = told_at_once.load(Ordering::Relaxed);
                assert!(meta.settled(last).unwrap() >= least, "{least} was to be committed at once");
                let least = told.load(Ordering::Relaxed);
                assert!(meta.view(last).unwrap() >= least, "{least} was told and is not in a snapshot");
            }
        }
    }
}

#[test]
fn what_is_told_is_seen_and_what_is_told_to_be_durable_is_sealed() {
    explore(1200, || {
        // Without doubts, or with one found by the first or second barrier.
        let model = Model::new(0, choose(3));
        let writers = [model.writer(2, false), model.writer(2, true), model.writer(1, false)].map(thread::spawn);
        let lookers = [model.looker(), model.looker()].map(thread::spawn);
        let meta = model.meta.clone();
        let checkpoint = thread::spawn(move || meta.checkpoint().unwrap());
        assert!(writers.into_iter().all(|writer| writer.join().unwrap()));
        lookers.into_iter().for_each(|looker| looker.join().unwrap());
        checkpoint.join().unwrap();
        model.meta.durable_point().unwrap();
        assert_eq!(model.durable.sealed(), model.meta.committed().0);
    });
}

#[test]
fn after_a_barrier_has_failed_nobody_is_told_anything() {
    explore(800, || {
        let fails = 1 + choose(2);
        let model = Model::new(fails, 0);
        let writers = [model.writer(2, false), model.writer(1, true), model.writer(1, false)].map(thread::spawn);
        let meta = model.meta.clone();
        let checkpoint = thread::spawn(move || drop(meta.checkpoint()));
        let looker = thread::spawn({
            let meta = model.meta.clone();
            move || drop((meta.peek(last), meta.view(last)))
        });
        writers.into_iter().for_each(|writer| assert!(writer.join().is_ok()));
        checkpoint.join().unwrap();
        looker.join().unwrap();
        if model.durable.barriers.load(Ordering::Relaxed) < fails {
            return;
        }
        let sealed = model.durable.sealed();
        assert!(matches!(model.meta.durable_point(), Err(Error::Poisoned(_))));
        assert!(matches!(model.meta.transact(|_| Ok(())), Err(Error::Poisoned(_))));
        assert_eq!((model.durable.sealed(), model.meta.durable().0), (sealed, sealed));
    });
}
