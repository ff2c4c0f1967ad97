//! Devices that fail in the middle of an operation: what was acknowledged is kept, or the caller is told and finds the old
//! state or the new one; and the same after a power cut.

use std::sync::Arc;

use argosfs::base::Prng;
use argosfs::base::clock::ManualClock;
use argosfs::device::sim::{Fault, On, SimWorld};
use argosfs::fs::op::Op;

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
}

/// All kinds.
pub const KINDS: [Kind; 7] = [
    Kind::Fail { on: On::Write, sticky: false },
    Kind::Fail { on: On::Write, sticky: true },
    Kind::Fail { on: On::Flush, sticky: false },
    Kind::Fail { on: On::Flush, sticky: true },
    Kind::Fail { on: On::Read, sticky: false },
    Kind::Fail { on: On::Any, sticky: true },
    Kind::Full,
];

impl Kind {
    fn at(self, nth: u64) -> Fault {
        match self {
            Kind::Fail { on, sticky } => Fault::Fail { on, nth, sticky },
            Kind::Full => Fault::Full { spare_blocks: nth },
        }
    }
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
    devices.iter().for_each(|index| machine.world.fault(*index, kind.at(nth)));
    let mut usable = true;
    let overwhelmed = devices.len() > usize::from(base.shape.m);
    let heal = |machine: &Machine| (0..base.shape.devices).for_each(|index| machine.world.heal(index));
    for act in acts {
        if machine.try_act(act)? == Ended::Told {
            // So many may fail, and nobody but a full device may have anything to tell.
            if !overwhelmed && kind != Kind::Full {
                return Err(format!("{act:?} failed for {devices:?} alone: {}", machine.error()));
            }
            heal(&machine);
            usable = machine.settle(overwhelmed)?;
            if !usable {
                break;
            }
        }
    }
    let failed = failed_devices(&machine.world);
    tally.faults += failed;
    heal(&machine);
    if usable && machine.settle(overwhelmed)? {
        // What is well again is used again; a filesystem that has ended itself says so.
        if machine.try_act(&Act::Op(Op::Sync))? == Ended::Told && !overwhelmed && machine.settle(false)? {
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
    devices.iter().for_each(|index| world.fault(*index, kind.at(nth)));
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
