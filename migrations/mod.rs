//! The steps that bring the tables of a pool from one version to the next, oldest first. A step is never changed once it
//! was released: pools of every older version pass through all later ones.
//!
//! To add one: write `vN.rs` with `pub fn run(tx: &mut Tx<'_>) -> Result<()>`, and list it here. It runs as a single
//! transaction, together with the new version number, so it either happened or did not; what is too much for one
//! transaction is spread over several versions. Code that reads rows only ever sees the newest version. A change that
//! older builds must not even mount is fenced by an incompatible feature in the label besides.

mod v1;
mod v2;

use super::Step;

/// All steps; the last one leads to the version this build works with.
pub const STEPS: &[Step] = &[Step { to: 1, run: v1::run }, Step { to: 2, run: v2::run }];
