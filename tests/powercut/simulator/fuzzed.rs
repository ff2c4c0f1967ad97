//! Runs made of bytes: what is done, where the power is cut and what it leaves, and which device fails how, is each chosen by
//! the next of them. Any bytes at all make a run, and a small change of them a similar one: that is what a fuzzer needs.

use argosfs::base::Prng;
use argosfs::base::rng::mix64;
use argosfs::device::sim::{Fault, On};
use argosfs::fs::model::{ByteChoices, Choices};

use super::MIX;
use super::crash::{Checker, Effort, Tally};
use super::faults::{KINDS, heal};
use super::machine::{Act, Base, Ended, Machine};
use super::vocabulary::vocabulary;
use crate::campaign::{Verdict, trace};

/// The longest run.
const STEPS: usize = 60;
/// Power cuts that are looked at besides the last one.
const CUTS: usize = 3;

/// A run in the making.
struct Run<'a, 't> {
    base: &'a Base,
    machine: Machine,
    /// The first event of it.
    from: u64,
    /// The device that does wrong, from then on.
    weak: Option<usize>,
    /// Requests may be refused for want of space.
    full: bool,
    tally: &'t mut Tally,
}

/// Does what `bytes` say, on a pool like `base`. What was found wrong is told with the steps that led to it.
pub fn run(base: &Base, bytes: &[u8], tally: &mut Tally) -> Verdict {
    let mut choices = ByteChoices(bytes);
    let machine = base.start(1)?;
    let from = machine.world.record();
    let mut run = Run { base, machine, from, weak: None, full: false, tally };
    let mut told = Vec::new();
    run.steps(&mut choices, &mut told).map_err(|why| format!("{}\n{why}", told.join("\n")))
}

impl Run<'_, '_> {
    fn steps(&mut self, choices: &mut ByteChoices<'_>, told: &mut Vec<String>) -> Verdict {
        let words = vocabulary();
        let mut cuts = 0;
        for _ in 0..STEPS {
            if choices.is_empty() {
                break;
            }
            match choices.below(32) {
                0..=2 if cuts < CUTS => {
                    cuts += 1;
                    told.push("a power cut".to_owned());
                    self.cut(choices)?;
                }
                3 => self.fail(choices, told),
                4 => {
                    told.push("devices are well again".to_owned());
                    heal(&self.machine);
                }
                5..=15 => {
                    let word = words[choices.below(words.len() as u64) as usize];
                    if !self.act(word, told)? {
                        break;
                    }
                }
                16 => {
                    if !self.act(Act::Checkpoint, told)? {
                        break;
                    }
                }
                _ => {
                    let op = self.machine.past.now().model.random_op(choices, &MIX);
                    if !self.act(Act::Op(op), told)? {
                        break;
                    }
                }
            }
        }
        told.push("the last power cut".to_owned());
        self.machine.leave();
        heal(&self.machine);
        self.cut(choices)
    }

    /// Says whether the filesystem can still be used.
    fn act(&mut self, act: Act, told: &mut Vec<String>) -> Verdict<bool> {
        told.push(format!("{act:?}"));
        if self.machine.try_act(&act)? == Ended::Well {
            return Ok(true);
        }
        if !self.full {
            return Err(format!("it failed for {:?} alone: {}", self.weak, self.machine.error()));
        }
        heal(&self.machine);
        self.machine.settle(false)
    }

    /// A device begins to do wrong, unless one did already: so many may.
    fn fail(&mut self, choices: &mut ByteChoices<'_>, told: &mut Vec<String>) {
        if self.weak.is_some() {
            return;
        }
        let world = &self.machine.world;
        let index = choices.below(world.len() as u64) as usize;
        let nth = choices.below(64);
        let sticky = choices.below(2) == 1;
        let to = choices.below(256) * (world.device(index).size() / 256);
        let kinds = KINDS.len() as u64;
        let chosen = choices.below(kinds + 5);
        self.weak = Some(index);
        self.tally.faults += 1;
        if let Some(kind) = KINDS.get(chosen as usize) {
            told.push(format!("sim{index}: {kind:?} at {nth}"));
            self.full = !kind.is_hidden();
            kind.arm(&self.machine, &[index], nth);
            return;
        }
        let fault = match chosen - kinds {
            0 => Fault::LyingFlush,
            1 => Fault::Misdirect { on: On::Write, nth, to },
            2 => Fault::Misdirect { on: On::Read, nth: nth / 4, to },
            3 => Fault::LoseWrite { nth, sticky },
            _ => Fault::GarbleRead { nth: nth / 4, sticky },
        };
        told.push(format!("sim{index}: {fault:?}"));
        world.fault(index, fault);
    }

    /// Judges states that a power cut may leave, mostly a recent one; the run goes on as if there had been none.
    fn cut(&mut self, choices: &mut ByteChoices<'_>) -> Verdict {
        let end = self.machine.world.record();
        let back = if choices.one_in(4) { choices.below(end - self.from + 1) } else { choices.below(16) };
        let at = end.saturating_sub(back).max(self.from);
        let mut prng = Prng::new(mix64(choices.below(1 << 16)));
        trace(|| format!("power cut at {at} of {end}"));
        let weak: Vec<usize> = self.weak.into_iter().collect();
        Checker::new(self.base, self.tally, &weak).point(&self.machine, at, Effort { all: 1, some: 1 }, &mut prng)
    }
}
