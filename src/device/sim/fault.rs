//! Faults of simulated devices: armed during a run, drawn from each device's own seed.

use crate::base::Prng;
use std::ops::Range;

/// Kinds of request a fault applies to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Read,
    Write,
    Flush,
    Discard,
    /// All of them.
    Any,
}

impl On {
    fn matches(self, kind: On) -> bool {
        self == kind || self == On::Any
    }
}

/// Something a device does wrong until [`super::SimWorld::heal`]. `nth` counts matching requests from when the fault was
/// armed: 0 is the next one.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The nth request fails with EIO; later ones too when `sticky`. A failed write may have been done in part.
    Fail { on: On, nth: u64, sticky: bool },
    /// Each request fails with EIO in one of so many cases.
    Flaky { on: On, one_in: u64 },
    /// Every request fails with EIO: pulled out.
    Gone,
    /// So many blocks never written before can still be; then such writes fail with ENOSPC (a sparse image on a full disk).
    Full { spare_blocks: u64 },
    /// Flushes succeed and do nothing.
    LyingFlush,
    /// The nth request succeeds at byte `to` instead of where it was meant; reads and writes only.
    Misdirect { on: On, nth: u64, to: u64 },
    /// The nth write succeeds and does nothing; later ones too when `sticky`.
    LoseWrite { nth: u64, sticky: bool },
    /// The nth read returns flipped bits; the stored content is right; later ones too when `sticky`.
    GarbleRead { nth: u64, sticky: bool },
    /// So many reads that touch this block fail with EIO: a bad sector. A write of the block ends it.
    BadBlock { block: u64, times: u64 },
    /// Requests of the kind block until [`super::SimWorld::heal`] or [`super::SimWorld::release`].
    Hang { on: On },
    /// `stalled_ns` of the device says this.
    Stalled { ns: u64 },
}

impl Fault {
    /// Whether the fault outlives the request it hit.
    fn stays(&self) -> bool {
        match self {
            Fault::Fail { sticky, .. } | Fault::LoseWrite { sticky, .. } | Fault::GarbleRead { sticky, .. } => *sticky,
            Fault::Misdirect { .. } => false,
            Fault::BadBlock { times, .. } => *times > 0,
            _ => true,
        }
    }
}

/// What the armed faults together do to one request.
#[derive(Default, Debug)]
pub(super) struct Effect {
    pub(super) errno: Option<i32>,
    pub(super) lie: bool,
    pub(super) lose: bool,
    pub(super) garble: bool,
    pub(super) misdirect: Option<u64>,
}

/// The faults armed on one device.
#[derive(Default)]
pub(super) struct Armed {
    faults: Vec<Fault>,
}

impl Armed {
    pub(super) fn arm(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(super) fn heal(&mut self) {
        self.faults.clear();
    }

    /// Ends hangs only.
    pub(super) fn release(&mut self) {
        self.faults.retain(|fault| !matches!(fault, Fault::Hang { .. }));
    }

    pub(super) fn hangs(&self, kind: On) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Hang { on } if on.matches(kind)))
    }

    pub(super) fn gone(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Gone))
    }

    pub(super) fn stalled_ns(&self) -> Option<u64> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Stalled { ns } => Some(*ns),
            _ => None,
        })
    }

    /// Draws what happens to one request for these blocks; `new_blocks` is how many never-written blocks a write needs.
    pub(super) fn draw(&mut self, kind: On, blocks: Range<u64>, new_blocks: u64, prng: &mut Prng) -> Effect {
        let mut effect = Effect::default();
        self.faults.retain_mut(|fault| {
            let touched = |block: &u64| blocks.contains(block);
            if matches!(fault, Fault::BadBlock { block, .. } if kind == On::Write && touched(block)) {
                return false;
            }
            let hit = match fault {
                Fault::Fail { on, nth, .. } => on.matches(kind) && due(nth),
                Fault::Flaky { on, one_in } => on.matches(kind) && prng.chance(1, (*one_in).max(1)),
                Fault::Misdirect { on, nth, .. } => {
                    on.matches(kind) && matches!(kind, On::Read | On::Write) && due(nth)
                }
                Fault::LoseWrite { nth, .. } => kind == On::Write && due(nth),
                Fault::GarbleRead { nth, .. } => kind == On::Read && due(nth),
                Fault::BadBlock { block, .. } => kind == On::Read && touched(block),
                Fault::Full { .. } => kind == On::Write,
                Fault::LyingFlush => kind == On::Flush,
                Fault::Gone => true,
                Fault::Hang { .. } | Fault::Stalled { .. } => false,
            };
            if !hit {
                return true;
            }
            match fault {
                Fault::Fail { .. } | Fault::Flaky { .. } | Fault::Gone => effect.errno = Some(libc::EIO),
                Fault::BadBlock { times, .. } => {
                    *times -= 1;
                    effect.errno = Some(libc::EIO);
                }
                Fault::Full { spare_blocks } => match spare_blocks.checked_sub(new_blocks) {
                    Some(left) => *spare_blocks = left,
                    None => effect.errno = Some(libc::ENOSPC),
                },
                Fault::Misdirect { to, .. } => effect.misdirect = Some(*to),
                Fault::LoseWrite { .. } => effect.lose = true,
                Fault::GarbleRead { .. } => effect.garble = true,
                Fault::LyingFlush => effect.lie = true,
                Fault::Hang { .. } | Fault::Stalled { .. } => {}
            }
            fault.stays()
        });
        effect
    }
}

/// Counts down; true at and after zero.
fn due(nth: &mut u64) -> bool {
    match nth.checked_sub(1) {
        Some(left) => {
            *nth = left;
            false
        }
        None => true,
    }
}
