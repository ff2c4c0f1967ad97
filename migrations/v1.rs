//! The first version: the tables of `schema/ondisk.md`, all empty. A table is made by the first write to it, so there is
//! nothing to do but to say which version they are.

use crate::base::Result;
use crate::meta::Tx;

pub fn run(_: &mut Tx<'_>) -> Result<()> {
    Ok(())
}
