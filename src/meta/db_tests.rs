//! Transactions that share one of the database's: alone when refused, seen at once when acknowledged.

#[cfg(feature = "shuttle")]
mod shuttle;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::db::{Appended, MemoryLog, Meta, RedoGroup, RedoLog};
use super::tx::{Reader, View, Visit};
use crate::base::{Error, Prng, Result, SystemClock};
use crate::format::rows::{ConfigKey, Counter};
use crate::format::table::{Config, Counters};

/// Rows of `config` by name, and counters but for the number of the transaction.
type Model = (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<u8, u64>);

fn rows(view: &View<'_>) -> Result<Model> {
    let mut model = Model::default();
    view.scan::<Config>((Bound::Unbounded, Bound::Unbounded), |key, row| {
        model.0.insert(key.name, row);
        Ok(Visit::Continue(()))
    })?;
    view.scan::<Counters>((Bound::Excluded(Counter::Txn as u8), Bound::Unbounded), |counter, value| {
        model.1.insert(counter, value);
        Ok(Visit::Continue(()))
    })?;
    Ok(model)
}

/// Keeps what was made durable.
#[derive(Default)]
struct Kept(Mutex<Vec<RedoGroup>>);

impl RedoLog for Kept {
    fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        self.0.lock().unwrap().extend_from_slice(groups);
        Ok(Appended::Durable)
    }
    fn checkpoint(&self, commit: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        commit()
    }
    fn wants_checkpoint(&self) -> bool {
        false
    }
    fn prewrite(&self) -> Result<()> {
        Ok(())
    }
    fn poison(&self, _: &str) {}
}

fn store(groups: Vec<RedoGroup>, log: Arc<dyn RedoLog>) -> Meta {
    let backend = redb::backends::InMemoryBackend::new();
    Meta::open(backend, groups, log, Arc::new(()), Arc::new(SystemClock), false).unwrap()
}

#[test]
fn a_refused_transaction_takes_nothing_with_it_and_leaves_nothing() {
    for seed in 0..20 {
        let mut prng = Prng::new(seed);
        let log = Arc::new(Kept::default());
        let meta = store(Vec::new(), log.clone());
        let mut model = Model::default();
        for step in 0..400 {
            let mut next = model.clone();
            let refuse = prng.chance(1, 3);
            let outcome = meta.transact(|tx| {
                for _ in 0..prng.below(8) {
                    let counter = [Counter::LiveEpoch, Counter::Reserved][prng.below(2) as usize];
                    if prng.chance(1, 4) {
                        tx.set_counter(counter, step)?;
                        next.1.insert(counter as u8, step);
                    }
                    assert_eq!(tx.counter(counter)?, next.1.get(&(counter as u8)).copied().unwrap_or(0));
                    let name = vec![prng.below(20) as u8];
                    let key = ConfigKey { name: name.clone() };
                    if prng.chance(1, 3) {
                        assert_eq!(tx.delete::<Config>(&key)?, next.0.remove(&name).is_some());
                    } else {
                        let row = vec![step as u8; prng.below(300) as usize];
                        tx.put::<Config>(&key, &row)?;
                        next.0.insert(name, row);
                    }
                }
                if refuse { Err(Error::Exists) } else { Ok(()) }
            });
            assert_eq!(outcome.is_err(), refuse);
            if !refuse {
                model = next;
            }
            match prng.below(8) {
                0 => assert_eq!(meta.view(rows).unwrap(), model, "seed {seed}, step {step}"),
                1 => meta.durable_point().unwrap(),
                _ => assert_eq!(meta.peek(rows).unwrap(), model, "seed {seed}, step {step}"),
            }
        }
        meta.durable_point().unwrap();
        let groups = log.0.lock().unwrap().clone();
        let replayed = store(groups, Arc::new(MemoryLog));
        assert_eq!(replayed.peek(rows).unwrap(), model, "seed {seed}");
        assert_eq!(replayed.committed(), meta.committed());
    }
}

#[test]
fn what_is_acknowledged_is_seen_by_whoever_looks_afterwards() {
    const TRANSACTIONS: u64 = 20_000;
    let meta = store(Vec::new(), Arc::new(MemoryLog));
    let acknowledged = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for view in [true, false, false] {
            let (meta, acknowledged, done) = (&meta, &acknowledged, &done);
            scope.spawn(move || {
                let read = |view: &View<'_>| view.counter(Counter::NextIno);
                while !done.load(Ordering::Acquire) {
                    let before = acknowledged.load(Ordering::Acquire);
                    let seen = if view { meta.view(read) } else { meta.peek(read) }.unwrap();
                    assert!(seen >= before, "{before} was acknowledged, {seen} is seen");
                }
            });
        }
        for number in 1..=TRANSACTIONS {
            meta.transact(|tx| tx.set_counter(Counter::NextIno, number)).unwrap();
            acknowledged.store(number, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn what_is_to_be_committed_at_once_is_settled_and_the_rest_is_when_somebody_views() {
    let meta = store(Vec::new(), Arc::new(MemoryLog));
    let read = |view: &View<'_>| view.counter(Counter::NextIno);
    meta.transact(|tx| tx.set_counter(Counter::NextIno, 1)).unwrap();
    assert_eq!((meta.settled(read).unwrap(), meta.peek(read).unwrap()), (0, 1));
    meta.transact(|tx| {
        tx.commit_at_once();
        tx.set_counter(Counter::NextIno, 2)
    })
    .unwrap();
    assert_eq!(meta.settled(read).unwrap(), 2);
    meta.transact(|tx| tx.set_counter(Counter::NextIno, 3)).unwrap();
    assert_eq!(meta.view(read).unwrap(), 3);
    assert_eq!(meta.settled(read).unwrap(), 3);
}

#[test]
fn what_was_acknowledged_before_a_poisoning_can_still_be_read() {
    let meta = store(Vec::new(), Arc::new(MemoryLog));
    let read = |view: &View<'_>| view.counter(Counter::NextIno);
    meta.transact(|tx| tx.set_counter(Counter::NextIno, 7)).unwrap();
    let _ = meta.poison("a test");
    assert!(meta.transact(|tx| tx.set_counter(Counter::NextIno, 8)).is_err());
    assert_eq!((meta.view(read).unwrap(), meta.peek(read).unwrap()), (7, 7));
}
