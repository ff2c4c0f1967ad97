//! Transactions and durable points.
//!
//! Invariants:
//! - Transactions are numbered without gaps; each commit writes its number into the `Txn` counter.
//! - `durable <= committed`; a group enters the log only after the data barrier that follows its commit.
//! - Transactions share one of redb's until somebody needs a snapshot of them, or `SHARE` of them have come: `open`
//!   holds it, `unsettled` says so. A commit of redb costs more than most transactions.
//! - Lock order: `seal`, `writer`, `open`, then whatever the bodies of transactions lock: none of that may be held by who
//!   calls [`Meta::transact`], [`Meta::view`] or [`Meta::peek`]. Nobody holds `open` while waiting for a device, but for
//!   pages of the tables.
//! - After a failed barrier, append or commit nothing is acknowledged any more: the store is poisoned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{Database, Durability};

use super::journal::Head;
use super::tables::{Write, store_error};
use super::tx::{Reader, Scratch, Tx, View, apply};
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::{Mutex, lock};
use crate::base::{Clock, Error, Result, TxnId};
use crate::format::rows::Counter;

/// The row changes of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedoGroup {
    pub txn: TxnId,
    pub changes: Vec<u8>,
}

/// What became of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Appended {
    /// It cannot be lost any more.
    Durable,
    /// The log has no room; nothing was written. A checkpoint makes everything committed durable by itself, the groups of
    /// this append included, which need not be appended after it.
    CheckpointFirst,
}

/// The durable side of the store: the log in front and the home behind it.
pub trait RedoLog: Send + Sync {
    /// Called before each transaction and checkpoint: takes space ahead, so that a lack of it is told here and not inside the
    /// database.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }
    /// The same for whoever goes on with what is at hand.
    fn prepare_what_can_be(&self) -> Result<()> {
        match self.prepare() {
            Err(Error::NoSpace) => Ok(()),
            done => done,
        }
    }
    /// Makes the groups durable on every live replica, all or none.
    fn append(&self, groups: &[RedoGroup]) -> Result<Appended>;
    /// Runs `commit`, redb's durable commit, inside the window in which home may change its header.
    fn checkpoint(&self, commit: &mut dyn FnMut() -> Result<()>) -> Result<()>;
    /// Whether a checkpoint is due.
    fn wants_checkpoint(&self) -> bool;
    /// Whether so much redo since the last checkpoint may be all that there is space for.
    fn is_tight(&self, _redo: u64) -> bool {
        false
    }
    /// Writes back what a checkpoint would have to, without holding anybody up.
    fn prewrite(&self) -> Result<()>;
    /// Refuses every write from now on.
    fn poison(&self, why: &str);
}

/// No log at all: the store lives in memory.
#[derive(Debug, Default)]
pub struct MemoryLog;

impl RedoLog for MemoryLog {
    fn append(&self, _: &[RedoGroup]) -> Result<Appended> {
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

/// Makes all data written so far durable; called before the metadata that refers to it.
pub trait DataBarrier: Send + Sync {
    fn barrier(&self) -> Result<()>;
    /// Whether a barrier found data that a device may not have kept: then it has to be given up.
    fn in_doubt(&self) -> bool;
    /// Lets the rows do without the data in doubt.
    fn give_up(&self, tx: &mut Tx<'_>) -> Result<()>;
}

impl DataBarrier for () {
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn in_doubt(&self) -> bool {
        false
    }
    fn give_up(&self, _: &mut Tx<'_>) -> Result<()> {
        Ok(())
    }
}

pub(super) struct Writer {
    scratch: Scratch,
    pub(super) last: TxnId,
    pub(super) journal: Head,
    pending: Vec<RedoGroup>,
    pending_bytes: usize,
    /// Bytes of redo since the last checkpoint.
    since_checkpoint: u64,
}

/// The database's transaction that finished ones of ours are in.
struct Open {
    write: Write,
    sharing: usize,
    /// How many have peeked since the last transaction.
    peeks: usize,
}

impl Writer {
    fn take_pending(&mut self) -> (Vec<RedoGroup>, TxnId) {
        self.pending_bytes = 0;
        (std::mem::take(&mut self.pending), self.last)
    }
}

/// Transactions that share one of the database's.
const SHARE: usize = 100;
/// Peeks after which a snapshot is worth its price.
const PEEKS: usize = 16;
/// Memory for the database's own cache of pages.
const CACHE_BYTES: usize = 64 << 20;
/// Redo that may wait for its durable point before a transaction makes one itself, in bytes and in transactions.
const PENDING_BYTES: usize = 8 << 20;
const PENDING_GROUPS: usize = 10_000;

/// The metadata store.
pub struct Meta {
    db: Option<Database>,
    pub(super) log: Arc<dyn RedoLog>,
    barrier: Arc<dyn DataBarrier>,
    clock: Arc<dyn Clock>,
    seal: Mutex<()>,
    pub(super) writer: Mutex<Writer>,
    open: Mutex<Option<Open>>,
    unsettled: AtomicBool,
    pub(super) committed: AtomicU64,
    durable: AtomicU64,
    poisoned: Mutex<Option<String>>,
    read_only: bool,
}

impl Meta {
    /// A store in memory, without durability: for tests of the layers above.
    pub fn in_memory(clock: Arc<dyn Clock>) -> Result<Meta> {
        Meta::in_memory_with(Arc::new(()), clock)
    }

    /// The same, with a barrier before each durable point.
    pub fn in_memory_with(barrier: Arc<dyn DataBarrier>, clock: Arc<dyn Clock>) -> Result<Meta> {
        let backend = redb::backends::InMemoryBackend::new();
        let db = Database::builder().create_with_backend(backend).map_err(store_error)?;
        Meta::start(db, Vec::new(), Arc::new(MemoryLog), barrier, clock, false)
    }

    /// Opens the database on `backend`, or makes it when the backend is empty, and replays `groups`.
    pub fn open(
        backend: impl redb::StorageBackend,
        groups: Vec<RedoGroup>,
        log: Arc<dyn RedoLog>,
        barrier: Arc<dyn DataBarrier>,
        clock: Arc<dyn Clock>,
        read_only: bool,
    ) -> Result<Meta> {
        let db = guarded(|| {
            Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(store_error)
        })?;
        Meta::start(db, groups, log, barrier, clock, read_only)
    }

    /// Takes over an opened database: creates missing tables and replays `groups`, skipping those it holds already.
    pub fn start(
        db: Database,
        groups: Vec<RedoGroup>,
        log: Arc<dyn RedoLog>,
        barrier: Arc<dyn DataBarrier>,
        clock: Arc<dyn Clock>,
        read_only: bool,
    ) -> Result<Meta> {
        let (last, journal) = guarded(|| {
            let last = replay(&db, &groups)?;
            Ok((last, Head::load(&View::snapshot(&db)?)?))
        })?;
        Ok(Meta {
            db: Some(db),
            log,
            barrier,
            clock,
            seal: Mutex::new(()),
            writer: Mutex::new(Writer {
                scratch: Scratch::default(),
                last,
                journal,
                pending: Vec::new(),
                pending_bytes: 0,
                since_checkpoint: 0,
            }),
            open: Mutex::new(None),
            unsettled: AtomicBool::new(false),
            committed: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            poisoned: Mutex::new(None),
            read_only,
        })
    }

    pub(super) fn db(&self) -> &Database {
        self.db.as_ref().expect("present until drop")
    }

    /// The clock the store stamps transactions with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Runs `body` as one transaction. If it fails, nothing has changed. Atomic and visible at once, durable after the
    /// next durable point. Returns the number of the transaction too.
    pub fn transact<T>(&self, body: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<(T, TxnId)> {
        self.transact_then(body, |_| {})
    }

    /// Like [`Meta::transact`]; `committed` runs once the transaction is visible and before the next one begins.
    pub fn transact_then<T>(
        &self,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
        committed: impl FnOnce(&T),
    ) -> Result<(T, TxnId)> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.relieve()?;
        self.transact_unrelieved(body, committed)
    }

    /// As [`Meta::transact_then`], for whoever holds `seal`.
    fn transact_unrelieved<T>(
        &self,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
        committed: impl FnOnce(&T),
    ) -> Result<(T, TxnId)> {
        let mut writer = lock(&self.writer);
        self.check()?;
        let id = TxnId(writer.last.0 + 1);
        let now = self.clock.now();
        // The outer error is the store's, which ends it; the inner one is the body's, which only ends the transaction.
        let mut open = lock(&self.open);
        let outcome = self.poison_on_panic(|| {
            if open.is_none() {
                *open = Some(Open { write: Write::begin(self.db())?, sharing: 0, peeks: 0 });
                self.unsettled.store(true, Ordering::Release);
            }
            let shared = open.as_mut().expect("made above");
            let journal = writer.journal;
            let ended = shared.write.with(|rows| {
                let mut tx = Tx::new(rows, &mut writer.scratch, id, now, journal);
                match body(&mut tx) {
                    Ok(answer) => {
                        tx.set_counter(Counter::Txn, id.0)?;
                        Ok(Ok((answer, tx.finish())))
                    }
                    Err(broken) if rows.is_broken() => Err(broken),
                    Err(refused) => {
                        tx.roll_back()?;
                        Ok(Err(refused))
                    }
                }
            });
            if let Ok(Ok((_, finished))) = &ended {
                shared.sharing += 1;
                shared.peeks = 0;
                if finished.commit_at_once || shared.sharing >= SHARE {
                    self.settle_locked(&mut open)?;
                }
            }
            ended
        });
        match outcome {
            Ok(Ok((answer, finished))) => {
                writer.last = id;
                writer.journal = finished.journal;
                writer.pending_bytes += finished.redo.len();
                writer.since_checkpoint += finished.redo.len() as u64;
                writer.pending.push(RedoGroup { txn: id, changes: finished.redo });
                committed(&answer);
                self.committed.store(id.0, Ordering::Release);
                Ok((answer, id))
            }
            Ok(Err(refused)) => Err(refused),
            Err(broken) => {
                let poisoned = self.poison(&broken.to_string());
                // It may hold half a transaction: nobody may see it.
                self.discard(&mut open);
                Err(poisoned)
            }
        }
    }

    /// Commits what finished transactions did, in the database's sense: it becomes part of snapshots.
    fn settle_locked(&self, open: &mut Option<Open>) -> Result<()> {
        let Some(shared) = open.take() else { return Ok(()) };
        let outcome = shared.write.commit();
        // Not before: who sees this goes on to a snapshot.
        self.unsettled.store(false, Ordering::Release);
        outcome
    }

    /// Drops what finished transactions did since the last snapshot.
    fn discard(&self, open: &mut Option<Open>) {
        let shared = open.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(shared)));
        self.unsettled.store(false, Ordering::Release);
    }

    /// Runs `body` on a snapshot of the newest state, which it may take its time to read.
    ///
    /// Waits for the transaction that is going on: not to be called with a lock that a transaction takes.
    pub fn view<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        if self.unsettled.load(Ordering::Acquire) {
            let mut open = lock(&self.open);
            // Of a poisoned store nothing more is committed.
            if let (Some(shared), Some(_)) = (&*open, self.poisoned()) {
                return self.poison_on_panic(|| shared.write.with(|rows| body(&View::newest(rows))));
            }
            self.poison_on_panic(|| self.settle_locked(&mut open)).map_err(|error| self.poison(&error.to_string()))?;
        }
        self.settled(body)
    }

    /// Runs `body` on the newest state, for a few reads: no transaction can begin meanwhile. Costs less than a snapshot
    /// while files are made one after the other.
    ///
    /// Waits for the transaction that is going on, as [`Meta::view`] does.
    pub fn peek<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        if self.unsettled.load(Ordering::Acquire) {
            let mut open = lock(&self.open);
            if let Some(shared) = &mut *open {
                shared.peeks += 1;
                if shared.peeks <= PEEKS || self.poisoned().is_some() {
                    return self.poison_on_panic(|| shared.write.with(|rows| body(&View::newest(rows))));
                }
                // Nobody writes any more, and readers need not wait for each other.
                let settled = self.poison_on_panic(|| self.settle_locked(&mut open));
                settled.map_err(|error| self.poison(&error.to_string()))?;
            }
        }
        self.settled(body)
    }

    /// Runs `body` on a snapshot that lacks at most transactions since the last one that was to be committed at once.
    /// Waits for nobody.
    pub fn settled<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        self.poison_on_panic(|| body(&View::snapshot(self.db())?))
    }

    /// The newest committed transaction.
    pub fn committed(&self) -> TxnId {
        TxnId(self.committed.load(Ordering::Acquire))
    }

    /// The newest transaction that cannot be lost any more.
    pub fn durable(&self) -> TxnId {
        TxnId(self.durable.load(Ordering::Acquire))
    }

    /// Makes everything committed so far durable. Concurrent callers share the work.
    pub fn durable_point(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let wanted = self.committed();
        let _seal = lock(&self.seal);
        self.check()?;
        if self.durable() >= wanted && !self.barrier.in_doubt() {
            return Ok(());
        }
        let sealed = self.take_behind_barrier().and_then(|(groups, last)| Ok((self.log.append(&groups)?, last)));
        match sealed.map_err(|error| self.poison(&error.to_string()))? {
            (Appended::Durable, last) => self.durable.store(last.0, Ordering::Release),
            (Appended::CheckpointFirst, _) => self.checkpoint_sealed()?,
        }
        Ok(())
    }

    /// Takes the pending groups once all data they refer to is durable. What a device may not have kept is given up by a
    /// transaction among them: nothing in doubt is ever published. The caller holds `seal`.
    fn take_behind_barrier(&self) -> Result<(Vec<RedoGroup>, TxnId)> {
        let mut groups = Vec::new();
        loop {
            let (more, last) = lock(&self.writer).take_pending();
            groups.extend(more);
            self.barrier.barrier()?;
            if !self.barrier.in_doubt() {
                return Ok((groups, last));
            }
            self.give_up_doubtful()?;
        }
    }

    /// The caller holds `seal`.
    fn give_up_doubtful(&self) -> Result<()> {
        let body = |tx: &mut Tx<'_>| {
            tx.commit_at_once();
            self.barrier.give_up(tx)
        };
        self.transact_unrelieved(body, |()| ()).map(drop)
    }

    /// Moves everything into home and empties the log.
    pub fn checkpoint(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        // There may have been no transaction since the pool was opened. What is at hand may do.
        self.log.prepare_what_can_be()?;
        let _seal = lock(&self.seal);
        self.check()?;
        self.log.prewrite().map_err(|error| self.poison(&error.to_string()))?;
        self.checkpoint_sealed()
    }

    /// The part of a checkpoint that holds up transactions. The caller holds `seal`.
    fn checkpoint_sealed(&self) -> Result<()> {
        let mut writer = loop {
            let writer = lock(&self.writer);
            self.barrier.barrier().map_err(|error| self.poison(&error.to_string()))?;
            if !self.barrier.in_doubt() {
                break writer;
            }
            drop(writer);
            self.give_up_doubtful().map_err(|error| self.poison(&error.to_string()))?;
        };
        self.poison_on_panic(|| self.settle_locked(&mut lock(&self.open)))
            .map_err(|error| self.poison(&error.to_string()))?;
        let (_, last) = writer.take_pending();
        writer.since_checkpoint = 0;
        let commit = &mut || {
            let mut write = self.db().begin_write().map_err(store_error)?;
            write.set_durability(Durability::Immediate).map_err(store_error)?;
            write.set_quick_repair(true);
            write.commit().map_err(store_error)
        };
        self.poison_on_panic(|| self.log.checkpoint(commit)).map_err(|error| self.poison(&error.to_string()))?;
        self.durable.store(last.0, Ordering::Release);
        Ok(())
    }

    /// Whether the log asks for a checkpoint.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.wants_checkpoint()
    }

    /// Keeps the redo in memory and in the log bounded.
    fn relieve(&self) -> Result<()> {
        self.log.prepare()?;
        if self.log.wants_checkpoint() {
            return self.checkpoint();
        }
        let (full, redo) = {
            let writer = lock(&self.writer);
            let full = writer.pending_bytes > PENDING_BYTES || writer.pending.len() > PENDING_GROUPS;
            (full, writer.since_checkpoint)
        };
        if self.log.is_tight(redo) {
            return self.checkpoint();
        }
        if full { self.durable_point() } else { Ok(()) }
    }

    /// Switches to read-only for good and says why.
    pub fn poison(&self, why: &str) -> Error {
        let mut poisoned = lock(&self.poisoned);
        let why = poisoned.get_or_insert_with(|| {
            self.log.poison(why);
            why.to_owned()
        });
        Error::Poisoned(why.clone())
    }

    /// Why the store went read-only, if it did.
    pub fn poisoned(&self) -> Option<String> {
        lock(&self.poisoned).clone()
    }

    /// Fails once the store is poisoned.
    pub fn check(&self) -> Result<()> {
        match self.poisoned() {
            Some(why) => Err(Error::Poisoned(why)),
            None => Ok(()),
        }
    }

    pub(super) fn poison_on_panic<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Err(Error::Poisoned(why))) => Err(self.poison(&why)),
            Ok(result) => result,
            Err(panic) => Err(self.poison(&panic_text(&*panic))),
        }
    }
}

impl Drop for Meta {
    /// redb commits pending work when it is dropped; nothing may be written behind the log's back.
    fn drop(&mut self) {
        self.log.poison("the pool was closed");
        let open = lock(&self.open).take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
        let db = self.db.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("metadata store panicked: {text}")
}

/// Runs `body`; a panic inside (redb may on forged pages) becomes an error.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) => Err(Error::Corrupt(panic_text(&*panic))),
    }
}

/// The number of the last transaction.
pub(super) fn last_transaction(reader: &impl Reader) -> Result<TxnId> {
    let last = reader.counter(Counter::Txn)?;
    // Far beyond what can be counted to, and far from overflow.
    if last >> 62 != 0 {
        return Err(Error::corrupt("the number of the last transaction is impossible: see `argosfs recover`"));
    }
    Ok(TxnId(last))
}

/// Groups replayed by one transaction.
const REPLAY_BATCH: usize = 1000;

/// Creates missing tables, applies groups above the stored number, returns the last transaction's number.
fn replay(db: &Database, groups: &[RedoGroup]) -> Result<TxnId> {
    let write = Write::begin(db)?;
    write.create_tables()?;
    write.commit()?;
    let mut last = last_transaction(&View::snapshot(db)?)?;
    let fresh: Vec<&RedoGroup> = groups.iter().filter(|group| group.txn > last).collect();
    for batch in fresh.chunks(REPLAY_BATCH) {
        let write = Write::begin(db)?;
        for group in batch {
            if group.txn.0 != last.0 + 1 {
                return Err(Error::corrupt(format!("the log jumps from transaction {last} to {}", group.txn)));
            }
            write.with(|rows| apply(rows, &group.changes))?;
            last = group.txn;
        }
        write.commit()?;
    }
    Ok(last)
}
