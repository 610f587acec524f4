//! Counts what a thread allocates. A limit on that is the same on every machine, which a limit on time is not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What any input may cost: tables, buffers and the promise's own work.
const BASE: u64 = 256 << 10;

/// What each byte of it may cost.
const PER_BYTE: u64 = 512;

/// Bytes that may be allocated, and freed again, for an input of this length.
pub fn limit(length: usize) -> u64 {
    BASE + PER_BYTE * length as u64
}

/// The system's allocator with a counter for each thread.
pub struct Counting;

thread_local! {
    // Without a destructor and constant at first: touching it allocates nothing.
    static ALLOCATED: Cell<u64> = const { Cell::new(0) };
}

/// What this thread has allocated since its start.
pub fn allocated() -> u64 {
    ALLOCATED.get()
}

fn count(bytes: usize) {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATED.try_with(|sum| sum.set(sum.get().wrapping_add(bytes as u64)));
}

// SAFETY: every call goes to the system's allocator unchanged, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: by the contract of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the contract of this function.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: by the contract of this function.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
