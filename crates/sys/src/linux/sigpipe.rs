//! Writing to a pipe without being killed for it.
//!
//! Sockets have `MSG_NOSIGNAL`; a pipe whose reader is gone raises `SIGPIPE`, which ends a process
//! that has not said otherwise. Rust programs ignore it from the start, others may not.

use std::mem::MaybeUninit;
use std::ptr;

use rustix::io::Errno;

/// Makes `call`, of whose `EPIPE` no signal comes.
pub(super) fn without<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if !ends_the_process() {
        return call();
    }
    let Some(before) = block() else {
        return call();
    };
    let result = call();
    if matches!(result, Err(Errno::PIPE)) {
        take_back();
    }
    restore(&before);
    result
}

/// Whether `SIGPIPE` has its default disposition.
fn ends_the_process() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the disposition and changes nothing; `now` has room for it, and zeroes are
    // a valid value of it should the call fail.
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

/// Blocks `SIGPIPE` in this thread and returns what was blocked before; `None` if it was blocked
/// already, and one that is pending must not be taken for ours.
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

/// Takes the signal that the call raised, without waiting.
fn take_back() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid set, no wish to know more about the signal, and a valid time of zero.
    unsafe { libc::sigtimedwait(&set(), ptr::null_mut(), &now) };
}

fn restore(before: &libc::sigset_t) {
    // SAFETY: `before` is what the same call gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_ignore_the_signal_survives() {
        // SAFETY: the disposition is the process's own, and no other test of this crate writes
        // to a pipe or socket in a way that raises the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (hear, bell) = super::super::doorbell::pair().unwrap();
        drop(hear);
        assert!(!super::super::doorbell::ring(&bell).unwrap());
        // Nothing is left pending, and the thread's mask is as before.
        assert!(block().is_some());
    }
}
