//! Block-aligned memory. Small and middle-sized buffers come from one arena of the process, so that they are reused without
//! growing it and the kernel can be told about them once (io_uring's registered buffers); the rest comes from the heap.
//!
//! Invariants:
//! - A buffer starts at a multiple of 4 KiB and owns whole pages, so that `O_DIRECT` takes it.
//! - The free list of the arena is sorted, disjoint, never touching (neighbours are merged), and disjoint from every buffer.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

const PAGE: usize = crate::base::BLOCK_SIZE as usize;
/// Size of the arena: five stripes of six 512 KiB shards in flight.
const ARENA: usize = 16 << 20;
/// The arena starts on a huge page, which makes registering it cheap.
const ARENA_ALIGN: usize = 2 << 20;
/// Larger buffers come from the heap.
const LARGEST: usize = ARENA / 8;

/// The memory behind most buffers, and which pages of it are free.
struct Arena {
    base: NonNull<u8>,
    free: Mutex<Vec<Range<usize>>>,
}

// SAFETY: `base` is only an address; the memory behind it is handed out in disjoint pieces under `free`'s lock.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn get() -> &'static Arena {
        static GLOBAL: OnceLock<Arena> = OnceLock::new();
        GLOBAL.get_or_init(Arena::new)
    }

    fn new() -> Arena {
        let layout = Layout::from_size_align(ARENA, ARENA_ALIGN).expect("constant layout");
        Arena { base: allocate(layout), free: Mutex::new(vec![Range { start: 0, end: ARENA / PAGE }]) }
    }

    /// Takes the first free run of pages that is long enough.
    fn take(&self, pages: usize) -> Option<NonNull<u8>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.iter().position(|run| run.len() >= pages)?;
        let start = free[at].start;
        free[at].start += pages;
        if free[at].is_empty() {
            free.remove(at);
        }
        // SAFETY: `start` lies within the arena's allocation.
        Some(unsafe { self.base.add(start * PAGE) })
    }

    fn give_back(&self, start: NonNull<u8>, pages: usize) {
        let start = (start.as_ptr() as usize - self.base.as_ptr() as usize) / PAGE;
        let mut run = start..start + pages;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.partition_point(|other| other.start < start);
        if free.get(at).is_some_and(|next| next.start == run.end) {
            run.end = free.remove(at).end;
        }
        match at.checked_sub(1).and_then(|before| free.get_mut(before)).filter(|before| before.end == run.start) {
            Some(before) => before.end = run.end,
            None => free.insert(at, run),
        }
    }
}

/// The arena's memory, for an engine that registers it with the kernel. It lives as long as the process.
pub(super) fn arena_region() -> (NonNull<u8>, usize) {
    (Arena::get().base, ARENA)
}

/// Whether the bytes lie within the arena.
pub(super) fn in_arena(start: *const u8, len: usize) -> bool {
    let base = Arena::get().base.as_ptr() as usize;
    (start as usize).checked_sub(base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= ARENA)
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has size zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

/// A buffer for device requests: starts at a multiple of 4 KiB.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    /// Set when the memory is not the arena's.
    heap: Option<Layout>,
}

// SAFETY: the buffer owns its memory alone.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` bytes whose content is left from earlier use: for whoever fills it before reading it.
    pub fn scratch(len: usize) -> AlignedBuf {
        let pages = len.div_ceil(PAGE).max(1);
        if pages * PAGE <= LARGEST
            && let Some(start) = Arena::get().take(pages)
        {
            return AlignedBuf { start, len, heap: None };
        }
        let layout = Layout::from_size_align(pages * PAGE, PAGE).expect("a buffer length within the address space");
        AlignedBuf { start: allocate(layout), len, heap: Some(layout) }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::scratch(len);
        if buf.heap.is_none() {
            buf.fill(0);
        }
        buf
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match self.heap {
            // SAFETY: allocated with this very layout in `scratch`.
            Some(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            None => Arena::get().give_back(self.start, self.len.div_ceil(PAGE).max(1)),
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to at least `len` initialised bytes that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl From<&[u8]> for AlignedBuf {
    fn from(bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::scratch(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    #[test]
    fn buffers_are_aligned_and_disjoint_wherever_they_come_from() {
        let mut prng = Prng::new(1);
        let mut held: Vec<(AlignedBuf, u8)> = Vec::new();
        for step in 0..1500u64 {
            if prng.chance(2, 5) && !held.is_empty() {
                let (buf, byte) = held.swap_remove(prng.below(held.len() as u64) as usize);
                assert!(buf.iter().all(|got| *got == byte), "another buffer wrote here");
            } else {
                let len = prng.below(150 << 10) as usize;
                let mut buf = if step % 2 == 0 { AlignedBuf::scratch(len) } else { AlignedBuf::zeroed(len) };
                assert!(buf.len() == len && (buf.as_ptr() as usize).is_multiple_of(PAGE));
                assert!(step % 2 == 0 || buf.iter().all(|byte| *byte == 0));
                assert_eq!(in_arena(buf.as_ptr(), len), buf.heap.is_none());
                buf.fill(step as u8);
                held.push((buf, step as u8));
            }
        }
        assert!(held.iter().any(|(buf, _)| buf.heap.is_some()) && held.iter().any(|(buf, _)| buf.heap.is_none()));
        assert!(AlignedBuf::scratch(LARGEST + 1).heap.is_some());
        assert_eq!(AlignedBuf::scratch(0).len(), 0);
    }

    #[test]
    fn the_arena_gets_all_its_pages_back_in_one_piece() {
        let arena = Arena::new();
        let mut prng = Prng::new(2);
        let mut held: Vec<(NonNull<u8>, usize)> = Vec::new();
        for _ in 0..5000 {
            if prng.chance(1, 2) && !held.is_empty() {
                let (start, pages) = held.swap_remove(prng.below(held.len() as u64) as usize);
                arena.give_back(start, pages);
            } else {
                let pages = 1 + prng.below(200) as usize;
                held.extend(arena.take(pages).map(|start| (start, pages)));
            }
            let free = arena.free.lock().unwrap().clone();
            assert!(free.windows(2).all(|pair| pair[0].end < pair[1].start) && free.iter().all(|run| !run.is_empty()));
            let used: usize = held.iter().map(|(_, pages)| pages).sum();
            assert_eq!(free.iter().map(Range::len).sum::<usize>() + used, ARENA / PAGE);
        }
        for (start, pages) in held {
            arena.give_back(start, pages);
        }
        assert_eq!(*arena.free.lock().unwrap(), [Range { start: 0, end: ARENA / PAGE }]);
        let layout = Layout::from_size_align(ARENA, ARENA_ALIGN).unwrap();
        // SAFETY: allocated with this layout in `new`, and nothing points into it any more.
        unsafe { dealloc(arena.base.as_ptr(), layout) };
    }
}
