//! Which states of the files were acknowledged when, and which of them may be found after a power cut.
//!
//! States are numbered; each transaction of a run writes its number into the metadata, so that what was recovered says
//! itself which state it claims to be. A number is used once, in all branches of a history.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The content of every file.
pub type Files = Vec<Arc<Vec<u8>>>;

/// One acknowledged change.
#[derive(Clone)]
pub struct Step {
    /// The event before which nothing of it can have happened.
    pub start: u64,
    pub files: Files,
    pub what: String,
}

/// What happened in one run on one world, and what it began with.
#[derive(Clone)]
pub struct History {
    pub steps: BTreeMap<u64, Step>,
    /// (event, number): from the event on, the state with this number or a later one is found.
    durable: Vec<(u64, u64)>,
    /// Before this event, recovery had not finished, and every state of `inherited` may still be found.
    opened: u64,
    inherited: (u64, u64),
    /// The state that recovery found; the other inherited ones are gone for good.
    resumed: u64,
    current: u64,
}

impl History {
    /// Begins with the files as `format` left them at `event`.
    pub fn new(event: u64, files: Files) -> History {
        let step = Step { start: 0, files, what: "format".into() };
        History {
            steps: BTreeMap::from([(0, step)]),
            durable: vec![(event, 0)],
            opened: event,
            inherited: (0, 0),
            resumed: 0,
            current: 0,
        }
    }

    /// What comes after a recovery that ended at `event` of a new world: it was started on what a power cut at `cut` of
    /// this history left, and found `resumed`.
    pub fn branch(&self, cut: u64, resumed: u64, event: u64) -> History {
        let (floor, ceiling) = (self.floor(cut), self.ceiling(cut));
        let mut steps = self.steps.clone();
        steps.retain(|number, _| *number <= ceiling);
        steps.values_mut().for_each(|step| step.start = 0);
        let durable = vec![(event, resumed)];
        History { steps, durable, opened: event, inherited: (floor, ceiling), resumed, current: resumed }
    }

    /// The present state.
    pub fn current(&self) -> u64 {
        self.current
    }

    /// The present state is an older one: the process was killed, and this is what another one found.
    pub fn fall_back(&mut self, number: u64) {
        self.current = number;
    }

    /// Adds a change that began at `start`; its number.
    pub fn add(&mut self, start: u64, files: Files, what: String) -> u64 {
        let newest = *self.steps.keys().next_back().expect("there is always a first step");
        let number = newest + 1;
        self.steps.insert(number, Step { start, files, what });
        self.current = number;
        number
    }

    /// The newest change was not made after all.
    pub fn take_back(&mut self, current: u64) {
        self.steps.pop_last();
        self.current = current;
    }

    /// The present state is durable from `event` on.
    pub fn durable_from(&mut self, event: u64) {
        self.durable.push((event, self.current));
    }

    fn floor(&self, cut: u64) -> u64 {
        let known = self.durable.iter().rev().find(|(event, _)| *event <= cut);
        known.map_or(self.inherited.0, |(_, number)| *number)
    }

    fn ceiling(&self, cut: u64) -> u64 {
        let begun = self.steps.iter().rev().find(|(number, step)| step.start < cut && **number > self.inherited.1);
        begun.map_or(self.inherited.1, |(number, _)| *number)
    }

    /// Whether the state may be found after a power cut at `cut`; if not, why.
    pub fn judge(&self, cut: u64, found: u64) -> Result<&Step, String> {
        let (floor, ceiling) = (self.floor(cut), self.ceiling(cut));
        let Some(step) = self.steps.get(&found) else { return Err(format!("state {found} was never there")) };
        if found < floor {
            return Err(format!("state {found} ({}) was found, but {floor} was durable at event {cut}", step.what));
        }
        if found > ceiling {
            return Err(format!("state {found} ({}) was found, which began after event {cut}", step.what));
        }
        if cut >= self.opened && found <= self.inherited.1 && found != self.resumed {
            return Err(format!("state {found} ({}) was found, lost by an earlier power cut", step.what));
        }
        Ok(step)
    }
}
