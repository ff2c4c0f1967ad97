//! Whether what many threads were told at the same time could have been told to them one after the other: linearisability
//! (Herlihy and Wing 1990), decided by trying the orders there are (Wing and Gong 1993) and never going on twice from the same
//! state with the same operations left (Lowe 2017).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Choices, Model};
use crate::base::Timestamp;
use crate::base::file::{FileType, RenameMode};
use crate::fs::op::{Name, Op, Outcome, Slot, Who};

/// An operation that one of the threads performed. Times are numbers that grow with each call and each return.
#[derive(Clone, Debug)]
pub struct Event {
    pub thread: usize,
    pub called: u64,
    pub returned: u64,
    pub op: Op,
    pub outcome: Outcome,
}

/// What no order explains.
#[derive(Debug)]
pub struct Impossible {
    /// Everything called until then, by the time of its return. The outcome of the last is the first that cannot be; what
    /// returned later may have happened or not.
    pub history: Vec<Event>,
}

/// `/dir` and `/a`, a directory and a file that all threads refer to from the beginning.
pub const DIR: Slot = Slot(1);
pub const FILE: Slot = Slot(2);
/// The first slot of the threads' own.
pub const OWN: u8 = 3;

/// Makes a file of a kind.
pub fn make(dir: Slot, name: Name, kind: FileType, to: Slot) -> Op {
    Op::Make { who: Who::ROOT, dir, name, kind, mode: 0o755, seed: 1, to }
}

/// A directory by chance, for a thread whose slot is `own`.
pub fn random_dir(choices: &mut impl Choices, own: Slot) -> Slot {
    [Slot::ROOT, DIR, Slot::ROOT, DIR, own][choices.below(5) as usize]
}

/// An operation on names by chance, of a thread whose slot is `own`: among few names, so that threads meet. What is made goes
/// into slot `made`, and `inode` is what may get a link.
pub fn random_names_op(choices: &mut impl Choices, own: Slot, made: Slot, inode: Slot) -> Op {
    let mut name = || Name(choices.below(4) as u8);
    let (name, new_name) = (name(), name());
    let dir = random_dir(choices, own);
    let new_dir = [Slot::ROOT, DIR][choices.below(2) as usize];
    match choices.below(12) {
        0 | 1 => {
            let kinds = [FileType::Regular, FileType::Directory, FileType::Symlink];
            make(dir, name, kinds[choices.below(3) as usize], made)
        }
        2 => Op::Tmpfile { who: Who::ROOT, dir, mode: 0o600, to: own },
        3 | 4 => Op::Link { inode, dir, name },
        5 | 6 => Op::Unlink { dir, name },
        7 => Op::Rmdir { dir, name },
        8..=10 => {
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            Op::Rename { dir, name, new_dir, new_name, mode: modes[choices.below(3) as usize] }
        }
        _ => Op::Lookup { dir, name, to: own },
    }
}

/// Operations that can be looked at together.
pub const MOST: usize = 64;

/// Looks for an order of `events`, at most [`MOST`], in which a filesystem that was like `before` gives all their outcomes, and
/// in which nothing comes before what had returned when it was called. All of it happened at `now`. `agrees` compares what the
/// model says, first, with an outcome.
pub fn linearise(
    before: &Model,
    events: &[Event],
    now: Timestamp,
    agrees: &dyn Fn(&Outcome, &Outcome) -> bool,
) -> Result<(), Impossible> {
    assert!(events.len() <= MOST, "{} events are too many", events.len());
    let mut sorted = events.to_vec();
    sorted.sort_by_key(|event| event.returned);
    let explained = |count: usize| {
        let Some(last) = count.checked_sub(1).and_then(|last| sorted.get(last)) else { return true };
        let mut history: Vec<&Event> = sorted.iter().take(count).collect();
        history.extend(sorted.iter().skip(count).filter(|event| event.called < last.returned));
        Search { events: &history, certain: count, now, agrees, seen: HashSet::new() }.find(before, 0)
    };
    if explained(sorted.len()) {
        return Ok(());
    }
    // Each beginning of a history that can be explained can be, too.
    let first = (1..=sorted.len()).find(|count| !explained(*count)).unwrap_or(sorted.len());
    let end = sorted[first - 1].returned;
    let (mut history, rest) = (sorted[..first].to_vec(), &sorted[first..]);
    let last = history.pop();
    history.extend(rest.iter().filter(|event| event.called < end).cloned());
    history.extend(last);
    Err(Impossible { history })
}

struct Search<'a> {
    events: &'a [&'a Event],
    /// So many of them have returned, the others may not have happened.
    certain: usize,
    now: Timestamp,
    agrees: &'a dyn Fn(&Outcome, &Outcome) -> bool,
    seen: HashSet<(u64, u64)>,
}

impl Search<'_> {
    /// Whether what is not in `done` can follow on `state`.
    fn find(&mut self, state: &Model, done: u64) -> bool {
        let left = |index: usize| done >> index & 1 == 0;
        if (0..self.certain).all(|index| !left(index)) {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        if !self.seen.insert((done, hasher.finish())) {
            return false;
        }
        // Whatever returned before another was called comes before it.
        let first_return =
            (0..self.certain).filter(|index| left(*index)).map(|index| self.events[index].returned).min();
        for index in (0..self.events.len()).filter(|index| left(*index)) {
            let event = self.events[index];
            if first_return.is_some_and(|returned| event.called > returned) {
                continue;
            }
            let mut next = state.clone();
            let outcome = next.apply(&event.op, self.now);
            let fits = index >= self.certain || (self.agrees)(&outcome, &event.outcome);
            if fits && self.find(&next, done | 1 << index) {
                return true;
            }
        }
        false
    }
}

impl std::fmt::Display for Impossible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "no order explains the last of these (thread: called..returned):")?;
        for event in &self.history {
            writeln!(
                f,
                "  {}: {:3}..{:3} {:?} -> {:?}",
                event.thread, event.called, event.returned, event.op, event.outcome
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::op::Refusal;

    fn make(name: u8, to: u8) -> Op {
        super::make(Slot::ROOT, Name(name), FileType::Regular, Slot(to))
    }

    fn told(answers: &[(usize, u64, u64, Op, Outcome)]) -> Result<(), Impossible> {
        let now = Timestamp::default();
        let event = |(thread, called, returned, op, outcome): &(usize, u64, u64, Op, Outcome)| Event {
            thread: *thread,
            called: *called,
            returned: *returned,
            op: *op,
            outcome: outcome.clone(),
        };
        let events: Vec<Event> = answers.iter().map(event).collect();
        linearise(&Model::new(now), &events, now, &|model, told| match (model, told) {
            (Outcome::Attr(_), Outcome::Done) => true,
            _ => model == told,
        })
    }

    #[test]
    fn one_of_two_that_make_the_same_name_is_told_so() {
        let exists = Outcome::Refused(Refusal::Exists);
        let both = |first: &Outcome, second: &Outcome| {
            told(&[(0, 1, 3, make(0, 1), first.clone()), (1, 2, 4, make(0, 2), second.clone())])
        };
        both(&Outcome::Done, &exists).unwrap();
        both(&exists, &Outcome::Done).unwrap();
        assert_eq!(both(&Outcome::Done, &Outcome::Done).unwrap_err().history.len(), 2);
        both(&exists, &exists).unwrap_err();
    }

    #[test]
    fn what_returned_is_seen_by_whoever_asks_afterwards() {
        let list = Op::List { dir: Slot::ROOT };
        let (none, one) = (Outcome::Names(Vec::new()), Outcome::Names(vec![(b"a".to_vec(), FileType::Regular)]));
        told(&[(0, 1, 4, make(0, 1), Outcome::Done), (1, 2, 3, list, none.clone())]).unwrap();
        told(&[(0, 1, 4, make(0, 1), Outcome::Done), (1, 2, 3, list, one.clone())]).unwrap();
        told(&[(0, 1, 2, make(0, 1), Outcome::Done), (1, 3, 4, list, one.clone())]).unwrap();
        let stale =
            told(&[(0, 1, 2, make(0, 1), Outcome::Done), (1, 3, 4, list, none.clone()), (1, 5, 6, list, one.clone())]);
        // What follows is not to blame.
        assert_eq!(stale.unwrap_err().history.len(), 2);
        // Once seen, it does not go away.
        told(&[(0, 1, 9, make(0, 1), Outcome::Done), (1, 2, 3, list, one), (1, 4, 5, list, none)]).unwrap_err();
    }
}
