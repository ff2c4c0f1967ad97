//! The checks every device makes on a request before it touches anything.

use crate::base::{BLOCK_SIZE, Error, Result};
use std::io;

/// Refuses a range that is not block-aligned or not wholly inside a device of `size` bytes.
pub(super) fn check(device: &str, operation: &'static str, size: u64, offset: u64, len: u64) -> Result<()> {
    if !offset.is_multiple_of(BLOCK_SIZE) || !len.is_multiple_of(BLOCK_SIZE) {
        let why = format!("bytes {offset}+{len} are not multiples of {BLOCK_SIZE}");
        return Err(Error::io(device, operation, io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => {
            let why = format!("bytes {offset}+{len} lie beyond the end at {size}");
            Err(Error::io(device, operation, io::Error::new(io::ErrorKind::InvalidInput, why)))
        }
    }
}

/// Total length of the buffers of one write.
pub(super) fn total(bufs: &[&[u8]]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}
