//! Power cuts, what else befalls the devices meanwhile, and what must be found afterwards.

use argosfs::base::Prng;
use argosfs::device::sim::SimWorld;

use crate::campaign::{Verdict, trace};
use crate::content::{self, Recovered, Run, Weak};
use crate::process::Process;
use crate::stack;

/// What becomes of a device while the power is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// It is not there when the pool is opened.
    Missing,
    Zeroed,
    /// Its ends, where the labels are, and parts between are noise.
    Noise,
    /// Some of what it holds rots.
    Rotten,
    /// It holds what it held at an earlier moment.
    Stale,
}

pub const LOSSES: [Loss; 8] =
    [Loss::Missing, Loss::Missing, Loss::Missing, Loss::Missing, Loss::Zeroed, Loss::Noise, Loss::Rotten, Loss::Stale];

/// Counts, so that a test can tell that what it is about did happen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub opened: u64,
    pub refused: u64,
    pub lost: u64,
    pub cut_while_opening: u64,
}

/// Cuts the power of a run, lets things happen to its devices, recovers, checks, and goes on from there `depth` more times.
pub fn cut(run: &Run, depth: usize, prng: &mut Prng, tally: &mut Tally) -> Verdict {
    let at = run.world.oldest_crash_point() + prng.below(run.world.record() - run.world.oldest_crash_point() + 1);
    let world = run.world.crash_state(at, prng);
    let mut health = run.health_at(at).clone();
    let told = |why: String| format!("power cut at event {at} of {}: {why}", run.world.record());

    // One in some lets other devices be lost than those that were lost already: then a refusal is right, an old state not,
    // unless it is read from a device that holds wrong or old bytes: what the end of the only log was cannot be seen.
    let reckless = !health.weak.is_empty() && prng.chance(1, 6);
    let m = usize::from(run.shape.m);
    let budget = if reckless { m } else { m.saturating_sub(health.weak.len()) };
    let mut lost = Vec::new();
    let candidates: Vec<usize> =
        health.members.iter().copied().filter(|index| reckless || !health.weak.contains_key(index)).collect();
    let candidates: Vec<usize> =
        candidates.into_iter().filter(|index| matches!(health.weak.get(index), None | Some(Weak::Suspect))).collect();
    let budget = if candidates.is_empty() { 0 } else { budget };
    for _ in 0..prng.below(budget as u64 + 1).max(prng.below(budget as u64 + 1)) {
        let index = candidates[prng.below(candidates.len() as u64) as usize];
        if !lost.iter().any(|(other, _)| *other == index) {
            lost.push((index, LOSSES[prng.below(LOSSES.len() as u64) as usize]));
        }
    }
    tally.lost += lost.len() as u64;
    let mut here: Vec<usize> = (0..world.len()).collect();
    // A weak device is there again, or still is not.
    for (index, weak) in &mut health.weak {
        match weak {
            Weak::Absent if prng.chance(1, 2) => *weak = Weak::Suspect,
            Weak::Absent => here.retain(|other| other != index),
            Weak::Suspect | Weak::Blank => {}
        }
    }
    for (index, loss) in &lost {
        let weak = lose((&run.world, at), &world, *index, *loss, prng);
        if weak == Weak::Absent {
            here.retain(|other| other != index);
        }
        health.weak.insert(*index, weak);
    }
    // A device that is not there and one that holds nothing are both beyond reach; a suspect may be right.
    let must_open = health.weak.len() <= m;
    shuffle(&mut here, prng);
    let why = |error: String| told(format!("{error} (lost: {lost:?}, health: {health:?}, opened from {here:?})"));

    trace(|| format!("power cut at {at}, lost {lost:?}, health {health:?}, opening from {here:?}"));
    let salt = prng.next();
    let process = Process::new();
    let mounted = match stack::open(&world, &here, &process, salt) {
        Ok(mounted) => mounted,
        Err(_) if !must_open => {
            tally.refused += 1;
            return Ok(());
        }
        Err(error) => return Err(why(format!("open: {error}"))),
    };
    tally.opened += 1;
    let found = match content::number_of(&mounted.store) {
        Ok(found) => found,
        // As good as a refusal: the one who reads is told.
        Err(_) if !must_open => {
            tally.refused += 1;
            return Ok(());
        }
        Err(error) => return Err(why(error)),
    };
    let notes = || mounted.store.pool().map(|pool| pool.take_notes());
    trace(|| format!("{}: found state {found}: {:?}", world.record(), notes()));
    // Whether somebody is here who could know: a member that was there when the pool was opened last, and still says so.
    let knows = |index: &usize| health.members.contains(index) && health.weak.get(index) != Some(&Weak::Blank);
    let before = run.opened_from.iter().any(|index| here.contains(index) && knows(index));
    let step = match run.history.judge(at, found) {
        Ok(step) => step,
        // Two halves that know nothing of each other: each may be opened, and an old state is all this one has.
        Err(_) if !must_open && run.shape.can_split() && !before => return Ok(()),
        Err(_) if !must_open && here.iter().any(|index| health.weak.get(index) == Some(&Weak::Suspect)) => {
            return Ok(());
        }
        Err(error) => return Err(why(error)),
    };
    if must_open {
        content::verify(&mounted.store, &step.files).map_err(why)?;
    }
    if !must_open {
        return Ok(());
    }
    // What lost its label has to be replaced, whatever else it holds.
    for (index, weak) in &mut health.weak {
        if *weak == Weak::Suspect && mounted.member(*index).is_none() {
            *weak = Weak::Blank;
        }
    }
    let history = run.history.branch(at, found, world.record());
    let opened_from = here.into_iter().collect();
    let recovered = Recovered { world, mounted, opened_from, history, health };
    go_on(Run::resume(recovered, run.shape, prng), depth, prng, tally).map_err(told)
}

/// What may happen next: work and another power cut, another power cut at once, which may fall into the opening, or healing.
fn go_on(mut next: Run, depth: usize, prng: &mut Prng, tally: &mut Tally) -> Verdict {
    if depth > 0 && prng.chance(1, 2) {
        if prng.chance(1, 2) {
            next.steps(prng.below(8) as usize).map_err(|why| format!("going on: {why}"))?;
            next.leave();
        } else {
            // The power goes again while the pool is being opened.
            tally.cut_while_opening += 1;
            next.leave();
        }
        return cut(&next, depth - 1, prng, tally);
    }
    if prng.chance(1, 3) {
        next.heal_all().map_err(|why| format!("healing: {why}"))?;
        next.verify().map_err(|why| format!("after healing: {why}"))?;
        next.leave();
        return cut(&next, 0, prng, tally);
    }
    Ok(())
}

/// Lets a device be lost in what a power cut of `before` at event `at` left; what it is worth afterwards.
pub fn lose((before, at): (&SimWorld, u64), world: &SimWorld, index: usize, loss: Loss, prng: &mut Prng) -> Weak {
    let size = world.device(index).size();
    match loss {
        Loss::Missing => Weak::Absent,
        Loss::Zeroed => {
            world.wipe(index);
            Weak::Blank
        }
        Loss::Noise => {
            world.corrupt(index, 0..1 << 20);
            world.corrupt(index, size - (1 << 20)..size);
            for _ in 0..20 {
                let from = prng.below(size / 65_536 - 1) * 65_536;
                world.corrupt(index, from..from + 65_536);
            }
            Weak::Blank
        }
        Loss::Rotten => {
            for _ in 0..1 + prng.below(100) {
                world.rot_block(index);
            }
            Weak::Suspect
        }
        Loss::Stale => {
            let oldest = before.oldest_crash_point();
            let earlier = oldest + prng.below(at - oldest + 1);
            world.restore(index, &before.snapshot_at(index, earlier));
            Weak::Suspect
        }
    }
}

fn shuffle(list: &mut [usize], prng: &mut Prng) {
    for at in (1..list.len()).rev() {
        list.swap(at, prng.below(at as u64 + 1) as usize);
    }
}
