//! Sleeping until a word changes.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex::{self, Flags};

/// Sleeps while `word` is `value`; may return early.
pub fn wait(word: &AtomicU32, value: u32) {
    if word.load(Ordering::Acquire) == value {
        // A changed word and a signal both mean that the caller looks again.
        let _ = futex::wait(word, Flags::PRIVATE, value, None);
    }
}

/// Wakes every thread that sleeps on `word`.
pub fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::PRIVATE, i32::MAX as u32);
}
