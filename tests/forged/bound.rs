//! What nothing may do, whatever the bytes say: take memory without bound, and panic outside of the database.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::sync::Once;

/// No single allocation is larger.
const LARGEST: usize = 1 << 30;

/// The system's allocator, which ends the process when somebody asks for more than is sane.
pub struct Bounded;

// SAFETY: every call is the system allocator's; the check beside it neither allocates nor unwinds.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn check(size: usize) {
    if size > LARGEST {
        // The backtrace of the abort says who asked.
        eprintln!("an allocation of {size} bytes was asked for");
        std::process::abort();
    }
}

thread_local! {
    static FOREIGN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on panics outside of the database are noted, those that somebody catches included; the database's are caught
/// where it is called, and are silent.
pub fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or_else(String::new, ToString::to_string);
            if !place.contains("/redb-") {
                usual(panic);
                FOREIGN.with(|foreign| foreign.borrow_mut().push(format!("a panic at {place}")));
            }
        }));
    });
}

/// Takes what was noted in this thread.
pub fn foreign_panics() -> Vec<String> {
    FOREIGN.with(RefCell::take)
}
