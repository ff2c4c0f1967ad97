//! The simulated power cut over the whole engine: pool, metadata volume, store and filesystem run unchanged; only devices,
//! clock and randomness are simulated. All devices share one ordered record, and after a cut anything the rules of
//! storage allow may be left of what was not flushed: lost, torn, reordered, on each device in its own way.
//!
//! `campaign` has the variables that choose seeds, and replays one state of one seed.

mod campaign;
mod change;
mod content;
mod history;
mod process;
mod recovery;
mod simulator;
mod stack;
mod upkeep;

use campaign::campaign;
use content::Run;
use recovery::Tally;
use stack::Shape;

/// A history of content and maintenance on a pool of this shape, and power cuts of it.
fn content_survives(test: &str, shape: Shape, seeds: u64, states: u64) {
    campaign(test, seeds, states, |seed, chosen| {
        let mut run = Run::format(seed, shape)?;
        run.world.mark_base();
        run.steps(40)?;
        run.verify().map_err(|why| format!("at the end of the run: {why}"))?;
        run.leave();
        let mut tally = Tally::default();
        chosen.each(|prng| recovery::cut(&run, 2, prng, &mut tally))?;
        eprintln!("{test}, seed {seed}: {} events, {tally:?}", run.world.record());
        Ok(())
    });
}

#[test]
fn content_survives_on_4_plus_2() {
    content_survives("content_survives_on_4_plus_2", Shape::exact(4, 2), 6, 12);
}

#[test]
fn content_survives_on_4_plus_2_with_a_device_to_spare() {
    let shape = Shape { devices: 7, ..Shape::exact(4, 2) };
    content_survives("content_survives_on_4_plus_2_with_a_device_to_spare", shape, 3, 12);
}

#[test]
fn content_survives_on_2_plus_1() {
    content_survives("content_survives_on_2_plus_1", Shape::exact(2, 1), 6, 12);
}

#[test]
fn content_survives_on_a_mirror_of_two() {
    content_survives("content_survives_on_a_mirror_of_two", Shape::exact(1, 1), 6, 12);
}

#[test]
fn content_survives_on_2_plus_2() {
    content_survives("content_survives_on_2_plus_2", Shape::exact(2, 2), 6, 12);
}
