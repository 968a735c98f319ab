//! Writing to a pipe without `SIGPIPE`.
//!
//! Sockets have `MSG_NOSIGNAL`. A write to a pipe without a reader raises `SIGPIPE`, which by default
//! kills the process. Rust programs ignore the signal at startup, others may not.

use std::mem::MaybeUninit;
use std::ptr;

use rustix::io::Errno;

/// Makes `call`; if it fails with `EPIPE`, no signal is delivered.
pub(super) fn without<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if !is_default() {
        return call();
    }
    let Some(before) = block() else {
        return call();
    };
    let result = call();
    if matches!(result, Err(Errno::PIPE)) {
        consume();
    }
    restore(&before);
    result
}

/// Whether `SIGPIPE` has its default disposition.
fn is_default() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: reads the disposition and changes nothing. `now` is large enough, and all zero is
    // valid should the call fail.
    let now = unsafe {
        libc::sigaction(libc::SIGPIPE, ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_DFL
}

fn set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set, and both calls fail only for signals that do not
    // exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

/// Blocks `SIGPIPE` in this thread and returns the previous mask. `None` if it was already blocked: then
/// a pending signal may not come from this call.
fn block() -> Option<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are valid for the call; SIG_BLOCK with a valid set does not fail, so
    // `before` is initialized.
    let before = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &set(), before.as_mut_ptr());
        before.assume_init()
    };
    // SAFETY: a valid set and a signal that exists.
    let blocked = unsafe { libc::sigismember(&before, libc::SIGPIPE) } == 1;
    (!blocked).then_some(before)
}

/// Consumes the pending signal that the call raised, without waiting.
fn consume() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid set, a null siginfo, which is allowed, and a valid timeout of zero.
    unsafe { libc::sigtimedwait(&set(), ptr::null_mut(), &now) };
}

fn restore(before: &libc::sigset_t) {
    // SAFETY: `before` was initialized by the same call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_ignore_the_signal_survives() {
        // SAFETY: the disposition belongs to the process, and no other test of this crate makes a
        // call that raises the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (reader, writer) = super::super::doorbell::pair().unwrap();
        drop(reader);
        assert!(!super::super::doorbell::notify(&writer).unwrap());
        // No signal is pending, and the thread's mask is restored.
        assert!(block().is_some());
    }
}
