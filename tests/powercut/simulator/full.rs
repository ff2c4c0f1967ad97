//! P6 in a pool with hardly any space left: before there is no space, whoever wants some is told so at once; what was taken in
//! has its place, and to remove something never needs any. The same after power cuts.

use std::sync::Arc;

use argosfs::base::file::{Caller, FileType, XattrSet};
use argosfs::base::rng::mix64;
use argosfs::base::{Error, Ino, Prng};
use argosfs::fs::op::{Name, Op, Slot, Who};
use argosfs::fs::{Fs, Options};

use super::crash::Checker;
use super::machine::{Act, Base, Ended, Machine};
use super::vocabulary::{opening, preamble};
use super::{MIX, check_or_shrink, counted};
use crate::campaign::Verdict;
use crate::process::Process;
use crate::stack::{self, Shape};

/// What takes up the space.
const FILLER: Name = Name(9);

/// A pool with hardly any space left, so much as `spare` bytes of content.
fn full_base(shape: Shape, seed: u64, spare: u64) -> Verdict<Base> {
    let (name, to) = (FILLER, Slot(7));
    let empty = Base::new(shape, seed, &preamble(), &opening())?;
    let available = empty.start(seed)?.store().map_or(0, |store| store.space().available);
    let filler = [
        Op::Make { who: Who::ROOT, dir: Slot::ROOT, name, kind: FileType::Regular, mode: 0o644, seed: 0, to },
        Op::Write {
            who: Who::ROOT,
            inode: to,
            offset: 0,
            length: available.saturating_sub(spare) as u32,
            fill: 3,
            kill_suidgid: false,
        },
    ];
    let preamble: Vec<Act> = preamble().into_iter().chain(filler.map(Act::Op)).chain([Act::Op(Op::Sync)]).collect();
    Base::new(shape, seed, &preamble, &opening())
}

/// Does one thing, which may be refused for want of space if it adds something.
fn run(machine: &mut Machine, act: &Act) -> Verdict {
    match machine.try_act(act)? {
        Ended::Well => Ok(()),
        Ended::Full if act.may_find_no_space() => machine.settle(false).map(drop),
        _ => Err(format!("{act:?}: {}", machine.error())),
    }
}

/// Operations by chance, up to the first that should not have been refused.
fn sequence(base: &Base, prng: &mut Prng) -> Verdict<Vec<Act>> {
    let mut machine = base.start(prng.next())?;
    let mut acts = Vec::new();
    for _ in 0..60 {
        let act = match prng.below(20) {
            0 => Act::Checkpoint,
            1 => Act::Tidy,
            _ => match machine.past.now().model.random_op(prng, &MIX) {
                // As on any filesystem, what a write strips stays stripped when there is no space for the bytes.
                Op::Write { who, inode, offset, length, fill, .. } => {
                    Act::Op(Op::Write { who, inode, offset, length, fill, kill_suidgid: false })
                }
                op => Act::Op(op),
            },
        };
        acts.push(act);
        if run(&mut machine, &act).is_err() {
            break;
        }
    }
    Ok(acts)
}

#[test]
fn a_full_pool_keeps_what_it_took_in_and_can_be_emptied() {
    let test = "simulator::full::a_full_pool_keeps_what_it_took_in_and_can_be_emptied";
    let shapes = [Shape { size: 6 << 20, ..Shape::exact(2, 1) }, Shape { size: 6 << 20, ..Shape::exact(1, 1) }];
    counted(test, 4, 6, |seed, chosen, tally| {
        let spare = [0, 20_000, 100_000, 400_000][(seed / 2 % 4) as usize];
        let base = full_base(shapes[(seed % 2) as usize], seed, spare)?;
        let acts = sequence(&base, &mut Prng::new(mix64(seed)))?;
        check_or_shrink(&acts, tally, |acts, tally| {
            let mut prng = Prng::new(seed);
            let mut machine = base.start(prng.next())?;
            let from = machine.world.record();
            for act in acts {
                run(&mut machine, act)?;
            }
            machine.leave();
            Checker::new(&base, tally, &[]).some_points(&machine, from, chosen)
        })
    });
}

/// Metadata fills the pool as well: names and attributes, until none find space any more. All of it can be removed, by whoever
/// opens the pool next, too, and then there is space.
#[test]
fn what_fills_the_metadata_can_be_removed_again() {
    let shape = Shape { size: 16 << 20, ..Shape::exact(2, 1) };
    let base = full_base(shape, 1, 0).unwrap();
    let all: Vec<usize> = (0..shape.devices).collect();
    let name = |number: u32| format!("file {number}").into_bytes();
    for reopened in [false, true] {
        let world = base.world.fork();
        let open = || {
            let store = stack::open(&world, &all, &Process::new(), 1).unwrap().store;
            Fs::open(Arc::new(store), Options::default()).unwrap()
        };
        let mut fs = open();
        let (mut made, mut refused) = (0, 0);
        while refused < 20 {
            let entry = fs.mknod(&Caller::ROOT, Ino::ROOT, &name(made), 0o100_644, 0);
            let filled = entry.and_then(|entry| {
                made += 1;
                fs.set_xattr(&Caller::ROOT, entry.attr.ino, b"user.large", &[7; 60_000], XattrSet::Any, false)
            });
            match filled {
                Ok(()) => {}
                Err(Error::NoSpace) => refused += 1,
                Err(error) => panic!("file {made}: {error}"),
            }
        }
        fs.syncfs().unwrap();
        if reopened {
            drop(fs);
            fs = open();
        }
        for number in 0..made {
            let gone = fs.unlink(&Caller::ROOT, Ino::ROOT, &name(number));
            gone.unwrap_or_else(|error| panic!("{number} of {made}, reopened: {reopened}: {error}"));
        }
        fs.unlink(&Caller::ROOT, Ino::ROOT, &FILLER.bytes()).unwrap();
        fs.forget_all();
        fs.reclaim_all().unwrap();
        fs.syncfs().unwrap();
        let entry = fs.mknod(&Caller::ROOT, Ino::ROOT, b"new", 0o100_644, 0).unwrap();
        fs.write(&Caller::ROOT, entry.attr.ino, 0, &[1; 1 << 20], false).unwrap();
        fs.syncfs().unwrap();
        stack::check(fs.store()).unwrap();
    }
}
