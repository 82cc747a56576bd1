//! The heap of OMEX's programs.
// An allocator is unsafe by contract; this one passes everything on.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

/// The system's allocator, but that a process whose memory is refused says so and
/// ends with exit code 4, where Rust's would abort it.
#[derive(Debug)]
pub struct Heap;

// SAFETY: every call is passed on to the system's allocator as it is, and what
// that returns is returned.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system's.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(old, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        refused(bytes);
    }
    memory
}

#[cold]
fn refused(bytes: usize) -> ! {
    // Standard error has no buffer, and numbers are printed without the heap.
    let _ = writeln!(
        std::io::stderr(),
        "error: the system refuses {bytes} bytes of memory"
    );
    // SAFETY: ends the process; nothing runs after it that could need memory.
    unsafe { libc::_exit(4) }
}
