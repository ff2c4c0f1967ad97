//! Whole transfers on one descriptor: short counts and interruptions are finished here, unaligned memory is bounced.

use crate::base::BLOCK_SIZE;
use crate::device::AlignedBuf;
use rustix::io::{Errno, pread, pwrite, pwritev};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// What one system call takes at most; the kernel's own limit is 1024.
const MAX_SLICES: usize = 1024;
/// Unaligned memory is copied through a buffer of at most this size.
const BOUNCE: usize = 1 << 20;

/// Whether `O_DIRECT` takes this memory: `alignment` is what its address must be a multiple of.
pub(in crate::device) fn aligned(bytes: &[u8], alignment: usize) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(alignment) && bytes.len().is_multiple_of(BLOCK_SIZE as usize)
}

/// Fills `buf` from `offset`; the file ending early is an error.
pub(super) fn read(fd: BorrowedFd<'_>, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match pread(fd, &mut *buf, offset) {
            Ok(0) => {
                let why = format!("the file ends at byte {offset}: it was cut short after the pool was made");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            Ok(count) => {
                offset += count as u64;
                buf = &mut buf[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As [`read`], for memory `O_DIRECT` does not take.
pub(super) fn read_bounced(fd: BorrowedFd<'_>, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut bounce = AlignedBuf::scratch(buf.len().min(BOUNCE));
    for piece in buf.chunks_mut(BOUNCE) {
        read(fd, offset, &mut bounce[..piece.len()])?;
        piece.copy_from_slice(&bounce[..piece.len()]);
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes all of `buf` at `offset`.
pub(super) fn write(fd: BorrowedFd<'_>, mut offset: u64, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match pwrite(fd, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                buf = &buf[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes all buffers, one after the other, at `offset`.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
    if let [buf] = bufs {
        return write(fd, offset, buf);
    }
    let mut slices: Vec<IoSlice<'_>> = bufs.iter().filter(|buf| !buf.is_empty()).map(|buf| IoSlice::new(buf)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match pwritev(fd, &rest[..rest.len().min(MAX_SLICES)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As [`write_all`], for memory `O_DIRECT` does not take. The total is a multiple of the block size.
pub(super) fn write_bounced(fd: BorrowedFd<'_>, mut offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
    let total: usize = bufs.iter().map(|buf| buf.len()).sum();
    let mut bounce = AlignedBuf::scratch(total.min(BOUNCE));
    let mut filled = 0;
    for buf in bufs {
        let mut rest = *buf;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(bounce.len() - filled));
            bounce[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            rest = tail;
            if filled == bounce.len() {
                write(fd, offset, &bounce)?;
                offset += filled as u64;
                filled = 0;
            }
        }
    }
    write(fd, offset, &bounce[..filled])
}
