//! What the volume has to know of redb's header (file format 3, the first 320 bytes): which commit it names, and how long
//! the file is. redb reads the rest itself.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

/// Bytes redb writes as its header.
pub const LEN: usize = 320;

const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const GOD_BYTE: usize = 9;
const PRIMARY_BIT: u8 = 1;
const SLOTS: usize = 64;
const SLOT: usize = 128;
const TRANSACTION: usize = 104;
const PAGE: u64 = 4096;
/// Pages of a full region.
const REGION_PAGES: u64 = 1 << 20;

fn u32_at(header: &[u8; LEN], at: usize) -> u64 {
    header
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
}

/// Which slot is primary, and its bytes: what makes one durable state differ from another. `None` while nothing was committed:
/// without the magic, or with the empty commit 0 that redb starts from.
pub fn commit(header: &[u8; LEN]) -> Option<(u8, &[u8])> {
    let primary = header[GOD_BYTE] & PRIMARY_BIT;
    let from = SLOTS + SLOT * usize::from(primary);
    let slot = header.get(from..from + SLOT)?;
    let transaction = slot.get(TRANSACTION..TRANSACTION + 8)?;
    (header.starts_with(&MAGIC) && *transaction != [0; 8]).then_some((primary, slot))
}

/// Whether both headers hold the same two commits and point to the same one: what differs is flags and the layout.
pub fn same_commits(a: &[u8; LEN], b: &[u8; LEN]) -> bool {
    (a[GOD_BYTE] ^ b[GOD_BYTE]) & PRIMARY_BIT == 0 && a[SLOTS..] == b[SLOTS..] && a[..GOD_BYTE] == b[..GOD_BYTE]
}

/// Length of the file this header describes. redb insists on exactly a length some layout has, and writes the header's layout
/// with every commit, so the header is the one place to take the length from. `None` for a header that is none, or whose
/// pages and regions are not those that redb makes by default (with others, a forged header could make redb allocate anything).
pub fn file_len(header: &[u8; LEN]) -> Option<u64> {
    let [page, head_pages, max_pages, full, trailing] = [12, 16, 20, 24, 28].map(|at| u32_at(header, at));
    let usual = header.starts_with(&MAGIC) && (page, head_pages, max_pages) == (PAGE, 0, REGION_PAGES);
    let pages = 1 + full * REGION_PAGES + trailing;
    (usual && trailing <= REGION_PAGES && pages > 1).then_some(pages * PAGE)
}

/// The longest file that redb can have made when the last block ever written lies in front of `end`: it doubles the file, or
/// adds up to two regions of 4 GiB.
pub fn longest(end: u64) -> u64 {
    end.saturating_mul(2).saturating_add(2 * REGION_PAGES * PAGE).saturating_add(1 << 20)
}
