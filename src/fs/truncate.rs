//! Changing a file's size.

use super::attr;
use super::change::{Change, Slot};
use crate::base::file::FileType;
use crate::base::{Error, Result};

/// Makes the file `size` bytes long within a change: content past the end goes, a longer file reads as zeros there.
pub fn to_size(change: &mut Change<'_, '_>, slot: Slot, size: u64) -> Result<()> {
    let row = change.row(slot);
    match attr::kind(row) {
        FileType::Regular => {}
        FileType::Directory => return Err(Error::IsDirectory),
        _ => return Err(Error::Invalid("only a regular file can be truncated")),
    }
    if size < row.size {
        let ino = change.ino(slot);
        let delta = change.shrink(ino, size)?;
        let row = change.row_mut(slot);
        row.content = row.content.saturating_add_signed(delta);
    }
    change.row_mut(slot).size = size;
    Ok(())
}
