//! Devices that fail in the middle of an operation: what was acknowledged is kept, or the caller is told and finds the old
//! state or the new one; and the same after a power cut.

use std::sync::Arc;

use argosfs::base::Prng;
use argosfs::base::clock::ManualClock;
use argosfs::device::sim::{Fault, On, SimWorld};
use argosfs::fs::op::Op;
use argosfs::pool::allocator::Shortage;

use super::crash::{Checker, Effort, Tally};
use super::machine::{Act, Base, Ended, Machine};
use crate::campaign::Verdict;
use crate::process::Process;
use crate::stack;

/// Which requests fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Fail {
        on: On,
        sticky: bool,
    },
    /// No block that was never written can be.
    Full,
    /// The allocator finds nothing.
    Short {
        sticky: bool,
    },
}

/// All kinds.
pub const KINDS: [Kind; 9] = [
    Kind::Fail { on: On::Write, sticky: false },
    Kind::Fail { on: On::Write, sticky: true },
    Kind::Fail { on: On::Flush, sticky: false },
    Kind::Fail { on: On::Flush, sticky: true },
    Kind::Fail { on: On::Read, sticky: false },
    Kind::Fail { on: On::Any, sticky: true },
    Kind::Full,
    Kind::Short { sticky: false },
    Kind::Short { sticky: true },
];

impl Kind {
    /// What a device does wrong at its `nth` request; `None` when the devices are well.
    fn at(self, nth: u64) -> Option<Fault> {
        match self {
            Kind::Fail { on, sticky } => Some(Fault::Fail { on, nth, sticky }),
            Kind::Full => Some(Fault::Full { spare_blocks: nth }),
            Kind::Short { .. } => None,
        }
    }

    /// Lets it happen at the `nth` request, of each of the devices when it is theirs.
    pub fn arm(self, machine: &Machine, devices: &[usize], nth: u64) {
        match (self, machine.store()) {
            (Kind::Short { sticky }, Some(store)) => {
                store.run_short(Some(Shortage { nth, sticky }));
            }
            _ => self.arm_devices(&machine.world, devices, nth),
        }
    }

    fn arm_devices(self, world: &SimWorld, devices: &[usize], nth: u64) {
        let Some(fault) = self.at(nth) else { return };
        devices.iter().for_each(|index| world.fault(*index, fault.clone()));
    }

    /// Whether nobody may be told anything while so few devices are at fault that the pool survives it.
    pub fn is_hidden(self) -> bool {
        !matches!(self, Kind::Full | Kind::Short { sticky: true })
    }
}

/// Ends all faults; says how many shortages there were, however many requests they met.
pub fn heal(machine: &Machine) -> u64 {
    (0..machine.world.len()).for_each(|index| machine.world.heal(index));
    machine.store().map_or(0, |store| store.run_short(None).min(1))
}

/// Devices on which a request failed.
fn failed_devices(world: &SimWorld) -> u64 {
    (0..world.len()).filter(|index| world.counters(*index).errors > 0).count() as u64
}

/// Does `acts` while the devices fail at their `nth` request; false when they do not reach it.
pub fn during(
    base: &Base,
    tally: &mut Tally,
    acts: &[Act],
    (kind, devices, nth): (Kind, &[usize], u64),
    prng: &mut Prng,
) -> Verdict<bool> {
    let mut machine = base.start(prng.next())?;
    let from = machine.world.record();
    kind.arm(&machine, devices, nth);
    let (mut usable, mut short) = (true, 0);
    let overwhelmed = devices.len() > usize::from(base.shape.m);
    for act in acts {
        if machine.try_act(act)? != Ended::Well {
            // So many may fail, and nobody but a full device may have anything to tell.
            if !overwhelmed && (kind.is_hidden() || act.only_frees()) {
                return Err(format!("{act:?} failed for {devices:?} alone: {}", machine.error()));
            }
            short += heal(&machine);
            usable = machine.settle(overwhelmed)?;
            if !usable {
                break;
            }
        }
    }
    let failed = failed_devices(&machine.world) + short + heal(&machine);
    tally.faults += failed;
    if usable && machine.settle(overwhelmed)? {
        // What is well again is used again; a filesystem that has ended itself says so.
        if machine.try_act(&Act::Op(Op::Sync))? != Ended::Well && !overwhelmed && machine.settle(false)? {
            return Err(format!("sync fails after all is well again: {}", machine.error()));
        }
    }
    machine.leave();
    if failed == 0 {
        return Ok(false);
    }
    let end = machine.world.record();
    let mut checker = Checker::new(base, tally, devices);
    checker.point(&machine, end, Effort { all: 1, some: 2 }, prng)?;
    for _ in 0..2 {
        checker.point(&machine, from + prng.below(end - from + 1), Effort { all: 1, some: 1 }, prng)?;
    }
    Ok(true)
}

/// Does `acts`, cuts the power, and lets the devices fail at their `nth` request while the pool is opened.
pub fn while_opening(
    base: &Base,
    tally: &mut Tally,
    acts: &[Act],
    (kind, devices, nth): (Kind, &[usize], u64),
    prng: &mut Prng,
) -> Verdict<bool> {
    let mut machine = base.start(prng.next())?;
    let from = machine.world.record();
    for act in acts {
        machine.act(act)?;
    }
    machine.leave();
    let at = from + prng.below(machine.world.record() - from + 1);
    let world = machine.world.crash_state(at, prng);
    kind.arm_devices(&world, devices, nth);
    let all: Vec<usize> = (0..world.len()).collect();
    let mut open =
        || stack::open_at(&world, &all, &Process::new(), prng.next(), Arc::new(ManualClock::default())).map(drop);
    // A device may fail just when what only it has is copied to the others. It is not waited for a second time.
    if open().is_err()
        && devices.len() <= usize::from(base.shape.m)
        && kind != Kind::Full
        && let Err(error) = open()
    {
        return Err(format!("power cut at event {at}: {devices:?} alone keep the pool from being opened: {error}"));
    }
    let failed = failed_devices(&world);
    tally.faults += failed;
    if failed == 0 {
        return Ok(false);
    }
    let mut checker = Checker::new(base, tally, devices);
    checker.state(&machine, at, &world.crash_state(world.record(), prng), prng)?;
    checker.state(&machine, at, &world.crash_state(prng.below(world.record() + 1), prng), prng)?;
    Ok(true)
}
