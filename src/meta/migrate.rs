//! Bringing the tables of older pools up to date, and refusing those of newer ones.
//!
//! Invariant: the version is written by the transaction that makes it true.

use super::{Meta, Reader, Tx};
use crate::base::{Error, Result};
use crate::format::rows::Counter;

#[path = "../../migrations/mod.rs"]
mod migrations;

/// Leads from the version before `to` to `to`.
pub struct Step {
    pub to: u64,
    pub run: fn(&mut Tx<'_>) -> Result<()>,
}

/// Brings the tables to the version of this build. Must happen before anything else reads them.
///
/// # Errors
/// [`Error::Unavailable`] when they are newer than this build, or older and opened for reading only.
pub fn migrate(meta: &Meta, read_only: bool) -> Result<()> {
    take_steps(meta, migrations::STEPS, read_only)
}

fn take_steps(meta: &Meta, steps: &[Step], read_only: bool) -> Result<()> {
    let version = meta.view(|view| view.counter(Counter::SchemaVersion))?;
    let newest = steps.last().map_or(0, |step| step.to);
    if version > newest {
        return Err(Error::Unavailable(format!(
            "the pool's metadata has version {version}, this argosfs reads up to {newest}: use a newer argosfs"
        )));
    }
    let due: Vec<&Step> = steps.iter().filter(|step| step.to > version).collect();
    if read_only && !due.is_empty() {
        return Err(Error::Unavailable(format!(
            "the pool's metadata has version {version} and must be brought to {newest} first: mount it once for writing"
        )));
    }
    for step in due {
        meta.transact(|tx| {
            (step.run)(tx)?;
            tx.set_counter(Counter::SchemaVersion, step.to)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::clock::ManualClock;

    fn meta() -> Meta {
        Meta::in_memory(Arc::new(ManualClock::default())).unwrap()
    }

    fn version(meta: &Meta) -> u64 {
        meta.view(|view| view.counter(Counter::SchemaVersion)).unwrap()
    }

    const STEPS: &[Step] = &[
        Step { to: 1, run: |tx| tx.set_counter(Counter::NextIno, 10) },
        Step { to: 2, run: |tx| tx.bump_counter(Counter::NextIno, 5).map(drop) },
        Step { to: 3, run: |tx| tx.bump_counter(Counter::NextIno, 7).map(drop) },
    ];

    #[test]
    fn every_pool_passes_through_the_steps_it_lacks_once() {
        let meta = meta();
        take_steps(&meta, &STEPS[..2], false).unwrap();
        assert_eq!(version(&meta), 2);
        for _ in 0..2 {
            take_steps(&meta, STEPS, false).unwrap();
            assert_eq!(version(&meta), 3);
            assert_eq!(meta.view(|view| view.counter(Counter::NextIno)).unwrap(), 22);
        }
    }

    #[test]
    fn a_step_that_fails_has_not_happened() {
        let meta = meta();
        let failing = Step {
            to: 2,
            run: |tx| {
                tx.set_counter(Counter::NextIno, 99)?;
                Err(Error::NoSpace)
            },
        };
        let steps = [Step { to: 1, run: STEPS[0].run }, failing];
        assert!(matches!(take_steps(&meta, &steps, false), Err(Error::NoSpace)));
        assert_eq!(version(&meta), 1);
        assert_eq!(meta.view(|view| view.counter(Counter::NextIno)).unwrap(), 10);
    }

    #[test]
    fn newer_tables_and_old_ones_for_reading_only_are_refused() {
        let meta = meta();
        let refused = |read_only| take_steps(&meta, &STEPS[..2], read_only).unwrap_err().to_string();
        assert!(refused(true).contains("mount it once for writing"));
        take_steps(&meta, STEPS, false).unwrap();
        for read_only in [false, true] {
            assert!(refused(read_only).contains("use a newer argosfs"));
        }
    }

    #[test]
    fn the_steps_lead_from_nothing_to_the_newest_version_one_by_one() {
        let to: Vec<u64> = migrations::STEPS.iter().map(|step| step.to).collect();
        assert_eq!(to, (1..=to.len() as u64).collect::<Vec<_>>());
        let meta = meta();
        migrate(&meta, false).unwrap();
        assert_eq!(version(&meta), to.len() as u64);
    }
}
