//! Signals: the first SIGINT, SIGTERM or SIGHUP asks the run to stop at the next safe
//! point, the second ends the process; SIGBUS says that a mapped file shrank.
// Handlers are installed through libc and restricted to async-signal-safe calls.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that asked to stop, or 0.
static STOP: AtomicI32 = AtomicI32::new(0);

/// The exit code of the signal that asked to stop, once one has: 130, 143 or 129.
pub fn stop_requested() -> Option<u8> {
    match STOP.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(128 + signal as u8),
    }
}

extern "C" fn on_stop(signal: libc::c_int) {
    if STOP.swap(signal, Ordering::Relaxed) != 0 {
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(128 + signal) }
    }
}

extern "C" fn on_bus_error(_signal: libc::c_int) {
    const MESSAGE: &[u8] =
        b"error: a mapped model file was shortened or could not be read while in use\n";
    // SAFETY: write and _exit are async-signal-safe; the message is static.
    unsafe {
        libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
        libc::_exit(5)
    }
}

/// Makes a limit on the size of files an error of the write that exceeds it, instead
/// of a signal that ends the process; mains call it once.
pub fn ignore_file_size_limit() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Installs the handlers for the whole process; mains call it once.
pub fn install() {
    let handlers: [(libc::c_int, extern "C" fn(libc::c_int)); 4] = [
        (libc::SIGINT, on_stop),
        (libc::SIGTERM, on_stop),
        (libc::SIGHUP, on_stop),
        (libc::SIGBUS, on_bus_error),
    ];
    for (signal, handler) in handlers {
        // SAFETY: a zeroed sigaction is valid (empty mask); the handlers make
        // only async-signal-safe calls. SA_RESTART is left out on purpose: a
        // read that waits for input must notice the request to stop.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut action);
            // `nohup` asks for that, and for going on.
            if signal == libc::SIGHUP && action.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            action = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}
