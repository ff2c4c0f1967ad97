//! The memory one thread serves requests from.
//!
//! Invariants:
//! - The data of a WRITE lands on a page boundary, so that it can be handed to a device as it is.
//! - Data of a reply uses the same pages: a READ carries nothing that is needed once it is parsed.
//! - Pages are taken when first touched and given back by [`Buffer::shrink`], so a thread that never moved data costs
//!   one or two pages.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::abi;
use crate::base::{Error, Result};

/// Largest amount of data in one request or reply, in bytes. More gains nothing, and 256 pages are the kernel's default
/// bound.
pub const DATA_MAX: usize = 1 << 20;

const PAGE: usize = 4096;
/// Where messages start: their fixed part, as long as that of a WRITE, ends at the first page boundary.
const MESSAGE_START: usize = PAGE - size_of::<abi::InHeader>() - size_of::<abi::WriteIn>();
const LEN: usize = PAGE + DATA_MAX;
const _: () = assert!(LEN - MESSAGE_START >= abi::MIN_READ_BUFFER);

/// Room for one request and its reply's data.
pub struct Buffer {
    start: *mut u8,
}

// SAFETY: the mapping is owned by this value alone and only reached through borrows of it.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Maps room for a mebibyte of data; no page of it is in use yet.
    pub fn new() -> Result<Buffer> {
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches nothing that exists.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }
                .map_err(|errno| Error::io("memory", "map a request buffer", errno.into()))?;
        Ok(Buffer { start: start.cast() })
    }

    /// Where the next request is received.
    pub fn message_mut(&mut self) -> &mut [u8] {
        self.all_mut().split_at_mut(MESSAGE_START).1
    }

    /// The request received, all of `len` bytes.
    pub fn message(&self, len: usize) -> &[u8] {
        // SAFETY: the mapping is LEN bytes long, initialised to zeros by the kernel, and borrowed with `self`.
        let all = unsafe { std::slice::from_raw_parts(self.start, LEN) };
        all.get(MESSAGE_START..MESSAGE_START.saturating_add(len)).unwrap_or(&[])
    }

    /// Page-aligned room for `len` bytes of a reply, which overwrites the data of the request; `None` above a mebibyte.
    pub fn data_mut(&mut self, len: usize) -> Option<&mut [u8]> {
        self.all_mut().split_at_mut(PAGE).1.get_mut(..len)
    }

    /// Gives all pages back but the first.
    pub fn shrink(&mut self) {
        // SAFETY: the range lies inside our private mapping; its content turns to zeros, which no borrow is left to see.
        let advised = unsafe { madvise(self.start.add(PAGE).cast(), DATA_MAX, Advice::LinuxDontNeed) };
        debug_assert!(advised.is_ok(), "giving back an own private mapping does not fail");
    }

    fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is LEN bytes long, initialised to zeros by the kernel, and borrowed exclusively with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, LEN) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no borrow outlives `self`.
        let unmapped = unsafe { munmap(self.start.cast(), LEN) };
        debug_assert!(unmapped.is_ok(), "unmapping an own mapping does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_data_is_page_aligned_and_messages_fit() {
        let mut buffer = Buffer::new().expect("maps");
        let fixed = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();
        assert_eq!(buffer.message_mut().len(), fixed + DATA_MAX);
        assert_eq!(buffer.message_mut()[fixed..].as_ptr() as usize % 4096, 0);
        buffer.message_mut().fill(7);
        assert_eq!(buffer.message(fixed + DATA_MAX).len(), fixed + DATA_MAX);
        assert!(buffer.message(fixed + DATA_MAX + 1).is_empty());
        assert!(buffer.data_mut(DATA_MAX + 1).is_none());
        assert_eq!(buffer.data_mut(DATA_MAX).expect("fits").as_ptr() as usize % 4096, 0);
        buffer.shrink();
        assert!(buffer.data_mut(DATA_MAX).expect("fits").iter().all(|byte| *byte == 0), "pages were given back");
        assert!(buffer.message(fixed).iter().all(|byte| *byte == 7), "the first page stays");
    }
}
