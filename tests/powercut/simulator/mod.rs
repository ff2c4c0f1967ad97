//! The filesystem as its callers see it, on simulated devices: one vocabulary of operations ([`argosfs::fs::op`]), the model
//! of POSIX that knows what may be found ([`past`]), every power cut of short sequences, many of long ones, and devices that
//! fail at each of their requests.
//!
//! A failing sequence is made short and printed as code. What was counted is printed at the end of each test; the script
//! `tests/run-nightly` adds it up.

mod crash;
mod faults;
mod full;
pub mod fuzzed;
mod machine;
mod past;
mod shrink;
mod vocabulary;

use std::cell::RefCell;
use std::time::Instant;

use argosfs::base::Prng;
use argosfs::base::file::FileType;
use argosfs::base::rng::mix64;
use argosfs::device::sim::{Fault, On, SimWorld};
use argosfs::fs::model::Mix;
use argosfs::fs::op::{Name, Op, Slot, Who};

pub use crash::Tally;
use crash::{Checker, Effort};
use faults::{KINDS, Kind};
pub use machine::Base;
use machine::{Act, Machine};
use vocabulary::{opening, preamble, vocabulary};

use crate::campaign::{States, Verdict, campaign, guarded};
use crate::stack::Shape;

/// Runs `body` for many seeds and says what was counted.
fn counted(test: &str, seeds: u64, states: u64, body: impl Fn(u64, &States, &mut Tally) -> Verdict) {
    let (began, tally) = (Instant::now(), RefCell::new(Tally::default()));
    campaign(test, seeds, states, |seed, chosen| body(seed, chosen, &mut tally.borrow_mut()));
    let (tally, seconds) = (tally.into_inner(), began.elapsed().as_secs_f64());
    eprintln!(
        "figures {test}: distinct {} states {} second {} lossy {} faults {} seconds {seconds:.0} ({:.0} states/s)",
        tally.distinct(),
        tally.states,
        tally.second,
        tally.lossy,
        tally.faults,
        tally.states as f64 / seconds
    );
}

/// Checks a sequence; when it fails, the shortest one that still does is told.
fn check_or_shrink(acts: &[Act], tally: &mut Tally, check: impl Fn(&[Act], &mut Tally) -> Verdict) -> Verdict {
    let Err(why) = guarded(|| check(acts, tally)) else { return Ok(()) };
    let fails = |acts: &[Act]| guarded(|| check(acts, &mut Tally::default())).err();
    let short = shrink::shrink(acts, |acts| fails(acts).is_some());
    let still = fails(&short).unwrap_or_default();
    Err(format!("{why}\n\nthe shortest that fails:\n{}\n{still}", shrink::as_code(&short)))
}

/// A 2+1 pool with the vocabulary's files in it.
pub fn small_base() -> Base {
    Base::new(Shape::exact(2, 1), 1, &preamble(), &opening()).expect("making a pool")
}

/// Every crash point of a sequence.
fn every_cut(base: &Base, acts: &[Act], effort: Effort, seed: u64, tally: &mut Tally) -> Verdict {
    let mut prng = Prng::new(seed);
    let mut machine = base.start(prng.next())?;
    let from = machine.world.record();
    for act in acts {
        machine.act(act)?;
    }
    machine.leave();
    Checker::new(base, tally, &[]).each_point(&machine, from, effort, &mut prng)
}

/// The sequence with this number: each pair of the vocabulary in four surroundings, in an order that mixes them well; then
/// triples by chance.
fn sequence(number: u64) -> Vec<Act> {
    let words = vocabulary();
    let count = words.len() as u64;
    let sync = Act::Op(Op::Sync);
    let total = count * count * 4;
    if number >= total {
        let mut prng = Prng::new(mix64(number));
        let mut word = || words[prng.below(count) as usize];
        return vec![word(), word(), word(), sync];
    }
    // A prime that divides neither count.
    let mixed = number * 7919 % total;
    let (first, second) = (words[(mixed / 4 / count) as usize], words[(mixed / 4 % count) as usize]);
    match mixed % 4 {
        0 => vec![first, second, sync],
        1 => vec![first, sync, second, sync],
        2 => vec![first, second, Act::Umount],
        // Names become durable, content that nobody asked for does not.
        _ => vec![first, second, Act::Checkpoint],
    }
}

#[test]
fn short_sequences_survive_every_power_cut() {
    let test = "simulator::short_sequences_survive_every_power_cut";
    let base = small_base();
    counted(test, 12, 4, |seed, chosen, tally| {
        let effort = Effort { all: 64, some: chosen.count() };
        check_or_shrink(&sequence(seed), tally, |acts, tally| every_cut(&base, acts, effort, seed, tally))
    });
}

const MIX: Mix = Mix { names: 40, attributes: 12, xattrs: 8, data: 34, sync: 8, remount: 1 };

/// Operations by chance, as the model proposes them; the model of the run itself is not needed for that.
fn long_sequence(base: &Base, prng: &mut Prng) -> Verdict<Vec<Act>> {
    let mut machine = base.start(prng.next())?;
    let mut acts = Vec::new();
    for _ in 0..50 {
        let act = match prng.below(25) {
            0 => Act::Checkpoint,
            1 => Act::Tidy,
            _ => Act::Op(machine.past.now().model.random_op(prng, &MIX)),
        };
        acts.push(act);
        machine.act(&act).map_err(|why| format!("{}\n{why}", shrink::as_code(&acts)))?;
    }
    Ok(acts)
}

/// Devices that do wrong without saying so.
fn silent_faults(machine: &Machine, weak: &[usize], prng: &mut Prng, tally: &mut Tally) {
    for index in weak {
        let size = machine.world.device(*index).size();
        let nth = prng.below(60);
        let fault = match prng.below(6) {
            0 => Fault::LyingFlush,
            1 => Fault::Misdirect { on: On::Write, nth, to: prng.below(size) },
            2 => Fault::Misdirect { on: On::Read, nth: nth / 4, to: prng.below(size) },
            3 => Fault::LoseWrite { nth, sticky: prng.chance(1, 2) },
            4 => Fault::Stalled { ns: 60_000_000_000 },
            _ => Fault::GarbleRead { nth: nth / 4, sticky: prng.chance(1, 2) },
        };
        machine.world.fault(*index, fault);
        tally.faults += 1;
    }
}

#[test]
fn long_runs_survive_power_cuts() {
    let test = "simulator::long_runs_survive_power_cuts";
    let shapes = [Shape::exact(2, 1), Shape::exact(1, 1), Shape::exact(2, 2), Shape::exact(4, 2)];
    counted(test, 8, 24, |seed, chosen, tally| {
        let shape = shapes[(seed % 4) as usize];
        let base = Base::new(shape, seed, &preamble(), &opening())?;
        let acts = long_sequence(&base, &mut Prng::new(mix64(seed)))?;
        check_or_shrink(&acts, tally, |acts, tally| {
            let mut prng = Prng::new(seed);
            let mut machine = base.start(prng.next())?;
            let weak: Vec<usize> = match prng.below(3) {
                0 => (0..prng.below(u64::from(shape.m)) as usize + 1).collect(),
                _ => Vec::new(),
            };
            silent_faults(&machine, &weak, &mut prng, tally);
            let from = machine.world.record();
            for act in acts {
                machine.act(act)?;
            }
            machine.leave();
            Checker::new(&base, tally, &weak).some_points(&machine, from, chosen)
        })
    });
}

/// Bytes by chance, and those that are kept for the fuzzer to begin with: what it found once is among them.
#[test]
fn runs_made_of_bytes_survive_power_cuts_and_faults() {
    let test = "simulator::runs_made_of_bytes_survive_power_cuts_and_faults";
    let base = small_base();
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/ops");
    for seed in std::fs::read_dir(seeds).expect("seeds are kept") {
        let path = seed.expect("seeds are kept").path();
        let bytes = std::fs::read(&path).expect("a seed can be read");
        guarded(|| fuzzed::run(&base, &bytes, &mut Tally::default()))
            .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
    counted(test, 12, 1, |seed, _, tally| {
        let mut bytes = vec![0; 400];
        argosfs::base::Entropy::fill(&mut Prng::new(mix64(seed)), &mut bytes);
        fuzzed::run(&base, &bytes, tally)
    });
}

/// A fault in each request of an operation and the sync after it.
#[test]
fn a_failing_device_loses_nothing_that_was_acknowledged() {
    let test = "simulator::a_failing_device_loses_nothing_that_was_acknowledged";
    let bases = [small_base(), Base::new(Shape::exact(2, 2), 1, &preamble(), &opening()).expect("making a pool")];
    let words = vocabulary();
    let sets: [&[usize]; 5] = [&[0], &[1], &[2], &[0, 2], &[0, 1, 2]];
    counted(test, 8, 1, |seed, _, tally| {
        let mixed = seed * 7919;
        let (devices, mixed) = (sets[(mixed % 5) as usize], mixed / 5);
        let (base, mixed) = (&bases[(mixed % 2) as usize], mixed / 2);
        let (kind, mixed) = (KINDS[(mixed % 9) as usize], mixed / 9);
        let (mut opening, mixed) = (mixed % 4 == 3, mixed / 4);
        let mut devices = devices;
        if matches!(kind, Kind::Short { .. }) {
            // All devices are well, and opening looks for no space.
            (devices, opening) = (&[], false);
        }
        let count = words.len() as u64;
        let mut acts = vec![words[(mixed % count) as usize], Act::Op(Op::Sync)];
        // Later rounds have another operation before it.
        if mixed >= count {
            acts.insert(0, words[(mix64(mixed) % count) as usize]);
        }
        for nth in 0..200 {
            let told = |why: String| format!("{kind:?} at {nth} of {devices:?}, opening {opening}: {why}");
            let mut reached = false;
            let run = |acts: &[Act], tally: &mut Tally| {
                let mut prng = Prng::new(mix64(seed) ^ nth);
                let fault = (kind, devices, nth);
                match opening {
                    true => faults::while_opening(base, tally, acts, fault, &mut prng),
                    false => faults::during(base, tally, acts, fault, &mut prng),
                }
            };
            let first = guarded(|| run(&acts, tally).map(|done| reached = done));
            if first.is_err() {
                check_or_shrink(&acts, tally, |acts, tally| run(acts, tally).map(drop)).map_err(told)?;
            }
            if !reached {
                break;
            }
        }
        Ok(())
    });
}

/// redb serves nothing any more once reading or writing the metadata failed on all devices: who asks is told so, and not that
/// something is corrupt.
#[test]
fn a_filesystem_whose_metadata_could_not_be_read_has_ended_and_says_so() {
    let base = small_base();
    let mut machine = base.start(1).unwrap();
    let truncate = vocabulary().into_iter().find(|act| {
        matches!(act, Act::Op(Op::SetAttr { changes: argosfs::base::file::SetAttr { size: Some(0), .. }, .. }))
    });
    machine.world.power_off();
    // What is in memory may be enough for the first, never for the second.
    if machine.try_act(&truncate.unwrap()) == Ok(machine::Ended::Well) {
        assert_eq!(machine.try_act(&Act::Op(Op::Sync)), Ok(machine::Ended::Told));
    }
    (0..base.shape.devices).for_each(|index| machine.world.heal(index));
    assert_eq!(machine.settle(false), Ok(false));
}

/// Opening reads what the log holds and what everybody needs, not what the pool holds.
#[test]
fn opening_costs_no_more_in_a_fuller_pool() {
    let bytes_read = |files: u8| {
        let base = Base::new(Shape::exact(2, 1), 1, &[], &[]).unwrap();
        let mut machine = base.start(1).unwrap();
        for slot in 0..files {
            let (to, name) = (Slot(1), Name(slot % 10));
            let dir = Slot(if slot >= 10 { 2 } else { 0 });
            let kind = FileType::Regular;
            let who = Who::ROOT;
            let make = Op::Make { who, dir, name, kind, mode: 0o644, seed: 0, to };
            let write = Op::Write { who, inode: to, offset: 0, length: 900_000, fill: slot, kill_suidgid: false };
            machine.act(&Act::Op(make)).unwrap();
            machine.act(&Act::Op(write)).unwrap();
            machine.act(&Act::Op(Op::Sync)).unwrap();
        }
        machine.act(&Act::Checkpoint).unwrap();
        machine.leave();
        let world: SimWorld = machine.world.fork();
        let all: Vec<usize> = (0..world.len()).collect();
        let opened = crate::stack::open(&world, &all, &crate::process::Process::new(), 5).unwrap();
        drop(opened);
        (0..world.len()).map(|index| world.counters(index).bytes_read).sum::<u64>()
    };
    let (few, many) = (bytes_read(1), bytes_read(10));
    assert!(many < few + (256 << 10), "opening read {few} bytes, and {many} with ten times the content");
}

/// The shrinker finds what a failure needs: here devices that all lie about flushing, which no filesystem survives.
#[test]
fn a_stack_that_cannot_keep_its_promise_is_found_and_the_sequence_made_short() {
    let base = small_base();
    let words = vocabulary();
    let mut acts: Vec<Act> = words.iter().copied().filter(|act| *act != Act::Op(Op::Sync)).take(20).collect();
    acts.push(Act::Op(Op::Sync));
    let check = |acts: &[Act], tally: &mut Tally| {
        let mut machine = base.start(1)?;
        (0..base.shape.devices).for_each(|index| machine.world.fault(index, Fault::LyingFlush));
        for act in acts {
            machine.act(act)?;
        }
        machine.leave();
        let at = machine.world.record();
        Checker::new(&base, tally, &[]).point(&machine, at, Effort { all: 1, some: 8 }, &mut Prng::new(3))
    };
    let why = check_or_shrink(&acts, &mut Tally::default(), check).expect_err("lies were not found out");
    let short = shrink::shrink(&acts, |acts| guarded(|| check(acts, &mut Tally::default())).is_err());
    assert_eq!(short.len(), 2, "{why}");
    assert_eq!(short[1], Act::Op(Op::Sync));
    assert!(why.contains("Act::Op(Op::Sync),\n]"), "{why}");
}
