//! The ordered record of what reached the simulated devices, and the states a power cut can leave.
//!
//! Invariants:
//! - `base` of a device holds what is durable whatever happens; `events` what came after, in the order it took effect.
//! - A write is durable at a crash when a flush on its device that *started* after it was done has completed, and no flush
//!   over it failed before (a failed flush may have dropped it, and no later flush can bring it back).
//! - Applying any kept subset of pending writes in their order, each whole or by sectors, gives every state that
//!   reordering can give: an older write landing over a newer one equals losing those sectors of the newer one.

use super::store::{BLOCK, Block, SECTOR, SECTORS, Store, share};
use crate::base::Prng;
use crate::base::rng::mix64;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a discarded block holds afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiscardMode {
    /// Zeros, as after a punched hole.
    Zero,
    /// The old content: the device ignored the hint.
    Keep,
    /// Bytes that were never written.
    Garbage,
    /// Each block one of the above.
    #[default]
    Mixed,
}

/// Something that happens to a device by itself; at once and durable.
pub(super) enum Damage {
    /// These bits (counted from the device's start) flip.
    Flip(Vec<u64>),
    /// Bytes are replaced, by zeros or by noise from a seed.
    Fill { offset: u64, len: u64, noise: Option<u64> },
    /// The whole content is another one.
    Reset(Store),
}

pub(super) enum Kind {
    Write {
        first: u64,
        blocks: Vec<Arc<Block>>,
    },
    Discard {
        first: u64,
        count: u64,
        mode: DiscardMode,
        seed: u64,
    },
    /// Everything on this device numbered below `covers` is durable from here on.
    Flush {
        covers: u64,
    },
    /// What was pending below `covers` stays in doubt until it is written again.
    FlushFailed {
        covers: u64,
    },
    /// The device said yes and did nothing.
    FlushIgnored,
    Damage(Damage),
}

/// One entry of the record.
pub(super) struct Event {
    pub(super) number: u64,
    pub(super) device: usize,
    pub(super) kind: Kind,
}

/// How much of a pending write is there after the crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// The first so many sectors.
    Prefix(u64),
    /// All but the first so many sectors.
    Suffix(u64),
    /// Each sector by chance.
    Scattered(u64),
}

impl Fate {
    fn keeps(self, sector: u64) -> bool {
        match self {
            Fate::Kept => true,
            Fate::Lost => false,
            Fate::Prefix(count) => sector < count,
            Fate::Suffix(skipped) => sector >= skipped,
            Fate::Scattered(seed) => mix64(seed ^ mix64(sector)) & 1 == 1,
        }
    }
}

impl Kind {
    /// Blocks whose content depends on a later flush; 0 for all else.
    pub(super) fn pending_blocks(&self) -> u64 {
        match self {
            Kind::Write { blocks, .. } => blocks.len() as u64,
            Kind::Discard { count, .. } => *count,
            _ => 0,
        }
    }

    /// Changes `store` as this event did, as far as `fate` lets it.
    pub(super) fn apply(&self, store: &mut Store, fate: Fate) {
        match self {
            Kind::Write { first, blocks } => {
                for (at, block) in blocks.iter().enumerate() {
                    put(store, first + at as u64, at as u64, Some(block), fate);
                }
            }
            Kind::Discard { first, count, mode, seed } => {
                for at in 0..*count {
                    let noise = mix64(seed ^ mix64(first + at));
                    match (mode, noise % 3) {
                        (DiscardMode::Keep, _) | (DiscardMode::Mixed, 0) => {}
                        (DiscardMode::Zero, _) | (DiscardMode::Mixed, 1) => put(store, first + at, at, None, fate),
                        _ => put(store, first + at, at, Some(&noise_block(noise)), fate),
                    }
                }
            }
            Kind::Damage(Damage::Flip(bits)) => {
                for bit in bits {
                    store.edit_bytes(bit / 8, 1, |_, byte| byte[0] ^= 1 << (bit % 8));
                }
            }
            Kind::Damage(Damage::Fill { offset, len, noise }) => store.edit_bytes(*offset, *len, |at, piece| {
                for (byte, at) in piece.iter_mut().zip(at..) {
                    *byte = noise.map_or(0, |seed| mix64(seed ^ mix64(at)) as u8);
                }
            }),
            Kind::Damage(Damage::Reset(content)) => *store = content.clone(),
            Kind::Flush { .. } | Kind::FlushFailed { .. } | Kind::FlushIgnored => {}
        }
    }

    /// One line for a person.
    pub(super) fn describe(&self) -> String {
        match self {
            Kind::Write { first, blocks } => format!("write block {first}, {} blocks", blocks.len()),
            Kind::Discard { first, count, mode, .. } => format!("discard block {first}, {count} blocks, {mode:?}"),
            Kind::Flush { covers } => format!("flush of everything below event {covers}"),
            Kind::FlushFailed { covers } => format!("failed flush of everything below event {covers}"),
            Kind::FlushIgnored => "flush, ignored by the device".into(),
            Kind::Damage(Damage::Flip(bits)) => format!("bits flip: {bits:?}"),
            Kind::Damage(Damage::Fill { offset, len, noise }) => {
                format!("bytes {offset}+{len} become {}", if noise.is_some() { "noise" } else { "zeros" })
            }
            Kind::Damage(Damage::Reset(_)) => "the whole content is replaced".into(),
        }
    }
}

/// Puts block `at` of a request into the store, sector by sector as `fate` says; `None` is a hole.
fn put(store: &mut Store, number: u64, at: u64, block: Option<&Arc<Block>>, fate: Fate) {
    let first_sector = at * SECTORS as u64;
    let kept = (0..SECTORS as u64).filter(|sector| fate.keeps(first_sector + sector)).count();
    if kept == SECTORS {
        store.set(number, block.cloned());
    } else if kept > 0 {
        store.edit(number, |old| {
            for sector in (0..SECTORS).filter(|sector| fate.keeps(first_sector + *sector as u64)) {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                match block {
                    Some(block) => old[bytes.clone()].copy_from_slice(&block[bytes]),
                    None => old[bytes].fill(0),
                }
            }
        });
    }
}

fn noise_block(seed: u64) -> Arc<Block> {
    let mut block = [0; BLOCK];
    crate::base::Entropy::fill(&mut Prng::new(seed), &mut block);
    share(&block)
}

/// What is durable, event by event, as seen at one crash point.
pub(super) struct Durability {
    /// Per device: events below this are flushed.
    flushed: Vec<u64>,
    /// Per device: events in these ranges were under a flush that failed.
    doubtful: Vec<Vec<std::ops::Range<u64>>>,
}

impl Durability {
    pub(super) fn at(devices: usize, events: &VecDeque<Event>, crash: u64) -> Durability {
        let mut state = Durability { flushed: vec![0; devices], doubtful: vec![Vec::new(); devices] };
        for event in events.iter().take_while(|event| event.number < crash) {
            let flushed = &mut state.flushed[event.device];
            match event.kind {
                Kind::Flush { covers } => *flushed = covers.max(*flushed),
                Kind::FlushFailed { covers } if covers > *flushed => {
                    state.doubtful[event.device].push(*flushed..covers);
                }
                _ => {}
            }
        }
        state
    }

    /// Whether the event can no longer be undone by the crash.
    pub(super) fn covers(&self, event: &Event) -> bool {
        event.kind.pending_blocks() == 0
            || (event.number < self.flushed[event.device]
                && !self.doubtful[event.device].iter().any(|range| range.contains(&event.number)))
    }
}

/// How one device treats what is pending when the power goes.
enum Mood {
    KeepAll,
    LoseAll,
    /// In order, up to one that is torn.
    Queue(u64),
    /// Each by itself: kept and torn in so many of 16 cases.
    Coin {
        keep: u64,
        tear: u64,
    },
}

/// Draws the fates of pending writes, device by device in moods of their own.
pub(super) struct Dice<'a> {
    moods: Vec<Mood>,
    prng: &'a mut Prng,
}

impl<'a> Dice<'a> {
    /// `pending` counts the pending writes of each device.
    pub(super) fn new(pending: &[u64], prng: &'a mut Prng) -> Dice<'a> {
        let mood = |count: &u64| match prng.below(8) {
            0 => Mood::KeepAll,
            1 => Mood::LoseAll,
            2 => Mood::Queue(prng.below(count + 1)),
            _ => {
                Mood::Coin { keep: [1, 4, 8, 12, 15][prng.below(5) as usize], tear: [0, 2, 6][prng.below(3) as usize] }
            }
        };
        let moods = pending.iter().map(mood).collect();
        Dice { moods, prng }
    }

    /// The fate of the next pending event of this device.
    pub(super) fn fate(&mut self, device: usize, blocks: u64) -> Fate {
        match &mut self.moods[device] {
            Mood::KeepAll => Fate::Kept,
            Mood::LoseAll => Fate::Lost,
            Mood::Queue(0) => {
                self.moods[device] = Mood::LoseAll;
                self.torn(blocks)
            }
            Mood::Queue(left) => {
                *left -= 1;
                Fate::Kept
            }
            Mood::Coin { keep, tear } => {
                let (keep, tear) = (*keep, *tear);
                if self.prng.chance(tear, 16) {
                    self.torn(blocks)
                } else if self.prng.chance(keep, 16) {
                    Fate::Kept
                } else {
                    Fate::Lost
                }
            }
        }
    }

    fn torn(&mut self, blocks: u64) -> Fate {
        let sectors = blocks * SECTORS as u64;
        match self.prng.below(3) {
            0 => Fate::Prefix(self.prng.below(sectors)),
            1 => Fate::Suffix(self.prng.below(sectors) + 1),
            _ => Fate::Scattered(self.prng.next()),
        }
    }
}
