//! The scrub of an open pool: one at a time, in a thread of its own. It can be paused and cancelled, goes on where it was
//! after a restart, and gives way to everybody else.
//!
//! Invariants:
//! - How far it is is stored every few seconds; after a crash a little is verified again, nothing is passed over.
//! - The thread ends before the pool is closed ([`Scrubber::stop`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::protocol;
use super::server::Reply;
use crate::base::{BLOCK_SIZE, Bytes, Clock, Error, Result, StripeId};
use crate::format::record::Row;
use crate::format::rows::{ConfigKey, ScrubRow, ScrubState};
use crate::format::table::{Config, Devices};
use crate::meta::{Reader, Visit};
use crate::store::Store;
use crate::store::maintain::Progress;
use crate::store::repair::Repaired;

/// Where the row is kept, and the limit, for when it goes on with the next mount.
const KEY: &[u8] = b"scrub";
const LIMIT_KEY: &[u8] = b"scrub-limit";
/// Seconds between two stores of how far it is.
const SAVE_EVERY: i64 = 5;
/// While others use the pool, a scrub rests so many times as long as it works.
const REST: u64 = 3;
/// The longest rest.
const REST_MAX: Duration = Duration::from_millis(250);
/// How often whoever waits is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How a scrub fares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ScrubStatus {
    pub state: &'static str,
    /// Seconds since 1970.
    pub begun: i64,
    pub ended: i64,
    pub stripes: u64,
    pub bytes: u64,
    /// What there is to verify, as far as it is known.
    pub total_bytes: u64,
    pub bytes_per_second: u64,
    /// 0 when it is not known, or not running.
    pub seconds_left: u64,
    pub rewritten: u64,
    pub rebuilt: u64,
    pub missing: u64,
    pub lost: u64,
    pub metadata_blocks: u64,
    /// Known only to the process that verified the metadata.
    pub metadata_unreadable: u64,
}

/// What the thread is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Run,
    Pause,
    Cancel,
    /// The pool is about to be closed: it goes on with the next mount.
    Stop,
}

struct State {
    order: Order,
    row: ScrubRow,
    /// Whether the row's progress was made since the pool was opened.
    unbroken: bool,
    /// What the row has no place for.
    metadata_unreadable: u64,
    /// Bytes a second it may read at most; 0 for no limit.
    limit: u64,
    total_bytes: u64,
    running: bool,
    failed: Option<Error>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The one scrub of a pool.
pub struct Scrubber(Arc<Shared>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seconds(&self) -> i64 {
        self.clock.now().seconds
    }

    /// Stores how far it is.
    fn save(&self, row: &ScrubRow) -> Result<()> {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        self.store.transact(|tx, _| tx.put::<Config>(&ConfigKey { name: KEY.to_vec() }, &bytes))
    }

    /// The thread.
    fn run(&self) {
        let mut progress = {
            let state = self.state();
            progress_of(&state)
        };
        let mut pace = Pace { since: self.clock.now().seconds, at_ns: self.now_ns(), activity: self.store.activity() };
        let mut saved = self.seconds();
        let done = self.store.scrub_on(&mut progress, &mut |progress| {
            let before = self.state().row.bytes;
            note(&mut self.state().row, progress);
            if self.seconds() - saved >= SAVE_EVERY {
                saved = self.seconds();
                let row = self.spend(&mut pace);
                // Told again by the next transaction that matters.
                let _ = self.save(&row);
            }
            self.rest(&mut pace, progress.repaired.bytes.saturating_sub(before));
            self.state().order == Order::Run
        });
        self.spend(&mut pace);
        let mut state = self.state();
        note(&mut state.row, &progress);
        state.unbroken = progress.unbroken;
        state.metadata_unreadable = progress.metadata_unreadable;
        state.row.state = match (&done, state.order) {
            (Ok(true), _) => ScrubState::Finished,
            (Ok(false), Order::Cancel) => ScrubState::Cancelled,
            (Ok(false), Order::Stop) => ScrubState::Running,
            (Ok(false), _) | (Err(_), _) => ScrubState::Paused,
        };
        if matches!(state.row.state, ScrubState::Finished | ScrubState::Cancelled) {
            state.row.ended = self.seconds();
        }
        let row = state.row.clone();
        drop(state);
        let saved = self.save(&row);
        let mut state = self.state();
        state.failed = done.err().or(saved.err());
        state.running = false;
        self.changed.notify_all();
    }

    fn now_ns(&self) -> u64 {
        let now = self.clock.now();
        (now.seconds.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(now.nanos.into())
    }

    /// Adds the time that went by.
    fn spend(&self, pace: &mut Pace) -> ScrubRow {
        let now = self.seconds();
        let mut state = self.state();
        state.row.seconds += u64::try_from(now - pace.since).unwrap_or(0);
        pace.since = now;
        state.row.clone()
    }

    /// Lets others go first, and keeps to the limit.
    fn rest(&self, pace: &mut Pace, bytes: u64) {
        let activity = self.store.activity();
        let worked = self.now_ns().saturating_sub(pace.at_ns);
        let rest = rest_after(worked, activity != pace.activity, bytes, self.state().limit);
        if !rest.is_zero() {
            let state = self.state();
            let going_on = |state: &mut State| state.order == Order::Run;
            drop(self.changed.wait_timeout_while(state, rest, going_on));
        }
        // What others did meanwhile is no reason to rest again.
        *pace = Pace { since: pace.since, at_ns: self.now_ns(), activity: self.store.activity() };
    }
}

/// How long to rest after so many nanoseconds of work on so many bytes: longer than that work was when others are `busy`, and
/// as long as `limit` bytes a second demand, if that is not 0.
fn rest_after(worked: u64, busy: bool, bytes: u64, limit: u64) -> Duration {
    let yielded = if busy { Duration::from_nanos(worked.saturating_mul(REST)).min(REST_MAX) } else { Duration::ZERO };
    let due = bytes.saturating_mul(1_000_000_000).checked_div(limit).unwrap_or(0);
    yielded.max(Duration::from_nanos(due.saturating_sub(worked)))
}

/// What the rests are reckoned from.
struct Pace {
    since: i64,
    at_ns: u64,
    activity: u64,
}

impl Scrubber {
    /// Takes up what is stored of the last scrub.
    pub fn new(store: Arc<Store>, clock: Arc<dyn Clock>) -> Scrubber {
        let stored =
            |key: &[u8]| store.view(|view| view.get::<Config>(&ConfigKey { name: key.to_vec() })).ok().flatten();
        let row = stored(KEY).and_then(|bytes| ScrubRow::decode(&bytes).ok()).unwrap_or_default();
        let limit = stored(LIMIT_KEY).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0);
        let going_on = matches!(row.state, ScrubState::Running | ScrubState::Paused);
        let state = State {
            order: Order::Run,
            row,
            unbroken: false,
            metadata_unreadable: 0,
            limit,
            total_bytes: if going_on { bytes_in_use(&store).unwrap_or(0) } else { 0 },
            running: false,
            failed: None,
            thread: None,
        };
        Scrubber(Arc::new(Shared { store, clock, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Goes on with the scrub that is under way or was paused, or begins one. `limit`: bytes a second, 0 for none.
    pub fn start(&self, limit: u64) -> Result<()> {
        self.0.store.meta().check()?;
        let total = bytes_in_use(&self.0.store)?;
        let mut state = self.0.state();
        let relimited = std::mem::replace(&mut state.limit, limit) != limit;
        if state.running && !relimited {
            return Ok(());
        }
        drop(state);
        if relimited {
            let key = ConfigKey { name: LIMIT_KEY.to_vec() };
            self.0.store.transact(|tx, _| tx.put::<Config>(&key, &limit.to_le_bytes().to_vec()))?;
        }
        let mut state = self.0.state();
        if state.running {
            return Ok(());
        }
        if !matches!(state.row.state, ScrubState::Running | ScrubState::Paused) {
            state.row = ScrubRow { begun: self.0.seconds(), ..ScrubRow::default() };
            state.metadata_unreadable = 0;
        }
        state.row.state = ScrubState::Running;
        state.order = Order::Run;
        state.total_bytes = total;
        state.failed = None;
        let row = state.row.clone();
        drop(state);
        self.0.save(&row)?;
        let mut state = self.0.state();
        if state.running {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("argosfs-scrub".to_owned()).spawn(move || shared.run());
        state.thread = Some(thread.map_err(|error| Error::io("the system", "start a thread", error))?);
        state.running = true;
        Ok(())
    }

    /// Goes on with what was paused or interrupted.
    pub fn resume(&self, limit: u64) -> Result<()> {
        match self.0.state().row.state {
            ScrubState::Running | ScrubState::Paused => {}
            _ => return Err(Error::Usage("no scrub is paused: `argosfs scrub` begins one".to_owned())),
        }
        self.start(limit)
    }

    /// Goes on with a scrub that the last unmount or crash interrupted.
    pub fn resume_interrupted(&self) -> Result<()> {
        let (state, limit) = {
            let state = self.0.state();
            (state.row.state, state.limit)
        };
        if state == ScrubState::Running { self.start(limit) } else { Ok(()) }
    }

    /// Pauses it until [`Scrubber::resume`], whatever happens to the pool meanwhile.
    pub fn pause(&self) -> Result<()> {
        self.end(Order::Pause, ScrubState::Paused)
    }

    /// Ends it; the next one begins anew.
    pub fn cancel(&self) -> Result<()> {
        self.end(Order::Cancel, ScrubState::Cancelled)
    }

    fn end(&self, order: Order, outcome: ScrubState) -> Result<()> {
        let mut state = self.0.state();
        match state.row.state {
            ScrubState::Running | ScrubState::Paused => {}
            _ => return Err(Error::Usage("no scrub is going on".to_owned())),
        }
        if state.running {
            drop(state);
            self.halt(order);
            return Ok(());
        }
        state.row.state = outcome;
        if outcome == ScrubState::Cancelled {
            state.row.ended = self.0.seconds();
        }
        let row = state.row.clone();
        drop(state);
        self.0.save(&row)
    }

    /// Ends the thread; a scrub that was running goes on when the pool is opened again.
    pub fn stop(&self) {
        self.halt(Order::Stop);
    }

    fn halt(&self, order: Order) {
        let thread = {
            let mut state = self.0.state();
            state.order = order;
            self.0.changed.notify_all();
            state.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Waits until it is not running any more, telling how far it is; fails when nobody listens.
    pub fn wait(&self, reply: &mut dyn Reply) -> Result<()> {
        let mut state = self.0.state();
        while state.running {
            let progress = protocol::Progress {
                work: "scrub".to_owned(),
                done: state.row.bytes,
                total: state.total_bytes.max(state.row.bytes),
                unit: "bytes".to_owned(),
            };
            drop(state);
            reply.progress(&progress)?;
            let waited = self.0.changed.wait_timeout_while(self.0.state(), TELL_EVERY, |state| state.running);
            state = waited.map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
        match state.failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What was done and found so far.
    pub fn progress(&self) -> Progress {
        let state = self.0.state();
        progress_of(&state)
    }

    /// How it fares; `None` when there never was one.
    pub fn status(&self) -> Option<ScrubStatus> {
        let state = self.0.state();
        let row = &state.row;
        let name = match row.state {
            ScrubState::None => return None,
            ScrubState::Running if !state.running => "interrupted",
            ScrubState::Running => "running",
            ScrubState::Paused => "paused",
            ScrubState::Finished => "finished",
            ScrubState::Cancelled => "cancelled",
        };
        let (rate, left) = rate_and_left(row, state.total_bytes);
        Some(ScrubStatus {
            state: name,
            begun: row.begun,
            ended: row.ended,
            stripes: row.stripes,
            bytes: row.bytes,
            total_bytes: state.total_bytes.max(row.bytes),
            bytes_per_second: rate,
            seconds_left: if state.running { left } else { 0 },
            rewritten: row.rewritten,
            rebuilt: row.rebuilt,
            missing: row.missing,
            lost: row.lost,
            metadata_blocks: row.metadata_blocks,
            metadata_unreadable: state.metadata_unreadable,
        })
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop();
    }
}

impl ScrubStatus {
    /// In one line.
    pub fn text(&self) -> String {
        let done = Bytes(self.bytes);
        let percent = (self.bytes * 100).checked_div(self.total_bytes).unwrap_or(100);
        let mut text = match self.state {
            "finished" | "cancelled" => {
                format!("{} {}, {done} verified", self.state, crate::base::Timestamp { seconds: self.ended, nanos: 0 })
            }
            state => format!("{state}, {percent} %: {done} of {}", Bytes(self.total_bytes)),
        };
        if self.state == "running" {
            text.push_str(&format!(", {}/s", Bytes(self.bytes_per_second)));
            if self.seconds_left > 0 {
                let (hours, minutes) = (self.seconds_left / 3600, self.seconds_left / 60 % 60);
                text.push_str(&format!(", {hours}:{minutes:02}:{:02} left", self.seconds_left % 60));
            }
        }
        let found = [
            (self.rewritten + self.rebuilt, "shards repaired"),
            (self.metadata_blocks, "metadata blocks repaired"),
            (self.missing, "SHARDS MISSING"),
            (self.lost, "STRIPES LOST"),
            (self.metadata_unreadable, "METADATA BLOCKS UNREADABLE"),
        ];
        for (count, what) in found.iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!(", {count} {what}"));
        }
        text
    }
}

/// Bytes a second so far, and the seconds that what is left of `total` takes at this rate; 0 when nobody knows.
fn rate_and_left(row: &ScrubRow, total: u64) -> (u64, u64) {
    let rate = row.bytes.checked_div(row.seconds).unwrap_or(row.bytes);
    (rate, total.saturating_sub(row.bytes).checked_div(rate).unwrap_or(0))
}

/// The store's progress as the row has it.
fn progress_of(state: &State) -> Progress {
    let row = &state.row;
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Progress {
        stripes: row.stripes,
        repaired: Repaired {
            rewritten: count(row.rewritten),
            rebuilt: count(row.rebuilt),
            missing: count(row.missing),
            bytes: row.bytes,
        },
        lost: row.lost,
        metadata_blocks: row.metadata_blocks,
        metadata_unreadable: state.metadata_unreadable,
        after: row.after.map(StripeId),
        unbroken: state.unbroken,
    }
}

/// Takes the store's progress into the row.
fn note(row: &mut ScrubRow, progress: &Progress) {
    row.stripes = progress.stripes;
    row.bytes = progress.repaired.bytes;
    row.rewritten = progress.repaired.rewritten.into();
    row.rebuilt = progress.repaired.rebuilt.into();
    row.missing = progress.repaired.missing.into();
    row.lost = progress.lost;
    row.metadata_blocks = progress.metadata_blocks;
    row.after = progress.after.map(|id| id.0);
}

/// Bytes of all shards there are.
fn bytes_in_use(store: &Store) -> Result<u64> {
    let mut blocks = 0;
    store.view(|view| {
        view.scan::<Devices>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |_, row| {
            blocks += row.used_blocks;
            Ok(Visit::Continue(()))
        })
    })?;
    Ok(blocks * BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_gives_way_and_keeps_to_its_limit() {
        let second = 1_000_000_000;
        // Alone and without a limit it does not rest.
        assert_eq!(rest_after(second, false, 1 << 30, 0), Duration::ZERO);
        // Beside others it rests longer than it worked, and not for ever.
        let work = Duration::from_millis(10);
        assert!(rest_after(10_000_000, true, 4096, 0) > work);
        assert_eq!(rest_after(second * 1000, true, 4096, 0), REST_MAX);
        // Half of the second that the limit demands was spent on it.
        assert_eq!(rest_after(second / 2, false, 1 << 20, 1 << 20), Duration::from_millis(500));
        assert_eq!(rest_after(second * 2, false, 1 << 20, 1 << 20), Duration::ZERO);
        assert_eq!(rest_after(u64::MAX, true, u64::MAX, 1), REST_MAX);
    }

    #[test]
    fn the_time_left_is_what_is_left_at_the_rate_so_far() {
        let row = ScrubRow { state: ScrubState::Running, seconds: 10, bytes: 100, ..ScrubRow::default() };
        assert_eq!(rate_and_left(&row, 400), (10, 30));
        // More than there seemed to be.
        assert_eq!(rate_and_left(&row, 50), (10, 0));
        assert_eq!(rate_and_left(&ScrubRow { seconds: 0, ..row.clone() }, 400).0, 100);
        assert_eq!(rate_and_left(&ScrubRow { bytes: 0, ..row }, 400), (0, 0));
    }
}
