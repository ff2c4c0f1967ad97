//! What is known in memory about inodes: references the asker holds, and the states of inodes in use.
//!
//! Invariants:
//! - A row cached in a state is the newest committed one, or that of the transaction which is just committing: a
//!   change is published at the end of its transaction, while the writer's lock is held. Whoever fills a state from
//!   the tables holds the state, then begins the view, and does not replace what was published meanwhile; a state that
//!   somebody holds is never evicted, so nothing can be published past the one who fills it.
//! - References are counted apart from states: a million known inodes cost tens of bytes each, and only a bounded
//!   number of states stays in memory.
//! - An inode without names stays in `orphans` of its shard while it is referenced; the last reference hands it to
//!   the reclaimer.
//!
//! Lock order: content of files (smaller inode number first), the store's writer, [`Live`] (one at a time), shard.
//! Parents before children wherever two inodes of one path are involved. No lock is held while the asker is waited
//! for, and only the content lock is held while a device is.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock};

use super::content::Content;
use super::lock;
use crate::base::rng::mix64;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Mutex, MutexGuard};
use crate::base::{Ino, Timestamp};
use crate::format::rows::InodeRow;

/// Hashes inode numbers, which nobody outside can choose.
#[derive(Default)]
pub struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = mix64(self.0 ^ value);
    }
}

/// A map by inode number.
pub type InoMap<V> = HashMap<Ino, V, BuildHasherDefault<InoHasher>>;

/// An inode in use. Whoever keeps something in it that the tables do not have (dirty content, pending times) also
/// keeps an `Arc` of it, which protects it from eviction.
#[derive(Debug)]
pub struct InodeState {
    pub ino: Ino,
    live: Mutex<Live>,
    /// Made when first needed: only regular files have it.
    content: OnceLock<Box<Content>>,
    /// Touched since the eviction hand last passed.
    used: AtomicBool,
}

impl InodeState {
    /// Locks what is known about the inode.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    /// The content held in memory.
    pub fn content(&self) -> &Content {
        self.content.get_or_init(Box::default)
    }

    /// Whether all content is committed.
    pub fn is_clean(&self) -> bool {
        self.content_if_any().is_none_or(|content| content.state().is_clean())
    }

    /// The content held in memory, if there ever was any.
    pub fn content_if_any(&self) -> Option<&Content> {
        self.content.get().map(Box::as_ref)
    }
}

/// The known attributes of an inode: the committed row and what is newer than it.
#[derive(Debug, Default)]
pub struct Live {
    /// The newest committed row; `None` when not read yet or when the inode is gone.
    pub row: Option<InodeRow>,
    pub pending: Pending,
    /// Deleted, for ever: numbers are not used again. Keeps a reader with an older view from bringing the row back.
    pub gone: bool,
}

/// Attributes that are acknowledged but not committed. Transactions about something else never write `size`: it is
/// committed together with the content below it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pending {
    pub size: Option<u64>,
    /// Bytes of content held in memory.
    pub content: u64,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
    pub ctime: Option<Timestamp>,
}

impl Pending {
    /// Makes a committed row look as it does to the asker.
    pub fn show(&self, row: &mut InodeRow) {
        row.size = self.size.unwrap_or(row.size);
        // Some of it may replace what is committed: no more is shown than the file could take.
        row.content = row.content.max((row.content + self.content).min(row.size));
        row.atime = self.atime.unwrap_or(row.atime);
        row.mtime = self.mtime.unwrap_or(row.mtime);
        row.ctime = self.ctime.map_or(row.ctime, |ctime| ctime.max(row.ctime));
    }
}

impl Live {
    /// Takes in a row that was read from the tables after the state was held.
    pub fn fill(&mut self, row: Option<InodeRow>) {
        if self.row.is_none() && !self.gone {
            self.row = row;
        }
    }

    /// The row as it looks to the asker.
    pub fn shown(&self) -> Option<InodeRow> {
        let mut row = self.row.clone()?;
        self.pending.show(&mut row);
        Some(row)
    }
}

const SHARDS: usize = 64;
/// States kept although nobody uses them, all shards together. Tests evict all the time.
const STATES: usize = if cfg!(test) { 2 * SHARDS } else { 64 << 10 };
/// Candidates looked at for each state that is added.
const HAND_STEPS: usize = 4;

#[derive(Default)]
struct Shard {
    references: InoMap<u64>,
    states: InoMap<Arc<InodeState>>,
    /// Every key of `states` once, in the order in which the eviction hand passes.
    hand: VecDeque<Ino>,
    /// Inodes without names that are referenced, and whether a link may name them.
    orphans: InoMap<bool>,
}

/// All inodes known in memory.
pub struct Inodes {
    shards: Vec<Mutex<Shard>>,
    states_per_shard: usize,
}

impl Default for Inodes {
    fn default() -> Inodes {
        Inodes::with_capacity(STATES)
    }
}

impl Inodes {
    /// Keeps about `states` unused states.
    pub fn with_capacity(states: usize) -> Inodes {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Inodes { shards, states_per_shard: states.div_ceil(SHARDS) }
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        lock(&self.shards[mix64(ino.0) as usize % SHARDS])
    }

    /// The state of `ino`, made if there is none; it stays in memory as long as the caller keeps it.
    pub fn state(&self, ino: Ino) -> Arc<InodeState> {
        let mut shard = self.shard(ino);
        if let Some(state) = shard.states.get(&ino) {
            state.used.store(true, Ordering::Relaxed);
            return state.clone();
        }
        let state = Arc::new(InodeState {
            ino,
            live: Mutex::default(),
            content: OnceLock::new(),
            used: AtomicBool::new(false),
        });
        shard.make_room(self.states_per_shard);
        shard.states.insert(ino, state.clone());
        shard.hand.push_back(ino);
        state
    }

    /// Counts `more` references.
    pub fn refer(&self, ino: Ino, more: u64) {
        *self.shard(ino).references.entry(ino).or_default() += more;
    }

    /// Takes back references; says whether that were the last of an inode without names.
    pub fn forget(&self, ino: Ino, fewer: u64) -> bool {
        let mut shard = self.shard(ino);
        let Some(count) = shard.references.get_mut(&ino) else { return false };
        *count = count.saturating_sub(fewer);
        if *count > 0 {
            return false;
        }
        shard.references.remove(&ino);
        shard.orphans.remove(&ino).is_some()
    }

    /// Takes back every reference; returns the inodes without names that were held by them.
    pub fn forget_all(&self) -> Vec<Ino> {
        let mut orphans = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.references = InoMap::default();
            orphans.extend(shard.orphans.drain().map(|(ino, _)| ino));
        }
        orphans
    }

    /// Whether the asker holds a reference.
    pub fn is_referenced(&self, ino: Ino) -> bool {
        self.shard(ino).references.contains_key(&ino)
    }

    /// Notes that an inode has a name.
    pub fn note_named(&self, ino: Ino) {
        self.shard(ino).orphans.remove(&ino);
    }

    /// Notes that an inode has no name, and whether it was made so, so that a link may name it. Says whether it can be
    /// reclaimed at once: no name, no reference.
    pub fn note_nameless(&self, ino: Ino, linkable: bool) -> bool {
        let mut shard = self.shard(ino);
        let referenced = shard.references.contains_key(&ino);
        if referenced {
            shard.orphans.insert(ino, linkable);
        }
        !referenced
    }

    /// Whether the inode was made without a name and may still get one.
    pub fn is_linkable(&self, ino: Ino) -> bool {
        self.shard(ino).orphans.get(&ino).copied().unwrap_or(false)
    }

    /// Inodes referenced and states in memory: for metrics and tests.
    pub fn counts(&self) -> (usize, usize) {
        self.shards.iter().map(lock).fold((0, 0), |(references, states), shard| {
            (references + shard.references.len(), states + shard.states.len())
        })
    }
}

impl Shard {
    /// Evicts states nobody holds or used lately, a bounded number of steps at a time.
    fn make_room(&mut self, capacity: usize) {
        for _ in 0..HAND_STEPS {
            if self.states.len() < capacity {
                return;
            }
            let Some(ino) = self.hand.pop_front() else { return };
            let keep = self
                .states
                .get(&ino)
                .is_some_and(|s| Arc::strong_count(s) > 1 || s.used.swap(false, Ordering::Relaxed));
            if keep {
                self.hand.push_back(ino);
            } else {
                self.states.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_states_survive_eviction_and_memory_stays_bounded() {
        let inodes = Inodes::with_capacity(SHARDS * 2);
        let held = inodes.state(Ino(7));
        held.live().gone = true;
        for ino in 100..10_000 {
            inodes.state(Ino(ino));
        }
        assert!(inodes.state(Ino(7)).live().gone, "a held state was replaced by a fresh one");
        let (_, states) = inodes.counts();
        assert!(states <= SHARDS * 3, "{states} states");
    }

    #[test]
    fn the_last_reference_of_a_nameless_inode_hands_it_over() {
        let inodes = Inodes::default();
        inodes.refer(Ino(9), 3);
        assert!(!inodes.note_nameless(Ino(9), true));
        assert!(inodes.is_linkable(Ino(9)));
        assert!(!inodes.forget(Ino(9), 2));
        assert!(inodes.forget(Ino(9), 1));
        assert!(!inodes.is_referenced(Ino(9)));
        assert!(inodes.note_nameless(Ino(10), false), "nobody refers to it");
        inodes.refer(Ino(11), 1);
        inodes.note_nameless(Ino(11), false);
        inodes.note_named(Ino(11));
        assert!(!inodes.forget(Ino(11), 1), "it was named again");
        inodes.refer(Ino(12), 5);
        inodes.note_nameless(Ino(12), false);
        assert_eq!(inodes.forget_all(), [Ino(12)]);
    }
}
