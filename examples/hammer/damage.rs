//! Damage to devices, under a mount or not.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::pattern::Random;

const BLOCK: u64 = 4096;

/// Turns over random bits, those of the labels at the start included.
pub fn flip(file: &str, count: u64, seed: u64) -> Result<String, String> {
    let flip = || {
        // Past the page cache, which does not like to be in the way of somebody else's direct I/O.
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file)?;
        let (len, mut random) = (device.metadata()?.len() / BLOCK * BLOCK, Random::new(seed));
        let mut buffer = vec![0; 2 * BLOCK as usize];
        let aligned = buffer.as_ptr().align_offset(BLOCK as usize);
        let block = &mut buffer[aligned..][..BLOCK as usize];
        for at in 0..count {
            // One in ten near the start, where one of the copies of the label is.
            let offset = random.below(if at % 10 == 0 { len.min(64 << 10) } else { len });
            device.read_exact_at(block, offset / BLOCK * BLOCK)?;
            block[(offset % BLOCK) as usize] ^= 1 << random.below(8);
            device.write_all_at(block, offset / BLOCK * BLOCK)?;
        }
        device.sync_all()
    };
    flip().map(|()| format!("{count} bits of {file} turned over")).map_err(|error| format!("{file}: {error}"))
}

const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
/// `struct loop_info64`, and where `lo_sizelimit` is in it.
const INFO_LEN: usize = 232;
const SIZE_LIMIT: usize = 32;

/// Sets where a loop device ends, while others use it.
pub fn limit(device: &str, bytes: u64) -> Result<String, String> {
    let told = |error: std::io::Error| format!("{device}: {error}");
    let file = OpenOptions::new().read(true).open(device).map_err(told)?;
    let mut info = [0_u64; INFO_LEN / 8];
    // SAFETY: the kernel reads or fills one `loop_info64`, which is as long as the buffer.
    let call = |what, info: &mut [u64]| match unsafe { libc::ioctl(file.as_raw_fd(), what, info.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(told(std::io::Error::last_os_error())),
    };
    call(LOOP_GET_STATUS64, &mut info)?;
    info[SIZE_LIMIT / 8] = bytes;
    call(LOOP_SET_STATUS64, &mut info)?;
    Ok(format!("{device} ends after {bytes} bytes"))
}
