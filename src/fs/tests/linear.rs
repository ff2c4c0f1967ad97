//! The namespace under many threads: what each of them is told could have been told to them one after the other.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::base::file::{SetAttr, XattrSet};
use crate::base::rng::mix64;
use crate::base::sync::thread;
use crate::fs::model::Model;
use crate::fs::model::linear::{DIR, Event, FILE, OWN, linearise, make, random_dir, random_names_op};
use crate::fs::op::{Driver, Name, Op, Outcome, Shown, Slot, Who, XattrName};

/// An operation by chance of a thread whose slot is `own`.
fn random_op(prng: &mut Prng, own: Slot) -> Op {
    let inode = [FILE, DIR, own, own][prng.below(4) as usize];
    match prng.below(16) {
        0..=11 => random_names_op(prng, own, own, inode),
        12 => Op::List { dir: random_dir(prng, own) },
        13 => Op::GetAttr { inode },
        14 => {
            let changes = SetAttr { mode: Some(0o600 + prng.below(8) as u32), ..SetAttr::default() };
            Op::SetAttr { who: Who::ROOT, inode, changes }
        }
        _ => match prng.below(3) {
            0 => {
                Op::SetXattr { inode, name: XattrName(0), length: 1, fill: prng.below(9) as u8, set: XattrSet::Create }
            }
            1 => Op::RemoveXattr { inode, name: XattrName(0) },
            _ => Op::GetXattr { inode, name: XattrName(0) },
        },
    }
}

/// Whether an outcome is what the model says. That somebody read a directory may be seen before he has read it.
fn agrees(model: &Outcome, told: &Outcome) -> bool {
    let timeless = |outcome: &Outcome| match outcome {
        Outcome::Attr(shown) => Outcome::Attr(Shown { atime: Timestamp::default(), ..*shown }),
        other => other.clone(),
    };
    timeless(model) == timeless(told)
}

/// One round: `threads` threads with `steps` operations each; then everything is looked at.
fn round(seed: u64, threads: usize, steps: usize) {
    let Rig { clock, fs } = Rig::new();
    let mut driver = Driver::new(fs, clock.clone());
    let mut model = Model::new(clock.now());
    for op in [make(Slot::ROOT, Name(3), FileType::Directory, DIR), make(Slot::ROOT, Name(0), FileType::Regular, FILE)]
    {
        let (now, outcome) = driver.apply(&op);
        model.check(&op, now, &outcome).unwrap();
    }
    let now = clock.now();
    let time = Arc::new(AtomicU64::new(1));
    let tick = |time: &AtomicU64| time.fetch_add(1, Ordering::SeqCst);
    // Under shuttle all begin when it lets them.
    let start = Arc::new(Barrier::new(if cfg!(feature = "shuttle") { 1 } else { threads }));
    let running: Vec<_> = (0..threads)
        .map(|number| {
            let (mut driver, time, start) = (driver.beside(), time.clone(), start.clone());
            let mut prng = Prng::new(mix64(seed) ^ mix64(number as u64));
            let own = Slot(OWN + number as u8);
            thread::spawn(move || {
                let mut events = Vec::with_capacity(steps);
                start.wait();
                for _ in 0..steps {
                    let op = random_op(&mut prng, own);
                    let called = tick(&time);
                    let outcome = driver.apply_at_once(&op);
                    let returned = tick(&time);
                    events.push(Event { thread: number, called, returned, op, outcome });
                }
                events
            })
        })
        .collect();
    let mut events: Vec<Event> = running.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let looks =
        [Slot::ROOT, DIR].map(|dir| Op::List { dir }).into_iter().chain([DIR, FILE].map(|inode| Op::GetAttr { inode }));
    for op in looks {
        let called = tick(&time);
        let outcome = driver.apply_at_once(&op);
        events.push(Event { thread: threads, called, returned: tick(&time), op, outcome });
    }
    if let Err(impossible) = linearise(&model, &events, now, &agrees) {
        panic!("ARGOSFS_SEED={seed}: {impossible}");
    }
    let rig = Rig { clock, fs: driver.into_fs() };
    rig.fs.forget_all();
    rig.fs.reclaim_all().unwrap();
    rig.check();
}

/// Rounds from a seed on, or one of them alone.
fn rounds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("ARGOSFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("ARGOSFS_FIRST_SEED").unwrap_or(0);
            first..first + number("ARGOSFS_SEEDS").unwrap_or(count)
        }
    }
}

#[cfg(not(feature = "shuttle"))]
#[test]
fn what_threads_are_told_has_an_order() {
    for seed in rounds(400) {
        round(seed, 2 + (seed % 3) as usize, 6);
    }
}

/// The same with many orders of the threads' steps for each round.
#[cfg(feature = "shuttle")]
#[test]
fn shuttle_finds_an_order_for_what_threads_are_told() {
    for seed in rounds(120) {
        crate::base::sync::explore(20, move || round(seed, 2 + (seed % 2) as usize, 4));
    }
}
