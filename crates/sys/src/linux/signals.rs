//! The signal mask of a thread, and threads that no signal is delivered to.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread;

/// Changes the thread's signal mask by all signals, or sets it. Returns the one before.
pub(super) fn all_signals(how: c_int, mask: Option<&libc::sigset_t>) -> libc::sigset_t {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the calls initialize both sets, and get pointers to such.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        let new = mask.map_or(all.as_ptr(), ptr::from_ref);
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(how, new, before.as_mut_ptr());
        before.assume_init()
    }
}

/// Starts a thread that blocks all signals, so that the signal handlers of the program never run in it.
/// For a library's own threads. Nobody waits for it; `stack` is its size in bytes.
///
/// # Errors
///
/// Those of `clone`, such as `EAGAIN`.
pub fn spawn_without_signals(
    name: &str,
    stack: usize,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    // The new thread inherits the mask: there is no moment in which it could receive a signal.
    let mask = all_signals(libc::SIG_BLOCK, None);
    let thread = thread::Builder::new().name(name.into()).stack_size(stack);
    let spawned = thread.spawn(body);
    all_signals(libc::SIG_SETMASK, Some(&mask));
    spawned.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Whether the calling thread blocks a signal.
    fn blocks(signal: c_int) -> bool {
        let mask = all_signals(libc::SIG_BLOCK, None);
        all_signals(libc::SIG_SETMASK, Some(&mask));
        // SAFETY: a valid set and a signal that exists.
        unsafe { libc::sigismember(&mask, signal) == 1 }
    }

    #[test]
    fn a_thread_without_signals_blocks_them_and_its_starter_does_not() {
        let before = blocks(libc::SIGTERM);
        let (sender, receiver) = mpsc::channel();
        spawn_without_signals("quiet", 64 * 1024, move || {
            sender
                .send([libc::SIGTERM, libc::SIGCHLD].map(blocks))
                .unwrap();
        })
        .unwrap();
        assert_eq!(receiver.recv().unwrap(), [true, true]);
        assert_eq!(blocks(libc::SIGTERM), before);
    }
}
