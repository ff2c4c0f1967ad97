//! Recognising what a device holds before it is overwritten.

use crate::base::{BLOCK_SIZE, Result};
use crate::device::Device;

/// A name and the bytes by which it is known, at an offset from the start of the device.
const KNOWN: &[(&str, usize, &[u8])] = &[
    ("an ext2, ext3 or ext4 filesystem", 0x438, &[0x53, 0xef]),
    ("an XFS filesystem", 0, b"XFSB"),
    ("a btrfs filesystem", 0x1_0040, b"_BHRfS_M"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0x200, b"LABELONE"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("a member of an md array", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a member of an md array", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a bcache or bcachefs device", 0x1018, &[0xc6, 0x85, 0x73, 0xf6]),
    ("swap space", 0xff6, b"SWAPSPACE2"),
    ("swap space", 0xff6, b"SWAP-SPACE"),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an exFAT filesystem", 3, b"EXFAT   "),
    ("a FAT filesystem", 0x36, b"FAT1"),
    ("a FAT filesystem", 0x52, b"FAT32"),
    ("an F2FS filesystem", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("a SquashFS filesystem", 0, b"hsqs"),
    ("an EROFS filesystem", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("an ISO 9660 filesystem", 0x8001, b"CD001"),
    ("a ReiserFS filesystem", 0x1_0034, b"ReIsEr"),
    ("a JFS filesystem", 0x8000, b"JFS1"),
    ("a GPT partition table", 0x200, b"EFI PART"),
    ("a partition table or boot sector", 0x1fe, &[0x55, 0xaa]),
];

/// Start of the ZFS uberblock array in the first label, its stride, and the magic number in either byte order.
const ZFS: (usize, usize, [[u8; 8]; 2]) =
    (0x2_0000, 0x400, [[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]]);

/// What the device holds, as far as it can be told; `None` when nothing is recognised.
pub fn find(device: &dyn Device) -> Result<Option<&'static str>> {
    let length = (256 * 1024).min(device.size() / BLOCK_SIZE * BLOCK_SIZE);
    let mut head = vec![0; length as usize];
    device.read_at(0, &mut head)?;
    let known = KNOWN.iter().find(|(_, at, magic)| head.get(*at..at + magic.len()) == Some(magic));
    if let Some((name, ..)) = known {
        return Ok(Some(name));
    }
    let (from, stride, magics) = ZFS;
    let mut uberblocks = head.get(from..).unwrap_or_default().chunks_exact(stride);
    if uberblocks.any(|block| magics.iter().any(|magic| block.starts_with(magic))) {
        return Ok(Some("a member of a ZFS pool"));
    }
    // Of a disk whose content is not known this would be asked every time; a file was made for something.
    if device.is_file() {
        let mut tail = vec![0; length as usize];
        device.read_at(device.size() / BLOCK_SIZE * BLOCK_SIZE - length, &mut tail)?;
        if head.iter().chain(&tail).any(|byte| *byte != 0) {
            return Ok(Some("something that is not recognised"));
        }
    }
    Ok(None)
}
